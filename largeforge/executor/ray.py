"""A Ray cluster, through Ray Data: the same tasks over the same shards, on machines that see the same folder. Knows nothing about what the tasks do."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from largeforge.contract import Result, Task
from largeforge.errors import InputError, MissingExtra
from largeforge.executor.config import RayConfig

if TYPE_CHECKING:
    from largeforge.run import Run


class Ray:
    """Runs tasks on the workers of a Ray cluster, which stay warm between calls. What a worker that dies was doing, Ray has done again.

    Args:
        config: which cluster, and how many tasks at once.
    """

    def __init__(self, config: RayConfig) -> None:
        self.config = config
        self.workers: dict[str, int] = {}
        """Tasks that each worker process did."""
        self._ours = False

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task], *, run: Run | None = None, title: str = "") -> Iterator[tuple[int, Result]]:
        """Yield (number of the task, its result) as tasks end (largeforge/contract.py)."""
        if not tasks:
            return
        ray = self._cluster()
        size = min(self.num_workers, len(tasks))
        if len(tasks) == 1:
            yield 0, function(tasks[0])
            return
        items = [{"number": number, "work": pickle.dumps((function, task))} for number, task in enumerate(tasks)]
        data = ray.data.from_items(items, override_num_blocks=len(items))
        done = data.map_batches(_do, batch_size=1, zero_copy_batch=True, compute=ray.data.TaskPoolStrategy(size=size), num_cpus=1)
        bar = run.progress.bar(title, total=len(tasks), unit="shards") if run is not None and len(tasks) > 1 else None
        try:
            for row in done.iter_rows():
                self.workers[row["worker"]] = self.workers.get(row["worker"], 0) + 1
                if bar is not None:
                    bar.advance(workers=len(self.workers))
                sound, result = pickle.loads(row["result"])
                if not sound:
                    raise result
                yield int(row["number"]), result
                if run is not None and run.stop_asked:
                    raise run.interrupt("Stopped; the shards that are done are kept.", next_step=run.command(folder=str(run.folder), resume="auto"))
        finally:
            if bar is not None:
                bar.close()

    @property
    def num_workers(self) -> int:
        """Tasks at once: as the config says, or one a CPU of the cluster."""
        return self.config.num_workers or int(self._cluster().cluster_resources().get("CPU", 1))

    def close(self) -> None:
        """Let go of the cluster; one that was started here ends."""
        if self._ours:
            import ray

            ray.shutdown()
            self._ours = False

    def _cluster(self) -> Any:
        try:
            import ray
            import ray.data
        except ImportError as fault:
            raise MissingExtra("ray", extra="ray") from fault
        if not ray.is_initialized():
            os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
            address = self.config.address
            try:
                ray.init(
                    address=address,
                    num_cpus=self.config.num_workers or None if address is None else None,
                    include_dashboard=False if address is None else None,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    configure_logging=False,
                )
            except (ConnectionError, RuntimeError, ValueError) as fault:
                raise InputError(
                    f"executor.address={address}: no Ray cluster answers there ({fault}).",
                    next_step="ray start --head, or executor.address=null for one of this machine",
                ) from fault
            self._ours = True
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        return ray


def _do(batch: Any) -> dict[str, list[Any]]:
    """Do tasks in a worker, and tell who it was. An error travels back as a value, so that it is raised where the run is."""
    import ray

    results = []
    for packed in batch["work"]:
        function, task = pickle.loads(packed)
        try:
            results.append(pickle.dumps((True, function(task))))
        except Exception as fault:
            results.append(pickle.dumps((False, fault)))
    worker = ray.get_runtime_context().get_worker_id()
    return {"number": list(batch["number"]), "result": results, "worker": [worker] * len(results)}
