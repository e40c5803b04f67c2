"""Tab completion: what may follow, and the bash script asked as bash asks it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from largeforge.__main__ import main
from largeforge.config.completion import complete, script

from .conftest import Put


def test_words_that_may_follow(put: Put) -> None:
    """Proves SYS-U-006: groups, choices, recipes, keys, literals, flags."""
    assert complete([""]) == ["task=", "recipe="]
    assert {"task=chat", "task=sft"} <= set(complete(["task="]))
    assert "task=chat" not in complete(["task=s"])
    assert complete(["task=sft", "model=nan"]) == ["model=nano"]
    assert complete(["task=sft", "mod"]) == ["model=", "model."]
    assert complete(["task=sft", "adapter.r"]) == ["adapter.r=", "adapter.rslora="]
    assert complete(["task=sft", "trainer.precision="]) == [f"trainer.precision={word}" for word in ("auto", "fp32", "bf16", "fp16")]
    assert complete(["task=sft", "adapter.rslora=t"]) == ["adapter.rslora=true"]
    assert complete(["task=sft", "trainer.checkpoint.keep"]) == [f"trainer.checkpoint.{key}=" for key in ("keep_last", "keep_best")]
    assert "model=nano,smollm2" in complete(["-m", "task=sft", "model=nano,sm"])
    assert complete(["task=chat", "adapt"]) == []
    assert complete(["--ver"]) == ["--version"]
    assert complete(["--cfg", "j"]) == ["job"]
    put("extra/recipes/mine.yaml", "seed: 1\n")
    assert complete(["--config-dir", "extra", "recipe=mi"]) == ["recipe=mine"]


def test_scripts_name_their_shell(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert main(["--completion", shell]) == 0
        assert shell in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("largeforge task=sft model=nan", ["nano"]),
        ("largeforge task=sft trainer.precision=", ["auto", "fp32", "bf16", "fp16"]),
        ("largeforge task=sft adapter.al", ["adapter.alpha="]),
        ("python -m largeforge task=sft --cfg j", ["job"]),
        ("python other.py task=", []),
    ],
)
def test_bash(line: str, replies: list[str], tmp_path: Path) -> None:
    """Proves SYS-U-006: the script is sourced by a real bash, and its function called as bash calls it."""
    bash = shutil.which("bash")
    assert bash
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, command in (("largeforge", f'exec {sys.executable} -m largeforge "$@"'), ("python", f'exec {sys.executable} "$@"')):
        (tools / name).write_text(f"#!/bin/sh\n{command}\n")
        (tools / name).chmod(0o755)
    (tmp_path / "completion.bash").write_text(script("bash"))
    words = line.split(" ")
    function = "_largeforge" if words[0] == "largeforge" else "_largeforge_python"
    asked = f"""
        source {tmp_path}/completion.bash
        complete -p {words[0]} | grep -q -- '-F {function} {words[0]}' || exit 3
        COMP_WORDS=({" ".join(words)}); COMP_LINE='{line}'; COMP_POINT={len(line)}; COMP_CWORD={len(words) - 1}
        {function}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(root)}
    answer = subprocess.run([bash, "-c", asked], capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert answer.returncode == 0, answer.stderr
    assert [word for word in answer.stdout.splitlines() if word] == replies


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_take_the_script(shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed here; its script was read, not run")
    (tmp_path / "script").write_text(script(shell))
    checked = subprocess.run([program, "-n", str(tmp_path / "script")], capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr
