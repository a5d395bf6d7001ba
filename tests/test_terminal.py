"""What stands in the terminal beside the pages: bars and tables show names from checkpoints letter by letter."""

from __future__ import annotations

import io

import pytest
from cases import ROOT
from rich.console import Console

from forensics.kept import ConceptCard, Kept, LayerRow, Maker
from reports import progress
from reports.probes import show

HOSTILE = "[/nope] [red]adapter[/red]\x1b[2J\u202e"
SEEN = r"[/nope] [red]adapter[/red]\x1b[2J\u202e"


@pytest.mark.filterwarnings("error")
def test_a_bar_shows_the_name_of_an_adapter_and_does_not_obey_it(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=written, force_terminal=True, width=160, color_system=None))

    with progress.bars(watched=True) as tell:
        tell(HOSTILE, 1, 2)
        tell(HOSTILE, 2, 2)

    assert SEEN in written.getvalue()
    assert "\u202e" not in written.getvalue()
    assert "\x1b[2J" not in written.getvalue()


def test_the_site_on_a_card_is_shown_letter_by_letter(tmp_path):
    maker = Maker(name="base", digest="a" * 64, surface="b" * 64)
    row = LayerRow(layer=0, site=HOSTILE, auroc=0.5, discriminant=0.5)
    card = ConceptCard(
        tool="t", created="c", name="n", base=maker, layer=0, position=-1, site="s", fitted="f", threshold=0.0, prompts=(), evidence=(), layers=(row,)
    )  # fmt: skip
    console = Console(file=io.StringIO(), record=True, width=160)

    show(Kept(card=card, folder=tmp_path), console)

    assert SEEN in console.export_text()


def test_texts_are_made_printable_in_one_place():
    assert [file.name for file in sorted((ROOT / "reports").glob("*.py")) if "Text.assemble" in file.read_text()] == ["words.py"]
