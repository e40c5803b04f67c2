"""Typed configs of the group engine; imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from largeforge.config.typed import Bool, NonNegativeFloat, NonNegativeInt, PartConfig, PositiveFloat, PositiveInt, Typed, real_number


class EngineConfig(PartConfig):
    """What every engine has: how answers are drawn where a request does not say."""

    hosting: ClassVar[Literal["litserve", "uvicorn", "own", "elsewhere"]] = "litserve"
    """What serves it: LitServe, a plain uvicorn, a server program of its own, or one that stands elsewhere already."""

    max_tokens: PositiveInt = Field(description="Tokens of an answer at most.")
    temperature: NonNegativeFloat = Field(description="0 is greedy: always the likeliest token.")
    top_p: Annotated[float, BeforeValidator(real_number), Field(gt=0, le=1)] = Field(description="Nucleus that a token is drawn from.")
    top_k: NonNegativeInt = Field(description="Candidates that a token is drawn from; 0 is all.")


class HFConfig(EngineConfig):
    """transformers in this process."""

    batch_size: PositiveInt = Field(description="Requests that are answered together at most; fewer where their keys and values do not fit.")
    max_batch_tokens: PositiveInt = Field(description="Tokens of one forward pass at most: longer prompts are read in pieces, so that others go on answering.")
    kv_cache_bytes: Literal["auto"] | PositiveInt = Field(
        description="Keys and values at most; auto is a quarter of the free memory and 4 GiB at most on a CPU, 85 % of what weights leave on a GPU."
    )
    threads: Literal["auto"] | PositiveInt = Field(
        description="Threads that compute where the engine serves; auto leaves one core to the server. Elsewhere torch's own number stays."
    )
    speculation: Literal["none", "prompt_lookup"] = Field(
        description="prompt_lookup guesses tokens of greedy answers from what was said before, and verifies them, while few requests are answered."
    )
    adapters: dict[str, str] = Field(description="LoRA adapters that answer beside the model, by name: folder of a peft adapter or of a run.")


class BudgetConfig(Typed):
    """What may be spent on answers: once it is, running ones finish and no more are asked."""

    tokens: PositiveInt | None = Field(description="Tokens of prompts and answers together at most; null is no limit.")
    cost: PositiveFloat | None = Field(description="Money at most, in the currency of the prices; null is no limit.")
    prompt_price: NonNegativeFloat = Field(description="Price of a million tokens of prompts.")
    completion_price: NonNegativeFloat = Field(description="Price of a million tokens of answers.")


class EchoConfig(EngineConfig):
    """Says what was asked: for tests and dry runs."""

    hosting = "uvicorn"

    in_flight: PositiveInt = Field(description="Requests that are asked at once at most.")
    budget: BudgetConfig = Field(description="What may be spent.")


class RemoteConfig(EngineConfig):
    """Any server that speaks OpenAI's chat completions."""

    hosting = "elsewhere"

    url: str = Field(min_length=1, description="Where it stands: https://api.example.com/v1, http://localhost:8000.")
    model: str | None = Field(description="The model's name there; null is the first that the server lists.")
    api_key: SecretStr | None = Field(description="The key, better given as LARGEFORGE_ENGINE__API_KEY than typed; null is none.")
    in_flight: PositiveInt = Field(description="Requests that are asked at once at most.")
    requests_per_minute: PositiveInt | None = Field(description="Requests of a minute at most, retries included, evenly spaced; null is no limit.")
    tokens_per_minute: PositiveInt | None = Field(description="Tokens of prompts and answers of a minute at most; null is no limit.")
    retries: NonNegativeInt = Field(
        description="Further tries where nobody answers, where it is busy (429) or at fault (5xx); waits double, Retry-After is honoured."
    )
    timeout_s: PositiveFloat = Field(description="Seconds to wait for an answer; of a stream, for its next piece.")
    budget: BudgetConfig = Field(description="What may be spent.")


OURS = (
    "--model --tokenizer --chat-template --host --port --uds --api-key --served-model-name --tensor-parallel-size -tp --max-model-len "
    "--gpu-memory-utilization --kv-cache-memory-bytes --enable-prefix-caching --no-enable-prefix-caching --enforce-eager --no-enforce-eager "
    "--lora-modules --enable-lora --no-enable-lora --max-loras --max-lora-rank --max-num-seqs --dtype --generation-config --config --ssl-keyfile --ssl-certfile"
).split()


def not_ours(word: str) -> str:
    """Refuse a word that would contradict a key of the config, or what the supervisor says."""
    flag = word.split("=")[0].replace("_", "-")
    if flag in OURS:
        raise ValueError(f"words for vLLM that LargeForge does not say itself ({flag} follows from model, engine and serve)")
    return word


class VLLMConfig(EngineConfig):
    """vLLM's own server, in an environment of its own."""

    hosting = "own"

    python: str | None = Field(
        description="Python of the environment that has vLLM; null is the one that scripts/environments vllm made, else this one where it has vLLM."
    )
    tensor_parallel_size: PositiveInt = Field(description="GPUs that one model is spread over.")
    max_model_len: PositiveInt | None = Field(description="Tokens of prompt and answer at most; null is what the model was made for.")
    gpu_memory_utilization: Annotated[float, BeforeValidator(real_number), Field(gt=0, le=1)] = Field(
        description="Share of a GPU's memory for weights, activations and KV cache."
    )
    kv_cache_gib: PositiveFloat | None = Field(description="GiB of the KV cache; null is what gpu_memory_utilization leaves, and 4 without a GPU.")
    prefix_caching: Bool = Field(description="Whether requests that begin alike share keys and values.")
    enforce_eager: Bool | None = Field(description="Whether nothing is compiled or captured: ready sooner, slower on a GPU; null is true without a GPU.")
    max_num_seqs: PositiveInt = Field(description="Requests that are answered together at most; the others wait.")
    adapters: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")], Annotated[str, Field(min_length=1)]] = Field(
        description="LoRA adapters by name: a folder each; a request chooses one as its model."
    )
    max_loras: PositiveInt = Field(description="Adapters of one batch at most.")
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = Field(description="Largest rank of an adapter.")
    runtime_adapters: Bool = Field(description="Whether adapters come and go while it runs: POST /v1/load_lora_adapter and /v1/unload_lora_adapter.")
    arguments: list[Annotated[str, AfterValidator(not_ours)]] = Field(description="Further words for vLLM's server, as they stand.")
    start_timeout_s: PositiveFloat = Field(description="Seconds until it must be ready.")
