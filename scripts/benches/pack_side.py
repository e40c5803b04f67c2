"""One side of the bench pack, as a process: ours, TRL's, or what each only imports."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
LENGTH = 512
BATCH = 32


def tokenizer() -> Any:
    from largeforge.build import build
    from largeforge.config.compose import compose

    composed = compose(["task=chat", "model=smollm2"])
    return build(composed.config.model).load(trainable=False).tokenizer  # type: ignore[attr-defined]


def ours(path: str) -> int:
    from largeforge.batch import StepWindow
    from largeforge.build import build
    from largeforge.config.compose import compose

    model_tokenizer = tokenizer()
    with tempfile.TemporaryDirectory() as place:
        os.environ["LARGEFORGE_CACHE"] = place
        composed = compose(["task=sft", "data=chat", f"data.path={path}", f"data.max_length={LENGTH}", "data.packing=true", "data.on_bad_row=skip"])
        data = build(composed.config.data, tokenizer=model_tokenizer, template=model_tokenizer.chat_template, train_on="answer")  # type: ignore[attr-defined]
        data.prepare()
        steps = data.num_rows // BATCH
        window = StepWindow(batch_size=BATCH, micro_batch_size=4, num_steps=steps)
        return sum(batch.num_tokens for step in data.train_steps(window) for batch in step)


def trl(path: str) -> int:
    import datasets
    from trl.data_utils import pack_dataset

    model_tokenizer = tokenizer()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as place:
        rows = datasets.load_dataset("json", data_files=path, split="train", cache_dir=place)

        def tokenize(row: dict[str, Any]) -> dict[str, Any]:
            """As SFTTrainer does with prompt and completion: the prompt alone, then both, and the mask between."""
            prompt = [{"role": "user", "content": row["question"]}]
            whole = [*prompt, {"role": "assistant", "content": row["answer"]}]
            prompt_ids = model_tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)
            ids = model_tokenizer.apply_chat_template(whole, tokenize=True, return_dict=False)
            return {"input_ids": ids, "completion_mask": [0] * len(prompt_ids) + [1] * (len(ids) - len(prompt_ids))}

        tokens = rows.map(tokenize, remove_columns=rows.column_names)
        packed = pack_dataset(tokens, seq_length=LENGTH, strategy="bfd")
        return sum(len(row["input_ids"]) for row in packed)


def main(argv: list[str]) -> None:
    side, path = argv
    if side.endswith("imports"):
        tokenizer()
        for name in ("largeforge.data.chat", "largeforge.data.steps", "torch.utils.data") if side == "imports" else ("datasets", "trl.data_utils"):
            importlib.import_module(name)
        return
    print({"ours": ours, "trl": trl}[side](path))


if __name__ == "__main__":
    main(sys.argv[1:])
