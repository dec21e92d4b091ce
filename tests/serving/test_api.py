"""The API over HTTP, asked by the clients that people use; answers are those of `generate`."""

import asyncio
import json
import random

import httpx
import openai
import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

from tests.serving.asking import asked, generated, picture_file, wait_until
from tests.serving.bodies import data_url
from tests.serving.guarded import JSON, serving
from tests.serving.test_engine import made
from tuninglab.serving.app import make_app
from tuninglab.serving.engine import Engine
from tuninglab.serving.examples import Example
from tuninglab.serving.guard import GuardSettings
from tuninglab.serving.reading import ServedModel
from tuninglab.untrusted import MIB

MODEL, COLOURS = "tuned", ["red", "green", "blue", "white", "black", "orange"]
EXAMPLES = [
    Example("How many?", "2", picture_file("red")),
    Example("Half a character: \ud800", ""),
]


@pytest.fixture(scope="module")
def tiny():
    return made(text={"max_position_embeddings": 1024})


@pytest.fixture(scope="module")
def server(tiny):
    model, processor = tiny
    served = {name: ServedModel(None, processor.prompt) for name in (MODEL, "base")}
    engine = Engine(model, processor, served, max_new_tokens=12)
    with serving(inner=make_app(engine, "base", EXAMPLES)) as server:
        server.engine = engine
        yield server
    engine.close()


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(api_key="none", base_url=f"{server.url}/v1", max_retries=0) as client:
        yield client


def content_of(text, colours):
    """A question as OpenAI's parts, pictures first."""
    urls = [data_url(picture_file(colour)) for colour in colours]
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [*pictures, {"type": "text", "text": text}]


def question(text="What is it?", colours=()):
    return [{"role": "user", "content": content_of(text, colours)}]


def expected(tiny, text="What is it?", colours=(), **options):
    return generated(*tiny, asked(text, colours, **{"max_new_tokens": 12} | options))


def post(server, body):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{server.url}/v1/chat/completions", content=content, headers=JSON)


