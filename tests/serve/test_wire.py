"""What answers look like on the wire, where halves of characters are among their tokens."""

from __future__ import annotations

from largeforge.chat import TokenLogprob
from largeforge.serve.wire import Writer

HALF, REST = "\udcf0\udc9f\udc91", "\udc8d"  # of a thumb, as two tokens
TOLD = [
    TokenLogprob("ok ", -0.1, (("ok ", -0.1), ("no ", -2.5))),
    TokenLogprob(HALF, -0.5, ((HALF, -0.5), (REST, -3.0))),
    TokenLogprob(REST, -4.0, (("a", -0.2), (HALF, -1.0))),
    TokenLogprob("!", -1.0, (("!", -1.0), ("?", -1.5))),
]


def test_logprobs_of_chat_have_the_bytes_of_tokens() -> None:
    """Joined they are the text; a token that is no text alone is shown by U+FFFD."""
    content = Writer(chat=True, model="m").logprobs(TOLD, 0)["content"]
    assert bytes(byte for one in content for byte in one["bytes"]).decode() == "ok 👍!"
    assert [one["token"] for one in content] == ["ok ", "\ufffd", "\ufffd", "!"]
    assert [[other["bytes"] for other in one["top_logprobs"]] for one in content][1] == [[0xF0, 0x9F, 0x91], [0x8D]]
    assert [len(one["top_logprobs"]) for one in content] == [2] * 4


def test_logprobs_of_completions() -> None:
    """As OpenAI has them: the chosen token stands among the likeliest even where it was none; halves are told by their bytes; offsets count characters."""
    found = Writer(chat=False, model="m").logprobs(TOLD, 100)
    assert found["tokens"] == ["ok ", "bytes:\\xf0\\x9f\\x91", "bytes:\\x8d", "!"]
    assert [list(one) for one in found["top_logprobs"]] == [
        ["ok ", "no "],
        ["bytes:\\xf0\\x9f\\x91", "bytes:\\x8d"],
        ["a", "bytes:\\xf0\\x9f\\x91", "bytes:\\x8d"],
        ["!", "?"],
    ]
    assert found["top_logprobs"][2]["bytes:\\x8d"] == -4.0 == found["token_logprobs"][2]
    assert found["text_offset"] == [100, 103, 103, 104]


def test_no_likeliest_tokens_were_asked_for() -> None:
    assert Writer(chat=False, model="m").logprobs([TokenLogprob("a", -1.0)], 0)["top_logprobs"] == [{}]
