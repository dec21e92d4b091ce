"""Connections that are held and not used are closed, and what they hold is free again."""

import contextlib
import socket
import time

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving.guarded import error_of, raw, rest, serving, settle, up_to
from tuninglab.serving.connections import BoundedProtocol

HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def server():
    """With its own bounds."""
    with serving() as server:
        yield server


def bounded(**bounds):
    """A protocol with other bounds."""
    return type("Bounded", (BoundedProtocol,), bounds)


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def wait_until_none_is_left(server):
    for _ in range(1000):
        if not server.server_state.connections:
            return
        time.sleep(0.01)
    pytest.fail(f"{server.server_state.connections} are left")


# Slow heads


@pytest.mark.parametrize("sent", [b"", b"G", HEAD, b"GET /" + b"a" * 1000])
def test_a_head_that_does_not_end_is_given_up(sent):
    with serving(protocol=bounded(head_s=0.2)) as server:
        with connect(server) as connection:
            connection.sendall(sent)
            status, error = error_of(rest(connection))
        assert status == 408 and error["type"] == "invalid_request_error"
        wait_until_none_is_left(server)


def test_a_head_that_comes_in_drops_is_given_up_all_the_same():
    with serving(protocol=bounded(head_s=0.5)) as server, connect(server) as connection:
        connection.sendall(HEAD)
        connection.settimeout(0.02)
        received = b""
        for number in range(400):
            with contextlib.suppress(TimeoutError):
                received = connection.recv(65536)
                break
            connection.sendall(b"X-%d: a\r\n" % number)
        assert error_of(received)[0] == 408


def test_many_slow_heads_do_not_keep_another_client_waiting():
    with serving(protocol=bounded(head_s=5, most=100)) as server, contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connect(server)).sendall(HEAD)
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_second_request_has_its_own_time_and_answers_take_as_long_as_they_take():
    with serving(protocol=bounded(head_s=0.3)) as server:
        with connect(server) as connection:
            for _ in range(3):
                connection.sendall(HEAD + b"\r\n")
                assert up_to(connection, b"the page").startswith(b"HTTP/1.1 200")
                time.sleep(0.2)
            connection.sendall(b"GET /v1/endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
            end_s = time.monotonic() + 1
            while time.monotonic() < end_s:
                assert connection.recv(2**20)
        with connect(server) as connection:
            connection.sendall(HEAD + b"\r\n" + HEAD)
            first, _, second = rest(connection).partition(b"the page")
            assert first.startswith(b"HTTP/1.1 200") and error_of(second)[0] == 408


# Answers that nobody takes


@pytest.mark.parametrize("ends", [b"", b"Connection: close\r\n"])
def test_an_answer_that_is_not_taken_is_given_up(ends):
    with serving(protocol=bounded(taking_s=0.3)) as server, connect(server) as connection:
        connection.sendall(b"GET /v1/endless HTTP/1.1\r\nHost: localhost\r\n" + ends + b"\r\n")
        wait_until_none_is_left(server)
        settle(server)


# Too many


def test_too_many_connections_hear_so_as_json_and_far_too_many_nothing():
    with serving(protocol=bounded(most=2)) as server, contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(server)) for _ in range(2)]
        while len(server.server_state.connections) < 2:
            time.sleep(0.01)
        answer = httpx.get(f"{server.url}/health")
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "busy"
        assert answer.headers["retry-after"] == "2"
        assert answer.headers["content-type"] == "application/json"
        more = [stack.enter_context(connect(server)) for _ in range(3)]
        assert rest(more[-1]) == b""
        for connection in held + more:
            connection.close()
        wait_until_none_is_left(server)
        assert httpx.get(f"{server.url}/health").status_code == 200


# What is no HTTP


@pytest.mark.parametrize(
    "sent",
    [
        *(b"\r\n\r\n\r\n", b"hello\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET /\r\n\r\n"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX : a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1e3\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
def test_what_is_no_http_is_answered_as_json(sent, server):
    status, error = error_of(raw(server, sent))
    assert status in (400, 501) and error["type"] == "invalid_request_error"


def test_a_head_without_measure_is_not_kept(server):
    received = raw(server, HEAD + b"X: " + b"a" * 5_000_000)
    # Where more is on its way when it is closed, the answer may not arrive.
    assert received == b"" or error_of(received)[0] == 400
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_body_that_is_no_body_in_the_middle_is_answered_too(server):
    head = b"POST /v1/ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sent = head + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nno length\r\n"
    assert error_of(raw(server, sent))[0] == 400
    assert settle(server) == 0


def test_no_http_after_an_answer_has_begun_ends_the_connection(server):
    received = raw(server, HEAD + b"\r\n" + b"no http\r\n\r\n")
    first, _, second = received.partition(b"the page")
    assert first.startswith(b"HTTP/1.1 200") and error_of(second)[0] == 400


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.sampled_from(
        [b"", HEAD, HEAD + b"\r\n", b"POST /v1/ask HTTP/1.1\r\nHost: localhost\r\n"]
    ),
    noise=st.binary(max_size=60),
)
def test_two_hundred_kinds_of_noise_leave_the_server_alive(head, noise, server):
    with connect(server) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(head + noise)
            connection.shutdown(socket.SHUT_WR)
        received = rest(connection)
    if received and not received.startswith(b"HTTP/1.1 200"):
        assert 400 <= error_of(received)[0] < 500
    assert httpx.get(f"{server.url}/health").status_code == 200
