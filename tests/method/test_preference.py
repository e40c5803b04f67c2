"""DPO, ORPO, SimPO and KTO: numbers worked out by hand, the plain way beside the fast one, and the laws that hold of all."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from largeforge.adapter.config import LoRAConfig
from largeforge.adapter.lora import LoRA
from largeforge.batch import AnswerBatch
from largeforge.contract import LoadedModel, Reference
from largeforge.errors import InputError
from largeforge.method.base import Method
from largeforge.method.dpo import DPO
from largeforge.method.kto import KTO
from largeforge.method.orpo import ORPO, log_odds
from largeforge.method.preference import REFERENCE
from largeforge.method.simpo import SimPO
from tests.method.conftest import one_step, relative_difference
from tests.method.preferences import batch_of, gradient, make_pairs, plain_logprobs, tokens
from tests.tiny_models import config

PAIRS = make_pairs(8)
CHOSEN, REJECTED = [pair[0] for pair in PAIRS], [pair[1] for pair in PAIRS]
Tiny = Callable[..., LoadedModel]


def other(tiny: Tiny) -> LoadedModel:
    """A second model with weights of its own."""
    model = tiny()
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def dpo(tiny: Tiny, **changes: Any) -> DPO:
    return DPO(config("method", "dpo", **changes), model=tiny(), reference=other(tiny))  # type: ignore[arg-type]


def kto(tiny: Tiny, **changes: Any) -> KTO:
    return KTO(config("method", "kto", **changes), model=tiny(), reference=other(tiny))  # type: ignore[arg-type]


def orpo(tiny: Tiny, **changes: Any) -> ORPO:
    return ORPO(config("method", "orpo", **changes), model=tiny())  # type: ignore[arg-type]


def simpo(tiny: Tiny, **changes: Any) -> SimPO:
    return SimPO(config("method", "simpo", **changes), model=tiny())  # type: ignore[arg-type]


def lora(model: LoadedModel) -> LoadedModel:
    adapter = LoRA(config("adapter", "lora", r=4), seed=5)  # type: ignore[arg-type]
    assert isinstance(adapter.config, LoRAConfig)
    return LoadedModel(adapter.apply(model.network), None, "", model.source)


def mean(method: Method, batch: AnswerBatch) -> Tensor:
    """The loss of one batch: every term divided by its weight."""
    weights = method.weights(batch)
    return torch.stack([term.sum * term.coefficient / weights[term.name] for term in method.loss(batch)]).sum()


def shifted(pairs: list[Any], by: int = 1) -> list[Any]:
    """The same prompts, each with the answer of the row behind it, in the order in which answers stand in a batch."""
    answers = [answer for pair in pairs for answer in pair]
    return [(prompt, answers[(at + by) % len(answers)][1]) for at, (prompt, _) in enumerate(answers)]


def with_mismatched(batch: AnswerBatch, pairs: list[Any]) -> AnswerBatch:
    from largeforge.data.batches import collate_answers

    crossed = [[tokens(answer)] for answer in shifted(pairs)]
    return AnswerBatch(batch.tokens, batch.answer_N, batch.desirable_A, collate_answers(crossed, [True] * len(crossed), pad_id=0, annotations={}))


# ---- by hand ----


@pytest.mark.parametrize(
    ("changes", "margin", "expected"),
    [
        ({}, 10.0, -math.log(1 / (1 + math.exp(-1.0)))),  # beta m = 1
        ({}, 0.0, math.log(2)),
        ({"label_smoothing": 0.25}, 10.0, 0.75 * math.log(1 + math.exp(-1.0)) + 0.25 * math.log(1 + math.exp(1.0))),
        ({"loss": "hinge"}, 4.0, 0.6),
        ({"loss": "hinge"}, 30.0, 0.0),
        ({"loss": "ipo"}, 3.0, 4.0),  # (3 - 1 / 0.2)^2
    ],
)
def test_dpo_by_hand(tiny: Tiny, changes: dict[str, Any], margin: float, expected: float) -> None:
    """Proves SYS-F-012: each loss of a pair from its margin, beta = 0.1."""
    assert float(dpo(tiny, **changes).pair_loss(torch.tensor([margin]))) == pytest.approx(expected, rel=1e-6)


def test_odds_by_hand() -> None:
    """Proves SYS-F-013: p = 1/2 against 1/4 has odds 1 and 1/3, so the odds term is -log sigmoid(log 3) = -log(3/4)."""
    odds = log_odds(torch.tensor([0.5, 0.25]).log())
    assert odds.exp().tolist() == pytest.approx([1.0, 1 / 3])
    assert float(-logsigmoid(odds[0] - odds[1])) == pytest.approx(-math.log(3 / 4), rel=1e-6)
    near_one = torch.tensor([-1e-9], dtype=torch.float64)
    assert float(log_odds(near_one)) == pytest.approx(math.log(1e9), rel=1e-6)


# ---- the plain way ----


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo"])
def test_dpo_the_plain_way(tiny: Tiny, loss: str, packed: bool) -> None:
    """Proves SR-F-004: value and gradient are those of the paper's formula over all logits, padded and packed."""
    method = dpo(tiny, loss=loss, label_smoothing=0.1 if loss == "sigmoid" else 0.0, beta=0.5)
    (good, good_len), (bad, bad_len) = (plain_logprobs(method.network, side) for side in (CHOSEN, REJECTED))
    with torch.no_grad():
        (ref_good, _), (ref_bad, _) = (plain_logprobs(method.reference.network, side) for side in (CHOSEN, REJECTED))
    left, right = good - ref_good, bad - ref_bad
    if loss == "sigmoid":
        expected = -(0.9 * logsigmoid(0.5 * (left - right)) + 0.1 * logsigmoid(-0.5 * (left - right)))
    elif loss == "hinge":
        expected = torch.relu(1 - 0.5 * (left - right))
    else:
        expected = (left / good_len - right / bad_len - 1.0) ** 2
    found = mean(method, batch_of(PAIRS, packed=packed))
    assert found.item() == pytest.approx(expected.mean().item(), rel=1e-5)
    assert relative_difference(gradient(found, method.network), gradient(expected.mean(), method.network)) < 1e-5


