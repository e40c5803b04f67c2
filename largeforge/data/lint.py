"""The mask lint: rows whose mask would teach the wrong thing, told before a step is paid for.

A pure function of token ids, masks and a few facts about the tokenizer; knows nothing about files or templates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from largeforge.batch import TokenizedRow

if TYPE_CHECKING:
    from largeforge.data.mask import ChatTokenizer

Rule = Literal["zero_supervised", "answer_cut", "eos_untrained", "two_bos", "pad_is_eos"]


@dataclass(frozen=True)
class TokenFacts:
    """What the lint knows about a tokenizer and its template.

    Args:
        stop_ids: tokens that end generation: the tokenizer's EOS and the model's own.
        bos_id: None where the tokenizer has none.
        bos_per_turn: the template writes BOS before every turn (SmolLM2's <|im_start|>), so that many are right.
        pad_id: None where the tokenizer has none.
        eos_text: the EOS as a person would write it.
        bos_text: the BOS likewise.
        end_of_turn_text: what the template puts behind an answer; "" where it puts nothing.
    """

    stop_ids: frozenset[int]
    bos_id: int | None
    bos_per_turn: bool
    pad_id: int | None
    eos_text: str
    bos_text: str
    end_of_turn_text: str


@dataclass(frozen=True)
class Fault:
    """One thing the lint found.

    Args:
        origin: the row.
        rule: which rule.
        message: what is wrong.
        mend: what to do.
        whole_data: True where the template or the tokenizer is at fault, so that leaving the row out mends nothing.
        needs_length: the max_length that would keep the row's answers whole; 0 where that is not the fault.
    """

    origin: str
    rule: Rule
    message: str
    mend: str
    whole_data: bool = False
    needs_length: int = 0


def lint(rows: Iterable[TokenizedRow], facts: TokenFacts, *, max_length: int) -> Iterator[Fault]:
    """Yield every fault of every row, at most one a row.

    Args:
        rows: whole, not yet cut to `max_length`.
        facts: of the tokenizer and its template.
        max_length: where they will be cut, in tokens.
    """
    for row in rows:
        fault = _two_bos(row, facts) or _zero_supervised(row) or _eos_untrained(row, facts) or _answer_cut(row, max_length)
        if fault is not None:
            yield fault


def token_facts(chat: ChatTokenizer) -> TokenFacts:
    """What the lint needs to know, found on the tokenizer, its template and the generation config beside it."""
    tokenizer = chat.tokenizer
    probe = chat.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2)
    bos_text, eos_text = str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")
    end_of_turn = "" if chat.end_of_turn is None else str(tokenizer.convert_ids_to_tokens(chat.end_of_turn))
    return TokenFacts(
        stop_ids=_stop_ids(tokenizer),
        bos_id=tokenizer.bos_token_id,
        bos_per_turn=bool(bos_text) and (bos_text == eos_text or len(probe.replace(bos_text * 2, bos_text).split(bos_text)) > 2),
        pad_id=tokenizer.pad_token_id,
        eos_text=eos_text,
        bos_text=bos_text,
        end_of_turn_text=end_of_turn,
    )


def _stop_ids(tokenizer: object) -> frozenset[int]:
    """EOS of the tokenizer, and of the generation config that lies in the model's folder or in the Hub's local cache."""
    from transformers import GenerationConfig

    stops = {getattr(tokenizer, "eos_token_id", None)}
    try:
        declared = GenerationConfig.from_pretrained(getattr(tokenizer, "name_or_path", ""), local_files_only=True).eos_token_id
    except (OSError, ValueError):  # there is none: the tokenizer's word stands
        declared = None
    stops.update(declared if isinstance(declared, list) else [declared])
    return frozenset(stop for stop in stops if stop is not None)


def _two_bos(row: TokenizedRow, facts: TokenFacts) -> Fault | None:
    if facts.bos_id is None:
        return None
    ids = row.token_ids
    if ids[:2] == [facts.bos_id] * 2:
        message = f"it begins with two BOS ({facts.bos_text}{facts.bos_text})"
        return Fault(row.origin, "two_bos", message, f"take one {facts.bos_text} out of the chat template (model.chat_template)", whole_data=True)
    if not facts.bos_per_turn and ids.count(facts.bos_id) > 1:
        message = f"it holds {ids.count(facts.bos_id)} BOS: the row's own text says {facts.bos_text}, which the chat template adds by itself"
        return Fault(row.origin, "two_bos", message, f"take {facts.bos_text} out of the row's text")
    return None


def _zero_supervised(row: TokenizedRow) -> Fault | None:
    if any(row.supervised):
        return None
    message = "no token of it would be learnt: the chat template writes no answer"
    return Fault(row.origin, "zero_supervised", message, "give the row an assistant turn that the template shows, or take another model.chat_template")


def _eos_untrained(row: TokenizedRow, facts: TokenFacts) -> Fault | None:
    supervised_ids = {token for token, flag in zip(row.token_ids, row.supervised, strict=True) if flag}
    if supervised_ids & facts.stop_ids:
        return None
    follows = [
        token
        for token, flag, before in zip(row.token_ids[1:], row.supervised[1:], row.supervised[:-1], strict=True)
        if before and not flag and token in facts.stop_ids
    ]
    if follows and facts.pad_id in follows:
        message = f"the end of its answer is masked away, because the pad token is the EOS ({facts.eos_text}): the model would never learn to stop"
        return Fault(row.origin, "pad_is_eos", message, "give the tokenizer a pad token of its own, or mask padding by position", whole_data=True)
    if facts.end_of_turn_text:
        why = f"the chat template ends an answer with {facts.end_of_turn_text}, but generation stops at {facts.eos_text or 'no token at all'}"
        own = f"set eos_token to {facts.end_of_turn_text} in the model's tokenizer_config.json"
        mend = f"{own}, or take a model.chat_template that ends answers with {facts.eos_text}"
    else:
        why = f"the chat template puts no end-of-turn token behind an answer (EOS is {facts.eos_text or 'not set'})"
        mend = "take a model.chat_template that writes {{ eos_token }} behind the assistant's content"
    return Fault(row.origin, "eos_untrained", f"its EOS is never trained, so the model would never stop: {why}", mend, whole_data=True)


def _answer_cut(row: TokenizedRow, max_length: int) -> Fault | None:
    cut = row.supervised[max_length:]
    if not any(cut):
        return None
    needs = len(row.token_ids) - cut[::-1].index(True)
    kept = sum(row.supervised[:max_length])
    what = f"only {kept} of its {kept + sum(cut)} supervised tokens" if kept else "none of its supervised tokens"
    message = f"its answer is cut away: {what} fit into data.max_length={max_length} (the answer ends at token {needs})"
    return Fault(row.origin, "answer_cut", message, "", needs_length=needs)
