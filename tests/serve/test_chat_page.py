"""The chat page in a real headless Chromium, against a small server of OpenAI's API: what a person does, and what the server sees of it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

import largeforge
from largeforge.asgi import Receive, Scope, Send, respond

from .chromium import MISSING, PROGRAM, Page, chromium
from .fake_completions import SCRIPT, WORDS, FakeCompletions, until
from .running import serving

HTML = Path(largeforge.__file__).parent / "serve" / "chat.html"
ANSWERED = "document.querySelector('.turn.assistant .numbers:not(:empty)') && !document.querySelector('.busy')"
IN_CHROMIUM = pytest.mark.skipif(PROGRAM is None, reason=MISSING)


def run(story: Callable[[Page, FakeCompletions, str], Awaitable[None]], *, app: FakeCompletions | None = None) -> None:
    fake = app or FakeCompletions()

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/":
            return await respond(send, 200, HTML.read_bytes(), content_type=b"text/html; charset=utf-8")
        await fake(scope, receive, send)

    async def main() -> None:
        async with serving(door) as port, chromium() as page:
            await page.look(width=1100, height=720)
            await page.open(f"http://127.0.0.1:{port}/")
            await asyncio.wait_for(story(page, fake, f"http://127.0.0.1:{port}/"), 120)

    uvloop.run(main())


async def choose(page: Page, model: str) -> None:
    await page.until("document.querySelector('#model').options.length")
    await page.run(f"document.querySelector('#model').append(new Option('{model}', '{model}')); document.querySelector('#model').value = '{model}'")


async def text(page: Page, selector: str) -> str:
    return str(await page.run(f"[...document.querySelectorAll({selector!r})].map(one => one.textContent).join('|')"))


def test_the_page_is_one_small_file_whose_policy_lets_nothing_else_in() -> None:
    page = HTML.read_bytes()
    assert len(page) < 25_000
    told = page.decode()
    assert not re.search(r'(src|href)="(?!data:)', told) and "@import" not in told and "innerHTML" not in told
    assert set(re.findall(r"https?://[^'\" ]+", told)) == {"http://www.w3.org/2000/svg"}
    for tag in ("style", "script"):
        (body,) = re.findall(f"<{tag}>(.*?)</{tag}>", told, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in told, f"chat.html was changed: its policy must say {tag}-src 'sha256-{digest}'"


@IN_CHROMIUM
def test_a_conversation() -> None:
    async def story(page: Page, app: FakeCompletions, address: str) -> None:
        await page.until("document.querySelector('#model').value === 'words'")
        await page.click("#more")
        await page.click("#system")
        await page.type("Be short.")
        await page.click("#more")
        await page.click("#input")
        await page.type("One")
        await page.press("Enter", shift=True)
        await page.type("two")
        assert not app.bodies
        await page.press("Enter")
        await page.until(ANSWERED)
        assert await text(page, ".turn.user .text") == "One\ntwo" and await text(page, ".turn.assistant .text") == "".join(WORDS)
        told = await text(page, ".turn.assistant .numbers")
        said = re.fullmatch(r"first token \d+ ms(?: · ([\d.]+) tokens/s)? · 5 tokens", told)
        assert said, told
        assert said[1] is None or float(said[1]) <= 4 / 0.05, "what came at once tells no speed"
        assert app.bodies[0]["messages"] == [{"role": "system", "content": "Be short."}, {"role": "user", "content": "One\ntwo"}]
        assert "temperature" not in app.bodies[0] and "max_tokens" not in app.bodies[0]  # the server's defaults
        await page.type("Again")
        await page.click("#send")
        await until(lambda: len(app.bodies) == 2)
        assert [turn["role"] for turn in app.bodies[1]["messages"]] == ["system", "user", "assistant", "user"]
        await page.until(ANSWERED)
        await page.click("#fresh")
        await page.type("New")
        await page.press("Enter")
        await until(lambda: len(app.bodies) == 3)
        assert [turn["content"] for turn in app.bodies[2]["messages"]] == ["Be short.", "New"]
        assert not [line for line in page.told if '"level": "error"' in line or "exceptionDetails" in line], page.told

    run(story)


@IN_CHROMIUM
def test_stop_ends_the_answer_at_the_server() -> None:
    async def story(page: Page, app: FakeCompletions, address: str) -> None:
        await choose(page, "slow")
        await page.type("Count")
        await page.press("Enter")
        await page.until("document.querySelector('.busy .text')?.textContent.length > 10")
        await page.until("/tokens.s/.test(document.querySelector('.busy .numbers').textContent)")
        await page.click("#stop")
        await until(lambda: app.active == 0, within_s=5)
        assert app.left == 1
        await page.until(ANSWERED)
        assert (await text(page, ".turn.assistant .numbers")).endswith("stopped") and not await text(page, ".trouble")
        await choose(page, "never")  # before the first token: the question goes back into its field
        await page.type("Anything?")
        await page.press("Enter")
        await until(lambda: app.active == 1)
        await page.click("#stop")
        await until(lambda: app.active == 0, within_s=5)
        await page.until("document.querySelector('#input').value === 'Anything?'")

    run(story)


@IN_CHROMIUM
def test_two_pieces_tell_no_speed() -> None:
    """The first may hold any number of tokens, and nobody knows how long they took."""

    async def story(page: Page, app: FakeCompletions, address: str) -> None:
        await choose(page, "halves")
        await page.type("Hello")
        await page.press("Enter")
        await page.until(ANSWERED)
        assert await text(page, ".turn.assistant .text") == "".join(WORDS)
        told = await text(page, ".turn.assistant .numbers")
        assert re.fullmatch(r"first token \d+ ms · 5 tokens", told), told

    run(story)


@IN_CHROMIUM
def test_markup_in_an_answer_stays_text() -> None:
    async def story(page: Page, app: FakeCompletions, address: str) -> None:
        await choose(page, "script")
        await page.type(SCRIPT)
        await page.press("Enter")
        await page.until(ANSWERED)
        assert await text(page, ".turn.assistant .text") == SCRIPT == await text(page, ".turn.user .text")
        assert await page.run("document.querySelectorAll('#log script, #log img').length") == 0
        assert await page.run("typeof window.ran") == "undefined"
        # and were it put in as markup after all, the policy would not let it run
        await page.run("document.querySelector('#log').innerHTML = '<img src=\"x\" onerror=\"window.ran = 3\">'")
        await asyncio.sleep(0.3)
        assert await page.run("typeof window.ran") == "undefined"

    run(story)


@IN_CHROMIUM
def test_errors_are_readable() -> None:
    async def story(page: Page, app: FakeCompletions, address: str) -> None:
        for model, told in (("refuses", "Too many requests. (429) Try again in 7 s."), ("breaks", "The engine died."), ("cut", "ended before it was whole")):
            await choose(page, model)
            await page.click("#fresh")
            await page.type("Hello")
            await page.press("Enter")
            await page.until(f"document.querySelector('.trouble[role=alert]')?.textContent.includes({told!r})")
            await page.until("!document.querySelector('.busy')")
            await page.run("document.querySelector('#input').value = ''")

    run(story)


@IN_CHROMIUM
def test_a_key_is_asked_for_and_kept_for_this_tab_only() -> None:
    async def story(page: Page, app: FakeCompletions, address: str) -> None:
        await page.until("document.querySelector('.trouble')?.textContent.includes('wants an API key')")
        await page.until("document.activeElement.id === 'key'")
        await page.type("secret")
        await page.press("Enter")
        await page.until("document.querySelector('#model').value === 'words' && !document.querySelector('.trouble')")
        await page.click("#input")
        await page.type("Hello")
        await page.press("Enter")
        await page.until(ANSWERED)
        assert app.headers()["authorization"] == "Bearer secret"
        assert await page.run("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
        await page.open(address)
        await page.until("document.querySelector('#model').value === 'words'")
        app.key = "another"
        await page.click("#input")
        await page.type("Hello")
        await page.press("Enter")
        await page.until("document.querySelector('.trouble')?.textContent.includes('does not know this API key')")

    run(story, app=FakeCompletions(key="secret"))


@IN_CHROMIUM
@pytest.mark.parametrize(("width", "dark"), [(1100, False), (390, True)])
def test_it_fits_and_everything_has_a_name(width: int, dark: bool, tmp_path: Path) -> None:
    """Nothing is wider than the window, every control has an accessible name, and light and dark differ."""

    async def story(page: Page, app: FakeCompletions, address: str) -> None:
        await page.look(width=width, height=760, dark=dark)
        await page.until("document.querySelector('#model').value === 'words'")
        await page.type("A_word_without_an_end_" * 30)
        await page.press("Enter")
        await page.until(ANSWERED)
        await page.click("#more")
        assert await page.run("document.documentElement.scrollWidth <= innerWidth && document.querySelector('main').scrollWidth <= innerWidth")
        box = await page.run("(({right, bottom}) => [right <= innerWidth, bottom <= innerHeight])(document.querySelector('#send').getBoundingClientRect())")
        assert box == [True, True]
        nodes = (await page.call("Accessibility.getFullAXTree"))["nodes"]
        controls = [node for node in nodes if node.get("role", {}).get("value") in ("button", "combobox", "textbox", "spinbutton", "log")]
        assert len(controls) >= 8 and all(node["name"]["value"] for node in controls)
        shade = await page.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
        assert (shade < 100) is dark
        await page.picture(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 5000

    run(story)
