"""`data=artifact`: trains on one split, validates on another, leaves the third alone; starts without reading rows; says what it cannot be used for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from largeforge.artifact import Artifact as Folder
from largeforge.artifact import write_artifact
from largeforge.batch import StepWindow
from largeforge.build import build
from largeforge.config.compose import compose
from largeforge.contract import Reference
from largeforge.data.config import ArtifactConfig
from largeforge.data.prepared import Artifact
from largeforge.data.rows import Row
from largeforge.data.shards import DataWriter
from largeforge.errors import ArtifactError, ConfigError, InputError, RowError
from tests.data.test_raw import Bucket
from tests.data.tiny import exchange, make_tokenizer

SPLITS = ["train"] * 6 + ["validation"] * 2 + ["test"] * 3


def make(folder: Path, contents: list[dict[str, Any]] | None = None, splits: list[str] | None = None) -> Folder:
    contents = contents or [exchange(f"say {n}", f"{n} one two") for n in range(11)]

    def fill(draft: Path) -> str:
        writer = DataWriter(draft, rows_per_file=4)
        for number, (content, split) in enumerate(zip(contents, splits or SPLITS, strict=False), start=1):
            writer.add(Row(content, f"rows.jsonl:{number}", split=split))
        writer.close(sources=[])
        return "data"

    return write_artifact(folder, fill=fill, parents=[], config={})


def config(path: Path | str, **changes: Any) -> ArtifactConfig:
    values = {
        "_target_": "largeforge.data.prepared.Artifact",
        "path": str(path),
        "split": "train",
        "max_length": 256,
        "packing": "auto",
        "num_workers": 0,
        "curriculum": "none",
    }
    return ArtifactConfig(**{**values, **changes})


def test_each_split_has_its_use(cache: Path, tmp_path: Path) -> None:
    made = make(tmp_path / "artifact")
    data = build(config(made.folder), tokenizer=make_tokenizer(), template=None, train_on="answer", progress=None, storage=None)
    assert isinstance(data, Artifact)
    assert (data.num_rows, data.facts["num_validation_rows"], data.facts["rows_in"]) == (6, 2, 8)
    assert data.expected_rows() == 8
    assert [example.answer for example in data.heldout()] == [f"{n} one two" for n in (8, 9, 10)]
    assert data.sample(1)[0].origin.startswith("rows.jsonl:1 (row ")
    assert data.source == Reference("data", str(made.folder), "", made.id)
    assert data.validation_batches(2) is not None
    assert len(list(data.train_steps(StepWindow(batch_size=2, micro_batch_size=2, num_steps=3)))) == 3
    trained = {row.origin.split(" ")[0] for row in data.sample(100)}
    assert trained == {f"rows.jsonl:{n}" for n in range(1, 7)}


def test_another_split_can_be_trained_on(cache: Path, tmp_path: Path) -> None:
    made = make(tmp_path / "artifact")
    data = Artifact(config(made.folder, split="validation"), tokenizer=make_tokenizer())
    assert (data.num_rows, data.facts["num_validation_rows"]) == (2, 0)
    with pytest.raises(InputError, match="has no split dev; it has: "):
        Artifact(config(made.folder, split="dev")).prepare()


def test_validation_rows_are_asked_where_there_are_no_test_rows(cache: Path, tmp_path: Path) -> None:
    data = Artifact(config(make(tmp_path / "a", splits=SPLITS[:8]).folder))
    assert [example.answer for example in data.heldout()] == ["6 one two", "7 one two"]
    assert Artifact(config(make(tmp_path / "b", splits=SPLITS[:6]).folder)).heldout() == []


def test_starting_again_reads_no_row(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is found by the artifact's id, and tokens come from its memory-mapped file: a copy elsewhere is the same artifact."""
    made = make(tmp_path / "artifact")
    first = Artifact(config(made.folder), tokenizer=make_tokenizer())
    assert first.num_rows == 6 and not first.facts["cache_hit"]
    moved = shutil.copytree(made.folder, tmp_path / "elsewhere")
    second = Artifact(config(moved), tokenizer=make_tokenizer())

    def never(*_: object) -> None:
        raise AssertionError("rows were read")

    monkeypatch.setattr(Artifact, "rows", never)
    assert second.num_rows == 6 and second.facts["cache_hit"]
    assert second.sample(1)[0].token_ids
    other = Artifact(config(make(tmp_path / "other", contents=[exchange("hi", "there")] * 11).folder), tokenizer=make_tokenizer())
    assert other.fingerprint() != second.fingerprint()


