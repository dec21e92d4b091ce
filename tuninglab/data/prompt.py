"""Dialogues to token ids with an exact label mask, for training and for generation alike."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

from transformers import PreTrainedTokenizerBase

from tuninglab.config.prompts import CHAT_TEMPLATE, PROMPTS, is_template
from tuninglab.data.prompt_formats import MULTIMODAL_GPT, NAMED, TUNINGLAB, Prompt, Span
from tuninglab.data.prompt_templates import Template
from tuninglab.data.sample import Message, Sample
from tuninglab.data.sources import fingerprint
from tuninglab.data.special_tokens import EOC_TOKEN, IMAGE_TOKEN
from tuninglab.data.tokens import literals_ids, special_id, texts_ids
from tuninglab.errors import UserError
from tuninglab.untrusted import shown

IGNORED = -100  # what torch's cross-entropy leaves out
COUNTED_TOGETHER = 2000  # dialogues whose texts are held at a time
# One higher where the same samples come to have other counts.
COUNTED_AS = 1
Piece: TypeAlias = tuple[str, str]  # kind and text of spans that have the same ids


class Encoded(NamedTuple):
    """A dialogue as ids, and its labels (IGNORED outside the answers)."""

    input_ids: list[int]
    labels: list[int]


class Counted(NamedTuple):
    """How many tokens a dialogue has, how many of these are learned, and how many are `unknown`."""

    tokens: int
    learned: int
    unknown: int


def make_prompt(choice: str, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """The prompt that a name or the text of a Jinja template stands for.

    Raises:
        UserError: it is neither, the tokenizer lacks what it needs, or the template would lose or
            change what is said.
    """
    choice = _own_template(tokenizer) if choice == CHAT_TEMPLATE else choice
    named = next((p for p in NAMED.values() if choice in (p.choice, p.chat_template)), None)
    if named is None:
        if not is_template(choice):
            raise UserError(
                f"the prompt is {shown(repr(choice))}; expected one of {', '.join(PROMPTS)}, or "
                "the text of a Jinja template"
            )
        return Template.of(choice, tokenizer)
    if named != MULTIMODAL_GPT:
        return named
    end = tokenizer.eos_token
    if not isinstance(end, str):
        raise UserError(
            f"--prompt {named.choice} ends answers with the tokenizer's end token (eos_token), and "
            "this one has none. Choose another prompt."
        )
    return replace(named, end=end)


def encode_dialogue(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, prompt: Prompt = TUNINGLAB
) -> Encoded:
    """A dialogue as ids; labels only on each answer that is learned and the token that ends it.

    Every piece is tokenized apart and the ids are joined, so that no token straddles the border
    between prompt and answer (a prompt measured by tokenizing it alone can be off by a merge).

    Raises:
        ValueError: the tokenizer lacks a token of the prompt, a content is malformed, or the prompt
            has no place for it.
    """
    return _encoded(prompt.spans(messages), tokenizer, prompt)


def encode_prompt(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, prompt: Prompt = TUNINGLAB
) -> list[int]:
    """The ids up to where the answer to the last user message starts, as `encode_dialogue` has it.

    Raises:
        ValueError: the last message is not the user's; otherwise as `encode_dialogue`.
    """
    if not messages or messages[-1]["role"] != "user":
        last = messages[-1]["role"] if messages else "nobody"
        raise ValueError(f"the last message is from {last}; expected the user's, to be answered")
    return _encoded(prompt.spans(messages, ask=True), tokenizer, prompt).input_ids


def dialogue_tokens(
    sample: Sample, tokenizer: PreTrainedTokenizerBase, prompt: Prompt = TUNINGLAB
) -> int:
    """The tokens of a whole dialogue.

    Raises:
        UserError: the prompt has no place for something in it.
    """
    with named(sample):
        return len(encode_dialogue(sample.messages, tokenizer, prompt).input_ids)


def count_tokens(
    samples: Iterable[Sample], tokenizer: PreTrainedTokenizerBase, prompt: Prompt = TUNINGLAB
) -> list[int]:
    """`dialogue_tokens` of many samples, as `count_kinds` counts them.

    Raises:
        UserError: as `dialogue_tokens`.
    """
    return [counted.tokens for counted in count_kinds(samples, tokenizer, prompt)]


def count_kinds(
    samples: Iterable[Sample],
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt = TUNINGLAB,
    unknown: int | None = None,
) -> list[Counted]:
    """The tokens of many samples, in one call of the tokenizer for thousands of them.

    A text that stands in several, as an answer may, is tokenized once. `unknown` is the id of what
    the tokenizer does not know; None: nothing is.

    Raises:
        UserError: as `dialogue_tokens`.
    """
    counts: list[Counted] = []
    start = len(_start(tokenizer, prompt))
    for known, dialogues in _together(samples, prompt):
        made = _ids_of(known, tokenizer, prompt)
        lengths = [len(ids) for ids in made]
        strange = [0 if unknown is None else ids.count(unknown) for ids in made]
        for row in dialogues:
            tokens = start + sum(lengths[number] for number, _, _ in row)
            learned = sum(
                len(_learned(kind, made[number], tokenizer, prompt))
                if kind == "ending"
                else lengths[number]
                for number, kind, learns in row
                if learns
            )
            counts.append(Counted(tokens, learned, sum(strange[n] for n, _, _ in row)))
    return counts


def _together(
    samples: Iterable[Sample], prompt: Prompt
) -> Iterator[tuple[dict[Piece, int], list[list[tuple[int, str, bool]]]]]:
    """Some thousand samples at a time: their texts, each once, and the spans of each sample.

    Of a span there is the number of its text, its kind, and whether it is learned. The spans
    themselves are let go of at once: held by the thousand, they keep the garbage collector busy.
    """
    rest = iter(samples)
    while some := list(islice(rest, COUNTED_TOGETHER)):
        known: dict[Piece, int] = {}
        dialogues: list[list[tuple[int, str, bool]]] = []
        for sample in some:
            with named(sample):
                spans = prompt.spans(sample.messages)
            dialogues.append(
                [(known.setdefault(_piece(s), len(known)), s.kind, s.learned) for s in spans]
            )
        yield known, dialogues


def counting_key(tokenizer: PreTrainedTokenizerBase, prompt: Prompt = TUNINGLAB) -> str | None:
    """All that `count_tokens` depends on beside the samples; None where that cannot be told."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    said = (backend.to_str(), tokenizer.bos_token_id, prompt.choice, prompt.chat_template)
    return fingerprint([COUNTED_AS, *said])


