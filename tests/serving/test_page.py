"""The page in a real browser: a dialogue with pictures, and whatever may come between."""

import threading

import pytest
from selenium.webdriver import Keys

from tests.serving.browsing import needs_browser
from tests.serving.page_server import BASE, TUNED, Cut, error
from tests.serving.sent_pictures import BLUE, GREEN, RED, colours

pytestmark = needs_browser


def test_a_dialogue_of_two_turns_with_pictures(page, server, files):
    replies = iter((["A ", "cat."], ["Blue."]))
    server.script = lambda body: next(replies)
    page.attach(*files[:2])
    page.ask("What is it?")
    page.attach(files[2])
    page.ask("And now?")
    assert page.answers() == ["A cat.", "Blue."]
    first, second = server.asked
    assert first["model"] == TUNED
    assert [m["role"] for m in second["messages"]] == ["user", "assistant", "user"]
    assert [colours(m) for m in first["messages"]] == [[RED, GREEN, "What is it?"]]
    assert [colours(m) for m in second["messages"]] == [
        [RED, GREEN, "What is it?"],
        "A cat.",
        [BLUE, "And now?"],
    ]
    # What is not set is left to the server.
    assert set(first) == {"model", "messages", "stream", "stream_options"}
    figures = page.texts(".figures")
    assert figures[0].startswith("2 tokens · ") and figures[1].startswith("1 token · ")
    assert all("tokens/s · first after " in text for text in figures)
    assert page.texts("#said") == [f"{TUNED}: Blue. "]


def test_an_answer_is_stopped_in_the_middle_and_kept(page, server):
    gate = threading.Event()
    server.script = lambda body: ["Once ", "upon", gate, " a time"]
    page.type("Tell!" + Keys.ENTER)
    page.until(lambda: page.answers() == ["Once upon"])
    page.click("#stop")
    page.idle()
    assert page.answers() == ["Once upon"]
    assert page.texts(".answer .note") == ["Stopped."]
    page.until(lambda: server.left == 1)
    server.script = lambda body: ["The end."]
    page.ask("And?")
    # What has come is what the model said.
    assert [colours(m) for m in server.asked[1]["messages"]] == [["Tell!"], "Once upon", ["And?"]]


def test_while_an_answer_comes_no_other_question_is_sent(page, server):
    gate = threading.Event()
    server.script = lambda body: ["One", gate]
    page.type("First" + Keys.ENTER)
    page.until(lambda: page.answers() == ["One"])
    page.type("Second" + Keys.ENTER)
    page.until(lambda: page.one("#notice").text == "An answer is being written. Esc stops it.")
    gate.set()
    page.idle()
    assert len(server.asked) == 1
    assert page.one("#question").get_property("value") == "Second"


def test_the_last_answer_is_asked_for_again(page, server):
    replies = iter((["One"], ["Two"], ["Three"]))
    server.script = lambda body: next(replies)
    page.ask("First")
    page.ask("Second")
    page.button("Retry").click()
    page.until(lambda: page.answers() == ["One", "Three"])
    page.idle()
    assert server.asked[2] == server.asked[1]


def test_the_last_question_is_edited(page, server, files):
    server.script = lambda body: [f"Answer {len(server.asked)}"]
    page.ask("First")
    page.attach(files[0])
    page.ask("Secnod")
    page.type("meanwhile")
    page.button("Edit").click()
    assert page.one("#question").get_property("value") == "Secnod"
    page.one("#question").clear()
    page.ask("Second")
    assert page.texts(".asked .text") == ["First", "Second"]
    assert page.answers() == ["Answer 1", "Answer 3"]
    assert [colours(m) for m in server.asked[2]["messages"]] == [
        ["First"],
        "Answer 1",
        [RED, "Second"],
    ]
    # What was being written has come back.
    assert page.one("#question").get_property("value") == "meanwhile"
    assert page.all("#thumbnails img") == []


def test_an_edit_that_is_given_up_changes_nothing(page, server):
    page.ask("First")
    page.keys(Keys.ARROW_UP)
    assert page.one("#question").get_property("value") == "First"
    page.type(" and more")
    page.keys(Keys.ESCAPE)
    assert page.one("#question").get_property("value") == ""
    assert not page.one("#editing").is_displayed()
    assert page.texts(".asked .text") == ["First"]


def test_clear_begins_anew_also_in_the_middle_of_an_answer(page, server):
    server.script = lambda body: ["One", threading.Event()]
    page.type("First" + Keys.ENTER)
    page.until(lambda: page.answers() == ["One"])
    page.click("#clear")
    assert page.all(".turn") == []
    page.until(lambda: server.left == 1)
    page.idle()
    server.script = lambda body: ["New"]
    page.ask("Second")
    assert page.answers() == ["New"]
    assert [colours(m) for m in server.asked[1]["messages"]] == [["Second"]]


