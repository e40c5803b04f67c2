"""argv -> one config: order, environment, recipes, origins, free text."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from largeforge.config.command_line import read_flags
from largeforge.config.compose import compose
from largeforge.config.gather import gather
from largeforge.errors import ConfigError
from largeforge.model.config import HFConfig, NanoConfig
from largeforge.task.config import ChatConfig, TrainConfig

from .conftest import Put


def problems(*argv: str, files: bool = False) -> dict[str, tuple[str, str, str]]:
    """Compose what must fail; key -> (value, allowed, origin)."""
    with pytest.raises(ConfigError) as caught:
        compose(argv, files=files)
    return {problem.key: (problem.value, problem.allowed, problem.origin) for problem in caught.value.problems}


def tried(*argv: str, files: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(argv, files=files)
    return caught.value.next_step


def test_composes_a_typed_config() -> None:
    """Proves SYS-F-062, SYS-F-063: YAML choices become a typed config, each group its own class."""
    composed = compose(["task=sft", "model=nano"])
    assert isinstance(composed.config, TrainConfig)
    assert isinstance(composed.config.model, NanoConfig)
    assert composed.config.model.shape.hidden_size == 256
    assert composed.task == "sft"
    assert composed.choices["model"] == "nano"
    assert composed.values["model"]["_target_"] == "largeforge.model.nano.Nano"
    assert composed.values["trainer"]["early_stopping"] == {"metric": "validation_loss", "mode": "min", "patience": 0, "min_delta": 0.0}


def test_a_choice_chooses_for_other_groups() -> None:
    """data=demo brings its benchmark; task default < data's choice < recipe < command line."""
    assert compose(["task=sft", "data=demo"]).choices["benchmark"] == "exact_match"
    assert compose(["task=sft", "data=chat", "data.path=x"]).choices["benchmark"] == "none"
    assert compose(["task=sft", "data=demo", "benchmark=none"]).choices["benchmark"] == "none"


def test_a_recipe_wins_over_a_choice(put: Put) -> None:
    put("recipes/quiet.yaml", "defaults: [override /task: sft, override /data: demo, override /benchmark: none]\n")
    assert compose(["recipe=quiet"]).choices["benchmark"] == "none"
    assert compose(["recipe=quiet", "benchmark=exact_match"]).choices["benchmark"] == "exact_match"


def test_a_choice_may_override_a_group_that_stands_after_it(put: Put) -> None:
    put("mine/data/slow.yaml", "defaults: [demo, override /trainer: cpu, override /tracker: csv]\nnum_workers: 1\n")
    composed = compose(["task=sft", "data=slow", "--config-dir", "mine", "tracker=none"])
    assert composed.choices["trainer"] == "cpu"
    assert composed.choices["tracker"] == "none"
    assert composed.values["data"]["num_workers"] == 1
    assert composed.choices["benchmark"] == "exact_match"


