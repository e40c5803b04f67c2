"""What a person sees: plain lines where there is no terminal, a live bar where there is one."""

from __future__ import annotations

import io

from largeforge import console
from largeforge.console import Console


def test_plain_lines_come_at_intervals() -> None:
    """Proves SYS-U-002: without a terminal long work is told in lines, with count, time left and what stands beside."""
    stream = io.StringIO()
    shown = Console(stream=stream, live=False)
    bar = shown.bar("train", total=4, unit="steps")
    bar.advance(1, loss=1.23456)
    assert stream.getvalue() == ""
    bar.told -= console.PLAIN_INTERVAL_S  # type: ignore[attr-defined]
    bar.advance(1, loss=1.0)
    assert "train: 2/4 steps in" in stream.getvalue() and "left" in stream.getvalue() and "loss 1" in stream.getvalue()
    bar.advance(2)
    bar.close()
    bar.close()
    assert stream.getvalue().count("4/4") == 1


def test_live_bar_is_drawn_and_put_away() -> None:
    stream = io.StringIO()
    shown = Console(stream=stream, live=True)
    bar = shown.bar("tokenizing", total=2)
    shown.say("a line [with] brackets")
    bar.advance(2, tokens_per_s=1234.5)
    bar.close()
    text = stream.getvalue()
    assert "tokenizing" in text and "2/2" in text and "a line [with] brackets" in text and "tokens per s 1,234" in text
    assert shown._display is None


def test_tables_hold_whole_cells() -> None:
    stream = io.StringIO()
    Console(stream=stream, live=False).table("Scores", ("name", "value"), [("exact match", 0.876), ("rows", 12345), ("text", "[not markup]")])
    assert "0.876" in stream.getvalue() and "12,345" in stream.getvalue() and "[not markup]" in stream.getvalue()
