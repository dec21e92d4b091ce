"""The page as `tuninglab serve` gives it: its real routes, its guard, a fake engine."""

import io
import threading
from contextlib import contextmanager

import pytest
from PIL import Image

from tests.serving.browsing import Page, needs_browser
from tests.serving.fakes import ScriptedEngine
from tests.serving.guarded import serving
from tuninglab.errors import UserError
from tuninglab.serving.app import make_app
from tuninglab.serving.examples import Example
from tuninglab.serving.exchange import Done, Text
from tuninglab.serving.request_head import GuardSettings

pytestmark = needs_browser
KEY = "a-long-enough-key"


def red_picture():
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (255, 0, 0)).save(file, "PNG")
    return file.getvalue()


EXAMPLES = [Example("Which colour?", "red", red_picture(), "image/png"), Example("Who?", "")]


def said(text):
    """A script: a text, word by word."""
    words = [Text(word) for word in text.split(" ")]
    words[1:] = [Text(f" {word.text}") for word in words[1:]]
    return lambda request: [*words, Done("stop", 5, len(words))]


@contextmanager
def answering(script, settings=None, examples=()):
    """A server of a scripted engine, which is its `engine`, and its address."""
    engine = ScriptedEngine(script)
    with serving(settings, inner=make_app(engine, "base", examples)) as server:
        server.engine = engine
        try:
            yield server
        finally:
            engine.close()


@pytest.fixture
def opened(browser):
    """Opens the page of a server."""
    pages = []

    def open_page(server):
        pages.append(Page(browser, f"{server.url}/"))
        return pages[-1]

    yield open_page
    for page in pages:
        page.check()
    browser.get("about:blank")


def test_an_example_is_answered_by_base_and_tuned(opened):
    with answering(lambda request: said(f"it is {request.model}")(request), None, EXAMPLES) as api:
        page = opened(api)
        page.ready()
        page.until(lambda: len(page.all(".card")) == 2)
        page.click("#beside")
        page.all(".card")[0].click()
        page.until(lambda: page.all("#thumbnails img"))
        page.keys("\n")
        page.until(lambda: page.answers() == ["it is base", "it is tuned"])
        page.idle()
        assert page.texts(".truth") == ["True answer: red"]
        assert all(text.startswith("3 tokens · ") for text in page.texts(".figures"))
        page.ask("And now?")
        first, second, third, fourth = api.engine.asked
        assert {first.model, second.model} == {third.model, fourth.model} == {"base", "tuned"}
        assert [len(r.messages) for r in api.engine.asked] == [1, 1, 3, 3]
        with Image.open(io.BytesIO(first.pictures[0])) as picture:
            assert picture.size == (40, 30)
            assert picture.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def test_the_guard_lets_in_who_has_the_key(opened):
    with answering(said("a cat"), GuardSettings(api_key=KEY), EXAMPLES) as api:
        page = opened(api)
        page.statuses = {401}
        page.until(lambda: page.one("#key").is_displayed())
        page.one("#key-value").send_keys(f"{KEY}\n")
        page.ready()
        page.until(lambda: len(page.all(".card")) == 2)
        seen = "return document.querySelector('.card img').naturalWidth"
        page.until(lambda: page.run(seen) == 40)
        page.ask("First")
        assert page.answers() == ["a cat"]


def test_stop_cancels_in_the_engine(opened):
    with answering(lambda request: [Text("Once"), threading.Event()]) as api:
        page = opened(api)
        page.ready()
        page.type("Tell!\n")
        page.until(lambda: page.answers() == ["Once"])
        page.click("#stop")
        page.idle()
        assert api.engine.answerings[-1].cancelled.wait(10)


def test_a_busy_engine_is_asked_again(opened):
    with answering(said("a cat")) as api:
        page = opened(api)
        page.statuses = {503}
        page.ready()
        api.engine.busy = True
        page.type("First\n")
        page.until(lambda: "Trying again" in page.texts(".answer .note")[0])
        api.engine.busy = False
        page.until(lambda: page.answers() == ["a cat"])
        page.idle()


def test_a_mistake_is_told_in_the_servers_words(opened):
    with answering(lambda request: [UserError("the prompt has 9,000 tokens, 2,048 fit")]) as api:
        page = opened(api)
        page.statuses = {400}
        page.ready()
        page.ask("First")
        assert page.texts(".answer .note") == ["the prompt has 9,000 tokens, 2,048 fit"]
