"""The hf engine: its answers are those of transformers, whatever the batch; it leaves the network as it found it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from largeforge.chat import ChatRequest, Message
from largeforge.contract import LoadedModel
from largeforge.errors import InputError
from tests.engine.conftest import ask, by_generate, engine
from tests.tiny_models import part

WORDS = "river engine letter garden number cloud bridge song house token batch".split()
REQUESTS = [ask(" ".join(WORDS[: 1 + number % 11]) + f" {number}", max_tokens=2 + number % 13) for number in range(20)]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_answers_equal_generate(nano: LoadedModel, batch_size: int) -> None:
    """Proves SYS-F-058: a limit per request, kept in one batch; each answer is what generate says alone, in the order asked."""
    answers = list(engine(nano, batch_size=batch_size).answers(REQUESTS))
    expected = [by_generate(nano, request) for request in REQUESTS]
    assert answers == expected
    assert {answer.finish_reason for answer in expected} == {"stop", "length"}  # both ways to end are really met
    assert all(answer.usage.completion_tokens <= request.max_tokens for answer, request in zip(answers, REQUESTS, strict=True))


def test_prompts_that_begin_alike(nano: LoadedModel) -> None:
    """A long system message is read once for all rows, and the answers are those of each row alone."""
    system = Message("system", "You are a helpful assistant of a house by the sea, and you answer in few words.")
    requests = [ChatRequest((system, *request.messages), max_tokens=request.max_tokens) for request in REQUESTS]
    assert list(engine(nano).answers(requests)) == [by_generate(nano, request) for request in requests]


def test_shared_prefix() -> None:
    """What all begin with, but never a whole prompt, and only where it is worth reading apart."""
    from largeforge.engine.decoding import MIN_SHARED, shared_prefix

    common = list(range(MIN_SHARED))
    assert shared_prefix([[*common, 1, 2], [*common, 3], [*common, 1]]) == common
    assert shared_prefix([[*common, 1], [*common, 1, 2]]) == common
    assert shared_prefix([common, [*common, 1]]) == [] == shared_prefix([[*common, 1]]) == shared_prefix([[1, 2], [3]])


def test_sliding_window(nano: LoadedModel) -> None:
    """A network that looks back 8 tokens only, as Mistral looks back 4096: the same answers as generate's."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    network: Any = MistralForCausalLM(MistralConfig(vocab_size=4096, sliding_window=8, initializer_range=0.3, pad_token_id=None, **shape))
    network.generation_config.eos_token_id = nano.tokenizer.eos_token_id  # type: ignore[union-attr]
    model = dataclasses.replace(nano, network=network.eval())
    requests = [dataclasses.replace(request, max_tokens=16) for request in REQUESTS]
    assert list(engine(model).answers(requests)) == [by_generate(model, request) for request in requests]


