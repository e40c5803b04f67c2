"""From a conversation to token ids, and which tokens end an answer; knows nothing about networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from largeforge.chat import ChatRequest
from largeforge.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from largeforge.contract import LoadedModel

_PROBE = "largeforge"


def prompt_ids(tokenizer: PreTrainedTokenizerBase, template: str, request: ChatRequest) -> list[int]:
    """Return the token ids of a conversation up to where the answer begins; of a bare prompt as it stands, its BOS before it.

    Raises:
        InputError: the template refuses the conversation (no system message allowed, turns that do not alternate ...), or nothing was said.
    """
    if request.prompt is not None:
        bare: list[int] = list(tokenizer(request.prompt).input_ids) if isinstance(request.prompt, str) else list(request.prompt)
        if not bare:
            raise InputError("The prompt is empty: the tokenizer made no token of it.", next_step='prompt="..."')
        return bare
    messages = [message.as_dict() for message in request.messages]
    try:
        found: Any = tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=True, tokenize=True, return_dict=True)
    except TemplateError as fault:
        raise InputError(
            f"The model's chat template refuses this conversation: {fault}", next_step="leave out what it names, or model.chat_template=chatml"
        ) from fault
    ids: list[int] = found["input_ids"]
    if not ids:
        raise InputError("The prompt is empty: the chat template made no token of it.", next_step='prompt="..."')
    return ids


def answer_ends(model: LoadedModel) -> frozenset[int]:
    """Return the tokens that end an answer: the tokenizer's EOS, generation's own, and what the template puts after an answer."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    generation = getattr(model.network, "generation_config", None)
    named = getattr(generation, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named]), _turn_end(tokenizer, model.template)}
    return frozenset(int(end) for end in ends if end is not None)


def _turn_end(tokenizer: PreTrainedTokenizerBase, template: str) -> int | None:
    """The special token right after an answer, where there is one."""
    conversation = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": _PROBE}]
    try:
        text: Any = tokenizer.apply_chat_template(conversation, chat_template=template, tokenize=False)
    except TemplateError:
        return None
    after = str(text).rpartition(_PROBE)[2]
    ids = tokenizer(after, add_special_tokens=False).input_ids
    return ids[0] if ids and ids[0] in tokenizer.all_special_ids else None
