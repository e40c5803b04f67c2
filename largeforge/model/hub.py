"""Models of the Hugging Face Hub: fetch one into huggingface_hub's own cache, or say why that cannot be; loads nothing.

Only what transformers reads is fetched: weights as safetensors, config, tokenizer, template; nothing from subfolders.
"""

from __future__ import annotations

import re
from pathlib import Path

from largeforge.errors import ModelError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WANTED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
UNWANTED = ("*/*", "consolidated*")  # other frameworks' copies of the same weights


def fetch(name: str, revision: str | None) -> Path:
    """Return the folder of a Hub model's snapshot, downloading what is not in the cache yet; the folder is named by its commit.

    Raises:
        ModelError: no hub in reach, gated, not found, no such revision, disk full; each with the mend.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is the one of its HTTP client, whichever that is
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"{name} (revision {revision})" if revision else name
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED)))
    except GatedRepoError as fault:
        raise ModelError(
            f"{name} is gated: its owner asks you to accept a licence first (the Hub answered {_status(fault)}).",
            next_step=f"accept it at https://huggingface.co/{name}, then `hf auth login` or HF_TOKEN=<your token>; or model.path=<a local folder>",
        ) from fault
    except RevisionNotFoundError as fault:
        raise ModelError(f"{name} has no revision {revision} on the Hub.", next_step="model.revision=main, or a commit or tag that its page lists") from fault
    except RepositoryNotFoundError as fault:
        raise ModelError(
            f"{name} is not on the Hub, or it is private (the Hub answered {_status(fault)}).",
            next_step="check the spelling of model.path; a private model needs `hf auth login` or HF_TOKEN=<your token>",
        ) from fault
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as fault:
        raise _out_of_reach(at, fault) from fault
    except HfHubHTTPError as fault:
        status = _status(fault)
        mend = "check HF_TOKEN: `hf auth whoami`" if status in ("401", "403") else "try again later, or model.path=<a local folder>"
        raise ModelError(f"{at} could not be fetched: the Hub answered {status}.", next_step=mend) from fault
    except HTTPError as fault:  # the line broke after it had stood
        raise ModelError(f"{at} could not be fetched to the end: {fault}.", next_step="run it again: what has come is kept") from fault
    except OSError as fault:
        raise ModelError(f"{at} could not be fetched: {fault}.", next_step="free some disk, or HF_HOME=<a folder on another disk>") from fault


def cached(name: str, revision: str | None) -> Path | None:
    """Return the snapshot's folder if it is in the cache already; asks no network. It may hold a part of the files."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, IncompleteSnapshotError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED)))
    except IncompleteSnapshotError as part:
        return Path(part.snapshot_path)  # config and tokenizer may be among what has come
    except (OSError, HFValidationError):
        return None


def _status(fault: Exception) -> str:
    return str(getattr(getattr(fault, "response", None), "status_code", "no status"))


def _out_of_reach(at: str, fault: Exception) -> ModelError:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return ModelError(f"{at} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it.", next_step="HF_HUB_OFFLINE=0, or model.path=<a local folder>")
    reason = str(fault).partition("\n")[0]
    return ModelError(
        f"{at} is not in the cache, and the Hub at {constants.ENDPOINT} is not in reach ({reason}).",
        next_step="check the network (HTTPS_PROXY, HF_ENDPOINT); or model.path=<a local folder>; or model=smollm2, which needs no hub",
    )
