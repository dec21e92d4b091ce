"""One conversation with a served model: the turns so far, their pictures, and the next answer."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tuninglab.data.images import load_image
from tuninglab.data.picture_files import open_picture
from tuninglab.data.sample import Message
from tuninglab.disk import write_whole
from tuninglab.errors import UserError
from tuninglab.serving.engine import Engine
from tuninglab.serving.exchange import Done, Event, Failed, Request, Text
from tuninglab.serving.reading import LongPromptError, ServedModel


class Conversation:
    """Turns of a dialogue; each question is answered with all turns and pictures before it.

    Args:
        model: a Flamingo, or one wrapped by PEFT, in evaluation mode.
        processor: its processor.
        max_new_tokens: longest answer.
        system: a message before all turns, which `reset` keeps.

    Attributes:
        engine: what answers.
        asked: name of the served model that is asked; the engine's first, until another is set.
    """

    def __init__(
        self, model: Any, processor: Any, max_new_tokens: int = 64, system: str | None = None
    ):
        # As it is: with the adapter that is on, or with none.
        held = getattr(model, "held_adapters", None)
        served = ServedModel(None if held is None else held.active, processor.prompt)
        self._begin(Engine(model, processor, {"model": served}, max_new_tokens), system)

    @classmethod
    def on(cls, engine: Engine, system: str | None = None) -> "Conversation":
        """A conversation with what an engine serves."""
        made = cls.__new__(cls)
        made._begin(engine, system)
        return made

    def _begin(self, engine: Engine, system: str | None) -> None:
        self.engine, self.system, self.asked = engine, system, engine.models[0]
        self.reset()

    def reset(self) -> None:
        """Forget all turns and pictures."""
        self.messages: list[Message] = []
        if self.system is not None:
            content = [{"type": "text", "text": self.system}]
            self.messages.append({"role": "system", "content": content})
        # Path and content of each.
        self.pictures: list[tuple[str, bytes]] = []
        # Shown, but not yet asked about: they stand before the text of the next question.
        self.waiting: list[tuple[str, bytes]] = []

    def show(self, path: str) -> None:
        """Show a picture; it goes with the next question.

        Raises:
            UserError: the picture is missing or cannot be read.
        """
        path = os.path.expanduser(path)
        if not os.path.exists(path):
            raise UserError(f"There is no picture {path}. Check the path.")
        # Told now, by its name, and not with the next question.
        load_image(path)
        with open_picture(path) as file:
            self.waiting.append((path, file.read()))

    def ask(self, question: str, on_text: Callable[[str], Any] | None = None) -> str:
        """Answer a question, greedily; a question that cannot be answered leaves no turn behind.

        Args:
            question: what is asked, about the pictures shown so far.
            on_text: is called with each bit of the answer as soon as it is known; joined, they
                are the answer.

        Raises:
            UserError: the conversation has grown longer than the model can read, or the model's
                own settings do not let it answer.
        """
        parts = [{"type": "image"} for _ in self.waiting]
        turn = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
        pictures = [*self.pictures, *self.waiting]
        request = Request(self.asked, [*self.messages, turn], [file for _, file in pictures])
        answer = ""
        for text in self._answer(request):
            answer += text
            if on_text is not None:
                on_text(text)
        content = [{"type": "text", "text": answer}]
        # Only now: a failed question, or Ctrl-C during an answer, leaves the dialogue as it was.
        self.messages += [turn, {"role": "assistant", "content": content}]
        self.pictures, self.waiting = pictures, []
        return answer

    def save(self, path: str) -> None:
        """Write the dialogue as a record that `finetune --data` reads.

        Raises:
            UserError: nothing was said yet, or the file exists.
        """
        place = Path(path).expanduser()
        if not any(message["role"] == "assistant" for message in self.messages):
            raise UserError("Nothing was answered yet: there is no dialogue to save.")
        if place.exists():
            raise UserError(f"{place} exists; give another name.")
        images = [os.path.abspath(name) for name, _ in self.pictures]
        record = {"messages": self.messages, "images": images}
        write_whole(place, json.dumps([record], ensure_ascii=False, indent=1) + "\n")

    def _answer(self, request: Request) -> Iterator[str]:
        events: SimpleQueue[Event] = SimpleQueue()
        answering = self.engine.submit([request], lambda _, event: events.put(event))
        try:
            while not isinstance(event := events.get(), Done):
                if isinstance(event, Text):
                    yield event.text
                elif isinstance(event, Failed):
                    raise event.error
        except LongPromptError as error:
            raise UserError(f"{error} /reset forgets what was said.") from error
        finally:
            # Also where whoever reads is interrupted; at its end this does nothing.
            answering.cancel()
