"""The page at ``/`` in a real Chromium. Not among the tests of every day: ``make test-browser``.

Chromium is the system's (Debian's package ``chromium``), or whatever ``$CHROMIUM`` names. What the page looks like is
left in the folder ``$SCREENSHOTS``, if that is set.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from llama_rs import Model, Server
from playwright.sync_api import Browser, Page, expect, sync_playwright
from test_server import becomes, metric

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> **b** &amp; <b>c</b>"
HUGE = 4000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "there is no Chromium: apt install chromium, or set CHROMIUM to its path"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Model:
    return Model(smollm2, threads=1, context_length=8192)  # one that takes its time


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Server]:
    with Server(model, port=0, kv_bytes=512 << 20, ignore_eos=True) as server:
        yield server


@contextmanager
def opened(browser: Browser, server: Server, **options: Any) -> Iterator[Page]:
    """The page. Whatever the browser complains of, and any dialog, is an error."""
    context = browser.new_context(**options)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.goto(server.url)
    expect(page.locator("#title")).to_have_text(server.name)
    yield page
    context.close()
    assert said == []


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    with opened(browser, server) as page:
        yield page


def message(page: Page) -> Any:
    return page.get_by_role("textbox", name="Message")


def settings(page: Page, **values: object) -> None:
    """Opens the settings, if they are not, and fills them in by their labels."""
    details = page.locator("details")
    if details.get_attribute("open") is None:
        page.get_by_text("Settings").click()
    for name, value in values.items():
        page.get_by_label(name.replace("_", " "), exact=True).fill(str(value))


def asked(page: Page, act: Callable[[], object]) -> dict[str, Any]:
    """What the page asks the server when ``act`` is done."""
    with page.expect_request("**/v1/chat/completions") as request:
        act()
    body: dict[str, Any] = json.loads(request.value.post_data or "")
    return body


def is_done(page: Page) -> None:
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=30_000)


def shot(page: Page, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_an_answer_comes_word_by_word_and_stop_ends_it(page: Page, server: Server) -> None:
    settings(page, Most_tokens=HUGE)
    message(page).fill("the sea")
    page.get_by_role("button", name="Send").click()
    text = page.locator(".assistant .text")
    lengths = set[int]()
    while len(lengths) < 5:
        lengths.add(len(text.inner_text()))
    assert page.locator(".assistant").get_attribute("aria-busy") == "true"
    assert metric(server, "requests_running") == 1
    page.get_by_role("button", name="Stop").click()
    is_done(page)
    becomes(lambda: metric(server, "requests_running") == 0)
    assert page.locator(".assistant").get_attribute("aria-busy") == "false"
    assert message(page).evaluate("e => e === document.activeElement")


def test_what_was_said_and_how_it_is_answered_is_asked(page: Page) -> None:
    settings(page, System_prompt="Be brief.", Temperature=0, Top_p=0.9, Top_k=7, Min_p=0.1, Most_tokens=6, Seed=5)
    message(page).fill("one")
    body = asked(page, lambda: page.keyboard.press("Enter"))
    system = {"role": "system", "content": "Be brief."}
    assert body.pop("messages") == [system, {"role": "user", "content": "one"}]
    numbers = {"temperature": 0, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "max_tokens": 6, "seed": 5}
    assert body == {"stream": True, **numbers}
    is_done(page)
    answer = page.locator(".assistant .text").inner_text()
    message(page).fill("two")
    body = asked(page, lambda: page.keyboard.press("Enter"))
    said = [m["content"] for m in body["messages"]]
    assert said == ["Be brief.", "one", said[2], "two"] and said[2].strip() == answer.strip()
    is_done(page)
    # Another answer takes the place of the last one.
    body = asked(page, lambda: page.get_by_role("button", name="Again").click())
    assert [m["content"] for m in body["messages"]] == said
    is_done(page)
    expect(page.locator(".assistant")).to_have_count(2)
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".message")).to_have_count(0)
    message(page).fill("three")
    body = asked(page, lambda: page.keyboard.press("Enter"))
    assert [m["content"] for m in body["messages"]] == ["Be brief.", "three"]
    is_done(page)


def test_a_new_conversation_forgets_an_answer_that_is_being_made(page: Page) -> None:
    settings(page, Most_tokens=HUGE)
    message(page).fill("one")
    page.keyboard.press("Enter")
    expect(page.locator(".assistant .text")).not_to_be_empty()
    page.get_by_role("button", name="New conversation").click()
    is_done(page)
    settings(page, Most_tokens=4)
    message(page).fill("two")
    body = asked(page, lambda: page.keyboard.press("Enter"))
    assert [m["content"] for m in body["messages"]] == ["two"]
    is_done(page)
    expect(page.locator(".message")).to_have_count(2)


def test_what_people_and_models_write_stays_text(browser: Browser, tiny: Path) -> None:
    with (
        Server(Model(tiny, threads=1), port=0, kv_bytes=64 << 20, choices=[EVIL]) as server,
        opened(browser, server) as page,
    ):
        settings(page, System_prompt=EVIL)
        message(page).fill(EVIL)
        page.keyboard.press("Enter")
        is_done(page)
        assert page.locator(".text").all_inner_texts() == [EVIL, EVIL]
        assert page.locator("#log").locator("script, img, b").count() == 0


def test_what_goes_wrong_is_said_in_the_conversation_and_can_be_asked_again(browser: Browser, model: Model) -> None:
    with Server(model, port=0, kv_bytes=64 << 20, api_keys=["secret"]) as server:
        context = browser.new_context()
        page = context.new_page()
        page.goto(server.url)
        message(page).fill("hello")
        page.keyboard.press("Enter")
        expect(page.locator(".error")).to_contain_text("API key")
        settings(page, API_key="secret", Most_tokens=5)
        page.get_by_label("API key").press("Tab")
        expect(page.locator("#title")).to_have_text(server.name)
        page.get_by_role("button", name="Again").click()
        is_done(page)
        expect(page.locator(".error")).to_have_count(0)
        expect(page.locator(".assistant .text")).not_to_be_empty()
        page.reload()
        assert page.get_by_label("API key").input_value() == "secret"  # until the tab is closed
        context.close()


def test_all_of_it_can_be_done_with_the_keyboard(page: Page) -> None:
    def focused() -> str:
        text: str = page.evaluate("document.activeElement.id || document.activeElement.tagName")
        return text

    press = page.keyboard.press
    assert focused() == "input"
    page.keyboard.type("hello")
    press("Shift+Enter")
    page.keyboard.type("sea")
    press("Tab")
    assert focused() == "send"
    press("Tab")  # what cannot be pressed is passed over
    assert focused() == "SUMMARY"
    press("Enter")
    press("Tab")
    assert focused() == "system"
    order = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "key", "clear"]
    for name in order:
        press("Tab")
        assert focused() == name
    page.locator("#max_tokens").focus()
    page.keyboard.type(str(HUGE))
    page.locator("#send").focus()
    body = asked(page, lambda: press("Enter"))
    assert body["messages"] == [{"role": "user", "content": "hello\nsea"}]
    assert focused() == "stop"
    expect(page.locator(".assistant .text")).not_to_be_empty()
    press("Escape")
    is_done(page)
    assert focused() == "input"
    page.locator("#tab-chat").focus()
    press("ArrowRight")
    assert focused() == "tab-machine"
    expect(page.get_by_role("tabpanel", name="Machine")).to_be_visible()
    press("Tab")
    assert focused() == "machine"  # which can be scrolled
    press("Shift+Tab")
    assert focused() == "tab-machine"
    press("ArrowLeft")
    expect(page.get_by_role("tabpanel", name="Chat")).to_be_visible()


def test_the_machine_is_shown_while_it_works(page: Page, model: Model) -> None:
    settings(page, Most_tokens=HUGE)
    message(page).fill("the sea")
    page.keyboard.press("Enter")
    page.get_by_role("tab", name="Machine").click()
    number = page.locator("#numbers div", has_text="Answers running").locator("dd")
    expect(number).to_have_text("1")
    generated = page.locator("#numbers div", has_text="Tokens generated").locator("dd")
    before = generated.inner_text()
    layers = page.locator("#layers meter")
    expect(layers).to_have_count(len(model.residency().layers))
    expect(layers.first).to_have_accessible_name("header")
    expect(page.locator("#resident")).to_contain_text("are in memory")
    expect(page.locator("#steps meter").first).to_have_accessible_name("1 token")
    page.get_by_role("tab", name="Chat").click()
    page.keyboard.press("Escape")
    is_done(page)
    page.get_by_role("tab", name="Machine").click()
    expect(number).to_have_text("0")
    expect(generated).not_to_have_text(before)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(360, 640), (360, 380), (1100, 750)])
def test_it_fits_and_can_be_read(browser: Browser, server: Server, scheme: str, width: int, height: int) -> None:
    """On a small screen, with its keyboard open, and on a large one: nothing is cut off, and axe has nothing to say."""
    viewport = {"width": width, "height": height}
    with opened(browser, server, viewport=viewport, color_scheme=scheme) as page:

        def look(what: str) -> None:
            shot(page, f"{scheme}-{width}x{height}-{what}")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            found = Axe().run(page)
            assert found.violations_count == 0, found.generate_report()

        look("empty")
        settings(page, Most_tokens=120)
        look("settings")
        page.get_by_text("Settings").click()
        message(page).fill("word " * 40 + "x" * 200)
        page.keyboard.press("Enter")
        is_done(page)
        look("answer")
        assert page.locator("#log").evaluate("e => e.scrollTop + e.clientHeight >= e.scrollHeight - 2")
        assert message(page).evaluate("e => e.getBoundingClientRect().bottom") <= height
        page.get_by_role("tab", name="Machine").click()
        expect(page.locator("#layers meter").first).to_be_visible()
        look("machine")
