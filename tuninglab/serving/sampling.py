"""How one row's next token is chosen, and how probable it and others were."""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tuninglab.errors import UserError
from tuninglab.models.parts import first_lines, is_readers
from tuninglab.serving.exchange import Candidate, Sampling, Token
from tuninglab.serving.streaming import BYTE_TOKEN
from tuninglab.untrusted import shown

# How vocabularies of GPT-2's kind write bytes, and those of SentencePiece a blank.
BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}
BLANK = "\u2581"
LETTER = "\u0120"  # GPT-2's for the byte of a blank


class Chooser:
    """The next token of one row, by the model's own generation settings and those of a request.

    Args:
        model: a Flamingo; what its generation_config says beside chance holds for every answer.
        sampling: of the request.
        prompt_tokens: of the row; penalties for the answer alone start behind them.

    Attributes:
        stop: texts that end each answer by the model's own settings.

    Raises:
        UserError: the model's own settings do not let it answer.
    """

    def __init__(self, model: Any, sampling: Sampling, prompt_tokens: int):
        self.name = model.config.name_or_path
        self.image_token_id, self.device = model.config.image_token_id, model.device
        self.draws = sampling.temperature > 0
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)
        settings = copy.deepcopy(model.generation_config)
        settings.do_sample = self.draws
        settings.temperature, settings.top_p = sampling.temperature, sampling.top_p
        settings.top_k = sampling.top_k
        if sampling.repetition_penalty != 1.0:
            settings.repetition_penalty = sampling.repetition_penalty
        own = LogitsProcessorList()
        if sampling.frequency_penalty or sampling.presence_penalty:
            own.append(AnswerPenalties(sampling, prompt_tokens))
        with self._told():
            # What `generate` itself asks; the alternative would be a list of our own of all that a
            # generation_config may say.
            model._prepare_special_tokens(settings, device=model.device, batch_size=1)
            self.processors = model._get_logits_processor(
                settings, prompt_tokens, logits_processor=own, device=model.device
            )
        stop: Any = settings.stop_strings or []
        stop = [stop] if isinstance(stop, str) else stop
        if not isinstance(stop, list) or not all(isinstance(text, str) and text for text in stop):
            raise UserError(
                f"{self.name} cannot answer: stop_strings in its generation_config.json is "
                f"{shown(repr(stop))}; expected texts"
            )
        self.stop = tuple(stop)

    def choose(self, ids: Sequence[int], logits: Tensor) -> int:
        """The token that follows ids (T), by their logits (V,)."""
        scores = logits.float()[None].clone()
        # There would be no image to it.
        scores[:, self.image_token_id] = -torch.inf
        if self.processors:
            with self._told():
                scores = self.processors(torch.tensor([ids], device=logits.device), scores)
        if not self.draws:
            return int(scores.argmax(-1))
        # On the CPU, so that a seed draws the same on every device.
        probabilities = scores.softmax(-1).cpu()
        return int(torch.multinomial(probabilities, 1, generator=self.generator))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say where settings stand that transformers refuses: some only once they are applied."""
        try:
            yield
        except Exception as error:
            if not is_readers(error):
                raise
            raise UserError(
                f"{self.name} cannot answer: {first_lines(error)}\nSee its "
                "generation_config.json: what stands there holds for every answer"
            ) from error


class AnswerPenalties(LogitsProcessor):
    """OpenAI's: `frequency_penalty` times how often the answer has a token, and `presence_penalty`.

    Taken off the logits: https://platform.openai.com/docs/api-reference/chat/create
    """

    def __init__(self, sampling: Sampling, prompt_tokens: int):
        self.frequency, self.presence = sampling.frequency_penalty, sampling.presence_penalty
        self.prompt_tokens = prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B=1, V) for what follows input_ids (B=1, T)."""
        counts = Counter(input_ids[0, self.prompt_tokens :].tolist())
        for token, count in counts.items():
            scores[0, token] -= self.frequency * count + self.presence
        return scores


class Vocabulary:
    """Tokens as clients are told them.

    Args:
        tokenizer: the model's tokenizer.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.has_letters_for_bytes = tokenizer.convert_tokens_to_string([LETTER]) == " "

    def told(self, token: int, logits: Tensor, count: int) -> Token:
        """A token with its log-probability by logits (V,), and the `count` most probable ones."""
        log_probs = logits.float().log_softmax(-1)
        best = log_probs.topk(count)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        top = tuple(Candidate(*self._written(index), logprob=logprob) for index, logprob in pairs)
        return Token(*self._written(token), logprob=float(log_probs[token]), top=top)

    def _written(self, index: int) -> tuple[str, bytes]:
        """A token as text, and the bytes of which an answer is made."""
        token = str(self.tokenizer.convert_ids_to_tokens(index))
        if byte := BYTE_TOKEN.fullmatch(token):
            written = bytes([int(byte[1], 16)])
        elif self.has_letters_for_bytes and all(letter in BYTES for letter in token):
            written = bytes(BYTES[letter] for letter in token)
        else:
            written = token.replace(BLANK, " ").encode()
        return written.decode("utf-8", "replace"), written
