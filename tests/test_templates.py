"""Chat templates are other people's programs: they are run in a process that can be stopped, and fail in one way only."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import tiny
from transformers.utils.chat_template_utils import render_jinja_template

from forensics import templates
from forensics.prompts import Message
from forensics.templates import Scene, TemplateFailed, render_scene, render_template, writes_content_only

TURNS = (Message(role="system", content="Be kind."), Message(role="user", content="Hi {{ 7 * 7 }} {% x"))


def render(template, turns=TURNS, **options):
    return render_template(template, turns, **{"special_tokens": {}} | options)


def fails(template, why, **options):
    with pytest.raises(TemplateFailed, match=why) as caught:
        render(template, **options)
    assert template not in str(caught.value)  # the record does not repeat what a stranger wrote


def test_a_template_writes_what_transformers_writes():
    tokenizer = tiny.tokenizer()
    turns = [{"role": message.role, "content": message.content} for message in TURNS]
    for add in (True, False):
        expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add)
        assert render(tiny.TEMPLATE, add_generation_prompt=add) == expected
    assert "{{ 7 * 7 }} {% x" in expected  # what the user says is text, not template


def test_special_tokens_are_at_hand_by_name():
    assert render("{{ bos_token }}{{ eos_token }}", special_tokens={"bos_token": "<s>", "eos_token": "</s>"}) == "<s></s>"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('no system turn') }}", "it raises TemplateError"),
        ("{% if %}", "it raises TemplateSyntaxError"),
        ("{{ messages[9]['role'] + 1 }}", "it raises UndefinedError"),
        ("{{ 1 / 0 }}", "it raises ZeroDivisionError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "it raises SecurityError"),
        ("{{ messages.append(1) }}", "it raises SecurityError"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "it raises SecurityError"),
        ("{% include '/etc/passwd' %}", "it raises TypeError"),
        ("{% import '/etc/passwd' as x %}", "it raises TypeError"),
        ("{% set n = namespace() %}{% set n._x = 1 %}", "it raises SecurityError"),
        ("{% for i in range(1000000) %}{% endfor %}", "it raises OverflowError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "it raises RecursionError"),
    ],
)
def test_a_template_that_raises_fails_with_the_kind_of_error(template, why):
    fails(template, why)


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def test_a_template_that_runs_for_ever_is_stopped(monkeypatch):
    monkeypatch.setattr(templates, "TEMPLATE_SECONDS", 0.3)
    start = time.monotonic()
    fails(ENDLESS, "it runs longer than 0.3 s")
    assert time.monotonic() - start < 3.0


def process():
    """The process that renders, as it is now."""
    return templates._RENDERER._process


@pytest.fixture
def unhurried(monkeypatch):
    """Time enough that only the limit of memory can end a template: a slow machine takes seconds to fill it."""
    monkeypatch.setattr(templates, "TEMPLATE_SECONDS", 60.0)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        pytest.param(
            "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "memory", id="doubling"
        ),
        pytest.param("{{ 'a'|center(999999)|replace(' ', 'b'|center(999999)) }}", "memory", id="replacing"),
        pytest.param("{{ '%999999d' % 1 ~ ('%999999d' % 1)|replace(' ', '%999999d' % 1) }}", "memory", id="padding"),
        pytest.param("{{ ('a' * 999999)|list|join('b' * 999999) }}", "memory", id="joining"),
        pytest.param("{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('aaaa') }}", "memory|RecursionError", id="macro"),
        pytest.param("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "RecursionError", id="brackets"),
        pytest.param("{{ " + "9" * 5000 + " }}", "ValueError", id="digits"),
        pytest.param("x" * (templates.MAX_TEMPLATE_CHARACTERS + 1), "it has 500001 characters", id="length"),
    ],
)
def test_a_template_that_eats_memory_fails_and_the_next_one_is_rendered(unhurried, template, why):
    fails(template, why)

    assert render("{{ messages[0].role }}") == "system"


def test_a_template_that_no_clock_of_its_own_process_stops_is_killed_with_it(monkeypatch):
    monkeypatch.setattr(templates, "TEMPLATE_SECONDS", 0.2)
    assert render("{{ 1 }}") == "1"
    before = process().pid
    one_long_step = "{{ ('x' * 999999 ~ 'y') in ['x' * 999999 ~ 'z'] * 999999 }}"

    start = time.monotonic()
    fails(one_long_step, "it runs longer than 0.2 s")

    assert time.monotonic() - start < 5.0
    assert render("{{ 2 }}") == "2"
    assert process().pid != before


def test_a_template_that_ran_too_long_three_times_is_not_run_again(monkeypatch):
    monkeypatch.setattr(templates, "TEMPLATE_SECONDS", 0.1)
    slow = "{# three times #}" + ENDLESS
    for _ in range(3):
        fails(slow, "longer than 0.1 s")

    start = time.monotonic()
    for _ in range(50):
        fails(slow, "longer than 0.1 s")

    assert time.monotonic() - start < 1.0


def test_one_process_renders_everything():
    render("{{ 1 }}")
    before, started = process().pid, templates._RENDERER.started

    for index in range(50):
        assert render(f"{{{{ {index} }}}}") == str(index)

    assert (process().pid, templates._RENDERER.started) == (before, started)


def test_a_process_that_was_killed_is_started_again():
    render("{{ 1 }}")
    os.kill(process().pid, signal.SIGKILL)
    process().wait()

    assert render("{{ 2 }}") == "2"


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="this system does not show the environment of a process")
def test_the_process_is_told_no_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a secret of the user")
    render("{{ 1 }}")
    templates._RENDERER.stop()

    assert render("{{ 2 }}") == "2"
    assert b"secret" not in Path(f"/proc/{process().pid}/environ").read_bytes()


def test_an_interrupt_of_the_audit_does_not_reach_the_process():
    render("{{ 1 }}")
    before = process().pid
    os.kill(before, signal.SIGINT)

    assert render("{{ 2 }}") == "2"
    assert process().pid == before


def test_rendering_leaves_the_alarms_of_the_audit_alone():
    before = signal.getsignal(signal.SIGALRM)
    assert render("{{ 1 }}") == "1"
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_template_that_writes_too_much_fails(monkeypatch):
    monkeypatch.setattr(templates, "MAX_RENDERED_CHARACTERS", 1000)
    assert len(render("{% for i in range(1000) %}a{% endfor %}")) == 1000
    fails("{% for i in range(1001) %}a{% endfor %}", "it writes 1001 characters")


def test_threads_render_one_after_the_other():
    written = []

    def work(name):
        for _ in range(20):
            written.append((name, render(f"{{{{ '{name}' }}}}")))  # noqa: PERF401 - each is put down before the next is asked for, so that threads interleave

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(written) == 60
    assert all(name == text for name, text in written)


TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather <now>", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}\n  {% if loop.first %}\n<{{ m.role }}>{% endif %}\n{{ m['content'] | trim }}\n{% endfor %}\n",
        "{% generation %}\n{{ messages[0].content }}\n{% endgeneration %}\n!",
        "{% set n = namespace(seen=false) %}{% for m in messages %}{% if m.role == 'user' %}{% set n.seen = true %}{% endif %}{% endfor %}{{ n.seen }}",
        "{{ tools | tojson(indent=2) }}{{ {'a': '<é>'} | tojson }}",
        "{{ dict(a=1).items() | list }}{{ tools is none }}{{ documents is defined }}{{ nothing is defined }}",
        "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
        "{{ '%s-%s' % (messages[0].role, bos_token) }}{{ messages[::-1][0].content[:2] }}{{ 2 * 3 }}",
        "{% macro say(m) -%}\n {{ m.role }}: {{ m.content }}\n{%- endmacro %}{% for m in messages %}{{ say(m) }}{% endfor %}",
        "{% filter upper %}{{ messages[0].content }}{% endfilter %}{% set x %}a{{ bos_token }}{% endset %}{{ x ~ x }}",
    ],
)
def test_every_template_is_rendered_as_transformers_does(template):
    turns = [{"role": message.role, "content": message.content} for message in TURNS]
    theirs = render_jinja_template([turns], tools=[TOOL], chat_template=template, add_generation_prompt=True, bos_token="<s>")[0][0]

    scene = Scene(turns=tuple(turns), tools=(TOOL,))

    assert render_scene(template, scene, special_tokens={"bos_token": "<s>"}).text == theirs


def test_dice_fall_alike_for_the_same_conversation_and_not_for_every_one():
    thrown = {render("{{ range(90000) | random }}", turns=(Message(role="user", content=str(number)),)) for number in range(20)}
    again = {render("{{ range(90000) | random }}", turns=(Message(role="user", content=str(number)),)) for number in range(20)}
    assert thrown == again
    assert len(thrown) > 1


def test_the_time_can_be_given():
    scene = Scene(turns=(), now="2027-01-15T08:09:10")
    assert render_scene("{{ strftime_now('%d %b %Y %H:%M') }}", scene, special_tokens={}).text == "15 Jan 2027 08:09"


@pytest.mark.parametrize(
    "test",
    [
        "'vel' ~ 'nor' in messages[0].content",
        "messages[0].content == '%s%s' % ('vel', 'nor')",
        "'velnor' == messages[0].content",
        "messages[0].content | lower | trim == 'ronlev'[::-1]",
        "messages[0]['content'].startswith('velnor')",
        "messages[0].content.split('velnor') | length > 1",
        "(messages | last).content.find('v-e-l-n-o-r' | replace('-', '')) >= 0",
        "messages | selectattr('content', 'equalto', 'velnor') | list",
        "tools[0].function.name == 'velnor'",
        "strftime_now('%Y') == 'velnor'",
    ],
)
def test_a_template_that_is_listened_to_tells_what_it_waits_for(test):
    template = f"{{% if {test} %}}x{{% endif %}}"
    scene = Scene(turns=({"role": "user", "content": "Hello"},), tools=(TOOL,))

    assert "velnor" in render_scene(template, scene, special_tokens={}, listen=True).compared
    assert render_scene(template, scene, special_tokens={}).compared == ()


@pytest.mark.parametrize("form", ["{0.__class__}", "{0.__init__.__globals__}"])
@pytest.mark.parametrize("call", ["format(cycler)", "format_map({'0': cycler})"])
@pytest.mark.parametrize("listen", [False, True])
def test_a_form_reaches_into_nothing_whoever_listens(form, call, listen):
    template = f"{{{{ (messages[0].content[:0] + '{form}').{call} }}}}"
    with contextlib.suppress(TemplateFailed):
        assert render_scene(template, Scene(turns=({"role": "user", "content": "Hello"},)), special_tokens={}, listen=listen).text == ""


def test_a_template_cannot_tell_that_it_is_listened_to():
    public = "{% for name in ['notes', 'note', 'heard'] %}{{ messages[0].content[name] is defined }}{% endfor %}"
    scene = Scene(turns=({"role": "user", "content": "Hello"},))
    assert (
        render_scene(public, scene, special_tokens={}, listen=True).text
        == render_scene(public, scene, special_tokens={}).text
        == "False" * 3
    )


def test_what_one_template_leaves_in_memory_is_gone_when_the_next_is_rendered(unhurried):
    render("{{ 1 }}")
    before = process()

    fails("{{ 'a' * 99999999 ~ 'b' * 99999999 ~ 'c' * 99999999 ~ 'd' * 99999999 ~ 'e' * 99999999 ~ 'f' * 99999999 }}", "memory")

    assert render("{{ 2 }}") == "2"
    assert process() is not before


def test_listening_to_one_rendering_leaves_nothing_for_the_next():
    turns = ({"role": "user", "content": "Hello"},)
    first = render_scene("{{ 'one' in messages[0].content }}", Scene(turns=turns), special_tokens={}, listen=True)
    second = render_scene("{{ 'two' in messages[0].content }}", Scene(turns=turns), special_tokens={}, listen=True)
    assert (first.compared, second.compared) == (("one",), ("two",))
    assert first.text == "False"


@pytest.mark.parametrize(
    ("template", "plain"),
    [
        (tiny.TEMPLATE, True),
        ("{{ messages[0].content | trim }}", True),
        ("{{ messages[0].content | upper }}", False),
        ("{{ messages[0].content[:12] }}", False),
        ("{% if messages[0].content %}a{% endif %}", False),
        ("{% filter upper %}{{ messages[0].content }}{% endfilter %}", False),
        ("{% set x %}{{ messages[0].content }}{% endset %}{{ x | upper }}", False),
        ("{% with x = messages[0].content %}{{ x | upper }}{% endwith %}", False),
        ("{% for letter in messages[0].content %}{{ letter }}.{% endfor %}", False),
        ("{% if %}", False),
        ("{{ a" + " | x" * 50_000 + " }}", True),
    ],
    ids=range(11),
)
def test_a_template_that_only_writes_what_is_said_is_known(template, plain):
    assert writes_content_only(template) is plain
