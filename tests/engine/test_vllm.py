"""engine=vllm: what vLLM's server would be started with, and what is refused before it starts. The real one: tests/serve/test_vllm_door.py."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from largeforge.contract import Launch
from largeforge.engine import vllm
from largeforge.errors import InputError, ServeError
from tests.engine.conftest import ask
from tests.tiny_models import part

KEY = "sk-not-for-everyone"


@pytest.fixture(autouse=True)
def desk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No environment, no GPU, whatever this machine has."""
    monkeypatch.delenv("LARGEFORGE_ENVIRONMENTS", raising=False)
    monkeypatch.setattr(vllm, "has_nvidia_gpu", lambda: False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def adapter(folder: Path, **fields: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, **fields}))
    return folder


def launch(model_folder: Path, *, key: str = KEY, changes: dict[str, Any] | None = None, **more: Any) -> Launch:
    engine = part("engine", "vllm", **{"python": sys.executable, **(changes or {})})
    given = {"template": "{{ messages }}", "port": 8123, "name": "nano", "folder": model_folder.parent / "run", **more}
    found: Launch = engine.command(model_folder=model_folder, key=key, **given)
    return found


def after(argv: list[str], flag: str) -> str:
    assert argv.count(flag) == 1, argv
    return argv[argv.index(flag) + 1]


