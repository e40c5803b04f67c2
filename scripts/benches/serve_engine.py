"""The hf engine as clients see it, beside transformers' own server and vLLM: tokens a second, waiting, requests a second.

All sides answer the same prompts from the same weights in the same dtype, greedily and up to the last token, through HTTP streams; which tokens they
say is compared too. Prompts are new in each pair, so that no cache of an earlier one helps.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benches.serve_load import Measured, load
from scripts.benches.serve_servers import Server, door, model_folder, ours, transformers_serve, vllm
from scripts.benches.table import Row, Table

WORDS = ("bird", "tree", "river", "stone", "light", "music", "paper", "garden", "winter", "morning", "story", "window", "yellow", "quiet", "seven", "apple")
TEMPLATE_TOKENS = 9  # of a turn and what opens the answer, near enough
THROUGH, SECOND = "vllm, our door", 1000  # a second way to one server, and what makes its prompts others than those of the first
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Case:
    """One way to ask.

    Args:
        name: as the table has it.
        prompt_tokens: of a prompt, template included, near enough.
        clients: that ask at once.
        max_tokens: of every answer.
        requests: of one measurement.
    """

    name: str
    prompt_tokens: int
    clients: int
    max_tokens: int
    requests: int


SHORT = Case("32 clients, 20-token prompts, 64 tokens", 20, 32, 64, 192)
LONG = Case("32 clients, 250-token prompts, 64 tokens", 250, 32, 64, 128)
FEW = Case("4 clients, 20-token prompts, 64 tokens", 20, 4, 64, 48)
BRIEF = Case("32 clients, 20-token prompts, 16 tokens", 20, 32, 16, 512)
CASES = (SHORT, LONG, FEW, BRIEF)
SHARES = {("nano", False): 1.0, ("nano", True): 0.5, ("smollm2", False): 0.25, ("smollm2", True): 0.17}  # of the requests above
LEAST = {SHORT: 1.2, LONG: 1.5}


@dataclass
class Side:
    """What one URL answers, and which servers must run for it."""

    name: str
    asked: Server
    needed: Sequence[Server]

    def measure(self, case: Case, prompts: Sequence[str], requests: int) -> Measured:
        """Let its servers run, ask, and stop them again."""
        for server in self.needed:
            server.resume()
        try:
            bodies = [self.asked.ask(prompt, max_tokens=case.max_tokens) for prompt in prompts]
            return load(self.asked.url, bodies, clients=min(case.clients, requests), requests=requests)
        finally:
            for server in reversed(self.needed):
                server.pause()


def measure(folder: Path, *, models: Sequence[str], pairs: int, quick: bool) -> int:
    """Compare the servers, one model after the other; 1 where a target is missed."""
    table = Table(
        "serve_engine",
        f"task=serve on this machine's CPU, medians of {pairs} runs taken in turn, idle servers stopped",
        ours="LargeForge",
        peer="peer or target",
    )
    for model in models:
        with ExitStack() as stack:
            compare(table, model, folder / model, stack, pairs=pairs, quick=quick)
    table.notes.append(
        "Prompts, weights, dtype and numbers of tokens are the same on all sides (before vLLM's second door: other prompts of the same lengths);"
        " streams over HTTP; ours is asked through its door."
    )
    table.publish()
    return int(any(row.met is False for row in table.rows))


def compare(table: Table, model: str, folder: Path, stack: ExitStack, *, pairs: int, quick: bool) -> None:
    """Start all sides with one model, measure them in turn, add the rows."""
    dtype = "fp32" if model == "nano" else "bf16"
    weights = model_folder(model)
    prompts = Prompts(weights)
    server = stack.enter_context(ours(folder / "ours", f"model={model}", f"model.dtype={dtype}", model=model))
    sides = [Side("ours", server, [server])]
    server.pause()
    peer, threads = faster_of(stack, folder, weights, dtype, prompts)
    sides.append(Side("transformers", peer, [peer]))
    try:
        bare = stack.enter_context(vllm(folder / "vllm", weights, dtype=dtype))
        through = stack.enter_context(door(folder / "vllm_door", bare, name="LargeForge's door before vLLM"))
        sides += [Side("vllm", bare, [bare]), Side(THROUGH, through, [bare, through])]
        for one in (through, bare):
            one.pause()
    except (RuntimeError, OSError) as fault:  # no environment of it here, or a CPU that it does not run on
        table.notes.append(f"{model}: vLLM is left out: {str(fault).splitlines()[0][:200]}")
    found: dict[Case, dict[str, list[Measured]]] = {case: {side.name: [] for side in sides} for case in CASES}
    share = SHARES.get((model, quick), SHARES[("smollm2", quick)])
    for case in CASES:
        requests = max(case.clients, round(case.requests * share / case.clients) * case.clients)
        for place, side in enumerate(sides):  # warm-up: first batches of each size are slower
            side.measure(case, prompts.of(case, -1 - place, case.clients), case.clients)
        for pair in range(pairs):
            asked = prompts.of(case, pair, requests)
            for side in sides[pair % len(sides) :] + sides[: pair % len(sides)]:
                # the server behind our second door has just read the others' prompts: from its cache it would answer faster
                told = side.measure(case, prompts.of(case, pair + SECOND, requests) if side.name == THROUGH else asked, requests)
                found[case][side.name].append(told)
                print(
                    f"{model}, {case.name}, {side.name} #{pair + 1}: {told.tokens_per_s:.0f} tokens/s, {told.requests_per_s:.1f} requests/s,"
                    f" first token p50 {told.first_ms(0.5):.0f} ms, p95 {told.first_ms(0.95):.0f} ms, failed {told.num_failed}",
                    file=sys.stderr,
                )
    rows(table, model, found)
    failed = {side: sum(one.num_failed for case in CASES for one in found[case][side]) for side in (one.name for one in sides)}
    table.notes.append(
        f"{model}: {dtype} on all sides; transformers serve has {threads} (the faster here of 1 and its own default);"
        f" answers that were not 200 or not whole: {', '.join(f'{side} {number}' for side, number in failed.items())}."
    )
    table.details[model] = {
        "ready_s": {side.name: round(side.asked.ready_s, 1) for side in sides},
        "cases": {case.name: {side: [one.numbers() for one in runs] for side, runs in told.items()} for case, told in found.items()},
    }


def rows(table: Table, model: str, found: dict[Case, dict[str, list[Measured]]]) -> None:
    """What the cases say; only nano has targets, others are told as measured."""
    judged = model == "nano"

    def median(case: Case, side: str, what: str, *words: float) -> float:
        values = [getattr(one, what) for one in found[case][side]]
        return float(statistics.median(value(*words) if words else value for value in values))

    for case in (SHORT, LONG):
        least = LEAST[case] if judged else None
        table.rows.append(
            Row(f"{model}, {case.name}", median(case, "ours", "tokens_per_s"), median(case, "transformers", "tokens_per_s"), "tokens/s", at_least=least)
        )
        for share in (0.5, 0.95):
            most = 1.0 if judged and share == 0.95 else None
            own, peers = median(case, "ours", "first_ms", share), median(case, "transformers", "first_ms", share)
            table.rows.append(Row(f"  first token p{100 * share:.0f}", own, peers, "ms", at_most=most))
        for side, goal in (("vllm", 0.5), (THROUGH, None)):
            if side in found[case]:
                least = goal if judged else None
                table.rows.append(Row(f"  beside {side}", median(case, "ours", "tokens_per_s"), median(case, side, "tokens_per_s"), "tokens/s", at_least=least))
        pairs = list(zip(found[case]["ours"], found[case]["transformers"], strict=True))
        equal, asked = sum(alike(one, two) for one, two in pairs), sum(len(one.replies) for one, _ in pairs)
        table.rows.append(Row("  answers that are the same", equal, asked, "answers", at_least=0.98 if judged else None))
        for side in [one for one in found[case] if one not in ("ours", THROUGH)]:
            for what in ("prompt_tokens", "answer_tokens"):
                if counted(found[case]["ours"], what) != counted(found[case][side], what):
                    table.notes.append(f"{model}, {case.name}: {what} differ between ours and {side}: the two did not do the same work.")
        own_ratios = [one.tokens_per_s / two.tokens_per_s for one, two in pairs if two.tokens_per_s]
        if own_ratios:
            table.notes.append(f"{model}, {case.name}: tokens/s of each pair, ours / transformers: {', '.join(f'{one:.2f}' for one in own_ratios)}.")
    table.rows += [
        Row(f"{model}, {FEW.name}: first token p95", median(FEW, "ours", "first_ms", 0.95), 100.0, "ms", at_most=1.0 if judged else None),
        Row("  beside transformers", median(FEW, "ours", "first_ms", 0.95), median(FEW, "transformers", "first_ms", 0.95), "ms"),
        Row(f"{model}, {BRIEF.name}", median(BRIEF, "ours", "requests_per_s"), 100.0, "requests/s", at_least=1.0 if judged else None),
        Row("  beside transformers", median(BRIEF, "ours", "requests_per_s"), median(BRIEF, "transformers", "requests_per_s"), "requests/s"),
    ]
    if "vllm" in found[BRIEF]:
        table.rows.append(Row("  beside vllm", median(BRIEF, "ours", "requests_per_s"), median(BRIEF, "vllm", "requests_per_s"), "requests/s"))
    failed = sum(one.num_failed for told in found.values() for one in told["ours"])
    table.rows.append(Row(f"{model}: requests of ours that were answered", 1.0 - failed / max(1, total(found, "ours")), 1.0, "share", at_least=1.0))


def total(found: dict[Case, dict[str, list[Measured]]], side: str) -> int:
    return sum(len(one.replies) for told in found.values() for one in told[side])


def counted(runs: Sequence[Measured], what: str) -> int:
    return sum(getattr(reply, what) for one in runs for reply in one.replies)


def alike(one: Measured, two: Measured) -> int:
    """How many requests have the same answer on both sides."""
    theirs = {reply.number: reply.text_hash for reply in two.good}
    return sum(theirs.get(reply.number) == reply.text_hash for reply in one.good)


def faster_of(stack: ExitStack, folder: Path, weights: Path, dtype: str, prompts: Prompts) -> tuple[Server, str]:
    """`transformers serve` with one thread or with torch's default, whichever answers faster here; the other is ended."""
    tried: list[tuple[float, ExitStack, Server, str]] = []
    for threads in (1, None):
        own = stack.enter_context(ExitStack())
        server = own.enter_context(transformers_serve(folder / f"transformers_{threads}", weights, dtype=DTYPES[dtype], threads=threads))
        server.pause()
        tried.append((0.0, own, server, "1 thread" if threads else "torch's default of threads"))
    case = Case("trial", 20, 16, 16, 32)
    for place, (_, own, server, name) in enumerate(tried):
        side = Side(name, server, [server])
        side.measure(case, prompts.of(case, -2, 16), 16)  # loads the model
        tried[place] = (max(side.measure(case, prompts.of(case, -3 - trial, 32), 32).tokens_per_s for trial in range(2)), own, server, name)
        print(f"transformers serve with {name}: {tried[place][0]:.0f} tokens/s", file=sys.stderr)
    (_, _, best, name), (_, slower, _, _) = sorted(tried, key=lambda one: -one[0])
    slower.close()
    return best, name


class Prompts:
    """Texts of about so many tokens, each unlike the others from its first word on.

    Args:
        folder: of the model, whose tokenizer counts.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def of(self, case: Case, pair: int, number: int) -> list[str]:
        """Return `number` prompts, the same for each side of a pair."""
        chance = random.Random(f"{case.name} {pair}")
        return [self.one(chance, place, case.prompt_tokens - TEMPLATE_TOKENS) for place in range(number)]

    def one(self, chance: random.Random, place: int, num_tokens: int) -> str:
        text = f"{chance.randrange(10_000)} {place}"
        missing = num_tokens - len(self.tokenizer.encode(text).ids)
        while missing > 0:
            text += " " + " ".join(chance.choices(WORDS, k=max(1, missing // 3)))
            missing = num_tokens - len(self.tokenizer.encode(text).ids)
        return text
