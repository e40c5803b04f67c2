"""Blocking work beside an event loop, in threads that keep no process from ending. Standard library only."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Found = TypeVar("Found")


async def in_daemon_thread(work: Callable[[], Found], *, name: str, ended: Callable[[], None] = lambda: None) -> Found:
    """Return what blocking work returns, or raise what it raises.

    asyncio's own threads are waited for when a process ends: a database that hangs would hold it up for ever.

    Args:
        work: what is done.
        name: of the thread.
        ended: called in the loop once the work has ended, also where nobody waits for it any more.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Found] = loop.create_future()

    def settle(found: Any, fault: BaseException | None) -> None:
        ended()
        if answer.done():
            return
        if fault is None:
            answer.set_result(found)
        else:
            answer.set_exception(fault)

    def run() -> None:
        found: Any = None
        fault: BaseException | None = None
        try:
            found = work()
        except BaseException as raised:
            fault = raised
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
            loop.call_soon_threadsafe(settle, found, fault)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await answer
