"""The Hugging Face Hub as a place to put artifacts: one commit each, with a card that says what it is and how to use it.

A repository keeps its history, so a newer artifact may follow an older one there; nothing else is overwritten. Fetches nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from largeforge.artifact import MANIFEST, read_artifact
from largeforge.contract import Progress
from largeforge.errors import StorageError
from largeforge.storage.card import CARD, card
from largeforge.storage.faults import said
from largeforge.storage.payload import Payload

PREFIX = "hub://"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
REPOSITORIES = {"data": "dataset", "model": "model", "adapter": "model"}
OF_THE_HUB = frozenset({".gitattributes", CARD})  # what a new repository holds


class Hub:
    """Data sets, models and adapters.

    Args:
        private: whether a repository that is made is private.
        progress: where it is said what happens.
    """

    def __init__(self, *, private: bool, progress: Progress | None = None) -> None:
        self.private = private
        self.progress = progress

    def put(self, folder: Path, url: str) -> str:
        """Send an artifact to `hub://org/name` in one commit; return the repository's page. What stands there already is not sent again.

        Raises:
            StorageError: a kind that the Hub has no place for, no such name, not allowed, not in reach, or something else stands there.
            ArtifactError: the folder is no artifact, or not what its manifest says.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        name = name_of(url)
        payload = Payload.of(folder)
        artifact = payload.artifact or read_artifact(folder)  # says that it is none
        if artifact.kind not in REPOSITORIES:
            raise StorageError(
                f"The Hub has no place for an artifact of kind {artifact.kind} (it takes {', '.join(REPOSITORIES)}).", next_step="to=s3://... or a folder"
            )
        what = REPOSITORIES[artifact.kind]
        with self.told(name):
            api = HfApi()
            page = str(api.create_repo(name, repo_type=what, private=self.private, exist_ok=True))
            there = set(api.list_repo_files(name, repo_type=what))
            old = self._standing(api, name, what) if MANIFEST in there else None
            if old is None and there - OF_THE_HUB:
                strange = sorted(there - OF_THE_HUB)
                raise StorageError(
                    f"{url} holds {len(strange)} files that LargeForge did not put there ({', '.join(strange[:3])}).", next_step="choose another name"
                )
            if old is not None and old["id"] == artifact.id:
                self._say(f"{name} holds this artifact already.")
                return page
            before = set() if old is None else {*old["files"], *old.get("about", {})}
            operations: list[Any] = [CommitOperationAdd(path, str(file.path)) for path, file in sorted(payload.files.items())]
            if not (folder / CARD).is_file():
                operations.append(CommitOperationAdd(CARD, card(artifact, name).encode()))
            operations += [CommitOperationDelete(path) for path in sorted((before & there) - payload.files.keys() - OF_THE_HUB)]
            size = sum(file.size_bytes for file in payload.files.values())
            self._say(f"Sending {len(payload.files)} files, {size / 1e6:,.1f} MB, to {page}")
            api.create_commit(name, operations, commit_message=f"{artifact.kind} artifact {artifact.id[:12]}", repo_type=what)
        return page

    def _standing(self, api: Any, name: str, what: str) -> dict[str, Any]:
        """The manifest that the repository holds."""
        path = api.hf_hub_download(name, MANIFEST, repo_type=what)
        try:
            found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            _ = found["id"], found["files"]
        except (ValueError, KeyError, TypeError) as fault:
            raise StorageError(f"{PREFIX}{name} holds a {MANIFEST} that is not LargeForge's.", next_step="choose another name") from fault
        return found

    def _say(self, text: str) -> None:
        if self.progress is not None:
            self.progress.say(text)

    @contextmanager
    def told(self, name: str) -> Iterator[None]:
        """Turn what huggingface_hub raises into a StorageError that says what to do."""
        from huggingface_hub import constants
        from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is the one of its HTTP client, whichever that is
            HfHubHTTPError,
            HFValidationError,
            HTTPError,
            LocalTokenNotFoundError,
            OfflineModeIsEnabled,
        )

        login = "`hf auth login` with a token that may write, or HF_TOKEN=<it>"
        try:
            yield
        except OfflineModeIsEnabled as fault:
            raise StorageError(f"{name} cannot be sent: HF_HUB_OFFLINE forbids to ask the Hub.", next_step="HF_HUB_OFFLINE=0, or to=<a folder>") from fault
        except LocalTokenNotFoundError as fault:
            raise StorageError(f"{name} cannot be sent: the Hub wants to know who you are.", next_step=login) from fault
        except HFValidationError as fault:
            raise StorageError(f"to = {PREFIX}{name}: the Hub takes no such name ({said(fault)}).", next_step=f"to={PREFIX}ORG/NAME") from fault
        except HfHubHTTPError as fault:
            status = str(getattr(fault.response, "status_code", "no status"))
            if status in ("401", "403", "404"):
                who = "does not know you" if status == "401" else f"does not let you write to {name.partition('/')[0]}"
                raise StorageError(f"{name} cannot be sent: the Hub {who} (it answered {status}).", next_step=login) from fault
            raise StorageError(
                f"{name} could not be sent: the Hub answered {status} ({said(fault)}).", next_step="try again later: nothing half stands there"
            ) from fault
        except (HTTPError, OSError) as fault:
            raise StorageError(
                f"{name} could not be sent: the Hub at {constants.ENDPOINT} is not in reach ({said(fault)}).",
                next_step="check the network (HTTPS_PROXY, HF_ENDPOINT), or to=<a folder>",
            ) from fault


def name_of(url: str) -> str:
    """Return org/name.

    Raises:
        StorageError: not of that form.
    """
    name = url.removeprefix(PREFIX).strip("/")
    if not url.startswith(PREFIX) or not NAME.fullmatch(name):
        raise StorageError(f"to = {url} names no repository of the Hub.", next_step=f"to={PREFIX}ORG/NAME")
    return name
