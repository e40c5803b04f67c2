"""What `model.generate` says to the requests of `serve_exact`, one at a time, in fp32: a process of its own, so that the bench loads no torch.

Writes three LoRA adapters beside it, as peft saves them, which are different enough that no two give the same answers.
"""

from __future__ import annotations

import copy
import json
import random
import sys
from pathlib import Path
from typing import Any

WORDS = ("bird", "tree", "river", "stone", "light", "music", "paper", "garden", "winter", "morning", "story", "window")
NAMES = ("one", "two", "three")


def main() -> None:
    facts = json.loads(sys.argv[1])
    folder, num = Path(facts["folder"]), int(facts["num"])
    import torch

    from largeforge.build import build
    from largeforge.config.compose import compose

    torch.set_num_threads(1)  # matrices this small are slower on two, and far slower where the machine has other work
    config: Any = compose(["task=serve", "model=nano", "model.dtype=fp32"]).config
    model: Any = build(config.model).load(trainable=False)
    networks: dict[str, Any] = {"nano": model.network.eval()}
    for seed, name in enumerate(NAMES):
        networks[name] = adapted(model.network, folder / name, seed)
    tokenizer, eos = model.tokenizer, model.tokenizer.eos_token_id
    chance = random.Random(num)
    written = []
    for number in range(num):
        request = asked(number, chance)
        if "prompt" in request["body"]:
            ids = request["body"]["prompt"]
        else:
            told = tokenizer.apply_chat_template(request["body"]["messages"], add_generation_prompt=True, tokenize=True, return_dict=True)
            ids = told["input_ids"]
        inputs = torch.tensor([ids])
        with torch.no_grad():
            out = networks[request["body"]["model"]].generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                do_sample=False,
                max_new_tokens=request["body"]["max_tokens"],
                pad_token_id=0,
                eos_token_id=-1 if request["body"]["ignore_eos"] else eos,
            )
        said = out[0, inputs.shape[1] :].tolist()
        ended = not request["body"]["ignore_eos"] and said[-1] == eos
        text = tokenizer.decode(said[:-1] if ended else said, skip_special_tokens=True)
        written.append({**request, "text": text, "prompt_tokens": len(ids), "answer_tokens": len(said), "ended": ended})
    (folder / "expected.json").write_text(json.dumps(written), encoding="utf-8")


def adapted(network: Any, folder: Path, seed: int) -> Any:
    """Save an adapter with random weights; return the network that has it."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(seed)
    targets = ["q_proj", "v_proj", "down_proj"][: 2 + seed % 2]
    fresh: Any = get_peft_model(copy.deepcopy(network), LoraConfig(task_type="CAUSAL_LM", r=4 + 4 * seed, lora_alpha=32, target_modules=targets))
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    fresh.save_pretrained(str(folder))
    return PeftModel.from_pretrained(copy.deepcopy(network), str(folder)).eval()


def asked(number: int, chance: random.Random) -> dict[str, Any]:
    """One request: as a conversation or as token ids, long or short, of the base or an adapter, streamed or not, some left halfway."""
    length = chance.choice([1, 3, 17, 31, 32, 33, 60, 100, 200, 400])
    body: dict[str, Any] = {
        "model": ("nano", *NAMES)[number % 4],
        "max_tokens": chance.randrange(1, 48),
        "ignore_eos": chance.random() < 0.5,
        "temperature": 0,
        "stream": number % 3 != 0,
    }
    if number % 2:
        ids = [chance.randrange(5, 4096) for _ in range(length)]
        body["prompt"] = [*range(100, 170), *ids] if number % 5 == 0 else ids  # some begin alike: blocks are shared
    else:
        body["messages"] = [{"role": "user", "content": " ".join(chance.choices(WORDS, k=length))}]
    if body["stream"]:
        body["stream_options"] = {"include_usage": True}
    return {"body": body, "leave_after": chance.randrange(20) if number % 3 == 1 else None}


if __name__ == "__main__":
    main()
