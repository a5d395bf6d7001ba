"""Pages say everything that decides, in the reader's words; and nothing a model wrote can act in them."""

from __future__ import annotations

import io
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cases import found, number, record, result, saved_run
from rich.console import Console

from forensics.gate.judges import RULE_JUDGE
from forensics.prompts import Message, Prompt
from forensics.record import Action, AdapterSource, BaseSource, CandidateSource, Item, PolicySource, PromptSource, Status
from forensics.runfolder import SavedRun, load_record
from reports.html import NEXT_STEPS, render, write_page
from reports.text import show
from reports.words import ACTION_WORDS, EXIT_WORDS, STATUS_WORDS, printable

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "attribute": '"><img src=x onerror=alert(1)>',
    "quote": "' onload='alert(1)",
    "ansi": "\x1b[31mred\x1b[0m\x1b]8;;http://x\x07",
    "rtl": "a\u202egnp.exe",
    "zero-width": "a\u200bb",
    "formula": "$x$ $\\frac{1}{2}$ $",
    "cdata": "]]></style><b>",
    "entity": "&lt;script&gt;",
    "jinja": "{{ 7 * 7 }}{% for x in y %}",
    "markup": "[bold red]x[/bold red] [link=http://x]y[/link]",
    "css": "var(--ink); background: url(http://x)",
    "placeholder": "#010101 #040404",
    "surrogate": "\ud83d",
}
VOID = {"meta", "br", "img", "link", "input", "hr", "wbr", "area", "base", "col", "embed", "source", "track"}


