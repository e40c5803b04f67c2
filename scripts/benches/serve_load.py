"""What many clients of a server see: speed, waiting and failures, out of the answers that the load generator has timed.

Starts that generator as a process of its own; knows nothing about which server it is.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIDE = Path(__file__).with_name("serve_load_side.py")
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Reply:
    """One answer.

    Args:
        number: of the request, in the order asked.
        status: of HTTP; 0 where there was none.
        whole: its last byte came.
        start_s: when it was asked, in seconds since the first was.
        first_s: when something was said first; of what says nothing, when it ended.
        end_s: when it ended.
        prompt_tokens: as the server counted.
        answer_tokens: likewise.
        finished: it said why it ended.
        error: code or type of the error that it told; "" is none.
        text_hash: of what was said, but for halves of characters.
        text: what was said, where it was asked for.
    """

    number: int
    status: int
    whole: bool
    start_s: float
    first_s: float
    end_s: float
    prompt_tokens: int
    answer_tokens: int
    finished: bool
    error: str
    text_hash: str
    text: str = ""

    @property
    def good(self) -> bool:
        """Answered to its end, and nothing but answered."""
        return self.status == 200 and self.whole and self.finished and not self.error

    @property
    def silent(self) -> bool:
        """Ended without a word on why: no error, and no end either."""
        return not self.good and not self.error and (self.status in (0, 200))


@dataclass(frozen=True)
class Measured:
    """One run of the generator.

    Args:
        replies: what came back.
        cpu_s: what the generator itself took.
    """

    replies: list[Reply]
    cpu_s: float

    @property
    def good(self) -> list[Reply]:
        return [reply for reply in self.replies if reply.good]

    @property
    def num_failed(self) -> int:
        return len(self.replies) - len(self.good)

    @property
    def wall_s(self) -> float:
        """From the first question to the last answer."""
        return max((reply.end_s for reply in self.replies), default=0.0)

    @property
    def tokens_per_s(self) -> float:
        return sum(reply.answer_tokens for reply in self.good) / self.wall_s if self.replies else 0.0

    @property
    def requests_per_s(self) -> float:
        return len(self.good) / self.wall_s if self.replies else 0.0

    def first_ms(self, share: float) -> float:
        """Quantile of the milliseconds until something was said."""
        return quantile([1000 * (reply.first_s - reply.start_s) for reply in self.good], share)

    def whole_ms(self, share: float) -> float:
        """Quantile of the milliseconds until all was said."""
        return quantile([1000 * (reply.end_s - reply.start_s) for reply in self.good], share)

    def failures(self) -> dict[str, int]:
        """How often what went wrong."""
        return dict(Counter(f"{reply.status} {reply.error or ('silent' if reply.silent else 'no end')}" for reply in self.replies if not reply.good))

    def numbers(self) -> dict[str, Any]:
        """What the JSON of a bench keeps."""
        return {
            "requests": len(self.replies),
            "failures": self.failures(),
            "wall_s": round(self.wall_s, 4),
            "tokens_per_s": round(self.tokens_per_s, 2),
            "requests_per_s": round(self.requests_per_s, 2),
            "first_ms": {"p50": round(self.first_ms(0.5), 2), "p95": round(self.first_ms(0.95), 2)},
            "whole_ms": {"p50": round(self.whole_ms(0.5), 3), "p99": round(self.whole_ms(0.99), 3)},
            "generator_cpu_s": round(self.cpu_s, 3),
        }


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that so many are not above; 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def load(
    url: str,
    bodies: Sequence[dict[str, Any]],
    *,
    clients: int,
    requests: int = 0,
    seconds: float = 0.0,
    path: str = CHAT,
    timeout_s: float = 300.0,
    texts: bool = False,
) -> Measured:
    """Ask `bodies` in turn, `requests` of them or for so many seconds; connections are made before the clock starts."""
    job = {
        "url": url + path,
        "bodies": [json.dumps(body) for body in bodies],
        "clients": clients,
        "requests": requests,
        "seconds": seconds,
        "timeout_s": timeout_s,
        "texts": texts,
    }
    done = subprocess.run([sys.executable, str(SIDE)], input=json.dumps(job), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the load generator ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    return Measured([Reply(**answer) for answer in found["answers"]], found["cpu_s"])