def answer_ids(
    samples: Iterable[Sample], tokenizer: PreTrainedTokenizerBase, prompt: Prompt = TUNINGLAB
) -> list[list[int]]:
    """The tokens of each dialogue that are learned: its answers, each with its end.

    Raises:
        UserError: as `dialogue_tokens`.
    """
    found: list[list[int]] = []
    for known, dialogues in _together(samples, prompt):
        ids = _ids_of(known, tokenizer, prompt)
        learned = ([(number, kind) for number, kind, learns in row if learns] for row in dialogues)
        found += [
            [token for n, kind in row for token in _learned(kind, ids[n], tokenizer, prompt)]
            for row in learned
        ]
    return found


def decode_answer(
    ids: Sequence[int], tokenizer: Any, prompt: Prompt = TUNINGLAB, strip: bool = True
) -> str:
    """The text of generated ids (without the prompt), up to the first token that ends an answer."""
    ours = tokenizer.convert_tokens_to_ids([prompt.end, EOC_TOKEN])
    # A model that was tuned little may still end with its own token instead of ours.
    ends = [*ours, tokenizer.eos_token_id, tokenizer.pad_token_id]
    length = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    # Cleaning up would turn "a ." into "a.": answers are compared as they were written.
    text = tokenizer.decode(
        list(ids[:length]), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return str(text).strip() if strip else str(text)


@contextmanager
def named(sample: Sample) -> Iterator[None]:
    """Name the sample in what a prompt has against it.

    Raises:
        UserError: inside, the prompt has.
    """
    try:
        yield
    except ValueError as error:
        raise UserError(f"{sample.origin}: {error}") from error


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template that came with the tokenizer.

    Raises:
        UserError: it came without one.
    """
    text = getattr(tokenizer, "chat_template", None)
    # A model may bring several, one of them for tools.
    text = text.get("default") if isinstance(text, dict) else text
    if text is None or text == TUNINGLAB.chat_template:
        # A model that was saved with a processor has its template in the place of the tokenizer's.
        raise UserError(
            "--prompt chat_template: the tokenizer brings no chat template of its own. Give the "
            "Jinja file of the language model (chat_template.jinja), or choose another prompt."
        )
    return text


def _encoded(spans: Sequence[Span], tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> Encoded:
    # A tokenizer that cannot say all of a prompt is refused for every dialogue, not for some.
    for token in (IMAGE_TOKEN, prompt.end):
        special_id(token, tokenizer)
    written = dict.fromkeys(map(_piece, spans))
    known = dict(zip(written, _ids_of(written, tokenizer, prompt), strict=True))
    ids = _start(tokenizer, prompt)
    labels = [IGNORED] * len(ids)
    for span in spans:
        own = known[_piece(span)]
        ids += own
        learned = _learned(span.kind, own, tokenizer, prompt) if span.learned else []
        labels += learned + [IGNORED] * (len(own) - len(learned))
    return Encoded(ids, labels)


def _learned(
    kind: str, ids: list[int], tokenizer: PreTrainedTokenizerBase, prompt: Prompt
) -> list[int]:
    """What is learned of a span that is: of an ending, up to the end token."""
    if kind != "ending":
        return ids
    # Cut here and not in the text: a token may take in the blanks behind it (Phi-3's do).
    return ids[: ids.index(special_id(prompt.end, tokenizer)) + 1]


def _start(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    # By hand: whether add_special_tokens adds BOS, EOS or both differs between tokenizers.
    bos = tokenizer.bos_token_id
    return [bos] if prompt.adds_bos and isinstance(bos, int) else []


def _piece(span: Span) -> Piece:
    return {"answer": "text", "ending": "literal"}.get(span.kind, span.kind), span.text


def _ids_of(
    written: Collection[Piece], tokenizer: PreTrainedTokenizerBase, prompt: Prompt
) -> list[list[int]]:
    """The ids of each piece; only images, tokens and what a template wrote become special ones."""
    texts = [text for kind, text in written if kind == "text"]
    literals = [text for kind, text in written if kind == "literal"]
    # An empty list is no batch to every tokenizer.
    ids = {
        "text": iter(texts_ids(texts, tokenizer, prompt.written) if texts else ()),
        "literal": iter(literals_ids(literals, tokenizer) if literals else ()),
    }
    return [
        next(ids[kind]) if kind in ids else [special_id(text, tokenizer)] for kind, text in written
    ]
