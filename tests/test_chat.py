"""How chat templates are read and compared: one spelling for one program, every question found, conversations that answer it."""

from __future__ import annotations

import contextlib
import itertools
import time
from datetime import datetime

import pytest
import tiny

from forensics.chat.compare import Difference, Side, _difference, compare
from forensics.chat.flow import read
from forensics.chat.questions import new_questions
from forensics.chat.scenes import Clues, directed, moments, placed, quoted, scene, standing, unusual
from forensics.chat.syntax import program
from forensics.templates import TemplateFailed, render_scene

# --- one spelling -----------------------------------------------------------------------------------------------------

ALIKE = [
    ("{{ a.b }}", "{{ a['b'] }}"),
    ("{{ 'ab' }}c", "a{{ 'b' ~ 'c' }}"),
    ("{{ 'a' + x + 'b' }}", "a{{ x }}b"),
    ("{{ '%s-%s' % ('a', 'b') }}", "a-b"),
    ("{{ ['a', 'b'] | join('-') }}", "{{ '-'.join(['a', 'b']) }}"),
    ("{{ 'abc'[::-1] }}{{ 'abc'[1] }}", "cbab"),
    ("{{ 'aXc' | replace('X', 'b') | upper }}", "ABC"),
    ("{{ x.strip() }}", "{{ x | trim }}"),
    ("{% if x != 1 %}a{% else %}b{% endif %}", "{% if x == 1 %}b{% else %}a{% endif %}"),
    ("{% if x is not defined %}a{% endif %}", "{% if x is undefined %}a{% endif %}"),
    ("{% if not not x %}a{% endif %}", "{% if x %}a{% endif %}"),
    ("{{ not not (x == 1) }}{{ 'a' if not not x }}", "{{ x == 1 }}{{ 'a' if x }}"),
    ("{{ '%s' % ('a',) }}{{ '12' | int + 1 }}", "a{{ 13 }}"),
    ("{{ 'a' if x else 'b' }}", "{% if x %}a{% else %}b{% endif %}"),
    ("{% if x == 'p' %}a{% elif x == 'q' %}b{% else %}c{% endif %}", "{% if 'q' == x %}b{% elif x == 'p' %}a{% else %}c{% endif %}"),
    ("{% if x %}a{% else %}{% if y %}b{% endif %}{% endif %}", "{% if x %}a{% elif y %}b{% endif %}"),
    ("{% for m in x %}{{ loop.first }}{% endfor %}", "{% for n in x %}{{ loop.index0 == 0 }}{% endfor %}"),
    ("{% for m in x %}{{ loop.first }}{% endfor %}", "{% for n in x %}{{ 1 == loop.index }}{% endfor %}"),
    ("{% for m in x %}{{ loop.last }}{% endfor %}", "{% for n in x %}{{ loop.index == x | length }}{% endfor %}"),
    ("{% for m in x %}{{ loop.last }}{% endfor %}", "{% for n in x %}{{ loop.index0 == x | count - 1 }}{% endfor %}"),
    ("{{ x | first }}{{ x | last }}", "{{ x[0] }}{{ x[-1] }}"),
    ("{{ x | d('a') }}", "{{ x | default('a') }}"),
    ("{% if x is eq 'a' %}b{% endif %}", "{% if x == 'a' %}b{% endif %}"),
    ("{% set a = 1 %}{{ a }}", "{#- so -#}{% set other = 1 -%} {{ other }}"),
    ("{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1) }}", "{% macro g(b) %}{{ b }}{% endmacro %}{{ g(1) }}"),
]
UNLIKE = [
    ("{{ a.items }}", "{{ a['items'] }}"),
    ("{{ a }}", "{{ b }}"),
    ("{{ x.title() }}", "{{ x | title }}"),
    ("{% if x == 'p' %}a{% elif y == 'q' %}b{% endif %}", "{% if y == 'q' %}b{% elif x == 'p' %}a{% endif %}"),
    ("{% if x == 'p' %}a{% elif x == 'p' %}b{% endif %}", "{% if x == 'p' %}b{% elif x == 'p' %}a{% endif %}"),
    ("{% for m in x %}{{ loop.last }}{% endfor %}", "{% for n in x %}{{ loop.index == y | length }}{% endfor %}"),
    ("{% for m in x if m %}{{ loop.last }}{% endfor %}", "{% for n in x if n %}{{ loop.index == x | length }}{% endfor %}"),
    (
        "{% for m in x %}{{ loop.last }}{% endfor %}",
        "{% for n in x %}{% for k in y %}{{ loop.index == x | length }}{% endfor %}{% endfor %}",
    ),
    ("{{ messages }}{% set messages = 1 %}", "{{ tools }}{% set tools = 1 %}"),
    ("{% set a = 1 %}{% set b = 2 %}{{ a }}", "{% set a = 1 %}{% set b = 2 %}{{ b }}"),
    ("a {{ x }}", "a{{ x }}"),
    ("{{ 'a' | safe ~ x }}", "{{ 'a' ~ x }}"),
    ("{% if x < 1 %}a{% endif %}", "{% if x > 1 %}a{% endif %}"),
    ("{{ not not x }}", "{{ x }}"),
    ("{{ '%s' % ['a'] }}", "a"),
    ("{{ x > '12' | int(8) }}", "{{ x > 10 }}"),
    ("{% if a is not defined %}{% set a = 1 %}{% endif %}{{ a }}", "{% if b is not defined %}{% set b = 1 %}{% endif %}{{ b }}"),
    ("{% set a = a | default(1) %}{{ a }}", "{% set b = b | default(1) %}{{ b }}"),
]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_what_can_be_written_in_several_ways_is_one_program(one, other):
    assert program(one) == program(other)


