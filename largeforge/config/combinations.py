"""Combinations that make no sense though each value is valid alone, and files that a config names but nobody has.

Each rule reads plain values and speaks only where all of its values are there and valid. Imports no part.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from largeforge.config.finding import Finding
from largeforge.config.nearest import nearest
from largeforge.config.places import expanded, stands
from largeforge.config.yaml_file import read_yaml

if TYPE_CHECKING:
    from largeforge.config.composition import Setter

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".arrow", ".txt")
DEVICES = Path(__file__).resolve().parent.parent / "plan" / "devices.yaml"


class _NotThere(Exception):
    """A value that is missing or wrong by itself: the rule has nothing to say."""


class _View:
    """Plain values by dotted path; what is missing or told already ends the rule that asks."""

    def __init__(self, values: dict[str, Any], bad: set[str]) -> None:
        self._values = values
        self._bad = bad

    def __getitem__(self, path: str) -> Any:
        node: Any = self._values
        walked = ""
        for part in path.split("."):
            walked = f"{walked}.{part}" if walked else part
            if walked in self._bad or not isinstance(node, dict) or part not in node:
                raise _NotThere(path)
            node = node[part]
        return node

    def has(self, path: str) -> bool:
        try:
            self[path]
        except _NotThere:
            return False
        return True


Rule = Callable[[_View], "tuple[str, str, str] | None"]
"""(key at fault, why, mend) or None."""


class File:
    """Looks at the disk; absent where a config is only composed, not run."""

    def problem(self, path: str, *, kind: str) -> str | None:
        """Return what is wrong with a path that is surely local, None where it is there or may be a Hub id."""
        if path.startswith("<"):
            return None  # the placeholder of a command to try
        if "://" in path:
            return None  # a storage's to find
        if any(letter in path for letter in "*?["):
            return None if glob.glob(str(expanded(path)), recursive=True) else "no file matches"
        place = expanded(path)
        if stands(place):
            return None
        local = path.startswith(("/", "./", "../", "~")) or path.count("/") > 1 or (kind == "data" and (path.endswith(DATA_SUFFIXES) or "/" not in path))
        if not local:
            return None
        folder = place.parent
        if not folder.is_dir():
            return f"no such file; there is no folder {folder}"
        names = sorted(name.name for name in folder.iterdir() if kind != "data" or name.name.endswith(DATA_SUFFIXES))
        near = nearest(place.name, names)
        shown_names = [near] if near else names[:5]
        return f"no such file; in this folder: {', '.join(shown_names)}" if shown_names else "no such file"


def problems_of(
    values: dict[str, Any],
    *,
    bad: set[str],
    origin: Callable[[str], str],
    setter: Callable[[str], Setter | None],
    files: File | None,
    users: Callable[[], Iterable[tuple[str, Any, str, str]]] = tuple,
) -> Iterator[Finding]:
    """Yield what makes no sense together.

    Args:
        values: plain values.
        bad: paths that were told already.
        origin: dotted path -> who set it.
        setter: dotted path -> its last setter.
        files: looks at the disk; None does not.
        users: (key, value, origin, word) of the keys and groups that the user set, not the YAML that LargeForge ships.
    """
    view = _View(values, bad)
    yield from _idle(view, users())
    for rule in RULES:
        try:
            found = rule(view)
        except _NotThere:
            continue
        if found is not None:
            key, why, mend = found
            last = setter(key)
            yield Finding(key, view[key], why, origin(key), mend, last.word if last and mend.startswith(f"{key}=") else "")
    if files is not None:
        yield from _files(view, files, origin, setter)


def _micro_batch(view: _View) -> tuple[str, str, str] | None:
    micro, batch = view["trainer.micro_batch_size"], view["trainer.batch_size"]
    if micro > batch and view["data.packing"] is False:
        return "trainer.micro_batch_size", f"at most trainer.batch_size, which is {batch}", f"trainer.micro_batch_size={batch}"
    return None


def _quantized_learns(view: _View) -> tuple[str, str, str] | None:
    if not str(view["quant._target_"]).endswith(".Unquantized") and str(view["adapter._target_"]).endswith(".Full"):
        return "quant._target_", "quantized weights cannot learn; adapter=lora learns beside them", "adapter=lora"
    return None


def _batch_over_devices(view: _View) -> tuple[str, str, str] | None:
    batch, devices = view["trainer.batch_size"], view["trainer.devices"] * view["trainer.nodes"]
    if batch < devices:
        return "trainer.batch_size", f"at least one row for each of {devices} devices", f"trainer.batch_size={devices}"
    return None


def _strategy(view: _View) -> tuple[str, str, str] | None:
    name = view["trainer.strategy"]
    if name != "auto" and view["trainer.devices"] * view["trainer.nodes"] == 1:
        return "trainer.strategy", f"{name} is for several processes: trainer.devices, trainer.nodes", "trainer.devices=2"
    return None


def _sharded(view: _View) -> tuple[str, str, str] | None:
    """What weights that are spread over processes cannot do."""
    if view["trainer.strategy"] != "fsdp":
        return None
    if view["trainer.precision"] == "fp16":
        return "trainer.precision", "fp16's loss scale is not agreed on with fsdp; one of: auto, fp32, bf16", "trainer.precision=bf16"
    if view["trainer.optimizer"] != "adamw":
        return "trainer.optimizer", "with fsdp adamw: 8-bit blocks and factored moments cannot be cut into shards", "trainer.optimizer=adamw"
    if not str(view["quant._target_"]).endswith(".Unquantized"):
        return "quant._target_", "quantized weights cannot be spread by fsdp; trainer.strategy=ddp takes them", "trainer.strategy=ddp"
    if not str(view["benchmark._target_"]).endswith(".Unmeasured"):
        return "benchmark._target_", "weights stay spread with fsdp, and nobody can be asked; ask the artifact afterwards", "benchmark=none"
    if view["trainer.checkpoint.content"] == "weights":
        return "trainer.checkpoint.content", "with fsdp a checkpoint holds the full state; the artifact holds the weights", "trainer.checkpoint.content=full"
    return None


def _decay(view: _View) -> tuple[str, str, str] | None:
    warmup, decay = view["trainer.warmup_ratio"], view["trainer.decay_ratio"]
    if view["trainer.schedule"] == "wsd" and warmup + decay > 1:
        return "trainer.decay_ratio", f"with trainer.warmup_ratio={warmup:g} at most {1 - warmup:g}", f"trainer.decay_ratio={1 - warmup:g}"
    return None


def _keep_best(view: _View) -> tuple[str, str, str] | None:
    if view["trainer.checkpoint.keep_best"] > 0 and _no_validation(view):
        return "trainer.checkpoint.keep_best", "needs validation rows: set data.validation (0.02, or a path)", "data.validation=0.02"
    return None


def _early_stopping(view: _View) -> tuple[str, str, str] | None:
    if view["trainer.early_stopping.patience"] > 0 and _no_validation(view):
        return "trainer.early_stopping.patience", "needs validation rows: set data.validation (0.02, or a path)", "data.validation=0.02"
    return None


def _early_stopping_steps(view: _View) -> tuple[str, str, str] | None:
    if view["trainer.early_stopping.patience"] > 0 and view["trainer.validate_every_steps"] == 0:
        return "trainer.early_stopping.patience", "needs validations on the way: set trainer.validate_every_steps", "trainer.validate_every_steps=50"
    return None


def _allow_changes(view: _View) -> tuple[str, str, str] | None:
    if view["trainer.checkpoint.allow_changes"] and view["resume"] == "never":
        return "trainer.checkpoint.allow_changes", "of a run that goes on: set resume", "resume=auto"
    return None


def _no_validation(view: _View) -> bool:
    share = view["data.validation"]
    return bool(share == 0 or share == "")


def _fp16_on_cpu(view: _View) -> tuple[str, str, str] | None:
    if view["trainer.precision"] == "fp16" and str(view["trainer._target_"]).endswith(".CPU"):
        return "trainer.precision", "fp16 trains on a GPU; on trainer=cpu one of: auto, fp32, bf16", "trainer.precision=auto"
    return None


def _attention(view: _View) -> tuple[str, str, str] | None:
    kind = view["model.attention"]
    if kind in ("flash", "flex") and str(view["trainer._target_"]).endswith(".CPU"):
        return "model.attention", f"{kind} runs on a GPU; on trainer=cpu one of: sdpa, eager", "model.attention=sdpa"
    if kind == "flash" and view["trainer.precision"] == "fp32":
        return "model.attention", "flash computes in bf16 or fp16; with trainer.precision=fp32 one of: sdpa, eager, flex", "model.attention=sdpa"
    return None


def _context(view: _View) -> tuple[str, str, str] | None:
    longest, context = view["data.max_length"], view["model.shape.max_position_embeddings"]
    if longest > context:
        return "data.max_length", f"at most {context}, the longest context of this model", f"data.max_length={context}"
    return None


def _heads(view: _View) -> tuple[str, str, str] | None:
    heads, groups = view["model.shape.num_attention_heads"], view["model.shape.num_key_value_heads"]
    if heads % groups:
        return "model.shape.num_key_value_heads", f"a divisor of num_attention_heads, which is {heads}", "model.shape.num_key_value_heads=1"
    return None


def _device(view: _View) -> tuple[str, str, str] | None:
    plan = view["plan"]
    if isinstance(plan, str) and DEVICES.is_file():
        names = sorted(read_yaml(DEVICES).values)
        if plan not in names:
            near = nearest(plan, [*names, "true", "false"])
            return "plan", f"true, false, or a device: {', '.join(names)}", f"plan={near}" if near else "plan=true"
    return None


def _steps(view: _View) -> tuple[str, str, str] | None:
    names, known = view["steps"], list(view["step"])
    for name in names:
        if name not in known:
            near = nearest(name, known)
            return "steps", f"{name} is no step; {f'nearest: {near}' if near else 'there are: ' + ', '.join(known)}", _list("steps", names, name, near)
        if names.count(name) > 1:
            return "steps", f"{name} stands there twice", _list("steps", list(dict.fromkeys(names)))
    return None


def _split_shares(view: _View) -> tuple[str, str, str] | None:
    if "split" in view["steps"] and view["step.split.validation"] + view["step.split.test"] >= 1:
        return "step.split.validation", f"with step.split.test={view['step.split.test']:g} nothing is left to train on", "step.split.validation=0.05"
    return None


def _against(view: _View) -> tuple[str, str, str] | None:
    if "decontaminate" in view["steps"] and not view["step.decontaminate.against"]:
        return "step.decontaminate.against", "the step decontaminate needs test sets", "step.decontaminate.against=[<a file>]"
    return None


def _own_answers_sharded(view: _View) -> tuple[str, str, str] | None:
    if _distils(view) and view["method.on_policy.share"] > 0 and view["trainer.strategy"] == "fsdp":
        return (
            "trainer.strategy",
            "processes write answers of different lengths, which weights spread by fsdp cannot wait for; one of: auto, ddp",
            "trainer.strategy=ddp",
        )
    return None


def _no_teacher(view: _View) -> tuple[str, str, str] | None:
    if _distils(view) and view["teacher"] is None:
        return "teacher", "must be given: who is learnt from, a larger model of the same vocabulary", "teacher=<a model>"
    return None


def _nothing_learnt(view: _View) -> tuple[str, str, str] | None:
    if not _distils(view):
        return None
    logits, hidden = view["method.logits_weight"], view["method.hidden.weight"]
    if logits == 0 and hidden == 0 and view["method.nll_weight"] == 0:
        return "method.logits_weight", "with method.hidden.weight=0 and method.nll_weight=0 nothing is learnt", "method.logits_weight=1"
    if logits == 0 and hidden == 0 and view["method.on_policy.share"] > 0:
        return "method.on_policy.share", "the student's own answers teach nothing without the teacher: method.logits_weight", "method.logits_weight=1"
    return None


def _teacher_asked_once(view: _View) -> tuple[str, str, str] | None:
    """What a teacher cannot do who is let go before the first step."""
    if not _distils(view) or view["method.teacher_logits"] != "cached":
        return None
    mend = "method.teacher_logits=online"
    if view["method.logits_weight"] == 0:
        return "method.teacher_logits", "nothing is asked of the teacher's logits with method.logits_weight=0", mend
    if view["method.on_policy.share"] > 0:
        return "method.on_policy.share", "what the student will write cannot be asked before: teacher_logits=cached knows the rows' answers alone", mend
    if view["method.hidden.weight"] > 0:
        return "method.hidden.weight", "hidden states are not kept on disk by teacher_logits=cached", mend
    if view["assistant"] is not None:
        return "method.teacher_logits", "one model's logits are kept; with an assistant both are asked in each step", mend
    return None


def _stages(view: _View) -> tuple[str, str, str] | None:
    """Stages of distillation that would never come, or not be told from others."""
    if not _distils(view):
        return None
    grows, helped = view["method.progressive.growth"] == "layers", view["assistant"] is not None
    if grows and view["method.hidden.weight"] == 0:
        return "method.progressive.growth", "layers grow by matching hidden states: set method.hidden.weight", "method.hidden.weight=1"
    if grows and helped:
        return "method.progressive.growth", "the first steps belong to growing layers or to the assistant, not to both", "assistant=null"
    if (grows or helped) and view["method.progressive.share"] == 0:
        return "method.progressive.share", f"no step is left for {'growing layers' if grows else 'the assistant'}", "method.progressive.share=0.5"
    return None


def _distils(view: _View) -> bool:
    return str(view["task._target_"]).endswith(".DistillFromTeacher")


def _list(key: str, names: list[str], wrong: str = "", right: str | None = None) -> str:
    if wrong and right is None:
        return ""
    return f"{key}=[{','.join(str(right) if name == wrong else name for name in names)}]"


RULES: tuple[Rule, ...] = (
    _steps,
    _split_shares,
    _against,
    _micro_batch,
    _batch_over_devices,
    _quantized_learns,
    _strategy,
    _sharded,
    _decay,
    _keep_best,
    _early_stopping,
    _early_stopping_steps,
    _allow_changes,
    _fp16_on_cpu,
    _attention,
    _context,
    _heads,
    _device,
    _no_teacher,
    _nothing_learnt,
    _teacher_asked_once,
    _stages,
    _own_answers_sharded,
)


TRAINING_KEYS = ("data.max_length", "data.packing", "data.num_workers", "data.curriculum")
PREPARED_LATER = ("data.validation", "data.rehearsal.path", "data.rehearsal.share")
STOPPING_KEYS = ("trainer.early_stopping.metric", "trainer.early_stopping.mode", "trainer.early_stopping.min_delta")
TEACHER = ("teacher", "quant", "engine")
DIVERGENCE_KEYS = ("method.temperature", "method.divergence", "method.jsd_beta", "method.top_k")


def _idle(view: _View, users: Iterable[tuple[str, Any, str, str]]) -> Iterator[Finding]:
    """Settings of the user's that this run would not look at: refused, rather than ignored in silence."""
    for key, value, origin, word in users:
        found = _why_idle(view, key)
        if found is not None:
            why, mend = found
            yield Finding(key, value, why, origin, mend, word)


