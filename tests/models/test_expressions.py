"""Regular expressions from files: those that can take for ever are told from those in use."""

import re
import time

import pytest

from tuninglab.models import expressions
from tuninglab.models.expressions import breaks_tokenizing, explodes

FOR_EVER = [
    *("(a|a)*b", "(a|ab)*(b|ba)*c", "(?:a|a|aa)+b", "(a+)+b", "(a*)*b", r"(\w+\s?)*$x"),
    *("(?:a?a?)*b", "(a|a){30}b", "((a|b|ab)c?)*d", "a*a*a*a*a*a*a*a*b", ".*.*.*.*.*.*.*.*x"),
    *(r"(?:[^x]|[^y])*z", r"(?P<n>a|a)*b", "(?i:a|a)*b", r"(x\)|x.)*y"),
]
# Of LoRA's users, and what only looks like one of those above.
NAMES = [
    *(r".*\.(q_proj|v_proj)", r"model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o)_proj", "a"),
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|mlp|ffn).*?(?:q_proj|k_proj|gate_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|k_proj|up_proj)))",
    *(r"(?:\d{3})*\.x", r"[(a|b)*]+", r"\(a|b\)*", "(?!.*vision).*proj", "(ab)*", r"[^]()*|]+c"),
]
# Of GPT-2, Llama 3, GPT-4o, BLOOM and CLIP, and digits in threes from the right.
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TOKENIZERS = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    + CONTRACTIONS
    + r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    " ?[^(\\s|[.,!?…。，、।۔،])]+",
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))",
]


@pytest.mark.parametrize("pattern", FOR_EVER)
def test_what_can_take_for_ever_is_told_in_short_time(pattern):
    started = time.thread_time()
    assert explodes(pattern)
    assert time.thread_time() - started < 3


@pytest.mark.parametrize("pattern", NAMES)
def test_patterns_of_names_that_are_in_use_pass(pattern):
    re.compile(pattern)
    assert not explodes(pattern)


@pytest.mark.parametrize("pattern", ["(a|a)*b", "(?:a|a|aa)+b", "(a+)+b", "a*a*c"])
def test_what_the_library_would_give_up_or_take_long_for_is_told(pattern):
    started = time.thread_time()
    assert breaks_tokenizing(pattern)
    assert time.thread_time() - started < 10


@pytest.mark.parametrize("pattern", TOKENIZERS)
def test_expressions_of_released_tokenizers_pass(pattern):
    started = time.thread_time()
    assert not breaks_tokenizing(pattern)
    assert time.thread_time() - started < 1


def test_time_that_passes_once_makes_no_expression_slow(monkeypatch):
    clock, reads = [0.0], [0]

    def halted():
        # Once, between two readings, a second passes: a collection of garbage, a halted machine.
        reads[0] += 1
        clock[0] += 1.0 if reads[0] == 8 else 1e-6
        return clock[0]

    monkeypatch.setattr(expressions.time, "thread_time", halted)
    assert not breaks_tokenizing(r" ?\d+| ?[^\s\d]+|\s+") and reads[0] > 8
    # Time that passes whenever it is tried is its own.
    monkeypatch.setattr(expressions.time, "thread_time", lambda: reads.append(0) or len(reads))
    assert breaks_tokenizing(r" ?\d+| ?[^\s\d]+|\s+")
