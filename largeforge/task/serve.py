"""Serve a model: the story that brings engine, guards, keys and door together, and keeps them up until it is told to stop.

This process never loads torch: what answers is made in a process of its own (`hosted.py`).
"""

from __future__ import annotations

import os
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from largeforge.asgi import App
from largeforge.build import build, find
from largeforge.contract import Launch, LaunchedEngine, LoadedModel, Progress, Quant, Store
from largeforge.errors import InputError, ServeError
from largeforge.run import Run
from largeforge.task.config import ServeConfig
from largeforge.task.hosted import hosted, look_at

# Outermost first: what is refused early costs little, and what is measured is all of it.
GUARDS = ("request_id", "access_log", "metrics", "keys", "body_limit", "rate", "deadline", "concurrency")
REMOTE_KEYS = ("engine.url", "engine.model", "engine.api_key")
"""What a door takes of engine=remote; its other keys pace what makes data."""


class Serve:
    """Answers over HTTP, WebSocket and gRPC."""

    def __init__(self, config: ServeConfig) -> None:
        self.config = config

    def run(self, run: Run) -> None:
        """Serve until SIGTERM or Ctrl-C."""
        config = self.config
        server: Any = build(config.serve)
        store: Store | None = build(config.store) if config.serve.has_door and config.guards.keys.require is not False else None
        try:
            if store is not None:
                store.open()
                self.refuse_to_lock_out(store)
            server.run(find("largeforge.serve.base.Parts")(**self.parts(run, store)))
        finally:
            if store is not None:
                store.close()

    def refuse_to_lock_out(self, store: Store) -> None:
        """Raise ServeError where a key would be asked for and there is none."""
        config: Any = self.config
        elsewhere = not (find("largeforge.serve.base.is_loopback")(config.serve.host) or config.serve.open)
        if not self.required(elsewhere) or store.num_keys():
            return
        why = "guards.keys.require=true:" if config.guards.keys.require is True else f"serve.host={config.serve.host} is reached from elsewhere, so"
        raise ServeError(
            f"{why} API keys are asked for, and there is none.",
            next_step="python -m largeforge task=keys create=<name>   or, to let everybody in, serve.open=true",
        )

    @property
    def only_those_with_a_key(self) -> bool:
        """Whether nobody but this machine's users and those who show a key get in."""
        config: Any = self.config
        elsewhere = not find("largeforge.serve.base.is_loopback")(config.serve.host)
        return not elsewhere or self.required(not config.serve.open)

    def required(self, elsewhere: bool) -> bool:
        """Whether a key is asked for: as told, else where others than this machine reach the door."""
        require = self.config.guards.keys.require
        return elsewhere if require == "auto" else require

    def parts(self, run: Run, store: Store | None) -> dict[str, Any]:
        """What the server is made of."""
        engine: Any = self.config.engine
        elsewhere = engine.hosting == "elsewhere"
        self.refuse_what_means_nothing(run)
        if engine.hosting == "own" and self.config.serve.has_engine:
            build(engine).look()
            run.progress.say(f"looking at {self.name}: {len(self.own_model['pins'])} pinned answers by plain transformers")
        defaults = find("largeforge.serve.asking.Defaults")(engine.max_tokens, engine.temperature, engine.top_p, engine.top_k)
        return {
            "run": run,
            "launch": None if elsewhere else partial(self.launch, run),
            "elsewhere": self.elsewhere(run) if elsewhere else None,
            "name": self.name,
            "adapters": tuple(getattr(engine, "adapters", ())),
            "defaults": None if elsewhere else defaults,
            "guarded": partial(self.guarded, store),
            "meters": find("largeforge.guard.meters.Meters")(),
            "protocol": find("largeforge.guard.head_limit.head_limited")(),
            "max_body_bytes": self.config.guards.body_limit.max_bytes,
            "asks_for_keys": self.required,
            "store": store,
            "prove": self.proof(),
            "adapter": build(engine).adapter if getattr(engine, "runtime_adapters", False) else None,
        }

    def plan(self, *, progress: Progress) -> Any:
        """What serving would cost; no weights are read."""
        if self.config.engine.hosting in ("elsewhere", "uvicorn"):
            raise InputError("This engine loads no model here: there is nothing to plan.", next_step="leave out plan=...")
        quant: Quant = build(self.config.quant)
        model: LoadedModel = build(self.config.model, progress=progress).outline(trainable=False, quant=quant)
        return find("largeforge.plan.serving.ServingPlan")(self.config)(model=model, progress=progress)

    # ---- the engine ----

    def launch(self, run: Run, host: str, port: int, key: str, folder: Path) -> Launch:
        """Return what starts the engine server."""
        config = self.config
        if config.engine.hosting == "own":
            return self.launch_own(port, key, folder)
        engine = config.engine
        hosting = find("largeforge.serve.hosting.Hosting")(
            kind=engine.hosting,
            make=partial(hosted, config),
            host=host,
            port=port,
            key=key,
            name=self.name,
            adapters=tuple(getattr(engine, "adapters", ())),
            defaults=(engine.max_tokens, engine.temperature, engine.top_p, engine.top_k),
            folder=folder,
            drain_s=config.serve.drain_s,
        )
        argv = [sys.executable, "-m", "largeforge.serve.hosting"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LIT_")}  # LitServe's own key would lock the door out
        environment["PYTHONUNBUFFERED"] = "1"
        return Launch(argv, environment, "/health", getattr(config.serve, "start_timeout_s", 900.0), stdin=pickle.dumps(hosting))

    def launch_own(self, port: int, key: str, folder: Path) -> Launch:
        """Return what starts a server of another program: it needs the model's folder, not the model."""
        config, looked_at = self.config, self.own_model
        engine: LaunchedEngine = build(config.engine)
        place = {name: looked_at[name] for name in ("model_folder", "template", "base_folder")}
        return engine.command(**place, port=port, name=self.name, key=key, folder=folder, dtype=config.model.dtype)

    @cached_property
    def own_model(self) -> dict[str, Any]:
        """Where the model lies and what it says, looked at once, in a process of its own. Raises ModelError, InputError."""
        if not self.config.quant.target.endswith(".Unquantized"):
            raise InputError("quant= is for engine=hf; this engine reads quantized checkpoints as they are.", next_step="quant=none")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(look_at, self.config).result()

    def proof(self) -> Any:
        """What compares answers of the endpoint with those of the model; None where no model is loaded here."""
        prove = find("largeforge.proof.served.prove")
        if self.config.engine.hosting == "litserve":
            return prove  # the engine's own process has the answers
        if self.config.engine.hosting == "own":
            return lambda upstream, name: prove(upstream, name, self.own_model["pins"])
        return None

    def refuse_what_means_nothing(self, run: Run) -> None:
        """Raise InputError for a setting of the command line that the choice of serve or engine has no use for: it would be ignored."""
        config: Any = self.config
        elsewhere = config.engine.hosting == "elsewhere"
        for word in run.composed.overrides:
            key = word.lstrip("+").partition("=")[0]
            group = key.partition(".")[0].partition("@")[0]
            if not config.serve.has_engine and (group in ("model", "quant") or key.startswith("engine.")):
                raise InputError(f"{word} is for the engine server, and serve=door starts none.", next_step=f"{word} where serve=engine runs")
            if not config.serve.has_door and group in ("guards", "store"):
                raise InputError(f"{word} is for a door, and serve=engine has none.", next_step=f"{word} where serve=door runs")
            if group in ("model", "quant") and config.engine.hosting in ("elsewhere", "uvicorn"):
                raise InputError(f"{word} is for an engine that loads a model; the chosen one loads none.", next_step="engine=hf, or leave it out")
            if elsewhere and key.startswith("engine.") and key not in REMOTE_KEYS:
                raise InputError(
                    f"{word} is for making data; a door passes requests on as they are.", next_step="guards.rate and guards.deadline limit what clients ask"
                )
        if self.name in getattr(config.engine, "adapters", {}):
            raise InputError(f"engine.adapters has one named {self.name}, and the model is called that.", next_step="serve.name=<another name>")
        if config.serve.has_door and getattr(config.engine, "runtime_adapters", False) and not self.only_those_with_a_key:
            raise InputError(
                f"engine.runtime_adapters: everybody who reaches {config.serve.host} could load adapters, since no key is asked for.",
                next_step="leave out serve.open and guards.keys.require, or engine.runtime_adapters",
            )
        if config.engine.hosting == "own" and not config.serve.has_door and config.serve.host != "127.0.0.1":
            raise InputError("engine=vllm listens on this machine alone.", next_step="serve=all, or vLLM's own server")

    def elsewhere(self, run: Run) -> tuple[str, str, str]:
        """URL, key and the model's name there, of an engine that stands elsewhere. Raises InputError where the URL is none."""
        engine: Any = self.config.engine
        return (
            find("largeforge.engine.completions.base_url")(engine.url),
            engine.api_key.get_secret_value() if engine.api_key is not None else "",
            engine.model or "",
        )

    @property
    def name(self) -> str:
        """What requests call the model: as told, else the choice's name, a Hub id's last part, or what a folder is called."""
        config: Any = self.config
        if config.serve.name:
            return str(config.serve.name)
        if config.engine.hosting == "elsewhere":
            return str(config.engine.model or "")
        if config.engine.target.endswith(".Echo"):
            return "echo"
        path = config.model.path
        if path is None:
            return str(config.model.target.rpartition(".")[2].lower())
        parts = [part for part in Path(path).parts if part not in ("artifact", ".", "/")]
        below = parts[parts.index("outputs") + 1 :] if "outputs" in parts else parts[-1:]  # sft-2026-11-28-10-00-00, or what a folder is called
        return "-".join(below) or "model"

    # ---- the guards ----

    def guarded(self, store: Store | None, app: App, meters: Any, required: bool) -> tuple[App, Any]:
        """Put the guards around an app; return that, and the one that counts what runs."""
        guards: Any = self.config.guards
        live: dict[str, dict[str, Any]] = {
            "request_id": {"routes": find("largeforge.serve.door.ROUTES")},
            "metrics": {"meters": meters},
            "keys": {"store": store, "required": self.required(required)},
        }
        made: dict[str, Any] = {}
        for name in reversed(GUARDS):
            app = made[name] = build(getattr(guards, name), app=app, **live.get(name, {}))
        concurrency = made["concurrency"]
        meters.queue_depth.set_function(lambda: concurrency.waiting)
        return app, concurrency
