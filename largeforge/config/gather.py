"""Files and words -> one `Composition`: Hydra says which files and in which order, here they are merged as plain values.

Order, later wins: conf/config.yaml, task, the task's choices, recipe, environment, command line. Nothing the user mistook
raises here: it is noted, and a likely value stands in. Knows nothing about types.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from largeforge.config.command_line import SHORT, Flags, Setting, read_setting
from largeforge.config.composition import Composition, Setter
from largeforge.config.finding import COMMAND_LINE, Finding
from largeforge.config.hydra_seam import CompositionFault, Loaded, Order, order_files
from largeforge.config.nearest import nearest
from largeforge.config.places import SUFFIX, Library, expanded, shown, stands, user_folder
from largeforge.config.refusals import refuse
from largeforge.config.resolve import resolve
from largeforge.config.yaml_file import YamlFile, read_yaml

PATH_CHOICE = {"model": "hf", "data": "chat"}
"""model=<path or org/name> means model=hf model.path=...; data=<path> means data=chat data.path=..., data=<artifact> data=artifact data.path=..."""
SEVERAL = "several"
"""The choice of a group that a list of its other choices means: tracker=[tensorboard,wandb]."""
ROWS_TASKS = ("prepare",)
"""Tasks that read rows of any kind: there data=<path>, an artifact's too, means data=rows data.path=..."""
ARTIFACT_TASKS = ("inspect", "push")
"""Tasks that read an artifact, and nothing else: there data=<path or URL> means data=artifact data.path=..."""


def gather(flags: Flags, *, multirun: bool = False) -> Composition:
    """Compose what can be composed, and note what cannot. Never raises for the user's mistakes.

    Args:
        flags: the command line.
        multirun: sweeps are left out, as if they had not been set.
    """
    return _Gathering(Composition(flags, Library(flags.config_dirs)), multirun).run()


