"""Law 4: what a recipe from elsewhere, or a choice of --config-dir, may not do. Nothing of it is ever imported or run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from largeforge.config.compose import compose
from largeforge.errors import ConfigError

from .conftest import Put
from .test_compose import problems

HEAD = "defaults: [override /task: sft]\n"
HOSTILE = {
    "a function": (HEAD + "adapter: {_target_: os.system}\n", "adapter._target_", "trust=[os]"),
    "a builtin": (HEAD + "adapter: {_target_: builtins.eval}\n", "adapter._target_", "trust=[builtins]"),
    "one word": (HEAD + "adapter: {_target_: open}\n", "adapter._target_", "largeforge.adapter.<file>.<Class>"),
    "another group": (HEAD + "adapter: {_target_: largeforge.model.nano.Nano}\n", "adapter._target_", "largeforge.adapter.<file>.<Class>"),
    "no typed config": (HEAD + "adapter: {_target_: largeforge.adapter.lora.Nothing}\n", "adapter._target_", "NothingConfig"),
    "a word of ours": (HEAD + "adapter: {_target_: largeforge.build.find}\n", "adapter._target_", "largeforge.adapter.<file>.<Class>"),
    "a class of the base": (HEAD + "adapter: {_target_: largeforge.adapter.lora.Part}\n", "adapter._target_", "PartConfig"),
    "a dotted trick": (HEAD + "adapter: {_target_: 'largeforge.adapter..os.system'}\n", "adapter._target_", "largeforge.adapter.<file>.<Class>"),
    "another story": (HEAD + "task: {_target_: subprocess.run}\n", "task._target_", "trust=[subprocess]"),
    "a story by a part": (HEAD + "task: {_target_: largeforge.adapter.lora.LoRA}\n", "task._target_", "largeforge.task.<file>.<Class>"),
    "hydra by key": (HEAD + "hydra: {run: {dir: /tmp/x}}\n", "hydra", "Hydra's own settings"),
    "hydra by dotted key": (HEAD + "hydra.run.dir: /tmp/x\n", "hydra.run.dir", "Hydra's own settings"),
    "hydra by defaults": ("defaults: [override /task: sft, override /hydra/launcher: joblib]\n", "defaults", "Hydra's own settings"),
    "hydra by package": ("defaults: [override /task: sft, /adapter@hydra.launcher: lora]\n", "defaults", "Hydra's own settings"),
    "hydra by a file": ("defaults: [override /task: sft, /hydra/config]\n", "defaults", "Hydra's own settings"),
    "hydra by header": ("# @package hydra\n" + HEAD + "run: {dir: x}\n", "# @package", "may not choose its package"),
    "another header": ("# a title\n# @package trust\n" + HEAD, "# @package", "may not choose its package"),
    "an environment variable": (HEAD + "name: ${oc.env:HOME}\n", "name", "no resolvers"),
    "a nested resolver": (HEAD + "name: ${oc.env:${seed}}\n", "name", "no resolvers"),
    "a resolver in a list": (HEAD + "adapter: {target_modules: ['${oc.decode:x}']}\n", "adapter.target_modules.0", "no resolvers"),
    "hydra's values": (HEAD + "name: ${hydra.runtime.cwd}\n", "name", "no resolvers"),
    "hydra's resolver": (HEAD + "name: ${hydra:runtime.cwd}\n", "name", "no resolvers"),
    "trust": (HEAD + "trust: [os]\n", "trust", "only the command line"),
    "trust and use it": (HEAD + "trust: [os]\nadapter: {_target_: os.path.join}\n", "adapter._target_", "trust=[os]"),
    "trust by package": ("defaults: [override /task: sft, /adapter@trust: lora]\n", "defaults", "plain name"),
    "folder": (HEAD + "folder: /etc\n", "folder", "only the command line"),
    "another program": ("defaults: [override /task: generate, override /engine: vllm]\nengine: {python: /tmp/x}\n", "engine.python", "only the command line"),
    "words for a program": (
        "defaults: [override /task: generate, override /engine: vllm]\nengine: {arguments: [--middleware, x.y]}\n",
        "engine.arguments",
        "only the command line",
    ),
    "another file": ("defaults: [override /task: sft, /../../etc/passwd]\n", "defaults", "the name of a recipe"),
    "another file by choice": ("defaults: [override /task: ../../x]\n", "defaults", "the name of one choice"),
    "a computed choice": ("defaults: [override /task: '${oc.env:TASK}']\n", "defaults", "the name of one choice"),
    "Hydra's instantiate": (HEAD + "adapter: {_partial_: true}\n", "adapter._partial_", "LargeForge builds its parts itself"),
    "Hydra's arguments": (HEAD + "adapter: {_args_: [1]}\n", "adapter._args_.0", "LargeForge builds its parts itself"),
    "a Python object": (HEAD + "name: !!python/object/apply:os.system [id]\n", "recipe/bad", "could not determine a constructor"),
    "a bomb": (
        HEAD
        + "a: &a [1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d]\n",
        "recipe/bad",
        "unfolds",
    ),
    "itself": ("defaults: [override /task: sft, /recipe/bad]\n", "defaults", "extends itself"),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_refused(name: str, put: Put) -> None:
    text, key, allowed = HOSTILE[name]
    put("recipes/bad.yaml", text)
    found = problems("recipe=bad", "task=sft")
    assert key in found, found
    assert allowed in found[key][1], found[key]
    assert found[key][2].startswith("recipes/bad.yaml:")


def test_there_are_enough() -> None:
    assert len(HOSTILE) >= 12


def test_a_recipe_that_is_extended_is_as_untrusted(put: Put) -> None:
    put("recipes/bad.yaml", HEAD + "hydra: {run: {dir: x}}\nname: ${oc.env:HOME}\n")
    put("recipes/good.yaml", "defaults: [/recipe/bad]\n")
    assert {"hydra", "name"} <= set(problems("recipe=good"))


def test_a_choice_from_elsewhere_is_as_untrusted(put: Put) -> None:
    put("mine/adapter/bad.yaml", "# @package hydra\n_target_: os.system\nr: ${oc.env:HOME}\n")
    found = problems("task=sft", "adapter=bad", "--config-dir", "mine")
    assert {"# @package", "r", "adapter._target_"} <= set(found)


def test_an_engine_from_elsewhere_names_no_program(put: Put) -> None:
    put("mine/engine/bad.yaml", "defaults: [vllm]\npython: /tmp/x\narguments: [--middleware, x.y]\n")
    found = problems("task=generate", "engine=bad", "--config-dir", "mine")
    assert {"python", "arguments"} <= set(found)


def test_a_task_from_elsewhere_may_not_trust_for_the_user(put: Put) -> None:
    put("mine/task/bad.yaml", "# @package _global_\ntask: {_target_: os.path.join}\ntrust: [os]\nfolder: /etc\n")
    found = problems("task=bad", "--config-dir", "mine")
    assert {"trust", "folder", "task._target_"} <= set(found)
    assert "# @package" not in found


def test_the_environment_may_not_trust(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LARGEFORGE_TRUST__0", "os")
    assert "no such group" in problems("task=sft", "trust=[x]")["trust.0"][1]


def test_interpolating_a_key_is_allowed(put: Put) -> None:
    put("recipes/good.yaml", HEAD + "adapter: {alpha: '${adapter.r}', r: '${.dropout_rank}'}\n".replace("'${.dropout_rank}'", "8") + "name: r${seed}\n")
    composed = compose(["recipe=good"])
    assert (composed.values["adapter"]["alpha"], composed.config.name) == (8, "r0")


# ---- packages the user trusts ----

OWN_CONFIG = """
from pydantic import Field, SecretStr
from largeforge.tracker.config import TrackerConfig

