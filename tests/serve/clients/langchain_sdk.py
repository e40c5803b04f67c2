"""langchain-openai, as it is: `langchain_sdk.py URL KEY MODEL` prints what it got as one JSON object."""

import asyncio
import json
import sys

from langchain_openai import ChatOpenAI, OpenAI

url, key, model = sys.argv[1:]
chat = ChatOpenAI(model=model, base_url=url, api_key=key, temperature=1.5, seed=1, max_tokens=24, max_retries=0)
whole = chat.invoke("Hello")
pieces = list(chat.stream("Hello", stream_usage=True))
total = pieces[0]
for piece in pieces[1:]:
    total += piece


def fault(**fields):
    """The class of the error that a call ends in."""
    try:
        ChatOpenAI(**{"model": model, "base_url": url, "api_key": key, "max_retries": 0, **fields}).invoke("Hello")
    except Exception as error:
        names = [one.__name__ for one in type(error).__mro__]
        return next(name for name in ("NotFoundError", "BadRequestError", "AuthenticationError", "Exception") if name in names)
    return "answered"


print(
    json.dumps(
        {
            "whole": whole.content,
            "usage": [whole.usage_metadata["input_tokens"], whole.usage_metadata["output_tokens"]],
            "finish_reason": whole.response_metadata["finish_reason"],
            "stream": total.content,
            "stream_usage": [total.usage_metadata["input_tokens"], total.usage_metadata["output_tokens"]],
            "async": asyncio.run(chat.ainvoke("Hello")).content,
            "batch": [one.content for one in chat.batch(["Hello"] * 4)],
            "conversation": chat.invoke([("system", "Be kind."), ("human", "Hello"), ("ai", "Hi"), ("human", "Hello")]).content,
            "text": OpenAI(model=model, base_url=url, api_key=key, temperature=0, max_tokens=6, max_retries=0).invoke("Hello"),
            "no model": fault(model="gpt-4"),
            "bad": fault(temperature=9),
            "no key": fault(api_key="sk-wrong"),
        }
    )
)
