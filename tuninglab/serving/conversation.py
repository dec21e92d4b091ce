"""One conversation with a Flamingo: the turns so far, their pictures, and the next answer."""

import os
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from tuninglab.data.batches import image_pixels
from tuninglab.data.images import load_image
from tuninglab.data.prompt import decode_answer, encode_prompt
from tuninglab.data.sample import Message
from tuninglab.data.tokens import special_id
from tuninglab.errors import UserError
from tuninglab.models.generation import ending_with
from tuninglab.models.parts import first_lines, is_readers
from tuninglab.serving.streaming import AnswerStreamer


class Conversation:
    """Turns of a dialogue; each question is answered with all turns and pictures before it.

    Args:
        model: a Flamingo, or one wrapped by PEFT, in evaluation mode.
        processor: its processor.
        max_new_tokens: longest answer.
        system: a message before all turns, which `reset` keeps.

    Raises:
        UserError: the processor's chat template loses or changes what is said.
    """

    def __init__(
        self, model: Any, processor: Any, max_new_tokens: int = 64, system: str | None = None
    ):
        self.model = model
        self.processor = processor
        self.max_new_tokens = max_new_tokens
        self.system = system
        self.prompt = processor.prompt
        self.reset()

    def reset(self) -> None:
        """Forget all turns and pictures."""
        self.messages: list[Message] = []
        if self.system is not None:
            content = [{"type": "text", "text": self.system}]
            self.messages.append({"role": "system", "content": content})
        self.pictures: list[Image.Image] = []
        # Shown, but not yet asked about: they stand before the text of the next question.
        self.waiting: list[Image.Image] = []

    def show(self, path: str) -> None:
        """Show a picture; it goes with the next question.

        Raises:
            UserError: the picture is missing or cannot be read.
        """
        path = os.path.expanduser(path)
        if not os.path.exists(path):
            raise UserError(f"There is no picture {path}. Check the path.")
        self.waiting.append(load_image(path))

    @torch.inference_mode()
    def ask(self, question: str, on_text: Callable[[str], Any] | None = None) -> str:
        """Answer a question, greedily; a question that cannot be answered leaves no turn behind.

        Args:
            question: what is asked, about the pictures shown so far.
            on_text: is called with each piece of the answer as soon as it is known; joined, the
                pieces are the answer.

        Raises:
            UserError: the conversation has grown longer than the model can read, or the model's
                own settings do not let it answer.
        """
        parts = [{"type": "image"} for _ in self.waiting]
        turn = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
        tokenizer = self.processor.tokenizer
        # The whole dialogue is encoded anew for each answer: little work beside generating, and
        # the prompt is exactly the one that training used.
        try:
            ids = encode_prompt([*self.messages, turn], tokenizer, self.prompt)
        except ValueError as error:
            raise UserError(f"This model was tuned otherwise: {error}") from error
        pictures = [*self.pictures, *self.waiting]
        inputs: dict[str, Any] = {"max_new_tokens": self._room(len(ids)), "do_sample": False}
        inputs |= ending_with(self.model, special_id(self.prompt.end, tokenizer))
        device = next(self.model.parameters()).device
        pixels = image_pixels(pictures, self.processor.image_processor)
        if pixels is not None:
            inputs["pixel_values"] = pixels.unsqueeze(0).to(device)  # (B=1, M, F=1, 3, H, W)
        if on_text is not None:
            inputs["streamer"] = AnswerStreamer(tokenizer, on_text, self.prompt)
        input_ids = torch.tensor([ids], device=device)
        try:
            output = self.model.generate(
                input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **inputs
            )
        except Exception as error:
            if not is_readers(error):
                raise
            raise UserError(
                f"{self.model.config.name_or_path} cannot answer: {first_lines(error)}\nSee its "
                "generation_config.json: what stands there holds for every answer"
            ) from error
        answer = decode_answer(output[0, len(ids) :].tolist(), tokenizer, self.prompt)
        content = [{"type": "text", "text": answer}]
        # Only now: a failed question, or Ctrl-C during an answer, leaves the dialogue as it was.
        self.messages += [turn, {"role": "assistant", "content": content}]
        self.pictures, self.waiting = pictures, []
        return answer

    def _room(self, tokens: int) -> int:
        """Tokens that the answer may have after a prompt of so many tokens."""
        text_config = self.model.config.get_text_config(decoder=True)
        longest = getattr(text_config, "max_position_embeddings", None)
        # Language models without learned or rotary limits (ALiBi) name none.
        if longest is None:
            return self.max_new_tokens
        if tokens >= longest:
            raise UserError(
                f"With this question the conversation has {tokens} tokens; the model reads at most "
                f"{longest}. Start anew with /reset, or ask a shorter question."
            )
        return min(self.max_new_tokens, longest - tokens)