class CloudConfig(TrackerConfig):
    api_key: SecretStr = Field(description="Key of the service.")
    url: str = Field(description="Where it is.")
"""


@pytest.fixture
def own(put: Put, desk: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of the user's own with a tracker, and the folder that chooses it."""
    name = f"own_{abs(hash(str(desk))) % 10**8}"
    put(f"{name}/__init__.py", "")
    put(f"{name}/tracker/__init__.py", "")
    put(f"{name}/tracker/config.py", OWN_CONFIG)
    put("mine/tracker/cloud.yaml", f"# A tracker of our own\n_target_: {name}.tracker.cloud.Cloud\napi_key: ???\nurl: https://x/${{name}}\n")
    monkeypatch.syspath_prepend(str(desk))
    return name


def test_a_package_is_trusted_by_the_command_line_or_the_users_settings_only(own: str, put: Put) -> None:
    argv = ["task=sft", "tracker=cloud", "tracker.api_key=k", "--config-dir", "mine"]
    assert f"trust=[{own}]" in problems(*argv)["tracker._target_"][1]
    assert own not in sys.modules
    assert compose([*argv, f"trust=[{own}]"]).values["tracker"]["url"] == "https://x/None"
    put("../home/.largeforge/settings.yaml", f"trust: [{own}]\n")
    assert compose(argv).config.trust == [own]
    put("../home/.largeforge/settings.yaml", "trust: []\nseed: 3\n")
    assert "knows one key" in problems(*argv)["seed"][1]


def test_secrets_are_masked_wherever_a_config_is_shown(own: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from largeforge.__main__ import main

    argv = ["task=sft", "tracker=cloud", f"trust=[{own}]", "--config-dir", "mine"]
    monkeypatch.setenv("LARGEFORGE_TRACKER__API_KEY", "s3cr3t-key")
    composed = compose([*argv, "name=${tracker.api_key}"])
    assert composed.config.tracker.api_key.get_secret_value() == "s3cr3t-key"  # type: ignore[attr-defined]
    assert "s3cr3t-key" not in str(composed.values)
    for flag in (["--cfg", "job"], ["--origins"]):
        assert main([*argv, *flag]) == 0
        assert "s3cr3t-key" not in capsys.readouterr().out
    assert "s3cr3t-key" not in str(compose([*argv, "tracker.api_key=s3cr3t-key"]))
    with pytest.raises(ConfigError) as caught:
        compose([*argv, "tracker.api_ky=s3cr3t-key", "tracker.url=null"])
    assert "s3cr3t-key" not in str(caught.value)