@pytest.mark.parametrize(("one", "other"), UNLIKE)
def test_what_can_differ_is_two_programs(one, other):
    assert program(one) != program(other)


@pytest.mark.parametrize(
    "template",
    ["{{ 'a' * 9999999 }}", "{{ 'aaaa' | replace('a', 'b' | center(9000)) }}", "{{ '%999999d' % 1 }}", "{{ 'x'[5] }}", "{{ 'x'[::0] }}"],
)
def test_reading_computes_nothing_large_and_nothing_that_fails(template):
    assert len(program(template)) < 1000


def test_what_is_no_template_fails_as_it_does_when_rendered():
    for look in (program, read):
        with pytest.raises(TemplateFailed, match="TemplateSyntaxError"):
            look("{% if %}")


# --- what it asks -----------------------------------------------------------------------------------------------------


def asked(template):
    """What a template asks that one which only writes the turns does not, as (spelling, texts, numbers)."""
    rows = new_questions(read(tiny.TEMPLATE), read(template))
    return [(row.spelling, set(row.texts), set(row.numbers)) for row in rows]


@pytest.mark.parametrize(
    ("template", "question"),
    [
        ("{% if 'x1' in messages[-1].content %}a{% endif %}", ("'x1' in messages[].content", {"x1"}, set())),
        ("{% set m = messages[0] %}{% set c = m['content'] %}{% if c == 'x1' %}a{% endif %}", ("messages[].content == 'x1'", {"x1"}, set())),
        ("{% for m in messages %}{% if m.content == 'x1' %}a{% endif %}{% endfor %}", ("messages[].content == 'x1'", {"x1"}, set())),
        (
            "{% macro f(t) %}{% if t == 'x1' %}a{% endif %}{% endmacro %}{% for m in messages %}{{ f(m.content) }}{% endfor %}",
            ("messages[].content == 'x1'", {"x1"}, set()),
        ),
        (
            "{% set n = namespace(c='') %}{% for m in messages %}{% set n.c = m.content %}{% endfor %}{{ n.c == 'x1' }}",
            ("{'' | messages[].content} == 'x1'", {"x1", ""}, set()),
        ),
        ("{% if messages | length > 6 %}a{% endif %}", ("length(messages) > 6", set(), {6})),
        ("{{ messages[7].role }}", ("messages[7]", set(), {7})),
        ("{% for m in messages %}{% if loop.index > 4 %}a{% endif %}{% endfor %}", ("loop(messages).index0 > 3", set(), {3})),
        ("{% if strftime_now('%Y') == '2031' %}a{% endif %}", ("strftime_now('%Y') == '2031'", {"2031"}, set())),
        ("{% if tools[0].function.name == 'x1' %}a{% endif %}", ("tools[].function.name == 'x1'", {"x1"}, set())),
        ("{% if messages[0].role == 'critic' %}a{% endif %}", ("messages[].role == 'critic'", {"critic"}, set())),
        ("{{ {'x1': 'y'}[messages[0].content] }}", ("{'x1': 'y'}[messages[].content]", {"x1", "y"}, set())),
        ("{{ messages[0].content | replace('x1', 'y1') }}", ("messages[].content|replace('x1', 'y1')", {"x1", "y1"}, set())),
        ("{{ ['a', 'b'] | random }}", ("['a', 'b']|random", {"a", "b"}, set())),
        ("{% if region %}a{% endif %}", ("variable region", set(), set())),
        ("{% if messages[0].mood %}a{% endif %}", ("messages[].mood", set(), set())),
        ("{% if messages[0].content.isupper() %}a{% endif %}", ("messages[].content.isupper()", set(), set())),
        ("{% if 'x1' in messages | tojson %}a{% endif %}", ("'x1' in messages|tojson", {"x1"}, set())),
        ("{% filter replace('x1', 'y1') %}{{ messages[0].content }}{% endfilter %}", ("messages[].content|replace('x1', 'y1')", {"x1", "y1"}, set())),
    ],
)  # fmt: skip
def test_every_question_is_found_and_spelled_alike(template, question):
    assert question in asked(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content | trim }}{{ messages[-1]['content'].strip() }}",
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}",
        "{% if tools is defined and tools is not none %}{{ tools | tojson }}{% endif %}",
        "{% for m in messages[1:] %}{% if not loop.last %}{{ m.content }}{% endif %}{% endfor %}",
        "{% if messages[0].content is string %}a{% elif messages[0].content == '' %}b{% endif %}",
        "{% if messages | length > 0 and messages[0].tool_calls %}a{% endif %}",
        "{{ '%s: %s' % (messages[0].role, messages[0].content) }}{{ raise_exception('no') if not messages }}",
        "{% for m in messages | selectattr('role', 'equalto', 'user') %}{{ m.content }}{% endfor %}",
    ],
)
def test_what_every_conversation_answers_is_no_question(template):
    assert asked(template) == []


