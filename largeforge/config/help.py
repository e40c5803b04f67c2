"""What `--help` prints: everything that can be chosen, and for one task every key with type, default and one line.

The overview reads file names and first lines only (no Hydra, no pydantic); a task's help composes the config.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largeforge.config.command_line import FLAGS
from largeforge.config.places import Library, first_comment

if TYPE_CHECKING:
    from largeforge.config.composition import Setter
    from largeforge.config.fields import Key

_EXAMPLES = (
    ("python -m largeforge task=sft model=smollm2 data=demo", "fine-tune a real chat model, nothing to download by hand"),
    ("python -m largeforge task=sft model=smollm2 data.path=rows.jsonl data=chat", "on rows of your own"),
    ("python -m largeforge task=sft model=smollm2 plan=true", "what it would cost, without running it"),
    ("python -m largeforge task=chat model=outputs/.../artifact", "talk to the result"),
    ("python -m largeforge -m task=sft model=nano adapter.r=4,8,16", "three runs and a table that compares them"),
    ("python -m largeforge task=sft --help", "every key of a task"),
)


def overview(config_dirs: Sequence[str] = ()) -> str:
    """Return what `largeforge --help` prints."""
    library = Library(tuple(config_dirs))
    lines = ["LargeForge: from a config to a trained, proven and served language model.", ""]
    lines += ["Usage: python -m largeforge task=TASK [group=choice ...] [key=value ...] [flags]", "", "Tasks"]
    lines += _two_columns([(f"task={task}", title_of(library.file_of(f"task/{task}"))) for task in library.choices("task")])
    lines += ["", "Groups: pick one choice each, as group=choice"]
    lines += _two_columns([(group, ", ".join(library.choices(group))) for group in library.groups() if group != "task"])
    recipes = library.recipes()
    if recipes:
        lines += ["", "Recipes: whole runs, as recipe=name"]
        lines += _two_columns([(f"recipe={name}", title_of(library.file_of(f"recipe/{name}"))) for name in recipes])
    lines += ["", "Flags", *_two_columns(list(FLAGS.items()))]
    lines += ["", "Examples"]
    for command, why in _EXAMPLES:
        lines += [f"  {command}", f"      {why}"]
    return "\n".join(lines)


def task_help(argv: Sequence[str]) -> str:
    """Return the help of one task: its groups with their choices, and every key of the choices in use."""
    from largeforge.config.check import key_table
    from largeforge.config.command_line import read_flags
    from largeforge.config.finding import show
    from largeforge.config.gather import gather

    composition = gather(read_flags(argv))
    library = composition.library
    task = composition.choices.get("task")
    if task is None:
        return overview(composition.flags.config_dirs)
    keys = key_table(composition)
    groups = [key for key in keys.values() if key.part is not None and key.path != "task"]
    lines = [f"task={task}: {title_of(library.file_of(f'task/{task}'))}", ""]
    lines += [f"Usage: python -m largeforge task={task} [group=choice ...] [key=value ...]", "", "Groups: pick one choice each (* is in use)"]
    for group in groups:
        lines.append(f"  {group.path}: {group.description}")
        folder = group.path
        if not library.choices(folder) and group.part is not None:
            folder = group.part.__module__.removeprefix("largeforge.").rpartition(".")[0].replace(".", "/")
        chosen = next((choice for slot, choice in composition.choices.items() if (slot.partition("@")[2] or slot) == group.path), None)
        names = [name for name in library.choices(folder) if _fits(library.file_of(f"{folder}/{name}"), group)]
        rows = [(f"{'*' if name == chosen else ' '} {group.path}={name}", title_of(library.file_of(f"{folder}/{name}"))) for name in names]
        lines += [f"  {line}" for line in _two_columns(rows)] if len(rows) > 1 else []
    lines += ["", "Keys: type, [default], what it does", *_keys(keys, composition.setters, show)]
    return "\n".join(lines)


def _fits(file: Path | None, group: Key) -> bool:
    """Whether a task takes this choice for a group; one whose class is not known here (of a package of the user's) is shown."""
    from largeforge.config.fields import RefusedTarget, config_class, group_of
    from largeforge.config.typed import PartConfig
    from largeforge.config.yaml_file import target_of

    if file is None or group.part is None:
        return True
    try:
        return issubclass(config_class(target_of(file), base=PartConfig, package=group_of(group.part), trust=()), group.part)
    except RefusedTarget:
        return True


def _keys(keys: dict[str, Key], setters: dict[str, list[Setter]], show: Callable[[Any], str]) -> list[str]:
    from largeforge.config.fields import typed_member

    rows: list[tuple[str, str]] = []
    for path, key in keys.items():
        if key.part is not None:
            continue
        if typed_member(key.kind) is not None and any(other.startswith(f"{path}.") for other in keys):
            continue
        places = setters.get(path, [])
        default = f" [{show(places[-1].value)}]" if places else ""
        comment = next((setter.comment for setter in reversed(places) if setter.comment), "") or key.description
        rows.append((path, f"{key.allowed}{default}: {comment}"))
    return _two_columns(rows)


def title_of(path: Path | None) -> str:
    """Return the first comment line of a YAML file."""
    if path is None:
        return ""
    with path.open(encoding="utf-8", errors="replace") as stream:
        return first_comment(stream.read(2048))


def _two_columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Lay rows out as two columns, the right one wrapped to the terminal."""
    width = max(60, min(shutil.get_terminal_size((120, 24)).columns, 160))
    left = min(max((len(first) for first, _ in rows), default=0), 36)
    lines: list[str] = []
    for first, second in rows:
        words, line = second.split(" "), ""
        wrapped: list[str] = []
        for word in words:
            if line and len(line) + 1 + len(word) > width - left - 5:
                wrapped.append(line)
                line = word
            else:
                line = f"{line} {word}" if line else word
        wrapped.append(line)
        if len(first) > left:
            lines.append(f"  {first}")
            first = ""
        lines.append(f"  {first:<{left}}   {wrapped[0]}".rstrip())
        lines += [f"  {'':<{left}}   {more}" for more in wrapped[1:]]
    return lines
