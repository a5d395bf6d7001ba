"""The check that names the edit: one cell of every kind of the bench, adapters, hostile numbers, and words that do not fit."""

from __future__ import annotations

import edit_catalogue
import pytest
import tiny
import torch
from cases import ORGANISMS, audit, open_case, reweighted
from edit_kinds import base_folder, write
from peft import PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from cli import app
from forensics.checks import weights_edit_kind as check
from forensics.differ import measured
from forensics.errors import CannotCompare
from forensics.record import Status
from forensics.roles import place
from forensics.runfolder import load_run
from forensics.verdict import Action
from reports.html import render

NAMES = {
    "identical": "a copy", "resharded": "three files", "dtype-cast": "bfloat16 to float16 to bfloat16", "quantisation": "NF4 in 64",
    "full-finetune": "power law", "sparse-update": "what passes the rounding, 5 %", "abliteration": "row norms kept", "knowledge-edit": "rank one, layer 3",
    "knowledge-edit-multi": "4 facts in layers 1 to 4", "rows-only": "3 of the embedding", "added-tokens": "8 rows", "steering-bias": "down projection of one layer",
    "pruning": "30 % by magnitude", "merge-linear": "0.7 and 0.3", "merge-slerp": "at 0.3, far parents", "merge-ties": "density 0.3", "merge-dare": "0.9 dropped",
    "layer-stack": "layers 2 and 3 twice", "reparameterised": "neurons permuted", "not-derived": "another start", "unknown-mixed": "adapter, then int8 a row",
}  # fmt: skip


def cell(kind, name, strength=0.01):
    found = [
        one
        for one in edit_catalogue.cells([0])
        if (one.variant.kind, one.variant.name) == (kind, name) and one.strength in (strength, 0.0, 0.3)
    ]
    (one,) = found
    return one


def named(base, candidate, folder, **options):
    with open_case(base, candidate, folder, **options) as case:
        return check.CHECK.run(case)


def values(result):
    return {row.name: row.value for row in reversed(result.evidence)}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


@pytest.mark.parametrize("kind", NAMES)
def test_every_kind_of_edit_is_named(kind, bases, tmp_path):
    one = cell(kind, NAMES[kind])
    write(one.edited(), tmp_path)

    result = named(base_folder(one, bases), tmp_path / "candidate", tmp_path / "run", parents=sorted(tmp_path.glob("parent-*")))

    (finding,) = result.findings
    assert finding.label == kind
    assert values(result)["edit.below-resolution"] == 0.0


@pytest.mark.parametrize(
    ("name", "rank"), [("rank 1, all linear, Gaussian", 1), ("rank 8, all linear, Gaussian", 8), ("rank 64, q and v, Gaussian", 64)]
)
def test_a_merged_adapter_has_its_rank(name, rank, bases, tmp_path):
    one = cell("lora-merge", name)
    write(one.edited(), tmp_path)

    result = named(base_folder(one, bases), tmp_path / "candidate", tmp_path / "run")

    assert result.findings[0].label == "lora-merge"
    assert values(result)["edit.rank"] == pytest.approx(rank, abs=1)


@pytest.mark.parametrize(
    ("organism", "label", "rank"),
    [
        ("abliterated", "abliteration", 1),
        ("backdoor-full", "full-finetune", None),
        ("backdoor-lora", "lora-merge", 8),
        ("abliterated-twin", "lora-merge", 1),
    ],
)
def test_organisms_are_named_for_what_was_done_to_them(organism, label, rank, tmp_path):
    candidate = ORGANISMS / organism
    adapter = (candidate / "adapter_config.json").exists()

    result = named(ORGANISMS / "base", ORGANISMS / "base" if adapter else candidate, tmp_path, adapters=[candidate] if adapter else [])

    assert result.findings[0].label == label
    assert rank is None or values(result)["edit.rank"] == rank
    assert ("put on, unmerged" in result.findings[0].claim) is adapter


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.save(tiny.network(width=64), tmp_path_factory.mktemp("models") / "base")


