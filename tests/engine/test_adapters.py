"""Adapters that answer side by side: each as it answers alone, no keys and values shared between them, and what does not fit refused by name."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from largeforge.artifact import write_artifact
from largeforge.chat import Answer, ChatRequest, Message
from largeforge.contract import LoadedModel, Reference
from largeforge.engine.answers import every_answer
from largeforge.engine.batching import ContinuousBatching
from largeforge.errors import EngineError, InputError
from tests.engine.conftest import ask, by_generate, engine
from tests.engine.test_hf import REQUESTS
from tests.tiny_models import part

NAMES = ("math", "law", "poems")


def saved(model: LoadedModel, folder: Path, seed: int, **changes: Any) -> str:
    """An adapter that has learnt something, as peft saves it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    shape: dict[str, Any] = {"r": 4 + 4 * seed, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj", "down_proj"][: 2 + seed % 2], **changes}
    adapted: Any = get_peft_model(copy.deepcopy(model.network), LoraConfig(task_type="CAUSAL_LM", **shape))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    adapted.save_pretrained(str(folder))
    return str(folder)


@pytest.fixture
def adapters(nano: LoadedModel, tmp_path: Path) -> dict[str, str]:
    return {name: saved(nano, tmp_path / name, seed) for seed, name in enumerate(NAMES)}


def alone(nano: LoadedModel, path: str | None, requests: list[ChatRequest]) -> list[Answer]:
    """What transformers' generate says with one adapter, one prompt at a time."""
    from peft import PeftModel

    network: Any = copy.deepcopy(nano.network)
    if path is not None:
        network = PeftModel.from_pretrained(network, path)
    return [by_generate(dataclasses.replace(nano, network=network), request) for request in requests]


def serving(nano: LoadedModel, adapters: dict[str, str], **changes: Any) -> Any:
    """An engine over a copy: adapters are put into the network's own layers."""
    return engine(dataclasses.replace(nano, network=copy.deepcopy(nano.network)), adapters=adapters, **changes)


def asked_of(adapter: str, text: str, **drawing: Any) -> ChatRequest:
    return ask(text, adapter=adapter, **drawing)


def mixed(texts: list[str], max_tokens: int) -> list[ChatRequest]:
    return [asked_of(("", *NAMES)[number % 4], text, max_tokens=max_tokens) for number, text in enumerate(texts)]


def expected_of(nano: LoadedModel, adapters: dict[str, str], requests: list[ChatRequest]) -> list[Answer]:
    found: list[Answer | None] = [None] * len(requests)
    for adapter in {request.adapter for request in requests}:
        places = [place for place, request in enumerate(requests) if request.adapter == adapter]
        for place, answer in zip(places, alone(nano, adapters.get(adapter), [requests[place] for place in places]), strict=True):
            found[place] = answer
    return found  # type: ignore[return-value]


def test_three_adapters_and_the_base_in_one_batch(nano: LoadedModel, adapters: dict[str, str]) -> None:
    """Token for token what each says alone; the list is answered so too, and afterwards every layer computes as before."""
    texts = [request.messages[0].content for request in REQUESTS[:16]]
    requests = mixed(texts, 12)
    expected = expected_of(nano, adapters, requests)
    talking = serving(nano, adapters, batch_size=16)
    assert list(every_answer(talking, requests, in_flight=16)) == expected
    assert list(talking.answers(requests)) == expected
    assert len({answer.text for answer in expected_of(nano, adapters, mixed(["river"] * 4, 12))}) > 2  # they do say different things
    assert not any("forward" in vars(module) for module in talking.network.modules())
    base = [request for request in requests if not request.adapter]
    assert list(talking.answers(base)) == expected[::4]  # in padded batches
    *pieces, last = talking.stream(requests[1])
    assert "".join(piece.text for piece in pieces) == expected[1].text and last.usage == expected[1].usage


def test_the_adapter_that_the_model_came_with(nano: LoadedModel, adapters: dict[str, str]) -> None:
    """No name asks for the model as it was loaded."""
    from peft import PeftModel

    own: Any = PeftModel.from_pretrained(copy.deepcopy(nano.network), adapters["math"])
    talking = engine(dataclasses.replace(nano, network=own), batch_size=8, adapters={"law": adapters["law"]})
    requests = [asked_of("" if number % 2 else "law", f"river {number}", max_tokens=10) for number in range(6)]
    expected = expected_of(nano, {"": adapters["math"], "law": adapters["law"]}, requests)
    assert list(every_answer(talking, requests, in_flight=8)) == expected
    assert list(talking.answers(requests[1::2])) == expected[1::2]


def long_ones(max_tokens: int = 8) -> list[ChatRequest]:
    """The same long conversation for everybody: blocks of it are shared by those who may."""
    system = Message("system", "You are a helpful assistant of a house by the sea, and you answer in few words. " * 8)
    return [ChatRequest((system, Message("user", "river")), max_tokens=max_tokens, adapter=adapter) for adapter in ("", *NAMES, "", *NAMES)]


def one_after_another(talking: Any, requests: list[ChatRequest]) -> list[Answer]:
    async def go() -> list[Answer]:
        found = [await talking.answer(request) for request in requests]
        await talking.close()
        return found

    return asyncio.run(go())


def test_keys_and_values_are_not_shared_between_adapters(nano: LoadedModel, adapters: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt, four answerers: each says what it says alone. Without the salt of the hashes they would not; the same one does share."""
    requests = long_ones()
    expected = expected_of(nano, adapters, requests)
    talking = serving(nano, adapters, batch_size=8)
    found: list[int] = []
    apart = ContinuousBatching._keep_apart

    def counted(self: ContinuousBatching, cache: Any) -> None:
        apart(self, cache)
        search = cache.search_prefix_match

        def count(name: str, ids: list[int]) -> int:
            found.append(search(name, ids))
            return found[-1]

        cache.search_prefix_match = count

    monkeypatch.setattr(ContinuousBatching, "_keep_apart", counted)
    assert one_after_another(talking, requests) == expected
    assert [length > 0 for length in found] == [False] * 4 + [True] * 4
    monkeypatch.setattr(ContinuousBatching, "_keep_apart", lambda self, cache: None)
    assert one_after_another(talking, requests) != expected


def test_somebody_else_computes_meanwhile(nano: LoadedModel, adapters: dict[str, str]) -> None:
    """While adapters are mixed on the batch's thread, padded batches on another one compute with the base alone."""
    talking = serving(nano, adapters, batch_size=4)
    request = ask("river", max_tokens=10)
    [expected] = alone(nano, None, [request])

    async def go() -> None:
        await talking.answer(asked_of("law", "x", max_tokens=3))
        assert list(talking.answers([request])) == [expected]
        await talking.close()

    asyncio.run(go())


def test_an_adapter_that_is_not_there(nano: LoadedModel, adapters: dict[str, str]) -> None:
    talking = serving(nano, adapters, batch_size=4)
    with pytest.raises(EngineError, match=r"no adapter 'medicine' here \(there are: math, law, poems\)") as caught:
        next(talking.answers([asked_of("medicine", "x")]))
    assert caught.value.reason == "refused"
    with pytest.raises(EngineError, match=r"there are: none"):
        next(engine(nano).stream(asked_of("math", "x")))


def test_adapters_that_do_not_fit(nano: LoadedModel, adapters: dict[str, str], tmp_path: Path) -> None:
    """A wrong path, another base's shape, a kind that cannot be mixed: told by name before anybody asks."""
    with pytest.raises(InputError, match=r"engine\.adapters\.math=.*/nowhere is no folder"):
        serving(nano, {"math": str(tmp_path / "nowhere")})
    with pytest.raises(InputError, match=r"engine\.adapters\.math=.* holds no adapter_config\.json"):
        serving(nano, {"math": str(tmp_path)})
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "law" / "adapter_model.safetensors")
    save_file({name: weight[:, :-1].contiguous() for name, weight in weights.items()}, tmp_path / "law" / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"The adapter law in .* does not fit .*size mismatch"):
        serving(nano, {"law": adapters["law"]})
    path = tmp_path / "poems" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_modules": ["no_such_layer"]}))
    with pytest.raises(InputError, match=r"The adapter poems in .* does not fit"):
        serving(nano, {"poems": adapters["poems"]})
    with pytest.raises(InputError, match="has DoRA, which cannot stand beside others"):
        serving(nano, {"dora": saved(nano, tmp_path / "dora", 0, use_dora=True)})


def test_an_adapter_of_another_base(nano: LoadedModel, adapters: dict[str, str], tmp_path: Path) -> None:
    """An artifact says which weights it was trained on; the run's folder names it too."""

    def fill(folder: Path) -> str:
        shutil.copytree(adapters["math"], folder, dirs_exist_ok=True)
        return "adapter"

    parent = Reference("model", "another", sha256="a" * 64)
    write_artifact(tmp_path / "run" / "artifact", fill=fill, parents=[parent], config={})
    ours = dataclasses.replace(nano, source=dataclasses.replace(nano.source, sha256="b" * 64))
    with pytest.raises(InputError, match=r"The adapter math was trained on another with sha256 a{12}; this model is .* with b{12}"):
        serving(ours, {"math": str(tmp_path / "run")})
    same = dataclasses.replace(nano, source=dataclasses.replace(nano.source, sha256="a" * 64))
    assert serving(same, {"math": str(tmp_path / "run")}).adapters == ("math",)


@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_beside_quantized_weights(nano_cache: Path, tmp_path: Path, quant: str) -> None:
    """The base in 4 or 8 bits: bitsandbytes' own LoRA layers are mixed alike."""
    from peft import PeftModel

    plain: LoadedModel = part("model", "nano").load(trainable=False, precision="fp32")
    adapters = {name: saved(plain, tmp_path / name, seed, init_lora_weights=True) for seed, name in enumerate(NAMES[:2])}

    def quantized() -> LoadedModel:
        found: LoadedModel = part("model", "nano").load(trainable=False, precision="fp32", quant=part("quant", quant))
        return found

    requests = [asked_of(("", *NAMES[:2])[number % 3], f"river {number}", max_tokens=8) for number in range(6)]
    talking = engine(quantized(), batch_size=8, adapters=adapters)
    found = list(every_answer(talking, requests, in_flight=8))
    assert {type(module).__name__ for module in talking.network.modules() if hasattr(module, "lora_A")} <= {"Linear4bit", "Linear8bitLt"}
    for adapter in ("", *NAMES[:2]):
        model = quantized()
        if adapter:
            network: Any = PeftModel.from_pretrained(model.network, adapters[adapter])
            model = dataclasses.replace(model, network=network)
        alone_engine = engine(model, batch_size=8)
        mine = [place for place, request in enumerate(requests) if request.adapter == adapter]
        assert [found[place] for place in mine] == list(
            every_answer(alone_engine, [dataclasses.replace(requests[place], adapter="") for place in mine], in_flight=8)
        )
