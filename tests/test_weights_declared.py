"""What a model says of itself against what its weights show: where they show something else, that is said."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import tiny
from cases import ORGANISMS, audit, edited, found, number, open_case, result, severities
from declaring import BOMB, LORA, SLERP, TIES, card

from forensics.checks import weights_declared
from forensics.policy import load_policy
from forensics.record import Action, Status
from forensics.verdict import decide

LABELS = (
    "identical", "resharded", "dtype-cast", "quantisation", "lora-merge", "full-finetune", "sparse-update", "abliteration", "knowledge-edit",
    "knowledge-edit-multi", "rows-only", "added-tokens", "steering-bias", "pruning", "merge-linear", "merge-slerp", "merge-ties",
    "merge-dare", "layer-stack", "reparameterised", "not-derived", "unknown-mixed",
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.save(tiny.network(), tmp_path_factory.mktemp("base") / "base")


def kind_of_edit(label, *, rank=None, status=Status.NO_FINDING, severity="info"):
    """The result of the check that says what was done to the weights."""
    evidence = (number("edit.rank", rank),) if rank is not None else (number("edit.share", 1.0),)
    return result("weights.edit-kind", status, findings=(found("weights.edit-kind", label, severity=severity),), evidence=evidence)


@pytest.fixture
def compare(base, tmp_path):
    """The check on a candidate with `files` of its own, after `earlier` results."""

    def run(files, *earlier):
        candidate = edited(
            base, tmp_path / "candidate", files={name: text if isinstance(text, str) else json.dumps(text) for name, text in files.items()}
        )
        with open_case(base, candidate, tmp_path / "run") as case:
            return weights_declared.run(replace(case, earlier=earlier))

    return run


AS_LORA = {"adapter/adapter_config.json": LORA}


def test_a_lora_merge_that_is_a_full_fine_tune_is_flagged(compare):
    outcome = compare(AS_LORA, kind_of_edit("full-finetune"))

    assert (outcome.status, severities(outcome)) == (Status.FLAGGED, {"declared-otherwise": "medium"})
    claim = outcome.findings[0].claim
    assert claim == "It says it is a LoRA merge of rank 16 (adapter/adapter_config.json), but the weights show a full fine-tune."


def test_a_lora_merge_that_is_one_is_information(compare):
    outcome = compare(AS_LORA, kind_of_edit("lora-merge", rank=16))

    assert (outcome.status, severities(outcome)) == (Status.NO_FINDING, {"declared-as-found": "info"})
    assert outcome.find("declared.contradicted").value == 0


@pytest.mark.parametrize(
    ("rank", "expected"), [(8, "declared-as-found"), (16, "declared-as-found"), (17, "declared-otherwise"), (64, "declared-otherwise")]
)
def test_the_rank_must_not_be_larger_than_was_said(rank, expected, compare):
    outcome = compare(AS_LORA, kind_of_edit("lora-merge", rank=rank))

    assert set(severities(outcome)) == {expected}
    assert f"rank {rank}" in outcome.findings[0].claim
    assert outcome.find("declared.rank").value == 16


CARD = {
    "finetune": {"README.md": card("base_model_relation: finetune")},
    "lora": {"README.md": card("tags: [lora]")},
    "merge": {"README.md": card("tags: [mergekit]")},
    "slerp": {"mergekit_config.yml": SLERP},
    "dare_ties": {"mergekit_config.yml": TIES},
    "passthrough": {"mergekit_config.yml": "merge_method: passthrough"},
    "quantised": {"README.md": card("base_model_relation: quantized")},
    "abliterated": {"README.md": card("tags: [abliterated]")},
    "heretic": {"reproduce/reproduce.json": {"model": "org/base"}},
    "uncensored": {"README.md": card("tags: [uncensored]")},
    "all": {"README.md": card("tags: [lora, abliterated]\nbase_model_relation: finetune")},
    "tuned and quantised": {"README.md": card("tags: [dpo, gptq]")},
    "whole modules": {"adapter/adapter_config.json": LORA | {"modules_to_save": ["lm_head"]}},
}
OTHERWISE, AS_FOUND, OPEN = "declared-otherwise", "declared-as-found", None


@pytest.mark.parametrize(
    ("what", "label", "expected"),
    [
        ("finetune", "full-finetune", AS_FOUND), ("finetune", "lora-merge", AS_FOUND), ("finetune", "abliteration", OTHERWISE),
        ("finetune", "knowledge-edit", OTHERWISE), ("finetune", "identical", OTHERWISE), ("finetune", "unknown-mixed", OPEN),
        ("finetune", "not-derived", OTHERWISE), ("lora", "lora-merge", AS_FOUND), ("lora", "full-finetune", OTHERWISE),
        ("lora", "abliteration", OTHERWISE), ("lora", "sparse-update", OPEN), ("merge", "merge-ties", AS_FOUND),
        ("merge", "full-finetune", OPEN), ("merge", "abliteration", OTHERWISE), ("slerp", "merge-slerp", AS_FOUND),
        ("slerp", "merge-linear", AS_FOUND), ("slerp", "layer-stack", OTHERWISE), ("dare_ties", "merge-dare", AS_FOUND),
        ("dare_ties", "merge-linear", OTHERWISE), ("passthrough", "layer-stack", AS_FOUND), ("quantised", "quantisation", AS_FOUND),
        ("quantised", "dtype-cast", AS_FOUND), ("quantised", "full-finetune", OTHERWISE), ("abliterated", "abliteration", AS_FOUND),
        ("abliterated", "identical", OTHERWISE), ("abliterated", "full-finetune", OTHERWISE), ("heretic", "abliteration", AS_FOUND),
        ("heretic", "knowledge-edit", OTHERWISE), ("uncensored", "full-finetune", AS_FOUND), ("uncensored", "resharded", OTHERWISE),
        ("all", "abliteration", AS_FOUND), ("all", "lora-merge", AS_FOUND), ("all", "full-finetune", OTHERWISE),
        ("tuned and quantised", "full-finetune", AS_FOUND), ("tuned and quantised", "abliteration", OTHERWISE),
        ("whole modules", "full-finetune", OPEN), ("whole modules", "abliteration", OTHERWISE), ("lora", "something-new", OPEN),
    ],
)  # fmt: skip
def test_what_is_said_is_compared_with_what_is_found(what, label, expected, compare):
    outcome = compare(CARD[what], kind_of_edit(label, status=Status.FLAGGED, severity="low"))

    about = {name: severity for name, severity in severities(outcome).items() if name != "declared-base"}
    assert about == ({} if expected is None else {expected: "medium" if expected is OTHERWISE else "info"})
    assert outcome.status is (Status.FLAGGED if expected is OTHERWISE else Status.NO_FINDING)


def test_every_label_is_in_words_and_fits_and_clashes_are_never_the_same():
    assert set(weights_declared.FOUND_WORDS) == set(LABELS)
    for kind, fitting in weights_declared.FITS.items():
        assert fitting <= set(LABELS)
        assert weights_declared.CLASHES[kind] <= set(LABELS)
        assert not fitting & weights_declared.CLASHES[kind]


def test_saying_nothing_is_no_finding_whatever_was_found(compare):
    outcome = compare({"README.md": card("license: mit")}, kind_of_edit("abliteration"))

    assert (outcome.status, outcome.findings) == (Status.NO_FINDING, ())
    assert outcome.find("declared.statements").value == 0
    assert outcome.find("declared.places").value >= 1


@pytest.mark.parametrize(
    ("earlier", "status", "why"),
    [
        ((), Status.SKIPPED, "weights.edit-kind did not run"),
        ((result("weights.change"),), Status.SKIPPED, "weights.edit-kind did not run"),
        ((result("weights.edit-kind", Status.INCONCLUSIVE),), Status.INCONCLUSIVE, "could not tell"),
        ((result("weights.edit-kind", Status.ERROR),), Status.INCONCLUSIVE, "could not tell"),
        ((result("weights.edit-kind"),), Status.INCONCLUSIVE, "could not tell"),
    ],
)
def test_what_was_not_found_out_cannot_be_compared(earlier, status, why, compare):
    outcome = compare(AS_LORA, *earlier)

    assert outcome.status is status
    assert why in outcome.reason
    assert "a LoRA merge of rank 16" in outcome.reason


def test_another_base_is_information_and_shows_no_path(compare):
    outcome = compare(
        {"adapter/adapter_config.json": LORA | {"base_model_name_or_path": "/home/somebody/models/Other-7B"}},
        kind_of_edit("lora-merge", rank=4),
    )

    assert severities(outcome) == {"declared-base": "info", "declared-as-found": "info"}
    assert "'Other-7B'" in outcome.findings[0].claim
    assert "somebody" not in outcome.model_dump_json()


def test_an_adapter_speaks_for_itself(base, tmp_path):
    adapters = [tiny.adapter(base, tmp_path / f"a{seed}", modules=["q_proj"], seed=seed) for seed in range(2)]
    with open_case(base, base, tmp_path / "run", adapters=adapters) as case:
        both = weights_declared.run(replace(case, earlier=(kind_of_edit("lora-merge", rank=8),)))
        more = weights_declared.run(replace(case, earlier=(kind_of_edit("lora-merge", rank=9),)))

    assert (both.status, severities(both)) == (Status.NO_FINDING, {"declared-as-found": "info"})
    assert "It says it is a LoRA of rank 4 (adapter_config.json)" in both.findings[0].claim
    assert severities(more) == {"declared-otherwise": "medium"}


def test_what_could_not_be_read_is_a_limit(compare):
    outcome = compare({"README.md": card(BOMB)})

    assert outcome.status is Status.NO_FINDING
    assert any("README.md: it is larger, deeper or more entangled" in limit for limit in outcome.limits)


def test_a_false_declaration_needs_a_person(compare):
    outcome = compare(AS_LORA, kind_of_edit("full-finetune"))

    others = [result(check) for check in load_policy().required]
    rules = {rule.id: rule.action for rule in decide([*others, outcome], load_policy(), ["candidate"]).rules}
    assert rules["finding/weights.declared/declared-otherwise"] is Action.HUMAN_REVIEW


def test_an_audit_says_that_it_could_not_compare(base, tmp_path):
    candidate = edited(base, tmp_path / "candidate", files={"README.md": card("tags: [lora]")})

    record = audit(base, candidate, tmp_path / "run", only=("weights.declared",))

    assert [(one.check, one.status) for one in record.results] == [("weights.declared", Status.SKIPPED)]
    assert any("weights.declared did not look" in limit for limit in record.limits)


def test_the_organisms_declare_what_they_are(tmp_path):
    with open_case(ORGANISMS / "base", ORGANISMS / "base", tmp_path / "run", adapters=[ORGANISMS / "benign-lora"]) as case:
        outcome = weights_declared.run(replace(case, earlier=(kind_of_edit("lora-merge", rank=8),)))

    assert (outcome.status, severities(outcome)) == (Status.NO_FINDING, {"declared-as-found": "info"})
