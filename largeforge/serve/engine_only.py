"""engine: the engine server alone, for a door that stands elsewhere."""

from __future__ import annotations

import socket
import time

from largeforge.errors import InputError
from largeforge.serve.base import Parts, Stops, is_loopback, listening, run_loop
from largeforge.serve.config import EngineOnlyConfig
from largeforge.serve.supervising import EngineServer


class EngineOnly:
    """Starts and supervises one engine server.

    Args:
        config: where it listens.
    """

    def __init__(self, config: EngineOnlyConfig) -> None:
        self.config = config

    def run(self, parts: Parts) -> None:
        """Serve until SIGTERM or Ctrl-C.

        Raises:
            InputError: it would answer everybody, or its engine stands elsewhere.
            ServeError: it does not come up.
        """
        if not is_loopback(self.config.host) and self.config.engine_key is None:
            raise InputError(
                f"serve.host={self.config.host} is reached from elsewhere, and serve.engine_key is null: everybody could ask.",
                next_step="LARGEFORGE_SERVE__ENGINE_KEY=<a secret that its door has too>",
            )
        run_loop(self._run(parts))

    async def _run(self, parts: Parts) -> None:
        config, run, launch = self.config, parts.run, parts.launch
        if launch is None:
            raise InputError("This engine stands elsewhere: there is none to serve here.", next_step="serve=door serve.engine_url=<where it stands>")
        key = config.engine_key.get_secret_value() if config.engine_key is not None else ""
        start = time.monotonic()
        server = EngineServer(
            lambda port: launch(config.host, port, key, run.folder), folder=run.folder, host="127.0.0.1", port=config.port, stop_s=config.drain_s + 5
        )
        listening(config.host, config.port).close()  # taken: said now, not by a server that answers in its place
        run.progress.say(f"starting the engine server of {parts.name} (its log: {run.folder / 'engine.txt'})")
        with Stops(run) as stops:
            try:
                if not await stops.unless_asked(server.start()):
                    return
                run.measure(ready_seconds=time.monotonic() - start, load_seconds=server.load_seconds)
                run.progress.say(f"\nready in {time.monotonic() - start:.1f} s: the engine server of {parts.name} at http://{config.host}:{config.port}")
                here = config.host if is_loopback(config.host) else socket.gethostname()
                run.progress.say(f"its door: python -m largeforge task=serve serve=door serve.engine_url=http://{here}:{config.port}")
                run.progress.say("Ctrl-C or SIGTERM stops it; what runs is finished first.")
                await stops.asked.wait()
            finally:
                await server.stop(at_once=lambda: stops.at_once)
