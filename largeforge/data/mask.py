"""Chat text -> token ids and answer mask, exactly, through any chat template. Knows nothing about files, lengths or batches.

The ids are those of `tokenizer.apply_chat_template(messages, tokenize=True)`. An answer begins where the template's generation
prompt ends (what the model is given when it is asked) and ends with the end-of-turn token; the newline after it is not learnt.

Most templates carry no `{% generation %}` markers, so answers are found by rendering: the conversation is rendered once more
with a stand-in for every answer, which splits the text into what the template writes and what the answers are. The split is
accepted only where putting the answers back gives the real text, character for character. Templates that look into an answer
(Qwen3 moves its `<think>` block) fail that check and are measured turn by turn: the start from the rendered prompt, the end
from a stand-in appended to the answer. What neither finds is an error, never a guess. Where the template has markers they
say where answers stand.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from largeforge.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from largeforge.data.rows import ChatRow

_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_STAND_IN = "Qj7ANSWERzX{}Xz"


class UnclearAnswer(Exception):
    """A row whose rendered text does not show where an answer stands, or that the template refuses."""


@dataclass(frozen=True)
class Rendered:
    """One conversation as text, and the character span of each answer: from its first character to its end, the end-of-turn token not included."""

    text: str
    answers: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TokenRow:
    """One conversation as token ids, whole, with the answers' tokens marked (end-of-turn tokens included)."""

    token_ids: list[int]
    answer: list[bool]


