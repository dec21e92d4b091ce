"""Prompts of a Jinja template: rendered around stand-ins for what was said, and cut there."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from transformers import PreTrainedTokenizerBase

from tuninglab.data.prompt_formats import Prompt, Span, is_learned
from tuninglab.data.prompt_sandbox import STEPS, Steps, compiled
from tuninglab.data.sample import Message, Part, content_parts
from tuninglab.data.special_tokens import EOC_TOKEN, IMAGE_TOKEN
from tuninglab.errors import UserError
from tuninglab.untrusted import shown

# A stand-in is a number between two characters that no text is expected to hold.
STAND_IN = "\ue0f0{}\ue0f1"
CUT = re.compile("\ue0f0([0-9]+)\ue0f1")
# What a template may write besides what was said.
MOST_WRITTEN = 2**18
# Templates that name today would make another prompt of the same dialogue tomorrow. This day is
# what LLaMA 3.1's names where it is not told the date.
A_DAY = datetime(2024, 7, 26)
# (role, kinds of its parts) of each message: all that a stand-in lets a template know.
Shape = tuple[tuple[str, tuple[str, ...]], ...]
USER = ("user", ("image", "text")), ("user", ("text", "image", "text"))
TRIED: Shape = (USER[0], ("assistant", ("text",)), USER[1], ("assistant", ("text",)))
REMEDY = "Correct the template, or choose another --prompt."


@dataclass(frozen=True)
class Template(Prompt):
    """A chat template as transformers reads them; what it makes of what was said is checked.

    It is rendered twice: with stand-ins, which show where the contents are, and with the contents
    themselves, which must come out as they went in, in their order. It runs in the sandbox of
    transformers, within bounds. Made by `of`.

    Args:
        chat_template: its text.
        names: what else it may name: `bos_token` and the like.
        by_parts: whether contents are lists of parts, in which it writes the mark of a picture;
            else they are texts with the mark in.
        end: the special token that ends an answer.
        has_end: whether the template writes that itself.
        written: tokens that it writes, and no text becomes.
    """

    chat_template: str
    names: tuple[tuple[str, str], ...] = ()
    by_parts: bool = False
    end: str = EOC_TOKEN
    has_end: bool = False
    written: tuple[str, ...] = ()
    adds_bos: bool = False

    @classmethod
    def of(cls, text: str, tokenizer: PreTrainedTokenizerBase) -> "Template":
        """The prompt of a template, after a look at how it takes a dialogue.

        Raises:
            UserError: it is no Jinja, or would lose, move or change what was said.
        """
        special = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
        names = tuple(sorted(special.items()))
        template = cls(text, names, by_parts=True)
        try:
            literals = _cut(template, TRIED)
        except ValueError:
            template = cls(text, names)
            try:
                literals = _cut(template, TRIED)
            except ValueError as error:
                raise UserError(str(error)) from error
        # After the first answer, the third of its contents, and after the last.
        end = _common_end([literals[3], literals[-1]], tokenizer)
        wrote = "".join(literals) + text
        written = tuple(t for t in _added_tokens(tokenizer) if t.strip() and t in wrote)
        return cls(text, names, template.by_parts, end or EOC_TOKEN, end is not None, written)

    @property
    def choice(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What settings and adapters keep of it: its text."""
        return self.chat_template

    def spans(self, messages: Sequence[Message], ask: bool = False) -> list[Span]:
        """See `Prompt`."""
        said = [(m, content_parts(m["content"])) for m in messages]
        # Exporters write an empty system message where there is none; it leaves no trace.
        said = [(m, parts) for m, parts in said if parts or m["role"] != "system"]
        if ask:
            # The prompt is what training had before an answer, which add_generation_prompt of a
            # template need not be.
            stand_in = {"type": "text", "text": STAND_IN.format(0)}
            said.append(({"role": "assistant"}, [stand_in]))
        shape = tuple((m["role"], tuple(p["type"] for p in parts)) for m, parts in said)
        literals = _cut(self, shape)
        contents = [
            (number, message, part)
            for number, (message, parts) in enumerate(said, 1)
            for part in parts
        ]
        self._check(said, contents, literals)
        spans = [Span("literal", literals[0])]
        for (number, message, part), literal in zip(contents, literals[1:], strict=True):
            if part["type"] == "image":
                spans += [Span("image", IMAGE_TOKEN), Span("literal", literal)]
            elif message["role"] != "assistant":
                spans += [Span("text", part["text"]), Span("literal", literal)]
            elif part is said[number - 1][1][-1]:
                learned = is_learned(message)
                spans.append(Span("answer", part["text"], learned))
                spans += self._ended(literal, learned, number)
            else:
                spans += [
                    Span("answer", part["text"], is_learned(message)),
                    Span("literal", literal),
                ]
        if ask:
            last = max(place for place, span in enumerate(spans) if span.kind == "answer")
            spans = spans[:last]
        return [span for span in spans if span.text]

    def _ended(self, literal: str, learned: bool, number: int) -> list[Span]:
        """What follows an answer, its end first."""
        if not self.has_end:
            return [Span("token", self.end, learned), Span("literal", literal)]
        if not literal.lstrip().startswith(self.end):
            self._refuse(f"does not end message {number} with {self.end}, as it does others")
        return [Span("ending", literal, learned)]

    def rendered(self, contents: Sequence[tuple[str, Sequence[Part]]], most: int) -> str:
        """The text that the template makes of (role, parts) of each message.

        Args:
            contents: the messages.
            most: characters that it may have.

        Raises:
            ValueError: the template breaks on them, refuses them, or writes more than that.
        """
        messages = [{"role": role, "content": self._content(parts)} for role, parts in contents]
        known: dict[str, Any] = {**dict(self.names), "strftime_now": A_DAY.strftime}
        known[STEPS] = Steps(self.chat_template)
        blocks, length = [], 0
        try:
            # Piece by piece, so that one that writes without end ends.
            for block in compiled(self.chat_template).generate(
                messages=messages, tools=None, documents=None, add_generation_prompt=False, **known
            ):
                blocks.append(block)
                length += len(block)
                if length > most:
                    break
        except Exception as error:
            # Whatever it raises, TypeError or RecursionError, is the template's.
            self._refuse(f"breaks on a dialogue or refuses it: {shown(error)}")
        if length > most:
            self._refuse(f"writes more than {most:,} characters for one dialogue")
        return "".join(blocks)

    def _content(self, parts: Sequence[Part]) -> Any:
        if self.by_parts:
            return [dict(part) for part in parts]
        return "".join(part.get("text", IMAGE_TOKEN) for part in parts)

    def _check(
        self,
        said: Sequence[tuple[Message, Sequence[Part]]],
        contents: Sequence[tuple[int, Message, Part]],
        literals: Sequence[str],
    ) -> None:
        """Pass if every content stands in the rendered dialogue as it was written.

        Raises:
            ValueError: the first that does not.
        """
        written = [part.get("text", IMAGE_TOKEN) for _, _, part in contents]
        pairs = zip(written, literals[1:], strict=True)
        expected = literals[0] + "".join(text + literal for text, literal in pairs)
        most = len(expected) + MOST_WRITTEN
        whole = self.rendered([(m["role"], parts) for m, parts in said], most)
        if whole == expected:
            return
        place = 0
        for literal, text, (number, message, _) in zip(literals, written, contents, strict=False):
            place += len(literal)
            if not whole.startswith(literal + text, place - len(literal)):
                near = whole.startswith(text.strip(), place) and text != text.strip()
                how = "strips the blanks around" if near else "changes (escapes, cuts or moves)"
                self._refuse(f"{how} the content of message {number} ({message['role']})")
            place += len(text)
        self._refuse("writes something else where contents are other than stand-ins")

    def _refuse(self, what: str) -> NoReturn:
        first = next((line for line in self.chat_template.splitlines() if line.strip()), "")
        raise ValueError(
            f"the chat template of --prompt ({shown(first)[:60]!r} ...) {what}. {REMEDY}"
        )


