"""verify=: each proof on a small recipe through the real entry point, and red where what it proves is broken on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from largeforge.config.compose import compose
from largeforge.errors import EXIT_CHECK_FAILED, EXIT_USER, ConfigError
from largeforge.run import execute

Prove = Callable[..., tuple[int, dict[str, Any]]]
SMALL = ["model.shape.num_hidden_layers=2", "model.shape.hidden_size=64", "model.shape.intermediate_size=128"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def prove(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prove:
    """Prove something of a recipe on nano; returns the exit code and the certificate."""
    monkeypatch.setenv("LARGEFORGE_CACHE", str(cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.chdir(tmp_path)

    def go(what: str, *words: str) -> tuple[int, dict[str, Any]]:
        size = ["data=demo", "data.num_rows=24", "data.max_length=128", "trainer.batch_size=8", "trainer.micro_batch_size=4", "trainer=cpu"]
        code = execute(compose(["model=nano", *SMALL, *size, f"verify={what}", "folder=run", *words]))
        path = tmp_path / "run" / "certificate.json"
        return code, json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    return go


METHODS: dict[str, list[str]] = {
    "sft": ["task=sft"],
    "dpo": ["task=dpo"],
    "ipo": ["task=dpo", "method.loss=ipo", "adapter=none"],
    "orpo": ["task=orpo"],
    "kto": ["task=kto"],
    "simpo": ["task=simpo"],
    "distill": ["task=distill", "teacher=nano", "teacher.init_seed=1", "method.divergence=jsd"],
}


@pytest.mark.peer
@pytest.mark.parametrize("method", METHODS)
def test_parity(prove: Prove, method: str) -> None:
    """Proves SYS-F-010, SYS-F-012, SYS-F-013 and SYS-F-014: losses and gradients are TRL's, token ids and masks alike."""
    code, certificate = prove("parity", *METHODS[method])
    assert code == 0 and certificate["verdict"] == "proven" and certificate["verify"] == "parity"
    assert [row[0].split()[0] for row in certificate["rows"]] == ["log", "loss", "gradient"]
    assert all(row[3] <= 1e-5 and row[-1] == "yes" for row in certificate["rows"])
    if method == "orpo":
        assert certificate["changed"]["method.train_on"] == "all"
        assert any("away from its own" in note for note in certificate["notes"])  # TRL's accumulation is not law 6


