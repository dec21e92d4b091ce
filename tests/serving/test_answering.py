"""What a real engine does by chance only: failures, a full queue, clients that leave."""

import contextlib
import json
import threading

import httpx
import openai
import pytest

from tests.serving.asking import PATIENCE_S, wait_until
from tests.serving.fakes import ScriptedEngine
from tests.serving.guarded import JSON, serving
from tuninglab.errors import UserError
from tuninglab.serving.app import make_app
from tuninglab.serving.exchange import Done, Text
from tuninglab.serving.request_log import RequestLog

DONE = Done("stop", 3, 2)
HELLO = {"messages": [{"role": "user", "content": "a secret question"}]}


@contextlib.contextmanager
def scripted(*events, log_requests=False):
    """A server whose engine tells these events of each request, and a client of it."""
    engine = ScriptedEngine(lambda request: events)
    app = RequestLog(make_app(engine, "base", log_requests=log_requests))
    with serving(inner=app) as server:
        url = f"{server.url}/v1"
        with openai.OpenAI(api_key="none", base_url=url, max_retries=0) as client:
            yield engine, server, client
            engine.close()


def ask(client, stream=False, **options):
    return client.chat.completions.create(model="tuned", stream=stream, **HELLO, **options)


def test_an_error_in_the_middle_is_told_and_its_cause_is_not(capfd):
    with scripted(Text("A "), RuntimeError("internal matter")) as (_, server, client):
        bits = []
        with pytest.raises(openai.APIError) as caught:
            for chunk in ask(client, stream=True):
                bits.append(chunk.choices[0].delta.content)
        assert bits == ["", "A "] and "internal" not in str(caught.value.body)
        raw = httpx.post(
            f"{server.url}/v1/chat/completions", json=HELLO | {"stream": True}
        ).text.split("\n\n")
        # What is broken off does not look whole.
        assert json.loads(raw[-2].removeprefix("data: "))["error"]["type"] == "server_error"
        assert "[DONE]" not in raw[-1]
    assert capfd.readouterr().err.count("RuntimeError: internal matter") == 2


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_before_the_first_bit_has_a_status(stream, capfd):
    with scripted(RuntimeError("internal matter")) as (engine, server, client):
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client, stream)
        assert caught.value.status_code == 500 and "internal" not in caught.value.response.text
        assert caught.value.type == "server_error"
        assert httpx.get(f"{server.url}/health").status_code == 200
    assert "RuntimeError: internal matter" in capfd.readouterr().err


@pytest.mark.parametrize("stream", [False, True])
def test_a_mistake_of_the_client_is_told_in_words(stream, capfd):
    with (
        scripted(UserError("no place for that")) as (_, _, client),
        pytest.raises(openai.BadRequestError, match="no place for that"),
    ):
        ask(client, stream)
    assert "Traceback" not in capfd.readouterr().err


def test_a_full_queue_sends_away_and_clients_try_again():
    with scripted(Text("A"), DONE) as (engine, server, client):
        tries = []
        submit = engine.submit
        engine.submit = lambda *given: tries.append(1) or submit(*given)
        engine.busy = True
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client)
        assert caught.value.status_code == 503 and caught.value.code == "busy"
        assert caught.value.response.headers["retry-after"] == "1"
        patient = client.with_options(max_retries=2)
        with pytest.raises(openai.InternalServerError):
            ask(patient)
        assert len(tries) == 4
        engine.busy = False
        assert ask(client).choices[0].message.content == "A"


def test_where_the_queue_is_full_the_body_is_not_read():
    with scripted(Text("A"), DONE) as (engine, server, client):
        engine.waiting, engine.running = 2, 2

        def endless():
            yield b'{"messages": '
            while True:
                yield b" " * 2**20

        # More than would be taken: nobody has read it to see that.
        url = f"{server.url}/v1/chat/completions"
        with contextlib.suppress(httpx.HTTPError):
            reply = httpx.post(url, content=endless(), headers=JSON)
            assert reply.status_code == 503
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client)
        assert caught.value.status_code == 503 and caught.value.response.headers["retry-after"]
        assert engine.asked == []
        # A row that is free does not wait.
        engine.waiting, engine.running = 2, 1
        assert ask(client).choices[0].message.content == "A"


def test_a_server_that_closes():
    with scripted(Text("A"), DONE) as (engine, _, client):
        engine.close()
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client)
        assert caught.value.status_code == 503 and caught.value.code == "closed"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut_does_not_look_whole(stream):
    with scripted(Text("A"), threading.Event(), DONE) as (engine, _, client):
        closer = threading.Thread(target=engine.close)
        if stream:
            chunks = iter(ask(client, stream=True))
            assert [next(chunks).choices[0].delta.content for _ in range(2)] == ["", "A"]
            closer.start()
            with pytest.raises(openai.APIError, match="shutting down"):
                next(chunks)
        else:
            asking = threading.Timer(0, lambda: wait_until(lambda: engine.asked) or engine.close())
            asking.start()
            with pytest.raises(openai.InternalServerError, match="shutting down"):
                ask(client)
            asking.join(PATIENCE_S)
            closer.start()
        closer.join(PATIENCE_S)


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(stream, after):
    # While the first bit is awaited, and after it.
    events = [Text("A")] * after + [threading.Event(), DONE]
    with scripted(*events) as (engine, server, client):
        url = f"{server.url}/v1/chat/completions"
        with httpx.Client() as leaving:
            body = HELLO | {"stream": stream}
            if stream and after:
                with leaving.stream("POST", url, json=body) as reply:
                    assert "assistant" in next(reply.iter_text())
            else:
                wait = httpx.Timeout(10, read=0.5)
                with pytest.raises(httpx.ReadTimeout):
                    leaving.post(url, json=body, timeout=wait)
        assert engine.answerings[0].cancelled.wait(PATIENCE_S)
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_an_answer_that_ended_is_not_waited_for():
    with scripted(Text("A"), DONE) as (engine, _, client):
        ask(client, n=2)
        wait_until(lambda: engine.answerings[0].cancelled.is_set())
        assert len(engine.asked) == 2


@pytest.mark.parametrize("log_requests", [False, True])
def test_what_is_said_of_a_request(log_requests, capfd):
    with scripted(Text("an "), Text("answer"), DONE, log_requests=log_requests) as (
        _,
        server,
        client,
    ):
        ask(client)
        list(ask(client, stream=True))
        httpx.get(f"{server.url}/nothing%1b[31m")
    said = capfd.readouterr().err
    assert said.count("POST /v1/chat/completions 200 tuned 3+2 tokens ") == 2
    assert "\x1b" not in said and "GET '/nothing\\x1b[31m' 404 " in said
    assert (said.count("a secret question") == 2) is log_requests
    assert (said.count("an answer") == 2) is log_requests
    assert log_requests or "secret" not in said
