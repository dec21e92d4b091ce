"""The page for everybody: by keys alone, by names, on a phone, with a key, in the dark."""

import re
import threading

import pytest
from selenium.webdriver import Keys

from tests.serving.browsing import needs_browser
from tests.serving.page_server import FILES, TUNED, with_examples

pytestmark = needs_browser
# What a reader of the screen offers to use.
CONTROLS = {
    *("button", "checkbox", "combobox", "textbox", "spinbutton", "DisclosureTriangle", "link"),
    *("dialog", "region", "form", "image", "img"),
}


def focused(page):
    return page.run("return document.activeElement.id || document.activeElement.textContent")


def test_a_server_that_has_gone_is_told(page, server):
    page.broken = True
    page.run("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    page.ask("First")
    assert page.texts(".answer .note") == ["The server does not answer. Is it still running?"]


def test_an_answer_is_copied(page, server):
    server.script = lambda body: ["  <b>one</b>\ntwo"]
    page.driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite"], "origin": page.url}
    )
    page.ask("First")
    page.button("Copy").click()
    page.until(lambda: page.texts("#said") == ["Copied."])
    read = "navigator.clipboard.readText().then(arguments[0])"
    assert page.driver.execute_async_script(read) == "  <b>one</b>\ntwo"


def test_everything_is_done_by_keys_alone(page, server):
    gate = threading.Event()
    server.script = lambda body: ["One", gate]
    page.run("document.activeElement.blur()")
    page.driver.find_element("tag name", "body").send_keys("/")
    assert focused(page) == "question"
    page.keys("First/", Keys.SHIFT + Keys.ENTER + Keys.NULL, "line", Keys.ENTER)
    page.until(lambda: page.answers() == ["One"])
    page.keys(Keys.ESCAPE)
    page.idle()
    assert page.texts(".answer .note") == ["Stopped."]
    gate.set()
    page.keys(Keys.ARROW_UP)
    assert page.one("#question").get_property("value") == "First/\nline"
    page.keys(Keys.ENTER)
    page.until(lambda: len(server.asked) == 2)
    page.idle()
    assert len(page.all(".turn")) == 1


def test_every_control_is_reached_by_tab_with_a_focus_that_is_seen(page, server, tmp_path):
    with_examples(server, tmp_path)
    page.open()
    page.until(lambda: len(page.all(".card")) == 2)
    page.ask("First")
    page.click("summary")
    drawn = page.run("""
        return [...document.querySelectorAll("button, select, input, textarea, summary")]
          .filter((e) => e.checkVisibility() && e.type !== "file").length
    """)
    page.run("document.activeElement.blur(); window.reached = new Set()")
    mark = """
        const e = document.activeElement;
        const style = getComputedStyle(e.id === "question" ? e.form : e);
        if (e !== document.body) reached.add(e);
        return e === document.body || (style.outlineStyle !== "none" && style.outlineWidth !== "0");
    """
    for _ in range(drawn + 2):
        page.keys(Keys.TAB)
        assert page.run(mark)
    matching = "e.matches('button, select, input, textarea, summary')"
    assert page.run(f"return [...reached].filter((e) => {matching}).length") == drawn


@pytest.mark.parametrize("dialog", [None, "settings", "key", "camera"])
def test_every_control_has_a_name(page, server, tmp_path, dialog):
    with_examples(server, tmp_path)
    page.open()
    page.until(lambda: len(page.all(".card")) == 2)
    page.attach(*server.pictures)
    page.ask("First")
    page.attach(*server.pictures)
    if dialog:
        page.run("document.getElementById(arguments[0]).showModal()", dialog)
    tree = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    nodes = [node for node in tree if not node["ignored"] and node["role"]["value"] in CONTROLS]
    assert len(nodes) > (1 if dialog == "camera" else 2)
    nameless = [node for node in nodes if not node.get("name", {}).get("value", "").strip()]
    assert [node["role"]["value"] for node in nameless] == []
    # A placeholder is a name only until something is written.
    unlabelled = """
        return [...document.querySelectorAll("input, select, textarea")]
          .filter((e) => e.labels.length === 0 && !e.ariaLabel).map((e) => e.id)
    """
    assert page.run(unlabelled) == []


def test_pictures_say_what_they_are_and_answers_are_told_once_they_are_whole(
    page, server, tmp_path
):
    with_examples(server, tmp_path)
    gate = threading.Event()
    server.script = lambda body: ["One", gate, " two"]
    page.attach(*server.pictures)
    page.type("First" + Keys.ENTER)
    page.until(lambda: page.answers() == ["One"])
    assert page.one(".pictures img").get_attribute("alt") == "Picture 1 of question 1: example.png"
    assert page.one(".answer").get_attribute("aria-busy") == "true"
    assert page.texts("#said") == ["Picture 1 added."]
    gate.set()
    page.idle()
    assert page.one(".answer").get_attribute("aria-busy") == "false"
    assert page.texts("#said") == [f"{TUNED}: One two "]
    assert page.one("#said").get_attribute("aria-live") == "polite"


@pytest.fixture
def phone(page):
    """The page, 375 px wide."""
    size = {"width": 375, "height": 667, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    yield page
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_is_wider_than_a_phone(phone, server, tmp_path):
    with_examples(server, tmp_path)
    server.script = lambda body: ["long" * 200]
    phone.open()
    phone.until(lambda: len(phone.all(".card")) == 2)
    phone.attach(*server.pictures)
    phone.click("#beside")
    phone.ask("wide" * 100)
    assert phone.run("return innerWidth") == 375
    assert phone.run("return document.documentElement.scrollWidth") <= 375
    over = """
        return [...document.querySelectorAll("button, select, textarea, .answer")]
          .filter((e) => e.checkVisibility() && !e.closest("#cards"))
          .filter((e) => e.getBoundingClientRect().right > 375).length
    """
    assert phone.run(over) == 0
    # One answer under the other.
    first, second = (answer.rect for answer in phone.all(".answer"))
    assert second["y"] >= first["y"] + first["height"]


def test_on_a_wide_screen_answers_stand_side_by_side(page, server):
    page.click("#beside")
    page.ask("First")
    first, second = (answer.rect for answer in page.all(".answer"))
    assert first["y"] == second["y"]
    assert second["x"] >= first["x"] + first["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_stand_out_in_light_and_dark(page, server, scheme):
    emulated = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)
    try:
        page.ask("First")
        for selector in ("body", ".answer .text", ".figures", "#send", ".quiet", "h3"):
            assert contrast(*page.run(COLOURS, selector)) >= 4.5, selector
        ground = page.run(COLOURS, "body")[1]
        assert (luminance(ground) < 0.2) == (scheme == "dark")
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


COLOURS = """
    let e = document.querySelector(arguments[0]);
    const ink = getComputedStyle(e).color;
    const clear = (e) => getComputedStyle(e).backgroundColor === "rgba(0, 0, 0, 0)";
    while (clear(e)) e = e.parentElement;
    return [ink, getComputedStyle(e).backgroundColor];
"""


def luminance(colour):
    """Relative luminance of an sRGB colour (WCAG 2.2)."""
    values = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    """Contrast ratio of two colours (WCAG 2.2)."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_the_colours_are_those_of_the_reports():
    def colours(path):
        found = re.findall(r"--\w+: #\w+", path.read_text(encoding="utf-8"))
        # The lines of curves, of which the page has none.
        return [colour for colour in found if not re.match(r"--c\d", colour)]

    report = FILES.parent.parent / "reporting" / "report.css"
    assert colours(FILES / "page.css") == colours(report) != []
