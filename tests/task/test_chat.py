"""task=chat through the real entry point: one question, a conversation from a pipe, signals, an artifact with its own template."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from largeforge.chat import ChatRequest, Delta, Message, Usage
from largeforge.config.compose import compose
from largeforge.console import Console
from largeforge.errors import EngineError, InputError, Interrupted
from largeforge.model.nano import TOKENIZER
from largeforge.run import Run, execute
from largeforge.task.chat import Conversation
from tests.engine.openai_server import OpenAIServer, openai_server
from tests.task.conftest import Runner

__all__ = ["openai_server"]


class Parrot:
    """An engine that repeats the last turn letter by letter, and says how many turns it was given."""

    def __init__(self) -> None:
        self.asked: list[ChatRequest] = []
        self.on_delta: Callable[[], None] = lambda: None

    def answers(self, requests: Any) -> Iterator[Any]:
        raise NotImplementedError

    def stream(self, request: ChatRequest) -> Iterator[Delta]:
        self.asked.append(request)
        said = request.messages[-1].content
        if said == "too long":
            raise InputError("Prompt 1 has 99 tokens.")
        for letter in said:
            self.on_delta()
            yield Delta(letter)
        yield Delta("", finish_reason="stop", usage=Usage(len(request.messages), len(said)))


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Conversation]:
    """A conversation with the parrot, its lines typed into a pipe."""

    def make(typed: str = "", *words: str) -> Conversation:
        composed = compose(["task=chat", "model=nano", *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        return Conversation(composed.config, Parrot(), Run(composed, folder=tmp_path, progress=Console(live=False)))  # type: ignore[arg-type]

    return make


def test_a_conversation(talk: Callable[..., Conversation], capsys: pytest.CaptureFixture[str]) -> None:
    """Turns are remembered with the system message, /reset forgets them, commands are no turns; answers alone on standard output."""
    told = talk("hello\n\nagain\n/reset\n/help\n/what\nfresh\n/exit\nnever\n", "system='Be brief.'")
    told.hold()
    engine: Any = told.engine
    system = Message("system", "Be brief.")
    hello, again = Message("user", "hello"), Message("user", "again")
    assert [request.messages for request in engine.asked] == [
        (system, hello),
        (system, hello, Message("assistant", "hello"), again),
        (system, Message("user", "fresh")),
    ]
    shown = capsys.readouterr()
    assert shown.out == "hello\nagain\nfresh\n"
    assert "Forgotten." in shown.err and "/reset forgets" in shown.err and "/what is no command" in shown.err
    assert (told.num_answers, told.prompt_tokens, told.completion_tokens) == (3, 2 + 4 + 2, 15)


def test_how_it_asks(talk: Callable[..., Conversation]) -> None:
    """Every setting of the engine reaches the request."""
    told = talk("x\n", "engine.max_tokens=9", "engine.temperature=0.5", "engine.top_p=0.9", "engine.top_k=3", "seed=4")
    told.hold()
    engine: Any = told.engine
    assert engine.asked == [ChatRequest((Message("user", "x"),), max_tokens=9, temperature=0.5, top_p=0.9, top_k=3, seed=4)]


def test_a_prompt_that_is_too_long_is_forgotten(talk: Callable[..., Conversation], capsys: pytest.CaptureFixture[str]) -> None:
    told = talk("a\ntoo long\nb\n")
    told.hold()
    assert [turn.content for turn in told.turns] == ["a", "a", "b", "b"]
    assert "Prompt 1 has 99 tokens." in capsys.readouterr().err


def test_ctrl_c_stops_an_answer(talk: Callable[..., Conversation], capsys: pytest.CaptureFixture[str]) -> None:
    """The signal stops that answer, what was said is remembered, and the conversation goes on; afterwards Ctrl-C is the run's again."""
    told = talk("hello\nbye\n")
    engine: Any = told.engine
    letters = iter("hel")

    def press() -> None:
        if next(letters, None) is None:
            engine.on_delta = lambda: None
            os.kill(os.getpid(), signal.SIGINT)

    engine.on_delta = press
    before = signal.getsignal(signal.SIGINT)
    with told.own_signals():
        told.hold()
    assert signal.getsignal(signal.SIGINT) is before
    shown = capsys.readouterr()
    assert shown.out == "hel\nbye\n" and "[stopped]" in shown.err
    assert [turn.content for turn in told.turns] == ["hello", "hel", "bye", "bye"]


