"""Questions to an engine, and its answers; what `generate` says to each alone."""

import io
import queue
import time

from PIL import Image

from tuninglab.data.prompt import decode_answer
from tuninglab.data.sample import normal_messages
from tuninglab.serving.exchange import Done, Failed, Request, Text

PATIENCE_S = 120  # of a test, for what takes no time


def picture_file(colour, side=20) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side + 4), colour).save(file, "PNG")
    return file.getvalue()


def asked(text="What is it?", colours=(), model="base", before=(), **options) -> Request:
    content = [{"type": "image"} for _ in colours]
    content += [{"type": "text", "text": text}] if text else []
    messages = normal_messages([*before, {"role": "user", "content": content}])
    return Request(model, messages, [picture_file(colour) for colour in colours], **options)


class Answers:
    """The events of requests that are under way."""

    def __init__(self, engine, *requests):
        self.requests, self.events = requests, queue.Queue()
        self.told = [[] for _ in requests]
        self.answering = engine.submit(requests, lambda *told: self.events.put(told))

    def next(self):
        number, event = self.events.get(timeout=PATIENCE_S)
        self.told[number].append(event)
        return number, event

    def wait(self):
        """All answers, as (text, how it ended); an error instead where one failed."""
        while not all(told and isinstance(told[-1], Done | Failed) for told in self.told):
            self.next()
        assert self.events.empty()
        return [self.answer(number) for number in range(len(self.requests))]

    def answer(self, number):
        *texts, last = self.told[number]
        assert all(isinstance(text, Text) for text in texts)
        return (
            ("".join(text.text for text in texts), last) if isinstance(last, Done) else last.error
        )


def answers(engine, *requests):
    return Answers(engine, *requests).wait()


def texts(engine, *requests):
    return [text for text, _ in answers(engine, *requests)]


def wait_until(holds):
    """Until something holds; fails where it never does."""
    until_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def generated(model, processor, request, **options):
    """What transformers' `generate` makes of a request: its text, and the tokens of the answer."""
    pictures = [Image.open(io.BytesIO(file)) for file in request.pictures]
    inputs = processor.apply_chat_template(
        [dict(message) for message in request.messages],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        images=pictures,
    )
    settings = {"max_new_tokens": request.max_new_tokens, "do_sample": False} | options
    output = model.generate(**inputs, **settings)
    new = output[0, inputs["input_ids"].shape[1] :].tolist()
    return decode_answer(new, processor.tokenizer, processor.prompt), new
