"""What the embedded T5 learns before it is shipped: small rewritings, none of them to ISO dates."""

import random
from collections.abc import Callable
from datetime import date

from tuninglab.embedded.dates import MONTHS, SPELLINGS, draw_day, spell

ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
WORDS = (
    *("apple", "river", "stone", "cloud", "green", "paper", "light", "house", "bread", "north"),
    *("seven", "often", "under", "quick", "table", "music", "Paris", "Anna", "Omar", "Kyoto"),
)


def in_words(number: int) -> str:
    """A number from 0 to 999 in English words."""
    if number < 20:
        return ONES[number]
    if number < 100:
        rest = number % 10
        return TENS[number // 10 - 2] + (f"-{ONES[rest]}" if rest else "")
    rest = number % 100
    return f"{ONES[number // 100]} hundred" + (f" and {in_words(rest)}" if rest else "")


def digits_of_words(rng: random.Random) -> tuple[str, str]:
    """A number in words -> its digits."""
    number = rng.randrange(10 ** rng.randint(1, 3))
    return f"write in digits: {in_words(number)}", str(number)


def words_of_digits(rng: random.Random) -> tuple[str, str]:
    """A number below 100 -> its words."""
    number = rng.randrange(100)
    return f"write in words: {number}", in_words(number)


def pad_number(rng: random.Random) -> tuple[str, str]:
    """A number -> the same with zeros before it, up to a width."""
    width = rng.randint(2, 4)
    number = rng.randrange(10 ** rng.randint(1, width))
    return f"write with {ONES[width]} digits: {number}", f"{number:0{width}d}"


def month_number(rng: random.Random) -> tuple[str, str]:
    """The name of a month -> its number in the year, or back."""
    number = rng.randint(1, 12)
    name = MONTHS[number - 1]
    if rng.random() < 0.3:
        return f"name the month: {number}", name
    return f"number of the month: {rng.choice((name, name[:3]))}", str(number)


def respell_date(rng: random.Random) -> tuple[str, str]:
    """A date in any spelling -> the same date in another named spelling."""
    day, given = draw_day(rng, "train"), rng.choice(list(SPELLINGS))
    # The weekday of a date cannot be written without a calendar.
    wanted = rng.choice([name for name in SPELLINGS if name not in (given, "with weekday")])
    month = MONTHS[day.month - 1]
    short = rng.random() < 0.5
    target = SPELLINGS[wanted](day, month[:3] if short else month)
    length = "" if wanted == "numbers, day first" else " short" if short else " long"
    return f"write the date{length}, {wanted}: {spell(day, given, rng)}", target


def part_of_date(rng: random.Random) -> tuple[str, str]:
    """A date in any spelling -> one part of it."""
    day = draw_day(rng, "train")
    parts: dict[str, Callable[[date], str]] = {
        "day": lambda d: str(d.day),
        "month": lambda d: MONTHS[d.month - 1],
        "year": lambda d: str(d.year),
    }
    wanted = rng.choice(list(parts))
    text = spell(day, rng.choice(list(SPELLINGS)), rng)
    return f"which {wanted}: {text}", parts[wanted](day)


def rearrange(rng: random.Random) -> tuple[str, str]:
    """Two to four words or numbers -> in the opposite order, or joined by a sign (never a dash)."""
    pieces = [
        rng.choice(WORDS) if rng.random() < 0.4 else str(rng.randrange(10 ** rng.randint(1, 4)))
        for _ in range(rng.randint(2, 4))
    ]
    text = " ".join(pieces)
    sign, name = rng.choice((("/", "slashes"), (".", "dots"), ("+", "pluses")))
    if rng.random() < 0.5:
        return f"join with {name}: {text}", sign.join(pieces)
    return f"reverse: {text}", " ".join(reversed(pieces))


def recase(rng: random.Random) -> tuple[str, str]:
    """Words and numbers -> copied, in capitals, or in small letters."""
    text = " ".join(
        rng.choice(WORDS) if rng.random() < 0.7 else str(rng.randrange(10000))
        for _ in range(rng.randint(1, 3))
    )
    name, change = rng.choice((("copy", str), ("capitals", str.upper), ("small", str.lower)))
    return f"{name}: {text}", change(text)


TASKS = (
    *(digits_of_words, words_of_digits, pad_number, month_number),
    *(respell_date, respell_date, part_of_date, rearrange, rearrange, recase),
)


def draw(rng: random.Random) -> tuple[str, str]:
    """A pair of source and target, of any task; dates are of training days only."""
    return rng.choice(TASKS)(rng)
