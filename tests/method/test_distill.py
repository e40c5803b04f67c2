"""Distillation: the plain way beside the fast one, stages by the step's number, own answers, a teacher asked once, and the laws that hold of all."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from largeforge.batch import TokenBatch
from largeforge.contract import LoadedModel, Optimization, Reference
from largeforge.errors import InputError
from largeforge.method.distill import IDS, LOGPROBS, Distill
from largeforge.method.hidden import blocks, layer_map
from largeforge.method.own_answers import answered, prompts_of
from tests.method.conftest import VOCABULARY, Row, one_step, packed, padded, relative_difference
from tests.tiny_models import config, values

Tiny = Callable[..., LoadedModel]
TEACHER = {"hidden_size": 48, "num_hidden_layers": 4}


def other(tiny: Tiny, *, seed: int = 9, **shape: Any) -> LoadedModel:
    """A second model, wider and deeper, whose weights are far from their start: its distribution is not flat."""
    model = tiny(**(TEACHER | shape))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def distill(model: LoadedModel, teacher: LoadedModel | None, *, assistant: LoadedModel | None = None, steps: int = 1, **changes: Any) -> Distill:
    """Build the method from the YAML that ships; `hidden`, `progressive` and `on_policy` are changed key by key."""
    shipped = values("method", "distill")
    whole = {name: {**shipped[name], **changes.pop(name)} for name in ("hidden", "progressive", "on_policy") if name in changes}
    method = Distill(config("method", "distill", **changes, **whole), model=model, teacher=teacher, assistant=assistant)  # type: ignore[arg-type]
    method.optimization = Optimization(num_steps=steps, schedule="constant", warmup_steps=0, weight_decay=0.0, clip_norm=0.0)
    return method


def at(method: Distill, step: int) -> Distill:
    """The method as it is at a step of a run."""
    method._trainer = SimpleNamespace(global_step=step)  # type: ignore[assignment]
    return method


def logits_of(network: Any, rows: list[Row]) -> Tensor:
    """Logits that predict supervised tokens, one forward pass a row over all positions."""
    found = []
    for ids, mask in rows:
        found.append(network(input_ids=torch.tensor([ids])).logits[0, :-1][torch.tensor(mask[1:])])
    return torch.cat(found)


def states_of(network: Any, rows: list[Row], layer: int) -> Tensor:
    """What a layer gives out where supervised tokens are predicted."""
    seen: list[Tensor] = []
    handle = blocks(network)[layer - 1].register_forward_hook(lambda module, arguments, output: seen.append(output))
    for ids, _ in rows:
        network(input_ids=torch.tensor([ids]))
    handle.remove()
    return torch.cat([states[0, :-1][torch.tensor(mask[1:])] for states, (_, mask) in zip(seen, rows, strict=True)])


def by_formula(kind: str, teacher: Tensor, student: Tensor, *, temperature: float, beta: float) -> Tensor:
    """The divergence of each token, straight from its paper."""
    p, q = (logits / temperature for logits in (teacher, student))
    p, q = p.softmax(-1), q.softmax(-1)
    if kind == "forward_kl":
        return temperature**2 * (p * (p / q).log()).sum(-1)
    if kind == "reverse_kl":
        return temperature**2 * (q * (q / p).log()).sum(-1)
    m = beta * p + (1 - beta) * q
    return temperature**2 * (beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1))


def terms(method: Distill, batch: TokenBatch) -> dict[str, float]:
    """Each term as a mean."""
    weights = method.weights(batch)
    found = method.loss(batch)
    assert {term.name for term in found} == set(weights)
    return {term.name: term.sum.item() / weights[term.name] for term in found}


def mean(method: Distill, batch: TokenBatch) -> Tensor:
    weights = method.weights(batch)
    return torch.stack([term.sum * term.coefficient / weights[term.name] for term in method.loss(batch)]).sum()


# ---- the plain way ----


@pytest.mark.parametrize("lay", [padded, packed])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_the_plain_way(tiny: Tiny, rows: list[Row], kind: str, temperature: float, lay: Any) -> None:
    """Proves SYS-F-014 and SR-F-005: value and gradient are those of the papers' formulas over all logits, temperature from the config."""
    model, teacher = tiny(), other(tiny)
    method = distill(model, teacher, divergence=kind, temperature=temperature, jsd_beta=0.3, logits_weight=0.7, nll_weight=0.4)
    gradients, told = one_step(method, [lay(rows)])
    plain = tiny()
    student_NV, teacher_NV = logits_of(plain.network, rows), logits_of(teacher.network, rows).detach()
    targets = torch.cat([torch.tensor(ids)[torch.tensor(mask)] for ids, mask in rows])
    divergence = by_formula(kind, teacher_NV, student_NV, temperature=temperature, beta=0.3).mean()
    nll = cross_entropy(student_NV, targets)
    assert told["divergence"] == pytest.approx(divergence.item(), rel=1e-4)
    assert told["nll"] == pytest.approx(nll.item(), rel=1e-5)
    loss = 0.7 * divergence + 0.4 * nll
    assert told["loss"] == pytest.approx(loss.item(), rel=1e-4)
    loss.backward()
    wanted = {f"network.{name}": p.grad for name, p in plain.network.named_parameters() if p.grad is not None}
    assert relative_difference(gradients, wanted) < 2e-5


