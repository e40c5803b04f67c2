"""Who may ask: those who show an API key. Covers HTTP and WebSocket; gRPC comes as HTTP from `largeforge.serve.inner`.

Sees headers, never a body. A store that blocks is asked from threads, and no request waits for it that need not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from largeforge.asgi import App, Message, Receive, Scope, Send, refuse
from largeforge.call import ADMIN_PATHS, GENERATING, OPEN_PATHS, Key, call_of, digest_of
from largeforge.contract import Store
from largeforge.errors import InputError, StoreError
from largeforge.guard.config import KeysConfig
from largeforge.threads import in_daemon_thread

AT_ONCE = 4
"""Lookups that the store is asked at once: as many threads, and connections, as they take."""
WAITING = 256
"""Lookups that wait for their turn; what a flood of made-up keys asks beyond them is not asked."""
PROBE_S = 1.0
"""Seconds between two tries of a store that does not answer."""
SUBPROTOCOL = "bearer"
log = logging.getLogger("largeforge.guard")


class Keys:
    """Lets a request in whose key the store knows, and writes the key into its call.

    A key is looked for in memory first, and the store is asked again once `cache_s` has gone by, so that a revoked key works no
    longer than this. While the store does not answer, keys that it knew go on (`stale_s`); others are told 503, never 401: nobody
    knows that they are wrong. Made-up keys have a memory of their own, so that a flood of them drives no good key out.

    Nothing here takes longer for a key that is nearly right: keys are compared by their hashes, which nobody can steer.

    Where no key is asked for (`required=False`), a key that the store knows still counts (its name, priority and limits), and any
    other is ignored: OpenAI's clients always send one.

    Args:
        app: what is inside.
        config: the typed choice; where its `require` is true or false, that is meant, whatever `required` says.
        store: who knows the keys, opened; None only where no key is asked for.
        required: whether a key is asked for where `config.require` is auto: the story knows where the server is bound.
        clock: monotonic seconds.

    Raises:
        InputError: keys are asked for and there is no store.
    """

    def __init__(self, config: KeysConfig, *, app: App, store: Store | None, required: bool, clock: Callable[[], float] = time.monotonic) -> None:
        required = required if config.require == "auto" else config.require
        if required and store is None:
            raise InputError("guards.keys asks for keys, and there is no store of them.", next_step="store=sqlite, or guards.keys.require=false")
        self.app = app
        self.required = required
        self.known = KnownKeys(store, config, clock=clock) if store is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        shown = keys_of(scope)
        if len(shown) == 1 and self.known is not None:
            secret = shown.pop()
            try:
                call_of(scope).key = await self.known.find(digest_of(secret))
            except StoreError:
                if self.required:
                    await _unavailable(scope, receive, send)
                    return
            key = call_of(scope).key
            if key is None and self.required:
                await _unauthorized(scope, receive, send, "Incorrect API key provided: it is not known, was revoked or has expired.")
                return
            if key is not None and self.required and (needed := scope_of(scope["path"])) not in (None, *key.scopes):
                message = f"This key lacks the scope {needed}. Make one that has it: python -m largeforge task=keys create=<name> scopes=[{needed}]"
                await refuse(scope, receive, send, 403, message, kind="permission_error", code="missing_scope")
                return
        elif self.required:
            said = "Several different API keys were provided; send one." if shown else _MISSING
            await _unauthorized(scope, receive, send, said)
            return
        if scope["type"] == "websocket" and SUBPROTOCOL in scope.get("subprotocols", ()):
            scope, send = _without_subprotocol(scope), _accepting_subprotocol(send)
        await self.app(scope, receive, send)

    def close(self) -> None:
        """Forget every key."""
        if self.known is not None:
            self.known.forget()


def keys_of(scope: Scope) -> set[str]:
    """Return the keys that a request shows: `Authorization: Bearer`, `X-API-Key`, or a WebSocket's subprotocols `bearer, <key>` (browsers set no headers)."""
    found: set[str] = set()
    for name, value in scope["headers"]:
        text = value.decode("latin-1").strip()
        if name == b"x-api-key":
            found.add(text)
        elif name == b"authorization":
            scheme, _, rest = text.partition(" ")
            if scheme.lower() == "bearer":
                found.add(rest.strip())
    if scope["type"] == "websocket":
        found |= set(_shown_as_subprotocol(scope))
    return found - {""}


def scope_of(path: str) -> str | None:
    """Return the scope that a key needs for a path; None is any."""
    return "infer" if path in GENERATING else "admin" if path in ADMIN_PATHS else None


# ---- what is known ----


@dataclass
class Entry:
    """What the store said of one digest, and when, in monotonic seconds."""

    key: Key | None
    at: float


