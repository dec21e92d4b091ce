"""Whom the server answers: each line of the rules, over HTTP as clients and attackers speak it."""

import asyncio
import contextlib
import hmac
import itertools
import socket
import time

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serving.guarded import JSON, error_of, raw, rest, serving, settle, up_to
from tuninglab.config.serving import ServeConfig
from tuninglab.errors import UserError
from tuninglab.serving.guard import Guard
from tuninglab.serving.request_head import (
    GuardSettings,
    Refusal,
    check_body_fields,
    check_host,
    check_key,
    check_origin,
    read_fields,
)
from tuninglab.untrusted import MIB

KEY = "sk-of-the-tests"
BEARER = {"authorization": f"Bearer {KEY}"}
CHAT = "https://chat.example.org"


@pytest.fixture(scope="module")
def plain():
    """Served to this machine, without a key."""
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def keyed():
    """Served to others, with a key, and a page of others that may ask."""
    settings = GuardSettings(api_key=KEY, hosts=None, cors_origin=CHAT, linger_s=1)
    with serving(settings) as server:
        yield server


def post(server, path="/v1/ask", content=b"{}", **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(server.url + path, content=content, headers=JSON | names)


def refused(answer, status, code=None):
    """Whether an answer is an error as OpenAI's clients read it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code and error["message"]
    return error["message"]


# The settings


def settings_of(environment=(), **fields):
    return GuardSettings.from_config(ServeConfig(**fields), dict(environment))


def test_by_default_only_this_machine_asks_and_no_key_is_needed():
    settings = settings_of()
    assert settings.hosts == {"localhost", "127.0.0.1", "[::1]"}
    assert settings.api_key is None and settings.cors_origin is None
    assert settings.body_bytes == 32 * MIB


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_another_host_needs_a_key(host):
    with pytest.raises(UserError, match="--api_key or TUNINGLAB_API_KEY"):
        settings_of(host=host)
    assert settings_of(host=host, api_key=KEY).hosts is None


def test_the_key_may_be_in_the_environment_and_the_flag_goes_before():
    environment = {"TUNINGLAB_API_KEY": KEY}
    assert settings_of(environment).api_key == KEY
    assert settings_of(environment, host="0.0.0.0").api_key == KEY
    assert settings_of(environment, api_key="other").api_key == "other"
    assert settings_of({"TUNINGLAB_API_KEY": ""}).api_key is None


def test_a_key_that_no_header_can_carry_is_refused_and_not_shown():
    with pytest.raises(UserError, match="printable ASCII") as caught:
        settings_of({"TUNINGLAB_API_KEY": "schlüssel"})
    assert "schl" not in str(caught.value)


@pytest.mark.parametrize(
    "origin", ["*", "null", "", "chat.example.org", f"{CHAT}/", "https://*.org", f"{CHAT}, {CHAT}"]
)
def test_what_is_no_single_origin_is_refused(origin):
    with pytest.raises(UserError, match="--cors_origin"):
        settings_of(cors_origin=origin)


# The Host header: a page whose name leads to this machine asks under that name


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "LocalHost:99999", "[::1]:8000"])
def test_this_machine_has_three_names(host, plain):
    assert post(plain, host=host).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "localhost.", ""),
        *("localhost@evil.example", "evil.example:8000", "127.1", "2130706433", "0.0.0.0", "::1"),
        *("[::1", "[::ffff:127.0.0.1]", "localhost:80:80", "localhost/", "http://localhost"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/v1/ask"])
def test_another_name_is_refused_also_for_the_page(host, path, plain):
    refused(httpx.get(plain.url + path, headers={"host": host}), 400)


def test_with_a_key_others_may_call_the_server_as_they_like(keyed):
    assert post(keyed, host="tower.example:8000", **BEARER).status_code == 200


def test_an_old_client_without_a_host_is_refused(plain):
    status, _ = error_of(raw(plain, b"GET / HTTP/1.0\r\n\r\n"))
    assert status == 400


# The key


@pytest.mark.parametrize(
    "sent", [None, "", "Bearer", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}"]
)
@pytest.mark.parametrize("path", ["/v1/ask", "/secret", "/v1/none", "//", "/page.js/", "/Health"])
def test_without_the_key_nothing_is_told(sent, path, keyed):
    headers = {} if sent is None else {"authorization": sent}
    answer = httpx.get(keyed.url + path, headers=headers)
    assert KEY not in refused(answer, 401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/health"])
def test_the_page_is_there_for_all_but_takes_nothing(path, keyed):
    assert httpx.get(keyed.url + path).status_code == 200
    assert httpx.head(keyed.url + path).status_code == 200
    refused(post(keyed, path), 401, "invalid_api_key")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_with_the_key_it_answers(scheme, keyed):
    assert post(keyed, authorization=f"{scheme} {KEY}").json() == {"bytes": 2}


def test_without_a_key_set_whatever_a_client_sends_is_fine(plain):
    assert post(plain, authorization="Bearer none").status_code == 200


def test_keys_are_compared_in_constant_time(monkeypatch):
    seen, compare = [], hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: seen.append((a, b)) or compare(a, b))
    with pytest.raises(Refusal):
        fields = {b"authorization": "Bearer wröng"}
        check_key("GET", "/v1/models", fields, GuardSettings(api_key=KEY))
    assert seen == [("wröng".encode(), KEY.encode())]


# The origin


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "", f"{CHAT}.evil.example"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_pages_of_others_are_refused(method, origin, plain, keyed):
    asks = {"origin": origin, "access-control-request-method": "POST"}
    answer = httpx.request(method, f"{plain.url}/v1/ask", headers=JSON | asks)
    refused(answer, 403)
    assert not [name for name in answer.headers if name.startswith("access-control")]
    answer = httpx.request(method, f"{keyed.url}/v1/ask", headers=JSON | asks | BEARER)
    refused(answer, 403)
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_own_page_asks_by_each_of_its_names(plain):
    for host in (f"127.0.0.1:{plain.port}", f"localhost:{plain.port}"):
        assert post(plain, host=host, origin=f"http://{host}").status_code == 200
    other = f"http://localhost:{plain.port}"
    refused(post(plain, host=f"127.0.0.1:{plain.port}", origin=other), 403)


def test_the_own_page_behind_a_proxy_with_tls_asks(keyed):
    own = {"host": "tower.example", "origin": "https://tower.example"}
    assert post(keyed, **own, **BEARER).status_code == 200


def preflight(server, origin, headers="authorization, content-type, x-stainless-os"):
    asks = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": headers,
    }
    return httpx.options(f"{server.url}/v1/ask", headers=asks)


def test_the_origin_that_may_ask_is_answered_before_it_shows_the_key(keyed):
    answer = preflight(keyed, CHAT)
    assert answer.status_code == 204 and answer.content == b""
    assert answer.headers["access-control-allow-origin"] == CHAT
    assert answer.headers["access-control-allow-methods"] == "GET, POST"
    wanted = "authorization, content-type, x-stainless-os"
    assert answer.headers["access-control-allow-headers"] == wanted
    assert answer.headers["vary"] == "origin"
    assert "access-control-allow-credentials" not in answer.headers


def test_others_ask_for_nothing_before(keyed, plain):
    refused(preflight(keyed, "https://evil.example"), 401, "invalid_api_key")
    refused(preflight(plain, CHAT), 403)
    refused(preflight(plain, "*"), 403)
    answer = preflight(keyed, CHAT, "a b")
    assert "access-control-allow-headers" not in answer.headers


def test_the_origin_that_may_ask_reads_answers_and_refusals(keyed):
    for answer in (post(keyed, origin=CHAT, **BEARER), post(keyed, origin=CHAT)):
        assert answer.headers["access-control-allow-origin"] == CHAT
        assert answer.headers["vary"] == "origin"
    assert answer.status_code == 401
    assert "access-control-allow-origin" not in post(keyed, **BEARER).headers


# The body, by what is said of it


@pytest.mark.parametrize(
    "kind",
    [
        *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
        *("", "application/jsonx", "text/plain; application/json", "application/json, text/plain"),
    ],
)
def test_what_a_form_of_any_page_can_send_is_refused(kind, plain):
    refused(post(plain, content_type=kind), 415)


def test_no_content_type_is_refused_and_a_charset_is_not(plain):
    refused(httpx.post(f"{plain.url}/v1/ask", content=b"{}"), 415)
    assert post(plain, content_type="Application/JSON; charset=utf-8").status_code == 200


@pytest.mark.parametrize(
    "line",
    ["Host: localhost", "Content-Length: 3", "Authorization: Bearer a", "Origin: null"]
    + ["Content-Type: application/json"],
)
def test_what_is_said_twice_is_refused(line, plain):
    head = "POST /v1/ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += (
        f"Authorization: Bearer b\r\nOrigin: http://localhost\r\nContent-Length: 2\r\n{line}\r\n"
    )
    status, _ = error_of(raw(plain, f"{head}Connection: close\r\n\r\n{{}}".encode()))
    assert status == 400


@pytest.mark.parametrize("name", ["Host", "Authorization", "Origin", "Content-Type"])
def test_what_is_said_twice_the_same_is_refused_too(name):
    twice = [(name.lower().encode(), b"localhost")] * 2
    with pytest.raises(Refusal, match=f"several {name} headers"):
        read_fields(twice)


def test_two_ways_to_say_a_length_are_refused(plain):
    head = b"POST /v1/ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    lengths = b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    status, error = error_of(raw(plain, head + lengths))
    assert status == 400 and "Transfer-Encoding" in error["message"]


def chunks(mib):
    return (bytes(MIB) for _ in range(mib))


@pytest.mark.parametrize("content", [lambda: bytes(33 * MIB), lambda: chunks(33)])
def test_more_than_32_mib_is_refused_said_or_not_and_the_client_hears_it(content, plain):
    assert "32 MiB" in refused(post(plain, content=content()), 413)
    assert post(plain).status_code == 200 and settle(plain) == 0


@pytest.mark.parametrize("content", [lambda: bytes(32 * MIB), lambda: chunks(32)])
def test_32_mib_are_read(content, plain):
    assert post(plain, content=content()).json() == {"bytes": 32 * MIB}


def test_openai_python_hears_what_is_wrong(plain, keyed):
    with openai.OpenAI(base_url=f"{plain.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.APIStatusError, match="32 MiB") as caught:
            message = {"role": "user", "content": "a" * 33 * MIB}
            client.chat.completions.create(model="m", messages=[message])  # type: ignore
        assert caught.value.status_code == 413
    with openai.OpenAI(base_url=f"{keyed.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        assert caught.value.code == "invalid_api_key"


def test_a_large_request_without_the_key_or_a_place_hears_why(plain, keyed):
    refused(post(keyed, content=bytes(20 * MIB)), 401, "invalid_api_key")
    answer = post(plain, "/v1/busy", content=bytes(20 * MIB))
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"


def test_who_waits_for_leave_to_send_is_refused_without_it(plain):
    head = b"POST /v1/ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    answer = raw(plain, head % (33 * MIB))
    assert error_of(answer)[0] == 413 and b"100 Continue" not in answer


# In order, and before the body is read


async def answers(scope, receive, send):
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def statuses(headers, method="POST", **settings):
    """What the guard sends for a head whose body must not be asked for."""
    sent, given_up = [], GuardSettings(api_key=KEY, linger_s=0, **settings)

    async def receive():
        # The answer has gone by then: what is still sent is thrown away.
        assert sent and sent[-1]["type"] == "http.response.body"
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": "/v1/ask", "headers": list(headers.items())}
    asyncio.run(Guard(answers, given_up)(scope, receive, send))
    return [message["status"] for message in sent if "status" in message]


def test_the_first_thing_that_is_wrong_is_said_before_the_body_is_read():
    wrong = {
        b"content-length": b"%d" % (33 * MIB),
        b"content-type": b"text/plain",
        b"origin": b"https://evil.example",
        b"authorization": b"Bearer wrong",
        b"host": b"evil.example",
    }
    right = {
        b"host": b"localhost",
        b"authorization": b"Bearer " + KEY.encode(),
        b"origin": b"http://localhost",
        b"content-type": b"application/json",
    }
    seen = [statuses(wrong)]
    for name, value in right.items():
        wrong[name] = value
        seen.append(statuses(wrong))
    assert seen == [[400], [401], [403], [415], [413]]


# Slowly


def open_body(server, sent=b"", length=b"Content-Length: 1000"):
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    head = b"POST /v1/ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(head + length + b"\r\n\r\n" + sent)
    return connection


@pytest.mark.parametrize("length", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
def test_a_body_that_stops_is_given_up(length):
    with serving(GuardSettings(message_s=0.2)) as server:
        with open_body(server, b"1\r\n{\r\n", length) as connection:
            status, error = error_of(rest(connection))
        assert status == 408 and "slowly" in error["message"]
        assert settle(server) == 0


def test_a_body_that_comes_in_drops_is_given_up():
    with serving(GuardSettings(message_s=5, body_s=0.5)) as server:
        with open_body(server) as connection:
            connection.settimeout(0.02)
            for _ in range(400):
                with contextlib.suppress(TimeoutError):
                    received = connection.recv(65536)
                    break
                connection.sendall(b" ")
        assert error_of(received)[0] == 408


def test_large_bodies_at_once_have_one_bound_together():
    settings = GuardSettings(body_bytes=100_000, bodies_bytes=150_000)
    with serving(settings) as server:
        with open_body(server, bytes(80_000), b"Content-Length: 90000") as first:
            while server.guard.held < 80_000:
                time.sleep(0.01)
            answer = post(server, content=bytes(90_000))
            refused(answer, 503, "busy")
            assert answer.headers["retry-after"] == "2"
            first.sendall(bytes(10_000))
            whole = b'{"bytes":90000}'
            assert up_to(first, whole).endswith(whole)
        assert post(server, content=bytes(90_000)).json() == {"bytes": 90_000}


def test_a_client_that_leaves_in_the_middle_leaves_nothing(plain):
    for _ in range(5):
        open_body(plain, bytes(500)).close()
    assert post(plain).status_code == 200
    assert settle(plain) == 0


# On every answer


def test_every_answer_says_that_it_is_what_it_says_it_is(plain, keyed):
    for server, path, kept in itertools.product(
        (plain, keyed), ("/", "/health", "/v1/ask", "/v1/stream", "/v1/none"), (BEARER, {})
    ):
        answer = httpx.get(server.url + path, headers=kept)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        if path.startswith("/v1") or answer.status_code == 401:
            assert answer.headers.get_list("cache-control") == ["no-store"]
        else:
            assert answer.headers["cache-control"] == "max-age=60"


def test_an_answer_in_parts_passes_whole(plain):
    assert post(plain, "/v1/stream").text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"


def test_the_app_hears_of_start_and_end():
    heard = []

    async def app(scope, receive, send):
        heard.append(scope["type"])

    asyncio.run(Guard(app, GuardSettings())({"type": "lifespan"}, None, None))  # type: ignore
    assert heard == ["lifespan"]


def test_nothing_else_but_http_passes():
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(answers, GuardSettings())({"type": "websocket"}, None, send))  # type: ignore
    assert sent == [{"type": "websocket.close", "code": 1008}]


# Whatever heads say

NAMES = st.sampled_from(
    [b"host", b"authorization", b"origin", b"content-type", b"content-length", b"x"]
)
VALUES = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([b"localhost", b"127.0.0.1:80", b"Bearer k", b"application/json", b"5"]),
)
KEYED = GuardSettings(api_key="k")


@given(
    headers=st.lists(st.tuples(NAMES, VALUES), max_size=8), method=st.sampled_from(["GET", "POST"])
)
def test_any_head_passes_or_is_refused_and_none_without_host_and_key_passes(headers, method):
    try:
        fields = read_fields(headers)
        check_host(fields, KEYED)
        check_key(method, "/v1/ask", fields, KEYED)
        check_origin(fields, KEYED)
        check_body_fields(method, fields, KEYED)
    except Refusal as refusal:
        assert refusal.answer[0]["status"] in (400, 401, 403, 413, 415)
        return
    (host,) = [value for name, value in headers if name == b"host"]
    assert host.strip() in (b"localhost", b"127.0.0.1:80")
    (key,) = [value for name, value in headers if name == b"authorization"]
    assert key.strip().lower().startswith(b"bearer ") and key.strip()[7:].strip() == b"k"
    assert not [value for name, value in headers if name == b"origin" and host not in value]
