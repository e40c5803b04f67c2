"""Config mistakes: each kind told as law 3 says, and three hundred of them from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from largeforge.__main__ import main
from largeforge.config.check import key_table
from largeforge.config.command_line import read_flags
from largeforge.config.compose import compose
from largeforge.config.gather import gather
from largeforge.errors import ConfigError

from .conftest import Put
from .test_compose import problems, tried


def test_the_example_of_our_style(put: Put) -> None:
    """Proves SR-NF-041, SYS-U-001, SYS-U-004: what was wrong, the value, what is allowed, where, and the next command."""
    put("chats.jsonl", "{}\n")
    put("recipes/team.yaml", "defaults: [override /task: sft, override /data: chat]\n\n\n\n\ntrainer:\n  precision: bf8\n")
    argv = ["task=sft", "recipe=team", "adapter.rnk=8", "data.path=chats.json"]
    found = problems(*argv, files=True)
    assert found["adapter.rnk"] == ("8", "no such key; nearest: adapter.r", "command line")
    assert found["trainer.precision"] == ("bf8", "one of: auto, fp32, bf16, fp16", "recipes/team.yaml:7")
    assert found["data.path"] == ("chats.json", "no such file; in this folder: chats.jsonl", "command line")
    assert tried(*argv, files=True) == "python -m largeforge task=sft recipe=team adapter.r=8 data.path=chats.jsonl trainer.precision=bf16"


@pytest.mark.parametrize(
    ("argv", "key", "allowed"),
    [
        ("task=sft model=nanoo", "model", "nearest: nano"),
        ("task=stf", "task", "nearest: sft"),
        ("task=sft modle=nano", "modle", "nearest: model"),
        ("task=sft +model.max_lenght=3", "model.max_lenght", "no such key"),
        ("task=sft data=chat", "data.path", "must be given"),
        ("task=sft adapter=none adapter.r=8", "adapter.r", "adapter=lora has: add adapter=lora"),
        ("task=chat adapter.r=8", "adapter.r", "task=chat has no adapter"),
        ("task=chat method=sft", "method", "task=chat has no method"),
        ("task=serve guard.rate.requests_per_min=5", "guard.rate.requests_per_min", "nearest: guards.rate.requests_per_minute"),
        ("task=sft train.max_steps=3", "train.max_steps", "nearest: trainer.max_steps"),
        ("task=sft max_steps=3", "max_steps", "nearest: trainer.max_steps"),
        ("task=sft trainer.max_steps=true", "trainer.max_steps", "a whole number, 1 or more or null"),
        ("task=sft trainer.max_steps=1.5", "trainer.max_steps", "a whole number"),
        ("task=sft adapter.rslora=1", "adapter.rslora", "true or false"),
        ("task=sft adapter.dropout=1", "adapter.dropout", "below 1"),
        ("task=sft adapter.dropout=nan", "adapter.dropout", "a number"),
        ("task=sft adapter.r=4,8", "adapter.r", "add -m"),
        ("task=sft data.packing=yes", "data.packing", "one of: auto, true, false"),
        ("task=sft ~adapter", "~adapter", "choose none"),
        ("task=sft adapter=[lora,none]", "adapter", "one of: lora, none"),
        ("task=sft adapter.r.x=1", "adapter.r", "not keys below it"),
        ("task=sft hydra.run.dir=x", "hydra.run.dir", "add -m"),
        ("task=sft recipe=nano_chek", "recipe", "nearest: nano_check"),
        ("model=nano", "task", "one of: chat"),
        ("task=sft nano", "nano", "no setting"),
        ("task=sft trainer.micro_batch_size=64 data.packing=false", "trainer.micro_batch_size", "at most trainer.batch_size"),
        ("task=distill model=nano", "teacher", "must be given"),
        (
            "task=distill model=nano teacher=nano method.on_policy.share=0.5 trainer.devices=2 trainer.strategy=fsdp benchmark=none",
            "trainer.strategy",
            "different lengths",
        ),
        ("task=distill model=nano teacher=nano method.logits_weight=0 method.nll_weight=0", "method.logits_weight", "nothing is learnt"),
        ("task=distill model=nano teacher=nano method.logits_weight=0 method.on_policy.share=0.5", "method.on_policy.share", "teach nothing"),
        ("task=distill model=nano teacher=nano method.teacher_logits=cached method.on_policy.share=0.5", "method.on_policy.share", "cannot be asked before"),
        ("task=distill model=nano teacher=nano method.teacher_logits=cached method.hidden.weight=1", "method.hidden.weight", "not kept on disk"),
        ("task=distill model=nano teacher=nano assistant=nano method.teacher_logits=cached", "method.teacher_logits", "one model's logits"),
        ("task=distill model=nano teacher=nano method.teacher_logits=cached method.logits_weight=0", "method.teacher_logits", "nothing is asked"),
        ("task=distill model=nano teacher=nano method.progressive.growth=layers", "method.progressive.growth", "set method.hidden.weight"),
        (
            "task=distill model=nano teacher=nano assistant=nano method.progressive.growth=layers method.hidden.weight=1",
            "method.progressive.growth",
            "not to both",
        ),
        ("task=distill model=nano teacher=nano assistant=nano method.progressive.share=0", "method.progressive.share", "no step is left"),
        ("task=distill model=nano teacher=nano method.progressive.share=0.2", "method.progressive.share", "no stages"),
        ("task=distill model=nano teacher=nano method.jsd_beta=0.2", "method.jsd_beta", "only divergence=jsd"),
        ("task=distill model=nano teacher=nano method.top_k=8", "method.top_k", "says all its logits"),
        ("task=distill model=nano teacher=nano method.hidden.layers={1:2}", "method.hidden.layers", "no hidden states"),
        ("task=distill model=nano teacher=nano method.on_policy.max_tokens=8", "method.on_policy.max_tokens", "writes no answers"),
        ("task=distill model=nano teacher=nano method.logits_weight=0 method.temperature=2", "method.temperature", "count for nothing"),
        ("task=sft trainer.checkpoint.keep_best=1 data.validation=0", "trainer.checkpoint.keep_best", "needs validation rows"),
        ("task=sft trainer.early_stopping.patience=1", "trainer.early_stopping.patience", "trainer.validate_every_steps"),
        ("task=sft trainer.checkpoint.allow_changes=[seed]", "trainer.checkpoint.allow_changes", "a run that goes on"),
        ("task=sft trainer.early_stopping.mode=max", "trainer.early_stopping.mode", "nothing is judged by it"),
        ("task=sft trainer.checkpoint.keep_best=1 data.validation=0.1 trainer.early_stopping.min_delta=1", "trainer.early_stopping.min_delta", "patience"),
        ("task=sft trainer=cpu trainer.precision=fp16", "trainer.precision", "fp16 trains on a GPU"),
        ("task=sft trainer=cpu model.attention=flex", "model.attention", "runs on a GPU"),
        ("task=sft trainer=gpu trainer.precision=fp32 model.attention=flash", "model.attention", "bf16 or fp16"),
        ("task=sft model=nano data.max_length=4096", "data.max_length", "at most 2048"),
        ("task=sft plan=rtx4091", "plan", "a device: "),
        ("task=sft --config-dir nowhere", "--config-dir", "no such folder"),
        ("task=sft trainer.devices=32", "trainer.batch_size", "at least one row"),
    ],
)
def test_each_kind_is_told(argv: str, key: str, allowed: str) -> None:
    """Proves SYS-F-063, SYS-U-004."""
    found = problems(*argv.split())
    assert list(found) == [key], found
    assert allowed in found[key][1]


def test_the_command_to_try_is_right() -> None:
    for argv in (
        "task=sft model=nanoo trainer.max_step=0 trainer.precison=bf8 adapter.dropout=2",
        "task=sft adapter=none adapter.r=8",
        "task=sft trainer.max_steps=2.0 seed=-1 trainer=cpu trainer.precision=fp16",
        "model=nano",
        "task=sft data.max_length=90000",
        "task=sft lr=1e-4 adapter.rank=8",
    ):
        command = tried(*argv.split())
        assert command.startswith("python -m largeforge task=")
        compose(command.removeprefix("python -m largeforge ").split())


def test_a_bare_word_that_is_a_task() -> None:
    assert "nearest: task=sft" in problems("sft")["sft"][1]
    assert tried("sft", "seed=x") == "python -m largeforge task=sft seed=0"


def test_combinations_are_told_beside_other_mistakes() -> None:
    found = problems("task=sft", "model=nano", "data.max_length=4096", "adapter.rnk=1", "trainer.precision=bf8")
    assert set(found) == {"data.max_length", "adapter.rnk", "trainer.precision"}


def test_an_unknown_choice_is_replaced_by_the_nearest_for_the_rest_of_the_check() -> None:
    found = problems("task=sft", "model=nanoo", "data.max_length=4096", "model.init_sed=3")
    assert set(found) == {"model", "data.max_length", "model.init_sed"}
    assert found["model.init_sed"][1].endswith("nearest: model.init_seed")


def test_broken_yaml_tells_file_line_and_column(put: Put) -> None:
    """Proves SYS-D-005: configuration files are YAML; what is no YAML is told where it breaks."""
    put("recipes/broken.yaml", "defaults:\n  - override /task: sft\ntrainer:\n  max_steps: [1, 2\nseed: 1\n")
    put("recipes/twice.yaml", "defaults: [task: sft]\nseed: 1\nseed: 2\n")
    put("recipes/tab.yaml", "defaults: [task: sft]\ntrainer:\n\tseed: 1\n")
    put("recipes/word.yaml", "just words\n")
    value, _, origin = problems("task=sft", "recipe=broken", "adapter.rnk=1")["recipe/broken"]
    assert value == "broken YAML"
    assert origin.startswith("recipes/broken.yaml:5:")
    assert "adapter.rnk" in problems("task=sft", "recipe=broken", "adapter.rnk=1")
    assert "duplicate key seed" in problems("recipe=twice")["recipe/twice"][1]
    assert problems("recipe=twice")["recipe/twice"][2] == "recipes/twice.yaml:3:1"
    assert problems("recipe=tab")["recipe/tab"][2].startswith("recipes/tab.yaml:3:")
    assert "expected keys and values" in problems("recipe=word")["recipe/word"][1]


def test_broken_choice_is_told_once(put: Put) -> None:
    put("mine/adapter/odd.yaml", "_target_: [\n")
    assert list(problems("task=sft", "adapter=odd", "--config-dir", "mine")) == ["adapter/odd"]


def test_mistakes_in_a_choice_of_ones_own_name_its_lines(put: Put) -> None:
    put("mine/adapter/wide.yaml", "# Ours\ndefaults: [lora]\nrnk: 3\nr: -1\n")
    found = problems("task=sft", "adapter=wide", "--config-dir", "mine")
    assert found["adapter.rnk"][1:] == ("no such key; nearest: adapter.r", "mine/adapter/wide.yaml:3")
    assert found["adapter.r"][2] == "mine/adapter/wide.yaml:4"


def test_mistakes_in_a_recipe_name_its_lines(put: Put) -> None:
    put("recipes/r.yaml", "defaults:\n  - override /task: sft\n  - override /model: nanoo\n  - /recipe/bse\nadapter:\n  rnk: 1\n  r: x\nname: ${nokey}\n")
    put("recipes/base.yaml", "seed: 1\n")
    found = problems("recipe=r")
    assert found["model"][2] == "recipes/r.yaml:3"
    assert found["recipe"][2] == "recipes/r.yaml:4"
    assert found["adapter.rnk"][2] == "recipes/r.yaml:6"
    assert found["adapter.r"][2] == "recipes/r.yaml:7"
    assert found["name"][2] == "recipes/r.yaml:8"


def test_a_recipe_that_extends_itself_is_told(put: Put) -> None:
    put("recipes/a.yaml", "defaults: [task: sft, recipe: b]\n")
    put("recipes/b.yaml", "defaults: [/recipe/a]\n")
    found = problems("recipe=a")
    assert "extends itself" in found["defaults"][1]


# ---- three hundred, from a seed ----

SEED = 20_261
COUNT = 300


def letters(random_: random.Random, word: str, count: int) -> str:
    """Change one or two letters of a word: drop, double, swap or replace."""
    for _ in range(count):
        place = random_.randrange(len(word))
        kind = random_.choice("drop double swap replace".split())
        if kind == "drop" and len(word) > 3:
            word = word[:place] + word[place + 1 :]
        elif kind == "swap" and place + 1 < len(word):
            word = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        elif kind == "replace":
            word = word[:place] + random_.choice("abcdefghijklmnopqrstuvwxyz") + word[place + 1 :]
        else:
            word = word[:place] + word[place] + word[place:]
    return word


class Mistakes:
    """Makes one mistake at a time: the word on the command line or line in a recipe, and what must be told."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.keys = {path: key for path, key in key_table(gather(read_flags(["task=sft"]))).items() if key.part is None and not path.endswith("shape")}
        self.typos = self.right = 0

    def typo(self) -> tuple[str, str, str]:
        path = self.random.choice(sorted(path for path in self.keys if "." in path and len(path.rpartition(".")[2]) > 3))
        group, _, leaf = path.rpartition(".")
        wrong = leaf
        while f"{group}.{wrong}" in self.keys or wrong == leaf:
            wrong = letters(self.random, leaf, self.random.choice([1, 2]))
        return f"{group}.{wrong}", "1", path

    def of_type(self) -> tuple[str, str, str]:
        path = self.random.choice(sorted(path for path, key in self.keys.items() if "number" in key.allowed and "text" not in key.allowed))
        return path, self.random.choice(["many", "true", "[1, 2]", "x1"]), ""

    def out_of_range(self) -> tuple[str, str, str]:
        path = self.random.choice(sorted(path for path, key in self.keys.items() if "1 or more" in key.allowed))
        return path, str(-self.random.randrange(1, 99)), ""

    def literal(self) -> tuple[str, str, str]:
        path = self.random.choice(sorted(path for path, key in self.keys.items() if key.allowed.startswith("one of")))
        return path, "no_such_word", ""

    def group(self) -> tuple[str, str, str]:
        return f"{letters(self.random, self.random.choice(['tracker', 'benchmark', 'trainer']), 1)}x.some_key", "1", ""

    def other_task(self) -> tuple[str, str, str]:
        return self.random.choice(["prompt", "system"]), "hello", ""