class KnownKeys:
    """The store's keys as this process remembers them. Used from one event loop.

    Args:
        store: who is asked.
        config: for how long, and how many.
        clock: monotonic seconds, by which answers of the store grow old.
        wall: seconds since 1970, by which keys expire.
    """

    def __init__(self, store: Store, config: KeysConfig, *, clock: Callable[[], float], wall: Callable[[], float] = time.time) -> None:
        self.store = store
        self.wall = wall
        self.config = config
        self.clock = clock
        self.good: OrderedDict[str, Entry] = OrderedDict()
        self.bad: OrderedDict[str, Entry] = OrderedDict()
        self.pending: dict[str, asyncio.Task[Key | None]] = {}
        self.turns = asyncio.Semaphore(AT_ONCE)
        self.answers = True
        self.tried = 0.0

    async def find(self, digest: str) -> Key | None:
        """Return the valid key of a digest, None where there is none. Raises StoreError where nobody can say."""
        now, config = self.clock(), self.config
        good, bad = self.good.get(digest), self.bad.get(digest)
        if good is not None and good.key is not None and good.key.expires is not None and self.wall() >= good.key.expires:
            return None  # the store would say so too, where it can
        if good is not None and now - good.at < config.cache_s:
            self.good.move_to_end(digest)
            return good.key
        if bad is not None and now - bad.at < config.unknown_cache_s:
            return None
        stale = good is not None and now - good.at < config.stale_s
        silent = not self.answers and (bool(self.pending) or now - self.tried < PROBE_S)
        if not silent:
            task = self.ask(digest)
            if task is not None and (self.answers or not stale):
                with contextlib.suppress(StoreError):
                    # shared with others who show the same key: one who goes away must not end it for them
                    return await asyncio.shield(task)
        if stale and good is not None:
            self.good.move_to_end(digest)
            return good.key
        raise StoreError("The store of API keys does not answer.", next_step="look whether the database runs")

    def ask(self, digest: str) -> asyncio.Task[Key | None] | None:
        """Start looking a digest up, or join who does already; None where too many wait."""
        task = self.pending.get(digest)
        # a good key is always asked for again: whose key was revoked must not be able to put that off with a flood
        if task is None and (digest in self.good or len(self.pending) < WAITING + AT_ONCE):
            self.tried = self.clock()
            task = self.pending[digest] = asyncio.create_task(self.look_up(digest))
            task.add_done_callback(lambda done: self.done(digest, done))
        return task

    async def look_up(self, digest: str) -> Key | None:
        """Ask the store, in a turn of its own and no longer than `timeout_s`; remember what it says. Raises StoreError."""
        try:
            key = await asyncio.wait_for(self.in_thread(digest), self.config.timeout_s)
        except (StoreError, asyncio.TimeoutError) as fault:
            if self.answers:
                log.error("the store of API keys does not answer: known keys go on for %g s, others are told 503: %s", self.config.stale_s, _reason(fault))
            self.answers, self.tried = False, self.clock()
            raise StoreError("The store of API keys does not answer.") from fault
        if not self.answers:
            log.warning("the store of API keys answers again")
        self.answers = True
        into, out_of = (self.bad, self.good) if key is None else (self.good, self.bad)
        out_of.pop(digest, None)
        into[digest] = Entry(key, self.clock())
        into.move_to_end(digest)
        if len(into) > self.config.cache_size:
            into.popitem(last=False)
        return key

    async def in_thread(self, digest: str) -> Key | None:
        """Ask the blocking store. A thread that hangs goes on taking its turn, though nobody waits for it any more."""
        await self.turns.acquire()
        return await in_daemon_thread(lambda: self.store.find_key(digest), name="find-key", ended=self.turns.release)

    def done(self, digest: str, task: asyncio.Task[Key | None]) -> None:
        self.pending.pop(digest, None)
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not complain of a probe that nobody waited for

    def forget(self) -> None:
        """Forget every key, and end what is being looked up."""
        for task in list(self.pending.values()):
            task.cancel()
        self.good.clear()
        self.bad.clear()


def _reason(fault: BaseException) -> str:
    return fault.message if isinstance(fault, StoreError) else "no answer in time"


# ---- refusals ----

_MISSING = "You didn't provide an API key. Send it as Authorization: Bearer <key>, or as X-API-Key: <key>."


async def _unauthorized(scope: Scope, receive: Receive, send: Send, message: str) -> None:
    kind, code = "invalid_request_error", "invalid_api_key"  # as OpenAI says it; its clients make AuthenticationError of the 401
    await refuse(scope, receive, send, 401, message, kind=kind, code=code, headers={"WWW-Authenticate": "Bearer"})


async def _unavailable(scope: Scope, receive: Receive, send: Send) -> None:
    message = "API keys cannot be checked at the moment: the server's database does not answer. Try again."
    await refuse(scope, receive, send, 503, message, kind="server_error", code="store_unavailable", headers={"Retry-After": "2"})


# ---- a key among a WebSocket's subprotocols ----


def _shown_as_subprotocol(scope: Scope) -> list[str]:
    offered = list(scope.get("subprotocols", ()))
    at = offered.index(SUBPROTOCOL) if SUBPROTOCOL in offered else len(offered)
    return offered[at + 1 : at + 2]


def _without_subprotocol(scope: Scope) -> Scope:
    """Give the scope on with the key in a header, where the calls that a WebSocket's messages become look for it, and nowhere else."""
    shown = _shown_as_subprotocol(scope)
    headers = [(name, value) for name, value in scope["headers"] if name not in (b"sec-websocket-protocol", b"authorization" if shown else b"")]
    headers += [(b"authorization", f"Bearer {key}".encode("latin-1")) for key in shown]
    rest = [name for name in scope["subprotocols"] if name != SUBPROTOCOL and name not in shown]
    return {**scope, "headers": headers, "subprotocols": rest}


def _accepting_subprotocol(send: Send) -> Send:
    """Answer the handshake with `bearer`, without which a browser closes the connection that it offered subprotocols for."""

    async def accepting(message: Message) -> None:
        if message["type"] == "websocket.accept" and not message.get("subprotocol"):
            message = {**message, "subprotocol": SUBPROTOCOL}
        await send(message)

    return accepting
