"""Every problem of a composed config in one pass: a pure function of what was composed.

Follows `_target_` to a typed config by name alone (law 2), refuses what may not be built (law 4). Imports no part and
nothing heavy.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr, ValidationError

from largeforge.config.combinations import File, problems_of
from largeforge.config.fields import Key, RefusedTarget, config_class, group_of, is_secret, keys_of, members, part_class, typed_member
from largeforge.config.finding import Finding, show
from largeforge.config.gather import PATH_CHOICE
from largeforge.config.masking import MASK, hide, plain
from largeforge.config.nearest import nearest, nearest_key
from largeforge.config.typed import PartConfig, Typed
from largeforge.config.yaml_file import target_of
from largeforge.task.config import RootConfig

if TYPE_CHECKING:
    from largeforge.config.composition import Composition, Setter


def check(composition: Composition, *, files: bool = False) -> tuple[RootConfig | None, dict[str, Any], list[Finding]]:
    """Type a composed config.

    Args:
        composition: what was composed, with what was found on the way.
        files: also look whether the files that the config names are there.

    Returns:
        the typed root (None where something is wrong), its plain values with secrets masked, every finding.
    """
    return _Check(composition, files).run()


def key_table(composition: Composition) -> dict[str, Key]:
    """Return every key of a composed config: what help and completion show."""
    checking = _Check(composition, False)
    checking.run()
    return checking.keys


def secrets_of(composition: Composition) -> set[str]:
    """Return the texts of every secret in a composed config, whether it passes the check or not."""
    found: set[str] = set()
    for path, key in (composition.keys or key_table(composition)).items():
        if is_secret(key.kind):
            found |= {str(one.value) for one in composition.setters.get(path, []) if one.value not in (None, "", "???")}
    return found


class _Check:
    """One pass over one composition."""

    def __init__(self, composition: Composition, files: bool) -> None:
        self.it = composition
        self.files = files
        self.findings: list[Finding] = list(composition.findings)
        self.unsound: set[str] = set(composition.unsound)
        self.failed: set[str] = set()
        self.parts: dict[str, type[PartConfig]] = {}
        self.keys: dict[str, Key] = {}
        trust = composition.resolved.get("trust")
        self.trust = [name for name in trust if isinstance(name, str)] if isinstance(trust, list) else []

    def run(self) -> tuple[RootConfig | None, dict[str, Any], list[Finding]]:
        values = self.it.resolved
        if self.it.flags.trial:
            self._let_go(values)
        root = self._root()
        self._find_parts(root, values, "")
        self.keys = {key.path: key for key in keys_of(root, parts=self.parts)}
        self.it.keys = self.keys
        self._as_text(values)
        self._missing(values, ())
        config = self._parse(root, values, "")
        meant = {finding.mend.partition("=")[0] for finding in self.findings if finding.mend and finding.value != "???"}
        self.findings = [finding for finding in self.findings if finding.value != "???" or finding.key not in meant]
        stood_in = set(self.parts) - self.unsound  # an unknown choice is told; its nearest is checked like any other
        bad = ({finding.key for finding in self.findings} - stood_in) | self.unsound
        self.findings.extend(
            problems_of(values, bad=bad, origin=self.it.origin, setter=self.it.setter, files=File() if self.files else None, users=self.it.users_keys)
        )
        if self.findings or not isinstance(config, RootConfig):
            return None, {}, self.findings
        return config, self._plain_masked(config), []

    def _let_go(self, values: dict[str, Any]) -> None:
        """Drop what a recipe says of a part that a trial goes without."""
        for group, choice in self.it.choices.items():
            if choice == "none" and isinstance(values.get(group), dict):
                values[group] = {"_target_": values[group].get("_target_")}

    # ---- what types what ----

    def _root(self) -> type[RootConfig]:
        tasks = self.it.library.choices("task")
        if "task" not in self.it.choices:
            if not any(finding.key == "task" for finding in self.findings):
                self.findings.append(Finding("task", None, f"what shall be done? one of: {', '.join(tasks)}", "command line", "task=sft"))
            self.unsound.update({"task", ""})
            return RootConfig
        node = self.it.resolved.get("task")
        if "task" in self.unsound and not isinstance(node, dict):
            return RootConfig
        target = node.get("_target_") if isinstance(node, dict) else None
        try:
            found = config_class(target, base=RootConfig, package="largeforge.task", trust=self.trust)
        except RefusedTarget as refusal:
            self.findings.append(Finding("task._target_", target, str(refusal), self.it.origin("task._target_"), "", self._word("task._target_")))
            self.unsound.update({"task", ""})
            return RootConfig
        assert issubclass(found, RootConfig)
        return found

    def _find_parts(self, cls: type[Typed], values: Any, prefix: str) -> None:
        """Find the class of every choice in use, and refuse targets that may not be built."""
        for name, info in cls.model_fields.items():
            path = f"{prefix}{name}"
            node = values.get(name) if isinstance(values, dict) else None
            base = part_class(info)
            if base is None or path == "task":
                nested = typed_member(info.annotation) if base is None else None
                if nested is not None:
                    self._find_parts(nested, node, f"{path}.")
                continue
            self.parts[path] = base
            if path in self.unsound or (node is None and type(None) in members(info.annotation)):
                self.unsound.add(path) if path in self.unsound else None
                continue
            if not isinstance(node, dict) or "_target_" not in node:
                if not (isinstance(node, dict) and any(finding.key == path for finding in self.findings)):
                    group = group_of(base).removeprefix("largeforge.").replace(".", "/")
                    said = f"one of: {', '.join(self.it.library.choices(group))}"
                    self.findings.append(Finding(path, node, said, self.it.origin(path), "", self._word(path)))
                self.unsound.add(path)
                continue
            try:
                found = config_class(node["_target_"], base=base, package=group_of(base), trust=self.trust)
            except RefusedTarget as refusal:
                place = f"{path}._target_"
                told = self._of_another_task(path, base, node["_target_"])
                self.findings.append(told or Finding(place, node["_target_"], str(refusal), self.it.origin(place), "", self._word(place)))
                self.unsound.add(path)
                continue
            assert issubclass(found, PartConfig)
            self.parts[path] = found
            self._find_parts(found, node, f"{path}.")

    def _of_another_task(self, path: str, base: type[PartConfig], target: Any) -> Finding | None:
        """What to say about a choice that ships with LargeForge, but that this task has no use for: data=text with task=sft."""
        folder = group_of(base).removeprefix("largeforge.").replace(".", "/")
        targets = {choice: target_of(self.it.library.file_of(f"{folder}/{choice}")) for choice in self.it.library.choices(folder)}
        choice = self.it.choices.get(path)
        if choice is None or targets.get(choice) != target:
            return None
        useful = []
        sound = False
        for other, its_target in targets.items():
            try:
                cls = config_class(its_target, base=PartConfig, package=group_of(base), trust=self.trust)
            except RefusedTarget:
                continue
            sound = sound or other == choice
            useful += [other] if issubclass(cls, base) else []
        if not sound or not useful or choice in useful:
            return None
        task = self.it.choices.get("task")
        setter = next((one for one in (self.it.setter(f"{path}._target_"), self.it.setter(path)) if one and one.word), None)
        return Finding(path, choice, f"task={task} takes one of: {', '.join(useful)}", self.it.origin(f"{path}._target_"), "", setter.word if setter else "")

    # ---- values ----

    def _as_text(self, values: dict[str, Any]) -> None:
        """Give text fields what was written: `revision=1e5` and `name: 2024` are text, not numbers."""
        for key in self.keys.values():
            kinds = members(key.kind)
            if str not in kinds and SecretStr not in kinds:
                continue
            node: Any = values
            *above, last = key.path.split(".")
            for part in above:
                node = node.get(part) if isinstance(node, dict) else None
            setter = self.it.setters.get(key.path, [None])[-1]
            if not isinstance(node, dict) or last not in node or setter is None or setter.text is None:
                continue
            value = node[last]
            if "${" in setter.text:
                if isinstance(value, (int, float)) and not {bool, int, float} & set(kinds):
                    node[last] = str(value)
                continue
            if isinstance(value, bool):
                written = bool not in kinds
            elif isinstance(value, (int, float)):
                written = not ({int, float} & set(kinds))
            elif isinstance(value, (list, dict)):
                written = bool(setter.word) and set(kinds) <= {str, SecretStr, type(None)}
            else:
                written = isinstance(value, str) and bool(setter.word) and setter.text[:1] not in {"'", '"'}
            if written:
                node[last] = setter.text

    def _missing(self, node: Any, path: tuple[str, ...]) -> None:
        """Tell every `???` and take it out, so that its type is not told as well."""
        for key, value in list(node.items()):
            here = (*path, str(key))
            dotted = ".".join(here)
            if isinstance(value, dict):
                self._missing(value, here)
            elif value == "???":
                del node[key]
                self.unsound.add(dotted)
                if any(above in self.unsound for above in _ancestors(dotted)):
                    continue
                known = self.keys.get(dotted)
                said = f"must be given: {known.description}" if known else "must be given"
                placeholder = "<a file>" if key == "path" else f"<{key}>"
                self.findings.append(Finding(dotted, "???", said, self.it.origin(dotted), f"{dotted}={placeholder}", self._word(dotted)))

    def _parse(self, cls: type[Typed], values: dict[str, Any], prefix: str) -> Typed | None:
        """Parse one node: its parts first, each by its own class, then the node itself around them."""
        given = dict(values)
        for name, info in cls.model_fields.items():
            path = f"{prefix}{name}"
            if part_class(info) is None or path == "task" or name not in given:
                continue
            node = given[name]
            if path in self.unsound:
                del given[name]
            elif isinstance(node, dict):
                part = self._parse(self.parts[path], node, f"{path}.")
                if part is None:
                    del given[name]
                    self.failed.add(path)
                else:
                    given[name] = part
        try:
            return cls.model_validate(given)
        except ValidationError as fault:
            told: set[str] = set()
            for error in fault.errors(include_url=False):
                self._tell(error, values, prefix, told)
            return None

    def _tell(self, error: Any, values: dict[str, Any], prefix: str, told: set[str]) -> None:
        kind = error["type"]
        loc = list(error["loc"])
        parts: list[str] = []
        node: Any = values
        for position, part in enumerate(loc):
            if isinstance(node, dict) and part in node or isinstance(node, list) and isinstance(part, int) and part < len(node):
                node = node[part]
            elif not (kind == "missing" and position == len(loc) - 1):
                continue
            parts.append(str(part))
        path = prefix + ".".join(parts)
        if kind == "extra_forbidden":
            for leaf, value in _below(path, node):
                if leaf not in told:
                    told.add(leaf)
                    self._unknown(leaf, value)
            return
        while path not in self.keys and "." in path and not path.endswith("_target_"):
            path = path.rpartition(".")[0]
        if path in told:
            return
        told.add(path)
        if kind == "missing":
            self._absent(path)
        else:
            self._invalid(path, self._value(values, prefix, path))

    @staticmethod
    def _value(values: dict[str, Any], prefix: str, path: str) -> Any:
        node: Any = values
        for part in path[len(prefix) :].split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    def _absent(self, path: str) -> None:
        """A key that no YAML gives: a part failed, the choice misses it, or its group was left out."""
        sound = not any(above == path or path.startswith(f"{above}.") or above == "" for above in self.unsound | self.failed)
        if sound:
            key = self.keys.get(path)
            said = f"missing: {key.allowed}" if key else "missing"
            self.findings.append(Finding(path, None, said, self.it.origin(path), f"{path}=<{path.rpartition('.')[2]}>"))

    def _unknown(self, path: str, value: Any) -> None:
        setter = self.it.setter(path)
        origin = setter.origin if setter else "command line"
        word = setter.word if setter else ""
        head = path.partition(".")[0]
        task = self.it.choices.get("task")
        library = self.it.library
        if head in self.unsound or ("" in self.unsound and head not in self.keys and library.is_group(head)):
            return
        several = any(key.startswith(f"{head}s.") for key in self.keys)  # guards.rate is of the group guard: the nearest key is told
        if head not in self.keys and library.is_group(head) and task and not several:
            has = [key for key, known in self.keys.items() if known.part and "." not in key and key != "task"]
            self.findings.append(Finding(path, value, f"task={task} has no {head}; it has: {', '.join(has)}", origin, "", word))
            return
        if "" in self.unsound and task is None and head not in self.keys and nearest_key(path, self._any_task()) is None:
            return
        other = self._other_choice(path)
        if other is not None:
            group, choice = other
            leaf = path[len(group) + 1 :]
            now = self.it.choices.get(group)
            self.findings.append(
                Finding(path, value, f"{group}={now} has no {leaf}, {group}={choice} has: add {group}={choice}", origin, f"{group}={choice}" if word else "")
            )
            return
        candidates = [key for key, known in self.keys.items() if known.part is None or isinstance(value, (str, dict))]
        near = nearest_key(path, candidates)
        if near is None:
            elsewhere = {f"{group}.{leaf}": (group, choice) for group in self.parts for choice, names in self._choices_of(group).items() for leaf in names}
            near_other = nearest_key(path, elsewhere)
            if near_other is not None:
                group, choice = elsewhere[near_other]
                said = f"no such key; nearest: {near_other}, which {group}={choice} has"
                self.findings.append(Finding(path, value, said, origin, f"{group}={choice}" if word else "", ""))
                if word:
                    self.findings[-1] = Finding(path, value, said, origin, f"{near_other}={show(value)}", word)
                return
            siblings = [key.rpartition(".")[2] for key in self.keys if key.rpartition(".")[0] == path.rpartition(".")[0]]
            said = f"no such key; {path.rpartition('.')[0] or 'the root'} has: {', '.join(siblings)}" if siblings else "no such key"
            self.findings.append(Finding(path, value, said, origin, "", word))
            return
        text = show(value) if not isinstance(value, str) else value
        mend = f"{near}={text}" if word and near not in {key.partition("=")[0] for key in self.it.flags.words} else ""
        secret = is_secret(self.keys[near].kind)
        self.findings.append(Finding(path, MASK if secret else value, f"no such key; nearest: {near}", origin, "" if secret else mend, word))

    def _any_task(self) -> list[str]:
        return list(self.keys)

    def _invalid(self, path: str, value: Any) -> None:
        key = self.keys.get(path)
        setter = self.it.setter(path)
        origin = setter.origin if setter else "command line"
        word = setter.word if setter else ""
        if key is None:
            self.findings.append(Finding(path, value, "not allowed here", origin, "", word))
            return
        said = key.allowed
        if setter is not None and word and isinstance(value, str) and "," in value and not self.it.flags.multirun:
            said += " (several values make a sweep: add -m)"
        if isinstance(value, dict) and key.part is None and typed_member(key.kind) is None:
            said += ", not keys below it"
        mend = self._mend(key, path, value, setter)
        self.findings.append(Finding(path, MASK if is_secret(key.kind) else value, said, origin, mend, word if mend else ""))

    def _mend(self, key: Key, path: str, value: Any, setter: Setter | None) -> str:
        """Return the setting that would be right: the nearest literal, the bound, else the value it had before."""
        words = key.literals
        if isinstance(value, str) and words and (near := nearest(value, words)):
            return f"{path}={near}"
        if isinstance(value, float) and value.is_integer() and int in members(key.kind):
            return f"{path}={int(value)}"
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            for item in key.metadata:
                low, high = getattr(item, "ge", None), getattr(item, "le", None)
                if low is not None and value < low:
                    return f"{path}={low:g}"
                if high is not None and value > high:
                    return f"{path}={high:g}"
        before = [one for one in self.it.setters.get(path, []) if setter is None or one is not setter]
        if before and before[-1].value != "???" and not isinstance(before[-1].value, dict):
            return f"{path}={show(before[-1].value)}"
        return f"{path}=<{path.rpartition('.')[2]}>"

    def _other_choice(self, path: str) -> tuple[str, str] | None:
        """Return (group, choice) where another choice of the same group has this key."""
        for group in self.parts:
            if path.startswith(f"{group}."):
                having = [choice for choice, names in self._choices_of(group).items() if path[len(group) + 1 :] in names]
                usual = PATH_CHOICE.get(group)  # what a bare path means, where several choices have one
                if having:
                    return group, usual if usual in having else having[0]
        return None

    def _choices_of(self, group: str) -> dict[str, list[str]]:
        """Return choice -> keys, for the choices of a group that are typed."""
        info = self.keys.get(group)
        base = info.part if info else None
        if base is None:
            return {}
        folder = group_of(base).removeprefix("largeforge.").replace(".", "/")
        found: dict[str, list[str]] = {}
        for choice in self.it.library.choices(folder):
            target = target_of(self.it.library.file_of(f"{folder}/{choice}"))
            try:
                cls = config_class(target, base=base, package=group_of(base), trust=self.trust)
            except RefusedTarget:
                continue
            found[choice] = [key.path for key in keys_of(cls)]
        return found

    def _word(self, path: str) -> str:
        setter = self.it.setter(path)
        return setter.word if setter else ""

    # ---- what is shown ----

    def _plain_masked(self, config: RootConfig) -> dict[str, Any]:
        secrets: set[str] = set()
        values = plain(config, secrets=secrets)
        for path, raw in _leaves(self.it.values, ""):
            if isinstance(raw, str) and "${oc." in raw:
                _put(values, path, raw)
        return hide(values, secrets) if secrets else values


def _below(path: str, value: Any) -> list[tuple[str, Any]]:
    """Return the leaves below an unknown key; itself where it is a scalar."""
    if isinstance(value, dict) and value:
        return [pair for key, child in value.items() for pair in _below(f"{path}.{key}", child)]
    return [(path, value)]


def _leaves(value: Any, path: str) -> list[tuple[str, Any]]:
    return [(leaf.removeprefix("."), inner) for leaf, inner in _below(path, value)] if isinstance(value, dict) else [(path, value)]


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    node: Any = values
    *above, last = re.split(r"\.", path)
    for part in above:
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, dict) and last in node:
        node[last] = value


def _ancestors(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
