"""Servers that scripts/bench serve compares: how each is started, what a request to it looks like, and how an idle one is kept from running.

Each is a family of processes on a port of loopback. An idle one is stopped (SIGSTOP) as a whole, so that of several that are up only the one under
measure takes the cores.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from largeforge.process import die_with_parent, free_port
from scripts.environments import programs

ROOT = Path(__file__).resolve().parents[2]
ECHO = Path(__file__).with_name("serve_echo_side.py")
MIB = 2**20


@dataclass
class Server:
    """A server that is up.

    Args:
        name: as tables have it.
        url: without a path.
        model: what a request calls the model.
        process: the first of its family.
        folder: where it writes; what it prints is printed.txt.
        own_words: fields of a request that make it answer greedily and up to the last token, as this server spells them.
        ready_s: seconds from its start until it could be asked.
    """

    name: str
    url: str
    model: str
    process: subprocess.Popen[bytes]
    folder: Path
    own_words: dict[str, Any] = field(default_factory=dict)
    ready_s: float = 0.0

    def ask(self, text: str, *, max_tokens: int, stream: bool = True) -> dict[str, Any]:
        """The body of a chat completion."""
        messages = [{"role": "user", "content": text}]
        return {"model": self.model, "messages": messages, "max_tokens": max_tokens, "stream": stream, "temperature": 0, **self.own_words}

    def family(self) -> list[psutil.Process]:
        """Its processes, the first first."""
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    def pause(self) -> None:
        """Keep it from running: parents before children, which they watch."""
        for one in self.family():
            with suppress(psutil.NoSuchProcess):
                one.suspend()

    def resume(self) -> None:
        """Let it run again: children before parents."""
        for one in reversed(self.family()):
            with suppress(psutil.NoSuchProcess):
                one.resume()

    def rss_mib(self) -> float:
        """Resident memory of its first process."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / MIB

    def printed(self, characters: int = 2000) -> str:
        """The end of what it printed."""
        return (self.folder / "printed.txt").read_text(encoding="utf-8", errors="replace")[-characters:]


@contextmanager
def running(
    name: str,
    argv: Sequence[str],
    folder: Path,
    *,
    port: int,
    ready: str,
    model: str,
    environment: Mapping[str, str] | None = None,
    own_words: dict[str, Any] | None = None,
    patience_s: float = 300.0,
) -> Iterator[Server]:
    """Start a server and wait until GET `ready` is answered with 200; afterwards nothing of it is left.

    Raises:
        RuntimeError: it ended, or did not come up in time; the message holds the end of what it said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start_s = time.monotonic()
    with (folder / "printed.txt").open("wb") as printed:
        process = subprocess.Popen(
            argv,
            cwd=folder,
            env=dict(environment or os.environ),
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid()),  # a bench that is killed leaves no server
        )
    server = Server(name, f"http://127.0.0.1:{port}", model, process, folder, own_words or {})
    family: list[psutil.Process] = []
    try:
        while not answers(server.url + ready):
            if process.poll() is not None or time.monotonic() - start_s > patience_s:
                raise RuntimeError(f"{name} did not come up ({' '.join(argv)}):\n{server.printed()}")
            time.sleep(0.05)
        server.ready_s = time.monotonic() - start_s
        print(f"{name}: ready after {server.ready_s:.1f} s", file=sys.stderr)
        yield server
    finally:
        with suppress(psutil.NoSuchProcess):
            family = server.family()
            server.resume()
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def answers(url: str, timeout_s: float = 5.0) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


# ---- ours ----

UP_TO_THE_END = {"ignore_eos": True, "stream_options": {"include_usage": True}}  # ours, and vLLM's


@contextmanager
def ours(folder: Path, *words: str, model: str, name: str = "LargeForge") -> Iterator[Server]:
    """`python -m largeforge task=serve`, as a user starts it; `words` choose model and engine."""
    port = free_port("127.0.0.1")
    fixed = ["task=serve", f"serve.port={port}", "serve.grpc_port=0", f"folder={folder / 'run'}", f"store.path={folder / 'store.sqlite3'}"]
    with running(name, largeforge(*fixed, *words), folder, port=port, ready="/ready", model=model, environment=here(), own_words=UP_TO_THE_END) as server:
        yield server


@contextmanager
def echo(folder: Path) -> Iterator[Server]:
    """The echo engine server alone, which drops fields that it does not know: what every door of a comparison stands in front of."""
    port = free_port("127.0.0.1")
    argv = [sys.executable, str(ECHO), str(port)]
    with running("echo", argv, folder, port=port, ready="/health", model="echo", environment=here(), own_words=UP_TO_THE_END) as server:
        yield server


@contextmanager
def door(folder: Path, engine: Server, *words: str, name: str = "LargeForge's door") -> Iterator[Server]:
    """Our door alone, in front of an engine server that is up."""
    port = free_port("127.0.0.1")
    fixed = ["task=serve", "serve=door", f"serve.engine_url={engine.url}", f"serve.port={port}", "serve.grpc_port=0"]
    argv = largeforge(*fixed, f"folder={folder / 'run'}", f"store.path={folder / 'store.sqlite3'}", *words)
    with running(name, argv, folder, port=port, ready="/ready", model=engine.model, environment=here(), own_words=UP_TO_THE_END) as server:
        yield server


def largeforge(*words: str) -> list[str]:
    return [sys.executable, "-m", "largeforge", *words]


def here() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def without_ours() -> dict[str, str]:
    """Of a program that has an environment of its own."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")} | {"HF_HUB_OFFLINE": "1"}