@lru_cache(maxsize=256)
def _cut(template: Template, shape: Shape) -> tuple[str, ...]:
    """What a template writes around the contents of dialogues of a shape: one more than these.

    Raises:
        ValueError: it loses, repeats or moves contents, or writes marks of pictures of its own.
    """
    kinds = [kind for _, parts in shape for kind in parts]
    owner = [(n, role) for n, (role, parts) in enumerate(shape, 1) for _ in parts]
    stand_ins = iter(range(len(kinds)))
    contents: list[tuple[str, list[Part]]] = [
        (role, [_stand_in(kind, next(stand_ins), template.by_parts) for kind in parts])
        for role, parts in shape
    ]
    rendered = template.rendered(contents, MOST_WRITTEN)
    if template.by_parts:
        # The template writes marks itself. The n-th stands for the n-th picture; whether it is in
        # its place, the order says.
        pictures = iter([place for place, kind in enumerate(kinds) if kind == "image"])
        rendered = re.sub(
            re.escape(IMAGE_TOKEN),
            lambda _: STAND_IN.format(next(pictures, len(kinds))),
            rendered,
        )
    cut = CUT.split(rendered)
    found, expected = cut[1::2], [str(place) for place in range(len(kinds))]
    literals = tuple(cut[::2])
    if found != expected:
        _tell_order(template, found, owner)
    if any(IMAGE_TOKEN in literal for literal in literals):
        template._refuse(f"writes an {IMAGE_TOKEN} of its own, without a picture")
    return literals


def _tell_order(template: Template, found: Sequence[str], owner: Sequence[Any]) -> NoReturn:
    for place, (number, role) in enumerate(owner):
        times = found.count(str(place))
        if times != 1:
            what = f"drops the content of message {number} ({role}), or changes it"
            if times:
                what = f"repeats the content of message {number} ({role})"
            elif role == "system":
                what = f"ignores the system message (message {number})"
            template._refuse(what)
    if len(found) > len(owner):
        template._refuse(f"writes an {IMAGE_TOKEN} of its own, without a picture")
    template._refuse("writes the contents of a dialogue in another order")


def _stand_in(kind: str, place: int, by_parts: bool) -> Part:
    if by_parts and kind == "image":
        return {"type": "image"}
    return {"type": "text", "text": STAND_IN.format(place)}


def _common_end(after: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The special token that all of these texts begin with, after blanks; None: there is none."""
    bos, eos, unknown = tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token
    # The first token of the next turn is no end, unless one token is both.
    others = (IMAGE_TOKEN, unknown, None if bos == eos else bos)
    names = [name for name in _added_tokens(tokenizer) if name not in others]
    longest_first = sorted(names, key=len, reverse=True)
    pattern = re.compile(rf"\s*({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
    ends = {found[1] if (found := pattern.match(text)) else None for text in after}
    return ends.pop() if len(ends) == 1 else None


def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    known: Any = tokenizer.added_tokens_encoder
    return list(known)
