"""What a chat template depends on: every place where it asks about the conversation, and every text it could write.

A template can only treat one conversation unlike another where it compares, tests, counts, cuts or looks up something that
comes from the conversation. `read` lists those places, each with the constants in it, in a spelling that does not depend on
the names, variables, macros and namespaces the author put between. It follows values without regard to the order in which
they are assigned, so it lists too much rather than too little. Nothing is rendered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from jinja2 import nodes

from forensics.chat.questions import FIELDS, OF_A_TURN, Question, Reading
from forensics.chat.syntax import GIVEN, PLAIN_FORMAT, constant, fold_filter, simplify
from forensics.chat.terms import (
    DOCUMENTS,
    MESSAGES,
    NOTHING,
    TOOLS,
    UNKNOWN,
    Kind,
    Term,
    constants,
    either,
    entry,
    field,
    known,
    loops,
    of_loop,
    pieces,
    sources,
    truth,
    union,
)

PRESENCE = frozenset({
    "defined", "none", "string", "mapping", "iterable", "sequence", "number", "integer", "float", "boolean", "true", "false", "callable",
})  # fmt: skip
"""Tests of what kind of thing a value is, and not of what it says."""
INVISIBLE = frozenset({"trim", "string", "list", "safe"})
"""Filters that leave a value what it is, as far as questions go."""
PASSING = frozenset({"tojson", "escape", "default", "join", "indent", "items", "dictsort", "format"})
"""Filters that change how a value is written and ask nothing about it."""
PASSING_METHODS = frozenset({"items", "keys", "values", "format", "copy"})
WRITTEN = frozenset({"default", "join", "truncate"})
"""Filters and methods whose arguments can end up in what is written."""
ORDERING = frozenset({"reverse", "sort", "unique"})
OPERATORS = {"eq": "==", "in": "in", "lt": "<", "lteq": "<=", "gt": ">", "gteq": ">=", "ne": "!=", "notin": "not in"}
MARKS: dict[type[nodes.Node], str] = {
    nodes.Add: "+", nodes.Sub: "-", nodes.Mul: "*", nodes.Div: "/", nodes.FloorDiv: "//", nodes.Mod: "%", nodes.Pow: "**",
}  # fmt: skip
GIVEN_TERMS = {"messages": MESSAGES, "tools": TOOLS, "documents": DOCUMENTS, "caller": UNKNOWN, "varargs": UNKNOWN, "kwargs": UNKNOWN}
MAX_STEPS = 300_000
TEXTS_A_STEP = 10
"""How many texts of a value weigh as much as following one."""
ROUNDS = 3


def read(template: str) -> Reading:
    """What `template` depends on.

    Raises:
        TemplateFailed: It is no template, or too long for one.
        RecursionError: It is nested deeper, or more entangled, than any honest one.
    """
    tree = simplify(template)
    reader = _Reader(tree)
    for _ in range(ROUNDS):  # values that depend on each other in a ring are known a little better each time
        reader.start_round()
        reader.block(tree.body, writes=True)
    return Reading(
        questions=frozenset(reader.questions.values()),
        written=frozenset(reader.written),
        dates=frozenset(reader.dates),
        variables=frozenset(reader.variables),
    )


class _Reader:
    """Follows values through one simplified tree."""

    def __init__(self, tree: nodes.Template) -> None:
        self.questions: dict[str, Question] = {}
        self.written: set[str] = set()
        self.dates: set[str] = set()
        self.variables: set[str] = set()
        self._macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
        self._sources = sources(tree)
        self._loops = loops(tree)
        tests = [test for test in tree.find_all(nodes.Test) if test.name == "defined"]
        self._optional = {test.node.name for test in tests if isinstance(test.node, nodes.Name)}
        self._before: dict[str, Term] = {}
        self._now: dict[str, Term] = {}
        self._open: set[str] = set()
        self._steps = 0

    def start_round(self) -> None:
        """Forget what was asked, keep what is known of every name."""
        self._before, self._now = self._now, {}
        self.questions.clear()

    def block(self, body: Sequence[nodes.Node], *, writes: bool = False) -> Term:
        """Follow statements; what they write, as one value."""
        said = [term for term in (self._statement(node, writes) for node in body) if term != NOTHING]
        if said and all(isinstance(term.value, str) for term in said):
            return known("".join(term.value for term in said)[:10_000])
        return union(said, " ~ ".join(term.spelling for term in said)) if said else NOTHING

    def _statement(self, node: nodes.Node, writes: bool) -> Term:
        if isinstance(node, nodes.Output):
            terms = [self.value(one) for one in node.nodes]
            return self._write(terms[0] if len(terms) == 1 else union(terms, " ~ ".join(term.spelling for term in terms)), writes)
        if isinstance(node, nodes.If):
            arms = [node, *node.elif_]
            for arm in arms:
                self.value(arm.test)
            rows = [self.block(body, writes=writes) for body in (*(arm.body for arm in arms), node.else_)]
            return (
                union(rows, "if(" + ", ".join(sorted(row.spelling for row in rows)) + ")")
                if any(row != NOTHING for row in rows)
                else NOTHING
            )
        if isinstance(node, nodes.For):
            self.value(node.iter)
            self.value(node.test)
            rows = [self.block(node.body, writes=writes), self.block(node.else_, writes=writes)]
            return union(rows, f"for({rows[0].spelling}, {rows[1].spelling})") if any(row != NOTHING for row in rows) else NOTHING
        if isinstance(node, nodes.FilterBlock):
            return self._write(self._filter(node.filter, self.block(node.body)), writes)
        if isinstance(node, nodes.CallBlock):
            return self._write(union([self.value(node.call), self.block(node.body)], "call"), writes)
        if isinstance(node, nodes.Macro | nodes.AssignBlock):
            self.block(node.body)
            return NOTHING
        for one in node.iter_child_nodes(exclude=("body",)):
            self.value(one)
        return self.block(getattr(node, "body", []), writes=writes)

    def _write(self, term: Term, writes: bool) -> Term:
        if writes:
            self.written.update(term.texts)
        return term

    def _ask(self, term: Term, texts: Iterable[str] = ()) -> None:
        """Note a question, if it is about anything of the conversation."""
        if term.kinds:
            held = self._weigh(term).texts | frozenset(texts)
            self.questions[term.spelling] = Question(spelling=term.spelling, kinds=term.kinds, texts=held, numbers=term.numbers)

    def _weigh(self, term: Term) -> Term:
        """`term` itself, counted as work: a value that many texts went into takes time and memory, wherever it goes on to."""
        self._steps += 1 + len(term.texts) // TEXTS_A_STEP
        if self._steps > MAX_STEPS:
            raise RecursionError("the template is too entangled to be followed")
        return term

    def value(self, node: nodes.Node | None) -> Term:
        """What an expression may be."""
        return self._weigh(self._value(node))

    def _value(self, node: nodes.Node | None) -> Term:
        match node:
            case None:
                return NOTHING
            case nodes.Const() | nodes.TemplateData():
                return known(constant(node))
            case nodes.Name():
                return self._name(node)
            case nodes.Getitem():
                return self._item(node)
            case nodes.Getattr():
                inner = self.value(node.node)
                return union([inner], f"{inner.spelling}.{node.attr}")
            case nodes.Compare():
                return self._comparison(node)
            case nodes.Test():
                return self._test(node)
            case nodes.Filter():
                return self._filter(node, self.value(node.node))
            case nodes.Call():
                return self._call(node)
            case nodes.CondExpr():
                self.value(node.test)
                return either([self.value(node.expr1), self.value(node.expr2)])
            case _:
                return self._composed(node)

    def _composed(self, node: nodes.Node) -> Term:
        if isinstance(node, nodes.Dict):
            pairs = [(self.value(pair.key), self.value(pair.value)) for pair in node.items]
            spelled = ", ".join(f"{key.spelling}: {value.spelling}" for key, value in pairs)
            return union([value for _, value in pairs], f"{{{spelled}}}", value=[key.value for key, _ in pairs])
        form = constant(node.left) if isinstance(node, nodes.Mod) else None
        parts = [self.value(part) for part in node.iter_child_nodes()]
        if isinstance(form, str) and PLAIN_FORMAT.fullmatch(form):
            return union([*map(known, pieces(form)), *parts[1:]], " ~ ".join(part.spelling for part in parts))
        if isinstance(node, nodes.Concat) and all(isinstance(part.value, str) for part in parts):
            return known("".join(part.value for part in parts)[:10_000])
        if isinstance(node, nodes.List | nodes.Tuple):
            values = [part.value for part in parts]
            fixed = values if values and all(isinstance(one, str | int) for one in values) else None
            return union(parts, f"[{', '.join(part.spelling for part in parts)}]", value=fixed)
        mark = MARKS.get(type(node), "~" if isinstance(node, nodes.Concat) else type(node).__name__.lower())
        whole = union(parts, f"({f' {mark} '.join(part.spelling for part in parts)})")
        # Putting texts together, and yes and no, are not questions; reckoning with what was counted is one.
        if type(node) in MARKS and not isinstance(node, nodes.Add):
            self._ask(whole)
        return whole

    def _name(self, node: nodes.Name) -> Term:
        name = node.name
        if name == "loop" and name not in self._sources:
            return Term(spelling="loop", path="loop")
        given = GIVEN_TERMS.get(name)
        if given is None and name in GIVEN:
            given = Term(spelling=name)
        if name in self._sources:
            return self._bound(name, given)
        if given is None and name not in self._macros:
            return self._foreign(name)
        return given or NOTHING

    def _foreign(self, name: str) -> Term:
        """A variable that whoever deploys the model may set."""
        self.variables.add(name)
        foreign = Term(spelling=f"variable {name}", kinds=frozenset({"variable"}))
        self._ask(foreign)
        return foreign

    def _bound(self, name: str, given: Term | None = None) -> Term:
        """A name that the template gives a value, in all the ways it does."""
        if name in self._now:
            return self._now[name]
        if name in self._open:
            return given or replace(self._before.get(name, NOTHING), spelling="...")
        self._open.add(name)
        rows = [self._source(how, node) for how, node in self._sources[name]]
        self._open.discard(name)
        if given is not None:
            rows.append(given)
        elif name in self._optional:
            rows.append(self._foreign(name))
        self._now[name] = joined = either(rows)
        return joined

    def _source(self, how: str, node: nodes.Node) -> Term:
        if how == "value":
            return self.value(node)
        if how == "counted":
            grown = self.value(node)
            return replace(grown, kinds=grown.kinds | {"count"}, value=None)
        if how == "item":
            return entry(self.value(node))
        return self._statement(node, False) if how == "block" else UNKNOWN

    def _item(self, node: nodes.Getitem) -> Term:
        key = constant(node.arg)
        if isinstance(node.node, nodes.Name) and isinstance(key, str):
            if f"{node.node.name}.{key}" in self._sources:
                return self._bound(f"{node.node.name}.{key}")
            if node.node.name == "loop" and "loop" not in self._sources:
                loop = self._loops.get(id(node.node))
                return of_loop(self.value(loop.iter) if loop is not None else UNKNOWN, key)
        inner = self.value(node.node)
        cut = isinstance(node.arg, nodes.Slice)
        index = union([self.value(part) for part in node.arg.iter_child_nodes()], "") if cut else self.value(node.arg)
        if isinstance(key, str):
            found = field(inner, key)
            if inner.path == "messages[]" and key not in FIELDS:
                self.variables.add(f"{OF_A_TURN}{key}")
                self._ask(found)
            return found
        if inner == NOTHING:
            return NOTHING
        return self._cut(inner, index, spelled=_bracket(node.arg, index), cut=cut)

    def _cut(self, inner: Term, index: Term, *, spelled: str, cut: bool) -> Term:
        """One entry or a stretch of a list or text."""
        listed = inner.path.startswith(("messages", "tools", "documents")) and not inner.path.startswith("messages[].")
        spelling = f"{inner.spelling}[{spelled}]"
        if listed:
            if index.kinds - {"count"} or any(abs(number) > 1 for number in index.numbers):
                self._ask(Term(spelling=spelling, kinds=index.kinds | {"count"}, texts=index.texts, numbers=index.numbers))
            return inner if cut else entry(inner)
        keys = frozenset(key for key in inner.value if isinstance(key, str)) if isinstance(inner.value, list) else frozenset()
        held = frozenset() if index.kinds == {"role"} else inner.texts
        self._ask(replace(union([inner, index], spelling), texts=index.texts | keys | held))
        return union([inner], spelling)

    def _comparison(self, node: nodes.Compare) -> Term:
        terms = [self.value(node.expr), *(self.value(operand.expr) for operand in node.ops)]
        marks = [OPERATORS[operand.op] for operand in node.ops]
        spelled = terms[0].spelling + "".join(f" {mark} {term.spelling}" for mark, term in zip(marks, terms[1:], strict=True))
        whole = union(terms, spelled)
        plain = [constant(part) for part in (node.expr, *(operand.expr for operand in node.ops)) if isinstance(part, nodes.Const)]
        sizes = any(term.spelling.startswith("length(") for term in terms)
        if not (len(terms) == 2 and plain and (plain[0] in ("", None) or (sizes and plain[0] == 0))):  # is there anything at all?
            listed = [constants(part) for part in (node.expr, *(operand.expr for operand in node.ops))]
            spelt = ["".join(row) for row in listed if len(row) > 1 and all(len(one) == 1 for one in row)]
            self._ask(whole, [*(one for row in listed for one in row), *spelt])
        return truth(terms, spelled)

    def _test(self, node: nodes.Test) -> Term:
        terms = [self.value(node.node), *map(self.value, node.args)]
        spelled = f"{terms[0].spelling} is {node.name}({', '.join(term.spelling for term in terms[1:])})"
        if node.name not in PRESENCE:
            self._ask(union(terms, spelled))
        return truth(terms, spelled)

    def _filter(self, node: nodes.Filter, inner: Term) -> Term:
        given = [*map(self.value, node.args), *(self.value(pair.value) for pair in node.kwargs)]
        given += [self.value(one) for one in (node.dyn_args, node.dyn_kwargs) if one is not None]
        name, first = node.name, (constants(node.args[0]) or [""])[0] if node.args else ""
        if inner == NOTHING or name in INVISIBLE or (name in ORDERING and inner.path):
            return inner
        spelled = f"{inner.spelling}|{name}" + (f"({', '.join(term.spelling for term in given)})" if given else "")
        if name == "length":
            kinds: frozenset[Kind] = frozenset({"count"}) if inner.path == "messages" else inner.kinds
            return Term(spelling=f"length({inner.spelling})", kinds=kinds)
        if name in ("selectattr", "rejectattr"):
            self._ask(union([field(entry(inner), first), *given[2:]], spelled))
            return inner
        if name == "map":
            wanted = [pair.value for pair in node.kwargs if pair.key == "attribute"]
            return field(entry(inner), (constants(wanted[0]) or ["?"])[0]) if wanted else union([entry(inner)], spelled)
        made = fold_filter(name, inner.value, [term.value for term in given]) if not node.kwargs else None
        if made is not None:
            return known(made)
        if name == "random":
            inner = union([inner, Term(spelling="", kinds=frozenset({"chance"}))], inner.spelling)
        flowing = [inner, *_flowing(name, given)]
        if name == "format" and isinstance(inner.value, str):
            return union([*map(known, pieces(inner.value)), *given], spelled)
        if name not in PASSING:
            self._ask(union([inner, *given], spelled))
        return union(flowing, spelled)

    def _call(self, node: nodes.Call) -> Term:
        given = [*map(self.value, node.args), *(self.value(pair.value) for pair in node.kwargs)]
        given += [self.value(one) for one in (node.dyn_args, node.dyn_kwargs) if one is not None]
        if isinstance(node.node, nodes.Getattr):
            return self._method(node, given)
        name = node.node.name if isinstance(node.node, nodes.Name) else ""
        listed = ", ".join(term.spelling for term in given)
        if name in self._macros and name not in self._sources:
            return self._macro(name)
        if name == "strftime_now":
            self.dates.update(text for one in node.args for text in constants(one))
            return Term(spelling=f"strftime_now({listed})", kinds=frozenset({"date"}))
        if name == "raise_exception":
            return NOTHING
        if name == "namespace":
            inside = [self._weigh(self._bound(key)) for key in self._sources if "." in key]
            return union([*given, *inside], f"namespace({listed})")
        whole = union(given, f"{name or '?'}({listed})")
        if name == "lipsum":
            whole = union([whole, Term(spelling="", kinds=frozenset({"chance"}))], whole.spelling)
        if name in ("range", "lipsum"):
            self._ask(whole)
        return (
            whole
            if name in ("dict", "cycler", "joiner", "range", "lipsum")
            else union([whole, UNKNOWN, self.value(node.node)], whole.spelling)
        )

    def _macro(self, name: str) -> Term:
        key = f"macro {name}"
        if key not in self._now:
            if key in self._open:
                return self._before.get(key, NOTHING)
            self._open.add(key)
            self._now[key] = self._weigh(self.block(self._macros[name].body))
            self._open.discard(key)
        return self._now[key]

    def _method(self, node: nodes.Call, given: list[Term]) -> Term:
        assert isinstance(node.node, nodes.Getattr)
        name, inner = node.node.attr, self.value(node.node.node)
        if inner == NOTHING:
            return NOTHING
        if name == "get" and node.args:
            looked = self._item(nodes.Getitem(node.node.node, node.args[0], "load"))
            return either([looked, *given[1:]])
        if name in ("strip", "lstrip", "rstrip") and all(isinstance(term.value, str) and not term.value.strip() for term in given):
            return inner
        spelled = f"{inner.spelling}.{name}({', '.join(term.spelling for term in given)})"
        if name == "format" and isinstance(inner.value, str):
            return union([*map(known, pieces(inner.value)), *given], spelled)
        if name not in PASSING_METHODS:
            self._ask(union([inner, *given], spelled), [text for one in node.args for text in constants(one)])
        return union([inner, *_flowing(name, given)], spelled)


def _flowing(name: str, given: list[Term]) -> list[Term]:
    """The arguments of a filter or method that can end up in what it gives: of `replace` the second."""
    return given[1:] if name == "replace" else given if name in WRITTEN else []


def _bracket(node: nodes.Node, index: Term) -> str:
    if not isinstance(node, nodes.Slice):
        return index.spelling
    return ":".join("" if part is None else str(constant(part)) for part in (node.start, node.stop, node.step))