class _Gathering:
    """One composition in the making: files read so far, and who asked for each."""

    def __init__(self, composition: Composition, multirun: bool) -> None:
        self.it = composition
        self.library = composition.library
        self.multirun = multirun
        self.files: dict[str, tuple[YamlFile, dict[str, Any]]] = {}
        self.asked: dict[str, str] = {}
        self.names: dict[Path, str] = {}
        self.given: dict[str, Path] = {}
        self.chosen_by: dict[str, Setting] = {}

    def run(self) -> Composition:
        it = self.it
        for folder in it.flags.config_dirs:
            if not Path(folder).is_dir():
                it.findings.append(Finding("--config-dir", folder, "no such folder", COMMAND_LINE))
        chosen: dict[str, str | None] = {}
        values: list[tuple[list[str], Setting]] = []
        for word in it.flags.words:
            self._read_word(word, chosen, values)
        order = self._order(chosen)
        for layer in order.layers:
            if layer.config_path in self.files:
                file, own = self.files[layer.config_path]
                self._merge(it.values, own, (), file, tuple(layer.package.split(".")) if layer.package else ())
        it.choices = {group: choice for group, choice in order.choices.items() if choice is not None and group != "config"}
        it.recipe = it.choices.get("recipe")
        self._unused(order)
        self._settings_file()
        for name, path, text in _environment():
            self._from_environment(name, path, text)
        for parts, setting in values:
            self._set(parts, setting.value, Setter(setting.value, setting.origin, setting.text, setting.word))
        it.resolved = resolve(it)
        return it

    # ---- words ----

    def _read_word(self, word: str, chosen: dict[str, str | None], values: list[tuple[list[str], Setting]]) -> None:
        it = self.it
        setting = read_setting(word, multirun=it.flags.multirun)
        it.settings.append(setting)
        key = SHORT.get(setting.key, setting.key) if not isinstance(setting.value, dict) else setting.key
        group, _, package = key.partition("@")
        if setting.text is None and setting.sign != "~":
            near = nearest(word, [f"task={task}" for task in self.library.choices("task")]) or next(
                (f"task={task}" for task in self.library.choices("task") if task == word), None
            )
            it.findings.append(Finding(word, "", f"no setting: write key=value{f'; nearest: {near}' if near else ''}", COMMAND_LINE, near or "", word))
        elif setting.sign == "~":
            why = f"a group cannot be removed; {'choose none' if 'none' in self.library.choices(key) else 'choose another'}"
            it.findings.append(
                Finding(word, setting.text or "", why if self.library.is_group(key) else "a key cannot be removed; give it a value", COMMAND_LINE, "", word)
            )
        elif key.split(".")[0] == "hydra" or key.startswith("hydra/"):
            if not self.multirun and not it.flags.multirun:
                it.findings.append(Finding(key, setting.text, "Hydra's own settings matter only to sweeps: add -m", COMMAND_LINE, "", word))
        elif not re.fullmatch(r"[A-Za-z_][\w./@-]*(?:\[\d+\][\w./@-]*)*", key):
            it.findings.append(Finding(key, setting.text, "no such key", COMMAND_LINE, "", word))
        elif setting.sweep is not None and self.multirun:
            return
        elif self.library.is_group(group) and not isinstance(setting.value, dict):
            self._choose(key, group, package, setting, chosen, values)
        else:
            values.append(([part for part in re.split(r"[.\[\]]+", key) if part], setting))

    def _choose(self, key: str, group: str, package: str, setting: Setting, chosen: dict[str, str | None], values: list[tuple[list[str], Setting]]) -> None:
        text = setting.text or ""
        name = setting.value if isinstance(setting.value, str) else text
        self.chosen_by[key] = setting
        known = self.library.choices(group)
        if SEVERAL in known and not package:
            # a list is taken whole: one of a recipe is not mixed into that of the command line
            chosen.update({f"{group}@{group}.{one}": None for one in known})
        if isinstance(setting.value, list) and SEVERAL in known and not package:
            chosen[key] = SEVERAL
            for one in self._listed(group, setting, known):
                chosen[f"{group}@{group}.{one}"] = one
            return
        if setting.value is None or isinstance(setting.value, list) or not text:
            if group == "recipe" and setting.value is None:
                chosen[key] = None
                return
            self.it.findings.append(Finding(key, text, f"one of: {', '.join(known)}", setting.origin, "", setting.word))
            return
        is_path = name not in known and self.library.file_of(f"{group}/{name}") is None
        if group in PATH_CHOICE and is_path and ("/" in name or stands(Path(name))):
            chosen[key] = self._choice_of_path(group, name)
            target = package or group
            values.append(([target, "path"], Setting(setting.word, f"{target}.path", "", text, name, origin=setting.origin)))
        elif group == "recipe" and name.endswith(SUFFIX) and stands(expanded(name)):
            path = expanded(name)
            chosen[key] = path.stem
            self.given[f"recipe/{path.stem}"] = path
        elif not re.fullmatch(r"\w[\w.+-]*(?:/\w[\w.+-]*)*", name):
            self._stand_in(f"{group}/{name}")
        else:
            chosen[key] = name

    def _listed(self, group: str, setting: Setting, known: list[str]) -> list[str]:
        """The choices of a list, each once; an unknown one is told, and its nearest stands in."""
        single = [choice for choice in known if choice not in (SEVERAL, "none")]
        names = [str(name) for name in setting.value]
        wrong = [name for name in dict.fromkeys(names) if name not in single]
        found = [name if name in single else nearest(name, single) for name in names]
        sound = list(dict.fromkeys(name for name in found if name is not None))
        for name in wrong:
            near = nearest(name, single)
            told = f"{name} is no such choice; one of: {', '.join(single)}{f'; nearest: {near}' if near else ''}"
            self.it.findings.append(Finding(group, setting.text or "", told, setting.origin, f"{group}=[{','.join(sound)}]" if sound else "", setting.word))
        if not names:
            self.it.findings.append(Finding(group, "[]", f"a list of: {', '.join(single)}; or none", setting.origin, f"{group}=none", setting.word))
        return sound

    def _choice_of_path(self, group: str, path: str) -> str:
        if group == "data" and any(word == f"task={task}" for task in ROWS_TASKS for word in self.it.flags.words):
            return "rows"
        of_artifacts = any(word == f"task={task}" for task in ARTIFACT_TASKS for word in self.it.flags.words)
        if group == "data" and (of_artifacts or stands(expanded(path) / "manifest.json")):
            return "artifact"
        return PATH_CHOICE[group]

    # ---- files ----

    def _order(self, chosen: dict[str, str | None]) -> Order:
        try:
            return order_files(chosen, load=self._load, is_group=self.library.is_group)
        except CompositionFault as fault:
            recipe = chosen.get("recipe")
            reason = "it extends itself" if isinstance(fault, RecursionError) else str(fault).strip().splitlines()[0]
            culprit = self.given.get(f"recipe/{recipe}") or self.library.file_of(f"recipe/{recipe}") if recipe else None
            word = self.chosen_by["recipe"].word if "recipe" in self.chosen_by else ""
            self.it.findings.append(
                Finding(
                    "recipe" if culprit else "defaults",
                    recipe or "",
                    f"its defaults cannot be unfolded: {reason}",
                    shown(culprit) if culprit else COMMAND_LINE,
                    "",
                    word,
                )
            )
            self.it.unsound.add("")
            rest = {key: value for key, value in chosen.items() if key == "task"}
            try:
                return order_files(rest, load=self._load, is_group=self.library.is_group)
            except CompositionFault:
                return Order([], {}, {})

    def _load(self, config_path: str) -> Loaded | None:
        """Load a file; the nearest choice for an unknown one, nothing for broken YAML, and note both."""
        if config_path.endswith("/None"):
            return None  # Hydra asks for the header of `recipe: null` before it sees that nothing is chosen
        path = self.given.get(config_path) or self.library.file_of(config_path) or self._beside_given(config_path)
        if path is None:
            return self._stand_in(config_path)
        file = read_yaml(path)
        recipe = config_path.startswith("recipe/")
        if file.broken is not None:
            broken = file.broken
            self.it.findings.append(Finding(config_path, "broken YAML", broken.message, f"{shown(path)}:{broken.line}:{broken.column}"))
            self.it.unsound.add("" if recipe else config_path.rpartition("/")[0].replace("/", "."))
            return Loaded("_global_" if recipe or config_path.startswith("task/") else None, [])
        if self.library.is_shipped(path):
            own = {key: value for key, value in file.values.items() if key != "defaults"}
            defaults = file.values.get("defaults", [])
            package: str | None = file.header.get("package", (None, 0))[0]
        else:
            own, defaults, refused = refuse(file, recipe=recipe, root=recipe or config_path.startswith("task/"))
            own = copy.deepcopy(own)
            self.it.findings.extend(refused)
            package = "_global_" if recipe or config_path.startswith("task/") else None
            defaults = [item for item in defaults if not self._extends_itself(item, config_path, file)]
        self.files[config_path] = (file, own)
        self._note_asked(file, config_path)
        return Loaded(package, defaults)

    def _beside_given(self, config_path: str) -> Path | None:
        """A recipe given by path extends its neighbours too."""
        name = config_path.removeprefix("recipe/")
        for path in self.given.values() if name != config_path else ():
            neighbour = path.parent / f"{name}{SUFFIX}"
            if ".." not in name.split("/") and stands(neighbour):
                return neighbour
        return None

    def _stand_in(self, config_path: str) -> Loaded | None:
        """Tell of a choice that there is not, and load the nearest."""
        groups = [group for group in self.library.groups() if config_path.startswith(f"{group}/")]
        group = max(groups, key=len, default=config_path.partition("/")[0])
        name = config_path[len(group) + 1 :]
        if not self.library.is_group(group) or name == "???":
            where = self.asked.get(config_path, COMMAND_LINE)
            self.it.findings.append(Finding("defaults", config_path, "no such file", where))
            return Loaded("_global_", [])
        known = self.library.choices(group)
        near = nearest(name, known)
        setting = self.chosen_by.get(group)
        by_command = setting is not None and (setting.text or "") == name
        origin = setting.origin if by_command and setting else self.asked.get(config_path, COMMAND_LINE)
        allowed = f"no such choice; nearest: {near}" if near else f"one of: {', '.join(known) or 'nothing yet'}"
        if near and len(known) <= 4:
            allowed = f"no such {'recipe' if group == 'recipe' else 'choice'}; one of: {', '.join(known)}; nearest: {near}"
        self.it.findings.append(Finding(group, name, allowed, origin, f"{group}={near}" if near else "", setting.word if by_command and setting else ""))
        if near is None:
            self.it.unsound.add("" if group in {"task", "recipe"} else group.replace("/", "."))
            return Loaded("_global_" if group in {"task", "recipe"} else None, [])
        loaded = self._load(f"{group}/{near}")
        if f"{group}/{near}" in self.files:
            self.files[config_path] = self.files[f"{group}/{near}"]
        return loaded

    def _note_asked(self, file: YamlFile, config_path: str) -> None:
        folder = config_path.rpartition("/")[0]
        raw = file.values.get("defaults", [])
        for position, item in enumerate(raw if isinstance(raw, list) else []):
            line = f"{shown(file.path)}:{file.lines.get(('defaults', str(position)), 1)}"
            if isinstance(item, str):
                self.asked.setdefault(item.lstrip("/") if item.startswith("/") or not folder else f"{folder}/{item}", line)
            elif isinstance(item, dict):
                for key, choice in item.items():
                    group = str(key).split(" ")[-1].lstrip("/").partition("@")[0]
                    self.asked.setdefault(f"{group}/{choice}", line)
                    self.asked.setdefault(group, line)

    def _extends_itself(self, item: Any, config_path: str, file: YamlFile) -> bool:
        """True where a chain of extended files comes back to where it began."""
        if not isinstance(item, str) or item == "_self_":
            return False
        folder = config_path.rpartition("/")[0]
        seen: set[str] = set()
        open_paths = [_absolute(item, folder)]
        while open_paths:
            path = open_paths.pop()
            if path == config_path:
                self.it.findings.append(Finding("defaults", item, "it extends itself", f"{shown(file.path)}:{file.lines.get(('defaults',), 1)}"))
                return True
            found = self.library.file_of(path) or self._beside_given(path)
            if path in seen or found is None:
                continue
            seen.add(path)
            parents = read_yaml(found).values.get("defaults", [])
            for parent in parents if isinstance(parents, list) else []:
                if isinstance(parent, dict) and len(parent) == 1:
                    (key, choice), *_ = parent.items()
                    parent = f"/recipe/{choice}" if str(key).split(" ")[-1].lstrip("/") == "recipe" else "_self_"
                if isinstance(parent, str) and parent != "_self_":
                    open_paths.append(_absolute(parent, path.rpartition("/")[0]))
        return False

    def _unused(self, order: Order) -> None:
        """Tell of choices for groups that this task does not have; a shipped choice may make them, for tasks that have."""
        it = self.it
        task = it.choices.get("task")
        has = [group for group in order.choices if group not in {"task", "recipe"}]
        for key, (choice, container) in order.unused.items():
            if container is not None and not container.startswith("recipe/"):
                continue
            if "@" in key and SEVERAL in self.library.choices(key.partition("@")[0]):
                continue  # a list that another choice took the place of
            setting = self.chosen_by.get(key)
            if task is None or (setting is None and container is None):
                continue
            origin = setting.origin if setting else self.asked.get(f"{key}/{choice}", COMMAND_LINE)
            why = f"task={task} has no {key}; it has: {', '.join(has)}"
            it.findings.append(Finding(key, choice, why, origin, "", setting.word if setting else ""))
            it.unsound.add(key)

    # ---- values ----

    def _merge(self, into: dict[str, Any], values: dict[str, Any], path: tuple[str, ...], file: YamlFile, package: tuple[str, ...]) -> None:
        if package:
            head, *rest = package
            if not isinstance(into.get(head), dict):
                into[head] = {}
            self._merge_at(into[head], values, path, file, (head,), tuple(rest))
        else:
            self._merge_at(into, values, path, file, (), ())

    def _merge_at(
        self, into: dict[str, Any], values: dict[str, Any], path: tuple[str, ...], file: YamlFile, prefix: tuple[str, ...], package: tuple[str, ...]
    ) -> None:
        for head in package:
            prefix = (*prefix, head)
            if not isinstance(into.get(head), dict):
                into[head] = {}
            into = into[head]
        for key, value in values.items():
            word = str(key)
            here, there = (*path, word), (*prefix, word)
            if isinstance(value, dict):
                if not isinstance(into.get(word), dict):
                    into[word] = {}
                    self._note(there, {}, here, file)
                self._merge_at(into[word], value, here, file, there, ())
            elif value == "???" and into.get(word, "???") != "???":
                continue
            else:
                into[word] = copy.deepcopy(value)
                self._note(there, value, here, file)

    def _note(self, there: tuple[str, ...], value: Any, here: tuple[str, ...], file: YamlFile) -> None:
        if file.path not in self.names:
            self.names[file.path] = shown(file.path)
        origin = f"{self.names[file.path]}:{file.lines.get(here, 1)}"
        self.it.setters.setdefault(".".join(there), []).append(Setter(value, origin, file.texts.get(here), comment=file.comment(here)))

    def _settings_file(self) -> None:
        path = user_folder() / "settings.yaml"
        if not path.is_file():
            return
        file = read_yaml(path)
        if file.broken:
            self.it.findings.append(Finding("settings.yaml", "broken YAML", file.broken.message, f"{shown(path)}:{file.broken.line}:{file.broken.column}"))
        for key, value in file.values.items():
            if key == "trust":
                self._set(["trust"], value, Setter(value, f"{shown(path)}:{file.lines[('trust',)]}"))
            else:
                self.it.findings.append(Finding(str(key), value, "settings.yaml knows one key: trust", f"{shown(path)}:{file.lines.get((str(key),), 1)}"))

    def _from_environment(self, name: str, parts: list[str], text: str) -> None:
        it = self.it
        group = parts[0]
        if group not in it.values or not self.library.is_group(group):
            if not self.library.is_group(group):
                near = nearest(group, self.library.groups())
                near_name = "LARGEFORGE_" + "__".join([near or "", *parts[1:]]).upper() if near else ""
                it.findings.append(Finding(".".join(parts), text, f"no such group{f'; nearest: {near_name}' if near_name else ''}; unset {name}", name))
            return
        setting = read_setting(f"{'.'.join(parts)}={text}", multirun=False, origin=name)
        self._set(parts, setting.value, Setter(setting.value, name, text))

    def _set(self, parts: list[str], value: Any, setter: Setter) -> None:
        node: Any = self.it.values
        for position, part in enumerate(parts[:-1]):
            if isinstance(node, list):
                if not (part.isdigit() and int(part) < len(node)):
                    self.it.findings.append(Finding(".".join(parts), value, f"a position below {len(node)}", setter.origin, "", setter.word))
                    return
                node = node[int(part)]
                continue
            child = node.get(part)
            if not isinstance(child, (dict, list)):
                child = node[part] = {}
                self.it.setters.setdefault(".".join(parts[: position + 1]), []).append(setter)
            node = child
        last = parts[-1]
        self.it.setters.setdefault(".".join(parts), []).append(setter)
        if isinstance(node, list):
            if last.isdigit() and int(last) < len(node):
                node[int(last)] = value
            else:
                self.it.findings.append(Finding(".".join(parts), value, f"a position below {len(node)}", setter.origin, "", setter.word))
        elif isinstance(value, dict) and isinstance(node.get(last), dict):
            for key, child in value.items():
                self._set([*parts, str(key)], child, Setter(child, setter.origin, None, setter.word))
        else:
            node[last] = copy.deepcopy(value)


def _absolute(item: str, folder: str) -> str:
    return item.lstrip("/") if item.startswith("/") else f"{folder}/{item}"


def _environment() -> Iterator[tuple[str, list[str], str]]:
    """Yield LARGEFORGE_<GROUP>__<KEY>: name, path, text."""
    for name in sorted(os.environ):
        inner = name.removeprefix("LARGEFORGE_")
        if inner != name and "__" in inner.strip("_"):
            yield name, [part.lower() for part in inner.split("__")], os.environ[name]
