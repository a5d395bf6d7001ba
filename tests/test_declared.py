"""What a model says of itself is read with limits and never believed; where the weights show something else, that is said."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import tiny
import torch
from cases import ORGANISMS, audit, edited, found, number, open_case, result
from safetensors.torch import save_file

from forensics.case import Check
from forensics.checkpoint import hash_files
from forensics.checks import all_checks, in_order, weights_declared
from forensics.declared import Declared, read_declared, safe_yaml
from forensics.errors import BadInput
from forensics.headers import read_metadata
from forensics.policy import load_policy
from forensics.record import Action, Status
from forensics.verdict import decide

LABELS = (
    "identical", "resharded", "dtype-cast", "quantisation", "lora-merge", "full-finetune", "sparse-update", "abliteration", "knowledge-edit",
    "knowledge-edit-multi", "rows-only", "added-tokens", "steering-bias", "pruning", "merge-linear", "merge-slerp", "merge-ties",
    "merge-dare", "layer-stack", "reparameterised", "not-derived", "unknown-mixed",
)  # fmt: skip


@dataclass(frozen=True)
class Held:
    """A folder with the hashes of its files."""

    path: Path
    files: dict[str, str] = field(default_factory=dict)
    name: str = "held"


@pytest.fixture
def read(tmp_path):
    """Writes files by name and reads what they declare; texts as they are, tables as JSON."""

    def make(files, known=(), **base_config) -> Declared:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        hashes = hash_files(tmp_path)
        return read_declared(Held(tmp_path, hashes), known={name: hashes[name] for name in known}, base_config=base_config)

    return make


def card(front, body="# A model\n"):
    return f"---\n{front}\n---\n{body}"


def said(declared):
    return [(one.kind, one.place, one.words) for one in declared.statements]


# --- the card ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relation", "kind"),
    [("finetune", "finetune"), ("adapter", "lora"), ("merge", "merge"), ("quantized", "quantised"), ("Merge", "merge")],
)
def test_the_relation_to_the_base_is_read(relation, kind, read):
    declared = read({"README.md": card(f"base_model: org/Base-1\nbase_model_relation: {relation}")})

    assert said(declared) == [(kind, "README.md: base_model_relation", relation)]
    assert declared.bases == ("Base-1",)


@pytest.mark.parametrize(
    ("tag", "kind"),
    [
        ("merge", "merge"), ("mergekit", "merge"), ("heretic", "abliterated"), ("abliterated", "abliterated"), ("uncensored", "uncensored"),
        ("lora", "lora"), ("peft", "lora"), ("dpo", "finetune"), ("gptq", "quantised"), ("LoRA", "lora"), ("base_model:adapter:org/x", "lora"),
        ("base_model:quantized:org/x", "quantised"), ("dare_ties", "merge"), ("slerp", "merge"),
    ],
)  # fmt: skip
def test_tags_with_a_meaning_are_read(tag, kind, read):
    declared = read({"README.md": card(f"tags:\n- text-generation\n- '{tag}'\n- en")})

    assert [(one.kind, one.place) for one in declared.statements] == [(kind, "README.md: tags")]
    assert declared.statements[0].words in tag


def test_other_tags_say_nothing(read):
    assert read({"README.md": card("tags: [chat, linear, base_model:org/x, 'region:us', 3, null]\nlicense: mit")}).statements == ()


def test_several_bases_are_a_merge_and_a_library_can_tell(read):
    both = read({"README.md": card("base_model:\n- a/x\n- b/y\nlibrary_name: peft")})

    assert [(one.kind, one.models) for one in both.statements] == [("merge", ("x", "y")), ("lora", ())]


def test_the_text_of_the_card_is_not_read(read):
    text = "This is a LoRA merge. base_model_relation: merge\ntags: [heretic]\n---\ntags: [dpo]\n---\n"
    assert read({"README.md": card("license: mit", text)}).statements == ()
    assert read({"README.md": text}).statements == ()
    assert read({"README.md": ""}).statements == ()


@pytest.mark.parametrize("start", ["\ufeff---\n", "---  \n", "---\r\n"])
def test_front_matter_is_found_as_editors_write_it(start, read):
    assert len(read({"README.md": f"{start}tags: [merge]\n---\n"}).statements) == 1


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(9))
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(f"a{i + 1}: &a{i + 1}\n  <<: [{', '.join([f'*a{i}'] * 9)}]\n  k{i}: 1\n" for i in range(5))


@pytest.mark.parametrize(
    "front",
    [
        pytest.param(BOMB, id="aliases of aliases"),
        pytest.param(MERGE_BOMB, id="merged aliases"),
        pytest.param("a: " + "[" * 500 + "]" * 500, id="deep"),
        pytest.param("a: [" + "1, " * 30_000 + "1]", id="long"),
        pytest.param("a: " + "9" * 20_000, id="digits"),
        pytest.param("a: !!python/object/apply:os.system ['true']", id="object"),
        pytest.param("a: !!python/name:os.system", id="name"),
        pytest.param("{[a]: b}", id="key"),
        pytest.param("a: b: c", id="no yaml"),
        pytest.param("a: '\ud83d", id="unclosed"),
        pytest.param("a: 2027-99-99", id="date"),
        pytest.param("x" * 100_000, id="without end"),
    ],
)
def test_hostile_front_matter_is_named_as_unreadable_and_nothing_more(front, read):
    declared = read({"README.md": card(front.encode("utf-8", "replace").decode())})

    assert declared.statements == ()
    assert len(declared.unread) == 1
    assert declared.unread[0].startswith("README.md: ")


def test_honest_aliases_are_read():
    assert safe_yaml("a: &p {weight: 0.5}\nb: *p\nc:\n  <<: *p\n  t: 1") == {
        "a": {"weight": 0.5}, "b": {"weight": 0.5}, "c": {"weight": 0.5, "t": 1}
    }  # fmt: skip


@pytest.mark.parametrize(
    "front", ["- a\n- b", "just text", "tags: {a: b}\nbase_model: 3\nlibrary_name: [3]", "base_model: [[[x]]]", "&a [*a]"]
)
def test_front_matter_of_another_shape_says_nothing(front, read):
    assert read({"README.md": card(front)}).statements == ()


# --- recipes ----------------------------------------------------------------------------------------------------------

SLERP = """
slices:
  - sources:
      - model: org/one
        layer_range: [0, 28]
      - model: org/two
        layer_range: [0, 28]
