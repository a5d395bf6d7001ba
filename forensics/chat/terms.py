"""What is known of a value in a chat template without running it: where it comes from, how it is spelled, what it may hold."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jinja2 import nodes

from forensics.chat.syntax import constant

Kind = Literal["content", "count", "date", "tools", "chance", "variable", "role", "messages"]
COUNTERS = frozenset({"index0", "index", "length", "revindex", "revindex0", "depth", "depth0", "cycle", "changed"})
"""What a loop tells beyond its first and last round."""
MAX_SPELLED = 300
MAX_TOLD = 100_000
"""Calls of macros that are followed: many macros of one name multiply them."""
How = Literal["value", "block", "item", "counted", "unknown"]
Source = tuple[How, nodes.Node]
"""Where a name of the template gets a value from, and how it is taken from there; `counted` if round by round from itself."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One value.

    `spelling` is the same for the same value whatever the names; `kinds` are the parts of the input it is made from;
    `texts` and `numbers` the constants it may hold; `value` the constant it is, or the keys it can be looked up by; `path`
    where in the input it lies, if it is a plain part of it.
    """

    spelling: str
    kinds: frozenset[Kind] = frozenset()
    texts: frozenset[str] = frozenset()
    numbers: frozenset[int] = frozenset()
    value: Any = None
    path: str = ""


NOTHING = Term(spelling="")
UNKNOWN = Term(spelling="?", kinds=frozenset({"content"}))
"""A value that cannot be followed: it may be anything that was said."""
MESSAGES = Term(spelling="messages", kinds=frozenset({"messages"}), path="messages")
TOOLS = Term(spelling="tools", kinds=frozenset({"tools"}), path="tools")
DOCUMENTS = Term(spelling="documents", kinds=frozenset({"tools"}), path="documents")


def known(value: Any) -> Term:
    """A constant."""
    texts = frozenset({value}) if isinstance(value, str) else frozenset()
    numbers = frozenset({value}) if isinstance(value, int) and not isinstance(value, bool) else frozenset()
    return Term(spelling=_short(repr(value)), texts=texts, numbers=numbers, value=value)


def union(terms: Iterable[Term], spelling: str, **more: Any) -> Term:
    """A value that any of `terms` went into."""
    rows = list(terms)
    return Term(
        spelling=_short(spelling),
        kinds=frozenset().union(*(row.kinds for row in rows)),
        texts=frozenset().union(*(row.texts for row in rows)),
        numbers=frozenset().union(*(row.numbers for row in rows)),
        **more,
    )


def either(terms: Iterable[Term]) -> Term:
    """A value that is one of `terms`."""
    rows = {term.spelling: term for term in terms if term != NOTHING}
    if len(rows) < 2:
        return next(iter(rows.values()), NOTHING)
    paths = {row.path for row in rows.values()}
    return union(rows.values(), f"{{{' | '.join(sorted(rows))}}}", path=paths.pop() if len(paths) == 1 else "")


def truth(terms: Iterable[Term], spelling: str) -> Term:
    """A yes or no that was found by looking at `terms`: none of their texts is in it."""
    return replace(union(terms, spelling), texts=frozenset(), numbers=frozenset())


def entry(term: Term) -> Term:
    """One of the things that `term` is a list of."""
    if term == NOTHING:
        return NOTHING
    if term.path == "messages":
        return Term(spelling="messages[]", kinds=frozenset({"messages"}), path="messages[]")
    if term.path.startswith(("tools", "documents", "messages[].")):
        return replace(term, spelling=_short(f"{term.spelling}[]"), path=f"{term.path}[]")
    return replace(term, spelling=_short(f"{term.spelling}[]"), value=None)


def field(term: Term, key: str) -> Term:
    """What `term` holds under `key`."""
    if term == NOTHING:
        return NOTHING
    spelling = _short(f"{term.spelling}.{key}")
    if term.path == "messages[]":
        kind: Kind = "role" if key == "role" else "content"
        return Term(spelling=spelling, kinds=frozenset({kind}), path="" if key == "role" else f"messages[].{key}")
    if term.path.startswith(("tools", "documents", "messages[].")):
        return replace(term, spelling=spelling, path=f"{term.path}.{key}")
    return union([term], spelling)


def of_loop(through: Term, key: str) -> Term:
    """What the variable `loop` of a loop through `through` says."""
    if key in ("previtem", "nextitem"):
        return entry(through)
    return Term(spelling=_short(f"loop({through.spelling}).{key}"), kinds=frozenset({"count"}) if key in COUNTERS else frozenset())


def _short(spelling: str) -> str:
    """A spelling of bounded length that still tells two apart."""
    if len(spelling) <= MAX_SPELLED:
        return spelling
    return spelling[: MAX_SPELLED - 20] + "~" + hashlib.sha256(spelling.encode("utf-8", "replace")).hexdigest()[:16]


def sources(tree: nodes.Template) -> dict[str, list[Source]]:
    """Everything that each name of the template, and each attribute of its namespaces (`name.attribute`), is ever given.

    Raises:
        RecursionError: It is more than any honest template has.
    """
    found: dict[str, list[Source]] = {}
    for assign in tree.find_all(nodes.Assign):
        _give(found, assign.target, "counted" if _from_itself(assign) else "value", assign.node)
        if isinstance(assign.target, nodes.Name) and (call := _call_of(assign.node, "namespace")):
            for pair in call.kwargs:
                found.setdefault(f"{assign.target.name}.{pair.key}", []).append(("value", pair.value))
    for text in tree.find_all(nodes.AssignBlock):
        _give(found, text.target, "block", nodes.FilterBlock(text.body, text.filter) if text.filter else nodes.Scope(text.body))
    for loop in tree.find_all(nodes.For):
        _give(found, loop.target, "item", loop.iter)
    for scope in tree.find_all(nodes.With):
        for target, given in zip(scope.targets, scope.values, strict=True):
            _give(found, target, "value", given)
    for block in tree.find_all(nodes.CallBlock):
        for name in block.args:
            _give(found, name, "unknown", block)
    _of_macros(found, tree)
    return found


def _of_macros(found: dict[str, list[Source]], tree: nodes.Template) -> None:
    """What the arguments of every macro are given."""
    uses = Counter(name.name for name in tree.find_all(nodes.Name) if name.ctx == "load")
    calls: dict[str, list[nodes.Call]] = {}
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name):
            calls.setdefault(call.node.name, []).append(call)
    told = 0
    for macro in tree.find_all(nodes.Macro):
        told += len(calls.get(macro.name, []))
        if told > MAX_TOLD:
            raise RecursionError("the template is too entangled to be followed")
        _arguments(found, macro, calls.get(macro.name, []), uses[macro.name])


def _call_of(node: nodes.Node, name: str) -> nodes.Call | None:
    """`node` itself, if it is a call of what has that name."""
    return node if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) and node.node.name == name else None


def _from_itself(assign: nodes.Assign) -> bool:
    """Whether an attribute of a namespace is made from what it was before, as a counter is."""
    target = assign.target
    if not isinstance(target, nodes.NSRef):
        return False
    parts = [one for one in [assign.node, *assign.node.find_all(nodes.Getitem)] if isinstance(one, nodes.Getitem)]
    return any(isinstance(one.node, nodes.Name) and (one.node.name, constant(one.arg)) == (target.name, target.attr) for one in parts)


def _give(found: dict[str, list[Source]], target: nodes.Node, how: How, node: nodes.Node) -> None:
    if isinstance(target, nodes.Name):
        found.setdefault(target.name, []).append((how, node))
    elif isinstance(target, nodes.NSRef):
        found.setdefault(f"{target.name}.{target.attr}", []).append((how, node))
    elif isinstance(target, nodes.Tuple):
        fits = isinstance(node, nodes.Tuple | nodes.List) and len(node.items) == len(target.items) and how == "value"
        parts = node.items if fits and isinstance(node, nodes.Tuple | nodes.List) else None
        for index, one in enumerate(target.items):
            _give(found, one, "item", node) if parts is None else _give(found, one, how, parts[index])


def _arguments(found: dict[str, list[Source]], macro: nodes.Macro, calls: Sequence[nodes.Call], uses: int) -> None:
    """What the arguments of a macro are given in its `calls`; where its name is used in another way too, that cannot be known."""
    plain = calls and uses == len(calls) and not any(call.dyn_args or call.dyn_kwargs for call in calls)
    names = [argument.name for argument in macro.args]
    for name in names:
        rows = found.setdefault(name, [])
        if not plain:
            rows.append(("unknown", macro))
    for call in calls:
        given: Mapping[str, nodes.Node] = dict(zip(names, call.args, strict=False)) | {pair.key: pair.value for pair in call.kwargs}
        for name, node in given.items():
            found.setdefault(name, []).append(("value", node))
    for name, default in zip(names[len(names) - len(macro.defaults) :], macro.defaults, strict=True):
        found[name].append(("value", default))


def loops(tree: nodes.Template) -> dict[int, nodes.For]:
    """Which loop each use of the name `loop` (by the identity of its node) speaks of."""
    found: dict[int, nodes.For] = {}

    def walk(node: nodes.Node, around: nodes.For | None) -> None:
        if isinstance(node, nodes.Name) and node.name == "loop" and around is not None:
            found[id(node)] = around
        if isinstance(node, nodes.Macro):
            around = None
        for name, value in node.iter_fields():
            inner = node if isinstance(node, nodes.For) and name in ("body", "test") else around
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, nodes.Node):
                    walk(one, inner)

    walk(tree, None)
    return found


def pieces(form: str) -> list[str]:
    """The constant pieces of a format string, of either kind."""
    rest = form.replace("%%", "%")
    for mark in ("%s", "%d", "%c", "{}", *(f"{{{number}}}" for number in range(10))):
        rest = rest.replace(mark, "\0")
    return [piece for piece in rest.split("\0") if piece]


def constants(node: nodes.Node | None) -> list[str]:
    """The texts in a constant, or in a list of them."""
    value = constant(node) if node is not None else None
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]
