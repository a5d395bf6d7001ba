"""What a model says of itself is read with limits and never believed."""

from __future__ import annotations

import json

import pytest
import torch
from cases import Held
from declaring import BOMB, LORA, SLERP, TIES, card
from safetensors.torch import save_file

from forensics.checkpoint import hash_files
from forensics.declared import Declared, read_declared, safe_yaml
from forensics.errors import BadInput
from forensics.headers import read_metadata


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
        pytest.param("a: !!int ''", id="no number"),
        pytest.param("a: !!bool x", id="no truth"),
        pytest.param("a: !!float ''", id="nothing"),
        pytest.param("a: !!timestamp x", id="no time"),
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
