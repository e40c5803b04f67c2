"""Look at an artifact: what it holds, where it came from, whether it is still what was written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from largeforge.artifact import read_artifact
from largeforge.build import build, find
from largeforge.console import Console
from largeforge.contract import Progress, Storage
from largeforge.errors import InputError
from largeforge.report import Section, write_report
from largeforge.run import Run
from largeforge.task.data_config import InspectConfig

INSPECTIONS = {"data": "largeforge.data.inspecting.Inspection"}
"""Which part knows what an artifact of a kind holds; the others show what every artifact has."""


class Inspect:
    """Writes to standard output: `task=inspect ... | less` works."""

    def __init__(self, config: InspectConfig) -> None:
        self.config = config

    def run(self, run: Run) -> None:
        """Verify the artifact and show it."""
        config = self.config
        storage: Storage = build(config.storage, progress=run.progress)
        folder = local(str(config.data.path), storage)
        artifact = read_artifact(folder, full=True)
        console = Console(stream=sys.stdout)
        if artifact.kind not in INSPECTIONS:
            sections = everything(artifact)
        else:
            inspection = find(INSPECTIONS[artifact.kind])(folder)
            sections = inspection.row(config.row) if config.row else inspection.sections(show=config.show)
        for section in sections:
            if section.text:
                console.say(f"{section.title}: {section.text}")
            console.table(section.title, section.columns, section.rows)
        write_report(run.folder, title=f"inspect: {folder}", sections=sections)
        run.measure(files=float(len(artifact.files)))

    def plan(self, *, progress: Progress) -> Any:
        """There is nothing to plan: it only reads."""
        raise InputError("task=inspect costs nothing that could be planned: it only reads.", next_step="leave plan=... out")


def local(path: str, storage: Storage) -> Path:
    """Return the folder of an artifact, brought here where it lies elsewhere."""
    if not storage.is_remote(path):
        return Path(path).expanduser()
    files = storage.fetch(path)
    return next((file.parent for file in files if file.name == "manifest.json"), files[0].parent)


def everything(artifact: Any) -> list[Section]:
    """What every artifact has: id, files, parents."""
    files = [(name, facts["size_bytes"], facts["sha256"][:16]) for name, facts in sorted(artifact.files.items())]
    parents = [(parent.kind, parent.name, parent.revision, parent.sha256[:16]) for parent in artifact.parents]
    return [
        Section("Artifact", ("", ""), [("id", artifact.id), ("kind", artifact.kind), ("files", "each as it was written")]),
        Section("Files", ("name", "bytes", "sha256"), files),
        Section("Made of", ("kind", "name", "revision", "sha256"), parents),
    ]
