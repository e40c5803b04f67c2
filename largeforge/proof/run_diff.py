"""Which of the things that two runs differ in explains another result: ranked, likeliest first.

Reads what runs leave (lock, config, metrics, result, manifest); nothing heavy, no weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from largeforge.config.locked import LOCK
from largeforge.errors import InputError

# how likely a difference explains another result, likeliest first; the first line that covers a key counts
RANKS = (
    ("task", "source.data", "source.model", "source.adapter", "source"),
    ("template",),
    ("method", "adapter", "quant", "model", "reference", "teacher", "assistant", "data", "generator", "steps", "step"),
    ("trainer.max_steps", "trainer.epochs", "trainer.batch_size", "trainer.optimizer", "trainer.schedule", "trainer.warmup_ratio"),
    ("seed",),
    ("trainer.precision", "fact.precision", "fact.device", "trainer"),
    ("fact.packing", "fact"),
    ("package.torch", "package.transformers", "package.peft", "largeforge", "package", "python"),
    ("processor", "machine"),
)
# what is shown, where things go, how rows are handed over: no number of the model follows from it
IDLE = (
    *("name", "folder", "resume", "plan", "verify", "log_level", "log_format", "trust", "tracker", "storage", "executor", "fact.cache_hit"),
    *("trainer.checkpoint", "trainer.log_every_steps", "data.num_workers", "data.cache", "package.pydantic", "package.hydra-core", "package.omegaconf"),
    *("engine", "benchmark"),
)
MATTERS, IDLES, RESULTS = "can explain another result", "cannot", "result"
MEASURED = ("tokens_per_s", "memory_bytes", "seconds", "train_seconds", "peak_memory_bytes")  # of the machine's mood, not of the model


@dataclass(frozen=True)
class RunFolder:
    """What one run left, as flat keys."""

    folder: Path
    keys: dict[str, Any]
    metrics: dict[str, float]
    artifact: str
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)


def read_run(folder: Path) -> RunFolder:
    """Read a run's folder, or that of its artifact. Raises InputError where neither lock nor config stands there."""
    place = folder if (folder / "config.yaml").is_file() else folder.parent
    lock, config = (_mapping(place / name) for name in (LOCK, "config.yaml"))
    if not config:
        raise InputError(f"{folder} is no run and not a run's artifact: it holds no config.yaml.", next_step="outputs/<task>/<date>/<time>")
    result = _json(place / "result.json")
    keys = dict(flat(config))
    keys.pop("task._target_", None)
    keys |= {name: lock[name] for name in ("task", "largeforge", "python", "machine") if name in lock}
    keys |= {"template": lock.get("template_sha256", "")} if lock else {}
    for name, group in (("package", "packages"), ("fact", "facts"), ("processor", "processor")):
        keys |= dict(flat(lock.get(group) or {}, name))
    seen: dict[str, int] = {}
    for source in lock.get("sources") or []:
        kind = str(source.get("kind"))
        seen[kind] = seen.get(kind, 0) + 1
        keys[f"source.{kind}" + (f".{seen[kind]}" if seen[kind] > 1 else "")] = f"{source.get('name')} {str(source.get('sha256'))[:12]}"
    manifest = _json(place / "artifact" / "manifest.json")
    return RunFolder(place, keys, dict(result.get("metrics") or {}), str(manifest.get("id", "")), dict(_steps(place / "metrics.jsonl")))


class RunComparison:
    """Compares two runs.

    Args:
        a: folder of a run, or of its artifact.
        b: of the other.
    """

    columns = ("key", "a", "b")
    names = (MATTERS, IDLES, RESULTS)
    same = "Nothing differs: config, sources, surroundings, results."

    def __init__(self, a: Path, b: Path) -> None:
        self.a, self.b = read_run(a), read_run(b)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield every difference, likeliest cause first; then the results: {"what", "key", "a", "b", "rank"}."""
        a, b = self.a.keys, self.b.keys
        differing = [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
        for rank, key in sorted((rank_of(key), key) for key in differing):
            yield {"what": IDLES if rank > len(RANKS) else MATTERS, "key": key, "a": a.get(key), "b": b.get(key), "rank": rank}
        if self.a.artifact != self.b.artifact:
            yield {"what": RESULTS, "key": "artifact", "a": self.a.artifact, "b": self.b.artifact}
        parting = first_parting(self.a, self.b)
        if parting is not None:
            step, key, one, other = parting
            yield {"what": RESULTS, "key": f"{key}, first at step {step}", "a": one, "b": other}
        for name in dict.fromkeys([*self.a.metrics, *self.b.metrics]):
            one, other = self.a.metrics.get(name), self.b.metrics.get(name)
            if one != other and name not in MEASURED:
                yield {"what": RESULTS, "key": name, "a": one, "b": other}

    @staticmethod
    def metric(name: str) -> str:
        """What result.json calls a count."""
        return "differing_" + {MATTERS: "decisive", IDLES: "idle", RESULTS: "results"}[name]

    @staticmethod
    def cells(line: Mapping[str, Any]) -> tuple[str, str, str]:
        """A row of the table."""
        return (line["key"], _said(line["a"]), _said(line["b"]))


def rank_of(key: str) -> int:
    """How likely a key explains another result: 1 is likeliest; what cannot is behind all others."""
    if _covers(IDLE, key):
        return len(RANKS) + 2
    return next((rank for rank, keys in enumerate(RANKS, start=1) if _covers(keys, key)), len(RANKS))


def first_parting(a: RunFolder, b: RunFolder) -> tuple[int, str, Any, Any] | None:
    """Return (step, metric, a's, b's) where the two first part in what each step measured of the model; None where they never do."""
    for step in sorted(a.steps.keys() | b.steps.keys()):
        one, other = a.steps.get(step, {}), b.steps.get(step, {})
        names = [name for name in dict.fromkeys(["loss", *one, *other]) if name not in MEASURED]
        for name in names:
            if one.get(name) != other.get(name):
                return step, name, one.get(name), other.get(name)
    return None


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf by its dotted key; a list is a leaf."""
    for name, value in values.items():
        key = f"{above}.{name}" if above else str(name)
        if isinstance(value, Mapping) and value:
            yield from flat(value, key)
        else:
            yield key, value


def _covers(keys: tuple[str, ...], key: str) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in keys)


def _steps(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """One record a step: what was logged of it, lines of the same step put together."""
    found: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        if line.endswith("}"):  # a killed process may leave half a line
            record = json.loads(line)
            found.setdefault(int(record.pop("step")), {}).update(record)
    yield from found.items()


def _mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as fault:
        raise InputError(f"{path} is no YAML: {str(fault).splitlines()[0]}.", next_step="the file as the run left it") from fault
    return found if isinstance(found, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _said(value: Any) -> str:
    text = "-" if value is None or value == "" else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"
