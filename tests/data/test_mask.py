"""Ids and answer masks through chat templates, against token lists marked by hand."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from largeforge.chat import Message
from largeforge.data.mask import ChatTokenizer, UnclearAnswer
from largeforge.data.rows import ChatRow
from largeforge.errors import InputError
from tests.data.tiny import CHATML, LLAMA2, LLAMA3, MARKED, THINKING, make_tokenizer

LLAMA3_TOKENS = {"bos": "<|begin_of_text|>", "eos": "<|eot_id|>"}
LLAMA2_TOKENS = {"bos": "<s>", "eos": "</s>"}


def row(*turns: tuple[str, str]) -> ChatRow:
    return ChatRow(tuple(Message(role, content) for role, content in turns), "test:1")  # type: ignore[arg-type]


SINGLE = row(("user", "capital?"), ("assistant", "Paris."))
MULTI = row(("system", "one word"), ("user", "hi"), ("assistant", "hello there"), ("user", "capital?"), ("assistant", "Paris."))


def marked(tokenizer: PreTrainedTokenizerFast, chat_row: ChatRow) -> list[str]:
    """The runs of supervised tokens, as text; ids are checked against apply_chat_template on the way."""
    chat = ChatTokenizer(tokenizer)
    (tokens,) = chat.tokenize([chat.rendered(chat_row)])
    assert tokens.token_ids == tokenizer.apply_chat_template(chat_row.as_dicts(), tokenize=True, return_dict=False)
    runs: list[list[int]] = []
    for index, (token, flag) in enumerate(zip(tokens.token_ids, tokens.answer, strict=True)):
        if flag:
            if index == 0 or not tokens.answer[index - 1]:
                runs.append([])
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize(
    ("template", "special", "single", "multi"),
    [
        (CHATML, {}, ["Paris.<|im_end|>"], ["hello there<|im_end|>", "Paris.<|im_end|>"]),
        (LLAMA3, LLAMA3_TOKENS, ["Paris.<|eot_id|>"], ["hello there<|eot_id|>", "Paris.<|eot_id|>"]),
        (MARKED, {}, ["Paris.<|im_end|>"], ["hello there<|im_end|>", "Paris.<|im_end|>"]),
        (LLAMA2, LLAMA2_TOKENS, [" Paris. </s>"], [" hello there </s>", " Paris. </s>"]),
        # What follows the generation prompt is the model's to say, its empty thought too.
        (THINKING, {}, ["<think>\n\n</think>\n\nParis.<|im_end|>"], ["hello there<|im_end|>", "<think>\n\n</think>\n\nParis.<|im_end|>"]),
    ],
    ids=["chatml", "llama3", "generation-markers", "llama2", "thinking"],
)
def test_answers_are_marked_to_the_end_of_turn(template: str, special: dict[str, str], single: list[str], multi: list[str]) -> None:
    """Proves SR-F-013: system prompts and several turns, formatted and masked as the model's own template says."""
    tokenizer = make_tokenizer(template, **special)
    turns = MULTI if template is not LLAMA2 else row(*[(m.role, m.content) for m in MULTI.messages[1:]])
    assert marked(tokenizer, SINGLE) == single
    assert marked(tokenizer, turns) == multi


@pytest.mark.parametrize(
    ("template", "special", "tokens"),
    [
        (CHATML, {}, ["<|im_start|>", "system", "\n", "You", " are", " a", " helpful", " assistant", "<|im_end|>", "\n"]),
        (LLAMA3, LLAMA3_TOKENS, ["<|begin_of_text|>"]),
        (MARKED, {}, []),
    ],
    ids=["chatml", "llama3", "generation-markers"],
)
def test_token_by_token_by_hand(template: str, special: dict[str, str], tokens: list[str]) -> None:
    """Every token of one row and whether it is learnt, written down by hand; + marks what is learnt."""
    tokenizer = make_tokenizer(template, **special)
    chat = ChatTokenizer(tokenizer)
    (found,) = chat.tokenize([chat.rendered(row(("user", "one two"), ("assistant", "three four")))])
    if template is LLAMA3:
        turn = ["<|start_header_id|>", "user", "<|end_header_id|>", "\n", "\n", "one", " two", "<|eot_id|>"]
        answer = ["<|start_header_id|>", "assistant", "<|end_header_id|>", "\n", "\n", "+three", "+ four", "+<|eot_id|>"]
    else:
        turn = ["<|im_start|>", "user", "\n", "one", " two", "<|im_end|>", "\n"]
        answer = ["<|im_start|>", "assistant", "\n", "+three", "+ four", "+<|im_end|>", "\n"]
    shown = ["+" * flag + tokenizer.decode([token]) for token, flag in zip(found.token_ids, found.answer, strict=True)]
    assert _joined(shown) == _joined([*tokens, *turn, *answer])


def _joined(tokens: list[str]) -> list[str]:
    """Neighbours with the same mark as one text, so that the expectation does not hang on what a tiny BPE has merged."""
    runs: list[str] = []
    for token in tokens:
        if runs and runs[-1].startswith("+") == token.startswith("+"):
            runs[-1] += token.removeprefix("+")
        else:
            runs.append(token)
    return runs


