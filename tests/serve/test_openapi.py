"""The OpenAPI document and the server agree: schemathesis makes requests of the one and compares what the other answers.

Marked clients: it stands in the environment of scripts/environments clients.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from scripts.environments import programs
from tests.serve.servers import Server, serving

pytestmark = pytest.mark.clients

EVERY_ENGINE_S = "model messages prompt max_tokens temperature top_p top_k n seed stream frequency_penalty presence_penalty user metadata"
HOOKS = Path(__file__).parent / "clients" / "schemathesis_hooks.py"


def examine(server: Server, folder: Path, *, model: str, examples: int) -> Counter[tuple[int, bool]]:
    """Run every check but one over requests that fit the document and ones that do not; how often which status, streamed or not, was logged.

    Left out is that what fits the document is accepted: a document cannot say what holds between fields (top_logprobs without logprobs),
    nor what an engine does not do, and both are refused.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"SCHEMATHESIS_HOOKS": str(HOOKS), "SERVED_MODEL": model, "SERVED_FIELDS": EVERY_ENGINE_S}
    words = [
        "--phases",
        "examples,coverage,fuzzing",
        "--max-examples",
        str(examples),
        "--seed",
        "2",
        "--no-shrink",
        "--continue-on-failure",
        "--warnings",
        "off",
    ]
    command = [programs("clients") / "schemathesis", "run", f"{server.url}/openapi.json", *words, "--exclude-checks", "positive_data_acceptance"]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = [json.loads(line) for line in (server.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = [line for line in lines if line.get("path", "").endswith("completions")]
    assert not [line for line in lines if line.get("status", 0) >= 500]
    return Counter((line["status"], line["stream"]) for line in asked)


def test_the_door(tmp_path: Path) -> None:
    """Proves SYS-I-023, SYS-SEC-005: no 5xx, no answer that its document does not have, right and wrong requests alike."""
    with serving(tmp_path, "engine=echo", "serve.grpc_port=0") as server:
        found = examine(server, tmp_path, model="echo", examples=150)
    print(dict(found))
    assert found[200, False] > 30 and found[200, True] > 10 and found[400, False] > 200


def test_the_hf_engine(tmp_path: Path, shared_models: Path) -> None:
    """Proves SYS-I-023, SYS-SEC-005."""
    with serving(tmp_path, "model=nano", "serve.grpc_port=0", "serve.prove=false", environment={"LARGEFORGE_CACHE": str(shared_models)}) as server:
        found = examine(server, tmp_path, model="nano", examples=40)
    print(dict(found))
    assert found[200, False] > 20 and found[200, True] + found[499, True] > 5 and found[400, False] > 200
