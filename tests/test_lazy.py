"""What the command line may load before a run starts (law 8), and what that costs beside importing Hydra."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "datasets", "lightning", "peft", "trl", "pandas", "pyarrow", "numpy", "matplotlib")


def loaded(argv: list[str], tmp_path: Path) -> set[str]:
    code = f"import sys; from largeforge.__main__ import main; code = main({argv!r}); print(code, *sys.modules, sep='\\n', file=sys.stderr)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120, check=True
    )
    return set(ran.stderr.split())


@pytest.mark.parametrize(
    "argv", [["task=sft", "--cfg", "job"], ["task=sft", "--help"], ["--schema"], ["task=sft", "model=nano", "adapter.rnk=1"], ["--origins", "task=chat"]]
)
def test_composing_and_checking_load_nothing_heavy(argv: list[str], tmp_path: Path) -> None:
    names = loaded(argv, tmp_path)
    assert "largeforge.config.check" in names or argv == ["--schema"]
    assert not names & set(HEAVY)


@pytest.mark.parametrize("argv", [[], ["--help"], ["--version"], ["--completion", "bash"], ["--complete", "task=sft", "model="]])
def test_help_loads_neither_hydra_nor_pydantic(argv: list[str], tmp_path: Path) -> None:
    assert not loaded(argv, tmp_path) & {"hydra", "omegaconf", "pydantic", "yaml", *HEAVY}


def test_importing_the_package_loads_nothing(tmp_path: Path) -> None:
    code = "import sys; before = set(sys.modules); import largeforge; print(*(set(sys.modules) - before))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert {name.partition(".")[0] for name in ran.stdout.split()} - {"largeforge", "__future__"} <= set(sys.stdlib_module_names)


@pytest.mark.slow
def test_cpu_time_beside_importing_hydra(tmp_path: Path) -> None:
    """--help <= 1x `import hydra`, --cfg job <= 3x; medians of interleaved runs."""
    sides = {
        "hydra": ["-c", "import hydra"],
        "help": ["-m", "largeforge", "--help"],
        "cfg": ["-m", "largeforge", "task=sft", "--cfg", "job"],
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(5):
        for name, argv in sides.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *argv], capture_output=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    median = {name: statistics.median(values) for name, values in times.items()}
    assert median["help"] <= median["hydra"]
    assert median["cfg"] <= 3 * median["hydra"]
