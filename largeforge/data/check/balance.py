"""How rows are spread over the values of their class fields (label, category, language), in each split. Knows nothing about what a class means."""

from __future__ import annotations

from pathlib import Path

from largeforge.data.check.base import Check, Finding, Seen, rows_said
from largeforge.data.check.config import BalanceConfig
from largeforge.data.check.spill import Lines
from largeforge.report import Section, draw_bars

SHOWN = 20


class Balance(Check):
    """Counts rows by field, value and split."""

    config: BalanceConfig

    def __init__(self, config: BalanceConfig, *, examples: int = 5) -> None:
        super().__init__(config, examples=examples)
        self.splits: dict[str, int] = {}
        self.counts: dict[str, dict[str, dict[str, int]]] = {}
        self.examples_of: dict[tuple[str, str], list[str]] = {}
        self.unbounded: set[str] = set()  # fields of too many values: no classes

    def add(self, seen: Seen) -> None:
        row = seen.row
        self.splits[row.split] = self.splits.get(row.split, 0) + 1
        for name in self.config.fields:
            value = row.content.get(name)
            if value is None or value == "" or isinstance(value, (dict, list, float)) or name in self.unbounded:
                continue
            self._count(name, str(value)[:200], {row.split: 1}, [row.origin])

    def merge(self, other: Balance, first: int) -> None:
        for split, count in other.splits.items():
            self.splits[split] = self.splits.get(split, 0) + count
        for name in sorted(other.unbounded):
            self._forget(name)
        for name, values in other.counts.items():
            for value, splits in values.items():
                if name not in self.unbounded:
                    self._count(name, value, splits, other.examples_of[name, value])

    def findings(self, origins: Lines) -> list[Finding]:
        found = []
        for name, values in sorted(self.counts.items()):
            totals = {value: sum(splits.values()) for value, splits in values.items()}
            if len(totals) < 2:
                continue
            largest, smallest = (pick(totals, key=lambda value: (totals[value], value)) for pick in (max, min))
            few = sorted((value for value, count in totals.items() if count < self.config.min_rows), key=lambda value: (totals[value], value))
            if few and sum(totals.values()) >= self.config.min_rows * len(totals):  # where all classes are small, the data is
                told = ", ".join(f"{value} ({totals[value]:,})" for value in few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
                message = f"{name}: {len(few)} of {len(totals)} classes have fewer than {self.config.min_rows:,} rows: {told}"
                where = [self.examples_of[name, value][0] for value in few]
                found.append(self.found("warning", message, count=len(few), examples=where, mend="add rows of these classes (step augment), or leave them out"))
            if totals[largest] > self.config.max_ratio * totals[smallest]:
                ratio = totals[largest] / totals[smallest]
                message = f"{name}: {largest} has {totals[largest]:,} rows, {smallest} {totals[smallest]:,}: {ratio:.1f} times as many"
                mend = f"add balance to steps (step.balance.field={name}), or raise check.balance.max_ratio"
                found.append(self.found("warning", message, count=totals[smallest], examples=self.examples_of[name, smallest], mend=mend))
            unlearnt = sorted(value for value, splits in values.items() if self.splits.get("train") and not splits.get("train"))
            if unlearnt:
                message = f"{name}: {len(unlearnt)} classes stand in validation or test and never in train: {', '.join(unlearnt[:5])}"
                where = [self.examples_of[name, value][0] for value in unlearnt]
                found.append(self.found("warning", message, count=len(unlearnt), examples=where, mend="add rows of these classes, or change step.split.salt"))
        return found

    def sections(self, folder: Path) -> list[Section]:
        total = max(1, sum(self.splits.values()))
        splits = [name for name in ("train", "validation", "test") if name in self.splits]
        sections = [Section("Splits", ("split", "rows", "share"), [(name, self.splits[name], f"{self.splits[name] / total:.1%}") for name in splits])]
        for number, (name, values) in enumerate(sorted(self.counts.items())):
            totals = sorted(((sum(counts.values()), value) for value, counts in values.items()), key=lambda item: (-item[0], item[1]))
            table = [(value, count, f"{count / total:.1%}", *(values[value].get(split, 0) for split in splits)) for count, value in totals[:SHOWN]]
            text = f"{rows_said(sum(count for count, _ in totals))} have this field, with {len(totals)} values" + (
                f"; the {SHOWN} largest:" if len(totals) > SHOWN else ":"
            )
            bars = [(value, float(count), f"{count:,}") for count, value in totals[:SHOWN]]
            picture = draw_bars(folder / f"check_balance_{number}.png", bars, label=f"rows by {name}").name
            sections.append(Section(f"Balance of {name}", (name, "rows", "share", *splits), table, text=text, pictures=[picture]))
        return sections

    def metrics(self) -> dict[str, float]:
        return {}

    def _count(self, name: str, value: str, splits: dict[str, int], origins: list[str]) -> None:
        values = self.counts.setdefault(name, {})
        counted = values.setdefault(value, {})
        for split, count in splits.items():
            counted[split] = counted.get(split, 0) + count
        where = self.examples_of.setdefault((name, value), [])
        where.extend(origins[: max(1, self.examples) - len(where)])
        if len(values) > self.config.max_classes:
            self._forget(name)

    def _forget(self, name: str) -> None:
        self.unbounded.add(name)
        for value in self.counts.pop(name, {}):
            del self.examples_of[name, value]