def _why_idle(view: _View, key: str) -> tuple[str, str] | None:
    """Say why a key is not looked at, and the mend; None where it is."""
    head = key.partition(".")[0].partition("@")[0]
    try:
        if key in STOPPING_KEYS and view["trainer.early_stopping.patience"] == 0:
            ranks = key != "trainer.early_stopping.min_delta"
            if not (ranks and view["trainer.checkpoint.keep_best"] > 0):
                also = ", or trainer.checkpoint.keep_best" if ranks else ""
                return f"nothing is judged by it: set trainer.early_stopping.patience{also}", "trainer.early_stopping.patience=3"
        task = str(view["task._target_"]).rpartition(".")[2]
        if task == "Prepare":
            steps = list(view["steps"])
            if key.startswith("step.") and (name := key.split(".")[1]) not in steps:
                return f"the step {name} does not run; steps has: {', '.join(steps)}", f"steps=[{','.join([*steps, name])}]"
            if key in (*TRAINING_KEYS, *PREPARED_LATER):
                return "this is for training; nothing is trained here", ""
            asks = "augment" in steps or ("order" in steps and view["step.order.by"] == "loss")
            if head in TEACHER and not asks:
                return f"no step asks a teacher; augment does, and order with by=loss; steps has: {', '.join(steps)}", ""
        if task == "Generate" and head in TEACHER and str(view["generator._target_"]).endswith(".Template"):
            return "templates ask no teacher; generator=instruct, self_instruct and preference do", "generator=instruct"
        if task == "Train" and head == "engine" and str(view["engine._target_"]).rpartition(".")[2] in ("Remote", "Echo"):
            return "the model that is trained answers the benchmark's questions: engine=hf", "engine=hf"
        if key == "trainer.decay_ratio" and view["trainer.schedule"] != "wsd":
            return f"only schedule=wsd falls at the end; this one is {view['trainer.schedule']}", "trainer.schedule=wsd"
        if task in ("Inspect", "Push") and key in TRAINING_KEYS:
            return "this is for training; nothing is trained here", ""
        if task == "Serve" and key == "serve.start_timeout_s":
            starts_vllm = str(view["engine._target_"]).endswith(".VLLM") and not str(view["serve._target_"]).endswith(".DoorOnly")
            return ("vLLM has a time of its own: engine.start_timeout_s", f"engine.start_timeout_s={view[key]}") if starts_vllm else None
        if task == "DistillFromTeacher":
            return _why_idle_in_distillation(view, key)
    except _NotThere:
        return None
    return None


