"""Every touch of `hydra._internal`, in one place: the grammar of values, the order of defaults lists, and sweeps.

Hydra decides which files a config is made of and in which order they win; merging, origins and checking are ours. Knows
nothing about typed configs. tests/config/test_hydra_seam.py pins the private names it relies on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.defaults_list import OverrideMetadata, Overrides, _create_defaults_list
from hydra.core.default_element import ConfigDefault, GroupDefault, InputDefault, ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Quote, QuotedString, ValueType
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

version.setbase("1.3")

CompositionFault = (HydraException, OmegaConfBaseException, ValueError, RecursionError, AssertionError)


# ---- values ----


@dataclass(frozen=True)
class ReadValue:
    """A value as Hydra's grammar reads it, and how it must be written for Hydra to read it again."""

    value: Any
    sweep: tuple[str, ...] | None
    interval: bool
    line: str


def read_value(text: str, *, multirun: bool) -> ReadValue:
    """Read the right side of `key=...`; what the grammar refuses is text."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    quoted = QuotedString(text, Quote.single).with_quotes()
    try:
        override = OverridesParser.create().parse_override(f"key={text}")
    except (HydraException, ValueError):
        return ReadValue(text, None, False, quoted)
    if not override.is_sweep_override():
        value = override.value()
        return ReadValue(value, None, False, quoted if isinstance(value, str) and value == text else text)
    if not multirun:
        return ReadValue(text, None, False, quoted)
    if override.is_discrete_sweep():
        if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
            return ReadValue(text, (), False, text)
        return ReadValue(text, tuple(str(item) for item in override.sweep_string_iterator()), False, text)
    ends = cast(Any, override.value())
    return ReadValue(text, (f"{ends.start}", f"{ends.end}"), True, text)


# ---- the order of files ----


@dataclass(frozen=True)
class Loaded:
    """What the repository gives Hydra of one file: its package and its defaults list; the values stay with us."""

    package: str | None
    defaults: list[Any]


@dataclass(frozen=True)
class Layer:
    """One file in the order that files win, later over earlier.

    Args:
        config_path: "model/nano", "recipe/x", "config".
        package: where it stands in the config; "" is the root.
    """

    config_path: str
    package: str


@dataclass(frozen=True)
class Order:
    """The files of one config.

    Args:
        choices: group -> choice, for every group in use; "model@teacher" where a group is used twice.
        unused: group -> (choice, the file that asked for it; None is the command line) for groups the task does not have.
    """

    layers: list[Layer]
    choices: dict[str, str | None]
    unused: dict[str, tuple[str, str | None]]


class _Choices(Overrides):
    """Hydra's table of chosen choices, filled from plain values."""

    def __init__(self, chosen: Mapping[str, str | None]) -> None:
        self.override_choices = dict(chosen)
        self.override_metadata = {key: OverrideMetadata(external_override=True) for key in chosen}
        self.append_group_defaults = []
        self.config_overrides = []
        self.deletions = {}
        self.known_choices = {}
        self.known_choices_per_group = {}

    def add_override(self, parent_config_path: str, default: GroupDefault) -> None:
        """Take `override /benchmark: x` of conf/data/demo.yaml as the root's group, not as one below `data`."""
        key = default.get_override_key() if default.package is not None else default.get_group_path()
        if key not in self.override_choices:
            self.override_choices[key] = default.value
            self.override_metadata[key] = OverrideMetadata(
                external_override=False, containing_config_path=parent_config_path, relative_key=default.get_relative_override_key()
            )


class _Repository(IConfigRepository):
    """Answers Hydra from a function, so that unknown and broken files are ours to tell."""

    def __init__(self, load: Callable[[str], Loaded | None], is_group: Callable[[str], bool]) -> None:
        self._load = load
        self._is_group = is_group
        self._cache: dict[str, ConfigResult | None] = {}
        self._nothing = OmegaConf.create({})

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path not in self._cache:
            loaded = self._load(config_path)
            if loaded is None:
                self._cache[config_path] = None
            else:
                result = ConfigResult("largeforge", config_path, self._nothing, {"package": loaded.package})
                result.defaults_list = [_default(item, config_path) for item in loaded.defaults]
                self._cache[config_path] = result
        return self._cache[config_path]

    def group_exists(self, config_path: str) -> bool:
        return self._is_group(config_path)

    def config_exists(self, config_path: str) -> bool:
        return self.load_config(config_path) is not None

    def get_group_options(self, group_name: str, results_filter: ObjectType | None = ObjectType.CONFIG) -> list[str]:
        return []

    def get_sources(self) -> list[ConfigSource]:
        return []

    def get_schema_source(self) -> ConfigSource:
        raise NotImplementedError("values are merged by LargeForge, which has no schema source")

    def initialize_sources(self, config_search_path: Any) -> None:
        raise NotImplementedError("files are found by LargeForge")


def _default(item: Any, config_path: str) -> InputDefault:
    """Read one item of a defaults list: "hf", "/recipe/base", {"override /model@teacher": "nano"}."""
    if isinstance(item, str):
        path, _, package = item.partition("@")
        return ConfigDefault(path=path, package=package or None)
    if not isinstance(item, dict) or len(item) != 1:
        raise ValueError(f"In {config_path}: an item of defaults is one group and its choice, not {item}")
    (key, choice), *_ = item.items()
    *keywords, group = str(key).split(" ")
    group, _, package = group.partition("@")
    if not (choice is None or isinstance(choice, str)):
        raise ValueError(f"In {config_path}: the choice of {group} is one name, not {choice}")
    return GroupDefault(group=group, value=choice, package=package or None, optional="optional" in keywords, override="override" in keywords)


