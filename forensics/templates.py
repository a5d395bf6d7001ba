"""Chat templates: programs written by the checkpoint's author, so they are run in a sandbox and against the clock."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import FrameType

from forensics.prompts import Message

TEMPLATE_SECONDS = 2.0
LARGEST_NUMBER = 1_000_000
GENERATION_TAGS = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
"""Tags that transformers adds to Jinja to mark what the assistant says; plain Jinja cannot parse them."""
MAX_RENDERED_CHARACTERS = 2_000_000


class TemplateFailed(Exception):
    """The template raised, ran too long, or wrote too much. Its text says which, without quoting the template."""


def render_template(
    template: str, messages: Sequence[Message], *, special_tokens: dict[str, str], add_generation_prompt: bool = True
) -> str:
    """The text `template` makes of `messages`.

    It runs in the immutable Jinja sandbox of transformers, with the same globals a deployment would give it.

    Args:
        template: Jinja source.
        messages: The conversation.
        special_tokens: `bos_token` and the like, by name.
        add_generation_prompt: Whether the text ends where the assistant starts to speak.

    Raises:
        TemplateFailed: It raised an error, took over `TEMPLATE_SECONDS`, or wrote over `MAX_RENDERED_CHARACTERS`.
    """
    from transformers.utils.chat_template_utils import render_jinja_template  # heavy: brings transformers

    _refuse_explosive(template)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        with _time_limit(TEMPLATE_SECONDS):
            rendered, _ = render_jinja_template(
                [turns], chat_template=template, add_generation_prompt=add_generation_prompt, **special_tokens
            )
    except TemplateFailed:
        raise
    except Exception as error:  # it is somebody's program: any exception is possible, and none of it is ours
        raise TemplateFailed(f"it raises {type(error).__name__}") from error
    text = str(rendered[0])
    if len(text) > MAX_RENDERED_CHARACTERS:
        raise TemplateFailed(f"it writes {len(text)} characters")
    return text


@lru_cache(maxsize=16)
def _refuse_explosive(template: str) -> None:
    """Refuse products and powers: a single one can take all time or memory where no clock reaches, even while compiling."""
    import jinja2.nodes
    import jinja2.sandbox

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(GENERATION_TAGS.sub("", template))
    except (jinja2.TemplateError, RecursionError) as error:
        raise TemplateFailed(f"it raises {type(error).__name__}") from error
    if next(tree.find_all((jinja2.nodes.Pow, jinja2.nodes.Mul)), None) is not None:
        raise TemplateFailed("it multiplies, which can use up any machine, so it was not run")
    if any(isinstance(node.value, int) and node.value > LARGEST_NUMBER for node in tree.find_all(jinja2.nodes.Const)):
        raise TemplateFailed(f"it holds a number over {LARGEST_NUMBER}, which can use up any machine, so it was not run")


@lru_cache(maxsize=16)
def writes_content_only(template: str) -> bool:
    """Whether `template` does no more with what a turn says than write it down, trimmed perhaps.

    One that compares, tests or changes it may give one text another frame than it gives the rest.
    """
    import jinja2.nodes as nodes
    import jinja2.sandbox

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(GENERATION_TAGS.sub("", template))
    except (jinja2.TemplateError, RecursionError):
        return False

    def holds(node: nodes.Node) -> bool:
        touched = [node, *node.find_all((nodes.Getattr, nodes.Getitem, nodes.Const, nodes.Name))]
        return any("content" in (getattr(one, "attr", None), getattr(one, "value", None), getattr(one, "name", None)) for one in touched)

    treating = (nodes.Compare, nodes.Test, nodes.Filter, nodes.Call, nodes.If, nodes.CondExpr, nodes.Assign, nodes.Slice)
    for node in tree.find_all(treating):
        heads = {nodes.If: "test", nodes.CondExpr: "test", nodes.Assign: "node"}
        looked = getattr(node, heads[type(node)]) if type(node) in heads else node
        trims = isinstance(node, nodes.Filter) and node.name == "trim"
        if not trims and looked is not None and holds(looked):
            return False
    # `message['content']` reads a turn's text; `message['content'][:12]` cuts it.
    return not any(holds(node.node) for node in tree.find_all(nodes.Getitem))


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block after `seconds`. Signals reach the main thread only; elsewhere there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TemplateFailed(f"it runs longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
