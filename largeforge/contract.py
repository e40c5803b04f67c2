"""What parts promise each other: the Protocols that stories annotate, and the data that flows between parts.

Imports no part and nothing heavy: torch and transformers stand under TYPE_CHECKING.
Shapes: B sequences, T positions.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from largeforge.batch import Annotation, BatchShape, StepWindow, TokenizedRow
    from largeforge.call import Key, KeyRecord
    from largeforge.chat import Answer, ChatRequest, Delta, Example, Load
    from largeforge.run import Run


@dataclass(frozen=True)
class Reference:
    """Where something came from, exactly enough to see that it changed: what locks and manifests record.

    Args:
        kind: "model", "adapter", "data", ...
        name: what the user would recognise it by: a Hub id, a path, a choice.
        revision: the commit or version, where there is one.
        sha256: of the content; for a folder, of its files' names and hashes in order.
    """

    kind: str
    name: str
    revision: str = ""
    sha256: str = ""


# ---- model ----


@dataclass
class LoadedModel:
    """A model as stories hand it on.

    Args:
        network: the causal LM, adapted or not; on the meta device after `outline`.
        tokenizer: None only after `outline`, where it cannot be had offline.
        template: the chat template (Jinja) in use, for training and for talking alike; also set on the tokenizer.
        source: the base weights.
        notes: what the plan tells the user about this model (a template that was declared, a calibration ...).
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    template: str
    source: Reference
    notes: list[str] = field(default_factory=list)


class Quant(Protocol):
    """How weights are held in memory."""

    def load_arguments(self, *, precision: str | None = None) -> dict[str, Any]:
        """Keyword arguments for `from_pretrained`; products are taken in the trainer's precision."""

    def loaded(self, network: PreTrainedModel, *, trainable: bool) -> None:
        """Look at the network once it is loaded: refuse what cannot be held so, and make it fit to train through."""

    def outlined(self, network: PreTrainedModel, *, precision: str | None = None) -> PreTrainedModel:
        """The network on the meta device with weights of the size they will have; a parameter that stands for more of them says how many: `stands_for`."""


class Adapter(Protocol):
    """Which parameters learn. Built as `build(config.adapter, seed=...)`, where the seed is of its fresh weights."""

    trains_base: bool  # whether the model's own weights learn: those are then held in fp32

    def apply(self, network: PreTrainedModel) -> PreTrainedModel:
        """Return the network to train: same forward contract, `requires_grad` set on what learns; works on meta too."""


class ModelSource(Protocol):
    """Where a network, its tokenizer and its template come from."""

    def load(self, *, trainable: bool, precision: str | None = None, quant: Quant | None = None, adapter: Adapter | None = None) -> LoadedModel:
        """Load weights. Frozen weights are held in the model's dtype, trainable ones in fp32. Raises ModelError.

        Args:
            trainable: whether anything is to learn.
            precision: "fp32", "bf16" or "fp16": what `dtype=auto` follows; None is bf16 where the device has it.
            quant: how weights are held.
            adapter: which parameters learn; None is none of them.
        """

    def outline(self, *, trainable: bool, precision: str | None = None, quant: Quant | None = None, adapter: Adapter | None = None) -> LoadedModel:
        """Build the same network on the meta device: no weights are read, nothing is fetched."""


# ---- data ----


