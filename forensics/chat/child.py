"""The process that chat templates run in: no model, no files, little memory; it reads requests and writes answers, one a line.

A template is a stranger's program. The sandbox keeps it from Python's own objects, but not from eating time or memory in
places where no clock of the same process reaches. So `templates.py` starts this file as a program of its own, which needs
nothing but Python and Jinja, and can be killed.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache
from types import FrameType
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

MEMORY_BYTES = 512 << 20
"""Address space of the process: Python and Jinja take about a tenth of it."""
NO_MEMORY = "it takes more memory than a chat template may"
MAX_COMPARED = 400
"""How many texts one rendering may report as compared with its input."""


class TooLong(BaseException):
    """The template used up its time. Not an Exception, so that nothing inside Jinja takes it for one of its own."""


class Generation(jinja2.ext.Extension):
    """The tag pair `{% generation %}`, with which templates mark what the assistant says. It leaves the text alone."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # Jinja says set, and only asks what is in it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """The body in a scope of its own, as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class PlainNamespace(jinja2.utils.Namespace):
    """`namespace()` without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]  # so that `namespace(self=...)` works, as in Jinja
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _refuse_underscore(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError("a namespace takes no name that begins with an underscore")


class PlainDict:
    """`dict()` without the rest of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """A new dictionary."""
        return dict(*args, **kwargs)


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """The Jinja sandbox with the settings, filters and functions that transformers gives a chat template."""
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals |= {"raise_exception": _raise, "strftime_now": _clock(None), "dict": PlainDict(), "namespace": PlainNamespace}
    return made


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: object) -> NoReturn:
    raise jinja2.exceptions.TemplateError(str(message))


def _clock(now: datetime | None) -> Callable[[str], str]:
    """`strftime_now`: the time given, or else local time without a zone, as transformers has it."""
    return lambda form: (now or datetime.now().astimezone().replace(tzinfo=None)).strftime(form)


NOTES: dict[str, None] = {}
"""What the present rendering compared the conversation with. Not kept with the texts, where the template could see it."""


def _note(other: object) -> None:
    """Keep `other` if it is a text or holds some."""
    for one in other if isinstance(other, list | tuple) else (other,):
        if isinstance(one, str) and not isinstance(one, Heard) and one.strip() and len(NOTES) < MAX_COMPARED:
            NOTES[str(one)[:1000]] = None


class Heard(str):
    """A text of the conversation of which is noted what a template compares it with."""

    def __eq__(self, other: object) -> bool:
        _note(other)
        return str.__eq__(self, other) is True

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __contains__(self, other: object) -> bool:
        _note(other)
        return isinstance(other, str) and str.__contains__(self, other)

    def __getitem__(self, key: Any) -> Heard:
        return Heard(str.__getitem__(self, key))

    def __iter__(self) -> Iterator[str]:
        return (Heard(letter) for letter in str.__iter__(self))

    def __add__(self, other: str) -> Heard:
        return Heard(str.__add__(self, other))

    __hash__ = str.__hash__


def _listening(name: str) -> Callable[..., Any]:
    plain = getattr(str, name)

    def method(self: Heard, *args: Any, **kwargs: Any) -> Any:
        for one in args:
            _note(one)
        return _heard(plain(self, *args, **kwargs))

    return method


for _name in (
    "startswith", "endswith", "find", "rfind", "index", "rindex", "count", "split", "rsplit", "partition", "rpartition", "replace",
    "removeprefix", "removesuffix", "strip", "lstrip", "rstrip", "lower", "upper", "title", "capitalize", "casefold", "swapcase",
    "splitlines", "join",
):  # fmt: skip  # not `format`: the sandbox knows it by its name, and keeps a form from reaching into objects
    setattr(Heard, _name, _listening(_name))


def _heard(value: Any) -> Any:
    """`value` with every text in it made to listen; what says who speaks is left alone."""
    if type(value) is str:
        return Heard(value)
    if isinstance(value, dict):
        return {key: one if key in ("role", "type") else _heard(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_heard(one) for one in value)
    return value


@lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template | str:
    """The template ready to be rendered, or why it never will be: compiling it again for every conversation would take long."""
    try:
        return environment().from_string(template)
    except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError) as error:
        return f"it raises {type(error).__name__}"


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What came of one rendering: `text`, or `failed` with the reason; `compared` if it was asked to listen."""
    variables = _heard(request["variables"]) if request["listen"] else request["variables"]
    NOTES.clear()
    try:
        with _time_limit(request["seconds"]):
            pieces, length = [], 0
            compiled = _compiled(request["template"])
            if isinstance(compiled, str):
                return {"failed": compiled}
            clock = _clock(datetime.fromisoformat(request["now"]) if request["now"] else None)
            tell = (lambda form: Heard(clock(form))) if request["listen"] else clock
            for piece in compiled.generate(strftime_now=tell, **variables):
                pieces.append(piece)
                length += len(piece)
                if length > request["characters"]:
                    return {"failed": f"it writes {length} characters"}
        found: dict[str, Any] = {"text": "".join(map(str, pieces))}
    except TooLong:
        found = {"failed": f"it runs longer than {request['seconds']:g} s"}
    except MemoryError:
        found = {"failed": NO_MEMORY}
    except Exception as error:  # noqa: BLE001 - a stranger's program raises whatever it likes; all of it is its failure, none ours
        found = {"failed": f"it raises {type(error).__name__}"}
    return found | {"compared": list(NOTES)}


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block after `seconds` of this process's own time: waiting for a busy machine does not count."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def _confine() -> None:
    """Little memory, no new files, no core dump. An interrupt is the parent's affair: when it goes, our input ends."""
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for kind, limit in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 32),
    ):
        with contextlib.suppress(ValueError, OSError):  # a system without this limit, or with a stricter one
            resource.setrlimit(kind, (limit, limit))


def main() -> None:
    """Answer until the input ends."""
    _confine()
    for line in sys.stdin.buffer:
        random.seed(line)  # a template may throw dice, but the same request has the same answer
        sys.stdout.buffer.write(json.dumps(answer(json.loads(line))).encode("ascii") + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