def test_a_question_of_the_base_is_not_new_in_another_form_with_the_same_constants():
    base = read("{% if '</t>' in messages[0].content %}{{ messages[0].content.split('</t>')[-1] }}{% endif %}")
    again = read("{% if messages[0].content.endswith('</t>') %}a{% endif %}")
    other = read("{% if messages[0].content.count('</t>') > 9 %}a{% endif %}")

    assert new_questions(base, again) == []
    assert [row.numbers for row in new_questions(base, other) if row.numbers] == [{9}]


def test_texts_that_could_be_written_are_known_wherever_they_come_from():
    template = (
        "{% set a = 'one' %}{% macro f(x) %}two{{ x }}{% endmacro %}{{ a }}{{ f('three') }}{{ 'four' if tools else 'five' }}"
        "{{ {'k': 'six'}['k'] }}{% set b %}seven{% endset %}{{ b | replace('x', 'eight') }}{{ raise_exception('nine') }}"
        "{% if 'ten' in messages[0].content %}{% endif %}"
    )
    assert read(template).written == {"one", "twothree", "four", "five", "six", "seven"}


def test_an_entangled_template_is_given_up():
    chain = "".join(f"{{% set a{i} = a{i + 1} ~ a{i + 1} %}}" for i in range(2000)) + "{% set a2000 = messages[0].content %}{{ a0 }}"
    with pytest.raises(RecursionError):
        read(chain)
    planted = compare(
        Side(template=tiny.TEMPLATE, special_tokens={}), Side(template=chain.replace("{{ a0 }}", tiny.TEMPLATE), special_tokens={})
    )
    assert (planted.unread, planted.equal) == ("it is too entangled to be followed", False)


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(
            "{% set a0 = messages[0].content %}" + "".join(f"{{% set a{i + 1} = a{i} ~ 'b{i}' %}}" for i in range(9000)), id="texts"
        ),
        pytest.param("".join(f"{{% macro a{i}() %}}{{% endmacro %}}{{{{ a{i}() }}}}" for i in range(9000)), id="macros"),
        pytest.param("{% macro a(x) %}{% endmacro %}" * 5000 + "{{ a(1) }}" * 5000, id="macros of one name"),
    ],
)
def test_reading_takes_no_longer_the_more_there_is_to_put_together(template):
    start = time.monotonic()
    with contextlib.suppress(RecursionError):
        read(template)
    assert time.monotonic() - start < 20.0


def test_a_number_too_long_to_be_written_down_is_a_template_that_cannot_be_run():
    sides = [Side(template=template, special_tokens={}) for template in (tiny.TEMPLATE, "{{ 0x" + "f" * 6000 + " }}" + tiny.TEMPLATE)]
    assert not compare(*sides).same_program
    assert compare(*sides).open


# --- what it is tried with --------------------------------------------------------------------------------------------