def test_order_of_winning(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves SYS-M-007: config.yaml < task < recipe < environment < command line, without a change of code."""
    put("recipes/r.yaml", "defaults: [override /task: sft]\nseed: 1\ntrainer: {batch_size: 2}\nadapter: {r: 3}\n")
    assert compose(["recipe=r"]).config.seed == 1
    monkeypatch.setenv("LARGEFORGE_TRAINER__BATCH_SIZE", "4")
    monkeypatch.setenv("LARGEFORGE_TRAINER__CHECKPOINT__EVERY_STEPS", "7")
    values = compose(["recipe=r", "adapter.r=9"]).values
    assert (values["trainer"]["batch_size"], values["trainer"]["checkpoint"]["every_steps"], values["adapter"]["r"]) == (4, 7, 9)
    assert compose(["recipe=r", "trainer.batch_size=5"]).values["trainer"]["batch_size"] == 5


def test_a_recipe_chooses_the_task_and_the_command_line_still_wins(put: Put) -> None:
    put("recipes/r.yaml", "defaults:\n  - override /task: sft\n  - override /model: nano\n")
    assert compose(["recipe=r"]).choices["model"] == "nano"
    assert compose(["recipe=r", "model=smollm2"]).choices["model"] == "smollm2"
    assert isinstance(compose(["recipe=r", "task=chat"]).config, ChatConfig)


def test_a_recipe_extends_another_and_says_override_or_not(put: Put) -> None:
    put("recipes/base.yaml", "defaults: [task: sft, model: nano]\nseed: 1\nname: base\n")
    put("recipes/team/mid.yaml", "defaults:\n  - override /adapter: none\n  - /recipe/base\nseed: 2\n")
    put("recipes/top.yaml", "defaults: [team/mid]\ntrainer: {batch_size: 3}\n")
    composed = compose(["recipe=top"])
    assert composed.choices["model"] == "nano"
    assert composed.choices["adapter"] == "none"
    assert (composed.config.seed, composed.config.name, composed.recipe) == (2, "base", "top")
    assert composed.values["trainer"]["batch_size"] == 3


def test_recipes_stand_in_five_places(put: Put, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves SYS-U-003: ./recipes, $LARGEFORGE_RECIPES, ~/.largeforge/recipes, --config-dir, the ones that ship, and by path."""
    text = "defaults: [override /task: sft]\nname: {}\n"
    put("recipes/a.yaml", text.format("here"))
    put("shelf/b.yaml", text.format("variable"))
    put("../home/.largeforge/recipes/c.yaml", text.format("home"))
    put("extra/recipes/d.yaml", text.format("extra"))
    put("extra/recipe/e.yaml", text.format("hydra"))
    put("loose/f.yaml", "defaults: [g]\n")
    put("loose/g.yaml", text.format("path"))
    monkeypatch.setenv("LARGEFORGE_RECIPES", str(desk / "shelf"))
    names = [compose([f"recipe={name}", "--config-dir", "extra"]).config.name for name in ("a", "b", "c", "d", "e")]
    assert names == ["here", "variable", "home", "extra", "hydra"]
    assert compose(["recipe=loose/f.yaml"]).config.name == "path"
    assert compose([f"recipe={desk / 'loose' / 'f.yaml'}"]).config.name == "path"
    assert compose(["recipe=nano_check"]).choices["model"] == "nano"


def test_flags_stand_anywhere(put: Put) -> None:
    put("extra/recipes/d.yaml", "defaults: [override /task: sft]\n")
    for argv in (
        ["--config-dir", "extra", "recipe=d", "seed=3"],
        ["recipe=d", "--config-dir", "extra", "seed=3"],
        ["recipe=d", "seed=3", "--config-dir=extra"],
    ):
        assert compose(argv).config.seed == 3


@pytest.mark.parametrize(
    "text",
    [
        "What is 2+2, really?",
        "a=b, c={d} [e",
        "it's",
        'say "hi"',
        "100%",
        "1e5",
        "true",
        "3",
        "back\\slash \\n",
        "ends with \\",
        " spaces around ",
        "[list]",
        "Köln: ä, ö",
        "~tilde ${notclosed",
        "(paren",
        "a:b",
    ],
)
def test_free_text_needs_no_escaping(text: str) -> None:
    config = compose(["task=chat", f"prompt={text}"]).config
    assert isinstance(config, ChatConfig)
    assert config.prompt == text


def test_text_that_looks_like_a_number_stays_text(put: Put) -> None:
    assert compose(["task=sft", "model.revision=1e5", "name=007"]).values["model"]["revision"] == "1e5"
    assert compose(["task=sft", "name=007"]).config.name == "007"
    put("recipes/r.yaml", "defaults: [override /task: sft]\nname: 2024\nmodel: {revision: 1e5}\n")
    composed = compose(["recipe=r"])
    assert (composed.config.name, composed.values["model"]["revision"]) == ("2024", "1e5")
    assert compose(["task=sft", "plan=true"]).config.plan is True
    assert compose(["task=sft", "data.validation=0.5"]).values["data"]["validation"] == 0.5


@pytest.mark.parametrize("path", ["org/name", "outputs/a=1/artifact", "./x y", "/abs/p,q", "outputs/sft/2026-01-01/10-00-00/artifact"])
def test_model_takes_a_path_or_hub_id(path: str) -> None:
    composed = compose(["task=chat", f"model={path}"])
    assert composed.choices["model"] == "hf"
    assert isinstance(composed.config, ChatConfig)
    assert isinstance(composed.config.model, HFConfig)
    assert composed.config.model.path == path


def test_model_and_data_take_what_stands_in_the_folder(desk: Path, put: Put) -> None:
    (desk / "mine").mkdir()
    put("rows.jsonl", "")
    (desk / "nano").mkdir()
    composed = compose(["task=sft", "model=mine", "data=rows.jsonl"])
    assert (composed.values["model"]["path"], composed.values["data"]["path"]) == ("mine", "rows.jsonl")
    assert compose(["task=sft", "model=nano"]).choices["model"] == "nano"


def test_quiet_signs() -> None:
    """+ and ++ are not needed, and do not harm; a key they would add is told."""
    assert compose(["task=sft", "+model=nano", "++seed=3", "+adapter.r=2"]).config.seed == 3
    assert problems("task=sft", "+model.max_lenght=3")["model.max_lenght"][2] == "command line"


def test_interpolation() -> None:
    composed = compose(["task=sft", "adapter.alpha=${adapter.r}", "name=run-${seed}"])
    assert (composed.values["adapter"]["alpha"], composed.config.name) == (16, "run-0")
    assert "nokey" in problems("task=sft", "name=${nokey}")["name"][1]


def test_environment_in_what_is_saved_stays_unresolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHO", "me")
    composed = compose(["task=sft", "name=${oc.env:WHO}"])
    assert composed.config.name == "me"
    assert composed.values["name"] == "${oc.env:WHO}"


def test_environment_mistakes_name_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LARGEFORGE_TRANER__BATCH_SIZE", "4")
    monkeypatch.setenv("LARGEFORGE_ADAPTER__RNK", "4")
    monkeypatch.setenv("LARGEFORGE_DATA__MAX_LENGTH", "many")
    found = problems("task=sft")
    assert found["traner.batch_size"][2] == "LARGEFORGE_TRANER__BATCH_SIZE"
    assert "LARGEFORGE_TRAINER__BATCH_SIZE" in found["traner.batch_size"][1]
    assert found["adapter.rnk"] == ("4", "no such key; nearest: adapter.r", "LARGEFORGE_ADAPTER__RNK")
    assert found["data.max_length"] == ("many", "a whole number, 1 or more", "LARGEFORGE_DATA__MAX_LENGTH")


def test_environment_of_another_task_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LARGEFORGE_TRAINER__BATCH_SIZE", "4")
    assert "trainer" not in compose(["task=chat"]).values


def test_origins(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last setter wins: file:line, the command line, or a variable."""
    put("recipes/base.yaml", "defaults: [override /task: sft]\nseed: 1\nadapter:\n  alpha: 8\n  r: 4\n")
    put("recipes/top.yaml", "defaults: [/recipe/base]\n\nadapter:\n  r: 5\n")
    monkeypatch.setenv("LARGEFORGE_METHOD__LEARNING_RATE", "0.1")
    found = gather(read_flags(["recipe=top", "model=smollm2", "name=x"]))
    assert found.origin("adapter.r") == "recipes/top.yaml:4"
    assert found.origin("adapter.alpha") == "recipes/base.yaml:4"
    assert found.origin("seed") == "recipes/base.yaml:2"
    assert found.origin("name") == "command line"
    assert found.origin("method.learning_rate") == "LARGEFORGE_METHOD__LEARNING_RATE"
    assert found.origin("model.dtype").startswith("conf/model/hf.yaml:")
    assert found.origin("model.shape.hidden_size").startswith("conf/model/smollm2.yaml:")


def test_composes_from_several_threads() -> None:
    """Hydra's own initialize fails in threads; ours keeps no global state."""
    results: list[int] = []

    def work(seed: int) -> None:
        for _ in range(3):
            results.append(compose(["task=sft", "model=nano", f"seed={seed}"]).config.seed - seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0] * 18