class ChatTokenizer:
    """A tokenizer together with the chat template that is in use.

    Args:
        tokenizer: a fast tokenizer (it must report character offsets).
        template: Jinja text; None takes the tokenizer's own.

    Raises:
        InputError: no template, one that cannot be rendered, or a tokenizer without offsets.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> None:
        chosen = template or tokenizer.chat_template
        if isinstance(chosen, dict):
            chosen = chosen.get("default")
        if not chosen:
            raise InputError(
                "This model's tokenizer has no chat template, so rows of chat cannot become text.",
                next_step="model.chat_template=chatml, or a .jinja file of your own",
            )
        if not tokenizer.is_fast:
            raise InputError(
                f"{type(tokenizer).__name__} reports no character offsets, so the answer's tokens cannot be marked.",
                next_step="take a model folder that holds a tokenizer.json",
            )
        self.tokenizer = tokenizer
        self.template: str = chosen
        self.has_markers = _MARKERS.search(chosen) is not None
        self._added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
        self.generation_prompt = self._probe_generation_prompt()
        self.gap = ""
        self.end_of_turn = self._probe_answer()

    # ---- text ----

    def render(self, messages: Sequence[dict[str, str]], *, generation_prompt: bool = False) -> str:
        """The conversation as the template writes it. Raises UnclearAnswer with the template's own words where it refuses."""
        return self._render(messages, generation_prompt=generation_prompt, marked=False)[0]

    def rendered(self, row: ChatRow) -> Rendered:
        """Render one row and find its answers."""
        messages = row.as_dicts()
        if self.has_markers:
            text, spans = self._render(messages, generation_prompt=False, marked=True)
            if spans:
                return Rendered(text, tuple((start, self._without_newline(text, start, end)) for start, end in spans))
        text = self.render(messages)
        spans = self._split(text, messages) or self._measure(text, messages)
        return Rendered(text, tuple(spans))

    def _without_newline(self, text: str, start: int, end: int) -> int:
        """The end of a marked answer, without whitespace that the template puts behind the end-of-turn token."""
        if self.end_of_turn is None:
            return end
        said = text[start:end].rstrip()
        return start + len(said) if said.endswith(str(self.tokenizer.convert_ids_to_tokens(self.end_of_turn))) else end

    # ---- tokens ----

    def tokenize(self, texts: Sequence[Rendered]) -> list[TokenRow]:
        """Token ids and answer masks of many rendered rows at once."""
        if not texts:
            return []
        encoded = self._encode([rendered.text for rendered in texts])
        return [
            TokenRow(ids, self._mark(ids, offsets, rendered.answers))
            for ids, offsets, rendered in zip(encoded["input_ids"], encoded["offset_mapping"], texts, strict=True)
        ]

    def prompt_agrees(self, row: ChatRow, token_ids: Sequence[int]) -> bool:
        """True where the first answer's prompt alone gives the ids that it has inside the whole row.

        Where it is False, training sees a prompt cut differently from what a running model is given.
        """
        messages = row.as_dicts()
        first = next(index for index, message in enumerate(messages) if message["role"] == "assistant")
        if first == 0 or not self.generation_prompt:
            return True
        prompt = self.render(messages[:first], generation_prompt=True)
        ids = self._encode([prompt])["input_ids"][0]
        return list(token_ids[: len(ids)]) == ids or not self.render(messages).startswith(prompt)

    def _encode(self, texts: list[str]) -> Any:
        return self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False)

    def _mark(self, ids: list[int], offsets: list[tuple[int, int]], answers: Sequence[tuple[int, int]]) -> list[bool]:
        """Mark the tokens that hold a character of an answer, and the end-of-turn token that follows it."""
        marked = [False] * len(ids)
        starts = [start for start, _ in offsets]
        ends = [end for _, end in offsets]
        for start, end in answers:
            first = bisect_left(ends, start + 1)
            # A special token that swallows the whitespace behind it (rstrip) reaches into the answer but belongs to the template.
            while first < len(ids) and starts[first] < start and ids[first] in self._added:
                first += 1
            last = bisect_left(starts, end, lo=first)
            closing = self._closing(ids, last)
            for index in range(first, last if closing is None else closing + 1):
                marked[index] = True
        return marked

    def _closing(self, ids: list[int], index: int) -> int | None:
        """Where the end-of-turn token stands that closes an answer whose text ends before `index`; None where none follows."""
        if self.end_of_turn is None:
            return None
        if index > 0 and ids[index - 1] == self.end_of_turn:
            return index - 1
        while index < len(ids) and ids[index] not in self._added:
            index += 1
        return index if index < len(ids) and ids[index] == self.end_of_turn else None

    # ---- finding answers in text ----

    def _split(self, text: str, messages: list[dict[str, str]]) -> list[tuple[int, int]] | None:
        """Answers as what stands between the pieces that the template writes; None where the pieces do not give `text` again."""
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        stand_ins = {index: _STAND_IN.format(index) for index in turns}
        replaced = [{**m, "content": stand_ins[i]} if i in stand_ins else m for i, m in enumerate(messages)]
        pieces = self._pieces(self.render(replaced), [stand_ins[index] for index in turns])
        if pieces is None or not text.startswith(pieces[0]):
            return None
        spans, position = [], len(pieces[0])
        for number, index in enumerate(turns):
            before, after = pieces[number], pieces[number + 1]
            said = _as_written(text, position, messages[index]["content"], after)
            if said is None:
                return None
            # What the model is given ends with the generation prompt: whatever the template writes between it and the answer is the model's to say.
            prompt = before.rfind(self.generation_prompt) if self.generation_prompt else -1
            if prompt >= 0:
                start = position - len(before) + prompt + len(self.generation_prompt)
            else:
                start = position - (len(self.gap) if before.endswith(self.gap) else 0)
            spans.append((start, position + len(said)))
            position += len(said) + len(after)
        return spans if position == len(text) else None

    def _measure(self, text: str, messages: list[dict[str, str]]) -> list[tuple[int, int]]:
        """Answers one by one: the start from the prompt before it, the end from a stand-in put behind it."""
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            stand_in = _STAND_IN.format(index)
            pieces = self._pieces(self.render([*messages[:index], {**message, "content": message["content"] + stand_in}, *messages[index + 1 :]]), [stand_in])
            if pieces is None or not text.endswith(pieces[1]):
                raise UnclearAnswer("the chat template rewrites this answer, so its tokens cannot be told from the rest")
            end = len(text) - len(pieces[1])
            prompt = self.render(messages[:index], generation_prompt=True) if index else ""
            if not (self.generation_prompt and prompt and text.startswith(prompt) and len(prompt) < end):
                prompt = self._before(text, messages, index)
            spans.append((len(prompt), end))
        return spans

    def _before(self, text: str, messages: list[dict[str, str]], index: int) -> str:
        """What the template writes before an answer, from a stand-in put in its place."""
        stand_in = _STAND_IN.format(index)
        replaced = [*messages[:index], {**messages[index], "content": stand_in}, *messages[index + 1 :]]
        pieces = self._pieces(self.render(replaced), [stand_in])
        if pieces is None or not text.startswith(pieces[0]):
            raise UnclearAnswer("the chat template rewrites this answer, so its tokens cannot be told from the rest")
        return pieces[0]

    @staticmethod
    def _pieces(text: str, stand_ins: Sequence[str]) -> list[str] | None:
        """The text between stand-ins that must each occur once, in order."""
        pieces, position = [], 0
        for stand_in in stand_ins:
            found = text.find(stand_in, position)
            if found < 0 or text.count(stand_in) != 1:
                return None
            pieces.append(text[position:found])
            position = found + len(stand_in)
        return [*pieces, text[position:]]

    def _render(self, messages: Sequence[dict[str, str]], *, generation_prompt: bool, marked: bool) -> tuple[str, list[tuple[int, int]]]:
        from jinja2 import TemplateError
        from transformers.utils import chat_template_utils

        render: Any = chat_template_utils.render_jinja_template  # typed as if it gave text alone
        try:
            texts, spans = render(
                conversations=[list(messages)],
                chat_template=self.template,
                return_assistant_tokens_mask=marked,
                add_generation_prompt=generation_prompt,
                **self.tokenizer.special_tokens_map,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as fault:
            raise UnclearAnswer(f"the chat template refuses it: {fault}") from fault
        return str(texts[0]), list(spans[0]) if marked else []

    # ---- what the template does, seen on a conversation of two words ----

    def _probe_generation_prompt(self) -> str:
        """What the template adds when the model is asked to answer; "" where it adds nothing."""
        question = [{"role": "user", "content": "a"}]
        try:
            without, asked = self.render(question), self.render(question, generation_prompt=True)
        except UnclearAnswer as fault:
            raise InputError(f"The chat template cannot render one user message ({fault}).", next_step="model.chat_template=chatml") from fault
        return asked[len(without) :] if asked.startswith(without) else ""

    def _probe_answer(self) -> int | None:
        """The token that the template puts behind an answer; None where there is none.

        Sets `gap` on the way: whitespace between question and answer that a template without a generation prompt leaves to the model.
        """
        stand_in = _STAND_IN.format(0)
        question = [{"role": "user", "content": "a"}]
        try:
            text = self.render([*question, {"role": "assistant", "content": stand_in}])
            asked = self.render(question, generation_prompt=True)
        except UnclearAnswer as fault:
            raise InputError(f"The chat template cannot render a question and its answer ({fault}).", next_step="model.chat_template=chatml") from fault
        begin = text.find(stand_in)
        end = begin + len(stand_in)
        if not self.generation_prompt and text.startswith(asked) and not text[len(asked) : begin].strip():
            self.gap = text[len(asked) : begin]
        encoded = self._encode([text])
        for token, (start, _) in zip(encoded["input_ids"][0], encoded["offset_mapping"][0], strict=True):
            if start >= end and token in self._added:
                return int(token)
        return None


def _as_written(text: str, position: int, content: str, after: str) -> str | None:
    """How the template wrote an answer at `position`: as it is, or trimmed at either side; None where neither stands there."""
    for said in dict.fromkeys((content, content.strip(), content.lstrip(), content.rstrip())):
        if text.startswith(said, position) and text.startswith(after, position + len(said)):
            return said
    return None