class DataModule(Protocol):
    """Checked, tokenized, cached rows; steps of micro-batches on demand.

    Built as `build(config.data, tokenizer=..., train_on="answer"|"all", learns=..., progress=...)`. Reading, checking,
    linting and tokenizing happen in `prepare`, once; without a tokenizer only `num_rows` and `heldout` are there.
    A micro-batch is a TokenBatch, or an AnswerBatch where the method learns from pairs or labelled answers.
    """

    def prepare(self) -> None:
        """Read, check, tokenize into the cache, lint. Raises RowError with every bad row's file, line and field."""

    @property
    def source(self) -> Reference:
        """The training rows."""

    @property
    def num_rows(self) -> int:
        """Training rows that are kept."""

    @property
    def facts(self) -> dict[str, Any]:
        """What lock and plan record: rows_in, rows_kept, rows_bad, packing (the choice made), fill_packed, fill_sorted,
        cache_key, mean_tokens, supervised_tokens, num_validation_rows ..."""

    def annotate(self, method: Method, *, trainer: Trainer) -> None:
        """Have the method compute what it wants to know about every row (`Method.annotations`), on the trainer's device; or find it in the cache."""

    def train_steps(self, window: StepWindow) -> Iterable[list[Any]]:
        """A DataLoader of whole optimizer steps, each the list of this rank's micro-batches; len() counts from start_step."""

    def validation_batches(self, micro_batch_size: int, *, rank: int = 0, world_size: int = 1) -> Iterable[list[Any]] | None:
        """A DataLoader over this rank's share of the validation rows, one micro-batch in a list each; None where there are none."""

    def origins(self, window: StepWindow, step: int) -> list[str]:
        """Where the rows of one optimizer step (counted from 0) came from, over all ranks: "rows.jsonl:12"."""

    def shapes(self, window: StepWindow) -> Iterator[list[BatchShape]]:
        """The shapes of what `train_steps` would yield, from lengths alone."""

    def sample(self, count: int) -> list[TokenizedRow]:
        """The first rows, for a person to look at."""

    def bad_rows(self) -> Iterator[str]:
        """Every row that was left out, one JSON object a line: origin, field, message, mend."""

    def heldout(self) -> list[Example]:
        """Rows no training row is drawn from, for benchmarks; empty where the data has none."""


# ---- method and trainer ----


@dataclass
class Term:
    """One part of a loss, as a sum over its own unit (supervised tokens, pairs): law 6.

    The base class divides by the total of `Method.weights(batch)[name]` over all micro-batches and ranks, once.
    """

    name: str
    sum: Tensor
    coefficient: float = 1.0


@dataclass(frozen=True)
class Optimization:
    """How a trainer asks a method to step.

    Args:
        num_steps: optimizer steps of the whole run.
        schedule: "constant", "linear", "cosine" or "wsd" decay after the warm-up.
        warmup_steps: steps from 0 to the peak learning rate.
        weight_decay: decoupled, on matrices only.
        clip_norm: largest global gradient norm; 0 is no clipping.
        optimizer: "adamw", "adamw_8bit" or "adafactor".
        decay_steps: of "wsd": steps at the end in which the learning rate falls to 0.
    """

    num_steps: int
    schedule: str
    warmup_steps: int
    weight_decay: float
    clip_norm: float
    optimizer: str = "adamw"
    decay_steps: int = 0


class Method(Protocol):
    """A LightningModule whose training_step is one optimizer step (largeforge/method/base.py)."""

    skips_parameters: bool
    """Whether a step may leave parameters that learn without a gradient: layers that do not learn yet."""

    model: LoadedModel
    network: Any
    optimization: Optimization
    bytes_per_token: float
    """UTF-8 bytes of a validation text per token that is learnt; 0 where rows are not plain text. The data says it."""

    def loss(self, batch: Any) -> list[Term]:
        """Return the terms of the loss of one micro-batch, each a sum over its own unit."""

    def weights(self, batch: Any) -> dict[str, int]:
        """Return how many units each term sums over; no forward pass."""

    def annotations(self) -> list[Annotation]:
        """What shall be computed about every row before training."""

    def difficulty(self) -> Annotation:
        """The mean loss of each row under the model as it is: what a curriculum may order rows by."""

    def export(self, folder: Path) -> str:
        """Write the trained model as Hugging Face files; return the artifact's kind."""