def order_files(chosen: Mapping[str, str | None], *, load: Callable[[str], Loaded | None], is_group: Callable[[str], bool]) -> Order:
    """Let Hydra unfold the root's defaults list.

    Args:
        chosen: group -> choice, as the command line says.
        load: "model/nano" -> what the file says; None where there is no such file and none to stand in for it.
        is_group: whether a word is a group.

    The same choices over the same files are unfolded once in a process: the files are asked for again, and compared.

    Raises:
        one of CompositionFault: a defaults list that Hydra cannot unfold.
    """
    key = tuple(chosen.items())
    loads, order = _unfolded.get(key, ({}, None))
    again: dict[str, Loaded | None] = {}
    for path, before in loads.items():  # as they were asked for: up to the first that changed, each is a part of this config too
        again[path] = load(path)
        if again[path] != before:
            break
    if order is not None and again == loads:
        return order
    recorded: dict[str, Loaded | None] = {}

    def recording(path: str) -> Loaded | None:
        recorded[path] = again[path] if path in again else load(path)
        return recorded[path]

    order = _unfold(chosen, load=recording, is_group=is_group)
    if len(_unfolded) > 256:
        _unfolded.clear()
    _unfolded[key] = (recorded, order)
    return order


_unfolded: dict[tuple[tuple[str, str | None], ...], tuple[dict[str, Loaded | None], Order | None]] = {}


def _unfold(chosen: Mapping[str, str | None], *, load: Callable[[str], Loaded | None], is_group: Callable[[str], bool]) -> Order:
    repository = _Repository(load, is_group)
    preset: dict[str, str | None] = {}
    for _ in range(4):
        choices = _Choices({**preset, **chosen})
        results, _tree = _create_defaults_list(repository, "config", choices, prepend_hydra=False, skip_missing=True)
        late = {
            key: choices.override_choices[key]
            for key, meta in choices.override_metadata.items()
            if not meta.used and not meta.external_override and key in choices.known_choices and key not in preset
        }
        if not late:
            break
        # a choice overrides a group that stands after it in the task's list: say so from the start
        preset.update(cast("dict[str, str | None]", late))
    layers = [_layer(result) for result in results]
    unused = {
        key: (str(choices.override_choices[key]), meta.containing_config_path)
        for key, meta in choices.override_metadata.items()
        if not meta.used and key not in choices.known_choices
    }
    known = dict(reversed(choices.known_choices.items()))
    return Order(layers, known, unused)


def _layer(result: ResultDefault) -> Layer:
    return Layer(result.config_path or "", result.package or "")


# ---- sweeps ----


class SweepLoader(ConfigLoaderImpl):
    """Hydra's loader for sweeps: Hydra's own settings only. A job composes its own config, with our `compose`."""

    def __init__(self) -> None:
        path = ConfigSearchPathImpl()
        path.append("hydra", "pkg://hydra.conf")
        path.append("schema", "structured://")
        super().__init__(path)

    def _load_configuration_impl(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode, from_shell: bool = True, validate_sweep_overrides: bool = True
    ) -> DictConfig:
        config = super()._load_configuration_impl(None, [word for word in overrides if is_hydras(word)], RunMode.RUN, from_shell, False)
        with open_dict(config):
            config.hydra.overrides.task = [word for word in overrides if not is_hydras(word)]
            config.hydra.job.name = "largeforge"
        return config


def is_hydras(word: str) -> bool:
    """True for a setting of Hydra's own: hydra/launcher=joblib, hydra.launcher.n_jobs=2."""
    return word.lstrip("+~").startswith(("hydra.", "hydra/"))


def hydra_settings(words: Sequence[str]) -> dict[str, Any]:
    """Compose Hydra's own settings, those of installed plugins included. Raises one of CompositionFault."""
    from hydra.core.plugins import Plugins

    Plugins.instance()
    config = SweepLoader().load_configuration(None, list(words), RunMode.RUN)
    return cast("dict[str, Any]", OmegaConf.to_container(config.hydra, resolve=False))


def run_sweep(words: Sequence[str], *, hydra_words: Sequence[str], job: Callable[[Any], Any]) -> Any:
    """Run `job` for every point, with Hydra's sweeper and launcher.

    Args:
        words: settings, values quoted where Hydra's grammar needs it.
        hydra_words: hydra/launcher=..., hydra/sweeper=..., and their keys.
        job: picklable; called once a point, while `current_point` tells which.
    """
    from hydra._internal.hydra import Hydra
    from hydra.core.plugins import Plugins

    Plugins.instance()
    hydra = Hydra(task_name="largeforge", config_loader=SweepLoader())
    return hydra.multirun(config_name=None, task_function=job, overrides=[*hydra_words, *words], with_log_configuration=False)


def current_point() -> tuple[int, list[str]]:
    """Return number and settings of the point that runs now, text quoted so that it reads the same again."""
    from hydra.core.hydra_config import HydraConfig

    node = HydraConfig.get()
    return int(node.job.num), [_requoted(str(word)) for word in node.overrides.task]


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """Return the names that a glob(...) of the command line means."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    override = OverridesParser.create().parse_override(f"key={pattern}")
    return list(cast(Any, override.value()).filter(list(names)))


def _requoted(word: str) -> str:
    key, _, text = word.partition("=")
    value = read_value(text, multirun=False).value
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}" if isinstance(value, str) and not value.replace("-", "_").isidentifier() else word
