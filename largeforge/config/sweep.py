"""Many runs from one command line: every point is checked before the first runs, and a table compares them at the end.

Hydra's sweeper draws the points and its launcher runs them (one after another, joblib, submitit); a point is composed,
checked and run as if it had been typed alone, in a folder below the sweep's.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from largeforge.artifact import write_atomically
from largeforge.config.check import check, secrets_of
from largeforge.config.command_line import Setting, read_flags
from largeforge.config.compose import compose
from largeforge.config.composition import Composition
from largeforge.config.finding import Finding, config_error, mend
from largeforge.config.gather import gather
from largeforge.config.hydra_seam import CompositionFault, current_point, hydra_settings, is_hydras, matching, read_value, run_sweep
from largeforge.config.masking import hide
from largeforge.errors import EXIT_DONE, EXIT_FAULT, InputError, LargeForgeError

POINT = "point.json"
TABLE = "sweep.csv"
_EXTRAS = {"joblib": "sweep", "optuna": "optuna", "submitit_local": "slurm", "submitit_slurm": "slurm"}


def sweep(argv: Sequence[str]) -> int:
    """Run every point of a sweep; return 0, or the exit code of the first point that failed.

    Args:
        argv: the command line, with --multirun.

    Raises:
        ConfigError: a point that would not pass the check; nothing has run.
        LargeForgeError: nothing to sweep, or a launcher or sweeper that is not installed.
    """
    flags = read_flags(argv)
    base = gather(flags, multirun=True)
    settings = [_expanded(setting, base) for setting in base.settings]
    hydra_words = [word for word in flags.words if is_hydras(word)]
    settings = [setting for setting in settings if not is_hydras(setting.word)]
    sweeper = composed_hydra(flags.words)["sweeper"]
    if not any(setting.sweep for setting in settings) and not sweeper.get("params"):
        raise LargeForgeError("Nothing to sweep over: no setting has several values.", next_step="python -m largeforge -m task=sft adapter.r=4,8,16")
    if any(setting.interval for setting in settings) and "Optuna" not in str(sweeper["_target_"]):
        raise LargeForgeError(
            "interval(...) has no list of values to try.", next_step="add hydra/sweeper=optuna (pip install 'largeforge[optuna]'), or name the values"
        )
    _check_points(argv, settings)
    folder = _folder(base)
    print(f"Sweep in {folder}", file=sys.stderr)
    fixed = [f"hydra.sweep.dir={json.dumps(str(folder))}", "hydra.sweep.subdir=${hydra.job.num}", "hydra.output_subdir=null"]
    fixed += ["hydra/job_logging=none", "hydra/hydra_logging=none"]
    job = PointJob(tuple(f"--config-dir={path}" for path in flags.config_dirs), str(folder), flags.metric)
    lines = [setting.line for setting in settings if setting.key != "folder"]
    interrupted = False
    try:
        run_sweep(lines, hydra_words=[*hydra_words, *fixed], job=job)
    except KeyboardInterrupt:
        interrupted = True
    (folder / "multirun.yaml").unlink(missing_ok=True)  # it would hold secrets of the command line
    rows = read_points(folder)
    keys = [setting.key for setting in settings if setting.sweep]
    text, table = compare(rows, keys)
    write_atomically(folder / TABLE, table)
    print(text)
    print(f"{folder / TABLE}")
    codes = [int(row["exit_code"]) for row in rows]
    return 130 if interrupted else next((code for code in codes if code != EXIT_DONE), EXIT_DONE)


def composed_hydra(words: Sequence[str]) -> dict[str, Any]:
    """Return Hydra's own settings as these words compose them. Raises LargeForgeError, naming the extra that is missing."""
    own = [word for word in words if is_hydras(word)]
    try:
        return hydra_settings(own)
    except CompositionFault as fault:
        missing = next((word for word in own if word.startswith("hydra/")), "")
        extra = _EXTRAS.get(missing.partition("=")[2], "")
        reason = str(fault.__cause__ or fault).strip().splitlines()[0]
        advice = f"pip install 'largeforge[{extra}]'" if extra else "python -m largeforge --cfg hydra -m"
        raise LargeForgeError(f"{' '.join(own)}: {reason}", next_step=advice) from fault


@dataclass(frozen=True)
class PointJob:
    """Runs one point, in whatever process the launcher put it.

    Args:
        flags: flags every point needs (--config-dir).
        folder: of the sweep; a point runs in its number below it.
        metric: of result.json, to be returned to a searching sweeper.
    """

    flags: tuple[str, ...]
    folder: str
    metric: str

    def __call__(self, _config: Any) -> float:
        number, words = current_point()
        own = Path(self.folder) / str(number)
        argv = [*self.flags, *words, f"folder={json.dumps(str(own))}"]
        try:
            composed = compose(argv, files=True)
            from largeforge.run import execute

            code = execute(composed)
        except LargeForgeError as error:
            print(error, file=sys.stderr)
            code = error.exit_code
        except Exception as fault:
            print(f"point {number}: {type(fault).__name__}: {fault}", file=sys.stderr)
            code = EXIT_FAULT
        own.mkdir(parents=True, exist_ok=True)
        shown = hide(words, secrets_of(gather(read_flags(argv))))
        write_atomically(own / POINT, json.dumps({"number": number, "words": shown, "exit_code": code}) + "\n")
        if code >= 128:
            raise KeyboardInterrupt
        found = _result(own).get("metrics", {}).get(self.metric)
        return float(found) if isinstance(found, (int, float)) else math.inf