class Trainer(Protocol):
    """Runs a method over data. Built as `build(config.trainer, tracker=..., run=...)`, for a plan without both."""

    device: str
    precision: str
    rank: int
    world_size: int

    def window(self, num_rows: int, *, seed: int, start_step: int = 0) -> StepWindow:
        """Which steps a run over so many rows takes."""

    def leader_first(self) -> AbstractContextManager[None]:
        """Let the first process of each machine run the block before the others do: what it leaves in the cache, they find there."""

    def computing(self, method: Method) -> AbstractContextManager[None]:
        """Device and precision of training, for what a method computes before it."""

    def fit(self, method: Method, data: DataModule) -> dict[str, float]:
        """Train; return metrics (loss, tokens_per_s, train_seconds, peak_memory_bytes ...)."""


class Tracker(Protocol):
    """Where curves go."""

    def loggers(self) -> list[Logger]:
        """Lightning loggers that write under the run's folder or to a server; a run that goes on, goes on in the same curves."""


# ---- talking and measuring ----


class Engine(Protocol):
    """Answers requests. Built as `build(config.engine, model=..., progress=..., device=...)`; model is None where `needs_model` is False."""

    needs_model: ClassVar[bool]
    """Whether it answers with a network of this process; a remote one does not."""

    name: str
    """What lineage and reports call it: a model's name, or a remote model at its URL; never a secret."""

    in_flight: int
    """How many requests it is best asked at once: for `largeforge.engine.answers.answers`."""

    def generate(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Answer one request token by token; the last delta carries reason and usage. Many may run at once; `aclose()` stops one.

        Raises:
            EngineError: no answer can be had (unreachable after every retry, refused, malformed); says which.
        """

    async def close(self) -> None:
        """Stop what runs and give back what is held; it may be used again afterwards, in another event loop too."""

    def load(self) -> Load:
        """How busy it is; cheap, from any thread."""

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[Answer]:
        """Answer in the order asked; blocking. Raises what `generate` raises."""

    def stream(self, request: ChatRequest) -> Iterator[Delta]:
        """Answer one request token by token, blocking; closing the iterator stops it."""


@dataclass(frozen=True)
class Launch:
    """How an engine's server is started as a process of its own: it listens on loopback alone and speaks OpenAI's HTTP.

    Args:
        argv: the program and its words; no secret stands here, since every user of the machine can read them.
        env: the whole environment of the process, secrets included; nothing else is handed down.
        ready_path: answers 200 once the engine can be asked.
        start_timeout_s: seconds until then at most.
        stdin: what it reads first; nothing where it is empty.
    """

    argv: list[str]
    env: dict[str, str] = field(repr=False)
    ready_path: str
    start_timeout_s: float
    stdin: bytes = field(default=b"", repr=False)


class LaunchedEngine(Protocol):
    """An engine that is a server of its own program: `build(config.engine)` gives one, a supervisor starts it."""

    def look(self) -> None:
        """Raise ServeError where that program is not here."""

    def command(
        self, *, model_folder: Path, template: str, port: int, name: str, key: str, folder: Path, dtype: str = "auto", base_folder: Path | None = None
    ) -> Launch:
        """Return what starts it. Raises InputError, ServeError.

        Args:
            model_folder: config.json, weights and tokenizer; or an adapter: adapter_config.json and its weights.
            template: the chat template (Jinja) that it talks in.
            port: where it listens, on 127.0.0.1.
            name: what requests call the model.
            key: what it asks of requests, as a Bearer token; "" asks nothing.
            folder: of the run: what it needs as files is written there.
            dtype: "auto", "fp32", "bf16" or "fp16".
            base_folder: what an adapter stands on; None is what its adapter_config.json names, where that is a folder.
        """

    def adapter(self, name: str, place: str) -> Path:
        """Return the folder of an adapter that its server could take, of its name and what a user calls its place. Raises InputError."""


class Store(Protocol):
    """What several doors share: API keys. Built as `build(config.store)`; safe to use from many threads.

    Every method blocks; async callers go through a thread. Raises StoreError where the database cannot be reached.
    """

    def open(self) -> None:
        """Bring the tables up to date (Alembic), then answer."""

    def find_key(self, digest: str) -> Key | None:
        """Return the key of a SHA-256 (hex), None where there is none, or it was revoked or has expired."""

    def num_keys(self) -> int:
        """How many keys are valid now."""

    def add_key(self, key: Key, *, digest: str) -> Key:
        """Keep a new key, of which only the digest is known here, and return it with its id.

        Args:
            key: its id is not read.
            digest: `largeforge.call.digest_of` it.

        Raises:
            InputError: a key of this name is there that was not revoked.
        """

    def keys(self) -> list[KeyRecord]:
        """Every key, revoked ones too, the oldest first."""

    def revoke(self, name: str) -> Key:
        """Make the key of this name, or else of this prefix, worthless, and return it; doors that know it notice within their guard's `cache_s`.

        Raises:
            InputError: there is none, or several begin so.
        """

    def close(self) -> None:
        """Give connections back."""


@dataclass(frozen=True)
class Score:
    """What a benchmark found: flat metrics, and each answer with whether it was right."""

    metrics: dict[str, float]
    answers: list[str]
    correct: list[bool]


class Benchmark(Protocol):
    """Asks an engine held-out questions and counts."""

    config: Any
    measures: bool
    """False where nothing is asked: then held-out rows need not be read."""

    def run(self, engine: Engine, examples: Sequence[Example], *, title: str = "", run: Run | None = None) -> Score | None:
        """Score the engine; None where the choice is none or there are no examples.

        Args:
            engine: who answers.
            examples: what is asked.
            title: "before" or "after", for the progress bar.
            run: where progress is shown; work ends early with `run.interrupt` where a stop was asked.
        """


# ---- where work runs, where files lie ----


class Executor(Protocol):
    """Runs the same function over many tasks, elsewhere: in processes of this machine, or on a cluster."""

    workers: dict[str, int]
    """Tasks that each worker did, by a name of the worker's."""

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task], *, run: Run | None = None, title: str = "") -> Iterator[tuple[int, Result]]:
        """Yield (number of the task, its result) as tasks end, in any order; each task's number once.

        A worker that dies costs the tasks it held, which run again. An error that a task raises ends all, and is raised here.

        Args:
            function: picklable; does the same for the same task however often it runs (what it writes, it writes whole or not at all).
            tasks: picklable.
            run: where progress is shown and a stop is asked for; work ends with `run.interrupt` then.
            title: of the progress bar.
        """

    def close(self) -> None:
        """Let the workers go."""


