"""litellm, as it is: `litellm_sdk.py URL KEY MODEL` prints what it got as one JSON object."""

import asyncio
import json
import sys

import litellm

url, key, model = sys.argv[1:]
litellm.suppress_debug_info = True
asked = {
    "model": f"openai/{model}",
    "api_base": url,
    "api_key": key,
    "messages": [{"role": "user", "content": "Hello"}],
    "temperature": 1.5,
    "seed": 1,
    "max_tokens": 24,
    "num_retries": 0,
}


def fault(**fields):
    """The class of the error that a call ends in."""
    try:
        litellm.completion(**{**asked, **fields})
    except Exception as error:
        return [type(error).__name__, error.status_code]
    return "answered"


whole = litellm.completion(**asked)
pieces = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
print(
    json.dumps(
        {
            "whole": whole.choices[0].message.content,
            "finish_reason": whole.choices[0].finish_reason,
            "usage": [whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens],
            "stream": "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices),
            "async": asyncio.run(litellm.acompletion(**asked)).choices[0].message.content,
            "text": litellm.text_completion(model=f"text-completion-openai/{model}", api_base=url, api_key=key, prompt="Hello", temperature=0, max_tokens=6)
            .choices[0]
            .text,
            "no model": fault(model="openai/gpt-4"),
            "bad": fault(n=99),
            "no key": fault(api_key="sk-wrong"),
        }
    )
)