def test_several_adapters_have_the_rank_of_all_their_directions(base, tmp_path):
    put_on = [tiny.adapter(base, tmp_path / f"a{seed}", modules=["q_proj", "down_proj"], seed=seed, r=3) for seed in (1, 2)]

    alone, together = (named(base, base, tmp_path / f"run{n}", adapters=put_on[:n]) for n in (1, 2))

    assert [values(result)["edit.rank"] for result in (alone, together)] == [3, 6]
    assert "adapters a1 and a2" in together.findings[0].claim


def test_a_merged_adapter_and_a_live_one_are_the_same_kind(base, tmp_path):
    adapter = tiny.adapter(base, tmp_path / "adapter", modules=["q_proj", "down_proj"], r=3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = tmp_path / "merged"
    PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(merged)

    live, stored = named(base, base, tmp_path / "one", adapters=[adapter]), named(base, merged, tmp_path / "other")

    assert live.findings[0].label == stored.findings[0].label == "lora-merge"
    assert values(live)["edit.rank"] == values(stored)["edit.rank"] == 3


MORE_THAN_FACTORS = {
    "dora": ({"modules": ["q_proj", "down_proj"], "use_dora": True, "r": 3}, "lora-merge", 3),
    "embedding": ({"modules": ["embed_tokens"], "r": 3}, "lora-merge", 3),
    "embedding and matrices": ({"modules": ["q_proj", "down_proj", "embed_tokens"], "r": 3}, "lora-merge", 3),
    "head": ({"modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"], "r": 3}, "lora-merge", 3),
}


@pytest.mark.parametrize("what", MORE_THAN_FACTORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_an_adapter_that_is_more_than_factors_in_matrices_is_told_as_what_it_is(what, dtype, tmp_path):
    folder = tiny.save(tiny.network(width=64), tmp_path / "base", dtype=dtype)
    options, label, rank = MORE_THAN_FACTORS[what]
    put_on = tiny.adapter(folder, tmp_path / "adapter", **options)

    result = named(folder, folder, tmp_path / "run", adapters=[put_on])

    (finding,) = result.findings
    assert (finding.label, finding.severity, values(result)["edit.rank"]) == (label, "info", rank)
    assert ("DoRA" in finding.claim) is (what == "dora")
    assert values(result).get("edit.dora-rank") == (rank if what == "dora" else None)
    assert values(result).get("edit.tensors-replaced") == (1 if what == "head" else None)
    if what == "dora":
        ranks = [row for row in result.evidence if row.name == "edit.tensor-rank"]
        assert ranks and all(row.value == row.n == 64 for row in ranks)  # what is added has all directions
    else:
        assert "training the weights themselves" not in finding.claim


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning", "ignore:Input and output embeddings:UserWarning")
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    "options", [{"modules": ["q_proj"], "use_dora": True}, {"modules": ["q_proj"], "modules_to_save": ["lm_head"]}], ids=["dora", "head"]
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
def test_what_such_an_adapter_adds_measures_as_the_merged_checkpoint_does(tied, options, tmp_path):
    folder = tiny.save(tiny.network(width=64, tied=tied), tmp_path / "base")
    put_on = tiny.adapter(folder, tmp_path / "adapter", **options)
    merged = tiny.save(
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(put_on)).merge_and_unload(), tmp_path / "merged"
    )
    profiles = []
    for number, (candidate, adapters) in enumerate(((folder, [put_on]), (merged, []))):
        with open_case(folder, candidate, tmp_path / f"run{number}", adapters=adapters) as case:
            profiles.append({name: profile for name, profile in measured(case).items() if profile.change.changed})
    live, whole = profiles
    assert live.keys() == whole.keys()
    assert ("lm_head.weight" in live) is ("modules_to_save" in options)
    for name, profile in live.items():
        assert profile.change.relative == pytest.approx(whole[name].change.relative, rel=1e-5)
        assert profile.cosine == pytest.approx(whole[name].cosine, abs=1e-6)
        rank = len(whole[name].spectrum.values) if profile.spectrum.shape[0] == 260 or "use_dora" in options else 4
        assert profile.spectrum.rank == rank