@pytest.mark.parametrize("packed", [False, True])
def test_orpo_the_plain_way(tiny: Tiny, packed: bool) -> None:
    """Proves SYS-F-013."""
    method = orpo(tiny, beta=0.7)
    (good, good_len), (bad, bad_len) = (plain_logprobs(method.network, side) for side in (CHOSEN, REJECTED))
    one, two = (side / length for side, length in ((good, good_len), (bad, bad_len)))
    margin = (one - torch.log1p(-one.exp())) - (two - torch.log1p(-two.exp()))
    expected = -good.sum() / good_len.sum() - 0.7 * logsigmoid(margin).mean()
    found = mean(method, batch_of(PAIRS, packed=packed))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert relative_difference(gradient(found, method.network), gradient(expected, method.network)) < 1e-5


@pytest.mark.parametrize("packed", [False, True])
def test_simpo_the_plain_way(tiny: Tiny, packed: bool) -> None:
    method = simpo(tiny, beta=2.5, margin=0.3)
    (good, good_len), (bad, bad_len) = (plain_logprobs(method.network, side) for side in (CHOSEN, REJECTED))
    expected = -logsigmoid(2.5 * (good / good_len - bad / bad_len) - 0.3).mean()
    found = mean(method, batch_of(PAIRS, packed=packed))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert relative_difference(gradient(found, method.network), gradient(expected, method.network)) < 1e-5