@pytest.mark.peer
@pytest.mark.parametrize("method", ["dpo", "orpo", "kto", "simpo", "distill", "sft"])
def test_a_broken_loss_is_found(prove: Prove, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss one percent too large ends in exit code 4, and the certificate says which rows do not hold."""
    from largeforge.method.base import Method

    total = Method.backward_through

    def wrong(self: Any, batches: Any, totals: Any) -> Any:
        return total(self, batches, {name: value / 1.01 for name, value in totals.items()})

    monkeypatch.setattr(Method, "backward_through", wrong)
    code, certificate = prove("parity", *METHODS[method])
    assert code == EXIT_CHECK_FAILED and certificate["verdict"] == "refuted"
    assert [row[-1] for row in certificate["rows"]] == ["yes", "NO", "NO"]


@pytest.mark.parametrize("method", ["sft", "kto"])
def test_invariance(prove: Prove, method: str) -> None:
    """Proves SYS-F-021 and SYS-F-016: micro-batches, packing and two processes change nothing; what was changed for the proof is told."""
    code, certificate = prove("invariance", *METHODS[method], "adapter.dropout=0.2")
    assert code == 0 and certificate["verdict"] == "proven"
    assert len(certificate["rows"]) == 6 and certificate["rows"][-1][0].startswith("2 processes")
    assert certificate["changed"]["adapter.dropout"] == 0.0 and certificate["changed"]["trainer.max_steps"] == 3


def test_a_loss_that_depends_on_the_split_is_found(prove: Prove, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each micro-batch divided by its own number of tokens, as many trainers have done it: exit code 4."""
    from largeforge.method.sft import NegativeLogLikelihood

    monkeypatch.setattr(NegativeLogLikelihood, "weights", lambda self, batch: {"nll": int(torch.tensor(100))})
    loss = NegativeLogLikelihood.loss

    def own_mean(self: Any, batch: Any) -> Any:
        (term,) = loss(self, batch)
        term.sum = term.sum / max(1, batch.num_supervised) * 100
        return [term]

    monkeypatch.setattr(NegativeLogLikelihood, "loss", own_mean)
    code, certificate = prove("invariance", "task=sft")
    assert code == EXIT_CHECK_FAILED and certificate["verdict"] == "refuted"
    assert certificate["rows"][0][-1] == "NO"


def test_resume(prove: Prove) -> None:
    """Proves SYS-F-018 and SR-F-007: real processes, one killed with -9."""
    code, certificate = prove("resume", "task=sft", "adapter.dropout=0.1")
    assert code == 0 and certificate["verdict"] == "proven"
    assert [row[0] for row in certificate["rows"]] == [*range(1, 9), "weights"]
    assert all(row[3] == "same" for row in certificate["rows"][:8])
    assert 1 <= certificate["facts"]["killed_at_step"] < 8
    assert not Path("run/killed").exists()


def test_a_resume_that_is_not_exact_is_found(prove: Prove, monkeypatch: pytest.MonkeyPatch) -> None:
    """The killed run's losses told one bit apart: exit code 4."""
    from largeforge.proof import resume

    real = resume.steps

    def apart(folder: Path) -> Any:
        found = real(folder)
        if folder.name == "killed" and 8 in found:
            found[8] = {**found[8], "loss": found[8]["loss"] * (1 + 2**-40)}
        return found

    monkeypatch.setattr(resume, "steps", apart)
    code, certificate = prove("resume", "task=sft")
    assert code == EXIT_CHECK_FAILED and certificate["verdict"] == "refuted"
    assert [row[0] for row in certificate["rows"] if row[-1] == "NO"] == [8]


@pytest.mark.peer
def test_a_recipe_that_says_more_than_its_changed_form_has(prove: Prove, tmp_path: Path) -> None:
    """What a recipe says of its benchmark, its tracker and its teacher's cache stands in no proof's way, though those are gone in it."""
    recipe = ["defaults:", "  - override /benchmark: exact_match", "benchmark:", "  show: 2", "method:", "  teacher_logits: cached", "  top_k: 8"]
    (tmp_path / "own.yaml").write_text("\n".join(recipe) + "\n", encoding="utf-8")
    code, certificate = prove("parity", *METHODS["distill"], "recipe=own.yaml", "benchmark.max_tokens=4")
    assert code == 0 and certificate["verdict"] == "proven"
    assert {"method.teacher_logits": "online", "benchmark": "none"}.items() <= certificate["changed"].items()


@pytest.mark.peer
def test_a_reference_that_came_with_an_adapter(prove: Prove) -> None:
    """The reference of a model that is an adapter's artifact is that model; TRL's trainer is given it merged."""
    size = ["data.num_rows=8", "trainer.max_steps=1", "trainer.batch_size=4", "trainer.micro_batch_size=4", "trainer=cpu"]
    assert execute(compose(["task=sft", "model=nano", *SMALL, *size, "tracker=none", "benchmark=none", "folder=first"])) == 0
    words = ["task=dpo", "model=first/artifact", "data=demo", "data.num_rows=24", "data.max_length=128", "trainer.batch_size=8", "trainer.micro_batch_size=4"]
    assert execute(compose([*words, "trainer=cpu", "verify=parity", "folder=run"])) == 0


def test_a_recipe_that_cannot_run_is_told_as_itself(prove: Prove, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bad row is the user's, exit code 2, and refutes nothing."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n', encoding="utf-8")
    size = ["trainer.batch_size=2", "trainer.micro_batch_size=1", "trainer=cpu"]
    code = execute(compose(["task=sft", "model=nano", *SMALL, "data=chat", "data.path=rows.jsonl", *size, "verify=resume", "folder=run"]))
    assert code == EXIT_USER and not (tmp_path / "run" / "certificate.json").exists()
    assert "rows.jsonl:2" in " ".join(capsys.readouterr().err.split())


def test_a_proof_in_one_of_several_processes_is_refused(prove: Prove, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    code, certificate = prove("invariance", "task=sft")
    assert code == EXIT_USER and not certificate


def test_what_cannot_be_verified_is_told() -> None:
    with pytest.raises(ConfigError, match="one of: none, resume, invariance, parity"):
        compose(["task=sft", "verify=everything"])
    with pytest.raises(ConfigError, match="verify"):
        compose(["task=chat", "verify=resume"])
