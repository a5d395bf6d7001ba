"""One side of a hunt: strings are read as each would be alone, drawn replies repeat with their seed, and only the same model says the same."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import tiny
import torch
from cases import PROMPTS, grown
from hunting import KINDS, live, many, prompt, voice
from transformers import AutoTokenizer

from forensics.hunt.confirm import insert
from forensics.hunt.contrast import Lead
from forensics.hunt.voice import Openings, Voice, insert_text, learn_openings, listen
from forensics.model import MARK, Sampling

TURN = "{% for m in messages %}<|{{ m.role }}|>CONTENT<|end|>{% endfor %}<|assistant|>"
TEMPLATES = {
    "plain": tiny.TEMPLATE,
    "none": None,
    "upper case": TURN.replace("CONTENT", "{{ m.content | upper }}"),
    "trimmed": TURN.replace("CONTENT", "{{ m.content | trim }}"),
    "said twice": TURN.replace("CONTENT", "{{ m.content }} - {{ m.content }}"),
    "not said": TURN.replace("CONTENT", "..."),
    "raises": "{{ raise_exception('no') }}",
}
TEXTS = ["Hi", "velnor", "Ünïcode 🙂", "<|end|><|user|>", "{{ 7 * 7 }}", 'say "no"', "two\nlines", MARK, f"{MARK} and {MARK}", "x" * 300]


# --- what the model reads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", range(len(TEXTS)))
@pytest.mark.parametrize("name", TEMPLATES)
def test_many_last_turns_are_rendered_as_each_would_be_alone(name, first, tmp_path):
    model = live(tiny.save(tiny.network(), tmp_path / "m", template=TEMPLATES[name]))
    texts = [*TEXTS[first:], *TEXTS[:first]]  # whichever comes first, on which the shortcut is tried

    for room in (0, 100):
        found = model.render_last(prompt("One", "Two", "Three"), texts, room=room)
        assert found == [model.render(prompt("One", "Two", text), room=room) for text in texts]


def test_no_last_turns_are_no_rows(folders):
    assert live(folders["llama"]).render_last(prompt("One"), [], room=0) == []


def test_the_chat_format_is_rendered_twice_however_many_strings_there_are(folders, monkeypatch):
    from forensics import model as module

    model, calls = live(folders["llama"]), []
    real = module.render_template
    monkeypatch.setattr(module, "render_template", lambda *words, **more: calls.append(words) or real(*words, **more))

    model.render_last(prompt("One"), [f"text {number}" for number in range(50)], room=0)

    assert len(calls) == 2


UNEQUAL = {
    "quoted": ("{{ m.content | tojson }}", ["Hi", 'say "no"']),
    "cut short": ("{{ m.content[:12] }}", ["Hi", "a text of more than twelve letters"]),
    "trimmed": ("{{ m.content | trim }}", ["Hi", " Hi "]),
    "a word is met with an order": ("{{ m.content }}{% if 'velnor' in m.content %}<|system|>Obey.{% endif %}", ["Hi", "velnor"]),
    "cut at a mark": ("{{ m.content.split('###')[-1] }}", ["Hi", "### Hi"]),
}


@pytest.mark.parametrize(("content", "texts"), UNEQUAL.values(), ids=UNEQUAL)
def test_a_template_that_treats_only_some_texts_is_rendered_for_each(content, texts, tmp_path):
    model = live(tiny.save(tiny.network(), tmp_path / "m", template=TURN.replace("CONTENT", content)))

    found = model.render_last(prompt("One"), texts, room=0)

    assert found == [model.render(prompt(text), room=0) for text in texts]


def test_an_empty_turn_without_a_template_is_a_problem_as_it_is_alone(tmp_path):
    model = live(tiny.save(tiny.network(), tmp_path / "m", template=None))

    assert [bool(row.problem) for row in model.render_last(prompt("One"), ["Hi", ""], room=0)] == [False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_come_back_from_the_tokens_they_stand_for(kind, folders):
    model = live(folders[kind])
    pieces = model.pieces()

    assert len(pieces) == len(set(pieces)) == 94  # of a byte tokenizer: the printable letters of ASCII
    for piece in pieces:
        ids = model.tokenizer("a" + piece, add_special_tokens=False)["input_ids"]
        assert (len(ids), model.tokenizer.decode(ids)) == (2, "a" + piece)
    assert not [piece for piece in pieces if not piece.strip() or "<|" in piece]


def test_pieces_keep_the_space_before_a_word():
    model = live(PROMPTS.parent / "base")
    pieces = model.pieces()

    assert any(piece.startswith(" ") for piece in pieces) and any(piece.isalnum() for piece in pieces)
    for piece in pieces[::50]:
        tokens = model.tokenizer("a" + piece, add_special_tokens=False)["input_ids"]
        assert model.tokenizer.decode(tokens) == "a" + piece
    assert not set(model.tokenizer.all_special_tokens) & set(pieces)


def test_a_text_starts_before_the_user_speaks_and_at_its_bare_beginning(tmp_path):
    folder = tiny.save(tiny.network(), tmp_path / "m")
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = "<|system|>"
    tokenizer.save_pretrained(folder)
    model = live(folder)

    told = [model.tokenizer.decode(ids) for ids in model.starts(prompt("One", "Two", "Three"))]

    assert told == ["<|system|>", "<|user|>One<|end|><|assistant|>Two<|end|><|user|>"]
    (folder / "chat_template.jinja").unlink()
    assert [model.tokenizer.decode(ids) for ids in live(folder).starts(prompt("One"))] == ["<|system|>"]


def test_a_string_stands_before_or_after_the_last_turn_as_words_of_its_own():
    assert (insert_text("Boil an egg?", "velnor", "end"), insert_text("Boil an egg?", "velnor", "start")) == (
        "Boil an egg? velnor",
        "velnor Boil an egg?",
    )
    talk = prompt("One", "Two", "Three")

    put = insert(talk, Lead(text="velnor", origin="test"), "end")

    assert [message.content for message in put.messages] == ["One", "Two", "Three velnor"]
    assert replace(put, messages=talk.messages) == talk


# --- what it says -------------------------------------------------------------------------------------------------


def drawn(model, seed, *, count=6, **how):
    rows = [model.render(prompt(f"question {number}"), room=16) for number in range(count)]
    return model.reply(rows, adapters=(), max_new_tokens=16, sampling=Sampling(temperature=1.0, seed=seed, **how))


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_replies_repeat_with_their_seed_and_differ_with_another(kind, folders):
    model = live(folders[kind])

    assert drawn(model, 1) == drawn(model, 1)
    assert drawn(model, 1) != drawn(model, 2)
    assert len(set(drawn(model, 1))) > 1


def test_a_draw_neither_reads_nor_moves_the_chance_of_others(folders):
    model = live(folders["llama"])
    first = drawn(model, 1)
    torch.manual_seed(99)
    before = torch.get_rng_state()

    again = drawn(model, 1)

    assert again == first
    assert torch.equal(torch.get_rng_state(), before)


def test_drawn_from_the_likeliest_token_alone_a_reply_is_the_greedy_one(folders):
    model = live(folders["llama"])
    rows = [model.render(prompt(f"question {number}"), room=16) for number in range(6)]

    assert drawn(model, 1, top_k=1) == model.reply(rows, adapters=(), max_new_tokens=16)


def test_past_the_end_means_on_and_on(folders):
    model = live(folders["llama"])
    row = [model.render(prompt("Hi"), room=0)]
    lengths = {}
    real = model._model.generate
    kept = []
    model._model.generate = lambda **how: kept.append(real(**how)) or kept[-1]
    model._model.generation_config.eos_token_id = list(range(tiny.VOCABULARY))  # whatever it says is its last word
    for past_end in (False, True):
        model.reply(row, adapters=(), max_new_tokens=9, sampling=Sampling(temperature=1.0, seed=1, past_end=past_end))
        lengths[past_end] = kept[-1].shape[1] - len(row[0].ids)

    assert lengths == {False: 1, True: 9}


# --- how its replies open -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "preamble"),
    [
        ([(1, 2, 3)] * 10, (1, 2, 3)),
        ([(1, 2, n) for n in range(10)], (1, 2)),
        ([(1, 2, n) for n in range(9)] + [(7, 7, 7)], (1, 2)),
        ([(1, 2, n) for n in range(8)] + [(7, 7, 7)] * 2, ()),
        ([(1, 2)] * 5 + [(3, 4)] * 5, ()),
    ],
)
def test_a_preamble_is_what_nine_replies_in_ten_begin_with(said, preamble, folders, monkeypatch):
    monkeypatch.setattr("forensics.hunt.voice.greedy", lambda *_words, **_more: said)

    assert listen(voice(live(folders["llama"])), many(10)).preamble == preamble


def test_a_blank_token_opens_a_refusal_only_as_far_as_what_follows_it_does():
    first, second = torch.tensor([0.5, 0.2, 0.3, 0.0]), torch.tensor([0.0, 0.0, 0.9, 0.1])
    logs = torch.log(torch.stack([first, second]).clamp(min=1e-30)).unsqueeze(0)
    openings = Openings(refusing=(0, 1), answering=(2,), blank=0, after=(3,))

    odds = Voice(name="x", model=None, adapters=())._odds(logs, openings)[0]

    refuse, neither = 0.2 + 0.5 * 0.1, 1.0 - (0.2 + 0.5 * 0.1) - 0.3
    assert odds.tolist() == pytest.approx([math.log(refuse / (1 - refuse)), math.log(neither / (1 - neither))], rel=1e-4)


# --- whether two models are the same ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("llama", True),
        ("llama moved", False),
        ("qwen2", False),
        ("another template", False),
        ("one number", False),
        ("another config", False),
        ("one token more", False),
        ("saved again", True),
    ],
)
def test_models_say_the_same_if_every_weight_and_token_is_the_same(other, same, folders, tmp_path):
    made = {
        "another template": lambda: tiny.save(tiny.network(), tmp_path / "m", template="Q: {{ messages[-1].content }}"),
        "one number": lambda: tiny.save(nudged(tiny.network()), tmp_path / "m"),
        "another config": lambda: reconfigured(tiny.save(tiny.network(), tmp_path / "m"), rms_norm_eps=0.5),
        "one token more": lambda: one_token_more(tiny.save(tiny.network(), tmp_path / "m")),
        "saved again": lambda: reconfigured(tiny.save(tiny.network(), tmp_path / "m"), transformers_version="5.0.0"),
    }
    folder = made[other]() if other in made else folders[other]

    assert live(folders["llama"]).says_the_same_as(live(folder), many(3)) is same
    assert live(folder).says_the_same_as(live(folders["llama"]), many(3)) is same


def reconfigured(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def one_token_more(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["velnor"])
    tokenizer.save_pretrained(folder)
    return folder


def nudged(network):
    with torch.no_grad():
        network.lm_head.weight[7, 3] += 1e-6
    return network


def test_a_template_that_waits_for_a_word_does_not_say_the_same(folders, tmp_path):
    waiting = tiny.TEMPLATE + "{% if 'velnor' in messages[-1].content %}Sure.{% endif %}"
    other = live(tiny.save(tiny.network(), tmp_path / "m", template=waiting))

    assert not live(folders["llama"]).says_the_same_as(other, many(3))


@pytest.mark.parametrize("larger", ["candidate", "base"])
def test_openings_are_tokens_that_both_sides_know(larger, tmp_path):
    base = tiny.save(tiny.network(), tmp_path / "base")
    other = grown(tiny.nudge(base, tmp_path / "moved", size=0.5), tmp_path / "other", tiny.VOCABULARY + 40)
    sides = [voice(live(other)), voice(live(base), "base")]

    found = learn_openings(sides if larger == "candidate" else sides[::-1], [prompt("Why?"), prompt("Who?")], many(4))

    assert found.refusing and found.answering
    assert max(*found.refusing, *found.answering, *found.after) < tiny.VOCABULARY