def test_kto_the_plain_way(tiny: Tiny) -> None:
    """The KL is the mean ratio of the mismatched answers, not below 0, and has no gradient."""
    method = kto(tiny, beta=0.5, desirable_weight=1.5, undesirable_weight=0.5)
    answers = [answer for pair in PAIRS for answer in pair]
    ratio = plain_logprobs(method.network, answers)[0] - plain_logprobs(method.reference.network, answers)[0].detach()
    with torch.no_grad():
        crossed = shifted(PAIRS)
        kl = (plain_logprobs(method.network, crossed)[0] - plain_logprobs(method.reference.network, crossed)[0]).mean().clamp(min=0)
    good = torch.tensor([True, False] * len(PAIRS))
    expected = torch.where(good, 1.5 * (1 - torch.sigmoid(0.5 * (ratio - kl))), 0.5 * (1 - torch.sigmoid(0.5 * (kl - ratio)))).mean()
    method._trainer = _World()  # type: ignore[assignment]
    (batch,) = method.before_step([with_mismatched(batch_of(PAIRS), PAIRS)])
    assert method.divergence == pytest.approx(float(kl), rel=1e-4, abs=1e-6)
    found = mean(method, batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert relative_difference(gradient(found, method.network), gradient(expected, method.network)) < 1e-5


class _World:
    world_size = 1


# ---- laws ----

SPLITS = [[8], [4, 4], [1, 3, 2, 2]]


def _parts(sizes: list[int], *, packed: bool) -> list[AnswerBatch]:
    at, parts = 0, []
    for size in sizes:
        pairs = PAIRS[at : at + size]
        parts.append(batch_of(pairs, packed=packed))
        at += size
    return parts


@pytest.mark.parametrize("make", [dpo, orpo, simpo])
@pytest.mark.parametrize("packed", [False, True])
def test_split_of_the_batch_does_not_matter(tiny: Tiny, make: Callable[..., Method], packed: bool) -> None:
    """Proves SYS-F-021: one step over 8 pairs has one gradient, however they are split."""
    whole, outputs = one_step(make(tiny), _parts([8], packed=False))  # type: ignore[arg-type]
    for sizes in SPLITS:
        split, told = one_step(make(tiny), _parts(sizes, packed=packed))  # type: ignore[arg-type]
        assert relative_difference(split, whole) < 1e-6
        assert told["loss"] == pytest.approx(outputs["loss"], rel=1e-5)


def test_split_of_the_batch_does_not_matter_to_kto(tiny: Tiny) -> None:
    """The KL is of the whole step: micro-batches with a KL of their own would differ."""

    def parts(sizes: list[int]) -> list[AnswerBatch]:
        crossed = shifted(PAIRS)
        found, at = [], 0
        for size in sizes:
            from largeforge.data.batches import collate_answers

            mine = [[tokens(answer)] for answer in crossed[2 * at : 2 * (at + size)]]
            batch = batch_of(PAIRS[at : at + size])
            batch.mismatched = collate_answers(mine, [True] * len(mine), pad_id=0, annotations={})
            found.append(batch)
            at += size
        return found

    whole, outputs = one_step(kto(tiny), parts([8]))  # type: ignore[arg-type]
    for sizes in SPLITS[1:]:
        split, told = one_step(kto(tiny), parts(sizes))  # type: ignore[arg-type]
        assert relative_difference(split, whole) < 1e-6
        assert told["loss"] == pytest.approx(outputs["loss"], rel=1e-5)


@pytest.mark.parametrize("make", [dpo, orpo, simpo, kto])
def test_a_rank_with_nothing_to_do_has_a_gradient_of_zeros(tiny: Tiny, make: Callable[..., Method]) -> None:
    from largeforge.data.batches import collate_answers

    method = make(tiny)
    nothing = collate_answers([], [], pad_id=0, annotations={})
    total = torch.stack([term.sum for term in method.loss(nothing)]).sum()
    grads = gradient(total, method.network)
    assert total.item() == 0.0 and grads and all(float(grad.abs().max()) == 0.0 for grad in grads.values())


# ---- the reference ----


def test_the_adapter_switched_off_is_the_reference(tiny: Tiny) -> None:
    method = DPO(config("method", "dpo"), model=lora(tiny()))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in method.network.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    method._trainer = _World()  # type: ignore[assignment]  # as in training
    expected = plain_logprobs(tiny().network, [answer for pair in PAIRS for answer in pair])[0]
    batch = batch_of(PAIRS)
    assert torch.allclose(method.reference_logprob(batch), expected, rtol=1e-5)
    assert not torch.allclose(method.answer_logprob(batch).sum_A, expected, rtol=1e-2)


def test_a_copy_is_the_reference_where_everything_learns(tiny: Tiny) -> None:
    with pytest.raises(InputError, match="Every weight learns") as caught:
        DPO(config("method", "dpo"), model=tiny())  # type: ignore[arg-type]
    assert "adapter=lora" in caught.value.next_step
    method = DPO(config("method", "dpo"), model=tiny(), reference=tiny())  # type: ignore[arg-type]
    assert mean(method, batch_of(PAIRS)).item() == pytest.approx(math.log(2), rel=1e-5)
    assert not any("reference" in name for name, _ in method.named_parameters())


@pytest.mark.parametrize("second", [False, True])
def test_what_was_asked_before_is_what_would_be_asked_now(tiny: Tiny, second: bool) -> None:
    """A cached reference gives the loss of one that is asked in every step; its network is let go before training."""
    reference = other(tiny) if second else None
    cached = DPO(config("method", "dpo", reference_logprobs="cached"), model=tiny(), reference=reference)  # type: ignore[arg-type]
    online = DPO(config("method", "dpo"), model=tiny(), reference=other(tiny) if second else tiny())  # type: ignore[arg-type]
    (annotation,) = cached.annotations()
    values = annotation.compute(batch_of(PAIRS))[REFERENCE]
    kept = torch.tensor([float(value[0]) for value in values])
    assert annotation.columns == {REFERENCE: "float32"}
    assert mean(cached, batch_of(PAIRS, annotations={REFERENCE: kept})).item() == pytest.approx(mean(online, batch_of(PAIRS)).item(), rel=1e-6)
    cached.on_fit_start()
    assert cached.reference is None and online.reference is not None
    assert online.annotations() == []


def test_a_reference_of_another_vocabulary_is_refused(tiny: Tiny) -> None:
    strange = tiny(vocab_size=4096)
    strange = LoadedModel(strange.network, None, "", Reference("model", "strange"))
    with pytest.raises(InputError, match="reference = strange has another vocabulary than model = tiny: 4,096 tokens beside 97"):
        DPO(config("method", "dpo"), model=tiny(), reference=strange)  # type: ignore[arg-type]
    own = LoadedModel(tiny(vocab_size=4096).network, None, "", Reference("model", "mine"))
    with pytest.raises(InputError) as caught:
        DPO(config("method", "dpo"), model=own, reference=tiny())  # type: ignore[arg-type]
    assert caught.value.next_step.startswith("reference=nano")


# ---- what is measured ----


def test_accuracy_and_margin_are_noted(tiny: Tiny) -> None:
    method = dpo(tiny, beta=0.5)
    method.loss(batch_of(PAIRS[:3]))
    method.loss(batch_of(PAIRS[3:]))
    method._trainer = _World()  # type: ignore[assignment]
    with torch.no_grad():
        ratios = [plain_logprobs(method.network, side)[0] - plain_logprobs(method.reference.network, side)[0] for side in (CHOSEN, REJECTED)]
    margins = 0.5 * (ratios[0] - ratios[1])
    measured = method.measured()
    assert measured["preference_accuracy"] == pytest.approx(float((margins > 0).float().mean()))
    assert measured["preference_margin"] == pytest.approx(float(margins.mean()), rel=1e-4)


def test_learning_raises_the_margin(tiny: Tiny) -> None:
    """Twenty steps of DPO on eight pairs: a loss with a term of the wrong sign would lower it."""
    method = DPO(config("method", "dpo"), model=tiny(), reference=tiny())  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(method.network.parameters(), lr=1e-3)
    before = mean(method, batch_of(PAIRS)).item()
    for _ in range(20):
        optimizer.zero_grad()
        mean(method, batch_of(PAIRS)).backward()
        optimizer.step()
    assert mean(method, batch_of(PAIRS)).item() < 0.8 * before


def test_the_reference_never_learns(tiny: Tiny) -> None:
    method = dpo(tiny)
    before = copy.deepcopy(method.reference.network.state_dict())
    one_step(method, [batch_of(PAIRS)])  # type: ignore[list-item]
    after = method.reference.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
