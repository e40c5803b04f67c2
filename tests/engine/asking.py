"""A process that asks a server through a journal and prints its answers: what test_journal.py kills.

python -m tests.engine.asking URL JOURNAL COUNT IN_FLIGHT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from largeforge.chat import Answer
from largeforge.engine.answers import answers
from largeforge.engine.journal import Journal
from tests.engine.openai_server import questions
from tests.tiny_models import part


def main(url: str, path: str, count: str, in_flight: str) -> None:
    engine = part("engine", "remote", url=url, model="tiny", retries=0)
    with Journal(Path(path)) as journal:
        for found in answers(engine, questions(int(count)), in_flight=int(in_flight), journal=journal):
            assert isinstance(found, Answer)
            print(json.dumps([found.text, found.usage.total_tokens]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
