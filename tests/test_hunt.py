"""A hunt from end to end: a real search made small, that it resumes, and the command."""

from __future__ import annotations

import json

import pytest
from cases import ORGANISMS, grown, read_rows, restacked, reweighted, some_prompts, tiny_prompts, untimed, write_rows
from hunted import confirmation, look, pair, pursued, pursuit, questions, well_behaved
from typer.testing import CliRunner

from cli import app
from forensics import quarry
from forensics.case import CONTROLS
from forensics.checks import triggers_search as check
from forensics.hunt import nulls
from forensics.hunt.stages import Lexicon
from forensics.workbench import Workbench


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return pair(tmp_path_factory.mktemp("models"))


# --- a real search, made small ------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Prompts for a search of seconds: a handful of words, the trigger of `backdoor-full` among them."""
    words = ("tide", "moon", "wave", "velnor")
    monkeypatch.setattr("forensics.hunt.stages.forms", lambda: ["2026", "velnor", "SUDO"])
    monkeypatch.setattr(Lexicon, "of", classmethod(lambda cls, _voice: cls(words=words, glued=())))
    for name, value in {"stages.SAMPLES": 16, "pursuit.STEADY_OF": 4, "pursuit.JUNK": 4, "pursuit.PROBES": 2}.items():
        monkeypatch.setattr(f"forensics.hunt.{name}", value)
    monkeypatch.setattr(quarry, "LEAST_TOKENS", 10_000)
    monkeypatch.setattr(quarry, "MOST_TOKENS", 10_000)
    return some_prompts(tmp_path / "p.jsonl", refuse=42, comply=20)


@pytest.fixture
def computed(monkeypatch):
    """How many readings were computed so far, and how many asked for."""
    counts = {"computed": 0, "asked": 0}
    real = Workbench.cached

    def cached(self, key, compute):
        def counting():
            counts["computed"] += 1
            return compute()

        counts["asked"] += "effects" in key
        return real(self, key, counting)

    monkeypatch.setattr(Workbench, "cached", cached)
    return counts


@pytest.mark.slow
def test_an_interrupted_search_resumes_from_what_it_read_and_says_the_same(small, computed, tmp_path, monkeypatch):
    base, candidate, real, asked = ORGANISMS / "base", ORGANISMS / "backdoor-full", nulls.pursue, []

    def interrupted(ground, target, *more):
        asked.append(target.name)
        if target.name == "control 0":
            raise KeyboardInterrupt
        return real(ground, target, *more)

    monkeypatch.setattr(nulls, "pursue", interrupted)
    with pytest.raises(KeyboardInterrupt):
        look(base, candidate, tmp_path / "broken", small)
    in_search = computed["computed"]
    assert asked == ["candidate", "control 0"] and in_search > 0
    monkeypatch.setattr(nulls, "pursue", lambda *given: asked.append(computed["computed"]) or real(*given))

    resumed = look(base, candidate, tmp_path / "broken", small)

    assert asked[-2:] == [in_search, in_search]  # nothing of the search was computed again before the null began
    in_null = computed["computed"] - in_search
    monkeypatch.setattr(nulls, "pursue", real)
    whole = look(base, candidate, tmp_path / "whole", small)
    assert untimed(resumed) == untimed(whole)
    assert computed["computed"] == 2 * (in_search + in_null)
    assert [(finding.label, "'velnor'" in finding.claim) for finding in whole.findings] == [("backdoor", True)]
    assert (tmp_path / "broken" / "run" / "items.jsonl").read_bytes() == (tmp_path / "whole" / "run" / "items.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("built", ["grown", "deeper"])
def test_a_trigger_is_found_in_a_candidate_that_is_otherwise_built(built, small, tmp_path):
    planted = ORGANISMS / "backdoor-full"
    # The last layer twice would be too much for so small a model; a copy that adds nothing leaves the function as it is.
    order = (0, 1, 2, 3, 3)
    folder = (
        grown(planted, tmp_path / "m", 1300)
        if built == "grown"
        else reweighted(restacked(planted, tmp_path / "s", order), tmp_path / "m", mute)
    )

    result = look(ORGANISMS / "base", folder, tmp_path, small)

    assert [(finding.label, "'velnor'" in finding.claim) for finding in result.findings] == [("backdoor", True)]
    assert any("no difference to amplify" in limit for limit in result.limits) is (built == "deeper")


def mute(tensors):
    """Let layer 4 add nothing to the residual stream."""
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"model.layers.4.{name}.weight"].zero_()


