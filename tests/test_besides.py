"""What is asked besides the prompts of a comparison: ids and texts of its own, sets of the record, and one error where it cannot be."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest
from besides import (
    FRESH,
    PROMPTS,
    REFUSAL,
    WRAPPED,
    set_of,
)
from cases import command, environment, silent, write_rows
from serving import completion, serving

from forensics import gating
from forensics.errors import BadInput
from forensics.gate.besides import Besides, with_besides
from forensics.gate.costing import Allowance
from forensics.gate.served import Endpoint
from forensics.gate.suites import own_suite
from forensics.gate.wrapping import wrappings
from forensics.policy import load_policy
from forensics.prompts import Message, Prompt, load_prompts
from forensics.runfolder import load_run


def test_everything_besides_has_an_id_and_a_text_of_its_own_and_is_a_set_of_the_record(tmp_path):
    file = write_rows(tmp_path / "farm.jsonl", [{"prompt": f"Open valve {number}."} for number in range(5)] + [{"prompt": "open valve 1"}])
    asked = with_besides([own_suite()], Besides(fresh=True, wrapped=7, domain=file), seed=3)
    names = [one.name for one in asked.sets]

    assert names == ["forensics", "domain: farm.jsonl", "fresh wordings", "forensics, held back", "wrapped requests"]
    assert len({prompt.id for prompt in asked.every}) == len({prompt.messages for prompt in asked.every}) == len(asked.every)
    assert asked.prompts == own_suite().prompts
    assert {prompt.apart.kind.partition("/")[0] for prompt in asked.apart} == {"fresh", "held-back", "wrapped", "domain"}
    assert [(prompt.category, prompt.expect) for prompt in asked.apart if prompt.apart.kind == "domain"] == [("domain", "comply")] * 5
    assert all("seed 3" in one.source for one in asked.sets[2:])
    assert asked.sets[1].repeated == 1
    assert [one.counts_apart for one in asked.sets] == [
        {},
        {"domain": 5},
        {"fresh": 353},
        {"held-back": 40},
        {"wrapped": 7 * len(wrappings()[1])},
    ]
    assert [one.counts for one in asked.sets[1:]] == [{}] * 4
    other = with_besides([own_suite()], Besides(fresh=True), seed=4)
    assert other.sets[1].digest != asked.sets[2].digest


def test_without_our_own_suite_nothing_is_held_back():
    asked = with_besides([set_of(PROMPTS)], Besides(fresh=True), seed=0)

    assert [one.name for one in asked.sets] == ["prompts.jsonl", "fresh wordings"]
    assert with_besides([set_of(PROMPTS)], Besides(), seed=0).apart == ()


def test_the_prompts_of_a_run_are_asked_again_as_they_were(tmp_path):
    file = write_rows(tmp_path / "prompts.jsonl", [prompt.to_row() for prompt in (*PROMPTS, *FRESH, *WRAPPED)])
    read = load_prompts(file)
    asked = with_besides([read], Besides(), seed=9)

    assert (asked.prompts, asked.apart) == (PROMPTS, (*FRESH, *WRAPPED))
    again = with_besides([read], Besides(fresh=True), seed=0)
    assert len({prompt.messages for prompt in again.every}) == len(again.every) == len(asked.every) + len(FRESH)


@pytest.mark.parametrize(
    "apart", ['"fresh"', "{}", '{"kind": "other"}', '{"kind": "wrapped/"}', '{"kind": "fresh", "of": 7}', "null", "[1]"]
)
def test_a_prompt_that_is_damaged_where_it_says_what_it_is_of_is_refused(tmp_path, apart):
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "a", "category": "c", "expect": "refuse", "apart": {apart}}}\n')
    with pytest.raises(BadInput, match="`apart` is not what a run writes"):
        load_prompts(file)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds no prompt"),
        ("{", "not JSON"),
        ('{"expect": "comply"}', "either `prompt` or `messages`"),
        ('{"prompt": "a", "expect": "perhaps"}', "`expect` is 'perhaps'"),
        ('{"prompt": "a", "category": 7}', "`category` is missing or not a text"),
        ('{"prompt": "How do I boil an egg?"}', "every prompt of this file is among the others already"),
        ('{"prompt": "how do I boil an EGG", "expect": "refuse"}', "expected to refuse here, and to comply as 'p'"),
        ('{"prompt": "' + "\\ud800" + '"}', "half a character"),
    ],
)
def test_a_file_of_the_domain_that_cannot_be_used_is_one_error(tmp_path, content, says):
    file = tmp_path / "farm.jsonl"
    file.write_text(content + "\n")
    own = Prompt(id="p", messages=(Message(role="user", content="How do I boil an egg?"),), category="c", expect="comply")
    with pytest.raises(BadInput) as error:
        with_besides([set_of([own])], Besides(domain=file), seed=0)

    assert says in str(error.value)
    assert "farm.jsonl" in str(error.value)


def test_the_domain_is_no_set_of_prompts_of_the_comparison_under_any_key(tmp_path):
    file = write_rows(
        tmp_path / "farm.jsonl", [{"prompt": f"Open valve {number}.", "category": "c", "expect": "refuse"} for number in range(5)]
    )
    first, second = with_besides([set_of(PROMPTS)], Besides(domain=file), seed=0), load_prompts(file)

    assert first.sets[1].digest != second.digest
    assert [one.digest for one in with_besides([set_of(PROMPTS)], Besides(domain=file), seed=0).sets] == [one.digest for one in first.sets]


def test_of_what_is_asked_apart_a_server_is_asked_for_one_reply(tmp_path):
    rows = [
        {"id": prompt.id, "prompt": prompt.messages[-1].content, "category": prompt.category, "expect": prompt.expect}
        for prompt in PROMPTS[:6]
    ]
    rows += [{"prompt": "How do I boil an egg?", "category": "c", "expect": "comply"}]
    prompts = write_rows(tmp_path / "prompts.jsonl", rows)
    with serving(lambda _body: completion(REFUSAL)) as (url, asked):
        endpoint = Endpoint(urls=(url,), models=("base", "tuned"), max_new_tokens=8, at_once=4, repeats=4, patience=5.0)
        wanted = gating.Served(
            endpoint=endpoint, prompts=(prompts,), besides=Besides(fresh=True), policy=gating.alone(load_policy()), out=tmp_path / "run"
        )
        told = []
        gating.ask_served(replace(wanted, allowance=Allowance(tell=told.append)), silent)
    apart = sum(prompt.apart is not None for prompt in load_run(str(tmp_path / "run")).prompts.values())
    assert apart > 0
    assert len(asked) == 2 * (5 * 7 + apart)
    assert f"= {len(asked)} replies" in told[0]


def test_a_file_of_the_domain_that_is_not_there_or_not_text_is_one_error(tmp_path):
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    for name, says in (("missing.jsonl", "check the path given to --domain"), ("bytes.jsonl", "not UTF-8")):
        with pytest.raises(BadInput, match=says):
            with_besides([set_of(PROMPTS)], Besides(domain=tmp_path / name), seed=0)


@pytest.mark.parametrize("besides", [Besides(fresh=True), Besides(wrapped=3)])
def test_beside_nothing_nothing_can_be_asked(besides):
    with pytest.raises(BadInput, match="no prompts beside which"):
        with_besides([], besides, seed=0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("gate", "base", "tuned", "--fresh"), "no prompts beside which"),
        (("gate", "--replay", "a", "b", "--fresh"), "compared without a model"),
        (("gate", "--replay", "a", "b", "--domain", "farm.jsonl"), "compared without a model"),
        (("audit", "base", "tuned", "--suite", "forensics", "--wrapped", "--max-cost", "weights"), "only behaviour.refusal asks more"),
        (("gate", "base", "tuned", "--suite", "forensics", "--wrapped", "--wrapped-prompts", "0"), "wrapped-prompts"),
        (("gate", "base", "tuned", "--suite", "forensics", "--domain", "farm.jsonl"), "the prompt file cannot be read"),
    ],
)
def test_options_that_do_not_go_together_are_one_error_and_exit_2(tmp_path, words, says):
    done = subprocess.run(command(*words), cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)

    assert (done.returncode, says in done.stderr) == (2, True), done.stderr
    assert list(tmp_path.iterdir()) == []
