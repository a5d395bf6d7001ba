"""Named sites are what TransformerLens calls by these names, in blocks built in every way that we know; tokens are where they are said to be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from cases import ORGANISMS
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from forensics.adapters import open_adapter
from forensics.anatomy import dissect
from forensics.capture import Reading, Sites, Spread, activations, read, residuals, statistics, template_tokens
from forensics.checkpoint import open_checkpoint
from forensics.errors import BadInput, CannotCompare
from forensics.model import Rendered, open_model
from forensics.prompts import Message, Prompt
from forensics.sites import LAST, Spot, locate, stream_sites, template_spots
from forensics.subject import Subject
from probes.moments import Covariance, Sketch

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "vocab_size": tiny.VOCABULARY, "eos_token_id": 256, "bos_token_id": None, "pad_token_id": None,
    "initializer_range": 0.2,
}  # fmt: skip
MORE = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8},
    "qwen3": {"head_dim": 8},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "granite": {"residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    "gpt_neox_sequential": {"use_parallel_residual": False},
}
# Norms before the parts; learned positions; norms behind them as well; only behind them; both reading one stream; a factor on what is added.
KINDS = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gpt2",
    "opt",
    "gemma",
    "gemma2",
    "olmo2",
    "gpt_neox",
    "gpt_neox_sequential",
    "phi",
    "granite",
)
NEOX = ("gpt_neox", "gpt_neox_sequential")
PARALLEL = ("gpt_neox", "phi")
SITES = (
    "embed.hook_out", "blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_mid", "blocks.0.hook_resid_post",
    "blocks.1.hook_resid_post", "blocks.0.attn.hook_out", "blocks.1.attn.hook_out", "blocks.1.mlp.hook_out", "blocks.1.hook_attn_out",
    "blocks.0.hook_mlp_out",
)  # fmt: skip
SPOTS = (Spot(anchor="text"), *template_spots(3), Spot(anchor="reply"), Spot(anchor="reply", offset=2), Spot(anchor="reply-mean"))
TALK = (("a", "yes"), ("a much longer question than the first", "no, I will not"), ("middling one", "sure thing"), ("b", "what? no"))


ROUNDING = 1e-5  # of the largest number at a site: float32 keeps 6e-8 of each, and the order of sums differs with padding and attention


def apart(ours, theirs):
    """Largest difference at any site, as a share of the largest number there."""
    sizes = np.abs(theirs).max(axis=(0, 2, 3))
    assert sizes.min() > 0.01  # nothing is compared with zeros
    return float((np.abs(ours - theirs).max(axis=(0, 2, 3)) / sizes).max())


def network(kind, seed=0):
    torch.manual_seed(seed)
    sizes = {key: value for key, value in SIZES.items() if key != "num_key_value_heads" or kind not in ("gpt2", "opt", *NEOX)}
    config = AutoConfig.for_model(kind.removesuffix("_sequential"), **sizes | MORE.get(kind, {}))
    return AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sites")
    return {kind: tiny.save(network(kind), root / kind) for kind in KINDS}


def opened(folder, **options):
    return Subject(model=open_model(open_checkpoint(str(folder)), device="cpu"), side="base", **options)


def prompt(text):
    return Prompt(id=text, messages=(Message(role="user", content=text),), category="x", expect="either")


def answered(subject, talk=TALK):
    return [subject.model.render_answered(prompt(text), reply) for text, reply in talk]


def expected(cache, rows, names):
    """What a cache of left-padded `rows` holds at `SPOTS`, `[n, sites, spots, d]`."""
    longest = max(len(row.ids) for row in rows)
    found = []
    for index, row in enumerate(rows):
        end = longest - row.reply
        spans = [slice(longest - len(row.ids), longest - len(row.ids) + 1), *(slice(end - back, end - back + 1) for back in (3, 2, 1))]
        spans += [slice(end, end + 1), slice(end + 2, end + 3), slice(end, longest)]
        found.append([[cache[name].view(len(rows), longest, -1)[index, span].mean(dim=0).numpy() for span in spans] for name in names])
    return np.array(found)


def cached_by_transformer_lens(folder, rows, **options):
    bridge_module = pytest.importorskip("transformer_lens.model_bridge")
    bridge = bridge_module.TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32, **options)
    longest = max(len(row.ids) for row in rows)
    ids = torch.tensor([[0] * (longest - len(row.ids)) + list(row.ids) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row.ids)) + [1] * len(row.ids) for row in rows])
    with torch.inference_mode():
        return bridge.run_with_cache(ids, attention_mask=mask)[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformer_lens and what it imports
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_the_caches_of_transformer_lens(kind, folders):
    subject = opened(folders[kind])
    rows = answered(subject)
    names = tuple(name for name in SITES if kind not in PARALLEL or "mid" not in name)

    ours = activations(subject, rows, Reading(sites=names, spots=SPOTS))
    alone = activations(replace(subject, batch_size=1), rows, Reading(sites=names, spots=SPOTS))

    theirs = expected(cached_by_transformer_lens(folders[kind], rows), rows, names)
    assert apart(ours, theirs) < ROUNDING
    assert apart(alone, theirs) < ROUNDING


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformer_lens and what it imports
@pytest.mark.parametrize("stack", [("a",), ("a", "b")], ids=["one", "stacked"])
def test_live_adapters_give_the_caches_of_transformer_lens(stack, folders, tmp_path):
    paths = {name: tiny.adapter(folders["llama"], tmp_path / name, modules=["q_proj", "down_proj"], seed=ord(name)) for name in stack}
    base = open_checkpoint(str(folders["llama"]))
    worn = tuple(open_adapter(str(path), base) for path in paths.values())
    subject = opened(folders["llama"])
    rows = answered(subject)
    plain = activations(subject, rows, Reading(sites=SITES, spots=SPOTS))

    ours = activations(replace(subject, adapters=worn), rows, Reading(sites=SITES, spots=SPOTS))

    live = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders["llama"]), str(paths["a"]), adapter_name="a")
    for name in stack[1:]:
        live.load_adapter(str(paths[name]), adapter_name=name)
    live.base_model.set_adapter(list(stack))
    theirs = expected(cached_by_transformer_lens(folders["llama"], rows, hf_model=live.base_model.model), rows, SITES)
    assert apart(ours, theirs) < ROUNDING < 0.01 < apart(plain, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_middle_of_the_stream_is_what_came_in_and_what_attention_added(kind, folders):
    subject = opened(folders[kind])
    rows = answered(subject)
    names = tuple(f"blocks.1.hook_{name}" for name in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"))

    if kind in PARALLEL:
        with pytest.raises(CannotCompare, match="no hook_resid_mid"):
            activations(subject, rows, Reading(sites=names))
        before, attention, mlp, after = (
            x[:, 0] for x in activations(subject, rows, Reading(sites=(*names[:2], *names[3:]))).swapaxes(0, 1)
        )
        assert after == pytest.approx(before + attention + mlp, abs=1e-5, rel=1e-5)
        return
    before, attention, middle, mlp, after = (x[:, 0] for x in activations(subject, rows, Reading(sites=names)).swapaxes(0, 1))
    assert middle == pytest.approx(before + attention, abs=1e-5, rel=1e-5)
    assert after == pytest.approx(middle + mlp, abs=1e-5, rel=1e-5)


def test_a_block_whose_attention_writes_nothing_is_read_as_the_others(folders):
    subject = opened(folders["llama"])
    with subject.model.wearing(()) as model, torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        (tap,) = locate(dissect(model), ["blocks.1.hook_resid_mid"])
        right = model.model.layers[1].post_attention_layernorm

    assert tap.module is right


def test_tokens_are_counted_from_where_the_parts_of_a_text_begin():
    row = Rendered(ids=(10, 11, 12, 20, 21), reply=2)
    wanted = {
        ("text", 0): [10], ("text", 4): [21], ("text", 5): [], ("text", -1): [],
        ("prompt", -1): [12], ("prompt", -3): [10], ("prompt", -4): [], ("prompt", 0): [],
        ("reply", 0): [20], ("reply", 1): [21], ("reply", 2): [], ("reply", -1): [], ("reply-mean", 0): [20, 21],
    }  # fmt: skip

    assert {(a, o): [row.ids[i] for i in Spot(anchor=a, offset=o).tokens(row)] for a, o in wanted} == wanted
    assert not Spot(anchor="reply-mean").tokens(replace(row, reply=0))


def test_a_reply_stands_behind_the_template_as_the_model_writes_it(folders):
    model = opened(folders["llama"]).model

    asked, whole = model.render(prompt("hello"), room=0), model.render_answered(prompt("hello"), "no, I")

    assert model.tokenizer.decode(whole.ids[len(asked.ids) :]) == "no, I"
    assert (whole.ids[: len(asked.ids)], whole.reply) == (asked.ids, 5)


def test_what_stands_behind_a_prompt_does_not_change_it(folders):
    subject = opened(folders["llama"])
    asked = [subject.model.render(prompt(text), room=0) for text, _ in TALK]
    reading = Reading(sites=stream_sites(2), spots=template_spots(template_tokens(asked)))

    behind = activations(subject, answered(subject), reading)

    assert behind == pytest.approx(activations(subject, asked, reading), abs=2e-5)
    assert np.array_equal(behind, residuals(subject, answered(subject), Sites(layers=(0, 1, 2), positions=(-2, -1))))


@pytest.mark.parametrize("size", [1, 3, 32])
def test_statistics_are_those_of_the_activations_whatever_the_batch(size, folders):
    subject = replace(opened(folders["gemma2"]), batch_size=size)
    rows, reading = answered(subject), Reading(sites=SITES[:5], spots=SPOTS)
    kept = activations(subject, rows, reading).astype(np.float64)

    whole = statistics(subject, rows, reading, Spread(kind="covariance"))
    rough = statistics(subject, rows, reading, Spread(kind="sketch", directions=4))
    means = statistics(subject, rows, reading)

    for site in range(5):
        for spot in range(len(SPOTS)):
            seen, sketch = whole[site][spot], rough[site][spot]
            assert isinstance(seen, Covariance)
            assert isinstance(sketch, Sketch)
            assert seen.count == sketch.count == means[site][spot].count == len(rows)
            assert seen.mean == pytest.approx(kept[:, site, spot].mean(axis=0), abs=2e-5)
            assert seen.covariance() == pytest.approx(np.cov(kept[:, site, spot], rowvar=False), abs=1e-4)
            assert sketch.rows.T @ sketch.rows == pytest.approx(seen.scatter, abs=1e-4)  # 4 texts vary along 3 directions
            assert np.array_equal(means[site][spot].mean, seen.mean)


def test_texts_that_do_not_reach_a_spot_are_not_counted_there(folders):
    subject = opened(folders["llama"])
    spots = (LAST, Spot(anchor="reply", offset=5), Spot(anchor="reply", offset=200))
    rows, reading = answered(subject), Reading(sites=SITES[:2], spots=spots)

    counted = statistics(subject, rows, reading)

    long = [row for row in rows if row.reply > 5]
    assert [seen.count for seen in counted[0]] == [4, 3, 0] == [4, len(long), 0]
    only = activations(subject, long, Reading(sites=SITES[:2], spots=spots[:2]))
    assert counted[1][1].mean == pytest.approx(only[:, 1, 1].mean(axis=0), abs=2e-5)
    with pytest.raises(CannotCompare, match="text 1 has no reply token 5 in the base"):
        activations(subject, rows, reading)


def test_no_more_is_held_for_more_texts(folders):
    subject = replace(opened(folders["llama"]), batch_size=2)
    few = answered(subject)
    alive = [heard.values.numel() for heard in read(subject, few * 8, Reading(sites=SITES))]

    assert len(alive) == 16
    assert max(alive) == 2 * len(SITES) * 32


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("blocks.2.hook_resid_pre", "the model has 2 blocks"),
        ("blocks.0.hook_z", "no site is called 'blocks.0.hook_z'"),
        ("blocks.1.hook_resid_pre ", "no site is called"),
        ("model.layers.0", "no site is called"),
    ],
)
def test_a_site_that_is_not_there_is_refused_with_those_that_are(name, words, folders):
    subject = opened(folders["llama"])

    with pytest.raises(BadInput, match=words) as caught:
        activations(subject, answered(subject), Reading(sites=(name,)))
    assert "blocks.N.attn.hook_out" in caught.value.hint


@pytest.mark.parametrize("site", SITES)
def test_values_that_are_not_finite_are_named_by_their_site(site, folders):
    subject = opened(folders["llama"])
    with subject.model.wearing(()) as model, torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 3] = float("nan")
    rows, late = answered(subject), {"blocks.1.hook_resid_post", "blocks.1.mlp.hook_out", "blocks.1.hook_mlp_out"}

    if site in late:
        with pytest.raises(CannotCompare, match=rf"activations of the base are not finite from {site} on"):
            statistics(subject, rows, Reading(sites=(site,)))
    else:
        assert np.isfinite(activations(subject, rows, Reading(sites=(site,)))).all()


def test_a_text_longer_than_the_context_is_refused_and_says_so(folders):
    subject = opened(folders["llama"])
    row = subject.model.render_answered(prompt("x" * 250), "a reply that is too long")
    assert subject.model.render(prompt("x" * 250), room=0).problem == ""

    assert "more than its context of 256 tokens" in row.problem
    for ask in (lambda: activations(subject, [row], Reading(sites=SITES)), lambda: residuals(subject, [row], Sites(layers=(0,)))):
        with pytest.raises(CannotCompare, match="1 of 1 texts cannot be put to the base: it takes more than its context of 256 tokens"):
            ask()


def test_a_model_without_a_chat_template_reads_plain_text(folders, tmp_path):
    plain = opened(tiny.save(network("llama"), tmp_path / "plain", template=None))
    row = plain.model.render_answered(prompt("hello"), " you")

    assert plain.model.tokenizer.decode(row.ids) == "hello you"
    found = activations(plain, [row], Reading(sites=("blocks.1.hook_resid_post",), spots=(LAST, Spot(anchor="reply", offset=3))))
    with plain.model.wearing(()) as model, torch.inference_mode():
        states = model(torch.tensor([row.ids]), output_hidden_states=True).hidden_states
        norm = dissect(model).final_norm
    assert norm(torch.tensor(found[0, 0])).detach().numpy() == pytest.approx(states[2][0, [4, 8]].numpy(), abs=2e-5)


def test_an_organism_is_read_at_every_site():
    folder = Path(ORGANISMS) / "base"
    subject = opened(folder)
    rows = answered(subject)
    with subject.model.wearing(()) as model:
        layers = dissect(model).layers
    names = tuple(f"blocks.{layer}.hook_resid_{part}" for layer in range(layers) for part in ("pre", "mid", "post"))

    found = activations(subject, rows, Reading(sites=names, spots=(LAST,)))

    assert np.array_equal(found[:, 2:-1:3], found[:, 3::3])  # what leaves a block enters the next
