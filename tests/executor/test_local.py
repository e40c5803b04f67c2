"""executor=local: every task once, in fresh processes; workers that die; errors; stops."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from largeforge.errors import InputError, Interrupted, LargeForgeError
from largeforge.executor.config import LocalConfig
from largeforge.executor.local import Here, Local
from tests.executor import work


@pytest.fixture(scope="module")
def two() -> Any:
    executor = Local(LocalConfig(_target_="", num_workers=2))
    yield executor
    executor.close()


class Stopped:
    """A run whose stop was asked for."""

    stop_asked = True
    folder = Path("outputs/x")

    class progress:  # noqa: N801
        @staticmethod
        def bar(title: str, *, total: int | None, unit: str = "") -> Any:
            class Bar:
                def advance(self, count: int = 1, **fields: Any) -> None: ...

                def close(self) -> None: ...

            return Bar()

    def interrupt(self, message: str, *, next_step: str = "") -> Interrupted:
        return Interrupted(message, next_step=next_step)

    def command(self, **changes: str) -> str:
        return " ".join(f"{key}={value}" for key, value in changes.items())


def test_every_task_is_done_once(two: Local) -> None:
    results = list(two.map(work.double, range(9)))
    assert sorted(results) == [(number, 2 * number) for number in range(9)]


def test_work_is_done_elsewhere_and_by_several(two: Local) -> None:
    pids = {pid for _, pid in two.map(work.who, range(30))}
    assert os.getpid() not in pids
    assert len(pids) == 2
    assert {str(pid) for pid in pids} <= set(two.workers)


def test_workers_do_not_load_torch(two: Local) -> None:
    assert not any(loaded for _, loaded in two.map(work.loads_torch, range(2)))


def test_one_worker_or_one_task_stays_here() -> None:
    assert {pid for _, pid in Local(LocalConfig(_target_="", num_workers=1)).map(work.who, range(3))} == {os.getpid()}
    assert {pid for _, pid in Here().map(work.who, range(3))} == {os.getpid()}


def test_zero_workers_are_one_a_core() -> None:
    assert Local(LocalConfig(_target_="", num_workers=0)).num_workers == len(os.sched_getaffinity(0))


def test_an_error_of_a_task_is_raised_here(two: Local) -> None:
    with pytest.raises(InputError, match="three cannot be done") as error:
        list(two.map(work.fails_at_three, range(6)))
    assert error.value.next_step == "leave three out"


def test_a_worker_that_dies_costs_nothing(two: Local, tmp_path: Path) -> None:
    """Its tasks are done again; no result is lost or told twice."""
    results = list(two.map(work.KilledOnce(3, tmp_path / "died"), range(8)))
    assert (tmp_path / "died").exists()
    assert sorted(results) == [(number, 2 * number) for number in range(8)]


def test_a_task_that_always_kills_its_worker_is_given_up() -> None:
    executor = Local(LocalConfig(_target_="", num_workers=2))
    with pytest.raises(LargeForgeError, match="died 3 times") as error:
        list(executor.map(work.always_dies, range(2)))
    assert "resume=auto" in error.value.next_step
    executor.close()


def test_a_stop_ends_it_and_says_how_to_go_on(two: Local) -> None:
    run: Any = Stopped()
    with pytest.raises(Interrupted) as error:
        list(two.map(work.slow_double, range(6), run=run))
    assert error.value.next_step == "folder=outputs/x resume=auto"