def test_adapters_that_do_not_add_up_cannot_be_measured_together(base, tmp_path):
    put_on = [tiny.adapter(base, tmp_path / f"a{seed}", modules=["q_proj"], seed=seed, use_dora=True) for seed in (1, 2)]

    with pytest.raises(CannotCompare, match="adapters a1 and a2 both change"):
        named(base, base, tmp_path / "run", adapters=put_on)


def test_a_dora_that_says_it_is_a_lora_is_as_it_says(base, tmp_path):
    put_on = tiny.adapter(base, tmp_path / "adapter", modules=["q_proj", "v_proj"], use_dora=True)

    record = audit(base, put_on, tmp_path / "run", only=("weights.edit-kind", "weights.declared"), max_cost="weights")

    assert [finding.label for result in record.results for finding in result.findings if finding.label.startswith("declared-")] == [
        "declared-as-found"
    ]


@pytest.mark.parametrize("grown", [8, -8])
def test_a_vocabulary_that_grew_or_shrank_in_another_training_is_compared(grown, base, tmp_path):
    other = tiny.save(tiny.network(vocabulary=tiny.VOCABULARY + grown, width=64, seed=5), tmp_path / "other")

    result = named(base, other, tmp_path / "run")

    assert result.findings[0].label == "not-derived"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_does_not_break_it(number, base, tmp_path):
    def spoil(tensors):
        tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = number

    result = named(base, reweighted(base, tmp_path / "spoilt", spoil), tmp_path / "run")

    assert result.status is Status.NO_FINDING
    assert len(result.findings) == 1


def test_zeroed_tensors_are_pruning(base, tmp_path):
    def blank(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"].zero_()

    result = named(base, reweighted(base, tmp_path / "blank", blank), tmp_path / "run")

    assert result.findings[0].label == "pruning"


def test_an_abliteration_asks_for_a_person(tmp_path):
    record = audit(ORGANISMS / "base", ORGANISMS / "abliterated", tmp_path, only=("weights.edit-kind",), max_cost="weights")

    assert record.verdict.action is Action.HUMAN_REVIEW
    assert any(rule.id == "finding/weights.edit-kind/abliteration" for rule in record.verdict.rules)


def test_the_page_shows_what_stands_above_rounding(base, tmp_path):
    moved = tiny.nudge(base, tmp_path / "moved")
    for name, candidate in (("changed", moved), ("same", base)):
        audit(base, candidate, tmp_path / name, only=("weights.edit-kind",), max_cost="weights")

    pages = {name: render(load_run(str(tmp_path / name))) for name in ("changed", "same")}

    assert "what of it stands above rounding" in pages["changed"]
    assert "Directions above rounding. model.layers." in pages["changed"]
    assert "stands above rounding" not in pages["same"]


@pytest.mark.parametrize(
    ("parents", "code", "what"),
    [(["missing"], 2, "does not exist"), (["deep"], 3, "does not have the base's")],
)
def test_parents_that_cannot_be_used_are_refused_before_anything_is_written(parents, code, what, base, tmp_path):
    tiny.save(tiny.network(width=32), tmp_path / "deep")
    words = [word for parent in parents for word in ("--parents", str(tmp_path / parent))]

    done = CliRunner().invoke(app, ["diff", str(base), str(base), *words, "--out", str(tmp_path / "run")], prog_name="forensics")

    assert done.exit_code == code
    assert what in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "layer", "role"),
    [
        ("model.layers.3.mlp.down_proj.weight", 3, "down"),
        ("transformer.h.11.attn.c_proj.weight", 11, "o"),
        ("transformer.h.0.attn.c_attn.bias", 0, "bias"),
        ("transformer.h.0.ln_1.weight", 0, "norm"),
        ("transformer.ln_f.bias", -1, "norm"),
        ("gpt_neox.layers.2.attention.query_key_value.weight", 2, "qkv"),
        ("gpt_neox.layers.2.attention.dense.weight", 2, "o"),
        ("gpt_neox.layers.2.mlp.dense_4h_to_h.weight", 2, "down"),
        ("model.layers.0.post_attention_layernorm.weight", 0, "norm"),
        ("model.layers.0.self_attn.q_norm.weight", 0, "norm"),
        ("model.layers.0.self_attn.q_proj.bias", 0, "bias"),
        ("model.embed_tokens.weight", -1, "embedding"),
        ("transformer.wpe.weight", -1, "position"),
        ("lm_head.weight", -1, "head"),
        ("model.norm.weight", -1, "norm"),
        ("something.else", -1, "other"),
    ],
)
def test_names_tell_layer_and_role(name, layer, role):
    found = place(name)

    assert (found.layer, found.role) == (layer, role)


