"""Regular expressions of others: whether one can take for ever, or break, on a short text."""

import re
import time
from collections.abc import Callable
from typing import Any

from tokenizers import Regex, pre_tokenizers

# An escape, a class in brackets, what opens a group, a count in braces, or any letter.
TOKENS = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?(?:P?<\w+>|<?[=!]|[\w^-]*:)|\{\d*,?\d*\}|.", re.DOTALL
)
# CPU time for a text of at most 2,048 letters; those of released tokenizers take milliseconds.
LONGEST_S = 0.25
# One try may meet the collection of all garbage (0.25 s in a process with torch), or a halt.
TRIES = 2
SHORT, LONG = range(1, 65), (64, 128, 256, 512, 1024, 2048)
USUAL = "a1. _\n"
MOST_LETTERS = 40


def explodes(pattern: str) -> bool:
    """Whether a regular expression of Python, which knows no limit, can take for ever on a name.

    So can what repeats a group in which there is a choice or another repeat: (a|ab)*, (a+)+; and
    what has many repeats side by side, which is found by trying.
    """
    held, choice = [False], False
    for token in TOKENS.findall(pattern):
        if token[0] == "(":
            held.append(False)
            choice = False
        elif token == ")" and len(held) > 1:
            choice = held.pop()
            held[-1] |= choice
        elif token in ("*", "+") or token[0] == "{" and len(token) > 1:
            if choice:
                return True
            # As many times as it says leaves no choice.
            held[-1] |= token[0] != "{" or "," in token
        elif token in ("|", "?"):
            held[-1] = True
        else:
            choice = False
    return _is_slow(pattern, re.compile(pattern).fullmatch, SHORT)


def breaks_tokenizing(pattern: str) -> bool:
    """Whether a regular expression of a tokenizer, whose library gives up, is slow or given up."""
    return _is_slow(
        pattern, pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str, LONG
    )


def _is_slow(pattern: str, hit: Callable[[str], Any], lengths: Any) -> bool:
    """Whether an expression takes long on a letter, or two, repeated, and longer each time.

    The letters are its own; at the end come all of them, since it may look for one first.
    """
    own = [token for token in TOKENS.findall(pattern) if token.isalnum()]
    letters = list(dict.fromkeys([*USUAL, *own]))[:MOST_LETTERS]
    end = "\0!" + "".join(letters)
    for unit in (*letters, *{"".join(pair) for pair in zip(own, own[1:], strict=False)}):
        for length in lengths:
            try:
                slow = all(_time(hit, unit * length + end) > LONGEST_S for _ in range(TRIES))
            except BaseException as error:
                # The library's own limit: no Exception, and of a class that cannot be imported.
                if type(error).__name__ != "PanicException":
                    raise
                return True
            if slow:
                return True
    return False


def _time(hit: Callable[[str], Any], text: str) -> float:
    """Seconds of CPU time that an expression takes on a text."""
    started = time.thread_time()
    hit(text)
    return time.thread_time() - started
