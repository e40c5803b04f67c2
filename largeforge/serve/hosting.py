"""An engine server's process: what it is told when it starts, and how it starts. `python -m largeforge.serve.hosting` reads that from standard input.

The parent never loads torch: it sends a `Hosting`, and the engine is made here. Which server hosts it (LitServe or a plain uvicorn) the
engine's config says.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from largeforge.artifact import write_atomically
from largeforge.errors import InputError, LargeForgeError

WORD = "engine_error.txt"


@dataclass
class Hosted:
    """An engine that is served.

    Args:
        engine: an Engine; see largeforge.contract.
        pinned: prompts with the answers that were computed in this process: what `proof` compares the endpoint with.
        tokenize: token ids of a conversation, as the engine would read it; None where it has no tokenizer.
        context: tokens that it reads at most; 0 where it says nothing.
        longest_token: characters of its longest token; 0 where it says nothing.
        load_seconds: to load it.
    """

    engine: Any
    pinned: list[dict[str, Any]] = field(default_factory=list)
    tokenize: Callable[[list[dict[str, str]]], list[int]] | None = None
    context: int = 0
    longest_token: int = 0
    load_seconds: float = 0.0

    def token_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation up to where the answer begins. Raises InputError where the template refuses it."""
        if self.tokenize is None:
            raise InputError(f"{self.engine.name} has no tokenizer.")
        return self.tokenize(messages)

    def about(self) -> dict[str, Any]:
        """What the API process is told."""
        return {
            "pinned": self.pinned,
            "context": self.context,
            "longest_token": self.longest_token,
            "load_seconds": self.load_seconds,
            "engine": self.engine.name,
        }


@dataclass
class Hosting:
    """What an engine server is told.

    Args:
        kind: who hosts the engine.
        make: makes it, in the process that answers; picklable.
        host: where it listens.
        port: on which port.
        key: what its door says to it.
        name: the model's name.
        adapters: names of its adapters.
        defaults: what holds where a request does not say: max_tokens, temperature, top_p, top_k.
        folder: where it leaves its log and what went wrong.
        drain_s: seconds that running answers are given at the end.
    """

    kind: Literal["litserve", "uvicorn"]
    make: Callable[[], Hosted]
    host: str
    port: int
    key: str
    name: str
    adapters: tuple[str, ...]
    defaults: tuple[int, float, float, int]
    folder: Path
    drain_s: float = 30.0

    def leave_word(self, text: str) -> None:
        """Leave an error of the user's for the supervisor to tell."""
        write_atomically(self.folder / WORD, text)


def main() -> int:
    """Serve what standard input says."""
    hosting: Hosting = pickle.load(sys.stdin.buffer)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    try:
        if hosting.kind == "litserve":
            from largeforge.serve.litserve_host import serve
        else:
            from largeforge.serve.plain_host import serve
        serve(hosting)
    except LargeForgeError as fault:
        hosting.leave_word(str(fault))
        return fault.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
