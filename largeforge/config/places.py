"""Where choices, recipes and the user's settings stand on this machine.

Only paths and names: opens no YAML, imports nothing but the standard library, so that `--help` and tab completion stay quick.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

SUFFIX = ".yaml"


@lru_cache(maxsize=4)
def shipped(name: str) -> Path:
    """Return the folder `name` that ships with LargeForge: inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def user_folder() -> Path:
    """~/.largeforge: the user's settings.yaml and recipes."""
    return Path.home() / ".largeforge"


def recipe_folders(config_dirs: Sequence[str] = ()) -> list[Path]:
    """Return the folders that hold recipes, the first that has a name wins.

    --config-dir (itself, its recipes/ and recipe/), ./recipes, $LARGEFORGE_RECIPES (several with the path separator),
    ~/.largeforge/recipes, the recipes that ship with LargeForge.
    """
    own = [Path(folder) / part for folder in config_dirs for part in ("recipes", "recipe", "")]
    variable = [expanded(part) for part in os.environ.get("LARGEFORGE_RECIPES", "").split(os.pathsep) if part]
    candidates = [*own, Path("recipes"), *variable, user_folder() / "recipes", shipped("recipes")]
    return list(dict.fromkeys(folder for folder in candidates if folder.is_dir()))


@dataclass(frozen=True)
class Library:
    """Everything that can be chosen: groups, choices and recipes, over the shipped folders and the user's own.

    Args:
        config_dirs: folders given with --config-dir; a choice there hides a shipped one of the same name.
    """

    config_dirs: tuple[str, ...] = ()

    def folders(self) -> list[Path]:
        """Folders that hold one folder per group, the first wins."""
        return [*(Path(folder) for folder in self.config_dirs), shipped("conf")]

    def is_group(self, name: str) -> bool:
        """True where `name` ("model", "data/step") is a group of choices."""
        if not name or name.startswith(("hydra", "_")) or ".." in name:
            return False
        return name == "recipe" or any((folder / name).is_dir() for folder in self.folders())

    def groups(self) -> list[str]:
        """Every group that ships or that --config-dir adds, nested ones with a slash, "task" first; without "recipe"."""
        found: set[str] = set()
        for position, root in enumerate([shipped("conf"), *(Path(folder) for folder in self.config_dirs)]):
            for folder, names, files in os.walk(root):
                names[:] = [name for name in names if not name.startswith((".", "_", "hydra"))]
                name = Path(folder).relative_to(root).as_posix()
                own_recipes = position > 0 and name.split("/")[0] in {"recipe", "recipes"}
                if name != "." and not own_recipes and any(file.endswith(SUFFIX) for file in files):
                    found.add(name)
        return sorted(found, key=lambda name: (name != "task", name))

    def choices(self, group: str) -> list[str]:
        """Names that `group=` takes, sorted."""
        if group == "recipe":
            return self.recipes()
        names = {path.stem for folder in self.folders() for path in (folder / group).glob(f"*{SUFFIX}")}
        return sorted(names)

    def recipes(self) -> list[str]:
        """Names that `recipe=` takes, sorted; in a subfolder with a slash."""
        names: set[str] = set()
        inner = set(self.groups())
        for folder in recipe_folders(self.config_dirs):
            for path in folder.rglob(f"*{SUFFIX}"):
                name = path.relative_to(folder).with_suffix("").as_posix()
                if not (str(folder) in self.config_dirs and (name.split("/")[0] in inner | {"recipe", "recipes"} or "/" in name)):
                    names.add(name)
        return sorted(names)

    def file_of(self, config_path: str) -> Path | None:
        """Return the file of "model/nano", "config" or "recipe/x"; None where there is none."""
        group, _, name = config_path.partition("/")
        if ".." in config_path.split("/"):
            return None
        if group == "recipe" and name:
            given = Path(name)
            if name.endswith(SUFFIX) and stands(given):
                return given
            candidates = [folder / f"{name.removesuffix(SUFFIX)}{SUFFIX}" for folder in recipe_folders(self.config_dirs)]
        else:
            candidates = [folder / f"{config_path}{SUFFIX}" for folder in self.folders()]
        return next((path for path in candidates if stands(path) and path.is_file()), None)

    def is_shipped(self, path: Path) -> bool:
        """True for a file of LargeForge's own conf/; recipes are never trusted, wherever they stand."""
        return shipped("conf") in path.resolve().parents


def stands(path: Path) -> bool:
    """True where a file or folder is there; a name that no file can have is not there."""
    try:
        return path.exists()
    except OSError:
        return False


def expanded(name: str) -> Path:
    """Return a path with ~ expanded, as it is where that user has no home."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def shown(path: Path) -> str:
    """Return a path as a person would type it: relative where it is below the working folder, conf/... where it ships."""
    full = path.resolve()
    for root in (Path.cwd(), shipped("conf").parent):
        try:
            return full.relative_to(root).as_posix()
        except ValueError:
            continue
    try:
        return f"~/{full.relative_to(Path.home()).as_posix()}"
    except ValueError:
        return str(full)


def first_comment(text: str) -> str:
    """Return the first comment line of a YAML file that is no `# @...` header: what help says about a choice."""
    for line in text.splitlines():
        if not line.startswith("#"):
            return ""
        inner = line.lstrip("#").strip()
        if not inner.startswith("@"):
            return inner
    return ""