def test_a_head_with_more_to_it(tiny: Tiny, rows: list[Row]) -> None:
    """A bias on the heads takes the way over all logits, with the same numbers."""
    model, teacher = tiny(), other(tiny)
    fast = terms(distill(tiny(), teacher, divergence="jsd"), padded(rows))
    for one in (model, teacher):
        one.network.get_output_embeddings().bias = torch.nn.Parameter(torch.zeros(VOCABULARY))
    slow = distill(model, teacher, divergence="jsd")
    assert slow.head.chunked is False
    assert terms(slow, padded(rows)) == pytest.approx(fast, rel=1e-4)


@pytest.mark.parametrize("changes", [{}, {"divergence": "reverse_kl", "temperature": 3.0}, {"hidden": {"weight": 2.0}}])
def test_split_of_the_batch_does_not_matter(tiny: Tiny, rows: list[Row], changes: dict[str, Any]) -> None:
    """Law 6: one micro-batch of 32, eight of 4 and one packed sequence give the same gradient."""
    whole, _ = one_step(distill(tiny(), other(tiny), **changes), [padded(rows)])
    for batches in ([padded(rows[at : at + 4]) for at in range(0, 32, 4)], [packed(rows)]):
        split, _ = one_step(distill(tiny(), other(tiny), **changes), batches)
        assert relative_difference(split, whole) < 2e-6


def test_each_term_counts(tiny: Tiny, rows: list[Row]) -> None:
    """The loss is the weighted sum of its terms, and a weight of zero takes a term away."""
    weights = {"logits_weight": 0.5, "nll_weight": 0.25, "hidden": {"weight": 2.0}}
    _, told = one_step(distill(tiny(), other(tiny), **weights), [padded(rows)])
    assert min(told["divergence"], told["nll"], told["hidden"]) > 0.1
    assert told["loss"] == pytest.approx(0.5 * told["divergence"] + 0.25 * told["nll"] + 2 * told["hidden"], rel=1e-5)
    for changes, name in (({"logits_weight": 0.0}, "divergence"), ({"nll_weight": 0.0}, "nll"), ({"hidden": {"weight": 0.0}}, "hidden")):
        assert set(terms(distill(tiny(), other(tiny), **(weights | changes)), padded(rows))) == {"divergence", "nll", "hidden"} - {name}


def test_a_student_that_is_its_teacher_has_nothing_to_learn(tiny: Tiny, rows: list[Row]) -> None:
    for kind in ("forward_kl", "reverse_kl", "jsd"):
        assert terms(distill(tiny(), tiny(), divergence=kind), padded(rows))["divergence"] == pytest.approx(0.0, abs=1e-6)


# ---- hidden states ----


def test_hidden_states_the_plain_way(tiny: Tiny, rows: list[Row]) -> None:
    """The mean of |W s - t|^2 / |t|^2 over tokens and matched layers; the student's two layers meet the teacher's second and fourth."""
    model, teacher = tiny(), other(tiny)
    method = distill(model, teacher, hidden={"weight": 1.0})
    assert method.projections is not None and method.projections.layers == {1: 2, 2: 4}
    expected = 0.0
    for mine, theirs in ((1, 2), (2, 4)):
        weight = method.projections.maps[str(mine)].weight
        s, t = states_of(model.network, rows, mine), states_of(teacher.network, rows, theirs)
        expected += ((s @ weight.T - t).square().sum(-1) / t.square().sum(-1)).mean().item() / 2
    for batch in (padded(rows), packed(rows)):
        assert terms(method, batch)["hidden"] == pytest.approx(expected, rel=1e-4)


