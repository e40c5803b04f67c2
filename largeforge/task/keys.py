"""Make, list and revoke the API keys that task=serve asks for."""

from __future__ import annotations

import re
import secrets
import sys
import time
from datetime import datetime, timezone
from typing import Any

from largeforge.build import build
from largeforge.call import Key, KeyRecord, digest_of
from largeforge.console import Console
from largeforge.contract import Progress, Store
from largeforge.errors import InputError
from largeforge.run import Run
from largeforge.task.serving_config import KeysConfig

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}")
PREFIX_LENGTH = 8
DAY_S = 86400.0


class Keys:
    """The key that is made goes to standard output, once, and nowhere else; everything else goes to standard error, the list excepted."""

    def __init__(self, config: KeysConfig) -> None:
        self.config = config

    def run(self, run: Run) -> None:
        """Do one of three: make a key, revoke one, list all."""
        config = self.config
        if config.create is not None and config.revoke is not None:
            raise InputError("create and revoke at once.", next_step="one of them after the other; to change a key for a new one, revoke it first")

        # ---- build ----
        store: Store = build(config.store)
        store.open()

        # ---- do ----
        try:
            if config.create is not None:
                key, secret = self.make(config.create, store)
                run.progress.say(f"A key for {key.name}, shown this once: the store keeps only its hash.")
                print(secret, flush=True)
                run.progress.say(f"use: curl -H 'Authorization: Bearer {key.prefix}...' ..., or OPENAI_API_KEY with any client of OpenAI's")
            elif config.revoke is not None:
                key = store.revoke(config.revoke)
                run.progress.say(f"The key of {key.name} ({key.prefix}...) is worthless now; servers that run know it within guards.keys.cache_s (30 s).")
            else:
                self.show(store.keys(), run)
            run.measure(keys_valid=float(store.num_keys()))
        finally:
            store.close()

    def make(self, name: str, store: Store) -> tuple[Key, str]:
        """Make a key and return it with what its owner must keep: `lf-` and 40 letters, 240 bits from the system's own source of chance."""
        config = self.config
        if not NAME.fullmatch(name):
            raise InputError(f"create={name}: a name has 1 to 64 letters, digits and _ . @ + -, and begins with one of the first three.")
        secret = "lf-" + secrets.token_urlsafe(30)
        key = Key(
            id=0,
            name=name,
            prefix=secret[:PREFIX_LENGTH],
            priority=config.priority,
            requests_per_minute=config.requests_per_minute,
            tokens_per_minute=config.tokens_per_minute,
            scopes=tuple(dict.fromkeys(config.scopes)),
            expires=None if config.expires_days is None else time.time() + config.expires_days * DAY_S,
        )
        return store.add_key(key, digest=digest_of(secret)), secret

    def show(self, records: list[KeyRecord], run: Run) -> None:
        """List keys on standard output."""
        if not records:
            run.progress.say("There are no keys yet. Try: python -m largeforge task=keys create=<name>")
            return
        columns = ("name", "begins", "state", "priority", "requests/min", "tokens/min", "scopes", "created", "expires", "last used")
        Console(stream=sys.stdout).table("API keys", columns, [_row(record, time.time()) for record in records])

    def plan(self, *, progress: Progress) -> Any:
        """There is nothing to plan."""
        raise InputError("task=keys costs nothing that could be planned.", next_step="leave plan=... out")


def _row(record: KeyRecord, now: float) -> tuple[str, ...]:
    key = record.key
    state = "valid" if record.valid(now) else f"revoked {_day(record.revoked)}" if record.revoked is not None else "expired"
    limits = ("" if limit is None else str(limit) for limit in (key.requests_per_minute, key.tokens_per_minute))
    times = (_day(record.created), _day(key.expires), _day(record.last_used))
    return (key.name, key.prefix, state, str(key.priority), *limits, " ".join(key.scopes), *times)


def _day(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M")
