"""What clients send and what they make of replies, without a server between."""

import base64
import io
import json

import httpx
import openai
from langchain_openai import ChatOpenAI
from PIL import Image

EMPTY = {
    "id": "chatcmpl-0",
    "object": "chat.completion",
    "created": 0,
    "model": "tuned",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": ""},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ],
}


class Wire:
    """A connection that keeps what is sent, and replies with what it was given."""

    def __init__(self, content: bytes = json.dumps(EMPTY).encode(), kind="application/json"):
        self.content, self.kind, self.bodies = content, kind, []
        http = httpx.Client(transport=httpx.MockTransport(self._reply))
        self.given = {"api_key": "k", "base_url": "http://test/v1", "http_client": http}

    def _reply(self, request):
        self.bodies.append(request.content)
        return httpx.Response(200, content=self.content, headers={"content-type": self.kind})

    def openai(self):
        return openai.OpenAI(**self.given, max_retries=0)

    def langchain(self, **settings):
        return ChatOpenAI(**self.given, model="tuned", max_retries=0, **settings)


def picture(kind="PNG", colour="red", size=(20, 16)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def base64_of(file: bytes) -> str:
    return base64.b64encode(file).decode()


def data_url(file: bytes) -> str:
    # What a URL says of its kind is not believed.
    return f"data:image/png;base64,{base64_of(file)}"


def image_url(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
