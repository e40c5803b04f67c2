"""The mask lint: each rule as a pure function of tokens, and as a user meets it through files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from largeforge.batch import TokenizedRow
from largeforge.data.chat import Chat
from largeforge.data.lint import TokenFacts, lint, token_facts
from largeforge.data.mask import ChatTokenizer
from largeforge.errors import RowError
from tests.data.tiny import CHATML, LLAMA2, LLAMA3, MARKED, exchange, make_config, make_tokenizer

BOS, EOS, PAD = 1, 2, 0
FACTS = TokenFacts(frozenset({EOS}), BOS, False, PAD, "</s>", "<s>", "</s>")
GOOD = TokenizedRow([BOS, 5, 6, 7, EOS], [False, False, True, True, True], "rows.jsonl:1")


def rules(row: TokenizedRow, facts: TokenFacts = FACTS, max_length: int = 100) -> list[str]:
    return [fault.rule for fault in lint([row], facts, max_length=max_length)]


def test_a_good_row_has_no_fault() -> None:
    assert rules(GOOD) == []
    assert rules(GOOD, max_length=5) == []


@pytest.mark.parametrize(
    ("row", "facts", "max_length", "rule"),
    [
        (replace(GOOD, supervised=[False] * 5), FACTS, 100, "zero_supervised"),
        (GOOD, FACTS, 4, "answer_cut"),
        (GOOD, FACTS, 2, "answer_cut"),
        (replace(GOOD, supervised=[False, False, True, True, False]), FACTS, 100, "eos_untrained"),
        (replace(GOOD, token_ids=[BOS, 5, 6, 7, 8]), FACTS, 100, "eos_untrained"),
        (replace(GOOD, token_ids=[BOS, BOS, 6, 7, EOS]), FACTS, 100, "two_bos"),
        (replace(GOOD, token_ids=[BOS, 5, BOS, 7, EOS]), FACTS, 100, "two_bos"),
        (replace(GOOD, supervised=[False, False, True, True, False]), replace(FACTS, pad_id=EOS), 100, "pad_is_eos"),
    ],
)
def test_each_fault_is_named(row: TokenizedRow, facts: TokenFacts, max_length: int, rule: str) -> None:
    assert rules(row, facts, max_length) == [rule]


def test_what_is_no_fault() -> None:
    assert rules(replace(GOOD, token_ids=[BOS, 5, BOS, 7, EOS]), replace(FACTS, bos_per_turn=True)) == []
    assert rules(GOOD, replace(FACTS, pad_id=EOS)) == []  # pad is EOS, but the EOS is learnt
    assert rules(replace(GOOD, supervised=[False, False, True, True, False], token_ids=[BOS, 5, 6, EOS, 9]), max_length=4) == []  # cut behind the answer


def test_a_cut_answer_names_the_length_that_keeps_it() -> None:
    (fault,) = lint([GOOD], FACTS, max_length=3)
    assert fault.needs_length == 5
    assert fault.origin == "rows.jsonl:1"
    assert "1 of its 3 supervised tokens" in fault.message


def test_facts_tell_a_bos_in_every_turn() -> None:
    assert token_facts(ChatTokenizer(make_tokenizer(CHATML))).bos_per_turn
    assert token_facts(ChatTokenizer(make_tokenizer(LLAMA2, bos="<s>", eos="</s>"))).bos_per_turn
    assert not token_facts(ChatTokenizer(make_tokenizer(LLAMA3, bos="<|begin_of_text|>", eos="<|eot_id|>"))).bos_per_turn


def test_stop_tokens_of_the_generation_config_count(tmp_path: Path) -> None:
    """Gemma's tokenizer stops at <eos> and its generation config at <end_of_turn> too: no fault."""
    tokenizer = make_tokenizer(CHATML, eos="</s>")
    assert token_facts(ChatTokenizer(tokenizer)).stop_ids == {tokenizer.eos_token_id}
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": [{tokenizer.eos_token_id}, {end}]}}', encoding="utf-8")
    tokenizer.name_or_path = str(tmp_path)
    assert token_facts(ChatTokenizer(tokenizer)).stop_ids == {tokenizer.eos_token_id, end}


# ---- as a user meets it ----

RowsFile = Callable[[Sequence[Any]], Path]


def refused(path: Path, tokenizer: Any, **changes: Any) -> RowError:
    with pytest.raises(RowError) as caught:
        Chat(make_config(path, **changes), tokenizer=tokenizer).prepare()
    return caught.value


