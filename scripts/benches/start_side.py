"""One start of training, as a process: opens a token cache, takes 20 steps, prints seconds and the memory that came with it."""

from __future__ import annotations

import json
import sys
import time
from itertools import islice
from pathlib import Path

import torch  # noqa: F401  (what training has loaded anyway is not counted)
from torch.utils.data import DataLoader  # noqa: F401


def main(path: str) -> None:
    from largeforge.batch import StepWindow
    from largeforge.data.cache import TokenTable
    from largeforge.data.steps import Steps, compare, loader

    assert TokenTable(Path(path))._reader.schema  # pyarrow is loaded
    before = own_bytes()
    begin = time.perf_counter()
    table = TokenTable(Path(path))
    window = StepWindow(batch_size=32, micro_batch_size=8, num_steps=len(table) // 32)
    fills = compare(table.lengths, window, width=512)
    steps = Steps(table, window, 512, fills.packing, 0)
    for _ in islice(loader(steps, range(window.num_steps), num_workers=0), 20):
        pass
    print(json.dumps({"seconds": time.perf_counter() - begin, "bytes": own_bytes() - before}))


def own_bytes() -> int:
    """Memory of this process that is no file's: pages of mapped files can be dropped at any time."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


if __name__ == "__main__":
    main(sys.argv[1])