def told(reply, status):
    """The error of a reply, which is JSON."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


@pytest.mark.parametrize("colours", [[], ["red"], ["blue", "green"]])
def test_a_whole_answer(colours, client, tiny):
    reply = client.chat.completions.create(model=MODEL, messages=question(colours=colours))
    text, tokens = expected(tiny, colours=colours)
    (choice,) = reply.choices
    assert choice.message.content == text and choice.message.role == "assistant"
    assert choice.finish_reason == ("length" if len(tokens) == 12 else "stop")
    assert reply.model == MODEL and reply.object == "chat.completion" and choice.logprobs is None
    usage = reply.usage
    assert usage.completion_tokens == len(tokens)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_is_the_whole_answer_in_bits(client, tiny):
    stream = client.chat.completions.create(
        model="base",
        messages=question("abc", ["red"]),
        stream=True,
        stream_options={"include_usage": True},
    )
    first, *rest = list(stream)
    assert first.choices[0].delta.role == "assistant" and first.choices[0].delta.content == ""
    *bits, last, counts = rest
    text, tokens = expected(tiny, "abc", ["red"])
    assert "".join(bit.choices[0].delta.content for bit in bits) == text and len(bits) > 1
    assert last.choices[0].finish_reason in ("stop", "length")
    assert last.choices[0].delta.content is None
    assert counts.choices == [] and counts.usage.completion_tokens == len(tokens)
    assert len({chunk.id for chunk in (first, *rest)}) == 1


def test_a_stream_as_bytes(server):
    body = {"messages": question(), "stream": True, "max_tokens": 2}
    reply = post(server, body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["x-accel-buffering"] == "no"
    assert "no-" in reply.headers["cache-control"]
    events = reply.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["choices"] for event in events[:-2])


def test_many_clients_at_once_get_each_its_own_answer(server, tiny):
    questions = [(f"What is {k}?", [COLOURS[k % 6], COLOURS[k // 6]]) for k in range(20)]

    async def one(client, text, colours):
        stream = len(text) % 2
        asking = client.chat.completions.create(
            model=MODEL, messages=question(text, colours), stream=bool(stream)
        )
        if not stream:
            return (await asking).choices[0].message.content
        bits = [chunk.choices[0].delta.content or "" async for chunk in await asking]
        return "".join(bits)

    async def ask():
        async with openai.AsyncOpenAI(
            api_key="none", base_url=f"{server.url}/v1", max_retries=0
        ) as client:
            return await asyncio.gather(*(one(client, *asked_of) for asked_of in questions))

    alone = [expected(tiny, *asked_of)[0] for asked_of in questions]
    assert asyncio.run(ask()) == alone and len(set(alone)) > 10
    wait_until(lambda: server.engine.load() == (0, 0))


def test_probabilities(client, tiny):
    reply = client.chat.completions.create(
        model=MODEL, messages=question(), logprobs=True, top_logprobs=3
    )
    text, tokens = expected(tiny)
    content = reply.choices[0].logprobs.content
    said = bytes(byte for token in content for byte in token.bytes).decode(errors="replace")
    assert said.strip() == text.strip() and len(content) == len(tokens)
    for token in content:
        assert len(token.top_logprobs) == 3
        # Greedy: what was chosen is the most probable.
        assert token.top_logprobs[0].token == token.token
        probabilities = [other.logprob for other in token.top_logprobs]
        assert probabilities == sorted(probabilities, reverse=True) and token.logprob <= 0


def test_several_answers_are_those_of_following_seeds(client):
    options = {"model": MODEL, "messages": question(), "temperature": 1.5}
    reply = client.chat.completions.create(**options, n=3, seed=5)
    texts = [choice.message.content for choice in reply.choices]
    alone = [
        client.chat.completions.create(**options, seed=5 + k).choices[0].message.content
        for k in range(3)
    ]
    assert texts == alone and len(set(texts)) > 1
    assert [choice.index for choice in reply.choices] == [0, 1, 2]


def test_a_stop_text_ends_the_answer(client, tiny):
    text, _ = expected(tiny)
    stop = text[2:4]
    for stream in (False, True):
        reply = client.chat.completions.create(
            model=MODEL, messages=question(), stop=[stop], stream=stream
        )
        if stream:
            chunks = list(reply)
            said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            said, reason = reply.choices[0].message.content, reply.choices[0].finish_reason
        assert (said, reason) == (text[: text.index(stop)], "stop")


def test_parameters_beside_openais(client, tiny):
    reply = client.chat.completions.create(
        model=MODEL,
        messages=question(),
        max_completion_tokens=12,
        extra_body={"top_k": 1, "repetition_penalty": 9, "nobody_knows": [1]},
        user="me",
        temperature=1,
        seed=1,
    )
    # transformers' own penalty is the reference.
    request = asked(max_new_tokens=12)
    assert reply.choices[0].message.content == generated(*tiny, request, repetition_penalty=9.0)[0]
    assert reply.choices[0].message.content != expected(tiny)[0]


def test_langchain(server, tiny):
    chat = ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model=MODEL, max_retries=0)
    content = content_of("What is it?", ["red"])
    text, tokens = expected(tiny, colours=["red"])
    reply = chat.invoke([HumanMessage(content)])
    assert reply.content == text
    assert reply.usage_metadata["output_tokens"] == len(tokens)
    assert "".join(bit.content for bit in chat.stream([HumanMessage(content)])) == text
    asyncio.run(_langchain_async(chat, content, text))
    assert isinstance(chat.invoke([SystemMessage("Be brief."), HumanMessage("Hi")]).content, str)


async def _langchain_async(chat, content, text):
    assert (await chat.ainvoke([HumanMessage(content)])).content == text
    await chat.root_async_client.close()


def test_models(client):
    tuned, base = client.models.list().data
    assert (tuned.id, tuned.parent, tuned.root) == (MODEL, "base", "base")
    assert (base.id, base.parent) == ("base", None) and base.owned_by == "tuninglab"
    assert client.models.retrieve("base") == base
    for name in ("else", "a/b", "../x"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve(name)
        assert caught.value.code == "model_not_found"


def test_what_is_refused(client):
    def ask(**options):
        options = {"model": MODEL, "messages": question()} | options
        return client.chat.completions.create(**options)

    with pytest.raises(openai.BadRequestError) as caught:
        ask(temperature=3)
    assert caught.value.param == "temperature" and caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError) as caught:
        ask(model="gpt-4o")
    assert caught.value.code == "model_not_found"
    for options in ({}, {"stream": True}):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(messages=question("long " * 2000), **options)
        assert caught.value.code == "context_length_exceeded"
    content = [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]
    with pytest.raises(openai.BadRequestError, match="data:"):
        ask(messages=[{"role": "user", "content": content}])
    with pytest.raises(openai.APIStatusError) as caught:
        ask(messages=question("x" * 33 * MIB))
    assert caught.value.status_code == 413


def test_a_key(tiny):
    model, processor = tiny
    engine = Engine(model, processor, {"base": ServedModel(None, processor.prompt)})
    app = make_app(engine, "base", EXAMPLES)
    with serving(GuardSettings(api_key="right"), inner=app) as server:
        clients = [
            openai.OpenAI(api_key=key, base_url=f"{server.url}/v1", max_retries=0)
            for key in ("wrong", "right")
        ]
        with clients[0] as wrong, clients[1] as right:
            for ask in (
                wrong.models.list,
                lambda: wrong.chat.completions.create(model="base", messages=question()),
            ):
                with pytest.raises(openai.AuthenticationError) as caught:
                    ask()
                assert caught.value.code == "invalid_api_key"
            assert right.models.list().data[0].id == "base"
        # A browser sends no key for the page, whatever it is made of.
        page = httpx.get(server.url).text
        assert "page.js" in page
        for path in ("/", "/page.js", "/api.js", "/page.css", "/health"):
            assert httpx.get(server.url + path).status_code == 200
        assert httpx.get(f"{server.url}/examples/0").status_code == 401
    engine.close()


def test_routes_that_are_none(server):
    for method, path, status in [
        ("GET", "/v2", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/page/index.html", 404),
        ("GET", "/../serve.py", 404),
        ("GET", "/%2e%2e/serve.py", 404),
        ("GET", "/health/", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/examples/1", 404),
        ("GET", "/examples/2", 404),
        ("GET", "/examples/-1", 404),
        ("GET", f"/examples/{'9' * 400}", 404),
        ("GET", "/%ed%a0%80", 404),
    ]:
        reply = httpx.request(method, server.url + path)
        told(reply, status)
        assert status == 404 or reply.headers["allow"]


def test_the_page_loads_nothing_from_elsewhere(server):
    for path, kind in [("/", "html"), ("/page.js", "javascript"), ("/page.css", "css")]:
        reply = httpx.get(server.url + path)
        assert (
            kind in reply.headers["content-type"] and reply.headers["cache-control"] == "no-cache"
        )
        policy = reply.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"


def test_health_and_examples(server):
    health = httpx.get(f"{server.url}/health").json()
    assert health == {"status": "ok", "waiting": 0, "running": 0}
    first, second = httpx.get(f"{server.url}/examples").json()["examples"]
    assert first == {"question": "How many?", "answer": "2", "picture": "/examples/0"}
    assert second["picture"] is None and second["question"].endswith("\ud800")
    picture = httpx.get(server.url + first["picture"])
    assert picture.content == EXAMPLES[0].picture
    assert picture.headers["content-type"] == "image/png"


def malformed():
    """Bodies that are wrong, each in its way, with the status they are to get."""
    drawn = random.Random(7)
    good = {"model": MODEL, "messages": question("Hi", ["red"]), "max_tokens": 1}
    whole = json.dumps(good).encode()
    bodies = [(whole[: drawn.randrange(len(whole))], 400) for _ in range(40)]
    bodies += [(drawn.randbytes(drawn.randrange(80)), 400) for _ in range(40)]
    bodies += [(b"[" * 10**5, 400), (b'{"a":' * 10**4, 400), (b"", 400), (b"null", 400)]
    strange = [True, -1, "x", [], {}, [[]], 1e400, [None], {"a": 1}, 0.5, "\ud800", 10**400]
    ranges = {
        "model": [True, -1, [], {}, 0.5],
        "messages": strange,
        "temperature": [True, -1, "x", [], {}, 1e400, 2.1],
        "top_p": [True, -1, "x", [], {}, 1e400, 0, 1.1],
        "n": [True, -1, "x", [], {}, 0.5, 0, 5, 10**400],
        "stream": [-1, "x", [], {}, 0.5],
        "stop": [True, -1, {}, [[]], [None], [""], ["a"] * 5, 0.5],
        "max_tokens": [True, -1, "x", [], {}, 0.5, 0, 1e400],
        "max_completion_tokens": [2, True, "x", [], 0.5],
        "seed": ["x", [], {}, 0.5, 1e400],
        "logprobs": ["x", [], {}, 0.5],
        "top_logprobs": [-1, 21, "x", 1],
        "top_k": [True, -1, "x", [], 0.5, 10**400],
        "repetition_penalty": [True, -1, 0, 11, "x", 1e400],
        "frequency_penalty": [True, 3, "x", 1e400],
        "presence_penalty": [True, -3, "x", 1e400],
        "tools": [[{"type": "function", "function": {"name": "f"}}]],
        "response_format": [{"type": "json_object"}],
    }
    for name, values in ranges.items():
        for value in values:
            status = 404 if name == "model" and isinstance(value, str) else 400
            bodies.append((json.dumps(good | {name: value}).encode(), status))
    parts = [
        {"type": "image_url", "image_url": {"url": url}}
        for url in ["/etc/passwd", "file:///etc/passwd", "data:,x", "http://127.0.0.1/", "a.png"]
    ]
    parts += [{"type": "input_audio", "input_audio": {}}, {"type": "text"}, {"type": "image"}, 3]
    messages = [[{"role": "user", "content": [part]}] for part in parts]
    messages += [[{"role": role, "content": "x"}] for role in ("assistant", "tool", "?", None, 1)]
    messages += [[{"role": "user", "content": "x"}] * 101, question("x", ["red"] * 33)]
    bodies += [(json.dumps(good | {"messages": wrong}).encode(), 400) for wrong in messages]
    return bodies


def test_whatever_is_wrong_is_said_and_the_server_lives_on(server, client, tiny):
    bodies = malformed()
    assert len(bodies) >= 200
    for body, status in bodies:
        error = told(post(server, body), status)
        assert error["type"] == "invalid_request_error"
        assert "Traceback" not in error["message"] and "root:" not in error["message"]
    for method, path in [("PUT", "/v1/models"), ("GET", "/v1/x"), ("PATCH", "/")] * 10:
        told(httpx.request(method, server.url + path), 405 if path != "/v1/x" else 404)
    reply = client.chat.completions.create(model=MODEL, messages=question())
    assert reply.choices[0].message.content == expected(tiny)[0]
    wait_until(lambda: server.engine.load() == (0, 0))
