"""More rows: a teacher says some of them in other words. Knows what to ask and which answers are of use, not who answers nor how.

Rows that are set aside for validation or the test are left alone. Where rows are split, split first: a row and its copy then stay on one side.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from largeforge.chat import Answer, ChatRequest, Failure, Message
from largeforge.data.rows import Dropped, Row
from largeforge.data.step.base import Step
from largeforge.data.step.config import AugmentConfig
from largeforge.errors import InputError, Interrupted

if TYPE_CHECKING:
    from jinja2 import Template

Ask = Callable[[Iterable[ChatRequest]], Iterator[Answer | Failure]]
LONGEST = 4  # an answer of more than so many times the text (and 200 characters) is no rewriting of it
_CHATTER = re.compile(
    r"(?:sure|certainly|of course|absolutely|i(?:'d| would) be happy|as an ai)\b"
    r"|(?:here(?:'s| is| are)|the (?:rewritten|translated) text)\b[^\n]{0,80}:(?:\s|\Z)",
    re.IGNORECASE,
)
_MARKERS = re.compile(r"<\|[a-z_]+\|>|\[/?INST\]|</?s>")
_QUOTES = (('"', '"'), ("“", "”"), ("'", "'"), ("«", "»"))


class Augment(Step):
    """Gives every row on; behind it come its copies, each with one turn rewritten by the teacher.

    Answers that are of no use are told as dropped copies: the row itself stays.
    """

    config: AugmentConfig
    needs: ClassVar[frozenset[str]] = frozenset({"engine", "ask"})

    def ready(self) -> None:
        """Refuse a prompt that is no Jinja2, that does not show the text, or that can only give the same answer several times."""
        from jinja2 import meta

        shown = meta.find_undeclared_variables(_environment().parse(self._template_source()))
        if "text" not in shown:
            raise InputError("step.augment.prompt does not show the text that is to be rewritten.", next_step="write {{ text }} into step.augment.prompt")
        if unknown := sorted(shown - {"text", "row"}):
            raise InputError(f"step.augment.prompt names {', '.join(unknown)} (allowed: text, row).", next_step=f"row.{unknown[0]} is the row's field")
        if self.config.copies > 1 and self.config.temperature == 0:
            raise InputError("step.augment.copies above 1 with temperature 0 would be the same answer again.", next_step="step.augment.temperature=0.7")

    def __call__(self, rows: Iterable[Row]) -> Iterator[Row | Dropped]:
        """Ask while rows come in; rows leave in their order, each with its copies behind it. Raises Interrupted where the answers end before the rows."""
        asked: deque[tuple[Row, int]] = deque()
        all_asked = False

        def requests() -> Iterator[ChatRequest]:
            nonlocal all_asked
            for row in rows:
                count = self.config.copies if self._is_chosen(row) else 0
                asked.append((row, count))
                yield from (self.request(row, copy) for copy in range(1, count + 1))
            all_asked = True

        ask: Ask = self.live["ask"]
        found: list[Answer | Failure] = []
        for answer in ask(requests()):
            while asked[0][1] == 0:
                yield asked.popleft()[0]
            found.append(answer)
            if len(found) == asked[0][1]:
                yield from self._with_copies(asked.popleft()[0], found)
                found = []
        while asked and asked[0][1] == 0:
            yield asked.popleft()[0]
        if asked or not all_asked:
            raise Interrupted("Stopped while the teacher was being asked; its answers are kept.", next_step="the same command with resume=auto")

    def request(self, row: Row, copy: int) -> ChatRequest:
        """What the teacher is asked for one copy of a row; its seed depends on (seed, row, template, copy)."""
        from jinja2 import TemplateError

        config = self.config
        try:
            prompt = self._template.render(text=_get(row, config.rewrite), row=row.content)
        except TemplateError as fault:
            raise InputError(f"{row.origin}  step.augment.prompt cannot be filled: {fault}", next_step="see the fields that the row has") from fault
        seed = self._number(row, f"{config.template} {copy}") % 2**31
        return ChatRequest((Message("user", prompt),), max_tokens=config.max_tokens, temperature=config.temperature, top_p=config.top_p, seed=seed)

    def _with_copies(self, row: Row, found: list[Answer | Failure]) -> Iterator[Row | Dropped]:
        yield row
        before = _get(row, self.config.rewrite)
        assert before is not None
        said = {_plain(before)}
        for copy, answer in enumerate(found, start=1):
            origin = f"{row.origin}, {self.config.template} {copy}"
            text, reason, detail = _judged(answer, before)
            if not reason and _plain(text) in said:
                reason, detail = ("unchanged" if _plain(text) == _plain(before) else "repeated"), ""
            if reason:
                yield Dropped(replace(row, origin=origin), reason, detail)
                continue
            said.add(_plain(text))
            made = row.changed(_put(row, self.config.rewrite, text), by=self.name)
            yield replace(made, origin=origin).with_lineage(**{"from": row.id, **self._facts(row, copy)})

    def _facts(self, row: Row, copy: int) -> dict[str, Any]:
        config = self.config
        seed = self._number(row, f"{config.template} {copy}") % 2**31
        parameters = {"rewrite": config.rewrite, "temperature": config.temperature, "top_p": config.top_p, "max_tokens": config.max_tokens, "seed": seed}
        return {"template": config.template, "teacher": str(self.live["engine"].name), "parameters": parameters}

    def _is_chosen(self, row: Row) -> bool:
        """Whether a row gets copies: it is there to be trained on, has the turn, and is among the share."""
        text = _get(row, self.config.rewrite)
        return row.split == "train" and bool(text and text.strip()) and self._number(row, "share") < self.config.share * 2**64

    def _number(self, row: Row, what: str) -> int:
        """64 bits that depend on the seed, the row and what they are for."""
        return int.from_bytes(hashlib.blake2b(f"{self.seed} {row.id} {what}".encode(), digest_size=8).digest(), "big")

    def _template_source(self) -> str:
        from jinja2 import TemplateSyntaxError

        try:
            _environment().parse(self.config.prompt)
        except TemplateSyntaxError as fault:
            raise InputError(f"step.augment.prompt is no Jinja2: {fault.message} (line {fault.lineno}).", next_step="mend step.augment.prompt") from fault
        return self.config.prompt

    @cached_property
    def _template(self) -> Template:
        template: Template = _environment().from_string(self._template_source())
        return template


def _environment() -> Any:
    """Templates may look at rows and nothing else."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


