"""What records of all kinds have alike: pictures beside the text, names, answers, systems."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tuninglab.data.reading.found import Reading
from tuninglab.data.reading.picture_values import picture_value
from tuninglab.data.reading.turns import Turns, first_of
from tuninglab.data.sample import (
    MISSING,
    ImageSource,
    Message,
    Sample,
    brief,
    checked_text,
    content_parts,
    count_images,
)

IMAGE_KEYS = ("image", "images")
ID_KEYS = ("question_id", "questionId", "id")
SYSTEM_KEYS = ("system", "system_prompt")
HUGE = 2**63  # a number of a million digits would be a name as well
COMPARED = "learning from comparisons is not done"
# What a record is about, where these hold anything.
UNREAD = {key: "videos cannot be read" for key in ("video", "videos")}
UNREAD |= {key: "sound cannot be read" for key in ("audio", "audios")}
UNREAD |= {key: "calls of tools cannot be learned" for key in ("tools", "functions")}
UNREAD |= {"objects": "places in pictures cannot be learned"}
UNREAD |= {key: COMPARED for key in ("chosen", "kto_tag")}
WEIGHTS = ("weight", "loss_scale", "loss")


def checked_object(record: Any) -> dict[str, Any]:
    """A record, if it is an object at all.

    Raises:
        ValueError: it is none; a record that is itself a ValueError is raised.
    """
    if isinstance(record, ValueError):
        raise record
    if not isinstance(record, dict):
        raise ValueError(f"the record is {brief(record)}; expected an object")
    return record


def refuse_unread(record: Mapping[str, Any]) -> None:
    """Pass if no key changes what the record means in a way that is not followed here.

    Raises:
        ValueError: the first that does.
    """
    for key, value in record.items():
        rejected = key == "rejected" or key.startswith("rejected_")
        why = COMPARED if rejected else UNREAD.get(key)
        if why and value:
            raise ValueError(f'the record has "{key}", but {why}; drop the key or the record')
    for key in WEIGHTS:
        if record.get(key) not in (None, 1):
            raise ValueError(
                f'the record has "{key}" {brief(record[key])}, but every record counts alike; '
                'an answer that is not to be learned has "loss": false in its turn'
            )
    # KTO: whether the answer is a wanted one. Numbers there are classes.
    if isinstance(record.get("label"), bool):
        raise ValueError(f'the record has "label" true or false, but {COMPARED}; drop it')


def listed_pictures(record: Mapping[str, Any], keys: Sequence[str] = IMAGE_KEYS) -> list[Any]:
    """The pictures beside the text of a record.

    Raises:
        ValueError: several keys name them, or one cannot be understood.
    """
    given = [key for key in keys if record.get(key) is not None]
    if len(given) > 1:
        raise ValueError(f'the record has both "{given[0]}" and "{given[1]}"; keep one of the two')
    values = record[given[0]] if given else []
    # LLaVA writes a single picture as a bare string.
    return [picture_value(value) for value in (values if isinstance(values, list) else [values])]


def pictures_of(record: Mapping[str, Any], turns: Turns) -> list[ImageSource]:
    """The pictures of a dialogue: those beside it, or those that its parts name.

    Raises:
        ValueError: they stand in both places, or some parts name one and others do not.
    """
    listed = listed_pictures(record)
    own = [picture for picture in turns.pictures if picture is not None]
    # The order of unnamed parts among named ones would be a guess.
    if own and len(own) != len(turns.pictures):
        raise ValueError(
            f"{len(own)} of {len(turns.pictures)} image parts name a picture; name it in all"
        )
    # With both there is no telling which picture belongs to which mark.
    if listed and own:
        raise ValueError('pictures stand both in "images" and in the parts; keep one of the two')
    return listed or own


def system_messages(record: Mapping[str, Any]) -> list[Message]:
    """The system message that stands beside a dialogue, if there is one.

    Raises:
        ValueError: it is no text, or two keys hold one.
    """
    given = [key for key in SYSTEM_KEYS if record.get(key)]
    if len(given) > 1:
        raise ValueError('the record has both "system" and "system_prompt"; keep one of the two')
    if not given:
        return []
    try:
        parts = content_parts(record[given[0]])
    except ValueError as error:
        raise ValueError(f'"{given[0]}": {error}') from None
    return [{"role": "system", "content": parts}]


def with_system(record: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """The messages, the system message that stands beside them first.

    Raises:
        ValueError: they have one of their own, too.
    """
    system = system_messages(record)
    if system and messages and messages[0]["role"] == "system":
        raise ValueError('"system" and the first message both hold a system message; keep one')
    return system + messages


def leading_pictures(messages: list[Message], count: int, line: str = "") -> list[Message]:
    """The messages with `count` pictures before the text of the first question, and `line` between.

    Nothing in them has a mark yet.
    """
    first = next((k for k, message in enumerate(messages) if message["role"] == "user"), None)
    if first is None:
        return messages
    text = messages[first]["content"]
    if isinstance(text, str):
        text = content_parts(line + text) if text.strip() else []
    asked = messages[first] | {"content": [{"type": "image"}] * count + text}
    return [*messages[:first], asked, *messages[first + 1 :]]


def with_question(messages: list[Message], count: int) -> list[Message]:
    """Of an answer alone, what it answers: a turn of nothing but the record's pictures.

    Args:
        messages: any; those with a question come back as they are.
        count: of the record's pictures.

    Raises:
        ValueError: there is only an answer, and no picture.
    """
    roles = [message["role"] for message in messages]
    if "user" in roles or "assistant" not in roles:
        return messages
    if not count:
        raise ValueError("there is an answer without question or picture; add what it answers")
    answer = roles.index("assistant")
    parts = content_parts(messages[answer]["content"])
    # Marks before a caption are the pictures that it is about.
    while parts and parts[0]["type"] == "image":
        parts = parts[1:]
    shown = {"role": "user", "content": [{"type": "image"}] * count}
    said = messages[answer] | {"content": parts}
    return [*messages[:answer], shown, said, *messages[answer + 1 :]]


def marks(messages: list[Message]) -> int:
    """How many image parts and marks the messages have."""
    parts = [{"content": content_parts(message["content"])} for message in messages]
    return count_images(parts)


def id_of(record: Mapping[str, Any]) -> str | int | None:
    """What the data calls a record; a whole number stays one, as other tools look for it.

    Raises:
        ValueError: it is neither text nor a number.
    """
    value = first_of(record, ID_KEYS)
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < HUGE
    return value if whole else name_of(record, ID_KEYS)


def name_of(record: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """What the data calls a kind, or another thing, as text.

    Raises:
        ValueError: it is neither text nor a number.
    """
    value = first_of(record, keys)
    if value is None or value is MISSING:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        key = next(key for key in keys if record.get(key) is not None)
        raise ValueError(f'"{key}" is {brief(value)}; expected a text or a number')
    return checked_text(str(value))


def answer_texts(value: Any) -> list[str]:
    """Answers as texts: of one or a list; each a text, a number, or VQA's `{"answer": ...}`.

    Raises:
        ValueError: one is something else.
    """
    return [_answer_text(one) for one in (value if isinstance(value, list) else [value])]


def right_answers(record: Mapping[str, Any]) -> list[str]:
    """What a dialogue has under "answers": all that are right for its last question.

    Raises:
        ValueError: one is no text.
    """
    return answer_texts(record["answers"]) if record.get("answers") is not None else []


def candidates_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """What the answers of a record are chosen from, by its key "candidates"; () without one.

    Raises:
        ValueError: it is no list of two different texts or more.
    """
    value = record.get("candidates")
    if value is None:
        return ()
    texts = answer_texts(value)
    if not isinstance(value, list) or not len(set(texts)) == len(texts) > 1:
        raise ValueError(
            f'"candidates" is {brief(value)}; expected a list of two different texts or more'
        )
    return tuple(texts)


def majority(answers: Sequence[str]) -> str:
    """The most frequent answer, of equals the first; blank ones say nothing.

    Raises:
        ValueError: there is none.
    """
    said = Counter(text for text in answers if text.strip())
    if not said:
        raise ValueError("the answer is empty; write one or drop the record")
    return said.most_common(1)[0][0]


def _answer_text(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("answer", value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"an answer is {brief(value)}; expected a text")
    return checked_text(str(value))


def noted(sample: Sample, reading: Reading, notes: Sequence[str]) -> list[Sample]:
    """The sample, once it stands: only now is what was done to its record counted."""
    reading.notes.update(notes)
    return [sample]
