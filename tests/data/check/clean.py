"""Clean rows of every kind, made from words and a seed; and what tests of checks share."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from largeforge.config.places import shipped
from largeforge.config.yaml_file import read_yaml
from largeforge.data.check.base import Finding
from largeforge.data.check.config import StandardConfig
from largeforge.data.check.standard import Standard
from largeforge.data.rows import Kind, Row

SUBJECTS = """the river; a small garden; our kitchen; the old library; a wooden boat; the evening train; this recipe; the mountain path; a paper
 map; the market; her neighbour; his teacher; the farmer; a blue lamp; the quiet harbour; the bakery; my bicycle; the village
 school; a silver spoon; the long bridge; the museum; a woman; a man; the orchard; the printer; this engine; the workshop; a
 carpet; the telescope; the choir""".split(";")
VERBS = """carries; shows; holds; needs; follows; keeps; opens; paints; measures; explains; remembers; crosses; repairs; collects; warms;
 finishes; copies; describes; counts; answers; prepares; lights; covers; reaches; turns""".split(";")
OBJECTS = """seven pears; the first page of the book; a bowl of soup; the morning news; water from the well; letters to the coast; a drawing of
 birds; the key of the gate; four songs; bread with butter; a list of plants; the height of the tower; warm coats for the winter;
 stones from the shore; the names of the stars; a story that people like; the way to the station; glass and copper; a bag of seeds;
 the last lesson of the day; fresh paint; the shape of the leaf; coffee for the guests; clocks from the attic; a plan of the house;
 wool in many colours; the rhythm of the dance; apples that have fallen; the price of a ticket; paper boats""".split(";")
PLACES = """near the lake; in the afternoon; before the rain; with great care; on Monday; after breakfast; behind the church; for the
 festival; under the roof; at the end of the street; without any hurry; during the summer; by the window; with a friend; in the
 north; between two hills; at noon; beside the fire""".split(";")

ENDS = [
    f"{one} {two}"
    for one in (", and that is", ", which is", "; it is", ", or so they say,", " and will be")
    for two in "page line room number part year about for".split()
]


def sentence(draw: random.Random) -> str:
    parts = (" ".join(draw.choice(words).split()) for words in (SUBJECTS, VERBS, OBJECTS, PLACES))
    said = " ".join(parts)
    return f"{said[0].upper()}{said[1:]}{draw.choice(ENDS)} {draw.randrange(2, 900)}."


def sentences(draw: random.Random, least: int, most: int) -> str:
    return " ".join(sentence(draw) for _ in range(draw.randint(least, most)))


def question(draw: random.Random, number: int) -> str:
    return f"What do we know about number {number}? {sentences(draw, 1, 3)}"


def clean_rows(kind: Kind = "messages", num_rows: int = 1000, *, seed: int = 0) -> list[Row]:
    """Rows that a person would find nothing wrong with; a tenth each for validation and test."""
    draw = random.Random(f"{kind} {seed}")
    rows = []
    for number in range(num_rows):
        content: dict[str, Any]
        if kind == "messages":
            turns = [{"role": "system", "content": "You answer in full sentences."}] if number % 3 == 0 else []
            for _ in range(draw.randint(1, 2)):
                turns += [{"role": "user", "content": question(draw, number)}, {"role": "assistant", "content": sentences(draw, 1, 5)}]
            content = {"messages": turns}
        elif kind == "preference":
            chosen, rejected = sentences(draw, 1, 4), sentences(draw, 1, 4)
            content = {
                "prompt": [{"role": "user", "content": question(draw, number)}],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
            }
        else:
            content = {"text": sentences(draw, 2, 9)}
        content["label"] = draw.choice(["letters", "gardens", "travel"])
        split = "test" if number % 10 == 0 else "validation" if number % 10 == 1 else "train"
        rows.append(Row(content, f"rows.jsonl:{number + 1}", split=split))
    return rows


@cache
def shipped_values() -> dict[str, Any]:
    """What standard.yaml holds."""
    return read_yaml(shipped("conf") / "data/check/standard.yaml").values


def config(**changes: Any) -> StandardConfig:
    """The shipped settings, with some changed: `config(only=["length"], length={"z": 5.0})`."""
    values = dict(shipped_values())
    for name, change in changes.items():
        values[name] = {**values[name], **change} if isinstance(change, dict) else change
    return StandardConfig.model_validate(values)


def check(rows: Iterable[Row], **changes: Any) -> list[Finding]:
    """Check rows with the shipped settings, with some changed."""
    standard = Standard(config(**changes))
    try:
        return standard.look(rows).findings()
    finally:
        standard.close()


def one(found: Sequence[Finding], *, holding: str) -> Finding:
    """The one finding whose message holds some words."""
    (finding,) = [finding for finding in found if holding in finding.message]
    return finding


def numbers(finding: Finding) -> set[int]:
    """The rows that a finding names first, by their number from 0."""
    return {int(example.split()[0].rpartition(":")[2]) - 1 for example in finding.examples}
