"""Dialogues to token ids with an exact label mask, for training and for generation alike."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from tuninglab.data.sample import IMAGE_MARK, Message, Sample, content_parts

END_OF_CHUNK = "<|endofchunk|>"
IGNORED = -100  # what torch's cross-entropy leaves out
INSTRUCTION = "### Instruction:\n"  # Multimodal-GPT's section names, without its preamble
RESPONSE = "### Response:\n"
BREAK = "\n\n"


class Encoded(NamedTuple):
    """A dialogue as ids, its labels (IGNORED outside the answers) and its number of pictures."""

    input_ids: list[int]
    labels: list[int]
    image_count: int


def encode_dialogue(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """A dialogue as ids; labels only on each answer and the `<|endofchunk|>` that ends it.

    Every piece is tokenized apart and the ids are joined, so that no token straddles the border
    between prompt and answer (a prompt measured by tokenizing it alone can be off by a merge).

    Raises:
        ValueError: the tokenizer lacks `<image>` or `<|endofchunk|>`, or a content is malformed.
    """
    vocabulary = _Vocabulary(tokenizer)
    ids = vocabulary.start()
    labels = [IGNORED] * len(ids)
    images = 0
    for kind, text in _pieces(messages):
        piece = vocabulary.encode(kind, text)
        ids += piece
        labels += piece if kind in ("answer", "end") else [IGNORED] * len(piece)
        images += kind == "image"
    return Encoded(ids, labels, images)


def encode_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids up to where the answer to the last user message starts, as `encode_dialogue` has it.

    Raises:
        ValueError: the last message is not the user's; otherwise as `encode_dialogue`.
    """
    if not messages or messages[-1]["role"] != "user":
        last = messages[-1]["role"] if messages else "nobody"
        raise ValueError(f"the last message is from {last}; expected the user's, to be answered")
    vocabulary = _Vocabulary(tokenizer)
    return encode_dialogue(messages, tokenizer).input_ids + vocabulary.encode("text", RESPONSE)


def dialogue_tokens(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokens of a whole dialogue."""
    return len(encode_dialogue(sample.messages, tokenizer).input_ids)


def decode_answer(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of generated ids (without the prompt), up to the first token that ends an answer."""
    end_of_chunk = tokenizer.convert_tokens_to_ids(END_OF_CHUNK)
    # A model that was tuned little may still end with its own token instead of ours.
    ends = [end_of_chunk, tokenizer.eos_token_id, tokenizer.pad_token_id]
    length = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    # Cleaning up would turn "a ." into "a.": answers are compared as they were written.
    text = tokenizer.decode(
        list(ids[:length]), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return str(text).strip()


def _pieces(messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
    """The prompt format, as (kind, text): kind is "text", "image", "answer" or "end"."""
    for number, message in enumerate(messages, 1):
        role, parts = message["role"], content_parts(message["content"])
        # Exporters write an empty system message where there is none; it leaves no trace.
        if not parts:
            continue
        if role != "system":
            yield "text", INSTRUCTION if role == "user" else RESPONSE
        for part in parts:
            kind = "answer" if role == "assistant" else "text"
            yield part["type"] if part["type"] == "image" else kind, part.get("text", "")
        if role == "assistant":
            yield "end", END_OF_CHUNK
        # What follows the last answer is never seen: generation stops at the end token.
        if role != "assistant" or number < len(messages):
            yield "text", BREAK


class _Vocabulary:
    """The tokenizer's ids for the pieces of a prompt."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.image = self._special_id(IMAGE_MARK)
        self.end = self._special_id(END_OF_CHUNK)
        # <unk> is special too, but also what a rare character rightly becomes.
        self.reserved = {self.image, self.end} | {
            index
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special and index != tokenizer.unk_token_id
        }

    def _special_id(self, token: str) -> int:
        index = self._id(token)
        if index is None:
            raise ValueError(
                f"the tokenizer has no token {token}; load the model with load_flamingo or "
                "flamingo_from_parts, which add it"
            )
        return index

    def start(self) -> list[int]:
        """The beginning of a sequence: the BOS token where the tokenizer has one."""
        # By hand: whether add_special_tokens adds BOS, EOS or both differs between tokenizers.
        bos = self.tokenizer.bos_token_id
        return [bos] if isinstance(bos, int) else []

    def encode(self, kind: str, text: str) -> list[int]:
        """The ids of one piece; only an "image" or "end" piece can become a special token."""
        if kind == "image":
            return [self.image]
        return [self.end] if kind == "end" else self._text_ids(text)

    def _text_ids(self, text: str) -> list[int]:
        ids = self._tokenize(text)
        if self.reserved.isdisjoint(ids):
            return ids
        # What split_special_tokens does not cover: an `<image>` added as an ordinary token, BPE
        # merges or Unigram pieces that spell "<s>", a normalizer that turns "＜s＞" into "<s>".
        return [
            part
            for index in ids
            for part in (self._spelled(index) if index in self.reserved else [index])
        ]

    def _spelled(self, index: int) -> list[int]:
        """A token written out in the ids of its single characters."""
        ids = []
        for character in str(self.tokenizer.convert_ids_to_tokens(index)):
            # Looked up, not tokenized: LLaMA-like tokenizers would put a space before each.
            known = self._id(character)
            ids += self._tokenize(character) if known is None else [known]
        return ids

    def _id(self, token: str) -> int | None:
        index = self.tokenizer.convert_tokens_to_ids(token)
        return index if isinstance(index, int) and index != self.tokenizer.unk_token_id else None

    def _tokenize(self, text: str) -> list[int]:
        # Without verbose=False a long text warns about model_max_length; lengths are checked apart.
        encoding = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        return encoding["input_ids"]
