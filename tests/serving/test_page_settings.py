"""What the page is told besides questions: a key, settings, a model, an example."""

import threading

import pytest
from selenium.webdriver import Keys

from tests.serving.browsing import needs_browser
from tests.serving.page_server import BASE, TUNED, with_examples

pytestmark = needs_browser


def test_the_key_is_asked_for_and_kept_in_the_tab_only(page, server, tmp_path):
    with_examples(server, tmp_path)
    server.key, page.statuses = "secret", {401}
    page.open()
    page.until(lambda: page.one("#key").is_displayed())
    assert page.one("#key-value").get_attribute("type") == "password"
    page.one("#key-value").send_keys("wrong" + Keys.ENTER)
    page.until(lambda: page.one("#key-notice").text == "The server did not accept that key.")
    page.one("#key-value").send_keys("secret" + Keys.ENTER)
    page.ready()
    page.until(lambda: len(page.all(".card")) == 2)
    # Pictures are fetched with the key, too.
    page.until(lambda: page.run("return document.querySelector('.card img').naturalWidth") == 40)
    page.ask("First")
    assert page.answers() == ["A cat."]
    assert page.run("return Object.values(sessionStorage)") == ["secret"]
    assert "secret" not in page.run("return JSON.stringify(localStorage) + document.cookie")
    page.open()
    page.ready()
    assert not page.one("#key").is_displayed()


def test_without_the_key_there_is_a_way_back(page, server):
    server.key, page.statuses = "secret", {401}
    page.open()
    page.until(lambda: page.one("#key").is_displayed())
    page.keys(Keys.ESCAPE)
    page.until(lambda: page.one("#trouble-text").text == "A key is needed.")
    server.key = None
    page.click("#connect")
    page.ready()
    assert not page.one("#trouble").is_displayed()


def test_settings_are_sent_and_outlive_a_reload(page, server):
    given = {"temperature": "0.7", "top_p": "0.9", "max_tokens": "2", "seed": "5"}
    page.click("#open-settings")
    for name, value in given.items():
        page.one(f"#{name}").send_keys(value)
    page.one("#system").send_keys("Be brief.")
    page.click("#close-settings")
    page.click("#beside")
    page.open()
    page.ready()
    assert page.one("#beside").is_selected()
    page.ask("First")
    assert len(server.asked) == 2
    for body in server.asked:
        sent = {name: body[name] for name in given}
        assert sent == {"temperature": 0.7, "top_p": 0.9, "max_tokens": 2, "seed": 5}
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    # Two tokens were all that was allowed.
    assert page.texts(".answer .note") == ["Cut at the longest answer allowed."] * 2
    page.click("#open-settings")
    page.click("#reset-settings")
    page.click("#close-settings")
    page.ask("Second")
    assert set(server.asked[2]) == {"model", "messages", "stream", "stream_options"}


@pytest.mark.parametrize("value", ["3", "-1", "much"])
def test_a_setting_out_of_its_range_is_told_and_not_sent(page, server, value):
    page.click("#open-settings")
    # Letters that a number cannot have do not even get into the field, but for an e.
    page.one("#temperature").send_keys(value if value != "much" else "1e")
    page.one("#temperature").send_keys(Keys.TAB)
    page.until(lambda: page.one("#settings-notice").text.startswith("Temperature: "))
    page.click("#close-settings")
    page.ask("First")
    assert "temperature" not in server.asked[0]


def test_settings_of_somebody_else_are_passed_over(page, server):
    for left in ("[", "null", '{"temperature": {"a": 1}, "seed": "many", "top_p": "7"}'):
        page.run("localStorage.setItem('tuninglab.settings', arguments[0])", left)
        page.open()
        page.ready()
        page.ask("First")
        assert set(server.asked[-1]) == {"model", "messages", "stream", "stream_options"}


def test_the_chosen_model_is_asked_and_remembered(page, server):
    assert page.one("#model").get_property("value") == TUNED
    page.one("#model").send_keys(BASE)
    page.open()
    page.ready()
    page.ask("First")
    assert server.asked[0]["model"] == BASE


def test_an_example_is_asked_and_its_true_answer_shown_afterwards(page, server, tmp_path):
    with_examples(server, tmp_path)
    gate = threading.Event()
    server.script = lambda body: ["blue", gate]
    page.open()
    page.until(lambda: len(page.all(".card")) == 2)
    page.all(".card")[0].click()
    page.until(lambda: page.all("#thumbnails img"))
    page.keys(Keys.ENTER)
    page.until(lambda: page.answers() == ["blue"])
    assert page.all(".truth") == []
    gate.set()
    page.idle()
    assert page.texts(".truth") == ["True answer: red <b>"]
    picture, text = server.asked[0]["messages"][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert text == {"type": "text", "text": "Which colour?"}


def test_another_question_has_not_the_examples_answer(page, server, tmp_path):
    with_examples(server, tmp_path)
    page.open()
    page.until(lambda: len(page.all(".card")) == 2)
    page.all(".card")[1].click()
    page.until(lambda: page.one("#question").get_property("value") == "How many?")
    page.type(" And why?" + Keys.ENTER)
    page.until(lambda: page.answers() == ["A cat."])
    page.idle()
    assert page.texts(".asked .text") == ["How many? And why?"]
    assert page.all(".truth") == []
