"""Texts to token ids: what a user wrote becomes no special token, what a template wrote may."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from tuninglab.data.special_tokens import EOC_TOKEN, IMAGE_TOKEN
from tuninglab.errors import UserError
from tuninglab.untrusted import shown

# So many texts the library shares out over threads; of fewer, waking these is most of the time.
MANY = 64
# With the tokenizer's length, because tokens may be added to it later. Finding the 262 special
# tokens of LLaMA 3 anew for each dialogue doubled the time of tokenizing.
_RESERVED: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, set[int]]] = WeakKeyDictionary()


def text_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a text, in which `</s>` and the like are text and become no special token."""
    return texts_ids([text], tokenizer)[0]


def texts_ids(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, written: Sequence[str] = ()
) -> list[list[int]]:
    """As `text_ids` of each text, in one call of the tokenizer.

    Args:
        texts: one or more.
        tokenizer: of the model.
        written: further tokens that only a template may write, special or not.
    """
    more = (_id(token, tokenizer) for token in written)
    reserved = _reserved(tokenizer) | {index for index in more if index is not None}
    # What split_special_tokens does not cover: an `<image>` added as an ordinary token, BPE
    # merges or Unigram pieces that spell "<s>", a normalizer that turns "＜s＞" into "<s>".
    return [
        ids if reserved.isdisjoint(ids) else _without(reserved, ids, tokenizer)
        for ids in _tokenize(texts, tokenizer)
    ]


def literals_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The ids of texts that a template wrote, in which `<|im_start|>` and the like are tokens."""
    return _tokenize(texts, tokenizer, split_special_tokens=False)


def special_id(token: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of one of the tokens that a prompt is made of.

    Raises:
        ValueError: the tokenizer lacks it.
    """
    index = _id(token, tokenizer)
    if index is None:
        remedy = (
            "; load the model with load_flamingo or flamingo_from_parts, which add it"
            if token in (IMAGE_TOKEN, EOC_TOKEN)
            else ""
        )
        raise ValueError(f"the tokenizer has no token {token}{remedy}")
    return index


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


def _without(
    reserved: set[int], ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    return [
        part
        for index in ids
        for part in (_spelled(index, tokenizer) if index in reserved else [index])
    ]


def _spelled(index: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A token written out in the ids of its single characters."""
    ids = []
    for character in str(tokenizer.convert_ids_to_tokens(index)):
        # Looked up, not tokenized: LLaMA-like tokenizers would put a space before each.
        known = _id(character, tokenizer)
        ids += _tokenize([character], tokenizer)[0] if known is None else [known]
    return ids


def _id(token: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    index = tokenizer.convert_tokens_to_ids(token)
    return index if isinstance(index, int) and index != tokenizer.unk_token_id else None


def _tokenize(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, split_special_tokens: bool = True
) -> list[list[int]]:
    if 1 < len(texts) < MANY:
        return [_tokenize([text], tokenizer, split_special_tokens)[0] for text in texts]
    # Without verbose=False a long text warns about model_max_length; lengths are checked apart.
    options: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
    # Nobody reads these, and they cost a third of the time of many texts.
    options |= {"return_attention_mask": False, "return_token_type_ids": False}
    try:
        encoding = tokenizer(list(texts), split_special_tokens=split_special_tokens, **options)
    except BaseException as error:
        # A panic of the library, e.g. of a regular expression in the tokenizer's file that explodes
        # on this text: no Exception, and of a class that cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        if len(texts) > 1:
            # One by one, the text that it breaks on is found.
            return [_tokenize([text], tokenizer, split_special_tokens)[0] for text in texts]
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path} breaks on {shown(repr(texts[0]))}: {error}"
        ) from error
    return encoding["input_ids"]