class Storage(Protocol):
    """Files by URL: s3://, gs://, az://, file:// and plain paths. Built as `build(config.storage, progress=...)`."""

    def is_remote(self, path: str) -> bool:
        """Whether it names something that `fetch` must bring."""

    def fetch(self, url: str) -> list[Path]:
        """Bring what a URL means (one object, a prefix, a glob) and return local files; kept by content, so that it is brought once."""

    def put(self, folder: Path, url: str) -> str:
        """Send a folder, its manifest.json last, so that a reader never sees half of it; return where it stands."""

    def names(self, url: str) -> list[str]:
        """Names of the files below a folder, "/" between parts, in order; empty where nothing stands there."""

    def remove(self, url: str) -> None:
        """Delete a folder, its manifest.json first, so that a reader never takes what is left of it for whole."""


# ---- telling ----


class Bar(Protocol):
    """One long piece of work being shown."""

    def advance(self, count: int = 1, **fields: Any) -> None:
        """Count forward; `fields` (name -> short text or number) replace what stands beside the bar."""

    def close(self) -> None:
        """Done, or given up."""


class Progress(Protocol):
    """Shows long work: a live bar on a terminal, plain lines at intervals elsewhere."""

    def bar(self, title: str, *, total: int | None, unit: str = "") -> Bar:
        """Start showing one piece of work."""

    def say(self, text: str) -> None:
        """A line for the user, above any bar."""
