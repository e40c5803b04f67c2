"""task=serve in numbers: the engine beside other servers, the door beside other doors, many streams, equal tokens, clients that leave, half an hour of faults.

Every part writes a table of its own. Peers stand in environments of their own (scripts/environments), made on first use.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PARTS = ("engine", "door", "streams", "exact", "leaving", "soak", "gpu")


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """What was asked; `only` holds the parts."""
    parser = argparse.ArgumentParser(prog="scripts/bench serve", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be said several times (default: all but gpu)")
    parser.add_argument("--quick", action="store_true", help="2 pairs, fewer requests, nano alone, and a soak of 1 minute")
    parser.add_argument("--pairs", type=int, help="measurements of each side, taken in turn (default: 5; 2 with --quick)")
    parser.add_argument("--model", action="append", help="of the part engine; may be said several times (default: nano and smollm2)")
    parser.add_argument("--minutes", type=float, help="of the soak (default: 30)")
    parser.add_argument("--gpu", action="store_true", help="a 7B shape with random weights on this machine's GPU, and nothing else")
    options = parser.parse_args(argv)
    options.only = ["gpu"] if options.gpu else options.only or [part for part in PARTS if part != "gpu"]
    options.pairs = options.pairs or (2 if options.quick else 5)
    options.model = options.model or (["nano"] if options.quick else ["nano", "smollm2"])
    options.minutes = options.minutes or (1.0 if options.quick else 30.0)
    return options


def main(argv: Sequence[str]) -> int:
    """Run the parts that were asked for; the largest of their exit codes."""
    options = parsed(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    worst = 0
    for part in options.only:
        with tempfile.TemporaryDirectory() as place:
            try:
                code = run(part, options, Path(place))
            except RuntimeError as fault:  # a server that did not come up: the other parts may
                print(f"{part}: {fault}", file=sys.stderr)
                code = 1
        worst = max(worst, code)
    return worst


def run(part: str, options: argparse.Namespace, folder: Path) -> int:
    """One part; 0 where its targets are met, 1 where one is missed, 2 where this machine lacks what it needs."""
    if part == "engine":
        from scripts.benches.serve_engine import measure as engine

        return engine(folder, models=options.model, pairs=options.pairs, quick=options.quick)
    if part == "door":
        from scripts.benches.serve_door import measure as door

        return door(folder, pairs=options.pairs, quick=options.quick)
    if part == "streams":
        from scripts.benches.serve_streams import measure as streams

        return streams(folder, pairs=options.pairs)
    if part == "exact":
        from scripts.benches.serve_exact import measure as exact

        return exact(folder, num=60 if options.quick else 200)
    if part == "leaving":
        from scripts.benches.serve_leaving import measure as leaving

        return leaving(folder, num=10 if options.quick else 40)
    if part == "soak":
        from scripts.benches.serve_soak import measure as soak

        return soak(folder, minutes=options.minutes)
    from scripts.benches.serve_gpu import measure as gpu

    return gpu(folder, quick=options.quick)
