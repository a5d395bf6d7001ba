"""A chat template in one spelling: equal texts mean the same program, whatever its layout, comments and names.

`simplify` brings a syntax tree into a form in which what can be written in several ways is written in one: constants are
folded, `message.role` and `message['role']` are one thing, `x | upper` and `x.upper()` too. `program` writes such a tree
down with its own names numbered. Nothing is rendered; folding is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import nodes

from forensics.templates import parse

MAX_FOLDED = 10_000
"""Longest text that folding makes."""
GIVEN = frozenset({
    "messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
    "cls_token", "mask_token", "loop", "caller", "varargs", "kwargs", "self",
    "raise_exception", "strftime_now", "namespace", "dict", "range", "cycler", "joiner", "lipsum",
})  # fmt: skip
"""Names with a meaning of their own, which a template cannot choose."""
METHODS = frozenset(name for kind in (str, list, dict) for name in dir(kind) if not name.startswith("_"))
"""Attributes that reach a method where `x['name']` would reach an entry."""
AS_FILTERS = {"strip": "trim", "lower": "lower", "upper": "upper", "capitalize": "capitalize", "replace": "replace"}
"""Methods of a text that have a filter of the same effect."""
OTHER_NAMES = {"count": "length", "d": "default", "e": "escape"}
COMPARING_TESTS = {
    "equalto": "eq", "==": "eq", "eq": "eq", "ne": "ne", "!=": "ne", "gt": "gt", ">": "gt", "greaterthan": "gt", "ge": "gteq", ">=": "gteq",
    "lt": "lt", "<": "lt", "lessthan": "lt", "le": "lteq", "<=": "lteq", "in": "in",
}  # fmt: skip
MIRRORED = {"eq": "eq", "ne": "ne", "lt": "gt", "lteq": "gteq", "gt": "lt", "gteq": "lteq"}
PLAIN_FORMAT = re.compile(r"(?:[^%]|%[csd]|%%)*")
FOLDED_FILTERS: dict[str, Callable[..., Any]] = {
    "lower": lambda text: text.lower(),
    "upper": lambda text: text.upper(),
    "capitalize": lambda text: text.capitalize(),
    "trim": lambda text, letters=None: text.strip(letters),
    "reverse": lambda text: text[::-1],
    "string": lambda text: text,
    "length": len,
    "int": lambda text: int(text),
    "replace": lambda text, old, new: text.replace(old, new) if (text.count(old) + 1) * len(new) < MAX_FOLDED else None,
    "format": lambda text, *parts: text % parts if PLAIN_FORMAT.fullmatch(text) else None,
}
"""Filters that are computed while reading where they are given constants."""


def simplify(template: str) -> nodes.Template:
    """The syntax tree of `template` in one spelling.

    Raises:
        TemplateFailed: It is no template, or too long for one.
        RecursionError: It is nested deeper than any honest one.
    """
    tree = parse(template)
    rewritten = _Simplify(bound_names(tree)).visit(tree)
    assert isinstance(rewritten, nodes.Template)
    return rewritten


def program(template: str) -> str:
    """What `template` does, as a text that is the same for two spellings of the same program.

    Raises:
        TemplateFailed: It is no template, or too long for one.
        RecursionError: It is nested deeper than any honest one.
    """
    tree = simplify(template)
    return _Writer(bound_names(tree) - GIVEN - _asked_first(tree)).block(tree.body)


def bound_names(tree: nodes.Node) -> frozenset[str]:
    """Names that the template gives itself: by `set`, `for`, `macro` and their arguments."""
    found = {name.name for name in tree.find_all(nodes.Name) if name.ctx in ("store", "param")}
    return frozenset(found | {macro.name for macro in tree.find_all(nodes.Macro)})


def constant(node: nodes.Node) -> Any:
    """The value of a constant, or of a list of constants; None for everything else (and for `none`)."""
    if isinstance(node, nodes.Const):
        return node.value
    if isinstance(node, nodes.TemplateData):
        return node.data
    if isinstance(node, nodes.List | nodes.Tuple) and all(isinstance(item, nodes.Const) for item in node.items):
        return [constant(item) for item in node.items]
    return None


def fold_filter(name: str, value: Any, arguments: Sequence[Any]) -> Any:
    """What filter `name` makes of a constant, or None if that is not to be computed here."""
    if name == "join" and isinstance(value, list) and len(arguments) <= 1 and all(isinstance(one, str | int) for one in value):
        between = str(arguments[0]) if arguments else ""
        return _bounded(between.join(map(str, value))) if len(value) * (len(between) + 1) < MAX_FOLDED else None
    if not isinstance(value, str) or name not in FOLDED_FILTERS or not all(isinstance(one, str | int) for one in arguments):
        return None
    try:
        return _bounded(FOLDED_FILTERS[name](value, *arguments))
    except (TypeError, ValueError, OverflowError):
        return None


def _bounded(value: Any) -> Any:
    return None if isinstance(value, str) and len(value) > MAX_FOLDED else value


class _Simplify:
    """Rewrites a tree in place, from the leaves up."""

    def __init__(self, bound: frozenset[str]) -> None:
        self._bound = bound
        self._looped: list[str] = []
        """What the loops around here go through; empty where that cannot be told from the spelling."""
        self._rules: dict[type[nodes.Node], Callable[[Any], nodes.Node]] = {
            nodes.If: _if,
            nodes.CondExpr: _conditional,
            nodes.Not: _negated,
            nodes.Getattr: _attribute,
            nodes.Getitem: _item,
            nodes.Concat: lambda node: _joined(node.nodes),
            nodes.Add: _sum,
            nodes.Neg: lambda node: nodes.Const(-node.node.value) if isinstance(constant(node.node), int) else node,
            nodes.Mod: _formatted,
            nodes.Filter: _filter,
            nodes.Call: _call,
            nodes.Test: self._test,
            nodes.Compare: self._compare,
        }

    def visit(self, node: nodes.Node) -> nodes.Node:
        """The node in its one spelling."""
        looped = isinstance(node, nodes.For)
        if isinstance(node, nodes.For):  # what it goes through is read first: its body may speak of it
            node.iter = self.visit(node.iter)
            names = [node.iter, *node.iter.find_all(nodes.Name)]
            plain = node.test is None and not any(isinstance(one, nodes.Name) and one.name in self._bound for one in names)
            self._looped.append(repr(node.iter) if plain else "")
        for field, value in list(node.iter_fields()):
            if isinstance(value, nodes.Node) and not (looped and field == "iter"):
                setattr(node, field, self.visit(value))
            elif isinstance(value, list):
                made = [self.visit(one) if isinstance(one, nodes.Node) else one for one in value]
                setattr(node, field, [part for one in made for part in _spread(one)] if field in ("body", "else_") else made)
        if looped:
            self._looped.pop()
        rule = self._rules.get(type(node))
        return rule(node) if rule else node

    def _test(self, node: nodes.Test) -> nodes.Node:
        if node.name in COMPARING_TESTS and len(node.args) == 1:
            return self._compare(nodes.Compare(node.node, [nodes.Operand(COMPARING_TESTS[node.name], node.args[0])]))
        if node.name == "undefined":
            return nodes.Not(nodes.Test(node.node, "defined", [], [], None, None))
        return node

    def _compare(self, node: nodes.Compare) -> nodes.Node:
        if len(node.ops) != 1:
            return node
        how, left, right = node.ops[0].op, node.expr, node.ops[0].expr
        if how in ("ne", "notin"):
            return nodes.Not(self._compare(nodes.Compare(left, [nodes.Operand("eq" if how == "ne" else "in", right)])))
        if how in MIRRORED and isinstance(left, nodes.Const) and not isinstance(right, nodes.Const):
            how, left, right = MIRRORED[how], right, left
        number = constant(right)
        if _counter(left, "index") and isinstance(number, int):
            left, right = _of_loop("index0"), nodes.Const(number - 1)
        if how == "eq" and _counter(left, "index0") and constant(right) == 0:
            return _of_loop("first")
        if how == "eq" and self._looped and self._ends_the_loop(left, right):
            return _of_loop("last")
        return nodes.Compare(left, [nodes.Operand(how, right)])

    def _ends_the_loop(self, left: nodes.Node, right: nodes.Node) -> bool:
        """Whether both sides are equal in the last round of the loop they stand in, and in no other."""
        shorter = isinstance(right, nodes.Sub) and constant(right.right) == 1
        length = right.left if isinstance(right, nodes.Sub) and shorter else right
        fits = _counter(left, "index0") if shorter else _counter(left, "index")
        counts = isinstance(length, nodes.Filter) and length.name == "length" and repr(length.node) == self._looped[-1]
        return fits and (counts or _counter(length, "length"))


def _negated(node: nodes.Not) -> nodes.Node:
    """`not not x` is `x` only where `x` is a yes or no itself; where it is only asked about, `_asked_about` sees to it."""
    inner = node.node
    return inner.node if isinstance(inner, nodes.Not) and isinstance(inner.node, nodes.Compare | nodes.Test | nodes.Not) else node


def _asked_about(test: nodes.Node) -> nodes.Expr:
    """A condition without two `not` in front of it."""
    assert isinstance(test, nodes.Expr)
    return test.node.node if isinstance(test, nodes.Not) and isinstance(test.node, nodes.Not) else test


def _if(node: nodes.If) -> nodes.Node:
    while len(node.else_) == 1 and isinstance(node.else_[0], nodes.If):  # {% else %}{% if %} is {% elif %}
        inner = node.else_[0]
        node.elif_ = [*node.elif_, nodes.If(inner.test, inner.body, [], []), *inner.elif_]
        node.else_ = inner.else_
    for arm in (node, *node.elif_):
        arm.test = _asked_about(arm.test)
    if isinstance(node.test, nodes.Not) and not node.elif_ and node.else_:
        node.test, node.body, node.else_ = node.test.node, node.else_, node.body
    _sort_arms([node, *node.elif_])
    return node


def _conditional(node: nodes.CondExpr) -> nodes.Node:
    node.test = _asked_about(node.test)
    if isinstance(node.test, nodes.Not) and node.expr2 is not None:
        node.test, node.expr1, node.expr2 = node.test.node, node.expr2, node.expr1
    return node


def _attribute(node: nodes.Getattr) -> nodes.Node:
    if node.attr in METHODS and not _is_loop(node.node):
        return node
    return nodes.Getitem(node.node, nodes.Const(node.attr), node.ctx)


def _item(node: nodes.Getitem) -> nodes.Node:
    value = constant(node.node)
    if not isinstance(value, str):
        return node
    cut = node.arg
    parts = [cut.start, cut.stop, cut.step] if isinstance(cut, nodes.Slice) else [cut]
    if not all(part is None or isinstance(constant(part), int) for part in parts):
        return node
    numbers: list[Any] = [None if part is None else constant(part) for part in parts]
    try:
        return nodes.Const(value[slice(*numbers)] if isinstance(cut, nodes.Slice) else value[numbers[0]])
    except (IndexError, ValueError):
        return node


def _sum(node: nodes.Add) -> nodes.Node:
    left, right = constant(node.left), constant(node.right)
    if isinstance(left, int) and isinstance(right, int):
        return nodes.Const(left + right)
    # A text can only be added to a text, so this is `~`.
    return _joined([node.left, node.right]) if _is_text(node.left) or _is_text(node.right) else node


def _formatted(node: nodes.Mod) -> nodes.Node:
    form, parts = constant(node.left), constant(node.right)
    if not isinstance(form, str) or parts is None or isinstance(node.right, nodes.List):  # a list is one thing to write, a tuple several
        return node
    made = fold_filter("format", form, parts if isinstance(parts, list) else [parts])
    return node if made is None else nodes.Const(made)


def _filter(node: nodes.Filter) -> nodes.Node:
    node.name = OTHER_NAMES.get(node.name, node.name)
    if node.node is None or node.kwargs or node.dyn_args or node.dyn_kwargs:
        return node
    if node.name in ("first", "last") and not node.args:
        return _item(nodes.Getitem(node.node, nodes.Const(0 if node.name == "first" else -1), "load"))
    value = constant(node.node)
    if value is None or not all(isinstance(one, nodes.Const) for one in node.args):
        return node
    made = fold_filter(node.name, value, [constant(one) for one in node.args])
    return node if made is None else nodes.Const(made)


def _call(node: nodes.Call) -> nodes.Node:
    if not isinstance(node.node, nodes.Getattr) or node.kwargs or node.dyn_args or node.dyn_kwargs:
        return node
    name, base = node.node.attr, node.node.node
    if name == "join" and len(node.args) == 1 and isinstance(constant(base), str):
        return _filter(nodes.Filter(node.args[0], "join", [base], [], None, None))
    if name in AS_FILTERS and len(node.args) == (2 if name == "replace" else 0):
        return _filter(nodes.Filter(base, AS_FILTERS[name], node.args, [], None, None))
    return node


def _is_loop(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == "loop"


def _of_loop(name: str) -> nodes.Getitem:
    return nodes.Getitem(nodes.Name("loop", "load"), nodes.Const(name), "load")


def _counter(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.Getitem) and _is_loop(node.node) and constant(node.arg) == name


def _is_text(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Concat) or isinstance(constant(node), str)


def _joined(parts: Sequence[nodes.Expr]) -> nodes.Expr:
    """The parts one after the other as a text, neighbouring constants made one."""
    flat: list[nodes.Expr] = []
    for part in parts:
        for one in part.nodes if isinstance(part, nodes.Concat) else [part]:
            value, before = constant(one), constant(flat[-1]) if flat else None
            if value == "" and len(parts) > 1:
                continue
            if isinstance(value, str) and isinstance(before, str) and len(value) + len(before) <= MAX_FOLDED:
                flat[-1] = nodes.Const(before + value)
            else:
                flat.append(one)
    if not flat:
        return nodes.Const("")
    return flat[0] if len(flat) == 1 and isinstance(constant(flat[0]), str) else nodes.Concat(flat)


def _sort_arms(arms: Sequence[nodes.If]) -> None:
    """Bring neighbouring arms that compare one thing with different texts into one order: at most one of them is taken."""
    start = 0
    while start < len(arms):
        end, first, seen = start, _asked(arms[start].test), set()
        while end < len(arms) and (asked := _asked(arms[end].test)) and first and asked[0] == first[0] and asked[1] not in seen:
            seen.add(asked[1])
            end += 1
        run = arms[start : max(end, start + 1)]
        order = sorted(((repr(arm.test), arm.test, arm.body) for arm in run), key=lambda row: row[0])
        for arm, (_, test, body) in zip(run, order, strict=True):
            arm.test, arm.body = test, body
        start += len(run)


def _asked(test: nodes.Node) -> tuple[str, str] | None:
    """What is compared with which text, if that is all the test does."""
    if not isinstance(test, nodes.Compare) or len(test.ops) != 1 or test.ops[0].op != "eq":
        return None
    value = constant(test.ops[0].expr)
    return (repr(test.expr), value) if isinstance(value, str) else None


def _spread(node: nodes.Node) -> list[nodes.Node]:
    """An output as one node a piece; a piece that is `a if x else b` as the statement it amounts to."""
    if not isinstance(node, nodes.Output):
        return [node]
    pieces: list[nodes.Node] = []
    for piece in node.nodes:
        if isinstance(piece, nodes.TemplateData):
            pieces.append(nodes.Output([nodes.Const(piece.data)]))
        elif isinstance(piece, nodes.Concat):
            pieces += [nodes.Output([part]) for part in piece.nodes]
        elif isinstance(piece, nodes.CondExpr):
            arms = [[] if arm is None else _spread(nodes.Output([arm])) for arm in (piece.expr1, piece.expr2)]
            pieces.append(nodes.If(piece.test, arms[0], [], arms[1]))
        else:
            pieces.append(nodes.Output([piece]))
    return pieces


BEFORE_ITS_NAME: dict[type[nodes.Node], tuple[str, ...]] = {
    nodes.For: ("iter",), nodes.Assign: ("node",), nodes.AssignBlock: ("body",), nodes.With: ("values",),
}  # fmt: skip
"""What of a statement is read before the name that it sets has its value."""


def _asked_first(tree: nodes.Node) -> frozenset[str]:
    """Names that are read before they are given anything: whoever deploys the model can set these, so their names matter."""
    seen: set[str] = set()
    found: set[str] = set()
    stack: list[nodes.Node] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, nodes.Name) and node.name not in seen:
            seen.add(node.name)
            if node.ctx == "load":
                found.add(node.name)
        elif isinstance(node, nodes.Macro):
            seen.add(node.name)
        early = {id(one) for one in node.iter_child_nodes(only=BEFORE_ITS_NAME.get(type(node), ()))}
        backwards = list(node.iter_child_nodes())[::-1]
        stack += sorted(backwards, key=lambda one: id(one) in early)  # what is read first lies on top
    return frozenset(found)


class _Writer:
    """Writes a simplified tree down, its own names by number in the order in which they come."""

    def __init__(self, bound: frozenset[str]) -> None:
        self._bound = bound
        self._numbers: dict[str, int] = {}

    def block(self, body: Sequence[nodes.Node]) -> str:
        """A list of statements; constant outputs that follow each other are one."""
        parts: list[str] = []
        text = ""
        for node in body:
            value = constant(node.nodes[0]) if isinstance(node, nodes.Output) and len(node.nodes) == 1 else None
            if isinstance(value, str):
                text += value
                continue
            if text:
                parts.append(repr(text))
            text = ""
            parts.append(self.node(node))
        return "; ".join([*parts, repr(text)] if text else parts)

    def node(self, node: nodes.Node) -> str:
        """Any node: its kind and its fields."""
        fields = []
        for field, value in node.iter_fields():
            if isinstance(value, list) and field in ("body", "else_", "elif_"):
                fields.append("{" + self.block(value) + "}")
            elif isinstance(value, list):
                fields.append("[" + ", ".join(self._value(one) for one in value) + "]")
            elif field == "name" and isinstance(node, nodes.Name | nodes.NSRef | nodes.Macro):
                fields.append(self._name(value))
            else:
                fields.append(self._value(value))
        return f"{type(node).__name__}({', '.join(fields)})"

    def _value(self, value: object) -> str:
        return self.node(value) if isinstance(value, nodes.Node) else repr(value)

    def _name(self, name: str) -> str:
        if name not in self._bound:
            return repr(name)
        return f"#{self._numbers.setdefault(name, len(self._numbers))}"