def test_hidden_states_with_activations_computed_again(tiny: Tiny, rows: list[Row]) -> None:
    changes: dict[str, Any] = {"hidden": {"weight": 1.0}, "logits_weight": 0.0, "nll_weight": 0.0}
    plain, _ = one_step(distill(tiny(), other(tiny), **changes), [padded(rows)])
    model = tiny()
    model.network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.network.train()
    again, _ = one_step(distill(model, other(tiny), **changes), [padded(rows)])
    assert relative_difference(again, plain) < 1e-6


def test_projections_learn_are_kept_and_are_not_exported(tiny: Tiny, rows: list[Row]) -> None:
    """They get a gradient, stand in a checkpoint, are the same at every start whatever was drawn before, and the teacher stands in none."""
    method = distill(tiny(), other(tiny), hidden={"weight": 1.0})
    gradients, _ = one_step(method, [padded(rows)])
    names = {"projections.maps.1.weight", "projections.maps.2.weight"}
    assert all(float(gradients[name].norm()) > 0 for name in names)
    checkpoint = {"state_dict": dict(method.state_dict())}
    method.on_save_checkpoint(checkpoint)
    assert names < set(checkpoint["state_dict"])
    assert {name.partition(".")[0] for name in checkpoint["state_dict"]} == {"network", "projections"}
    assert not any("projections" in name for name in method.network.state_dict())
    drawn = distill(tiny(), other(tiny), hidden={"weight": 1.0}).projections
    torch.manual_seed(77)
    student, teacher = tiny(), other(tiny)
    torch.manual_seed(78)
    again = distill(student, teacher, hidden={"weight": 1.0}).projections
    assert drawn is not None and again is not None
    assert all(torch.equal(one, two) for one, two in zip(drawn.parameters(), again.parameters(), strict=True))
    after = torch.rand(1)
    torch.manual_seed(78)
    assert torch.equal(after, torch.rand(1))  # nothing was drawn from the generator of all


def test_layers_are_mapped(tiny: Tiny) -> None:
    student, teacher = tiny().network, other(tiny, num_hidden_layers=5).network
    assert layer_map("even", student, teacher) == {1: 2, 2: 5}
    assert layer_map({2: 3}, student, teacher) == {2: 3}
    with pytest.raises(InputError, match=r"3: 1.*layers 1 to 2, the teacher 1 to 5"):
        layer_map({2: 3, 3: 1}, student, teacher)


# ---- stages ----


def test_layers_grow_by_the_step(tiny: Tiny, rows: list[Row]) -> None:
    """Of 8 steps the first 4 match the lowest layer, then both; after these everything is learnt. A function of the number alone: asked backwards too."""
    method = distill(tiny(), other(tiny), steps=8, hidden={"weight": 1.0}, progressive={"growth": "layers", "share": 0.5})
    wanted = {0: (False, 1), 1: (False, 1), 2: (False, 2), 3: (False, 2), 4: (True, 2), 7: (True, 2)}
    for step in (*wanted, *reversed(wanted)):
        stage = at(method, step).stage()
        assert (stage.logits, stage.layers) == wanted[step] and stage.likelihood == stage.logits
    assert set(terms(at(method, 0), padded(rows))) == {"hidden"}
    mean(at(method, 0), padded(rows)).backward()
    learning = {name for name, parameter in method.named_parameters() if parameter.grad is not None and float(parameter.grad.abs().max()) > 0}
    assert "network.model.layers.0.mlp.up_proj.weight" in learning and "projections.maps.1.weight" in learning
    assert not any(name.startswith(("network.model.layers.1", "projections.maps.2")) for name in learning)


def test_validation_measures_what_is_learnt_in_the_end(tiny: Tiny, rows: list[Row]) -> None:
    """Else a run's best checkpoint would be one of its first stage, whose loss is of another kind."""
    method = distill(tiny(), other(tiny), steps=8, hidden={"weight": 1.0}, progressive={"growth": "layers"}, on_policy={"share": 1.0})
    method.eval()
    early = at(method, 0).stage()
    assert early == at(method, 7).stage() and early.logits and not early.own