@pytest.mark.parametrize("template", [CHATML, MARKED, THINKING], ids=["chatml", "generation-markers", "thinking"])
@pytest.mark.parametrize(
    "answer",
    ["Paris.\n", "  Paris", "\n\nParis", "assistant\nParis", "<|im_start|>assistant\n", "日本語 🙂 é", "a" * 300, "Qj7ANSWERzX", "user\ncapital?"],
    ids=["newline-behind", "spaces-before", "newlines-before", "says-assistant", "says-the-prompt", "unicode", "long", "like-a-stand-in", "like-the-question"],
)
def test_whatever_an_answer_says_it_is_marked_whole(template: str, answer: str) -> None:
    tokenizer = make_tokenizer(template)
    (run,) = marked(tokenizer, row(("user", "capital?"), ("assistant", answer)))
    expected = f"{answer}<|im_end|>"
    assert run == (f"<think>\n\n</think>\n\n{expected}" if template is THINKING else expected)


def test_trimmed_content_is_found() -> None:
    tokenizer = make_tokenizer(LLAMA3, **LLAMA3_TOKENS)
    assert marked(tokenizer, row(("user", " capital? "), ("assistant", "  Paris. \n"))) == ["Paris.<|eot_id|>"]


def test_a_template_that_looks_into_the_answer() -> None:
    """The stand-in split fails on a thought that is moved; the answers are then measured turn by turn."""
    tokenizer = make_tokenizer(THINKING)
    thought = "<think>\nwell\n</think>\n\nParis."
    assert marked(tokenizer, row(("user", "hi"), ("assistant", thought), ("user", "again"), ("assistant", thought))) == [
        "Paris.<|im_end|>",
        "<think>\nwell\n</think>\n\nParis.<|im_end|>",
    ]


def test_a_newline_behind_the_end_of_turn_is_not_learnt_though_marked() -> None:
    template = MARKED.replace("{{ message['content'] }}{% endgeneration %}", "{{ message['content'] + '<|im_end|>\n' }}{% endgeneration %}", 1).replace(
        "{{ '<|im_end|>\n' }}{% endfor %}", "{% if message['role'] != 'assistant' %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    )
    assert marked(make_tokenizer(template), MULTI) == ["hello there<|im_end|>", "Paris.<|im_end|>"]


def test_a_special_token_that_swallows_whitespace_stays_outside() -> None:
    """Phi's <|assistant|> strips what stands to its right, the answer's own leading spaces too."""
    from tokenizers import AddedToken

    tokenizer = make_tokenizer(
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|assistant|>", rstrip=True, special=True)]})
    chat = ChatTokenizer(tokenizer)
    (tokens,) = chat.tokenize([chat.rendered(row(("user", "hi"), ("assistant", "  Paris")))])
    header = tokens.token_ids.index(tokenizer.convert_tokens_to_ids("<|assistant|>"))
    assert not tokens.answer[header]
    assert tokenizer.decode([token for token, flag in zip(tokens.token_ids, tokens.answer, strict=True) if flag]) == "Paris<|im_end|>"


@pytest.mark.peer
def test_agrees_with_trl_where_trl_has_a_training_template() -> None:
    """TRL patches known templates with markers; through any such template our mask is TRL's, end of turn included."""
    from trl.chat_template_utils import qwen3_chat_template, qwen3_training_chat_template

    tokenizer = make_tokenizer(qwen3_chat_template)
    chat_row = row(("system", "one word"), ("user", "hi"), ("assistant", "Paris."))
    chat = ChatTokenizer(tokenizer)
    (ours,) = chat.tokenize([chat.rendered(chat_row)])
    theirs: Any = tokenizer.apply_chat_template(
        chat_row.as_dicts(), chat_template=qwen3_training_chat_template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert ours.token_ids == theirs["input_ids"]
    differ = [tokenizer.decode([token]) for token, a, b in zip(ours.token_ids, ours.answer, theirs["assistant_masks"], strict=True) if a != bool(b)]
    assert differ in ([], ["\n"])  # the newline behind the end of turn, where TRL's markers hold it


def test_prompts_that_are_cut_differently_alone_are_seen() -> None:
    tokenizer = make_tokenizer(
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] + eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    chat = ChatTokenizer(tokenizer)
    agrees, differs = row(("user", "hi"), ("assistant", "Paris")), row(("user", "hi"), ("assistant", "Paris"))
    (tokens,) = chat.tokenize([chat.rendered(agrees)])
    assert chat.prompt_agrees(agrees, tokens.token_ids)
    assert not chat.prompt_agrees(differs, [tokens.token_ids[0], 0, *tokens.token_ids[2:]])


def test_a_refusing_template_is_an_unclear_row_with_its_own_words() -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
    chat = ChatTokenizer(make_tokenizer(template))
    with pytest.raises(UnclearAnswer, match="System role not supported"):
        chat.rendered(MULTI)


def test_a_template_that_rewrites_answers_is_refused_not_guessed() -> None:
    chat = ChatTokenizer(make_tokenizer(CHATML.replace("+ message['content'] +", "+ (message['content'] | upper) +")))
    with pytest.raises(UnclearAnswer, match="rewrites this answer"):
        chat.rendered(SINGLE)


def test_text_that_hangs_on_what_an_answer_says_is_refused() -> None:
    chat = ChatTokenizer(make_tokenizer(CHATML + "{% if messages[-1]['content'] == 'Paris.' %}{{ 'END' }}{% endif %}"))
    with pytest.raises(UnclearAnswer, match="rewrites this answer"):
        chat.rendered(SINGLE)


def test_no_template_says_what_to_do() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template") as caught:
        ChatTokenizer(tokenizer)
    assert "model.chat_template" in caught.value.next_step
    assert ChatTokenizer(tokenizer, CHATML).template == CHATML