def test_base_beside_tuned_each_with_its_own_history(page, server):
    server.script = lambda body: [f"{body['model']} {len(body['messages'])}"]
    page.click("#beside")
    page.ask("First")
    page.ask("Second")
    assert page.texts(".answer h3") == [f"Base: {BASE}", f"Tuned: {TUNED}"] * 2
    assert page.answers() == [f"{BASE} 1", f"{TUNED} 1", f"{BASE} 3", f"{TUNED} 3"]
    histories = {body["model"]: body["messages"] for body in server.asked[2:]}
    assert histories[BASE][1]["content"] == f"{BASE} 1"
    assert histories[TUNED][1]["content"] == f"{TUNED} 1"


def test_a_model_that_comes_later_does_not_answer_in_the_name_of_another(page, server):
    server.script = lambda body: [body["model"]]
    page.ask("First")
    page.click("#beside")
    assert page.texts(".answer .note")[0] == "Was not asked this."
    page.button("Ask").click()
    page.until(lambda: page.answers() == [BASE, TUNED])
    page.idle()
    assert [body["model"] for body in server.asked] == [TUNED, BASE]
    assert [colours(m) for m in server.asked[1]["messages"]] == [["First"]]


def test_one_of_two_fails_and_the_other_answers(page, server):
    server.script = lambda body: (
        ["Half", RuntimeError("out of paper")] if body["model"] == BASE else ["Whole"]
    )
    page.click("#beside")
    page.ask("First")
    assert page.answers() == ["Half", "Whole"]
    assert page.texts(".answer .note") == ["out of paper", ""]


def test_an_answer_is_shown_as_text(page, server):
    evil = "<script>document.title = 'taken'</script><img src=x onerror=alert(1)> & שלום"
    server.script = lambda body: [evil[:9], evil[9:]]
    page.ask("<b>bold</b>")
    assert page.answers() == [evil]
    assert page.texts(".asked .text") == ["<b>bold</b>"]
    assert page.all("#transcript script, #transcript img, #transcript b") == []
    assert page.driver.title == "tuninglab"


@pytest.mark.parametrize(("text", "direction"), [("שלום world", "rtl"), ("hello עולם", "ltr")])
def test_an_answer_has_its_own_direction(page, server, text, direction):
    server.script = lambda body: [text]
    page.ask(text)
    for place in (".answer .text", ".asked .text"):
        script = "return getComputedStyle(document.querySelector(arguments[0])).direction"
        assert page.run(script, place) == direction


def test_an_interrupted_answer_keeps_what_has_come_and_says_so(page, server):
    page.broken = True
    server.script = lambda body: ["Half an", Cut]
    page.ask("First")
    assert page.answers() == ["Half an"]
    assert "connection ended before the answer" in page.texts(".answer .note")[0]
    server.script = lambda body: ["Whole"]
    page.button("Retry").click()
    page.until(lambda: page.answers() == ["Whole"])


def test_an_error_is_told_in_the_servers_words(page, server):
    page.statuses = {400}
    server.refusals = [error(400, "the prompt has 9,000 tokens; at most 2,048 <fit>")]
    page.ask("First")
    assert page.texts(".answer .note") == ["the prompt has 9,000 tokens; at most 2,048 <fit>"]
    page.ask("Second")
    # What was not answered is no part of the history.
    assert [colours(m) for m in server.asked[0]["messages"]] == [["Second"]]


def test_a_busy_server_is_asked_again_after_its_time(page, server):
    page.statuses = {503}
    server.refusals = [error(503, "busy", {"Retry-After": "1"})]
    page.type("First" + Keys.ENTER)
    page.until(lambda: page.texts(".answer .note") == ["The server is busy. Trying again in 1 s."])
    page.until(lambda: page.answers() == ["A cat."])
    page.idle()
    assert page.texts(".answer .note") == [""]


def test_the_wait_for_a_busy_server_can_be_stopped_and_begun_anew(page, server):
    page.statuses = {503}
    server.refusals = [error(503, "busy", {"Retry-After": "3600"})]
    page.type("First" + Keys.ENTER)
    page.until(lambda: "3600 s" in page.texts(".answer .note")[0])
    page.keys(Keys.ESCAPE)
    page.idle()
    assert page.texts(".answer .note") == ["Stopped."]
    page.button("Retry").click()
    page.until(lambda: page.answers() == ["A cat."])
