"""The package as others get it: the wheel, its version and changelog, its declared needs, its style and its types."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import largeforge

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("largeforge", "conf", "recipes")


def shipped_files() -> list[Path]:
    return sorted(path for folder in SHIPPED for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def modules() -> list[Path]:
    return [path for path in shipped_files() if path.suffix == ".py"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the checkout, with nothing fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SHIPPED:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder / "dist", folder / "source"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (folder / "dist").iterdir()
    return built


def test_the_wheel_holds_every_file(wheel: Path) -> None:
    expected = {path.relative_to(ROOT).as_posix() for path in shipped_files()}
    expected = {name if name.startswith("largeforge/") else f"largeforge/{name}" for name in expected}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected
    assert "largeforge/py.typed" in held and "largeforge/conf/config.yaml" in held


def test_the_wheel_works_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel]
    subprocess.run(install, check=True, capture_output=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def ask(*arguments: str) -> str:
        done = subprocess.run([sys.executable, *arguments], cwd=elsewhere, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert Path(ask("-c", "import largeforge; print(largeforge.__file__)").strip()).is_relative_to(tmp_path / "site")
    assert "task=sft" in ask("-m", "largeforge", "--help")
    assert "hidden_size: 256" in ask("-m", "largeforge", "task=sft", "model=nano", "--cfg", "job")
    assert (tmp_path / "site" / "bin" / "largeforge").is_file()


def test_the_version_is_semantic_and_told_once() -> None:
    """Proves SR-NF-051: one version, major.minor.patch, which the installed package reports too."""
    assert re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?", largeforge.__version__)
    assert importlib.metadata.version("largeforge") == largeforge.__version__


def test_the_changelog_tells_every_version_newest_first() -> None:
    """Proves SR-NF-052: the version of today heads the changelog, dated, and says what it brings."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})$", text, flags=re.MULTILINE)
    versions = [tuple(int(number) for number in version.split(".")) for version, _ in headings]
    assert headings[0][0] == largeforge.__version__
    assert versions == sorted(set(versions), reverse=True)
    for section in re.split(r"^## \[", text, flags=re.MULTILINE)[1:]:
        assert re.search(r"^### (Added|Changed|Deprecated|Removed|Fixed|Security)\n\n- ", section, flags=re.MULTILINE), section[:40]


def test_every_import_is_declared() -> None:
    """A library that the package imports is one it asks pip for, not one that happens to come along."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    users = [line for name in extras if name not in ("test", "dev") for line in extras[name]]
    declared = {canonicalize_name(Requirement(line).name) for line in [*project["dependencies"], *users]}
    distributions = importlib.metadata.packages_distributions()
    missing = {}
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"largeforge", "__future__"}:
                if not {canonicalize_name(distribution) for distribution in distributions.get(name, [])} & declared:
                    missing[f"{path.relative_to(ROOT)}:{node.lineno}"] = name
    assert not missing


def test_python_3_10_is_enough() -> None:
    """Proves SR-C-002: every module is Python 3.10, mypy knows the standard library as of then, and no exact pin asks for a newer Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["requires-python"] == ">=3.10"
    assert project["tool"]["ruff"]["target-version"] == "py310"
    assert "\npython_version = 3.10\n" in (ROOT / "setup.cfg").read_text(encoding="utf-8")
    for path in modules():
        ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=(3, 10))
    pins = []
    for line in project["project"]["dependencies"]:
        requirement = Requirement(line)
        oldest = requirement.marker is None or requirement.marker.evaluate({"python_version": "3.10", "python_full_version": "3.10.0"})
        if oldest and str(requirement.specifier).startswith("=="):
            needs = importlib.metadata.metadata(requirement.name).get("Requires-Python")
            assert SpecifierSet(needs or "").contains("3.10.0"), f"{line} needs Python {needs}"
            pins.append(requirement.name)
    assert {"torch", "transformers", "lightning", "datasets", "pydantic"} <= set(pins)


def ruff(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ruff", *arguments], cwd=ROOT, input=code, capture_output=True, text=True)


def test_the_code_follows_pep_8() -> None:
    """Proves SR-NF-053, SYS-M-005: pycodestyle's and pep8-naming's rules hold for every file, and would be told where they did not."""
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    assert {"E", "W", "N"} <= set(rules["select"])
    done = ruff("check", ".")
    assert done.returncode == 0, done.stdout
    done = ruff("format", "--check", ".")
    assert done.returncode == 0, done.stdout
    bad = ruff(
        "check", "--stdin-filename", "largeforge/bad.py", "-", code="import os, sys\nclass bad_name:\n  def BadName(self):\n    if sys == None: return os\n"
    )
    assert bad.returncode == 1
    assert {"E401", "N801", "N802", "E701", "E711"} <= set(re.findall(r"\b[A-Z]\d{3}\b", bad.stdout)), bad.stdout


def test_every_public_function_says_its_types() -> None:
    """Proves SYS-M-006: parameters and results of every function and method are annotated, and py.typed lets users' tools read it."""
    bare = []
    for path in modules():
        if path.stem.endswith(("_pb2", "_pb2_grpc")):  # made by grpcio-tools, with a .pyi beside them
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                given = node.args
                parameters = [*given.posonlyargs, *given.args, *given.kwonlyargs, *(one for one in (given.vararg, given.kwarg) if one)]
                untyped = [one.arg for one in parameters if one.annotation is None and one.arg not in ("self", "cls")]
                if untyped or node.returns is None:
                    bare.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} {untyped}")
    assert not bare
    assert len(modules()) > 30 and (ROOT / "largeforge" / "py.typed").is_file()


def test_too_little_coverage_fails(tmp_path: Path) -> None:
    """Proves SR-NF-050, SYS-M-003: CI counts lines, and the project's own settings end it with an error under 80 %."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert settings.getfloat("coverage:report", "fail_under") >= 80
    assert "scripts/test --coverage" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert '"$python" -m coverage report' in (ROOT / "scripts" / "test").read_text(encoding="utf-8")

    def verdict(lines_run: int) -> int:
        """Exit code of the report where 10 lines stand and some of them ran."""
        lines = ["import sys", "if len(sys.argv) > 1:", *["    pass"] * (10 - lines_run), *["x = 1"] * (lines_run - 2)]
        (tmp_path / "counted.py").write_text("\n".join(lines) + "\n")
        settings["coverage:run"] = {"source": ".", "data_file": str(tmp_path / "data")}
        with (tmp_path / "settings.cfg").open("w") as stream:
            settings.write(stream)
        coverage = [sys.executable, "-m", "coverage"]
        subprocess.run([*coverage, "run", "--rcfile=settings.cfg", "counted.py"], cwd=tmp_path, check=True)
        return subprocess.run([*coverage, "report", "--rcfile=settings.cfg"], cwd=tmp_path, capture_output=True).returncode

    assert verdict(7) == 2
    assert verdict(9) == 0
