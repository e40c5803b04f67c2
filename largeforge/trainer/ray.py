"""Runs the processes of a run as workers of a Ray cluster (Moritz et al. 2018, arXiv:1712.05889), and replaces those that die.

Ray decides where a worker runs and sees its death; what it runs is the command line itself, as everywhere. All machines see the run's folder.
Knows nothing about what is trained.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from largeforge.config.composed import Composed
from largeforge.console import Console
from largeforge.errors import InputError, MissingExtra
from largeforge.process import free_port
from largeforge.trainer.launch import Signals, command, environment_of, settle, signals_kept, start_child, wait_for_all

ROOM_S = 60.0


def launch(composed: Composed, *, folder: Path, progress: Console) -> int:
    """Run the story on `trainer.nodes` times `trainer.devices` workers of a Ray cluster; return its exit code.

    Args:
        composed: the run.
        folder: of the run; opened already, and seen by every machine.
        progress: where workers' lives are told.

    Raises:
        MissingExtra: Ray is not installed.
        InputError: there is no such cluster, or not enough room in it.
    """
    trainer: Any = composed.config.trainer  # type: ignore[attr-defined]
    ray = _connect(trainer.address, trainer.devices)
    folder, start = folder.absolute(), time.monotonic()
    words = command(composed, folder)
    try:
        with signals_kept() as signals:
            for attempt in range(trainer.max_restarts + 1):
                codes = _once(ray, words, signals, trainer=trainer, folder=folder)
                died = [number for number, code in enumerate(codes) if code == -signal.SIGKILL]
                if not died or signals.first or attempt == trainer.max_restarts:
                    break
                # the folder holds a run now, so that it is gone on with, from its newest checkpoint or from the start
                words = command(composed, folder, resume="auto")
                who = f"Workers {', '.join(map(str, died))}" if len(died) > 1 else f"Worker {died[0]}"
                progress.say(f"{who} died; starting again from the newest checkpoint ({attempt + 1} of {trainer.max_restarts}).")
    finally:
        ray.shutdown()
    return settle(codes, signals.first, composed=composed, folder=folder, progress=progress, seconds=time.monotonic() - start)


class Worker:
    """What runs in a worker of the cluster: it holds one process of the run."""

    def __init__(self) -> None:
        self.child: Any = None

    def meet(self) -> tuple[str, int]:
        """An address and a free port of this machine."""
        import ray

        address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return address, free_port()

    def start(self, words: Sequence[str], environment: dict[str, str], *, number: int, folder: str, cwd: str) -> None:
        """Start the process."""
        self.child = start_child(words, environment, number=number, folder=Path(folder), shown=False, cwd=cwd if Path(cwd).is_dir() else None)

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        return None if self.child is None else self.child.poll()

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        self.child.send_signal(number)


class Remote:
    """A worker, seen from here. One that does not answer any more has died.

    Args:
        ray: the library.
        actor: of the class `Worker`.
    """

    def __init__(self, ray: Any, actor: Any) -> None:
        self.ray = ray
        self.actor = actor

    def poll(self) -> int | None:
        try:
            code: int | None = self.ray.get(self.actor.poll.remote())
        except self.ray.exceptions.RayError:
            return -signal.SIGKILL
        return code

    def send_signal(self, number: int) -> None:
        try:
            self.ray.get(self.actor.send_signal.remote(number))
        except self.ray.exceptions.RayError:
            return


def _once(ray: Any, words: Sequence[str], signals: Signals, *, trainer: Any, folder: Path) -> list[int]:
    """Run all processes once, to their end; return their exit codes by rank."""
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= trainer.devices * trainer.nodes else 0
    room = {"CPU": trainer.devices} | ({"GPU": trainer.devices} if gpus else {})
    group = placement_group([room] * trainer.nodes, strategy="STRICT_SPREAD")
    try:
        if not group.wait(ROOM_S):
            raise InputError(
                f"the Ray cluster has no room for {trainer.devices} workers on each of {trainer.nodes} machines.",
                next_step="fewer trainer.devices or trainer.nodes; `ray status` says what is there",
            )
        count = trainer.devices * trainer.nodes
        actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(Worker)
        place = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number // trainer.devices) for number in range(count)]
        children = [Remote(ray, actor.options(scheduling_strategy=one).remote()) for one in place]
        address, port = ray.get(children[0].actor.meet.remote())
        said = Tail(folder / "ranks" / "0.txt")
        for number, child in enumerate(children):
            local = {"LOCAL_RANK": str(number % trainer.devices), "LOCAL_WORLD_SIZE": str(trainer.devices), "GROUP_RANK": str(number // trainer.devices)}
            environment = {**environment_of(number, count, port=port, address=address), **local}
            if "PYTHONPATH" in os.environ:
                environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
            ray.get(child.actor.start.remote(words, environment, number=number, folder=os.fspath(folder), cwd=os.getcwd()))
        codes = wait_for_all(children, signals, meanwhile=said.show)
        said.show()
        return codes
    finally:
        remove_placement_group(group)


class Tail:
    """Shows what is added to a file, from where it ended when this began.

    Args:
        path: of the file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen = path.stat().st_size if path.is_file() else 0

    def show(self) -> None:
        """Write what is new to standard error."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as stream:
            stream.seek(self.seen)
            new = stream.read()
        self.seen += len(new)
        sys.stderr.write(new.decode("utf-8", errors="replace"))
        sys.stderr.flush()


def _connect(address: str | None, devices: int) -> Any:
    try:
        import ray
    except ImportError as fault:
        raise MissingExtra("ray", extra="ray") from fault
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    own: dict[str, Any] = {"num_cpus": max(devices, os.cpu_count() or 1), "include_dashboard": False} if address is None else {}
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, configure_logging=False, **own)
    except (ConnectionError, RuntimeError, ValueError, socket.gaierror) as fault:
        raise InputError(
            f"trainer.address={address}: no Ray cluster answers there ({fault}).",
            next_step="ray start --head, or trainer.address=null for one of this machine",
        ) from fault
    return ray
