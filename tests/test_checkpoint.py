"""Checkpoints on disk: what is there is read to the last value, and nothing outside, pickled or half there is accepted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from forensics import checkpoint
from forensics.checkpoint import INDEX_NAME, open_checkpoint
from forensics.errors import BadInput

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@pytest.fixture
def model(tmp_path):
    return tiny.save(tiny.network(), tmp_path / "model")


@pytest.fixture
def sharded(tmp_path):
    return tiny.save(tiny.network(), tmp_path / "sharded", shard="20KB")


def made_of(folder, tensors):
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file(tensors, folder / "model.safetensors")
    return folder


def refused(folder, why):
    with pytest.raises(BadInput, match=why) as caught:
        open_checkpoint(str(folder))
    assert caught.value.hint
    return caught.value


def edit_index(folder, change):
    index = json.loads((folder / INDEX_NAME).read_text())
    change(index)
    (folder / INDEX_NAME).write_text(json.dumps(index))
    return folder


def whole(opened, name):
    pieces = list(opened.blocks(name))
    return torch.cat(pieces) if pieces[0].ndim else pieces[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_every_tensor_is_listed_and_streamed_as_stored(tmp_path, dtype, shard):
    folder = tiny.save(tiny.network(), tmp_path / "m", dtype=dtype, shard=shard)
    opened = open_checkpoint(str(folder))
    stored = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shard == "20KB")
    assert opened.tensors.keys() == stored.keys()
    for name, value in stored.items():
        assert opened.tensors[name].dtype == DTYPES[dtype]
        assert torch.equal(whole(opened, name), value)


def test_name_config_and_hashes_are_those_of_the_folder(model):
    (model / "sub").mkdir()
    (model / "sub" / "note.txt").write_text("x")
    (model / ".git").mkdir()
    (model / ".git" / "config").write_text("x")
    opened = open_checkpoint(str(model))
    assert opened.name == "model"
    assert open_checkpoint(str(model), name="the base").name == "the base"
    assert opened.config["model_type"] == "llama"
    assert "sub/note.txt" in opened.files
    assert not any(name.startswith(".git") for name in opened.files)
    assert opened.files["sub/note.txt"] == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert opened.json("absent.json") == {}


@pytest.mark.parametrize("elements", [1, 7, 64, 100, 1 << 22])
def test_blocks_put_together_are_the_tensor_whatever_the_block(tmp_path, monkeypatch, elements):
    tensors = {
        "matrix": torch.randn(33, 5).bfloat16(), "row": torch.randn(1, 130), "vector": torch.randn(101), "cube": torch.randn(3, 7, 11).half(),
        "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "hollow": torch.zeros(200, 0),
    }  # fmt: skip
    opened = open_checkpoint(str(made_of(tmp_path / "m", tensors)))
    monkeypatch.setattr(checkpoint, "BLOCK_ELEMENTS", elements)
    for name, value in tensors.items():
        pieces = list(opened.blocks(name))
        assert torch.equal(torch.cat(pieces) if value.ndim else pieces[0], value)
        assert pieces[0].dtype == value.dtype
        largest_row = value[0].numel() if value.ndim and len(value) else 1
        assert all(piece.numel() <= max(elements, largest_row) for piece in pieces)
    assert (len(list(opened.blocks("matrix"))) > 1) == (elements < 165)  # it was cut, or did not need to be


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    assert refused(tmp_path / "none", "does not exist").exit_code == 2
    refused("./none/at/all", "does not exist")
    refused("just-a-name", "does not exist")


def test_a_file_is_not_a_folder(model):
    refused(model / "config.json", "a file, not a folder")


def test_an_empty_folder_is_refused(tmp_path):
    refused(tmp_path, "is empty")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt"])
def test_pickled_weights_are_refused_and_the_way_out_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x02cposix\nsystem\n.")
    (tmp_path / "config.json").write_text("{}")
    error = refused(tmp_path, "can run code when read")
    assert name in error.what
    assert "safetensors" in error.hint


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "holds no safetensors")


def test_a_folder_without_config_is_refused(model):
    (model / "config.json").unlink()
    refused(model, "no config.json")


@pytest.mark.parametrize("text", ["", "[]", "{", "3", "[" * 100_000, "1" * 5000])
def test_a_config_that_is_not_an_object_is_refused(model, text):
    (model / "config.json").write_text(text)
    assert refused(model, "JSON").where == "model/config.json"


def test_a_config_that_is_not_utf8_is_refused(model):
    (model / "config.json").write_bytes(b'{"model_type": "\xff"}')
    refused(model, "not readable JSON")


def test_weights_under_another_name_without_an_index_are_refused(model):
    (model / "model.safetensors").rename(model / "weights.safetensors")
    assert "weights.safetensors" in refused(model, "neither model.safetensors nor").what


@pytest.mark.parametrize("target", ["../escape.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", "config.json"])
def test_an_index_that_names_anything_but_a_plain_shard_is_refused(sharded, target):
    (sharded.parent / "escape.safetensors").write_bytes(next(sharded.glob("*.safetensors")).read_bytes())
    edit_index(sharded, lambda index: index["weight_map"].update({"lm_head.weight": target}))
    assert "not a plain file" in refused(sharded, "the index names").what


def test_a_missing_shard_is_named(sharded):
    shard = min(sharded.glob("*.safetensors"))
    shard.unlink()
    assert shard.name in refused(sharded, "which is missing").what


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index["weight_map"].pop("model.layers.0.mlp.up_proj.weight"),
        lambda index: index["weight_map"].update({"invented": index["weight_map"]["lm_head.weight"]}),
        lambda index: index["weight_map"].update({"model.norm.weight": index["weight_map"]["model.embed_tokens.weight"]}),
    ],
)
def test_an_index_that_disagrees_with_its_shards_is_refused(sharded, change):
    open_checkpoint(str(sharded))  # the control
    error = refused(edit_index(sharded, change), "index and shards disagree about 1 tensors")
    assert len(error.details) == 1


def test_a_tensor_in_two_shards_is_refused(sharded):
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    both = load_file(second) | dict(list(load_file(first).items())[:1])
    save_file(both, second)
    refused(sharded, "disagree about 1 tensors")


@pytest.mark.parametrize("index", ["{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[]", "nothing"])
def test_an_index_without_a_map_is_refused(sharded, index):
    (sharded / INDEX_NAME).write_text(index)
    assert refused(sharded, "weight_map|JSON").where == INDEX_NAME


def test_a_truncated_shard_is_refused_by_name(sharded):
    shard = max(sharded.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert refused(sharded, "truncated").where == shard.name


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja", "README.md"])
def test_a_link_that_leaves_the_folder_is_refused(model, tmp_path, name):
    outside = tmp_path / "outside"
    inside = model / name
    outside.write_bytes(inside.read_bytes() if inside.exists() else b"x")
    inside.unlink(missing_ok=True)
    inside.symlink_to(outside)
    assert refused(model, "leaves its folder").where == name


def test_a_link_within_the_folder_is_accepted(model):
    (model / "copy.json").symlink_to("config.json")
    opened = open_checkpoint(str(model))
    assert opened.files["copy.json"] == opened.files["config.json"]


def test_a_folder_that_is_a_link_is_refused(model, tmp_path):
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "tool_use.jinja").write_text("x")
    (model / "additional_chat_templates").symlink_to(tmp_path / "templates")
    assert refused(model, "this folder is a link").where == "additional_chat_templates"


def test_the_checkpoint_itself_may_be_reached_through_a_link(model, tmp_path):
    (tmp_path / "alias").symlink_to(model)
    assert open_checkpoint(str(tmp_path / "alias")).digest == open_checkpoint(str(model)).digest


@pytest.fixture
def cache(tmp_path, model, monkeypatch):
    """A hub cache that holds `org/tiny` as the hub's own library lays it out."""
    revision = "0" * 40
    entry = tmp_path / "hub" / "models--org--tiny"
    snapshot = entry / "snapshots" / revision
    for folder in (snapshot, entry / "blobs", entry / "refs"):
        folder.mkdir(parents=True)
    (entry / "refs" / "main").write_text(revision)
    for number, file in enumerate(sorted(model.iterdir())):
        (entry / "blobs" / f"blob{number}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"blob{number}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return snapshot


@pytest.mark.parametrize("source", ["org/tiny", "org/tiny@main", "org/tiny@" + "0" * 40])
def test_a_hub_id_is_found_in_the_cache_without_a_network(cache, model, source):
    opened = open_checkpoint(source)
    assert opened.path.resolve() == cache.resolve()
    assert opened.files == open_checkpoint(str(model)).files
    assert torch.equal(whole(opened, "lm_head.weight"), whole(open_checkpoint(str(model)), "lm_head.weight"))


def test_a_link_from_the_cache_to_somewhere_else_is_refused(cache, tmp_path):
    (tmp_path / "outside.json").write_text("{}")
    (cache / "tokenizer.json").unlink()
    (cache / "tokenizer.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(BadInput, match="leaves its folder"):
        open_checkpoint("org/tiny")


def test_blobs_of_another_cache_entry_are_somewhere_else(cache, tmp_path):
    other = tmp_path / "hub" / "models--org--other" / "blobs"
    other.mkdir(parents=True)
    (other / "blob").write_text("{}")
    (cache / "tokenizer.json").unlink()
    (cache / "tokenizer.json").symlink_to("../../../models--org--other/blobs/blob")
    with pytest.raises(BadInput, match="leaves its folder"):
        open_checkpoint("org/tiny")


@pytest.mark.parametrize("source", ["org/absent", "org/tiny@other", "org/..", "o rg/tiny"])
def test_a_hub_id_that_cannot_be_had_is_refused(cache, source):
    with pytest.raises(BadInput, match="the hub did not give it"):
        open_checkpoint(source)


def test_a_folder_is_preferred_to_a_hub_id_of_the_same_name(cache, tmp_path):
    tiny.save(tiny.network(seed=7), tmp_path / "org" / "tiny")
    assert open_checkpoint("org/tiny").path == Path("org/tiny")


def test_prose_changes_the_digest_but_not_the_functional_one(model):
    before = open_checkpoint(str(model))
    for name in ("README.md", "LICENSE", "picture.png"):
        (model / name).write_text("new")
    after = open_checkpoint(str(model))
    assert after.digest != before.digest
    assert after.functional_digest == before.functional_digest


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "code.py", "notes.txt"])
def test_anything_else_changes_both_digests(model, name):
    before = open_checkpoint(str(model))
    with (model / name).open("ab") as stream:
        stream.write(b" ")
    hashes = checkpoint.hash_files(model)
    after = checkpoint.Checkpoint(path=model, name="m", files=hashes, config={}, tensors={})
    assert after.digest != before.digest
    assert after.functional_digest != before.functional_digest


def test_a_renamed_file_changes_the_digest(model):
    before = open_checkpoint(str(model)).digest
    (model / "tokenizer_config.json").rename(model / "other.json")
    assert open_checkpoint(str(model)).digest != before


STREAM = """
import sys
from forensics.checkpoint import open_checkpoint
import torch
torch.set_num_threads(1)

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

opened = open_checkpoint(sys.argv[1])
next(opened.blocks("small"))  # libraries are in memory now
start, peak, read = anonymous(), 0, 0
for name in opened.tensors:
    for block in opened.blocks(name):
        read += block.numel() + int(block.max())  # every value is touched; all are zero
        peak = max(peak, anonymous())
print(read, (peak - start) // 1024)
"""


def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    big = torch.zeros(64 * 1024, 1024, dtype=torch.bfloat16)  # 128 MiB each
    folder = made_of(tmp_path / "big", {"a": big, "b": big.clone(), "small": torch.zeros(4)})
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", STREAM, str(folder)], capture_output=True, text=True, env=environment, check=True)
    read, grown = map(int, done.stdout.split())
    assert read == 2 * big.numel() + 4
    assert grown < 64
