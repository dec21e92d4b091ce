"""Days, the ways in which they are written, and which of them training may see."""

import random
from collections.abc import Callable
from datetime import date

FIRST, LAST = date(1900, 1, 1), date(2029, 12, 31)
# Shares of all days.
TEST_SHARE, VAL_SHARE = 0.10, 0.05

MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

# What a date can look like, by name. `{month}` may come out short, as in `Mar`.
SPELLINGS: dict[str, Callable[[date, str], str]] = {
    "day first": lambda d, month: f"{d.day} {month} {d.year}",
    "month first": lambda d, month: f"{month} {d.day}, {d.year}",
    "with weekday": lambda d, month: f"{WEEKDAYS[d.weekday()]}, {d.day} {month} {d.year}",
    "in a sentence": lambda d, month: f"the {ordinal(d.day)} of {month}, {d.year}",
    "numbers, day first": lambda d, month: f"{d.day}/{d.month}/{d.year}",
}


def split_of(day: date) -> str:
    """The only split that a day belongs to: train, val or test, whatever its spelling."""
    # Knuth's multiplicative hash spreads neighbouring days evenly.
    share = day.toordinal() * 2654435761 % 2**32 / 2**32
    if share < TEST_SHARE:
        return "test"
    return "val" if share < TEST_SHARE + VAL_SHARE else "train"


def draw_day(rng: random.Random, split: str) -> date:
    """A day of the split, each as likely as any other."""
    while True:
        day = date.fromordinal(rng.randint(FIRST.toordinal(), LAST.toordinal()))
        if split_of(day) == split:
            return day


def spell(day: date, spelling: str, rng: random.Random) -> str:
    """A day in the named spelling; its month is written short as often as in full."""
    month = MONTHS[day.month - 1]
    return SPELLINGS[spelling](day, rng.choice((month, month[:3])))


def ordinal(number: int) -> str:
    """A number from 1 to 31 as `1st`, `2nd`, `3rd`, `4th`."""
    ending = "th" if 10 < number < 14 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