def _why_idle_in_distillation(view: _View, key: str) -> tuple[str, str] | None:
    if key in DIVERGENCE_KEYS and view["method.logits_weight"] == 0:
        return "the teacher's logits count for nothing: set method.logits_weight", "method.logits_weight=1"
    if key == "method.jsd_beta" and view["method.divergence"] != "jsd":
        return f"only divergence=jsd mixes; this one is {view['method.divergence']}", "method.divergence=jsd"
    if key == "method.top_k" and view["method.teacher_logits"] != "cached":
        return "a teacher that is asked in every step says all its logits", "method.teacher_logits=cached"
    if key == "method.hidden.layers" and view["method.hidden.weight"] == 0:
        return "no hidden states are matched: set method.hidden.weight", "method.hidden.weight=1"
    if key == "method.progressive.share" and view["method.progressive.growth"] == "none" and view["assistant"] is None:
        return "there are no stages: set assistant, or method.progressive.growth", "method.progressive.growth=layers"
    if key in ("method.on_policy.max_tokens", "method.on_policy.temperature") and view["method.on_policy.share"] == 0:
        return "the student writes no answers: set method.on_policy.share", "method.on_policy.share=0.5"
    return None


def _files(view: _View, files: File, origin: Callable[[str], str], setter: Callable[[str], Setter | None]) -> Iterator[Finding]:
    for key, kind in (("data.path", "data"), ("data.validation", "data"), ("model.path", "model")):
        if not view.has(key):
            continue
        value = view[key]
        for path in value if isinstance(value, list) else [value]:
            why = files.problem(path, kind=kind) if isinstance(path, str) and path else None
            if why:
                near = why.rpartition(": ")[2] if why.startswith("no such file; in this folder: ") and "," not in why else ""
                mend = f"{key}={Path(path).parent / near}" if near and not isinstance(value, list) else ""
                last = setter(key)
                yield Finding(key, path, why, origin(key), mend, last.word if last and mend else "")