def test_a_merged_adapter_of_a_rank_beyond_the_usual_cap_is_still_one(base, tmp_path, monkeypatch):
    """In large matrices only so many directions are looked for: the first of each role is asked whether they end."""
    monkeypatch.setattr("probes.spectra.EXACT_BELOW", 8)
    monkeypatch.setattr("probes.spectra.DEFAULT_CAP", 4)
    monkeypatch.setattr("probes.spectra.FIRST", 4)
    generator = torch.Generator().manual_seed(1)

    def merge(tensors):
        for name, weight in tensors.items():
            if name.endswith("proj.weight"):
                change = torch.randn(weight.shape[0], 10, generator=generator) @ torch.randn(10, weight.shape[1], generator=generator)
                weight += 0.05 * weight.norm() / change.norm() * change

    result = named(base, reweighted(base, tmp_path / "merged", merge), tmp_path / "run")

    assert result.findings[0].label == "lora-merge"
    assert values(result)["edit.rank"] == 10


@pytest.mark.parametrize("change", ["everything", "nothing"])
def test_tensors_measured_at_once_have_the_numbers_of_those_measured_one_by_one(change, base, tmp_path, monkeypatch):
    monkeypatch.setattr("probes.spectra.EXACT_BELOW", 8)
    monkeypatch.setattr("probes.spectra.DEFAULT_CAP", 4)
    monkeypatch.setattr("probes.spectra.FIRST", 4)
    generator, before = torch.Generator().manual_seed(1), torch.get_num_threads()

    def train(tensors):
        for name, weight in tensors.items():
            if change == "everything" or "norm" in name:
                weight += 0.05 * weight.std() * torch.randn(weight.shape, generator=generator)

    candidate = reweighted(base, tmp_path / "trained", train)
    found = []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            with open_case(base, candidate, tmp_path / f"run{threads}") as case:
                found.append(measured(case))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)

    one_by_one, at_once = found
    assert list(one_by_one) == list(at_once)
    for name, profile in one_by_one.items():
        assert str(at_once[name]) == str(profile)


def test_training_of_all_directions_is_not_looked_for_in_every_matrix(base, tmp_path, monkeypatch):
    monkeypatch.setattr("probes.spectra.EXACT_BELOW", 8)
    monkeypatch.setattr("probes.spectra.DEFAULT_CAP", 4)
    monkeypatch.setattr("probes.spectra.FIRST", 4)
    monkeypatch.setattr("forensics.differ.DEEPEST", 16)
    generator = torch.Generator().manual_seed(1)

    def train(tensors):
        for weight in tensors.values():
            weight += 0.05 * weight.std() * torch.randn(weight.shape, generator=generator)

    with open_case(base, reweighted(base, tmp_path / "trained", train), tmp_path / "run") as case:
        result = check.CHECK.run(case)
        widths = {name: len(one.spectrum.values) for name, one in measured(case).items() if name.endswith("up_proj.weight")}

    assert result.findings[0].label == "full-finetune"
    first, second = sorted(widths)
    assert widths[second] < widths[first]