def test_sigterm_ends_it(talk: Callable[..., Conversation]) -> None:
    told = talk("hello\n")
    engine: Any = told.engine
    engine.on_delta = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted) as caught, told.own_signals():
        told.hold()
    assert caught.value.exit_code == 143


def test_one_question(nano_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """prompt=... prints the answer and ends with 0; result.json counts its tokens."""
    monkeypatch.chdir(tmp_path)
    assert execute(compose(["task=chat", "model=nano", "prompt='What is 2+2, really?'", "engine.max_tokens=3", "folder=run"])) == 0
    shown = capsys.readouterr()
    assert shown.out.endswith("\n") and "cut off: engine.max_tokens=3" in shown.err
    assert '"completion_tokens": 3' in (tmp_path / "run" / "result.json").read_text()


def test_with_what_was_trained(train: Runner, tmp_path: Path) -> None:
    """An adapter artifact answers through its base and with the template it was trained with, not the base's own."""
    template = tmp_path / "mine.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    code, result = train("run", "trainer.max_steps=2", "tracker=none", f"model.chat_template={template}")
    assert code == 0
    template.unlink()
    words = ["task=chat", f"model={result['artifact']}", "prompt=Tell me 8 things.", "engine.max_tokens=4", "folder=chat"]
    assert execute(compose(words)) == 0
    asked = Tokenizer.from_file(str(TOKENIZER)).encode("user:Tell me 8 things.<|im_end|>assistant:").ids
    assert json.loads((tmp_path / "chat" / "result.json").read_text())["metrics"]["prompt_tokens"] == len(asked)


def test_with_a_server(openai_server: OpenAIServer, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """engine=remote streams from a server and loads no model; the key comes from the environment and is in no file; a chosen model is refused, not ignored."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LARGEFORGE_ENGINE__API_KEY", "sk-very-secret")
    openai_server.api_key = "sk-very-secret"
    words = ["task=chat", "engine=remote", f"engine.url={openai_server.url}"]
    assert execute(compose([*words, "prompt='one two'", "folder=run"])) == 0
    assert capsys.readouterr().out == "answer to one two\n" and not cache.exists()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["metrics"] == {"answers": 1, "prompt_tokens": 2, "completion_tokens": 4}
    assert not any(b"sk-very-secret" in path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert execute(compose([*words, "prompt=x", "model=nano", "folder=other"])) == 2
    assert "model=nano is for an engine in this process" in capsys.readouterr().err
    openai_server.api_key = "another"
    assert execute(compose([*words, "prompt=x", "folder=third"])) == 2
    said = capsys.readouterr().err
    assert "answered 401" in said and "Try: LARGEFORGE_ENGINE__API_KEY=" in said and "sk-very-secret" not in said


def test_a_server_that_goes_away(talk: Callable[..., Conversation], capsys: pytest.CaptureFixture[str]) -> None:
    """A turn that got no answer is told and forgotten, and the conversation goes on."""
    told = talk("a\nnobody\nb\n")
    engine: Any = told.engine
    real = engine.stream

    def stream(request: ChatRequest) -> Iterator[Delta]:
        if request.messages[-1].content == "nobody":
            raise EngineError("The server gives no answer.")
        yield from real(request)

    engine.stream = stream
    told.hold()
    assert [turn.content for turn in told.turns] == ["a", "a", "b", "b"] and "gives no answer" in capsys.readouterr().err


def test_the_whole_way(nano_cache: Path, tmp_path: Path) -> None:
    """python -m largeforge task=chat, lines piped in: answers out, exit code 0; SIGINT while it waits for a line does not end it, its end does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "largeforge", "task=chat", "model=nano", "engine.max_tokens=2", "folder=run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdin.write("hello\n")
    process.stdin.flush()
    first = process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    err = ""
    while err.count("Ctrl-D ends") < 2:  # a line that comes together with the signal would be taken for what was being typed
        line = process.stderr.readline()
        assert line, err
        err += line
    out, rest = process.communicate("again\n", timeout=60)
    err += rest
    assert process.returncode == 0, err
    assert first.endswith("\n") and out.endswith("\n") and err.count("cut off") == 2 and err.count("Ctrl-D ends") == 2
