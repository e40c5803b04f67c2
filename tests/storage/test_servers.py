"""scripts/servers: the door to servers that tests speak to."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.storage.servers import AT_START, ROOT

DOOR = str(ROOT / "scripts" / "servers")


def test_it_knows_what_there_is() -> None:
    done = subprocess.run([DOOR, "oracle"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "scripts/servers azurite\n")


def test_without_npm_it_says_so(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "mkdir", "env"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    done = subprocess.run([DOOR, "azurite"], capture_output=True, text=True, env={"PATH": str(tools), "HOME": str(tmp_path)})
    assert done.returncode == 2 and "npm is not installed" in done.stderr and not (tmp_path / ".cache").exists()


def test_an_installed_one_is_only_named(tmp_path: Path) -> None:
    """Nothing is asked of the registry twice."""
    version = next(line for line in Path(DOOR).read_text().splitlines() if line.startswith("azurite=")).partition("=")[2].split()[0]
    program = tmp_path / f"servers/azurite-{version}/node_modules/.bin/azurite-blob"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    done = subprocess.run(
        [DOOR, "azurite"], capture_output=True, text=True, env={**AT_START, "LARGEFORGE_CACHE": str(tmp_path), "npm_config_registry": "http://127.0.0.1:9"}
    )
    assert (done.returncode, done.stdout) == (0, f"{program}\n")
