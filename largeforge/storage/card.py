"""The README.md of a repository on the Hub: what the artifact is, what it was made from, how to use it. Sends nothing."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

from largeforge.artifact import Artifact

CARD = "README.md"


def card(artifact: Artifact, name: str) -> str:
    """Return the card as Markdown, its head in YAML as the Hub reads it."""
    import yaml

    head: dict[str, Any] = {"tags": ["largeforge"]}
    lines = [f"# {name.rpartition('/')[2]}", "", f"LargeForge artifact of kind {artifact.kind}, id `{artifact.id}`.", ""]
    if artifact.kind == "data":
        splits = files_by_split(artifact)
        head["configs"] = [{"config_name": "default", "data_files": [{"split": split, "path": paths} for split, paths in splits.items()]}]
        lines += _counts(artifact)
        lines += ["```python", f'datasets.load_dataset("{name}")', "```", ""]
    else:
        head["library_name"] = "peft" if artifact.kind == "adapter" else "transformers"
        head["pipeline_tag"] = "text-generation"
        base = next((parent.name for parent in artifact.parents if parent.kind == "model"), "")
        if artifact.kind == "adapter" and "/" in base and not base.startswith((".", "/")):
            head["base_model"] = base
        if artifact.kind == "adapter":
            lines += ["```python", f'peft.AutoPeftModelForCausalLM.from_pretrained("{name}")', "```", ""]
        else:
            lines += ["```bash", f"python -m largeforge task=chat model={name}", "```", ""]
    if artifact.parents:
        lines += ["Made from:", "", *(f"- {parent.kind}: {parent.name} {parent.revision}".rstrip() for parent in artifact.parents), ""]
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n" + "\n".join(lines)


def files_by_split(artifact: Artifact) -> dict[str, list[str]]:
    """The files of rows of each split, as summary.json tells them, else by the names of the files."""
    splits: dict[str, list[str]] = {}
    for split, facts in _summary(artifact).get("splits", {}).items():
        if facts.get("num_rows") and facts.get("files"):
            splits[split] = [path if path in artifact.files else f"rows/{path}" for path in facts["files"]]
    if not splits:
        for path in sorted(artifact.files):
            if path.startswith("rows/"):
                splits.setdefault(PurePosixPath(path).name.rpartition("-")[0], []).append(path)
    return splits


def _counts(artifact: Artifact) -> list[str]:
    found = _summary(artifact).get("splits", {})
    return [f"- {split}: {facts.get('num_rows', 0):,} rows" for split, facts in found.items()] + [""] if found else []


def _summary(artifact: Artifact) -> dict[str, Any]:
    path = artifact.folder / "summary.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if "summary.json" in artifact.files else {}
    return found
