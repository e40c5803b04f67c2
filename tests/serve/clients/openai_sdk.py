"""OpenAI's Python SDK, as it is: `openai_sdk.py URL KEY MODEL` prints what it got as one JSON object."""

import asyncio
import json
import sys

from openai import AsyncOpenAI, AuthenticationError, BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel

url, key, model = sys.argv[1:]
asked = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "temperature": 1.5, "seed": 1, "max_tokens": 24}
client = OpenAI(base_url=url, api_key=key, max_retries=0)


def fault(ask):
    """The class and the code of the error that a call ends in."""
    try:
        ask()
    except (AuthenticationError, BadRequestError, NotFoundError) as error:
        return [type(error).__name__, error.status_code, error.code, error.param, error.request_id is not None]
    return "answered"


whole = client.chat.completions.create(**asked)
pieces = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
raw = client.chat.completions.with_raw_response.create(**asked, extra_body={"top_k": 1})
completion = client.completions.create(model=model, prompt=["Hello", "You"], temperature=0, max_tokens=6, logprobs=1)


class Answer(BaseModel):
    """What the answer is held to."""

    ok: bool


parsed = client.chat.completions.parse(**{**asked, "max_tokens": 200}, response_format=Answer)
with client.chat.completions.stream(**{**asked, "max_tokens": 200}, response_format=Answer) as stream:
    streamed = stream.get_final_completion()


async def together():
    """Several at once, one of them a stream that is left in the middle."""
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as other:
        left = await other.chat.completions.create(**{**asked, "max_tokens": 500}, stream=True)
        async for _ in left:
            break
        await left.close()
        answers = await asyncio.gather(*(other.chat.completions.create(**asked) for _ in range(8)))
        stream = await other.chat.completions.create(**asked, stream=True)
        joined = [piece.choices[0].delta.content or "" async for piece in stream]
        return [one.choices[0].message.content for one in answers] + ["".join(joined)]


print(
    json.dumps(
        {
            "models": [one.id for one in client.models.list()],
            "whole": whole.choices[0].message.content,
            "finish_reason": whole.choices[0].finish_reason,
            "usage": whole.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}),
            "stream": "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices),
            "stream_usage": pieces[-1].usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}),
            "raw": [raw.headers.get("x-request-id") is not None, raw.parse().choices[0].message.content],
            "async": asyncio.run(together()),
            "completion": [one.text for one in completion.choices],
            "logprobs": [len(one.logprobs.token_logprobs) for one in completion.choices],
            "parsed": [one.choices[0].message.parsed.model_dump() for one in (parsed, streamed)],
            "no model": fault(lambda: client.chat.completions.create(**{**asked, "model": "gpt-4"})),
            "bad": fault(lambda: client.chat.completions.create(**{**asked, "temperature": 9})),
            "no key": fault(lambda: OpenAI(base_url=url, api_key="sk-wrong", max_retries=0).models.list()),
        }
    )
)