def test_the_assistant_teaches_first(tiny: Tiny, rows: list[Row]) -> None:
    """For its share of the steps; it may be shallower than the teacher, and its own layers are matched then."""
    assistant, teacher = other(tiny, seed=5, num_hidden_layers=3), other(tiny)
    method = distill(tiny(), teacher, assistant=assistant, steps=10, progressive={"share": 0.3}, hidden={"weight": 1.0})
    assert [at(method, step).stage().assistant for step in range(10)] == [True] * 3 + [False] * 7
    for step, who in ((0, assistant), (9, teacher)):
        alone = distill(tiny(), who, hidden={"weight": 1.0})
        assert terms(at(method, step), padded(rows)) == pytest.approx(terms(alone, padded(rows)), rel=1e-5)


# ---- own answers ----


def test_prompts_are_what_stands_before_an_answer(rows: list[Row]) -> None:
    wanted = [ids[: mask.index(True)] for ids, mask in rows]
    for batch in (padded(rows), packed(rows)):
        assert [prompt.tolist() for prompt in prompts_of(batch)] == wanted


def test_own_answers(tiny: Tiny, rows: list[Row]) -> None:
    """The student's own, up to its first end token, that included; those alone are supervised. Drawn alike from the same state."""
    model = tiny()
    model.network.eval()
    model.network.generation_config.eos_token_id = list(range(3, 20))
    drawn = []
    for _ in range(2):
        torch.manual_seed(4)
        drawn.append(answered(model.network, padded(rows), max_tokens=6, temperature=1.0))
    assert torch.equal(drawn[0].input_ids_BT, drawn[1].input_ids_BT)
    batch = drawn[0]
    lengths = set()
    for (ids, mask), own, supervised in zip(rows, batch.input_ids_BT, batch.supervised_BT, strict=True):
        prompt = mask.index(True)
        answer = own[supervised].tolist()
        assert own[:prompt].tolist() == ids[:prompt] and bool(supervised[prompt]) and not supervised[:prompt].any()
        assert not any(3 <= token < 20 for token in answer[:-1]) and (len(answer) == 6 or 3 <= answer[-1] < 20)
        lengths.add(len(answer))
    assert len(lengths) > 2 and batch.num_tokens == sum(mask.index(True) for _, mask in rows) + batch.num_supervised


def test_own_answers_are_the_student_s_likeliest_where_it_is_cold(tiny: Tiny, rows: list[Row]) -> None:
    """Left padding changes nothing, nor do settings for chatting that a model comes with."""
    model = other(tiny)
    model.network.eval()
    model.network.generation_config.repetition_penalty = 50.0
    batch = answered(model.network, padded(rows[:6]), max_tokens=4, temperature=1e-4)
    for (ids, mask), own, supervised in zip(rows, batch.input_ids_BT, batch.supervised_BT, strict=False):
        said = ids[: mask.index(True)]
        for token in own[supervised].tolist():
            assert token == int(model.network(input_ids=torch.tensor([said])).logits[0, -1].argmax())
            said = [*said, token]


def test_steps_of_own_answers_are_chosen_by_their_number(tiny: Tiny, rows: list[Row]) -> None:
    """About the share of them, the same in every run, and whatever was drawn before; NLL is of rows' answers, so not learnt there."""
    method = distill(tiny(), other(tiny), steps=200, on_policy={"share": 0.25, "max_tokens": 3})
    own = [at(method, step).stage().own for step in range(200)]
    torch.rand(5)
    assert own == [at(method, step).stage().own for step in range(200)] and 30 < sum(own) < 70
    first = own.index(True)
    batch = padded(rows)
    (answers,) = at(method, first).before_step([batch])
    assert set(terms(method, answers)) == {"divergence"}
    assert int(answers.supervised_BT.sum(1).max()) <= 3
    assert at(method, own.index(False)).before_step([batch])[0] is batch


# ---- a teacher that is asked once ----