def test_cut_answers_name_row_and_mend(cache: Path, rows_file: RowsFile) -> None:
    path = rows_file([exchange("hi", "there"), exchange("count", "one " * 60)])
    error = refused(path, make_tokenizer(MARKED), max_length=40)
    assert f"{path}:2" in str(error)
    assert "1 of 2 rows" in str(error)
    length = int(error.next_step.split("data.max_length=")[1].split()[0])
    assert "data.on_bad_row=skip" in error.next_step
    Chat(make_config(path, max_length=length), tokenizer=make_tokenizer(MARKED)).prepare()  # the mend mends
    refused(path, make_tokenizer(MARKED), max_length=length - 1)


def test_cut_answers_are_skipped_where_told(cache: Path, rows_file: RowsFile) -> None:
    path = rows_file([exchange("hi", "there"), exchange("count", "one " * 60)])
    data = Chat(make_config(path, max_length=40, on_bad_row="skip"), tokenizer=make_tokenizer(MARKED))
    data.prepare()
    assert (data.facts["rows_in"], data.facts["rows_kept"], data.facts["rows_bad"]) == (2, 1, 1)


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_template_without_eos_is_refused_whatever_is_skipped(cache: Path, rows_file: RowsFile, on_bad_row: str) -> None:
    path = rows_file([exchange("hi", "there")])
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    error = refused(path, make_tokenizer(template), on_bad_row=on_bad_row)
    assert f"{path}:1" in str(error)
    assert "eos_untrained" in str(error)
    assert "eos_token" in error.next_step


def test_another_eos_than_the_templates_is_refused(cache: Path, rows_file: RowsFile) -> None:
    error = refused(rows_file([exchange("hi", "there")]), make_tokenizer(CHATML, eos="</s>"))
    assert "ends an answer with <|im_end|>, but generation stops at </s>" in str(error)


def test_two_bos_of_the_template_are_refused(cache: Path, rows_file: RowsFile) -> None:
    tokenizer = make_tokenizer("{{ bos_token }}" + LLAMA3, bos="<|begin_of_text|>", eos="<|eot_id|>")
    error = refused(rows_file([exchange("hi", "there")]), tokenizer)
    assert "two BOS (<|begin_of_text|><|begin_of_text|>)" in str(error)


@pytest.mark.parametrize(("template", "special"), [(LLAMA3, {"bos": "<|begin_of_text|>", "eos": "<|eot_id|>"}), (CHATML, {})])
def test_a_bos_in_the_rows_own_text_is_that_rows_fault(cache: Path, rows_file: RowsFile, template: str, special: dict[str, str]) -> None:
    tokenizer = make_tokenizer(template, **special)
    path = rows_file([exchange("hi", "there"), exchange(f"{tokenizer.bos_token}hi", "there")])
    error = refused(path, tokenizer)
    assert f"{path}:2" in str(error)
    assert "two" in str(error)
    data = Chat(make_config(path, on_bad_row="skip"), tokenizer=tokenizer)
    assert data.num_rows == 1


def test_a_template_that_writes_no_answer_leaves_nothing_to_learn(cache: Path, rows_file: RowsFile) -> None:
    template = CHATML.replace(
        "{{'<|im_start|>' + message['role']", "{% if message['role'] != 'assistant' or loop.length < 3 %}{{'<|im_start|>' + message['role']"
    ).replace("{% endfor %}", "{% endif %}{% endfor %}")
    rows = [exchange("hi", "there"), {"messages": exchange("hi", "there")["messages"] + exchange("again", "there")["messages"]}]
    error = refused(rows_file(rows), make_tokenizer(template))
    assert ":2  messages" in str(error)


def test_pad_equal_to_eos_still_trains_the_eos(cache: Path, rows_file: RowsFile) -> None:
    """The classic: masking by pad id would mask the EOS away. Padding here is masked by position."""
    from largeforge.batch import StepWindow

    tokenizer = make_tokenizer(CHATML, pad="<|im_end|>")
    data = Chat(make_config(rows_file([exchange("hi", "there"), exchange("hi again", "one two three")]), packing=False), tokenizer=tokenizer)
    ((batch,),) = data.train_steps(StepWindow(batch_size=2, micro_batch_size=2, num_steps=1))
    learnt = (batch.input_ids_BT == tokenizer.eos_token_id) & batch.supervised_BT
    assert learnt.sum(dim=1).tolist() == [1, 1]
    assert not batch.supervised_BT[1, batch.num_tokens - batch.input_ids_BT.shape[1] :].any()
