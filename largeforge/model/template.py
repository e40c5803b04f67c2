"""Which chat template a model talks in, and what ends a turn; knows nothing about where the model came from.

`chatml` on a base model adds no token and resizes nothing: where the vocabulary has no `<|im_start|>` it is plain text, and a
turn then ends in the tokenizer's own EOS, so that a trained model knows how to stop.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from largeforge.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURN_END = "<|im_end|>"


def settle_template(tokenizer: PreTrainedTokenizerBase, declared: str | None, *, name: str) -> list[str]:
    """Set the chat template on the tokenizer and return what the user should be told.

    Args:
        tokenizer: changed in place: its template, and for chatml with a token of its own for the end of a turn, its EOS.
        declared: chatml, a .jinja file, a template's text, or None for the model's own.
        name: of the model, for the error.

    Raises:
        ModelError: the model has no template and none is declared; the file is missing; the text is no valid template.
    """
    if declared is None:
        if not isinstance(tokenizer.chat_template, str) or not tokenizer.chat_template:
            raise ModelError(f"{name} has no chat template: it is a base model.", next_step="model.chat_template=chatml, or a .jinja file of your own")
        return []
    if declared == "chatml":
        return _chatml(tokenizer)
    text, origin = _read(declared)
    _check(text, origin)
    tokenizer.chat_template = text
    return [f"The chat template is {origin}, not the model's own."]


def _chatml(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    known = tokenizer.get_vocab()
    start = "{{ bos_token }}" if _adds_bos(tokenizer) else ""
    if TURN_END in known:
        tokenizer.eos_token = TURN_END
        tokenizer.chat_template = start + CHATML
        return [f"The chat template is chatml, declared in the config; a turn ends in {TURN_END}, which is now the tokenizer's EOS."]
    if not tokenizer.eos_token:
        raise ModelError("chatml needs a token that ends a turn, and this tokenizer has neither <|im_end|> nor an EOS.")
    tokenizer.chat_template = start + CHATML.replace("'<|im_end|>\n'", "eos_token + '\n'")
    return [
        f"The chat template is chatml, declared in the config; the vocabulary has no <|im_start|>, so it is plain text, "
        f"and a turn ends in the tokenizer's own EOS, {tokenizer.eos_token}."
    ]


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """True where encoding text by itself starts with BOS; a template is encoded without that, so it must say it."""
    ids = tokenizer("a").input_ids
    return tokenizer.bos_token_id is not None and bool(ids) and ids[0] == tokenizer.bos_token_id


def _read(declared: str) -> tuple[str, str]:
    if "{" in declared:
        return declared, "the text given as model.chat_template"
    path = Path(declared)
    if not path.is_file():
        raise ModelError(
            f"model.chat_template={declared} is neither chatml nor a file.", next_step="model.chat_template=chatml, a .jinja file, or a template's text"
        )
    return path.read_text(encoding="utf-8"), str(path)


def _check(text: str, origin: str) -> None:
    from jinja2 import Environment, TemplateSyntaxError, nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        """`{% generation %}` marks what the assistant says; transformers knows it, so it is no mistake here."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    try:
        Environment(extensions=["jinja2.ext.loopcontrols", Generation]).parse(text)
    except TemplateSyntaxError as fault:
        raise ModelError(
            f"{origin} is no valid Jinja template: line {fault.lineno}: {fault.message}.", next_step="mend it, or model.chat_template=chatml"
        ) from fault
