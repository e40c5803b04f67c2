"""Every error that a user can meet, and the exit code that each one ends in.

    LargeForgeError              2   something the user can mend
    |-- ConfigError              2   the composed config: all problems in one answer
    |-- InputError               2   a file, a row, a prompt
    |   |-- PromptTooLong        2   a prompt with more tokens than the model reads
    |   `-- RowError             2   rows of a data file, each with file, line and field
    |-- ModelError               2   a model that cannot be had: no hub, gated, missing, corrupt
    |-- EngineError              2   an engine that gives no answer: not reachable, refused, malformed
    |-- StorageError             2   a bucket or object that cannot be read or written
    |-- StoreError               2   a database that cannot be reached or is of another version
    |-- ServeError               2   a server that cannot start: port taken, certificate expired, engine that does not come up
    |-- ArtifactError            2   an artifact that is damaged or of the wrong kind
    |-- MissingExtra             2   a library that an extra brings
    |-- DoesNotFit               3   more memory than the device has
    |-- CheckFailed              4   a check, a gate or a verification
    `-- Interrupted      130 / 143   Ctrl-C or SIGTERM; a checkpoint was written where there was one to write

Anything else that escapes is a fault of ours: exit code 1, with a traceback. Knows nothing about where errors are shown.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

EXIT_DONE = 0
EXIT_FAULT = 1
EXIT_USER = 2
EXIT_DOES_NOT_FIT = 3
EXIT_CHECK_FAILED = 4


class LargeForgeError(Exception):
    """An error the user can mend.

    Args:
        message: what was wrong, the value, what is allowed.
        next_step: the command or action that mends it, without a leading "Try:"; empty where the message says it.
    """

    exit_code = EXIT_USER

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.message}\nTry: {self.next_step}" if self.next_step else self.message


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a config: the key, what stands there, what would be right, and where it was said."""

    key: str
    value: str
    allowed: str
    origin: str


class ConfigError(LargeForgeError):
    """All problems of one config, told together."""

    def __init__(self, problems: Sequence[Problem], *, next_step: str = "") -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{count} problem{'s' if count != 1 else ''} in this config"
        left = max((len(f"{p.key} = {p.value}") for p in self.problems), default=0)
        middle = max((len(p.allowed) for p in self.problems), default=0)
        lines = [f"  {f'{p.key} = {p.value}':<{left}}   {p.allowed:<{middle}}   {p.origin}".rstrip() for p in self.problems]
        super().__init__("\n".join([head, *lines]), next_step=next_step)


class InputError(LargeForgeError):
    """A file or a value the user gave that cannot be used."""


class PromptTooLong(InputError):
    """A prompt with more tokens than the model reads."""

    code = "context_length_exceeded"


class RowError(InputError):
    """Rows of a data file that cannot be used, each told with file, line and field."""


class ModelError(LargeForgeError):
    """A model that cannot be loaded: not in reach, gated, missing a file, or corrupt."""


class EngineError(LargeForgeError):
    """An engine that gives no answer.

    Args:
        reason: "unreachable", "refused" or "malformed": what `Failure` is made of.
        code: what OpenAI's error object calls it, for a program; "" is nothing.
    """

    def __init__(self, message: str, *, reason: str = "unreachable", next_step: str = "", code: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.reason, self.code = reason, code


class StorageError(LargeForgeError):
    """A bucket, container or object that cannot be read or written."""


class StoreError(LargeForgeError):
    """A database that cannot be reached, or whose tables are of another version."""


class ServeError(LargeForgeError):
    """A server that cannot start: a port that is taken, a certificate that has expired, an engine that does not come up."""


class ArtifactError(LargeForgeError):
    """An artifact that is damaged, unfinished, or not of the kind that is needed."""


class MissingExtra(LargeForgeError):
    """A library that an extra of the package brings.

    Args:
        library: the module that is missing.
        extra: the extra's name in pyproject.toml.
    """

    def __init__(self, library: str, *, extra: str) -> None:
        super().__init__(f"{library} is not installed.", next_step=f"pip install 'largeforge[{extra}]'")


class DoesNotFit(LargeForgeError):
    """More memory than the device has."""

    exit_code = EXIT_DOES_NOT_FIT


class CheckFailed(LargeForgeError):
    """A check, a gate or a verification that did not pass."""

    exit_code = EXIT_CHECK_FAILED


class Interrupted(LargeForgeError):
    """Ctrl-C (130) or SIGTERM (143)."""

    def __init__(self, message: str, *, signal_number: int = 2, next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.exit_code = 128 + signal_number


# ---- what libraries raise, by what it means ----

_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory: you tried to allocate", "cublas_status_alloc_failed")


def ran_out_of_memory(fault: BaseException) -> bool:
    """Whether a device or the machine had no memory left: each library says it in words of its own."""
    for one in _chain(fault):
        if isinstance(one, MemoryError) or type(one).__name__ == "OutOfMemoryError":
            return True
        if isinstance(one, RuntimeError | OSError) and any(words in str(one).lower() for words in _NO_MEMORY):
            return True
    return False


def ran_out_of_disk(fault: BaseException) -> bool:
    """Whether a write failed because a disk or a quota is full."""
    return any(isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT) for one in _chain(fault))


def _chain(fault: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = fault
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
