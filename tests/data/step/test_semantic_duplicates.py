"""Paraphrases are found, other sentences on the same subject stay; the search is exact and the same however rows lie in shards."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from largeforge.data.rows import Dropped, Row
from largeforge.data.step import semantic_duplicates
from largeforge.data.step.embedding import LENGTH, static_embedding
from largeforge.errors import InputError, MissingExtra
from tests.data.step.made import make, text
from tests.data.step.survey import elsewhere, gone, run

ROOT = Path(__file__).parents[3]
# What is said, said in other words, and something else about the same subject.
SAID = """
How can I bake bread at home? | At home, how can I bake bread? | How long does bread stay fresh at home?
What is the best way to learn the guitar? | What is the best way of learning the guitar? | What does a good guitar cost?
How do I reset the password of my email account? | How can I reset my email account password? | How do I open a new email account?
The meeting was moved from Monday to Thursday. | The meeting has been moved from Monday to Thursday. | The meeting on Monday took three hours.
Explain how photosynthesis works in plants. | Explain how plants perform photosynthesis. | Explain how respiration works in plants.
Give me three tips for sleeping better. | Give three tips for better sleep. | Give me three reasons for sleeping badly.
Our train was late because of heavy snow. | Because of the heavy snow, our train was late. | Our train was early in spite of the storm.
Write a short poem about autumn leaves. | Write a short poem on the leaves of autumn. | Write a short story about winter nights.
Which planet is the largest in the solar system? | What is the largest planet of the solar system? | Which planet is nearest to the sun?
The doctor told him to drink more water. | He should drink more water, the doctor told him. | The doctor told her to eat less sugar.
How many bones does an adult human have? | How many bones are there in an adult human? | How many muscles move a human hand?
She sold her old car and bought a new bicycle. | She bought a new bicycle and sold her old car. | She repaired her car and cleaned her bicycle.
Summarize the plot of Romeo and Juliet. | Summarise the plot of Romeo and Juliet for me. | Who wrote Romeo and Juliet, and when?
What causes earthquakes to happen? | What are the causes of earthquakes? | How are earthquakes measured?
The museum is closed on Mondays and on public holidays. | On Mondays and public holidays the museum is closed. | The museum sells tickets on Sundays only.
Describe the taste of a ripe mango. | Describe how a ripe mango tastes. | Describe the smell of fresh coffee.
Can you recommend a good book on Roman history? | Please recommend a good book about the history of Rome. | Can you recommend a good film about dogs?
My laptop gets very hot when I play games. | When I play games my laptop becomes very hot. | My phone gets slow when I take pictures.
Translate this sentence into Spanish for me. | Please translate the sentence to Spanish. | Translate this sentence into French for me.
The price of coffee rose sharply last year. | Coffee became much more expensive last year. | The price of tea fell a little this year.
How far is the moon from the earth? | What is the distance between the earth and the moon? | How old is the moon?
He quit his job to travel the world. | He left his position in order to see the world. | He lost his job after the holidays.
Why is the sky blue during the day? | During the day, why is the sky blue? | Why is the sky dark at night?
Children learn languages faster than adults do. | Children learn languages faster than adults. | Adults learn to drive faster than children.
"""
TRIPLES = [line.split(" | ") for line in SAID.strip().splitlines()]


def counted(threshold: float, folder: Path) -> tuple[float, float]:
    """Recall over the paraphrases, and precision over all that goes: of the rows, first what is said, then what is said else, then the paraphrases."""
    said, again, other = zip(*TRIPLES, strict=True)
    rows = [text(one, f"r:{number}") for number, one in enumerate((*said, *other, *again))]
    items = run(make("semantic_duplicates", threshold=threshold), rows, folder, num_shards=3)
    right = [number for number in gone(items) if items[number].detail.startswith(f"near to r:{number - 48},")]  # type: ignore[union-attr]
    assert all(item.reason == "duplicate_semantic" for item in items if isinstance(item, Dropped))
    return len(right) / 24, len(right) / len(gone(items))


@pytest.mark.parametrize(("threshold", "recall"), [(0.95, 14 / 24), (0.9, 20 / 24), (0.8, 21 / 24)])
def test_paraphrases_go_and_other_sentences_on_the_subject_stay(threshold: float, recall: float, tmp_path: Path) -> None:
    """24 sentences, 24 paraphrases (three of them in quite other words), 24 other sentences on the same subjects: recall as measured, precision 1."""
    assert counted(threshold, tmp_path) == pytest.approx((recall, 1.0), abs=0.001)


def test_it_does_not_see_one_number_in_a_long_text() -> None:
    """A limit that is known and documented: should this fail, embeddings have become better, and docs/duplicates.md is wrong."""
    problem = (
        "A farmer has {} cows and buys seven more at the market on Saturday. On Sunday she sells half of them to her brother, who pays her in hay and in"
        " eggs. Each cow gives twelve litres of milk a day, and a litre is sold for ninety cents. How much does she earn in a week, and how many cows are left?"
    )
    assert gone(list(make("semantic_duplicates")([text(problem.format(one)) for one in ("30", "58")]))) == [1]


@pytest.fixture
def rows() -> list[Row]:
    """300 short texts of few words, so that many are near to several others, and some are without words."""
    rng = random.Random(5)
    words = "red green blue stone river cloud apple horse song night".split()
    return [text(" ".join(rng.choices(words, k=rng.randint(0, 6))), f"r:{number}") for number in range(300)]


def expected(rows: list[Row], threshold: float) -> list[int]:
    """The rule, word for word: each row against every earlier one that stays."""
    vectors = static_embedding().embed([row.text() for row in rows]).astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1)
    going: list[int] = []
    for row in range(len(rows)):
        staying = [other for other in range(row) if other not in going and norms[other]]
        if norms[row] and staying and (vectors[staying] @ vectors[row] / norms[staying] / norms[row]).max() >= threshold - 1e-12:
            going.append(row)
    return going


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_the_search_is_exact_in_tiles_of_any_size(threshold: float, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = make("semantic_duplicates", threshold=threshold)
    items = run(step, rows, tmp_path / "1")
    assert gone(items) == expected(rows, threshold) and len(gone(items)) > 20
    monkeypatch.setattr(semantic_duplicates, "TILE", 16)
    monkeypatch.setattr(semantic_duplicates, "MOST_NEIGHBOURS", 1)  # every row with a neighbour that goes is looked up
    assert run(step, rows, tmp_path / "5", num_shards=5) == items


def test_two_processes_decide_the_same(rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = make("semantic_duplicates", threshold=0.8)
    alone = run(step, rows, tmp_path / "1")
    monkeypatch.setattr(semantic_duplicates, "TILE", 64)  # five tasks
    assert run(step, rows, tmp_path / "2", num_shards=2, parallel=elsewhere) == alone


def test_too_many_rows_are_refused(rows: list[Row], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"300 rows are more than step.semantic_duplicates.max_rows=299 allows: each is compared with each") as error:
        run(make("semantic_duplicates", max_rows=299), rows, tmp_path)
    assert "step.semantic_duplicates.max_rows=300" in error.value.next_step


def test_no_rows_at_all(tmp_path: Path) -> None:
    assert run(make("semantic_duplicates"), [], tmp_path, num_shards=2) == []


def test_vectors_are_whole_numbers_whose_products_are_exact() -> None:
    """Every partial sum of a product stays below 2^24, by Cauchy and Schwarz: float32 holds it, whatever the order of the sums."""
    embedding = static_embedding()
    texts = [one for three in TRIPLES for one in three] + ["", "a" * 3000]
    vectors = embedding.embed(texts)
    assert vectors.dtype == np.int16 and vectors.shape == (74, 256) and not vectors[72].any()
    squares = (vectors.astype(np.int64) ** 2).sum(axis=1)
    assert squares.max() < 1 << 24 and np.abs(np.sqrt(squares[:72]) - LENGTH).max() < 8
    exact = vectors.astype(np.int64) @ vectors.astype(np.int64).T
    assert np.array_equal(vectors.astype(np.float32) @ vectors.astype(np.float32).T, exact)
    assert all(np.array_equal(embedding.embed([one])[0], vector) for one, vector in zip(texts, vectors, strict=True)), "alone as among others"


def test_vectors_are_those_of_wordllama() -> None:
    """The mean of token vectors, as its own class takes it, to within the rounding to whole numbers."""
    code = (
        "import pathlib, sys\nimport numpy as np\nimport wordllama\n"
        "theirs = wordllama.WordLlama.load(cache_dir=pathlib.Path(wordllama.__file__).parent, disable_download=True)\n"
        "from largeforge.data.step.embedding import StaticEmbedding\n"
        "texts = ['How can I bake bread at home?', 'Die Straße ist lang.', 'one']\n"
        "ours = StaticEmbedding().embed(texts) / 4000\n"
        "assert np.abs(ours - theirs.embed(texts, norm=True)).max() < 3e-4\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def test_workers_never_import_torch() -> None:
    code = (
        "import logging, sys\nfrom tests.data.step.made import make\nfrom largeforge.data.rows import Row\n"
        "rows = [Row({'text': 'one two three four five six'}, 'r:1')] * 3\n"
        "assert len([item for item in make('semantic_duplicates')(rows) if isinstance(item, Row)]) == 1\n"
        "assert not {'torch', 'transformers', 'datasets', 'pyarrow', 'wordllama'} & set(sys.modules), sorted(sys.modules)\n"
        "assert not logging.getLogger().handlers\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def test_embeddings_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"wordllama is not installed.\nTry: pip install 'largeforge\[data\]'"):
        make("semantic_duplicates").ready()
