"""The verb serve: what it refuses, what it says, and how it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import openai
import pytest

from tests.serving.asking import PATIENCE_S, wait_until
from tests.serving.fakes import ScriptedEngine
from tests.serving.guarded import serving
from tuninglab.cli import run_verb
from tuninglab.config import ServeConfig
from tuninglab.errors import UserError
from tuninglab.serving import serve as verb
from tuninglab.serving.app import make_app
from tuninglab.serving.exchange import Done, Text

HELLO = [{"role": "user", "content": "How many objects are there?"}]
END_S = 10  # from the signal to the end of the process


def test_other_machines_only_with_a_key(capfd, monkeypatch):
    monkeypatch.delenv("TUNINGLAB_API_KEY", raising=False)
    monkeypatch.setattr(verb, "open_engine", None)
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        assert run_verb("serve", ["--host", host, "--port", "0"]) == 2
        assert "--api_key" in capfd.readouterr().err
    assert run_verb("serve", ["--allow_image_urls", "https://x.org/a", "--port", "0"]) == 2
    assert "--allow_image_urls" in capfd.readouterr().err


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(capfd, monkeypatch):
    monkeypatch.setattr(verb, "open_engine", None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert run_verb("serve", ["--port", port]) == 2
    said = capfd.readouterr().err
    assert port in said and "--port" in said and "Traceback" not in said


def test_a_model_that_is_none(capfd):
    assert run_verb("serve", ["no/such/run", "--port", "0"]) == 2
    assert "no/such/run" in capfd.readouterr().err


@pytest.mark.parametrize("host", ["nobody.invalid", "192.0.2.1", "a\ud800", "x" * 300, "1.2.3"])
def test_an_address_that_is_not_ours(host):
    with pytest.raises(UserError, match="--host"):
        verb.bound(host, 0)


@pytest.mark.parametrize(
    "host, url",
    [
        ("127.0.0.1", "http://127.0.0.1:80/"),
        ("0.0.0.0", "http://127.0.0.1:80/"),
        ("::", "http://127.0.0.1:80/"),
        ("::1", "http://[::1]:80/"),
        ("lab.example", "http://lab.example:80/"),
    ],
)
def test_the_address_that_is_said(host, url):
    assert verb.address_of(host, 80) == url


@pytest.fixture
def ended():
    """A function (engine) -> (url, end), for a server of the verb in a thread, not yet ended."""
    threads = []

    def start(engine):
        ready = threading.Event()
        server = verb.Server(make_app(engine, "base"), engine, ready.set)
        place = verb.bound("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, args=([place],))
        thread.start()
        assert ready.wait(PATIENCE_S)

        def end():
            server.handle_exit(signal.SIGTERM, None)
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

        threads.append(end)
        return f"http://127.0.0.1:{place.getsockname()[1]}/v1", end

    yield start
    for end in threads:
        end()


@pytest.mark.parametrize("drains", [True, False])
def test_answers_under_way_end_or_are_cut(drains, ended):
    gate = threading.Event()
    engine = ScriptedEngine(lambda request: [Text("A"), gate, Text("B"), Done("stop", 1, 2)])
    if drains:
        close = engine.close

        def drain(drain_s):
            gate.set()
            for thread in engine.threads:
                thread.join(PATIENCE_S)
            close()

        engine.close = drain
    url, end = ended(engine)
    with openai.OpenAI(api_key="none", base_url=url, max_retries=0) as client:
        chunks = iter(client.chat.completions.create(model="base", messages=HELLO, stream=True))
        assert [next(chunks).choices[0].delta.content for _ in range(2)] == ["", "A"]
        ending = threading.Thread(target=end)
        ending.start()
        if drains:
            assert [c.choices[0].delta.content for c in chunks] == ["B", None]
        else:
            with pytest.raises(openai.APIError, match="shutting down"):
                list(chunks)
        ending.join(PATIENCE_S)
    assert engine.closed
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models")


def test_the_browser_opens_the_page_once_it_is_there(monkeypatch, capfd):
    opened, servers = [], []

    class Kept(verb.Server):
        def __init__(self, *given):
            super().__init__(*given)
            servers.append(self)

    def open_page(url):
        opened.append((url, httpx.get(url).text))

    engine = ScriptedEngine(lambda request: [])
    monkeypatch.setattr(verb, "Server", Kept)
    monkeypatch.setattr(verb, "open_engine", lambda config: (engine, "base"))
    monkeypatch.setattr(verb, "tell", lambda engine: None)
    monkeypatch.setattr(verb.webbrowser, "open", open_page)
    thread = threading.Thread(target=verb.serve, args=(ServeConfig(port=0, open=True),))
    thread.start()
    wait_until(lambda: opened)
    servers[0].handle_exit(signal.SIGTERM, None)
    thread.join(PATIENCE_S)
    ((url, page),) = opened
    assert "page.js" in page and f"page:   {url}\n" in capfd.readouterr().err


CLIENT = """
import sys, openai
client = openai.OpenAI(api_key="none", base_url=sys.argv[1], max_retries=0)
messages = [{"role": "user", "content": "x"}]
for chunk in client.chat.completions.create(model="base", messages=messages, stream=True):
    print(chunk.choices[0].delta.content, flush=True)
"""


def test_a_client_that_is_killed_frees_its_place():
    engine = ScriptedEngine(lambda request: [Text("A"), threading.Event()])
    with serving(inner=make_app(engine, "base")) as server:
        command = [sys.executable, "-c", CLIENT, f"{server.url}/v1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as client:
            assert client.stdout is not None
            assert [client.stdout.readline() for _ in range(2)] == [b"\n", b"A\n"]
            client.kill()
        assert engine.answerings[0].cancelled.wait(PATIENCE_S)
        assert httpx.get(f"{server.url}/health").status_code == 200
    engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_the_command(sign, tmp_path):
    log = tmp_path / "log"
    environment = os.environ | {"TUNINGLAB_API_KEY": "the-key", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tuninglab", "serve", "embedded", "--port", "0"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, env=environment)
    try:
        wait_until(lambda: process.poll() is not None or "Ctrl-C" in log.read_text())
        url = re.search(r"http://\S+?/", log.read_text())[0]
        assert httpx.get(f"{url}health").json()["status"] == "ok"
        assert httpx.get(f"{url}v1/models").status_code == 401
        with openai.OpenAI(api_key="the-key", base_url=f"{url}v1") as client:
            assert [model.id for model in client.models.list()] == ["embedded"]
            reply = client.chat.completions.create(model="embedded", messages=HELLO)
            assert reply.choices[0].message.content
            options = {"temperature": 2, "n": 4, "max_tokens": 200}
            asking = threading.Thread(target=_ask, args=(client, options))
            asking.start()
            began_s = time.monotonic()
            process.send_signal(sign)
            assert process.wait(PATIENCE_S) == 0
            assert time.monotonic() - began_s < END_S
            asking.join(PATIENCE_S)
    finally:
        process.kill()
        out, _ = process.communicate()
    said = log.read_text()
    assert out == b"" and "Traceback" not in said
    assert "the-key" not in said and "How many" not in said
    assert re.search(r"POST /v1/chat/completions 200 embedded \d+\+\d+ tokens", said)


def _ask(client, options):
    try:
        client.with_options(max_retries=0).chat.completions.create(
            model="embedded", messages=HELLO, **options
        )
    except openai.APIError:
        # Cut by the end, or too late for an answer.
        pass