def annotated(method: Distill, batch: TokenBatch) -> TokenBatch:
    """The batch as the data hands it over once the annotations are on disk."""
    (annotation,) = method.annotations()
    found = annotation.compute(batch)
    columns = {name: torch.cat([torch.from_numpy(row) for row in found[name]]) for name in annotation.columns}
    assert columns[IDS].dtype == torch.int32 and columns[LOGPROBS].dtype == torch.float32
    assert [len(row) for row in found[IDS]] == [int(count) * method.config.top_k for count in batch.supervised_BT.sum(1)]
    return TokenBatch(
        batch.input_ids_BT, batch.position_ids_BT, batch.supervised_BT, num_examples=batch.num_examples, num_tokens=batch.num_tokens, annotations=columns
    )


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_a_teacher_asked_once_says_what_one_says_that_is_asked(tiny: Tiny, rows: list[Row], kind: str) -> None:
    """Every token kept: the same numbers and gradient. Fewer: less than these, and the more the closer."""
    changes: dict[str, Any] = {"divergence": kind, "temperature": 2.0}
    online, told = one_step(distill(tiny(), other(tiny), **changes), [padded(rows)])
    found = []
    for top_k in (8, 32, VOCABULARY):
        method = distill(tiny(), other(tiny), teacher_logits="cached", top_k=top_k, **changes)
        gradients, kept = one_step(method, [annotated(method, padded(rows))])
        found.append(kept["divergence"])
        assert method.teacher is None  # it has been let go
    assert found[2] == pytest.approx(told["divergence"], rel=1e-4) and relative_difference(gradients, online) < 1e-4
    assert found[0] < found[1] < found[2]


def test_what_was_kept_is_of_this_teacher_and_these_settings(tiny: Tiny) -> None:
    teacher = other(tiny)
    renamed = LoadedModel(teacher.network, None, "", Reference("model", "another"))
    keys = set()
    for who, changes in ((teacher, {}), (renamed, {}), (teacher, {"top_k": 3}), (teacher, {"temperature": 2.0})):
        (annotation,) = distill(tiny(), who, teacher_logits="cached", **changes).annotations()
        keys.add(annotation.key)
    assert len(keys) == 4
    assert distill(tiny(), teacher).annotations() == []


# ---- who may teach ----


def tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0])))


def test_another_vocabulary_is_refused(tiny: Tiny) -> None:
    """With the reason, and what would do."""
    words = [f"w{number}" for number in range(VOCABULARY)]
    turned = [words[0], *reversed(words[1:])]
    student, same, foreign = (LoadedModel(tiny().network, tokenizer(one), "", Reference("model", "tiny")) for one in (words, words, turned))
    distill(student, same)
    for role in ("teacher", "assistant"):
        with pytest.raises(InputError, match=f"{role} = tiny has another vocabulary.*have the same id in both") as caught:
            distill(student, **({"teacher": foreign} if role == "teacher" else {"teacher": same, "assistant": foreign}))
        assert f"{role}=" in str(caught.value.next_step)
    with pytest.raises(InputError, match="no teacher"):
        distill(student, None)


@pytest.mark.parametrize(("mine", "theirs"), [(VOCABULARY, VOCABULARY + 7), (VOCABULARY + 7, VOCABULARY)])
@pytest.mark.parametrize("cached", [False, True])
def test_heads_padded_to_different_sizes(tiny: Tiny, rows: list[Row], mine: int, theirs: int, cached: bool) -> None:
    """One tokenizer, heads of 97 and 104 rows (as Qwen's are): compared over the rows that both have."""
    names = tokenizer([f"w{number}" for number in range(VOCABULARY)])
    student, teacher = tiny(vocab_size=mine), other(tiny, vocab_size=theirs)
    student, teacher = (LoadedModel(one.network, names, "", Reference("model", "tiny")) for one in (student, teacher))
    changes: dict[str, Any] = {"teacher_logits": "cached", "top_k": VOCABULARY} if cached else {}
    method = distill(student, teacher, nll_weight=0.0, **changes)
    batch = annotated(method, padded(rows)) if cached else padded(rows)
    found = terms(method, batch)["divergence"]
    both = (logits_of(one.network, rows)[:, :VOCABULARY] for one in (teacher, student))
    exact = by_formula("forward_kl", *both, temperature=1.0, beta=0.5).mean().item()
    if cached and mine > theirs:  # the student's own rows are what is beside the kept tokens
        assert found == pytest.approx(exact - torch.log(logits_of(student.network, rows).softmax(-1)[:, :VOCABULARY].sum(-1)).mean().item(), rel=1e-3)
    else:
        assert found == pytest.approx(exact, rel=1e-4)
