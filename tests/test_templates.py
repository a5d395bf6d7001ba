"""Chat templates are other people's programs: they are run in a sandbox, against the clock, and fail in one way only."""

from __future__ import annotations

import signal
import threading
import time

import pytest
import tiny

from forensics import templates
from forensics.prompts import Message
from forensics.templates import TemplateFailed, render_template

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


def test_the_clock_is_taken_down_afterwards(monkeypatch):
    before = signal.getsignal(signal.SIGALRM)
    monkeypatch.setattr(templates, "TEMPLATE_SECONDS", 0.2)
    assert render("{{ 1 }}") == "1"
    fails(ENDLESS, "longer")
    fails("{{ 1 / 0 }}", "raises")
    time.sleep(0.3)  # an alarm left behind would ring now
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_template_that_writes_too_much_fails(monkeypatch):
    monkeypatch.setattr(templates, "MAX_RENDERED_CHARACTERS", 1000)
    assert len(render("{% for i in range(1000) %}a{% endfor %}")) == 1000
    fails("{% for i in range(1001) %}a{% endfor %}", "it writes 1001 characters")


def test_another_thread_renders_without_a_clock():
    written = []
    thread = threading.Thread(target=lambda: written.append(render("{{ messages[0].role }}")))
    thread.start()
    thread.join()
    assert written == ["system"]
