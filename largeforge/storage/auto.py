"""Whatever a path begins with: s3://, gs://, az:// go to their storage with the environment's settings, all else is this machine's."""

from __future__ import annotations

from pathlib import Path

from largeforge.contract import Progress, Storage
from largeforge.storage.address import SCHEMES, scheme_of, unknown
from largeforge.storage.config import AutoConfig, AZConfig, GSConfig, S3Config
from largeforge.storage.local import Local


class Auto:
    """Every storage there is, chosen by the URL."""

    def __init__(self, config: AutoConfig, *, progress: Progress | None = None) -> None:
        self.config = config
        self.progress = progress
        self._made: dict[str, Storage] = {}

    def is_remote(self, path: str) -> bool:
        """Whether it is a URL."""
        return scheme_of(path) is not None

    def fetch(self, url: str) -> list[Path]:
        """Bring what a URL means; see Remote.fetch and Local.fetch."""
        return self._storage(url).fetch(url)

    def put(self, folder: Path, url: str) -> str:
        """Send a folder; see Remote.put and Local.put."""
        return self._storage(url).put(folder, url)

    def names(self, url: str) -> list[str]:
        """Names below a folder; see Remote.names and Local.names."""
        return self._storage(url).names(url)

    def remove(self, url: str) -> None:
        """Delete a folder; see Remote.remove and Local.remove."""
        self._storage(url).remove(url)

    def _storage(self, url: str) -> Storage:
        scheme = scheme_of(url)
        if scheme is not None and scheme not in SCHEMES:
            raise unknown(url)
        name = SCHEMES[scheme] if scheme is not None else "file"
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> Storage:
        gib, target = self.config.cache_gib, self.config.target
        if name == "s3":
            from largeforge.storage.s3 import S3

            return S3(S3Config(_target_=target, endpoint=None, region=None, anonymous=False, cache_gib=gib), progress=self.progress)
        if name == "gs":
            from largeforge.storage.gs import GS

            return GS(GSConfig(_target_=target, endpoint=None, project=None, anonymous=False, cache_gib=gib), progress=self.progress)
        if name == "az":
            from largeforge.storage.az import AZ

            return AZ(AZConfig(_target_=target, endpoint=None, account=None, anonymous=False, cache_gib=gib), progress=self.progress)
        return Local(self.config, progress=self.progress)