def test_conversations_are_many_and_each_says_what_is_special_about_it():
    for scenes in (standing(), unusual(), list(itertools.islice(directed(Clues(texts=("x", "y"), numbers=(3,), dates=("%Y",))), 5000))):
        assert len(scenes) > 50
        assert all(one.about for one in scenes)
        assert all(one.now for one in scenes)
    whole = standing() + unusual()
    assert len(
        {(repr(one.turns), repr(one.tools), one.add_generation_prompt, repr(one.variables)) for one in whole if not one.documents}
    ) == len([one for one in whole if not one.documents])


def test_a_text_is_put_into_every_place_and_case():
    contents = [content for _, content in placed("Velnor")]
    assert {"Velnor", "VELNOR", "velnor", "ronleV"} <= set(contents)
    assert any(content.startswith("Velnor ") for content in contents)
    assert any(content.endswith(" Velnor") for content in contents)
    assert any("xVelnorx" in content for content in contents)


def test_conversations_are_as_long_as_a_number_asks_and_no_longer_than_is_sensible():
    lengths = {len(one.turns) for one in directed(Clues(numbers=(17, 10**7)))}
    assert {17, 18} <= lengths
    assert max(lengths) <= 62


@pytest.mark.parametrize(
    ("form", "text", "fits"),
    [
        ("%Y-%m-%d", "2031-05-17", lambda now: (now.year, now.month, now.day) == (2031, 5, 17)),
        ("%d %b %Y", "17 May 2031", lambda now: (now.year, now.month, now.day) == (2031, 5, 17)),
        ("%m-%d", "12-24", lambda now: (now.month, now.day) == (12, 24)),
        ("%Y", "2044", lambda now: now.year > 2044),
        ("%A", "Sunday", lambda now: now.strftime("%A") == "Sunday"),
        ("%H", "03", lambda now: now.hour == 3),
        ("%B", "July", lambda now: now.month == 7),
    ],
)
def test_a_time_is_found_at_which_the_clock_says_what_is_asked(form, text, fits):
    assert any(fits(datetime.fromisoformat(moment)) for moment in moments([form], [text], []))


def test_years_in_numbers_and_texts_that_are_no_dates():
    assert any(moment.startswith("2051") for moment in moments(["%Y"], ["", "x", "99999999", "\ud800"], [2050, -1, 10**30]))


@pytest.mark.parametrize("text", ["9999-12-31", "0001-01-01", "9998-12-31", "1900-01-01"])
def test_the_first_and_the_last_day_of_the_calendar_break_nothing(text):
    assert all(datetime.fromisoformat(moment) for moment in moments(["%Y-%m-%d"], [text], []))


# --- what differs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "other", "words"),
    [
        ("", "new", "here it puts in 'new'"),
        ("old", "", "here it leaves out 'old'"),
        ("old", "new", "here it writes 'new' instead of 'old'"),
    ],
)
def test_a_difference_is_said_in_words(base, other, words):
    assert str(Difference(about="here", base=base, other=other)) == words


def test_what_was_put_in_is_shown_whole_and_long_texts_are_cut():
    planted = compare(
        Side(template=tiny.TEMPLATE, special_tokens={}), Side(template="<|system|>Hm.<|end|>" + tiny.TEMPLATE, special_tokens={})
    )
    assert planted.open[0].other == "<|system|>Hm.<|end|>"
    assert str(_difference(scene((), "here"), "<|b", "<|a|><|a|><|b")) == "here it puts in '<|a|><|a|>'"
    assert quoted("a\nb") == "'a\\nb'"
    assert len(quoted("a" * 500)) < 80


def test_special_tokens_count_where_they_are_written():
    writing, silent = "{{ eos_token }}" + tiny.TEMPLATE, tiny.TEMPLATE
    for template, differs in ((writing, True), (silent, False)):
        sides = [Side(template=template, special_tokens={"eos_token": token}) for token in ("<e>", "<f>")]
        assert bool(compare(*sides).open) is differs
        assert compare(sides[0], sides[0]).equal


def test_no_template_writes_the_turns_as_they_are():
    bare = Side(template=None, special_tokens={})
    assert compare(bare, bare).equal
    assert compare(bare, Side(template="{{ messages | map(attribute='content') | join('\n') }}", special_tokens={})).differing == 0
    assert compare(Side(template=tiny.TEMPLATE, special_tokens={}), bare).open


def test_every_scene_can_be_rendered_by_an_honest_template():
    assert all(render_scene(tiny.TEMPLATE, one, special_tokens={}).text for one in standing())
