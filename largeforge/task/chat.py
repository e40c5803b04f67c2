"""Talk to a model in the terminal, with the template it was trained with: one question, or a conversation."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from largeforge.build import build, find
from largeforge.chat import ChatRequest, Delta, Message, Usage
from largeforge.contract import Engine, LoadedModel, Progress, Quant
from largeforge.errors import EngineError, InputError
from largeforge.run import Run
from largeforge.task.config import ChatConfig

HELP = "/exit or Ctrl-D ends, /reset forgets the conversation, /help shows this; Ctrl-C stops an answer."


class Chat:
    """Answers go to standard output, everything else to standard error: `task=chat prompt=... > answer.txt` works."""

    def __init__(self, config: ChatConfig) -> None:
        self.config = config

    def run(self, run: Run) -> None:
        """Answer `prompt`, or talk until the user ends it."""
        config = self.config

        # ---- build ----
        model: LoadedModel | None = None
        if find(config.engine.target).needs_model:
            quant: Quant = build(config.quant)
            model = build(config.model, progress=run.progress).load(trainable=False, quant=quant)
        else:
            self.refuse_model(run)
        engine: Engine = build(config.engine, model=model, progress=run.progress)
        for note in model.notes if model is not None else ():
            run.progress.say(note)

        # ---- talk ----
        talk = Conversation(config, engine, run)
        if config.prompt is not None:
            talk.ask(config.prompt)
        else:
            run.progress.say(f"Talking to {engine.name if model is None else model.source.name}. {HELP}")
            with talk.own_signals():
                talk.hold()
        run.measure(answers=talk.num_answers, prompt_tokens=talk.prompt_tokens, completion_tokens=talk.completion_tokens)

    def plan(self, *, progress: Progress) -> Any:
        """What talking would cost; no weights are read."""
        if not find(self.config.engine.target).needs_model:
            raise InputError("This engine loads no model here: there is nothing to plan.", next_step="leave out plan=...")
        quant: Quant = build(self.config.quant)
        model: LoadedModel = build(self.config.model, progress=progress).outline(trainable=False, quant=quant)
        return find("largeforge.plan.talking.TalkingPlan")(self.config)(model=model, progress=progress)

    def refuse_model(self, run: Run) -> None:
        """Raise InputError where a model was chosen for an engine that loads none: it would be ignored."""
        for word in run.composed.overrides:
            if word.partition("=")[0].partition(".")[0] in ("model", "quant"):
                raise InputError(
                    f"{word} is for an engine in this process; the chosen one asks elsewhere.", next_step="engine.model=<its name there>, or engine=hf"
                )


class Conversation:
    """The turns so far, and what the terminal asks of them."""

    def __init__(self, config: ChatConfig, engine: Engine, run: Run) -> None:
        self.config = config
        self.engine = engine
        self.run = run
        self.opening: tuple[Message, ...] = (Message("system", config.system),) if config.system else ()
        self.turns: tuple[Message, ...] = self.opening
        self.num_answers = self.prompt_tokens = self.completion_tokens = 0

    def ask(self, text: str) -> None:
        """Stream one answer to standard output and remember both turns.

        Raises:
            InputError: the conversation is longer than the model reads.
            EngineError: no answer can be had.
            Interrupted: a stop was asked for.
        """
        drawing = self.config.engine
        request = ChatRequest(
            (*self.turns, Message("user", text)),
            max_tokens=drawing.max_tokens,
            temperature=drawing.temperature,
            top_p=drawing.top_p,
            top_k=drawing.top_k,
            seed=self.config.seed,
        )
        pieces: list[str] = []
        stream = self.engine.stream(request)
        try:
            for delta in stream:
                self.show(delta, pieces)
                if self.run.stop_asked:
                    raise self.run.interrupt("Stopped while answering.")
        finally:
            close = getattr(stream, "close", None)
            if close is not None:
                close()
            print(flush=True)
            self.turns = (*request.messages, Message("assistant", "".join(pieces)))

    def show(self, delta: Delta, pieces: list[str]) -> None:
        print(delta.text, end="", flush=True)
        pieces.append(delta.text)
        if delta.usage is not None:
            self.count(delta.usage)
        if delta.finish_reason == "length":
            self.run.progress.say(f"\n[cut off: engine.max_tokens={self.config.engine.max_tokens}, or the end of the model's context]")

    def count(self, usage: Usage) -> None:
        self.num_answers += 1
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens

    def hold(self) -> None:
        """Ask for one line after the other until the user ends it."""
        while True:
            try:
                line = self.line()
                if line is None or line.strip() in ("/exit", "/quit"):
                    return
                self.answer(line.strip())
            except KeyboardInterrupt:  # at the prompt
                self.run.progress.say(f"\n{HELP}")

    def answer(self, line: str) -> None:
        """Do what a line asks: a command, or a turn of the conversation."""
        if not line:
            return
        if line == "/reset":
            self.turns = self.opening
            self.run.progress.say("Forgotten.")
        elif line == "/help":
            self.run.progress.say(HELP)
        elif line.startswith("/"):
            self.run.progress.say(f"{line.split()[0]} is no command. {HELP}")
        else:
            before = self.turns
            try:
                self.ask(line)
            except KeyboardInterrupt:
                self.run.progress.say("[stopped]")
            except (InputError, EngineError) as error:
                self.turns = before
                self.run.progress.say(str(error))

    def line(self) -> str | None:
        """Read one line: with a prompt and editing on a terminal, plainly from a pipe; None at the end."""
        if not sys.stdin.isatty():
            return sys.stdin.readline() or None
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives input() a history)
        try:
            return input("> ")
        except EOFError:
            print()
            return None

    @contextlib.contextmanager
    def own_signals(self) -> Iterator[None]:
        """Let Ctrl-C stop an answer rather than the run, and SIGTERM end the conversation at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def end(number: int, frame: Any) -> None:
            self.run.signal_number = number
            raise self.run.interrupt("Asked to stop.")

        before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler), signal.SIGTERM: signal.signal(signal.SIGTERM, end)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