def read_points(folder: Path) -> list[dict[str, Any]]:
    """Return what the points of a sweep left, in their order: number, settings, status, exit code, seconds, metrics."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob(f"*/{POINT}"), key=lambda path: int(path.parent.name)):
        point = json.loads(path.read_text(encoding="utf-8"))
        result = _result(path.parent)
        settings = {word.partition("=")[0]: _unquoted(word.partition("=")[2]) for word in point["words"]}
        status = result.get("status") or ("done" if point["exit_code"] == EXIT_DONE else "failed")
        rows.append(
            {"number": point["number"], "settings": settings, "status": status, "exit_code": point["exit_code"]}
            | {"seconds": result.get("seconds"), "metrics": result.get("metrics") or {}, "artifact": result.get("artifact"), "folder": str(path.parent)}
        )
    return rows


def compare(rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> tuple[str, str]:
    """Return the comparison of points as a table to read, and as CSV.

    Args:
        rows: from `read_points`.
        keys: the settings that were swept; settings that differ between points are shown besides.
    """
    seen = [key for key in dict.fromkeys(key for row in rows for key in row["settings"]) if len({row["settings"].get(key) for row in rows}) > 1]
    shown = list(dict.fromkeys([*keys, *seen]))
    metrics = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    head = ["point", *shown, "status", "seconds", *metrics]
    cells = [
        [
            str(row["number"]),
            *(row["settings"].get(key, "") for key in shown),
            row["status"],
            _number(row["seconds"]),
            *(_number(row["metrics"].get(name)) for name in metrics),
        ]
        for row in rows
    ]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*head, "exit_code", "folder"])
    for row in rows:
        exact = [row["metrics"].get(name, "") for name in metrics]
        writer.writerow(
            [row["number"], *(row["settings"].get(key, "") for key in shown), row["status"], row["seconds"], *exact, row["exit_code"], row["folder"]]
        )
    widths = [max(len(line[column]) for line in [head, *cells]) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in [head, *cells]]
    failed = [row for row in rows if row["exit_code"] != EXIT_DONE]
    lines += [f"point {row['number']} failed with exit code {row['exit_code']}: see {row['folder']}" for row in failed]
    return "\n".join(lines), stream.getvalue()


def _expanded(setting: Setting, base: Composition) -> Setting:
    """Write a glob(...) over a group's choices as the list it means."""
    if setting.sweep == ():
        names = matching(setting.text or "", base.library.choices(setting.key.partition("@")[0]))
        return replace(setting, sweep=tuple(names), line=f"{setting.key}={','.join(names)}")
    return setting


def _check_points(argv: Sequence[str], settings: Sequence[Setting]) -> None:
    """Compose and check every point; of an interval its two ends. Raises one ConfigError for all of them."""
    swept = [setting for setting in settings if setting.sweep]
    fixed = [setting.word for setting in settings if not setting.sweep]
    flags = replace(read_flags(argv), multirun=False)
    findings: list[Finding] = []
    repaired: dict[tuple[str, str], str] = {}
    for values in itertools.product(*(setting.sweep or () for setting in swept)):
        words = {f"{setting.key}={value}": (setting, value) for setting, value in zip(swept, values, strict=True)}
        _, _, found = check(gather(replace(flags, words=(*fixed, *words))))
        for finding in found:
            if finding.drop in words:
                setting, value = words[finding.drop]
                if finding.mend.startswith(f"{setting.key}="):
                    repaired[setting.word, value] = finding.mend.partition("=")[2]
            findings.append(finding)
    if not findings:
        return
    raise config_error(findings, words=argv, mended=mend(argv, [_mended(finding, swept, repaired) for finding in findings]))


def _mended(finding: Finding, swept: Sequence[Setting], repaired: dict[tuple[str, str], str]) -> Finding:
    """Mend a swept value inside its list, so that the command to try is a sweep again."""
    for setting in swept:
        if finding.drop in {f"{setting.key}={value}" for value in setting.sweep or ()}:
            values = [repaired.get((setting.word, value), value) for value in setting.sweep or ()]
            good = list(dict.fromkeys(values))
            return replace(finding, drop=setting.word, mend=f"{setting.key}={','.join(good)}")
    return finding


def _folder(base: Composition) -> Path:
    given = base.resolved.get("folder")
    now = datetime.now()
    folder = Path(given) if isinstance(given, str) else Path("outputs") / base.choices.get("task", "sweep") / now.strftime("%Y-%m-%d") / f"{now:%H-%M-%S}-sweep"
    if (folder / TABLE).exists():
        raise InputError(f"folder={folder} holds a sweep already.", next_step="another folder=...")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _result(folder: Path) -> dict[str, Any]:
    path = folder / "result.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _unquoted(text: str) -> str:
    """Show a text as it was meant: Hydra's quotes are for Hydra."""
    return str(read_value(text, multirun=False).value) if text[:1] in {"'", '"'} else text


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
