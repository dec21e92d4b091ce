"""Templates of strangers end, in bounded time and memory, or are refused."""

import resource
import time

import pytest
from transformers.utils import chat_template_utils

from tuninglab.data.prompt_jinja import CHAT_TEMPLATE
from tuninglab.data.prompt_sandbox import STEPS, Steps, compiled

MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
]
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
GROWING = (
    "{% set n = namespace(x='abcdefgh') %}{% for _ in range(60) %}{% set n.x = EXPR %}{% endfor %}"
)
ENDLESS = {
    "loops": LOOP,
    "one loop": "{% for a in range(10 ** 9) %}{% endfor %}",
    "loops that write into a block": "{% set x %}"
    + LOOP.replace("%}{% end", "%}aaa{% end", 1)
    + "{% endset %}",
    "a loop that calls itself": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "a macro that calls itself": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}"
    "{% endmacro %}{{ m(60) }}",
    "lists in a loop": "{% for a in range(99999) %}{{ range(99999) | list | length }}{% endfor %}",
    "choices in a loop": "{% for a in range(99999) %}{{ range(99999) | select('odd') | sum }}"
    "{% endfor %}",
    "methods in a loop": "{% set x = 'a' * 999999 %}{% for a in range(99999) %}{{ x.count('b') }}"
    "{% endfor %}",
    "a constant": "{{ 'a' * 10 ** 10 }}",
    "a list": "{{ [0] * 10 ** 10 }}",
    "a number": "{{ 9 ** 9 ** 9 }}",
    "squares": GROWING.replace("'abcdefgh'", "3").replace("EXPR", "n.x * n.x"),
    "a text and itself": GROWING.replace("EXPR", "n.x ~ n.x"),
    "a sum": GROWING.replace("EXPR", "n.x + n.x"),
    "a product": GROWING.replace("EXPR", "n.x * 2"),
    "a text in itself": GROWING.replace("EXPR", "n.x.replace('a', n.x)"),
    "a text in itself by a filter": GROWING.replace("EXPR", "n.x | replace('a', n.x)"),
    "a join": GROWING.replace("EXPR", "n.x | join(n.x)"),
    "a width": "{{ 'a' | center(10 ** 10) }}",
    "a width of a method": "{{ 'a'.ljust(10 ** 10) }}",
    "a width in a format": "{{ '%9999999999d' % 1 }}",
    "a width beside a format": "{{ '%*d' % (9999999999, 1) }}",
    "a width in a filter": "{{ '%9999999999d' | format(1) }}",
    "a width in a method": "{{ '{:9999999999}'.format(1) }}",
    "an indent": "{{ ('a\n' * 99999) | indent(99999) }}",
    "words": "{{ lipsum(n=100000) }}",
}


def rendered(template):
    return compiled(template).render(messages=MESSAGES, **{STEPS: Steps(template)})


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_would_not_end_or_fill_the_memory_is_refused(kind):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    with pytest.raises(Exception, match="steps|more than|too large|call themselves|Range|lipsum"):
        rendered(ENDLESS[kind])
    assert time.process_time() - begun < 8
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE,
        "{% for m in messages %}{% if loop.last %}{{ loop.length ~ '/' ~ loop.index0 }}{% endif %}"
        "{{ m | tojson(indent=2) }}{% endfor %}",
        "{% for m in messages if m.role != 'user' %}{% break %}{% else %}none{% endfor %}",
        "{% set x = messages[0]['content'] + messages[1]['content'] %}{{ x | length * 2 }}",
        "{{ '%s-%02d' % ('a', 7) }}{{ '{:>4}'.format(3) }}{{ 'a,b'.split(',') | join('+') }}",
        "{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('a' * 3) }}{{ 7 % 3 }}{{ 2 ** 10 }}",
        "{{ messages | map(attribute='role') | list | join(', ') | upper }}{{ 1.5 * 2 }}",
        "{% generation %}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
        "{% endgeneration %}",
    ],
)
def test_within_the_bounds_it_is_what_transformers_renders(template):
    theirs = chat_template_utils._compile_jinja_template(template).render(messages=MESSAGES)
    assert rendered(template) == theirs


def test_a_long_dialogue_has_enough_steps():
    every = "{% for m in messages %}{% for n in messages %}{{ m.a }}{% endfor %}{% endfor %}"
    steps = {STEPS: Steps(every)}
    assert compiled(every).render(messages=[{"a": "b"}] * 300, **steps) == "b" * 90_000
