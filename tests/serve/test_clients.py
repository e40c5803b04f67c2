"""Other people's clients over a real server, none of them changed: what they get is what plain HTTP says.

Marked clients: `scripts/test clients` makes their environments and runs this. The programs stand in clients/; llm and guidellm are command lines.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scripts.environments import modules, programs
from tests.serve.servers import ROOT, Server, serving

pytestmark = pytest.mark.clients

HERE = Path(__file__).parent / "clients"
ASKED: dict[str, Any] = {"model": "nano", "messages": [{"role": "user", "content": "Hello"}], "temperature": 1.5, "seed": 1, "max_tokens": 24}


@dataclass(frozen=True)
class Served:
    """A server that asks for keys, and what it says over plain HTTP.

    Args:
        server: of nano.
        key: that opens it.
        answer: to ASKED.
        greedy: to ASKED at temperature 0.
        texts: continuations of "Hello" and "You", greedy, 6 tokens.
    """

    server: Server
    key: str
    answer: dict[str, Any]
    greedy: str
    texts: list[str]

    @property
    def words(self) -> list[str]:
        """What every program is told."""
        return [f"{self.server.url}/v1", self.key, "nano"]

    @property
    def text(self) -> str:
        """The answer's."""
        return str(self.answer["choices"][0]["message"]["content"])

    @property
    def tokens(self) -> list[int]:
        """Of prompt and answer."""
        return [self.answer["usage"]["prompt_tokens"], self.answer["usage"]["completion_tokens"]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, shared_models: Path) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("clients")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    make = [sys.executable, "-m", "largeforge", "task=keys", "create=clients", f"store.path={folder / 'store.sqlite3'}"]
    key = subprocess.run(make, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout.strip()
    words = ("model=nano", "serve.grpc_port=0", "model.dtype=fp32", "guards.keys.require=true")
    with serving(folder, *words, environment={"LARGEFORGE_CACHE": str(shared_models)}) as server:
        shown = {"Authorization": f"Bearer {key}"}
        answer = server.ask("/v1/chat/completions", ASKED, **shown)[1]
        greedy = server.ask("/v1/chat/completions", {**ASKED, "temperature": 0}, **shown)[1]["choices"][0]["message"]["content"]
        body = {"model": "nano", "prompt": ["Hello", "You"], "temperature": 0, "max_tokens": 6}
        texts = [one["text"] for one in server.ask("/v1/completions", body, **shown)[1]["choices"]]
        assert len({answer["choices"][0]["message"]["content"], greedy, *texts}) == 4 and answer["usage"]["completion_tokens"] == 24
        yield Served(server, key, answer, greedy, texts)


def run(*argv: str | Path, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a client: nothing of this project on its path, no way to any hub, a home of its own."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OPENAI_API_KEY", "OPENAI_BASE_URL")}
    environment |= {"HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "DO_NOT_TRACK": "1", **more}
    ran = subprocess.run([str(word) for word in argv], env=environment, capture_output=True, text=True, timeout=180)
    assert ran.returncode == 0 or not check, ran.stdout + ran.stderr
    return ran


def said(*argv: str | Path) -> dict[str, Any]:
    """The JSON that a program prints."""
    found: dict[str, Any] = json.loads(run(*argv).stdout)
    return found


def test_openai_s_python_sdk(served: Served) -> None:
    """Proves SYS-I-001, SYS-F-050, SYS-F-051: whole, streamed, async, structured; its own classes of errors."""
    found = said(programs("clients") / "python", HERE / "openai_sdk.py", *served.words)
    usage = served.answer["usage"]
    assert found["models"] == ["nano"]
    assert (found["whole"], found["stream"]) == (served.text, served.text)
    assert (found["finish_reason"], found["usage"], found["stream_usage"]) == ("length", usage, usage)
    assert found["async"] == [served.text] * 9
    assert found["raw"] == [True, served.greedy]  # of the one likeliest token
    assert (found["completion"], found["logprobs"]) == (served.texts, [6, 6])
    assert [set(one) for one in found["parsed"]] == [{"ok"}, {"ok"}] and all(type(one["ok"]) is bool for one in found["parsed"])
    assert found["no model"] == ["NotFoundError", 404, "model_not_found", "model", True]
    assert found["bad"] == ["BadRequestError", 400, "invalid_value", "temperature", True]
    assert found["no key"] == ["AuthenticationError", 401, "invalid_api_key", None, True]


def test_openai_s_node_sdk(served: Served) -> None:
    """Proves SYS-I-001."""
    found = said("node", HERE / "openai_sdk.mjs", modules(), *served.words)
    usage = served.answer["usage"]
    assert found["models"] == ["nano"]
    assert (found["whole"], found["stream"], found["together"]) == (served.text, served.text, [served.text] * 8)
    assert (found["finish_reason"], found["usage"], found["stream_usage"]) == ("length", usage, usage)
    assert found["text"] == served.texts[0]
    assert found["no model"] == ["NotFoundError", 404, "model_not_found", "model"]
    assert found["bad"] == ["BadRequestError", 400, "invalid_value", "temperature"]
    assert found["no key"] == ["AuthenticationError", 401, "invalid_api_key", None]


def test_litellm(served: Served) -> None:
    """Proves SYS-I-001."""
    found = said(programs("clients") / "python", HERE / "litellm_sdk.py", *served.words)
    assert (found["whole"], found["stream"], found["async"], found["text"]) == (*[served.text] * 3, served.texts[0])
    assert (found["finish_reason"], found["usage"]) == ("length", [*served.tokens, sum(served.tokens)])
    assert found["no model"] == ["NotFoundError", 404] and found["bad"] == ["BadRequestError", 400] and found["no key"] == ["AuthenticationError", 401]


def test_langchain(served: Served) -> None:
    """Proves SYS-I-001."""
    found = said(programs("clients") / "python", HERE / "langchain_sdk.py", *served.words)
    assert (found["whole"], found["stream"], found["async"], found["batch"]) == (*[served.text] * 3, [served.text] * 4)
    assert (found["usage"], found["stream_usage"], found["finish_reason"]) == (served.tokens, served.tokens, "length")
    assert found["text"] == served.texts[0] and found["conversation"] not in ("", served.text)
    assert (found["no model"], found["bad"], found["no key"]) == ("NotFoundError", "BadRequestError", "AuthenticationError")


def test_llm(served: Served, tmp_path: Path) -> None:
    """Proves SYS-I-001: the command line `llm`, told of the server by its extra-openai-models.yaml."""
    url, key, model = served.words
    entry = f"- model_id: local\n  model_name: {model}\n  api_base: {url}\n  api_key_name: largeforge\n"
    (tmp_path / "extra-openai-models.yaml").write_text(entry, encoding="utf-8")
    (tmp_path / "keys.json").write_text(json.dumps({"largeforge": key}), encoding="utf-8")
    asked = [programs("clients") / "llm", "-m", "local", "-o", "temperature", "1.5", "-o", "seed", "1", "-o", "max_tokens", "24", "--usage", "Hello"]
    for more in ([], ["--no-stream"]):
        ran = run(*asked, *more, LLM_USER_PATH=str(tmp_path))
        assert ran.stdout.removesuffix("\n") == served.text
        assert f"{served.tokens[0]} input, {served.tokens[1]} output" in ran.stderr
    ran = run(*asked, "--key", "sk-wrong", check=False, LLM_USER_PATH=str(tmp_path))
    assert ran.returncode == 1 and "Incorrect API key" in ran.stderr and "Traceback" not in ran.stderr


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_guidellm(served: Served, tmp_path: Path, shared_models: Path, route: str) -> None:
    """Proves SYS-I-001: a load generator completes every request, each with the tokens that it asked for."""
    url, key, model = served.words
    backend = f"kind=openai_http,target={url.removesuffix('/v1')},model={model},api_key={key},request_format={route}"
    tokenizer = next((shared_models / "models").glob("nano-*"))
    load = [
        "--profile",
        "kind=concurrent,streams=4",
        "--constraint",
        "kind=max_requests,count=12",
        "--data",
        "kind=synthetic_text,prompt_tokens=16,output_tokens=8",
    ]
    report = tmp_path / "report.json"
    words = ["--backend", backend, *load, "--tokenizer", f"kind=hf_auto,model={tokenizer}", "--output", f"kind=json,path={report}", "--disable-console"]
    before = served.server.requests(route)
    run(programs("clients") / "guidellm", "run", *words, HOME=str(tmp_path))
    assert served.server.requests(route) >= before + 12
    requests = json.loads(report.read_text(encoding="utf-8"))["benchmarks"][0]["requests"]
    assert (len(requests["successful"]), requests["errored"], requests["incomplete"]) == (12, [], []), requests["errored"][:1]
    assert {one["output_metrics"]["text_tokens"] for one in requests["successful"]} == {8}