merge_method: slerp
base_model: org/one
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 1]
    - value: 0.25
dtype: bfloat16
"""
TIES = """
models:
  - model: org/base
  - model: {path: org/two}
    parameters: {weight: 0.3, density: 0.5}
  - model: /home/me/three/
    parameters: {weight: 0.7, density: [0.1, 0.9]}
merge_method: dare_ties
base_model: {model: {path: org/base, revision: main}}
"""


def test_a_recipe_of_slices_is_read(read):
    (one,) = (declared := read({"mergekit_config.yml": SLERP})).statements

    assert (one.kind, one.method, one.models) == ("merge", "slerp", ("one", "two"))
    assert one.parameters == (("t", 0.0), ("t", 0.5), ("t", 1.0), ("t", 0.25))
    assert declared.bases == ("one",)


def test_a_recipe_of_models_is_read(read):
    (one,) = (declared := read({"mergekit_config.yml": TIES})).statements

    assert (one.method, one.models) == ("dare_ties", ("base", "two", "three"))
    assert set(one.parameters) == {("weight", 0.3), ("density", 0.5), ("weight", 0.7), ("density", 0.1), ("density", 0.9)}
    assert declared.bases == ("base",)


@pytest.mark.parametrize("text", ["- a", "merge_method: [", "a: 1\n---\nb: 2", BOMB, "x" * 70_000, ""])
def test_a_recipe_that_cannot_be_read_is_named(text, read):
    declared = read({"mergekit_config.yml": text})

    assert (declared.statements, len(declared.unread)) == ((), 1)


@pytest.mark.parametrize(
    "text",
    [
        "merge_method: 3\nmodels: x\nslices: {a: b}\nparameters: [1]",
        "models: [1, null, {model: [a]}]\nmerge_method: ties",
        "parameters: {t: .nan, weight: .inf, density: true}\nmerge_method: ties",
    ],
)
def test_a_recipe_of_another_shape_is_a_merge_and_nothing_more(text, read):
    (one,) = read({"mergekit_config.yml": text}).statements

    assert (one.kind, one.parameters) == ("merge", ())


LORA = {"peft_type": "LORA", "r": 16, "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "/home/me/org/base"}


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter/adapter_config.json", "checkpoint-9/adapter_config.json"])
def test_an_adapters_config_is_read_wherever_it_was_left(name, read):
    declared = read({name: LORA})

    assert said(declared) == [("lora", name, "q_proj, v_proj")]
    assert (declared.statements[0].rank, declared.statements[0].more, declared.bases) == (16, False, ("base",))


@pytest.mark.parametrize(
    ("change", "rank", "more"),
    [
        ({"rank_pattern": {"q_proj": 64}}, 64, False),
        ({"modules_to_save": ["embed_tokens"]}, 16, True),
        ({"bias": "all"}, 16, True),
        ({"r": "16"}, 0, False),
        ({"r": True, "rank_pattern": [3]}, 0, False),
        ({"r": 10**30}, 0, False),
    ],
)
def test_the_rank_is_the_largest_that_is_named(change, rank, more, read):
    (one,) = read({"adapter_config.json": LORA | change}).statements

    assert (one.rank, one.more) == (rank, more)


def test_another_kind_of_adapter_is_a_fine_tune(read):
    assert said(read({"adapter_config.json": {"peft_type": "IA3"}})) == [("finetune", "adapter_config.json", "IA3")]


def test_the_recipe_of_an_abliteration_is_read(read):
    declared = read({"reproduce/reproduce.json": {"settings": {"model": "org/base"}, "model": "org/base", "environment": {}}})

    assert said(declared) == [("abliterated", "reproduce/reproduce.json", "heretic")]
    assert declared.bases == ("base",)


def test_how_it_is_quantised_and_what_it_was_loaded_from_stand_in_the_config(read):
    files = {"config.json": {"quantization_config": {"quant_method": "gptq"}, "_name_or_path": "org/base"}}

    assert said(read(files)) == [("quantised", "config.json: quantization_config", "gptq")]
    assert read(files).bases == ("base",)
    assert read(files, quantization_config={"quant_method": "gptq"}, _name_or_path="org/base") == Declared(places=("config.json",))


@pytest.mark.parametrize("name", ["adapter_config.json", "reproduce/reproduce.json", "config.json"])
def test_a_damaged_file_is_named(name, read):
    declared = read({name: "{"})

    assert declared.statements == ()
    assert declared.unread[0].startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("metadata", "kind"),
    [
        ({"merge_method": "slerp"}, "merge"),
        ({"lora_rank": "32"}, "lora"),
        ({"ss_network_dim": "8"}, "lora"),
        ({"quant_method": "awq"}, "quantised"),
        ({"base_model_relation": "finetune", "base_model": "org/base"}, "finetune"),
        ({"lora_rank": "9" * 400}, None),
        ({"format": "pt", "note": "a merge of several"}, None),
    ],
)
def test_what_stands_beside_the_tensors_is_read(metadata, kind, tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors", metadata=metadata)

    declared = read_declared(Held(tmp_path, hash_files(tmp_path)), known={}, base_config={})

    assert [one.kind for one in declared.statements] == ([kind] if kind else [])
    assert declared.places == ("model.safetensors: __metadata__",)
    assert read_metadata(tmp_path / "model.safetensors", file="model.safetensors") == metadata


def test_a_damaged_header_has_no_metadata(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)

    with pytest.raises(BadInput):
        read_metadata(tmp_path / "model.safetensors", file="model.safetensors")
    assert len(read_declared(Held(tmp_path, hash_files(tmp_path)), known={}, base_config={}).unread) == 1


def test_a_file_that_the_base_has_too_speaks_of_the_base(read):
    files = {"README.md": card("tags: [lora]"), "mergekit_config.yml": TIES}

    assert read(files, known=("README.md", "mergekit_config.yml")) == Declared()
    assert len(read(files).statements) == 2


# --- declared against found -------------------------------------------------------------------------------------------


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


def labels(outcome):
    return {finding.label: finding.severity for finding in outcome.findings}


AS_LORA = {"adapter/adapter_config.json": LORA}


def test_a_lora_merge_that_is_a_full_fine_tune_is_flagged(compare):
    outcome = compare(AS_LORA, kind_of_edit("full-finetune"))

    assert (outcome.status, labels(outcome)) == (Status.FLAGGED, {"declared-otherwise": "medium"})
    claim = outcome.findings[0].claim
    assert claim == "It says it is a LoRA merge of rank 16 (adapter/adapter_config.json), but the weights show a full fine-tune."


def test_a_lora_merge_that_is_one_is_information(compare):
    outcome = compare(AS_LORA, kind_of_edit("lora-merge", rank=16))

    assert (outcome.status, labels(outcome)) == (Status.NO_FINDING, {"declared-as-found": "info"})
    assert outcome.find("declared.contradicted").value == 0


@pytest.mark.parametrize(
    ("rank", "expected"), [(8, "declared-as-found"), (16, "declared-as-found"), (17, "declared-otherwise"), (64, "declared-otherwise")]
)
def test_the_rank_must_not_be_larger_than_was_said(rank, expected, compare):
    outcome = compare(AS_LORA, kind_of_edit("lora-merge", rank=rank))

    assert set(labels(outcome)) == {expected}
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

    about = {name: severity for name, severity in labels(outcome).items() if name != "declared-base"}
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

    assert labels(outcome) == {"declared-base": "info", "declared-as-found": "info"}
    assert "'Other-7B'" in outcome.findings[0].claim
    assert "somebody" not in outcome.model_dump_json()


def test_an_adapter_speaks_for_itself(base, tmp_path):
    adapters = [tiny.adapter(base, tmp_path / f"a{seed}", modules=["q_proj"], seed=seed) for seed in range(2)]
    with open_case(base, base, tmp_path / "run", adapters=adapters) as case:
        both = weights_declared.run(replace(case, earlier=(kind_of_edit("lora-merge", rank=8),)))
        more = weights_declared.run(replace(case, earlier=(kind_of_edit("lora-merge", rank=9),)))

    assert (both.status, labels(both)) == (Status.NO_FINDING, {"declared-as-found": "info"})
    assert "It says it is a LoRA of rank 4 (adapter_config.json)" in both.findings[0].claim
    assert labels(more) == {"declared-otherwise": "medium"}


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

    assert (outcome.status, labels(outcome)) == (Status.NO_FINDING, {"declared-as-found": "info"})


# --- the order of checks ----------------------------------------------------------------------------------------------


def check(id, cost="weights", after=()):
    return Check(id=id, question="?", cost=cost, run=lambda case: None, after=after)


def ids(checks):
    return [one.id for one in checks]


def test_a_check_comes_after_those_it_reads():
    rows = [check("w.a", after=("w.c",)), check("w.b"), check("w.c"), check("f.z", "files"), check("w.d", after=("w.a", "f.z"))]

    assert ids(in_order(rows)) == ["f.z", "w.b", "w.c", "w.a", "w.d"]
    assert ids(in_order(rows[::-1])) == ids(in_order(rows))


def test_a_check_that_is_not_there_is_not_waited_for():
    assert ids(in_order([check("w.a", after=("w.none",)), check("w.b")])) == ["w.a", "w.b"]


@pytest.mark.parametrize(
    "rows",
    [
        [check("w.a", after=("w.b",)), check("w.b", after=("w.a",))],
        [check("w.a", after=("w.a",))],
        [check("f.a", "files", after=("w.b",)), check("w.b")],
    ],
)
def test_checks_that_wait_for_each_other_or_for_a_dearer_one_are_our_mistake(rows):
    with pytest.raises(ValueError, match="cannot come after"):
        in_order(rows)


def test_every_check_is_there_once_and_in_order_of_cost():
    order = ("files", "weights", "activations", "generation", "search")
    costs = [order.index(one.cost) for one in all_checks()]
    assert costs == sorted(costs)
    assert len(set(ids(all_checks()))) == len(all_checks())
    assert weights_declared.CHECK.after == ("weights.edit-kind",)


def test_once_there_is_a_check_of_the_kind_of_edit_it_comes_first():
    order = ids(in_order([*(one for one in all_checks() if one.id != "weights.edit-kind"), check("weights.edit-kind")]))
    assert order.index("weights.edit-kind") < order.index("weights.declared")