def test_rows_that_fit(nano: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer rows together where their keys and values would not fit; at least one."""
    talking = engine(nano)
    longest = max(len(talking._prompt(request, 0)) + request.max_tokens for request in REQUESTS)
    per_token = 2 * 4 * 2 * 64 * 4  # keys and values, layers, heads, width, fp32
    monkeypatch.setattr("largeforge.engine.hf.CACHE_BYTES", 3 * longest * per_token)
    prompts = [talking._prompt(request, 0) for request in REQUESTS]
    assert talking._batch_size(prompts, REQUESTS) == 3
    monkeypatch.setattr("largeforge.engine.hf.CACHE_BYTES", 1)
    assert talking._batch_size(prompts, REQUESTS) == 1


def test_an_adapter_that_has_learnt_nothing_is_left_out(nano_cache: Path) -> None:
    """B is zero before the first step: the answers are the base's, and the adapter is back afterwards."""
    source = part("model", "nano")
    base = source.load(trainable=False, precision="bf16")
    fresh = source.load(trainable=True, precision="bf16", adapter=part("adapter", "lora", live={"seed": 0}))
    calls: list[int] = []
    layer = fresh.network.get_base_model().model.layers[0].self_attn.q_proj.lora_A["default"]
    layer.register_forward_hook(lambda *_: calls.append(1))
    assert list(engine(fresh).answers(REQUESTS[:3])) == list(engine(base).answers(REQUESTS[:3])) and not calls
    fresh.network(input_ids=torch.tensor([[1, 2]]))
    assert calls and any(p.requires_grad for p in fresh.network.parameters())


def test_answers_come_as_they_are_ready(nano: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first answer needs no second window; nothing is asked before it is wanted."""
    talking = engine(nano, batch_size=2)
    batches: list[int] = []
    real = talking._batch
    monkeypatch.setattr(talking, "_batch", lambda prompts, requests: batches.append(len(prompts)) or real(prompts, requests))
    stream = talking.answers(REQUESTS)
    assert batches == []
    next(stream)
    assert sum(batches) <= 8
    assert len(list(stream)) == 19 and sum(batches) == 20


def test_stream_joins_to_the_answer(nano: LoadedModel) -> None:
    """Pieces are whole characters; the last delta has the reason and the usage."""
    for request in REQUESTS[:6]:
        [answer] = engine(nano).answers([request])
        *pieces, last = engine(nano).stream(request)
        assert "".join(delta.text for delta in pieces) == answer.text
        assert (last.text, last.finish_reason, last.usage) == ("", answer.finish_reason, answer.usage)
        assert all(delta.finish_reason is None and delta.text for delta in pieces)


def test_characters_of_several_tokens(nano: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """日 is three tokens of nano's: it is shown once, whole, and never as a replacement character."""
    assert nano.tokenizer is not None
    said = nano.tokenizer("a日é!", add_special_tokens=False).input_ids
    assert len(said) > 4

    class Scripted:
        """A decoding whose tokens are known."""

        def __init__(self, *words: Any) -> None:
            self.answers: list[list[int]] = [[]]
            self.ended_by = ["stop"]
            self.done = False

        def step(self) -> None:
            self.answers[0].append(said[len(self.answers[0])])
            self.done = len(self.answers[0]) == len(said)

    monkeypatch.setattr("largeforge.engine.hf.Decoding", Scripted)
    assert [delta.text for delta in engine(nano).stream(ask("x"))] == ["a", "日", "é", "!", ""]


def test_closing_a_stream_stops_it(nano: LoadedModel) -> None:
    nano.network.train()
    talking = engine(nano)
    talking.ends = frozenset()  # it would talk on
    stream = talking.stream(ask("x", max_tokens=200))
    next(stream)
    assert not nano.network.training
    stream.close()
    assert nano.network.training


def test_sampling(nano: LoadedModel) -> None:
    """The same seed says the same, whatever else is in the batch; other seeds differ; top_k=1 is greedy; the global generator is not used."""
    request = ask("river", max_tokens=12, temperature=1.5, seed=1)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    [alone] = engine(nano).answers([request])
    [_, within, _] = engine(nano).answers([ask("a longer prompt than the others", temperature=0.7), request, ask("x")])
    assert within == alone and torch.equal(torch.get_rng_state(), state)
    assert len({next(engine(nano).answers([dataclasses.replace(request, seed=seed)])).text for seed in range(4)}) > 1
    greedy = ask("river", max_tokens=12)
    for narrow in ({"top_k": 1}, {"top_p": 1e-9}):
        assert list(engine(nano).answers([dataclasses.replace(greedy, temperature=1.0, **narrow)])) == list(engine(nano).answers([greedy]))


def test_drawing_by_hand() -> None:
    """Of probabilities 0.5, 0.3, 0.2: top_p 0.6 keeps the first two, top_k 2 the same, temperature sharpens."""
    from largeforge.engine.choosing import Drawing, draw

    logits = torch.tensor([0.3, 0.5, 0.2]).log()

    def shares(**how: Any) -> list[float]:
        generator = torch.Generator().manual_seed(0)
        drawn = [draw(logits, Drawing(1, **{"temperature": 1.0, **how}), generator) for _ in range(2000)]
        return [drawn.count(token) / len(drawn) for token in range(3)]

    assert shares() == pytest.approx([0.3, 0.5, 0.2], abs=0.04)
    assert shares(top_p=0.6) == pytest.approx([0.375, 0.625, 0], abs=0.04)
    assert shares(top_k=2) == pytest.approx([0.375, 0.625, 0], abs=0.04)
    assert shares(top_p=0.5) == [0, 1, 0]
    assert shares(temperature=0.5) == pytest.approx([0.09 / 0.38, 0.25 / 0.38, 0.04 / 0.38], abs=0.04)


def test_in_the_middle_of_training(nano_cache: Path) -> None:
    """An fp32 adapter over bf16 weights, some modules in training mode: answers, no gradients, every mode as before."""
    model: LoadedModel = part("model", "nano").load(trainable=True, precision="bf16", adapter=part("adapter", "lora", dropout=0.5, live={"seed": 0}))
    for name, parameter in model.network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.1, generator=torch.Generator().manual_seed(0))
    modules = list(model.network.modules())
    modules[-1].eval()
    modes = [module.training for module in modules]
    first, second = list(engine(model).answers(REQUESTS[:4])), list(engine(model).answers(REQUESTS[:4]))
    assert first == second  # no dropout
    assert [module.training for module in modules] == modes and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    model.network(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()  # and it goes on training


def test_too_long(nano: LoadedModel) -> None:
    """A prompt longer than the context is told before any work, by number; an answer is cut where the context ends."""
    nano.network.config.max_position_embeddings = 24
    with pytest.raises(InputError, match=r"Prompt 2 has \d+ tokens; this model reads 24, the answer included\."):
        next(engine(nano).answers([ask("x"), ask("word " * 30)]))
    with pytest.raises(InputError, match="Prompt 1 has"):
        next(engine(nano).stream(ask("word " * 30)))
    [answer] = engine(nano).answers([ask("x", max_tokens=1000)])
    assert answer.usage.total_tokens <= 24


def test_template_that_refuses(nano: LoadedModel) -> None:
    model = dataclasses.replace(nano, template="{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system message here') }}{% endif %}x")
    request = ChatRequest((Message("system", "Be brief."), Message("user", "x")))
    with pytest.raises(InputError, match=r"chat template refuses this conversation: no system message here"):
        list(engine(model).answers([request]))


def test_what_ends_an_answer(nano: LoadedModel) -> None:
    """The tokenizer's EOS, what generation_config names, and what the template puts after an answer."""
    assert nano.tokenizer is not None and nano.network.generation_config is not None
    assert engine(nano).ends == {nano.tokenizer.eos_token_id}
    nano.network.generation_config.eos_token_id = [7, 9]
    start = nano.tokenizer.convert_tokens_to_ids("<|im_start|>")
    template = "{% for m in messages %}{{ m['content'] + '<|im_start|>' }}{% endfor %}"
    assert engine(dataclasses.replace(nano, template=template)).ends == {nano.tokenizer.eos_token_id, 7, 9, start}
