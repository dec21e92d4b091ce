"""Dialogues to token ids with an exact label mask, for training and for generation alike."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from tuninglab.data.sample import Message, Sample, content_parts
from tuninglab.data.special_tokens import EOC_TOKEN, IMAGE_TOKEN
from tuninglab.errors import UserError
from tuninglab.untrusted import shown

IGNORED = -100  # what torch's cross-entropy leaves out
INSTRUCTION = "### Instruction:\n"  # Multimodal-GPT's section names, without its preamble
RESPONSE = "### Response:\n"
BREAK = "\n\n"
# The same format as transformers renders it, for whoever asks a model in Python. Its text tokenized
# whole may give other ids than piece by piece: see FlamingoProcessor.apply_chat_template.
CHAT_TEMPLATE = """\
{%- if bos_token is defined and bos_token %}{{ bos_token }}{% endif %}
{%- for message in messages %}
  {%- set said = namespace(text=message["content"]) %}
  {%- if said.text is not string %}
    {%- set said.text = "" %}
    {%- for part in message["content"] %}
      {%- set mark = "<image>" if part["type"] == "image" else part["text"] %}
      {%- set said.text = said.text + mark %}
    {%- endfor %}
  {%- endif %}
  {%- set answer = message["role"] in ("assistant", "gpt") %}
  {%- if said.text %}
    {%- if answer %}{{ "### Response:\\n" }}
    {%- elif message["role"] != "system" %}{{ "### Instruction:\\n" }}
    {%- endif %}
    {{- said.text }}
    {%- if answer %}{{ "<|endofchunk|>" }}{% endif %}
    {%- if not (answer and loop.last) %}{{ "\\n\\n" }}{% endif %}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "### Response:\\n" }}{% endif %}
"""
# With the tokenizer's length, because tokens may be added to it later. Finding the 262 special
# tokens of LLaMA 3 anew for each dialogue doubled the time of tokenizing.
_RESERVED: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, set[int]]] = WeakKeyDictionary()


class Encoded(NamedTuple):
    """A dialogue as ids, and its labels (IGNORED outside the answers)."""

    input_ids: list[int]
    labels: list[int]


def encode_dialogue(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """A dialogue as ids; labels only on each answer and the `<|endofchunk|>` that ends it.

    Every piece is tokenized apart and the ids are joined, so that no token straddles the border
    between prompt and answer (a prompt measured by tokenizing it alone can be off by a merge).

    Raises:
        ValueError: the tokenizer lacks `<image>` or `<|endofchunk|>`, or a content is malformed.
    """
    special = {
        "image": _special_id(IMAGE_TOKEN, tokenizer),
        "end": _special_id(EOC_TOKEN, tokenizer),
    }
    # By hand: whether add_special_tokens adds BOS, EOS or both differs between tokenizers.
    bos = tokenizer.bos_token_id
    ids = [bos] if isinstance(bos, int) else []
    labels = [IGNORED] * len(ids)
    for kind, text in _spans(messages):
        # Only a piece of these two kinds can become a special token.
        piece = [special[kind]] if kind in special else text_ids(text, tokenizer)
        ids += piece
        labels += piece if kind in ("answer", "end") else [IGNORED] * len(piece)
    return Encoded(ids, labels)


def encode_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids up to where the answer to the last user message starts, as `encode_dialogue` has it.

    Raises:
        ValueError: the last message is not the user's; otherwise as `encode_dialogue`.
    """
    if not messages or messages[-1]["role"] != "user":
        last = messages[-1]["role"] if messages else "nobody"
        raise ValueError(f"the last message is from {last}; expected the user's, to be answered")
    return encode_dialogue(messages, tokenizer).input_ids + text_ids(RESPONSE, tokenizer)


def dialogue_tokens(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokens of a whole dialogue."""
    return len(encode_dialogue(sample.messages, tokenizer).input_ids)


def answer_ids(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of a dialogue that are learned: its answers, each with its end."""
    labels = encode_dialogue(sample.messages, tokenizer).labels
    return [label for label in labels if label != IGNORED]


def decode_answer(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of generated ids (without the prompt), up to the first token that ends an answer."""
    end_of_chunk = tokenizer.convert_tokens_to_ids(EOC_TOKEN)
    # A model that was tuned little may still end with its own token instead of ours.
    ends = [end_of_chunk, tokenizer.eos_token_id, tokenizer.pad_token_id]
    length = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    # Cleaning up would turn "a ." into "a.": answers are compared as they were written.
    text = tokenizer.decode(
        list(ids[:length]), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return str(text).strip()


def _spans(messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
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
            yield "end", EOC_TOKEN
        # What follows the last answer is never seen: generation stops at the end token.
        if role != "assistant" or number < len(messages):
            yield "text", BREAK


def text_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a text, in which `</s>` and the like are text and become no special token."""
    reserved = _reserved(tokenizer)
    ids = _tokenize(text, tokenizer)
    if reserved.isdisjoint(ids):
        return ids
    # What split_special_tokens does not cover: an `<image>` added as an ordinary token, BPE
    # merges or Unigram pieces that spell "<s>", a normalizer that turns "＜s＞" into "<s>".
    return [
        part
        for index in ids
        for part in (_spelled(index, tokenizer) if index in reserved else [index])
    ]


def _reserved(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids that no text may become."""
    length, reserved = _RESERVED.get(tokenizer, (-1, set()))
    if length != len(tokenizer):
        special = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
        ours: Any = tokenizer.convert_tokens_to_ids([IMAGE_TOKEN, EOC_TOKEN])
        # <unk> is special too, but also what a rare character rightly becomes.
        reserved = {*special, *ours} - {None, tokenizer.unk_token_id}  # pyright: ignore
        _RESERVED[tokenizer] = len(tokenizer), reserved
    return reserved


def _special_id(token: str, tokenizer: PreTrainedTokenizerBase) -> int:
    index = _id(token, tokenizer)
    if index is None:
        raise ValueError(
            f"the tokenizer has no token {token}; load the model with load_flamingo or "
            "flamingo_from_parts, which add it"
        )
    return index


def _spelled(index: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A token written out in the ids of its single characters."""
    ids = []
    for character in str(tokenizer.convert_ids_to_tokens(index)):
        # Looked up, not tokenized: LLaMA-like tokenizers would put a space before each.
        known = _id(character, tokenizer)
        ids += _tokenize(character, tokenizer) if known is None else [known]
    return ids


def _id(token: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    index = tokenizer.convert_tokens_to_ids(token)
    return index if isinstance(index, int) and index != tokenizer.unk_token_id else None


def _tokenize(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    # Without verbose=False a long text warns about model_max_length; lengths are checked apart.
    try:
        encoding = tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
    except BaseException as error:
        # A panic of the library, e.g. of a regular expression in the tokenizer's file that explodes
        # on this text: no Exception, and of a class that cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path} breaks on {shown(repr(text))}: {error}"
        ) from error
    return encoding["input_ids"]
