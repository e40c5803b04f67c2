"""A real vLLM over a small model, started as engine=vllm says: what clients rely on, asked of its own server, then of the door before it.

Marked vllm: `scripts/test vllm` makes its environment and runs this. nano's random weights repeat themselves, so the model is a nano
whose embedding is spread out, as in tests/engine/conftest.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from largeforge.engine.vllm import made_environment
from largeforge.process import free_port
from tests.serve.servers import Server as Door
from tests.serve.servers import chat, serving
from tests.tiny_models import part

pytestmark = pytest.mark.vllm

KEY = "sk-of-this-test"
SECRET = "the parcel stands in locker fortytwo"
PROMPTS = [
    "Hi",
    "Where is the parcel?",
    "Name three harbours of the north, the largest first.",
    "2 + 2",
    "Écris une phrase, s'il te plaît.",
    "A very long question " * 20,
]
LENGTH = 24


@dataclass
class Models:
    """What is served, as files and as networks of this process.

    Args:
        folder: config.json, fp32 weights, tokenizer.
        adapters: LoRA adapters of it, by name.
        answers: what transformers' own generate says: adapter ("" is none) -> one list of token ids for each prompt.
        texts: the same as text, without the half of a letter at the end, which vLLM keeps back.
        prompts: token ids of the prompts, in the template.
    """

    folder: Path
    template: str
    adapters: dict[str, Path] = field(default_factory=dict)
    answers: dict[str, list[list[int]]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    prompts: list[list[int]] = field(default_factory=list)


@dataclass
class Server:
    """A vLLM that answers."""

    process: subprocess.Popen[bytes]
    http: httpx.Client
    log: Path
    seconds: float

    def ask(self, path: str = "/v1/chat/completions", *, status: int = 200, **body: Any) -> dict[str, Any]:
        answer = self.http.post(path, json={"model": "nano", **body})
        assert answer.status_code == status, answer.text
        return dict(answer.json()) if answer.headers.get("content-type") == "application/json" else {}

    def chat(self, text: str, **body: Any) -> dict[str, Any]:
        return self.ask(messages=[{"role": "user", "content": text}], **{"temperature": 0, "max_tokens": LENGTH, **body})

    def events(self, path: str = "/v1/chat/completions", **body: Any) -> Iterator[dict[str, Any]]:
        """The events of a stream, as they come; it must end in [DONE]."""
        last = ""
        with self.http.stream("POST", path, json={"model": "nano", "stream": True, **body}) as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    last = line.removeprefix("data: ")
                    if last != "[DONE]":
                        yield json.loads(last)
        assert last == "[DONE]"

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.http.get("/metrics").text.splitlines()
        found = [float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} "))]
        assert found, name
        return sum(found)

    def family(self) -> list[int]:
        """Its processes that live: all of its session."""
        found = subprocess.run(["ps", "-s", str(self.process.pid), "-o", "pid=,stat="], capture_output=True, text=True)
        return [int(pid) for pid, stat in (line.split() for line in found.stdout.splitlines()) if not stat.startswith("Z")]


def until(true: Callable[[], bool], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def python() -> str:
    found = made_environment()  # asked before a test's own cache hides it
    assert found is not None, "scripts/environments vllm"
    return str(found)


@pytest.fixture(scope="module")
def models(shared_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A nano that says something, two adapters that say something else, and what each says."""
    import torch
    from peft import LoraConfig, get_peft_model

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LARGEFORGE_CACHE", str(shared_models))
        loaded = part("model", "nano").load(trainable=False, precision="fp32")
    network, tokenizer = loaded.network, loaded.tokenizer
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6)
        network.get_input_embeddings().weight[tokenizer.eos_token_id] *= 2.5
    folder = tmp_path_factory.mktemp("vllm")
    made = Models(folder / "model", loaded.template)
    network.save_pretrained(made.folder)
    tokenizer.save_pretrained(made.folder)
    conversations = [[{"role": "user", "content": text}] for text in PROMPTS]
    made.prompts = [tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=True)["input_ids"] for one in conversations]

    def answers(asked: Any) -> list[list[int]]:
        found = []
        for ids in made.prompts:
            given = torch.tensor([ids])
            with torch.no_grad():
                said = asked.generate(input_ids=given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=LENGTH, pad_token_id=0)
            found.append(said[0, len(ids) :].tolist())
        return found

    made.answers[""] = answers(network)
    for seed, name in enumerate(("first", "second"), start=1):
        torch.manual_seed(seed)
        config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
        adapted: Any = get_peft_model(network, config)
        made.adapters[name] = folder / name
        adapted.save_pretrained(made.adapters[name])
        made.answers[name] = answers(adapted)
        network = adapted.unload()
    made.texts = {name: [tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd") for ids in said] for name, said in made.answers.items()}
    assert len({json.dumps(one) for one in made.answers.values()}) == 3, "adapters must matter"
    return made


@contextmanager
def started(models: Models, python: str, folder: Path, *, seconds: float = 300, **changes: Any) -> Iterator[Server]:
    """Start what engine=vllm says; whatever happens, nothing of it is left."""
    engine = part("engine", "vllm", python=python, kv_cache_gib=0.5, **changes)
    port = free_port()
    launch = engine.command(model_folder=models.folder, template=models.template, port=port, name="nano", key=KEY, folder=folder, dtype="fp32")
    begin = time.monotonic()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(launch.argv, env=launch.env, stdout=log, stderr=log, start_new_session=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {KEY}"}, timeout=120) as http:

            def ready() -> bool:
                assert process.poll() is None, (folder / "log").read_text()[-3000:]
                try:
                    return http.get(launch.ready_path).status_code == 200
                except httpx.TransportError:
                    return False

            until(ready, seconds=seconds)
            yield Server(process, http, folder / "log", time.monotonic() - begin)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def server(models: Models, python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    adapters = {"first": str(models.adapters["first"])}
    with started(models, python, tmp_path_factory.mktemp("server"), adapters=adapters, runtime_adapters=True) as one:
        yield one


# ---- answers ----


def test_greedy_answers_are_those_of_transformers(server: Server, models: Models) -> None:
    """Prompt and answer, token for token, in fp32, all asked at once."""
    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        said = list(threads.map(lambda text: server.chat(text, return_token_ids=True), PROMPTS))
    assert [one["prompt_token_ids"] for one in said] == models.prompts
    assert [one["choices"][0]["token_ids"] for one in said] == models.answers[""]
    assert {len(ids) for ids in models.answers[""]} != {1}, "a model that says nothing proves nothing"


def test_a_stream_says_what_the_whole_answer_says(server: Server) -> None:
    whole = server.chat(PROMPTS[1])
    messages = [{"role": "user", "content": PROMPTS[1]}]
    events = list(server.events(messages=messages, temperature=0, max_tokens=LENGTH, stream_options={"include_usage": True}))
    text = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert len({event["id"] for event in events}) == 1
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    reasons = [choice["finish_reason"] for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert reasons == [whole["choices"][0]["finish_reason"]]


def test_a_prompt_that_is_continued(server: Server, models: Models) -> None:
    answer = server.ask("/v1/completions", prompt=models.prompts[1], temperature=0, max_tokens=LENGTH, return_token_ids=True)
    assert answer["choices"][0]["token_ids"] == models.answers[""][1]
    assert answer["usage"]["prompt_tokens"] == len(models.prompts[1])


def test_several_answers_drawn_by_a_seed(server: Server) -> None:
    drawing: dict[str, Any] = {"n": 2, "temperature": 1.0, "top_p": 0.95, "top_k": 50, "seed": 7}
    first, again = (server.chat(PROMPTS[2], **drawing)["choices"] for _ in range(2))
    assert [one["message"]["content"] for one in first] == [one["message"]["content"] for one in again]
    assert [one["index"] for one in first] == [0, 1] and first[0]["message"] != first[1]["message"]


def test_the_models_own_defaults_change_nothing(server: Server, models: Models) -> None:
    """What a request does not say is the door's to say, never generation_config.json's: see --generation-config in the log."""
    assert "generation_config" not in server.chat("Hi")
    assert "Default vLLM sampling parameters have been overridden" not in server.log.read_text()


def test_logprobs(server: Server) -> None:
    choice = server.chat("Hi", logprobs=True, top_logprobs=3, max_tokens=4)["choices"][0]
    for one in choice["logprobs"]["content"]:
        likeliest = [top["logprob"] for top in one["top_logprobs"]]
        assert len(likeliest) == 3 and likeliest == sorted(likeliest, reverse=True)
        assert one["logprob"] == max(likeliest) <= 0, "greedy takes the likeliest"


def test_an_answer_in_a_schema(server: Server) -> None:
    schema = {"enum": ["a parcel", "a letter"]}
    asked = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}}
    for text in PROMPTS[:3]:
        answer = server.chat(text, response_format=asked)["choices"][0]
        assert json.loads(answer["message"]["content"]) in schema["enum"]
        assert answer["finish_reason"] == "stop"


def test_a_prompt_begun_alike_is_computed_once(server: Server) -> None:
    text = "A beginning that is shared by both " * 20
    server.chat(f"{text} one", max_tokens=1)
    hits = server.metric("vllm:prefix_cache_hits_total")
    server.chat(f"{text} two", max_tokens=1)
    assert server.metric("vllm:prefix_cache_hits_total") >= hits + 100


# ---- adapters ----


def test_an_adapter_from_the_start_beside_its_base(server: Server, models: Models) -> None:
    """Base and adapter in one batch: each says what transformers says."""
    asked = [(text, name) for text in PROMPTS for name in ("nano", "first")]
    with ThreadPoolExecutor(len(asked)) as threads:
        said = list(threads.map(lambda one: server.chat(one[0], model=one[1], return_token_ids=True), asked))
    found = [one["choices"][0]["token_ids"] for one in said]
    assert found[0::2] == models.answers[""]
    assert found[1::2] == models.answers["first"]


def test_an_adapter_that_comes_and_goes(server: Server, models: Models) -> None:
    server.ask(model="second", messages=[{"role": "user", "content": "Hi"}], status=404)
    server.ask("/v1/load_lora_adapter", lora_name="second", lora_path=str(models.adapters["second"]))
    assert {"nano", "first", "second"} <= {one["id"] for one in server.http.get("/v1/models").json()["data"]}
    assert [server.chat(text, model="second", return_token_ids=True)["choices"][0]["token_ids"] for text in PROMPTS] == models.answers["second"]
    server.ask("/v1/unload_lora_adapter", lora_name="second")
    server.ask(model="second", messages=[{"role": "user", "content": "Hi"}], status=404)


# ---- leaving, keys, ends ----


@pytest.mark.parametrize("when", ["in the stream", "before the first token", "of a whole answer"])
def test_who_leaves_is_answered_no_further(server: Server, when: str) -> None:
    """Its decoded tokens stand still soon after, and its blocks come back."""
    body = {"model": "nano", "prompt": SECRET, "max_tokens": 1800, "n": 8, "temperature": 1, "ignore_eos": True, "stream": when != "of a whole answer"}
    until(lambda: server.metric("vllm:num_requests_running") == 0)
    before = server.metric("vllm:generation_tokens_total")
    if when == "of a whole answer":
        with pytest.raises(httpx.ReadTimeout):
            server.http.post("/v1/completions", json=body, timeout=0.5)
    else:
        with server.http.stream("POST", "/v1/completions", json=body) as answer:
            if when == "in the stream":
                lines = answer.iter_lines()
                for _ in range(20):
                    next(lines)
    until(lambda: server.metric("vllm:num_requests_running") == 0)
    stopped = server.metric("vllm:generation_tokens_total")
    assert stopped - before < 8 * 1800
    assert stopped > before or when == "before the first token"
    time.sleep(1)
    assert server.metric("vllm:generation_tokens_total") == stopped
    assert server.metric("vllm:kv_cache_usage_perc") == 0


def test_no_route_without_the_key(server: Server) -> None:
    """vLLM itself asks below /v1 alone."""
    paths = list(server.http.get("/openapi.json").json()["paths"])
    assert {"/invocations", "/tokenize", "/v1/completions"} <= set(paths)
    with httpx.Client(base_url=server.http.base_url, timeout=60) as stranger:
        for path in [*paths, "/metrics", "/docs"]:
            for headers in ({}, {"Authorization": "Bearer guessed"}):
                found = {stranger.request(method, path, headers=headers).status_code for method in ("GET", "POST")}
                assert path in ("/health", "/ping") or found == {401}, path


def test_neither_keys_nor_prompts_are_told(server: Server) -> None:
    """In no command line, and not in what it prints."""
    server.ask("/v1/completions", prompt=SECRET, max_tokens=1)
    server.ask("/v1/completions", prompt=SECRET, max_tokens=-1, status=400)
    assert not [pid for pid in server.family() if KEY in Path(f"/proc/{pid}/cmdline").read_text()]
    said = server.log.read_text()
    assert KEY not in said and SECRET not in said and "POST" not in said.partition("Application startup complete")[2]


def test_killed_it_leaves_no_process(server: Server) -> None:
    """The last question to this server: its engine and its worker go when it does, while they answer."""
    assert len(server.family()) >= 3
    with server.http.stream("POST", "/v1/completions", json={"model": "nano", "prompt": "x", "max_tokens": 1800, "ignore_eos": True, "stream": True}):
        server.process.kill()
        server.process.wait()
        until(lambda: not server.family(), seconds=30)


def test_it_ends_when_its_engine_is_killed_and_when_it_is_asked_to(models: Models, python: str, tmp_path: Path) -> None:
    """So that whoever supervises it sees an ended process, not one that answers nothing."""
    with started(models, python, tmp_path, max_num_seqs=4) as one:
        (engine,) = [pid for pid in one.family() if "EngineCore" in Path(f"/proc/{pid}/cmdline").read_text()]
        os.kill(engine, signal.SIGKILL)
        until(lambda: one.process.poll() is not None, seconds=60)
        until(lambda: not one.family(), seconds=30)
    with started(models, python, tmp_path, max_num_seqs=4) as one:
        one.process.terminate()
        until(lambda: one.process.poll() is not None, seconds=60)
        until(lambda: not one.family(), seconds=30)


# ---- the same through the door ----


@pytest.fixture(scope="module")
def door(models: Models, python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    words = [f"model={models.folder}", "model.dtype=fp32", "engine=vllm", f"engine.python={python}", "engine.kv_cache_gib=0.5", "serve.name=nano"]
    words += [f"engine.adapters.first={models.adapters['first']}", "engine.runtime_adapters=true", "serve.grpc_port=0"]
    with serving(tmp_path_factory.mktemp("door"), *words) as one:
        yield one


def behind(door: Door) -> tuple[psutil.Process, httpx.Client]:
    """vLLM's own server, asked past the door: with the key that only its environment tells."""
    (api,) = [one for one in door.family() if "vllm.entrypoints.openai.api_server" in one.cmdline()]
    words = api.cmdline()
    port, key = words[words.index("--port") + 1], api.environ()["VLLM_API_KEY"]
    return api, httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}, timeout=60)


def asked_through(door: Door, text: str, **body: Any) -> dict[str, Any]:
    status, said = door.ask("/v1/chat/completions", chat(text, **{"temperature": 0, "max_tokens": LENGTH, **body}))
    assert status == 200, said
    return dict(said)


def test_through_the_door_it_says_the_same(door: Door, models: Models) -> None:
    """Proves SR-F-024, SYS-F-053: Base and adapter, several at once; and usage is vLLM's."""
    asked = [(text, name) for text in PROMPTS for name in ("nano", "first")]
    with ThreadPoolExecutor(len(asked)) as threads:
        said = list(threads.map(lambda one: asked_through(door, one[0], model=one[1]), asked))
    texts = [one["choices"][0]["message"]["content"] for one in said]
    assert texts[0::2] == models.texts[""]
    assert texts[1::2] == models.texts["first"]
    assert [one["usage"]["prompt_tokens"] for one in said[0::2]] == [len(ids) for ids in models.prompts]
    assert {"nano", "first"} == {one["id"] for one in door.get("/v1/models")["data"]}


def test_through_the_door_streams_schemas_and_several_answers(door: Door, models: Models) -> None:
    with httpx.Client(base_url=door.url, timeout=60) as http:
        body = chat(PROMPTS[1], temperature=0, max_tokens=LENGTH, stream=True)
        lines = [line.removeprefix("data: ") for line in http.post("/v1/chat/completions", json=body).text.splitlines() if line]
    events = [json.loads(line) for line in lines[:-1]]
    assert lines[-1] == "[DONE]" and not [event for event in events if event.get("usage")], "nobody asked for usage"
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events) == models.texts[""][1]
    shape = {"type": "json_schema", "json_schema": {"name": "thing", "schema": {"enum": ["a parcel", "a letter"]}}}
    choices = asked_through(door, "Hi", response_format=shape, n=2, temperature=1, seed=3)["choices"]
    assert [json.loads(one["message"]["content"]) in ("a parcel", "a letter") for one in choices] == [True, True]
    assert len(asked_through(door, "Hi", logprobs=True, top_logprobs=2, max_tokens=3)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_the_door_is_answered_no_further(door: Door, stream: bool) -> None:
    """Counted at the engine: its decoded tokens stand still."""
    _, http = behind(door)
    with http:
        seen = Server(door.process, http, door.printed, 0)
        before = seen.metric("vllm:generation_tokens_total")
        body = chat(SECRET, max_tokens=1800, n=8, temperature=1, ignore_eos=True, stream=stream)
        with suppress(httpx.ReadTimeout), httpx.stream("POST", f"{door.url}/v1/chat/completions", json=body, timeout=1) as answer:
            lines = answer.iter_lines()
            for _ in range(20):
                next(lines)
        until(lambda: seen.metric("vllm:num_requests_running") == 0)
        stopped = seen.metric("vllm:generation_tokens_total")
        assert before < stopped < before + 8 * 1800
        time.sleep(1)
        assert seen.metric("vllm:generation_tokens_total") == stopped


def load_second(door: Door, models: Models) -> tuple[int, Any]:
    return door.ask("/v1/load_lora_adapter", {"lora_name": "second", "lora_path": str(models.adapters["second"])})


def test_an_adapter_comes_through_the_door_and_goes(door: Door, models: Models) -> None:
    """It says what transformers says with it, beside the base; and is not known before and after."""
    assert door.ask("/v1/chat/completions", chat("Hi", model="second"))[0] == 404
    assert load_second(door, models)[0] == 200
    asked = [(text, name) for text in PROMPTS for name in ("nano", "second")]
    with ThreadPoolExecutor(len(asked)) as threads:
        texts = list(threads.map(lambda one: asked_through(door, one[0], model=one[1])["choices"][0]["message"]["content"], asked))
    assert (texts[0::2], texts[1::2]) == (models.texts[""], models.texts["second"])
    assert load_second(door, models)[0] == 400, "twice"
    assert door.ask("/v1/unload_lora_adapter", {"lora_name": "second"})[0] == 200
    assert door.ask("/v1/chat/completions", chat("Hi", model="second"))[0] == 404


def test_an_engine_that_was_killed_comes_back_and_a_killed_door_leaves_nothing(door: Door, models: Models) -> None:
    """The last question to this door. An adapter that came while it ran is there again."""
    assert load_second(door, models)[0] == 200
    api, http = behind(door)
    http.close()
    (engine,) = [one for one in api.children() if "EngineCore" in " ".join(one.cmdline())]
    engine.kill()
    until(lambda: door.ask("/ready", None)[0] == 503)
    door.until_ready(300)
    assert asked_through(door, PROMPTS[1])["choices"][0]["message"]["content"] == models.texts[""][1]
    assert asked_through(door, PROMPTS[1], model="second")["choices"][0]["message"]["content"] == models.texts["second"][1]
    family = door.family()
    assert len(family) >= 4
    door.process.kill()
    door.process.wait()
    until(lambda: not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE])