def _place(row: Row, rewrite: str) -> tuple[str, int] | None:
    """The field and the turn that are rewritten; None where the row has none."""
    if row.kind == "text":
        return "text", -1
    field, role = ("messages" if row.kind == "messages" else "prompt" if rewrite == "prompt" else "chosen"), "user" if rewrite == "prompt" else "assistant"
    places = [at for at, turn in enumerate(row.content[field]) if turn["role"] == role]
    return (field, places[-1]) if places else None


def _get(row: Row, rewrite: str) -> str | None:
    place = _place(row, rewrite)
    if place is None:
        return None
    field, at = place
    return str(row.content[field] if at < 0 else row.content[field][at]["content"])


def _put(row: Row, rewrite: str, text: str) -> dict[str, Any]:
    """The row's content with that turn replaced."""
    place = _place(row, rewrite)
    assert place is not None
    field, at = place
    if at < 0:
        return {**row.content, field: text}
    turns = list(row.content[field])
    turns[at] = {**turns[at], "content": text}
    return {**row.content, field: turns}


def _judged(answer: Answer | Failure, before: str) -> tuple[str, str, str]:
    """The rewritten text, or why an answer is of no use and what was seen."""
    if isinstance(answer, Failure):
        return "", "no_answer", f"{answer.reason}: {answer.message}"
    text = answer.text.strip()
    for opening, closing in _QUOTES:
        if len(text) > 1 and text.startswith(opening) and text.endswith(closing) and not before.strip().startswith(opening):
            text = text[1:-1].strip()
    if not text:
        return "", "empty", ""
    if answer.finish_reason != "stop":
        return "", "cut_off", f"{answer.usage.completion_tokens} tokens"
    if _MARKERS.search(text) and not _MARKERS.search(before):
        return "", "malformed", "holds marks of a chat template"
    if _CHATTER.match(text) and not _CHATTER.match(before.strip()):
        return "", "malformed", "talks about the text"
    if len(text) > LONGEST * len(before) + 200:
        return "", "malformed", f"{len(text)} characters for {len(before)}"
    return text, "", ""


def _plain(text: str) -> str:
    """What two texts have in common that differ in case, white space and marks only."""
    return " ".join(re.findall(r"\w+", text.lower())) or text.strip()