def test_three_hundred_mistakes(put: Put, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Proves SR-NF-041, SYS-U-001, SYS-U-004: all exit 2, every one told with its origin, no traceback, suggestions right."""
    make = Mistakes(SEED)
    kinds: list[Callable[[], tuple[str, str, str]]] = [make.typo, make.typo, make.of_type, make.out_of_range, make.literal, make.group, make.other_task]
    typos = right = 0
    for number in range(COUNT):
        wanted = 3 if number % 3 == 0 else 1
        chosen: dict[str, tuple[str, str]] = {}
        while len(chosen) < wanted:
            key, value, suggestion = make.random.choice(kinds)()
            if not any(key.startswith(f"{other}.") or other.startswith(f"{key}.") for other in chosen):
                chosen[key] = (value, suggestion)
        in_recipe = make.random.random() < 0.4
        argv = ["task=sft"]
        if in_recipe:
            tree: list[str] = []
            for key, (value, _) in chosen.items():
                parts = key.split(".")
                tree.append("".join(f"{part}: {{" for part in parts[:-1]) + f"{parts[-1]}: {value}" + "}" * (len(parts) - 1))
            for position, line in enumerate(tree):
                put(f"recipes/m{number}_{position}.yaml", f"# a mistake\ndefaults: [{f'm{number}_{position - 1}' if position else '_self_'}]\n{line}\n")
            argv.append(f"recipe=m{number}_{len(tree) - 1}")
            origins = {key: f"recipes/m{number}_{position}.yaml:3" for position, key in enumerate(chosen)}
        else:
            argv += [f"{key}={value}" for key, (value, _) in chosen.items()]
            origins = dict.fromkeys(chosen, "command line")
        with pytest.raises(ConfigError) as caught:
            compose(argv)
        assert caught.value.exit_code == 2
        told = {problem.key: problem for problem in caught.value.problems}
        for key, (_, suggestion) in chosen.items():
            assert key in told, (argv, list(told))
            assert told[key].origin == origins[key], (argv, told[key])
            assert told[key].allowed
            if suggestion:
                typos += 1
                right += told[key].allowed.endswith(f"nearest: {suggestion}")
        if number % 10 == 0:
            assert main(argv) == 2
            printed = capsys.readouterr()
            assert "Traceback" not in printed.err + printed.out
    assert typos > 60
    assert right / typos >= 0.95, f"{right} of {typos} suggestions are right"


KEYS = "task model data adapter model.path adapter.r trainer.checkpoint seed trust plan data.path[0]".split()
KEYS += "model.shape defaults hydra recipe model@x a[0] .. ~adapter +x".split()
VALUES = [
    "nano",
    "null",
    "[]",
    "{a: 1}",
    "[1,{b: 2}]",
    "???",
    "${seed}",
    "${",
    "${a",
    "${..b}",
    "'",
    '"',
    "a,b",
    "glob(*)",
    "/",
    "..",
    "\\",
    "é",
    "a\nb",
    "x" * 300,
]
VALUES += ["~nobody/x.yaml", "os.system", "!!python/object:os.system", "&a", "*a", "", " ", "%"]


def test_no_words_and_no_recipe_end_in_a_traceback(put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    """Proves SYS-U-001: what is typed at random is told, never raised."""
    draw = random.Random(SEED)
    for number in range(120):
        lines = [f"{draw.choice(KEYS)}: {draw.choice(VALUES)}" for _ in range(draw.randrange(4))]
        put("recipes/odd.yaml", "\n".join(lines) + "\n")
        words = [f"{draw.choice(KEYS)}={draw.choice(VALUES)}" for _ in range(draw.randrange(1, 4))]
        argv = ["task=sft", *words, *(["recipe=odd"] if number % 2 else []), draw.choice(["--origins", "--help"])]
        assert main(argv) in (0, 2), argv
        assert "Traceback" not in capsys.readouterr().err