def test_what_it_is_started_with(model: Path) -> None:
    argv = (found := launch(model, dtype="fp32")).argv
    assert argv[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    told = {"--host": "127.0.0.1", "--port": "8123", "--model": str(model), "--served-model-name": "nano", "--dtype": "float32"}
    told |= {"--generation-config": "vllm", "--max-num-seqs": "256", "--tensor-parallel-size": "1", "--kv-cache-memory-bytes": str(4 << 30)}
    assert {flag: after(argv, flag) for flag in told} == told
    assert {"--enable-prefix-caching", "--enforce-eager"} <= set(argv)
    assert not {"--enable-lora", "--max-model-len", "--gpu-memory-utilization", "--tokenizer"} & set(argv)
    assert Path(after(argv, "--chat-template")).read_text() == "{{ messages }}"
    assert (found.ready_path, found.start_timeout_s) == ("/health", 900.0)


def test_every_key_reaches_it(model: Path) -> None:
    changes: dict[str, Any] = {"tensor_parallel_size": 2, "max_model_len": 512, "kv_cache_gib": 0.5, "prefix_caching": False, "enforce_eager": False}
    changes |= {"max_num_seqs": 7, "max_loras": 3, "max_lora_rank": 16, "runtime_adapters": True, "arguments": ["--seed", "3"], "start_timeout_s": 5.0}
    argv = (found := launch(model, changes=changes)).argv
    told = {"--tensor-parallel-size": "2", "--max-model-len": "512", "--kv-cache-memory-bytes": str(1 << 29), "--max-num-seqs": "7"}
    told |= {"--max-loras": "3", "--max-lora-rank": "16"}
    assert {flag: after(argv, flag) for flag in told} == told
    assert {"--no-enable-prefix-caching", "--enable-lora"} <= set(argv) and "--enforce-eager" not in argv
    assert argv[-2:] == ["--seed", "3"]
    assert found.env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True" and found.start_timeout_s == 5.0
    assert launch(model).env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "False"


def test_on_a_gpu_memory_is_a_share_and_graphs_are_captured(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "has_nvidia_gpu", lambda: True)
    argv = launch(model, changes={"gpu_memory_utilization": 0.8}).argv
    assert after(argv, "--gpu-memory-utilization") == "0.8"
    assert not {"--kv-cache-memory-bytes", "--enforce-eager"} & set(argv)
    assert "--enforce-eager" in launch(model, changes={"enforce_eager": True}).argv


def test_secrets_stand_in_the_environment_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody on a machine reads argv; LargeForge's own secrets are none of vLLM's business."""
    monkeypatch.setenv("LARGEFORGE_ENGINE__API_KEY", "another secret")
    monkeypatch.setenv("VLLM_API_KEY", "of another server")
    found = launch(model)
    assert found.env["VLLM_API_KEY"] == KEY
    assert KEY not in " ".join(found.argv) and KEY not in repr(found)
    assert not [name for name in found.env if name.startswith("LARGEFORGE_")]
    assert not [path for path in (model.parent / "run").rglob("*") if path.is_file() and KEY in path.read_text()]
    assert after(found.argv, "--middleware") == "beside_vllm.KeyEverywhere"
    unlocked = launch(model, key="")
    assert "VLLM_API_KEY" not in unlocked.env and "--middleware" not in unlocked.argv


def test_nothing_of_this_environment_is_handed_down(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("VIRTUAL_ENV", "/ours")
    monkeypatch.setenv("VLLM_PLUGINS", "theirs")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    found = launch(model).env
    assert "VIRTUAL_ENV" not in found and "/ours" not in found["PYTHONPATH"]
    assert (found["VLLM_LOGGING_LEVEL"], found["VLLM_PLUGINS"]) == ("DEBUG", "theirs,beside_vllm")
    assert (found["HF_HUB_OFFLINE"], found["VLLM_HOST_IP"], found["VLLM_NO_USAGE_STATS"]) == ("1", "127.0.0.1", "1")


def test_its_processes_find_the_plugin(model: Path) -> None:
    """As vLLM looks for plugins: by the metadata of what stands on the path."""
    place = launch(model).env["PYTHONPATH"]
    (entry,) = [one for dist in importlib.metadata.distributions(path=[place]) for one in dist.entry_points]
    assert (entry.group, entry.value) == ("vllm.general_plugins", "beside_vllm:begin")
    words = "import beside_vllm, sys; assert callable(beside_vllm.begin); assert not [m for m in sys.modules if m.startswith(('largeforge', 'torch'))]"
    subprocess.run([sys.executable, "-c", words], env={"PYTHONPATH": place}, check=True, cwd=place)


# ---- adapters ----


def test_adapters_by_name(model: Path, tmp_path: Path) -> None:
    first, second = adapter(tmp_path / "first"), adapter(tmp_path / "second = 2", r=64)
    argv = launch(model, changes={"adapters": {"one": str(first), "two": str(second)}}).argv
    found = argv[argv.index("--lora-modules") + 1 :]
    assert [json.loads(word) for word in found] == [{"name": "one", "path": str(first)}, {"name": "two", "path": str(second)}]
    assert "--enable-lora" in argv and after(argv, "--max-lora-rank") == "64"


def test_an_adapter_as_the_model(model: Path, tmp_path: Path) -> None:
    """It answers by the model's name, on its base, in its own vocabulary."""
    trained = adapter(tmp_path / "trained", base_model_name_or_path=str(model))
    (trained / "tokenizer.json").write_text("{}")
    argv = launch(trained).argv
    assert (after(argv, "--model"), after(argv, "--served-model-name"), after(argv, "--tokenizer")) == (str(model), "nano.base", str(trained))
    assert json.loads(after(argv, "--lora-modules")) == {"name": "nano", "path": str(trained)}
    elsewhere = launch(trained, base_folder=tmp_path / "moved").argv
    assert after(elsewhere, "--model") == str(tmp_path / "moved")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"r": 128}, "rank 128; engine.max_lora_rank=64"),
        ({"rank_pattern": {"q_proj": 256}}, "rank 256"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "IA3"),
    ],
)
def test_an_adapter_that_it_cannot_take(model: Path, tmp_path: Path, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        launch(model, changes={"adapters": {"one": str(adapter(tmp_path / "one", **fields))}})


def test_an_adapter_that_is_not_there(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no adapter_config.json"):
        launch(model, changes={"adapters": {"one": str(tmp_path / "nowhere")}})
    with pytest.raises(InputError, match="an adapter named nano"):
        launch(model, changes={"adapters": {"nano": str(adapter(tmp_path / "one"))}})
    with pytest.raises(InputError, match="stands on org/base"):
        launch(adapter(tmp_path / "two", base_model_name_or_path="org/base"))


# ---- words, environments, and what it is not ----


@pytest.mark.parametrize("word", ["--api-key", "--api_key=x", "--port=1", "--host", "--model", "--lora-modules", "--config"])
def test_words_that_contradict_the_config(word: str) -> None:
    with pytest.raises(ValidationError, match="does not say itself"):
        part("engine", "vllm", arguments=["--seed", "3", word])


def test_where_vllm_is(model: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As told; else the environment that was made last and finished; else this Python, where it has vLLM."""
    with pytest.raises(ServeError, match="none in .*environments") as nowhere:
        launch(model, changes={"python": None})
    assert "scripts/environments vllm" in nowhere.value.next_step and "engine.python" in nowhere.value.next_step
    with pytest.raises(ServeError, match="no program"):
        launch(model, changes={"python": str(tmp_path / "nothing")})

    (tmp_path / "path" / "vllm").mkdir(parents=True)
    (tmp_path / "path" / "vllm" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path / "path")
    assert launch(model, changes={"python": None}).argv[0] == sys.executable

    made = cache / "environments" / "vllm-0123"
    made.mkdir(parents=True)
    assert launch(model, changes={"python": None}).argv[0] == sys.executable, "unfinished"
    (made / "complete").write_text("")
    assert launch(model, changes={"python": None}).argv[0] == str(made / "bin" / "python")
    monkeypatch.setenv("LARGEFORGE_ENVIRONMENTS", str(tmp_path / "kept"))
    assert launch(model, changes={"python": None}).argv[0] == sys.executable


def test_it_answers_nothing_in_this_process() -> None:
    engine = part("engine", "vllm")
    for asked in (engine.answers, engine.stream, engine.generate):
        with pytest.raises(InputError, match="a server") as refused:
            asked(ask("hi"))
        assert "task=serve engine=vllm" in refused.value.next_step and "engine=remote" in refused.value.next_step
    asyncio.run(engine.close())
    assert engine.load().active == 0


@pytest.mark.parametrize(
    ("path", "header", "status"), [("/health", "", 200), ("/invocations", "", 401), ("/v1/models", "Bearer no", 401), ("/x", f"Bearer {KEY}", 200)]
)
def test_the_key_is_asked_everywhere(path: str, header: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from largeforge.engine.beside_vllm import KeyEverywhere

    monkeypatch.setenv("VLLM_API_KEY", KEY)
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"status": 200})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": [(b"authorization", header.encode())] if header else []}
    asyncio.run(KeyEverywhere(app)(scope, None, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == status
