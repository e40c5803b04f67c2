"""Whether every row has the shape that training reads: fields, types, roles and their order. Judges no text."""

from __future__ import annotations

from typing import Any

from largeforge.data.check.base import Check, Finding, rows_said
from largeforge.data.check.spill import Lines
from largeforge.data.rows import TURNS, Row, kind_of
from largeforge.report import Section

ROLES = ("system", "user", "assistant")
FORMS = {bool: "true or false", int: "number", float: "number", str: "text", list: "list", dict: "object"}
MAX_KEYS = 1000  # names of faults and fields that are told apart
MEND = "mend the file it comes from; docs/data.md shows every format"


def fault_of(content: Any) -> str:
    """What is wrong with a row's shape, in words that are the same for all rows with that fault; "" for a sound row."""
    if not isinstance(content, dict):
        return "a row is no object"
    if not ("messages" in content or "text" in content or ("chosen" in content and "rejected" in content)):
        return "a row has neither messages, nor prompt, chosen and rejected, nor text"
    kind = kind_of(content)
    if kind == "text":
        return "" if isinstance(content["text"], str) else "text is no text"
    for name in TURNS[kind]:
        fault = _turns_fault(name, content.get(name), first="assistant" if name in ("chosen", "rejected") else "user")
        if fault:
            return fault
    if kind == "messages":
        return "" if content["messages"][-1]["role"] == "assistant" else "messages do not end with an answer"
    if content["prompt"][-1]["role"] != "user":
        return "prompt does not end with a user turn"
    for name in ("chosen", "rejected"):
        if content[name][-1]["role"] != "assistant":
            return f"{name} does not end with an assistant turn"
    if content["chosen"] == content["rejected"]:
        return "chosen and rejected say the same"
    return ""


def _turns_fault(name: str, turns: Any, *, first: str) -> str:
    if not isinstance(turns, list) or not turns:
        return f"{name} is no list of turns"
    expected = first
    for place, turn in enumerate(turns):
        if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
            return f"a turn of {name} is not role and content"
        if turn["role"] not in ROLES:
            return f"a turn of {name} has an unknown role (allowed: {', '.join(ROLES)})"
        if not isinstance(turn["content"], str):
            return f"a turn of {name} has a content that is no text"
        if turn["role"] == "system":
            if place or first == "assistant":
                return f"{name} has a system turn that is not the first"
            continue
        if turn["role"] != expected:
            return f"the turns of {name} do not alternate, beginning with {first}"
        expected = "assistant" if expected == "user" else "user"
    return f"{name} holds a system turn alone" if expected == first and turns[-1]["role"] == "system" else ""


class Schema(Check):
    """Counts faults by their words, and rows by kind and by the form of each further field."""

    def __init__(self, config: Any = None, *, examples: int = 5) -> None:
        super().__init__(config, examples=examples)
        self.rows = 0
        self.faults: dict[str, tuple[int, list[str]]] = {}
        self.kinds: dict[str, tuple[int, list[str]]] = {}
        self.forms: dict[str, dict[str, tuple[int, list[str]]]] = {}

    def sound(self, row: Row) -> bool:
        """Count one row; whether other checks can read it."""
        self.rows += 1
        fault = fault_of(row.content)
        if fault:
            self._count(self.faults, fault, row.origin)
            return False
        self._count(self.kinds, row.kind, row.origin)
        for name, value in row.content.items():
            if name not in ("messages", "prompt", "chosen", "rejected", "text") and value is not None and (name in self.forms or len(self.forms) < MAX_KEYS):
                self._count(self.forms.setdefault(name, {}), FORMS.get(type(value), "other"), row.origin)
        return True

    def merge(self, other: Schema, first: int) -> None:
        self.rows += other.rows
        self._add(self.faults, other.faults)
        self._add(self.kinds, other.kinds)
        for name, forms in other.forms.items():
            if name in self.forms or len(self.forms) < MAX_KEYS:
                self._add(self.forms.setdefault(name, {}), forms)

    def findings(self, origins: Lines) -> list[Finding]:
        found = [
            self.found("error", f"{fault}: {rows_said(count)}", count=count, examples=where, mend=MEND)
            for fault, (count, where) in sorted(self.faults.items(), key=lambda item: (-item[1][0], item[0]))
        ]
        if len(self.kinds) > 1:
            told = ", ".join(f"{count:,} of {kind}" for kind, (count, _) in sorted(self.kinds.items(), key=lambda item: -item[1][0]))
            fewest, (count, where) = min(self.kinds.items(), key=lambda item: (item[1][0], item[0]))
            found.append(self.found("error", f"rows of several kinds: {told}", count=count, examples=where, mend=f"prepare rows of {fewest} apart"))
        for name, forms in sorted(self.forms.items()):
            if len(forms) > 1:
                usual = max(forms, key=lambda form: (forms[form][0], form))
                for form, (count, where) in sorted(forms.items()):
                    if form != usual:
                        message = f"field {name} is {form} in {rows_said(count)} and {usual} in {forms[usual][0]:,}"
                        found.append(self.found("warning", message, count=count, examples=where, mend=f"write {name} in one form"))
        return found

    def sections(self, folder: Any) -> list[Section]:
        rows = [(kind, count) for kind, (count, _) in sorted(self.kinds.items())]
        bad = sum(count for count, _ in self.faults.values())
        return [Section("Rows by kind", ("kind", "rows"), [*rows, *([("of no kind", bad)] if bad else [])])]

    def metrics(self) -> dict[str, float]:
        return {"rows_schema_faults": float(sum(count for count, _ in self.faults.values()))}

    def _count(self, table: dict[str, tuple[int, list[str]]], key: str, origin: str) -> None:
        count, where = table.get(key, (0, []))
        table[key] = (count + 1, where if len(where) >= self.examples else [*where, origin])

    def _add(self, table: dict[str, tuple[int, list[str]]], other: dict[str, tuple[int, list[str]]]) -> None:
        for key, (more, origins) in other.items():
            count, where = table.get(key, (0, []))
            table[key] = (count + more, [*where, *origins][: self.examples])
