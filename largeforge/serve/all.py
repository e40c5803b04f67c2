"""all: the door in this process, the engine server behind it as a child, on one machine."""

from __future__ import annotations

import asyncio
import time

from largeforge.errors import ServeError
from largeforge.process import spare_what_stays
from largeforge.serve.base import Listening, Parts, Prove, Stops, greeting, is_loopback, new_key, run_loop
from largeforge.serve.completions import TROUBLE
from largeforge.serve.config import AllConfig
from largeforge.serve.door import Door
from largeforge.serve.supervising import EngineServer
from largeforge.serve.upstream import Upstream


class All:
    """Starts and supervises both.

    Args:
        config: where, and for how long.
    """

    def __init__(self, config: AllConfig) -> None:
        self.config = config

    def run(self, parts: Parts) -> None:
        """Serve until SIGTERM or Ctrl-C. Raises ServeError where it does not come up, CheckFailed where its answers are not those of the model."""
        run_loop(self._run(parts))

    async def _run(self, parts: Parts) -> None:
        config, run = self.config, parts.run
        start = time.monotonic()
        required = not (is_loopback(config.host) or config.open)
        listening = Listening(config, protocol=parts.protocol)
        server: EngineServer | None = None
        upstream: Upstream | None = None
        with Stops(run) as stops:
            try:
                # ---- whom it asks ----
                if parts.launch is not None:
                    key, launch = new_key(), parts.launch
                    server = EngineServer(lambda port: launch("127.0.0.1", port, key, run.folder), folder=run.folder, stop_s=0.0)  # the door has drained
                    server.on_restart = parts.meters.engine_restarts.inc
                    upstream = Upstream(server=server, key=key, names=[parts.name, *parts.adapters])
                else:
                    assert parts.elsewhere is not None
                    url, key, model = parts.elsewhere
                    upstream = Upstream(url=url, key=key, names=[parts.name] if parts.name else [], model=model)
                await upstream.open()

                # ---- the door, which says that it is loading ----
                door = Door(
                    upstream,
                    guard=lambda app: parts.guarded(app, parts.meters, required),
                    meters=parts.meters,
                    store=parts.store,
                    defaults=parts.defaults,
                    max_body_bytes=parts.max_body_bytes,
                    adapter=parts.adapter,
                    title=f"LargeForge: {parts.name}" if parts.name else "LargeForge",
                )
                await listening.start(door)

                # ---- the engine, and the proof ----
                if server is not None:
                    run.progress.say(f"starting {parts.name} (its log: {run.folder / 'engine.txt'})")
                    if not await stops.unless_asked(server.start()):
                        return
                    parts.meters.model_load_time.set(server.load_seconds)
                    run.measure(load_seconds=server.load_seconds)
                elif not await stops.unless_asked(upstream.find(config.start_timeout_s)):
                    return
                name = upstream.names[0]
                proof = ""
                if config.prove and parts.prove is not None:
                    proven = asyncio.ensure_future(self._prove(parts.prove, upstream, name))
                    if not await stops.unless_asked(proven):
                        return
                    proof = proven.result()
                door.loading = False
                spare_what_stays()
                seconds = time.monotonic() - start
                run.measure(ready_seconds=seconds)
                run.progress.say(
                    greeting(listening, name=name, seconds=seconds, proof=proof, keys=parts.asks_for_keys(required), alone=is_loopback(config.host))
                )

                # ---- until it is to stop ----
                await stops.asked.wait()
                left = await door.drain(config.drain_s, at_once=lambda: stops.at_once)
                if left:
                    run.progress.say(f"{left} {'answer was' if left == 1 else 'answers were'} broken off after {config.drain_s:g} s, and told so.")
                run.progress.say("stopped")
                run.measure(restarts=float(server.restarts if server is not None else 0))
            finally:
                await listening.stop()
                if upstream is not None:
                    await upstream.close()
                if server is not None:
                    await server.stop()
                listening.close()

    async def _prove(self, prove: Prove, upstream: Upstream, name: str) -> str:
        """Prove; once more where the engine died meanwhile. Raises CheckFailed, ServeError."""
        try:
            return await prove(upstream, name)
        except TROUBLE:
            if not await upstream.again():
                raise ServeError("The engine died while its answers were compared with the model's.", next_step="see engine.txt in the run's folder") from None
            return await prove(upstream, name)