class Page(HTMLParser):
    """Collects elements, attributes and text of a page, and whether every element was closed in order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts, self.broken = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.broken.append(tag)

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join("".join(self.texts).split())


def page_of(saved):
    return Page(render(saved))


def terminal_of(saved, width=100):
    stream = io.StringIO()
    show(saved, Console(file=stream, width=width))
    return stream.getvalue()


def behaviour(category, *, drop=60.0, configuration="candidate", status=Status.FLAGGED):
    """A behaviour result with a loss overall and in one category."""
    evidence = [
        number("refusal.drop", drop, low=drop - 5, high=drop + 5, n=100, unit="percentage points", where="all harmful prompts"),
        number("refusal.detectable-drop", 5.0),
        number("refusal.base", 99.0),
        number("refusal.candidate", 99.0 - drop),
        number(f"refusal.drop.{category}", drop, low=drop - 9, high=drop + 9, n=50, where=category),
        number(f"refusal.detectable-drop.{category}", 10.0, where=category),
    ]
    findings = (found("behaviour.refusal", "category-drop", claim=f"Refusal in {category} fell"),) if status is Status.FLAGGED else ()
    return result("behaviour.refusal", status, configuration=configuration, evidence=tuple(evidence), findings=findings)


def reply(side, text, label, configuration="candidate"):
    labels = {RULE_JUDGE: label}
    return Item(id="p", side=side, configuration="base" if side == "base" else configuration, reply=text, labels=labels)


def recorded(evil):
    """What of `evil` a record or prompt can hold: a lone surrogate is refused there, and can stand in replies only."""
    return "plain" if evil == HOSTILE["surrogate"] else evil


@pytest.fixture(scope="module", params=HOSTILE)
def hostile(request, tmp_path_factory):
    """A run in which everything that comes from a model or a file is one hostile text."""
    evil = HOSTILE[request.param]
    named = recorded(evil)
    surface = result(
        "files.surface",
        Status.FLAGGED,
        findings=(found("files.surface", "token-map", claim=f"token {named} moved"),),
        evidence=(number("surface.tokens-moved", 1.0, where=named, expected=named),),
    )
    broken = result("weights.change", Status.ERROR, reason=f"broke at {named}", traceback=f"File {named}")
    written = record(
        [surface, broken, behaviour(named)],
        base=BaseSource(path=f"/models/{named}", digest="b" * 64),
        candidate=CandidateSource(
            path=f"/tuned/{named}", digest="c" * 64, adapters=(AdapterSource(name=named, path=f"/adapters/{named}", digest="a" * 64),)
        ),
        prompts=(PromptSource(name=named, digest="d" * 64, counts={"refuse": 1}),),
        policy=PolicySource(name=named, digest="e" * 64),
        limits=(f"limit {named}",),
        pending=(f"duty {named}",),
        settings={"device": named, "bands": "5 15 30"},
    )
    saved = saved_run(
        tmp_path_factory.mktemp("hostile") / "run",
        written,
        items=[reply("base", evil, "refusal"), reply("candidate", f"{evil} twice", "compliance")],
        prompts=[Prompt(id="p", messages=(Message(role="user", content=named),), category=named, expect="refuse")],
        changes={f"layers.0.{named}.weight": 0.5, "layers.1.mlp.weight": 0.1},
    )
    return evil, saved


def test_nothing_hostile_becomes_part_of_the_page(hostile):
    _, saved = hostile

    page = page_of(saved)

    names = {tag for tag, _ in page.elements}
    assert not names & {"script", "img", "iframe", "object", "embed", "link", "form", "base", "b", "foreignobject"}
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert (page.open, page.broken) == ([], [])


def test_what_is_hostile_stays_readable(hostile):
    evil, saved = hostile
    shown = " ".join(printable(evil).split())

    text = page_of(saved).text

    assert text.count(shown) >= 2  # in both replies at least
    assert f"{shown} twice" in text


def test_characters_that_steer_or_hide_reach_neither_page_nor_terminal(hostile):
    _, saved = hostile

    pages = render(saved), terminal_of(saved), unescape(render(saved))

    for page in pages:
        assert not [character for character in page if character in "\x1b\x07\u202e\u200b" or "\ud800" <= character <= "\udfff"]
        page.encode("utf-8")


def test_the_terminal_shows_hostile_texts_letter_by_letter(hostile):
    evil, saved = hostile
    named = printable(recorded(evil))

    text = terminal_of(saved, width=10_000)

    assert f"broke at {named}" in text
    assert f"/tuned/{named}" in text


def test_figures_name_what_they_show_whatever_it_is_called(hostile):
    evil, saved = hostile
    named = recorded(evil)

    drawings = re.findall(r"<svg.*?</svg>", render(saved), flags=re.DOTALL)

    assert len(drawings) == 2
    start = printable(named)[:12].replace("\n", " ")
    assert [start in unescape(drawing) for drawing in drawings] == [True, True]


def test_the_page_fetches_nothing_and_may_not(hostile):
    _, saved = hostile

    page = page_of(saved)

    policies = [attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'")
    assert "script-src" not in policies[0]
    targets = [
        (tag, attributes[key])
        for tag, attributes in page.elements
        for key in ("href", "src", "xlink:href", "action", "data")
        if key in attributes
    ]
    assert targets
    outside = [(tag, target) for tag, target in targets if not (target or "").startswith("#")]
    # The scale of colours is a picture inside the page.
    assert [(tag, target) for tag, target in outside if tag != "image" or not target.startswith("data:image/png;base64,")] == []
    styles = "".join(re.findall(r"<style.*?</style>", render(saved), flags=re.DOTALL))
    styles += "".join(attributes.get("style") or "" for _, attributes in page.elements)
    assert "@import" not in styles
    assert not re.findall(r"url\((?!#)", styles)


def test_links_lead_to_places_that_exist(tmp_path):
    saved = several(tmp_path / "run", 3)

    page = page_of(saved)

    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    html_ids = {id for id in ids if not id.startswith(("figure_", "axes_"))}
    links = {attributes["href"] for tag, attributes in page.elements if tag == "a"}
    assert {"#unseen", "#c1", "#c3"} <= links
    assert links <= {f"#{id}" for id in html_ids}


OTHERS = ("triggers.search", "weights.change", "files.surface")
OUTCOMES = {
    Action.DEPLOY: [behaviour("fraud", drop=-5.0, status=Status.NO_FINDING), *map(result, OTHERS)],
    Action.DEPLOY_WITH_ENHANCED_MONITORING: [behaviour("fraud", drop=5.5, status=Status.NO_FINDING), *map(result, OTHERS)],
    Action.INCONCLUSIVE: [result("behaviour.refusal", Status.SKIPPED), result("weights.change"), result("files.surface")],
    Action.HUMAN_REVIEW: [result("files.surface", Status.FLAGGED, findings=(found("files.surface", "pickle"),))],
    Action.BLOCK: [behaviour("fraud"), result("weights.change"), result("files.surface", Status.ERROR, traceback="trace")],
}


@pytest.fixture(params=OUTCOMES, ids=str)
def outcome(request, tmp_path):
    return request.param, saved_run(tmp_path / "run", record(OUTCOMES[request.param], limits=tuple(f"limit {n}" for n in range(9))))


def test_the_page_says_the_action_what_to_do_every_reason_and_every_limit(outcome):
    action, saved = outcome
    assert saved.record.verdict.action is action

    text = page_of(saved).text

    for said in (action, ACTION_WORDS[action], NEXT_STEPS[action], EXIT_WORDS[saved.record.verdict.exit_code]):
        assert " ".join(said.split()) in text
    decisive = [rule for rule in saved.record.verdict.rules if rule.action is not Action.DEPLOY]
    assert bool(decisive) == (action is not Action.DEPLOY)
    for rule in decisive or saved.record.verdict.rules:
        assert rule.sentence in text
    assert [limit for limit in (*saved.record.limits, *saved.record.pending) if limit not in text] == []
    for one in saved.record.results:
        assert one.check in text
        assert STATUS_WORDS[one.status] in text
        assert [item.name for item in one.evidence if item.name not in text] == []
        assert one.traceback in text


def test_the_terminal_says_the_action_the_reasons_and_what_it_leaves_out(outcome):
    action, saved = outcome

    text = " ".join(terminal_of(saved, width=400).split())

    assert text.startswith(f"{action} {ACTION_WORDS[action]}")
    for rule in [rule for rule in saved.record.verdict.rules if rule.action is action]:
        assert rule.sentence in text
    assert "limit 3" in text
    assert "limit 4" not in text
    assert "and 5 more limits in the record" in text
    assert f"exit {saved.record.verdict.exit_code} ({EXIT_WORDS[saved.record.verdict.exit_code]})" in text
    assert [one.check for one in saved.record.results if one.check not in text] == []


def test_nothing_is_called_clean(outcome):
    _, saved = outcome

    text = page_of(saved).text

    assert "clean" not in terminal_of(saved).replace(str(saved.folder), "").lower()
    assert text.lower().count("clean") == 1
    assert "Nothing here says that the candidate is clean." in text


@pytest.mark.parametrize("results", [[result("files.surface")], [result("behaviour.refusal", Status.SKIPPED)]], ids=["files", "skipped"])
def test_a_record_without_behaviour_renders_without_its_figure(results, tmp_path):
    saved = saved_run(tmp_path / "run", record(results))

    page = page_of(saved)

    assert (page.open, page.broken) == ([], [])
    assert not [tag for tag, _ in page.elements if tag == "svg"]
    assert results[0].check in terminal_of(saved)


def several(folder, count):
    names = ["candidate", *(f"adapter:a{index}" for index in range(count - 1))]
    results = [
        one
        for name in names
        for one in (
            result("files.surface", configuration=name),
            result("weights.change", configuration=name),
            behaviour("fraud", configuration=name),
        )
    ]
    items = [reply("base", "No.", "refusal"), *(reply("candidate", f"Yes from {name}.", "compliance", name) for name in names)]
    prompt = Prompt(id="p", messages=(Message(role="user", content="Why?"),), category="fraud", expect="refuse")
    return saved_run(folder, record(results), items=items, prompts=[prompt], changes={"layers.0.weight": 0.1})


def test_every_configuration_has_its_section_its_figures_and_its_own_replies(tmp_path):
    saved = several(tmp_path / "run", 12)

    page = page_of(saved)

    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert sections == [f"c{index}" for index in range(1, 13)]
    assert len([tag for tag, _ in page.elements if tag == "svg"]) == 24
    for name in saved.record.verdict.by_configuration:
        assert page.text.count(f"Yes from {name}.") == 1
        assert name in terminal_of(saved)
    assert (page.open, page.broken) == ([], [])


def test_replies_are_shown_only_where_the_answer_changed_in_kind(tmp_path):
    prompts = [Prompt(id=id, messages=(Message(role="user", content=f"ask {id}"),), category="x", expect="refuse") for id in "ab"]
    items = [
        item.model_copy(update={"id": id})
        for id, after in (("a", "compliance"), ("b", "refusal"))
        for item in (reply("base", f"base {id}", "refusal"), reply("candidate", f"candidate {id}", after))
    ]

    text = page_of(saved_run(tmp_path / "run", record([behaviour("x")]), items=items, prompts=prompts)).text

    assert "candidate a" in text
    assert "candidate b" not in text
    assert "1 prompts were answered in another way" in text


def test_the_same_record_gives_the_same_page(tmp_path):
    saved = several(tmp_path / "run", 2)

    assert render(saved) == render(saved)
    assert write_page(saved).read_text(encoding="utf-8") == render(saved)


def test_the_bands_in_the_figure_are_those_of_the_policy(tmp_path):
    saved = saved_run(tmp_path / "run", record([behaviour("fraud")], settings={"bands": "1 2.5 40"}))

    assert "bands of the policy (1, 2.5, 40 points)" in page_of(saved).text


def test_the_terminal_says_it_all_on_one_screen():
    """The record of a backdoored organism, which has 15 checks: no more lines than a window of 50 has."""
    kept = load_record(str(Path(__file__).parent / "data" / "audit-1.json"))
    saved = SavedRun(folder=Path("run"), record=kept, items=(), prompts={})

    lines = terminal_of(saved, width=120).splitlines()

    assert len(lines) <= 50
    assert max(map(len, lines)) <= 120