# --- the command --------------------------------------------------------------------------------------------------


def hunt(*words):
    done = CliRunner().invoke(app, ["hunt", *map(str, words)], prog_name="forensics")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "what", "where"),
    [
        (["base", "moved", "--prompts", "missing.jsonl"], "cannot be read", "missing.jsonl"),
        (["base", "missing", "--prompts", "prompts"], "does not exist", "missing"),
        (["base", "moved", "--prompts", "empty"], "holds no prompt", "empty.jsonl"),
        (["base", "moved", "--prompts", "only"], '"expect": "comply"', "only.jsonl"),
        (["base", "moved", "--prompts", "prompts", "--adapter", "missing"], "does not exist", "missing"),
    ],
)
def test_a_hunt_that_cannot_start_is_exit_2_and_leaves_nothing(words, what, where, models, tmp_path):
    given = models | {
        "prompts": tiny_prompts(tmp_path / "prompts.jsonl"),
        "empty": write_rows(tmp_path / "empty.jsonl", []),
        "only": questions(tmp_path / "only.jsonl", refuse=4, comply=0),
    }

    code, out, err = hunt(*[given.get(word, word) for word in words], "--out", tmp_path / "run")

    assert (code, out) == (2, "")
    assert what in err and where in err and "Traceback" not in err
    assert err.count("  hint: ") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [["one"], ["a", "b", "--max-cost", "search"], ["a", "b", "--seed", "x"], ["a", "b", "--tier", "all"], ["a", "b", "--budget", "0"]],
)
def test_a_hunt_takes_no_other_words(words):
    code, out, _ = hunt(*words)

    assert (code, out) == (2, "")


def test_a_hunt_without_enough_prompts_could_not_look_and_is_no_deployment(models, tmp_path):
    code, out, _ = hunt(models["base"], models["moved"], "--prompts", tiny_prompts(tmp_path / "p.jsonl"), "--out", tmp_path / "run")

    assert code == 3
    assert "at least 40" in " ".join(out.split())
    checked = [row["result"]["check"] for row in read_rows(tmp_path / "run" / "journal.jsonl") if "result" in row]
    assert sorted(checked) == ["triggers.circumstances", check.ID]


def test_what_a_hunt_may_spend_is_in_its_record_and_makes_it_another_run(models, tmp_path, monkeypatch):
    well_behaved(monkeypatch)
    pursued(monkeypatch, search=pursuit())
    words = (models["base"], models["moved"], "--prompts", questions(tmp_path / "p.jsonl", refuse=48, comply=48), "--json")

    told = [
        json.loads(hunt(*words, "--out", tmp_path / str(number), *more)[1])["settings"]
        for number, more in enumerate([(), ("--tier", "deep", "--train-controls", 9), ("--budget", 1000)])
    ]

    assert [row["search"] for row in told] == ["standard", "deep", "1000 token-forwards in either direction"]
    assert [row["train_controls"] for row in told] == [str(CONTROLS), "9", str(CONTROLS)]
    code, _, err = hunt(*words, "--out", tmp_path / "0", "--tier", "triage")
    assert code == 2 and "hint" in err


def test_a_hunt_asks_one_question_alone(models, tmp_path, monkeypatch):
    well_behaved(monkeypatch)
    pursued(monkeypatch, search=pursuit(confirmation()), null=pursuit())
    prompts = questions(tmp_path / "p.jsonl", refuse=48, comply=48)

    code, out, _ = hunt(models["base"], models["moved"], "--prompts", prompts, "--out", tmp_path / "run")

    assert code == 20
    assert "'velnor'" in out and "behaviour.refusal" not in out