@pytest.mark.parametrize(
    ("content", "kind", "mend"),
    [
        ({"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": "a"}], "rejected": []}, "preference", "layout=messages"),
        ({"text": "plain"}, "text", "an artifact whose rows hold an answer"),
    ],
)
def test_rows_of_another_kind_are_refused(cache: Path, tmp_path: Path, content: dict[str, Any], kind: str, mend: str) -> None:
    """Proves SYS-D-021: what the rows are is looked at before anything is trained."""
    made = make(tmp_path / "artifact", contents=[content], splits=["train"])
    with pytest.raises(InputError, match=f"holds rows of kind {kind}; this task learns from rows of kind messages") as caught:
        Artifact(config(made.folder), tokenizer=make_tokenizer()).prepare()
    assert mend in caught.value.next_step


def test_a_row_that_does_not_fit_ends_the_run(cache: Path, tmp_path: Path) -> None:
    made = make(tmp_path / "artifact", contents=[exchange("say", "one " * 300)], splits=["train"])
    with pytest.raises(RowError, match=r"rows.jsonl:1 \(row [0-9a-f]{12}\)  answer_cut"):
        Artifact(config(made.folder), tokenizer=make_tokenizer()).prepare()


def test_damage_is_told(cache: Path, tmp_path: Path) -> None:
    made = make(tmp_path / "artifact")
    file = made.folder / "rows" / "train-00001.jsonl"
    file.write_bytes(file.read_bytes()[:-3] + b"x}\n")
    with pytest.raises(ArtifactError, match=r"train-00001.jsonl"):
        Artifact(config(made.folder), tokenizer=make_tokenizer()).prepare()


def test_the_run_that_left_it_and_a_bucket_mean_it_too(cache: Path, tmp_path: Path) -> None:
    made = make(tmp_path / "run" / "artifact")
    assert Artifact(config(tmp_path / "run")).fingerprint() == Artifact(config(made.folder)).fingerprint()
    bucket: Any = Bucket(tmp_path)
    assert Artifact(config("s3://run/artifact"), storage=bucket).num_rows == 6


@pytest.mark.parametrize(("path", "mend"), [("nowhere", "data.path=FOLDER"), (".", "data=chat data.path=.")])
def test_what_is_no_artifact_is_told(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, mend: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is no artifact: it holds no manifest.json") as caught:
        Artifact(config(path)).prepare()
    assert mend in caught.value.next_step


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["task=sft", "data.path=rows.jsonl"], "data=demo has no path, data=chat has: add data=chat"),
        (["task=sft", "data=text", "data.path=rows.jsonl"], "task=sft takes one of: artifact, chat, demo"),
        (["task=sft", "data=preference", "data.path=rows.jsonl"], "task=sft takes one of: artifact, chat, demo"),
        (["task=prepare", "data=chat", "data.path=rows.jsonl"], "task=prepare takes one of: preference, rows, text"),
    ],
)
def test_a_choice_that_a_task_has_no_use_for_is_told(argv: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(argv)
    assert says in str(caught.value)


def test_data_as_a_folder_is_what_the_task_reads(cache: Path, tmp_path: Path) -> None:
    made = make(tmp_path / "artifact")
    assert [type(compose([f"task={task}", f"data={made.folder}"]).config.data).__name__ for task in ("sft", "prepare")] == ["ArtifactConfig", "RowsConfig"]  # type: ignore[attr-defined]
    assert compose(["task=sft", "data=chat", "data.path=s3://bucket/rows.jsonl"]).config.data.path == "s3://bucket/rows.jsonl"  # type: ignore[attr-defined]