# ---- peers ----


@contextmanager
def transformers_serve(folder: Path, model_folder: Path, *, dtype: str, threads: int | None) -> Iterator[Server]:
    """`transformers serve --continuous-batching`, its blocks and batches sized for a CPU.

    It counts tokens in the last chunk unasked, refuses fields that it does not know, and goes on past the end where its generation config names none.
    """
    port = free_port("127.0.0.1")
    argv = [str(programs("transformers_serve") / "transformers"), "serve", "--device", "cpu", "--dtype", dtype, "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--continuous-batching", "--cb-num-blocks", "64", "--cb-max-batch-tokens", "256", str(model_folder)]
    environment = without_ours() | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    words = {"generation_config": json.dumps({"do_sample": False, "eos_token_id": -1, "pad_token_id": 0})}
    with running("transformers serve", argv, folder, port=port, ready="/health", model=str(model_folder), environment=environment, own_words=words) as server:
        yield server


@contextmanager
def vllm(folder: Path, model_folder: Path, *, dtype: str) -> Iterator[Server]:
    """vLLM's own server, started as engine=vllm starts it, with no door in front."""
    from largeforge.build import build
    from largeforge.config.compose import compose

    programs("vllm")
    config: Any = compose(["task=serve", "engine=vllm"]).config
    port = free_port("127.0.0.1")
    engine: Any = build(config.engine)
    launch = engine.command(model_folder=model_folder, template="", port=port, name="model", key="", folder=folder, dtype=dtype)
    with running("vLLM", launch.argv, folder, port=port, ready="/health", model="model", environment=launch.env, own_words=UP_TO_THE_END) as server:
        yield server


@contextmanager
def litellm(folder: Path, engine: Server) -> Iterator[Server]:
    """litellm's proxy in front of an engine server."""
    port = free_port("127.0.0.1")
    folder.mkdir(parents=True, exist_ok=True)
    model = {"model": f"openai/{engine.model}", "api_base": f"{engine.url}/v1", "api_key": "none"}
    (folder / "config.yaml").write_text(json.dumps({"model_list": [{"model_name": engine.model, "litellm_params": model}]}), encoding="utf-8")
    argv = [str(programs("litellm") / "litellm"), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    environment = without_ours() | {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    with running("litellm", argv, folder, port=port, ready="/health/liveliness", model=engine.model, environment=environment) as server:
        yield server


@contextmanager
def vllm_router(folder: Path, engine: Server) -> Iterator[Server]:
    """vLLM's router, written in Rust, in front of an engine server."""
    port, metrics = free_port("127.0.0.1"), free_port("127.0.0.1")
    argv = [str(programs("vllm_router") / "vllm-router"), "--worker-urls", engine.url, "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--policy", "round_robin", "--prometheus-port", str(metrics), "--prometheus-host", "127.0.0.1", "--log-level", "error"]
    argv += ["--max-concurrent-requests", "4096"]
    with running("vllm-router", argv, folder, port=port, ready="/health", model=engine.model, environment=without_ours()) as server:
        yield server


# ---- what they answer from ----


def model_folder(model: str) -> Path:
    """Where a shipped model stands on this machine, made or fetched where it does not yet."""
    from largeforge.build import build
    from largeforge.config.compose import compose

    config: Any = compose(["task=serve", f"model={model}"]).config
    source: Any = build(config.model)
    return Path(source.place().folder)


def tool(name: str) -> str | None:
    """The path of a program of this machine."""
    return shutil.which(name)
