"""Makes the model of `serve_gpu`: train_gpu's random weights, with words for every token id. A process of its own, since it takes the GPU's memory.

Prints what it found as JSON: the folder and the card, or null where torch has no GPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def main() -> None:
    import torch

    if not torch.cuda.is_available():
        print("null")
        return
    from scripts.benches.train_gpu import random_weights

    source = random_weights()
    folder = source.with_name(f"{source.name}_words")
    if not (folder / "complete").is_file():
        worded(source, folder)
    card = torch.cuda.get_device_properties(0)
    print(json.dumps({"folder": str(folder), "card": card.name, "total_mib": card.total_memory / 2**20}))


def worded(source: Path, folder: Path) -> None:
    """A folder with the same weights, and a tokenizer that has a word for each id: random weights say any, and a stream of nothing has no first token."""
    from transformers import AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if not path.name.startswith("tokenizer") and path.name != "complete" and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    size = json.loads((source / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    tokenizer.add_tokens([f" w{number}" for number in range(len(tokenizer), size)])
    tokenizer.save_pretrained(folder)
    (folder / "complete").write_text("", encoding="utf-8")


if __name__ == "__main__":
    main()
