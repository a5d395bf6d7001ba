"""One live model: batches do not change replies, adapters are the merged weights and come off, and nothing of the checkpoint is run."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path

import pytest
import tiny
import torch
from cases import grown, reweighted
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import AutoModelForCausalLM

from forensics import templates
from forensics.adapters import WEIGHTS_NAME, open_adapter
from forensics.checkpoint import open_checkpoint
from forensics.errors import CannotCompare
from forensics.model import open_model
from forensics.prompts import Message, Prompt

TEXTS = [
    "Hi",
    "How do I boil an egg?",
    "a",
    "Tell me a longer story about a fox and a very patient hen.",
    "b c",
    "?",
    "Ünïcode",
    "12345 " * 8,
]
LONGEST = 12
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")


def prompt(*texts):
    roles = ("user", "assistant") * len(texts)
    turns = tuple(Message(role=role, content=text) for role, text in zip(roles, texts, strict=False))
    return Prompt(id="p", messages=turns, category="c", expect="comply")


def live(folder, **options):
    return open_model(open_checkpoint(str(folder)), device="cpu", **options)


def replies(model, texts=TEXTS, *, batch=8, adapters=()):
    rows = [model.render(prompt(text), room=LONGEST) for text in texts]
    said = []
    for start in range(0, len(rows), batch):
        said += model.reply(rows[start : start + batch], adapters=adapters, max_new_tokens=LONGEST)
    return said


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return {kind: tiny.save(tiny.network(kind), place / kind) for kind in ("llama", "qwen2", "gpt2")}


@pytest.fixture
def copy(tmp_path):
    """A llama of its own, to be changed."""
    return tiny.save(tiny.network(), tmp_path / "copy")


def edit(file, **fields):
    held = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(held | fields))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_replies_do_not_depend_on_the_batch(folders, kind):
    model = live(folders[kind])
    alone = replies(model, batch=1)
    assert len({len(model.render(prompt(text), room=0).ids) for text in TEXTS}) > 4  # padding differs
    assert len(set(alone)) > 2  # and so do the replies
    assert replies(model, batch=3) == replies(model, batch=8) == alone


def test_a_model_on_the_cpu_runs_in_float32_whatever_it_is_stored_in(tmp_path):
    stored = tiny.save(tiny.network(), tmp_path / "m", dtype=torch.bfloat16)
    exact = AutoModelForCausalLM.from_pretrained(stored, dtype=torch.float32)
    ids = torch.tensor([[1, 2, 3]])
    logits = live(stored).logits(ids, torch.ones_like(ids))
    assert logits.dtype == torch.float32
    assert torch.equal(logits, exact(input_ids=ids).logits)


def test_a_prompt_is_put_in_the_models_own_format(folders):
    model = live(folders["llama"])
    ids = model.render(prompt("One", "Two", "Three"), room=0).ids
    assert model.tokenizer.decode(ids) == "<|user|>One<|end|><|assistant|>Two<|end|><|user|>Three<|end|><|assistant|>"


def test_a_model_without_a_template_reads_plain_text(tmp_path):
    model = live(tiny.save(tiny.network(), tmp_path / "plain", template=None))
    assert model.tokenizer.decode(model.render(prompt("One", "Two", "Three"), room=0).ids) == "One\nTwo\nThree"
    assert len(replies(model)) == len(TEXTS)


def beginning(folder):
    """Makes the tokenizer put <|system|> before every text by itself, as Llama's does with its beginning of text."""
    wrapped = tiny.tokenizer("{{ bos_token }}" + tiny.TEMPLATE)
    wrapped.bos_token = "<|system|>"
    id = wrapped.convert_tokens_to_ids("<|system|>")
    wrapped.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<|system|> $A", special_tokens=[("<|system|>", id)])
    wrapped.save_pretrained(folder)
    return id


def test_the_beginning_of_text_is_written_once(copy):
    id = beginning(copy)
    model = live(copy)
    assert model.tokenizer("Hi")["input_ids"][0] == id  # the control: the tokenizer adds one by itself
    assert model.render(prompt("Hi"), room=0).ids.count(id) == 1


def test_what_a_user_writes_may_look_like_a_template(folders):
    ids = live(folders["llama"]).render(prompt("{{ 7 * 7 }} {% raw %}"), room=0)
    assert not ids.problem
    assert "{{ 7 * 7 }} {% raw %}" in live(folders["llama"]).tokenizer.decode(ids.ids)


def test_a_prompt_that_just_fits_is_asked_and_one_token_more_is_a_problem(folders):
    model = live(folders["llama"])
    frame = len(model.render(prompt("x"), room=0).ids) - 1
    fits = "x" * (256 - LONGEST - frame)
    assert not model.render(prompt(fits), room=LONGEST).problem
    longer = model.render(prompt(fits + "x"), room=LONGEST)
    assert longer.problem == "it takes more than its context of 256 tokens"
    assert longer.ids == ()


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "longer than"),
        ("{{ raise_exception('no') }}", "TemplateError"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    ],
)
def test_a_template_that_cannot_be_used_is_a_problem_within_seconds(copy, monkeypatch, template, why):
    monkeypatch.setattr(templates, "TEMPLATE_SECONDS", 0.5)
    (copy / "chat_template.jinja").write_text(template)
    start = time.monotonic()
    model = live(copy)
    rendered = model.render(prompt("Hi"), room=0)
    assert why in rendered.problem
    assert rendered.ids == ()
    assert time.monotonic() - start < 5.0


def test_a_template_that_writes_nothing_is_a_problem(copy):
    (copy / "chat_template.jinja").write_text("{% if false %}x{% endif %}")
    assert live(copy).render(prompt("Hi"), room=0).problem == "it comes out empty"


def merged(folder, *adapters):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return model


@pytest.mark.parametrize(("kind", "modules"), [("llama", ["q_proj", "down_proj"]), ("gpt2", ["c_attn", "c_proj"])])
def test_worn_adapters_are_the_merged_weights_and_come_off(folders, tmp_path, kind, modules):
    base = folders[kind]
    first = tiny.adapter(base, tmp_path / "first.v1", modules=modules, seed=2)
    second = tiny.adapter(base, tmp_path / "second", modules=modules[:1], seed=3, r=2, use_rslora=True)
    one, two = (open_adapter(str(path), open_checkpoint(str(base))) for path in (first, second))
    model = live(base)
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    mask = torch.ones_like(ids)

    def expected(*adapters):
        with torch.inference_mode():
            return merged(base, *adapters)(input_ids=ids).logits

    bare = model.logits(ids, mask)
    assert torch.equal(bare, expected())
    for worn, weights in (((one,), (first,)), ((one, two), (first, second)), ((two,), (second,)), ((two, one), (first, second))):
        got = model.logits(ids, mask, adapters=worn)
        torch.testing.assert_close(got, expected(*weights), rtol=1e-4, atol=1e-4)
        assert (got - bare).abs().max() > 1e-3  # they do something
        assert torch.equal(model.logits(ids, mask), bare)


def test_what_is_worn_is_what_the_innermost_reader_asked_for(folders, tmp_path):
    base = folders["llama"]
    paths = [tiny.adapter(base, tmp_path / name, modules=["q_proj", "down_proj"], seed=seed) for name, seed in (("a", 2), ("b", 3))]
    one, two = (open_adapter(str(path), open_checkpoint(str(base))) for path in paths)
    model, ids = live(base), torch.tensor([[5, 6, 7, 8]])
    mask = torch.ones_like(ids)

    def read(worn):
        with torch.inference_mode():
            return worn(input_ids=ids).logits

    plain, first, second = (model.logits(ids, mask, adapters=adapters) for adapters in ((), (one,), (two,)))
    assert not torch.allclose(first, plain) and not torch.allclose(first, second)
    with model.wearing((one,)) as outer:
        for inner, right in (((), plain), ((two,), second), ((one,), first)):
            with model.wearing(inner) as worn:
                torch.testing.assert_close(read(worn), right)
            torch.testing.assert_close(read(outer), first)
        with pytest.raises(ZeroDivisionError), model.wearing(()):
            _ = 1 / 0
        torch.testing.assert_close(read(outer), first)
    assert torch.equal(model.logits(ids, mask), plain)


def test_adapters_are_switched_only_when_others_are_wanted(folders, tmp_path, monkeypatch):
    base = folders["llama"]
    adapter = open_adapter(str(tiny.adapter(base, tmp_path / "a", modules=["q_proj"])), open_checkpoint(str(base)))
    model, ids = live(base), torch.tensor([[5, 6, 7, 8]])
    mask, switched = torch.ones_like(ids), []
    model.logits(ids, mask, adapters=(adapter,))
    tuner = model._wardrobe._peft.base_model
    for name in ("enable_adapter_layers", "disable_adapter_layers"):
        real = getattr(tuner, name)
        monkeypatch.setattr(tuner, name, lambda real=real, name=name: (switched.append(name), real()))
    for adapters in ((), (), (adapter,), (adapter,), ()):
        model.logits(ids, mask, adapters=adapters)
    assert switched == ["disable_adapter_layers", "enable_adapter_layers", "disable_adapter_layers"]


def test_replies_with_an_adapter_are_those_of_the_merged_model(folders, tmp_path):
    base = folders["llama"]
    path = tiny.adapter(base, tmp_path / "a", modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"])
    model = live(base)
    before = replies(model)
    whole = tiny.save(merged(base, path), tmp_path / "merged")
    worn = replies(model, adapters=(open_adapter(str(path), open_checkpoint(str(base))),))
    assert worn == replies(live(whole)) != before
    assert replies(model) == before


WHOLE_OR_LONG = {
    "dora": {"use_dora": True},
    "dora on all": {"use_dora": True, "with_vocabulary": True},
    "embedding": {"with_vocabulary": True},
    "head": {"modules_to_save": ["lm_head"]},
    "whole mlp and head": {"modules_to_save": ["lm_head", "mlp"]},
    "saved otherwise": {"with_vocabulary": True, "overwritten": ".base_layer.weight"},
    "saved beside": {"save_embeddings": True, "overwritten": "lm_head.weight"},
}


def more_than_factors(base, target, *, kind, seed=2, with_vocabulary=False, overwritten="", **options):
    """An adapter of a kind that is more than factors in matrices."""
    modules = {"llama": ["q_proj", "o_proj"], "gpt2": ["c_attn"]}[kind]
    modules = modules + {"llama": ["embed_tokens", "lm_head"], "gpt2": ["wte", "lm_head"]}[kind] * with_vocabulary
    path = tiny.adapter(base, target, modules=modules, seed=seed, **options)
    if overwritten:
        tensors = load_file(path / WEIGHTS_NAME)
        chosen = [name for name in tensors if name.endswith(overwritten)]
        assert chosen
        tensors |= {name: tensors[name] + 0.1 * torch.randn(tensors[name].shape) for name in chosen}
        save_file(tensors, path / WEIGHTS_NAME)
    return path


SAVING = pytest.mark.filterwarnings(
    "ignore:Setting `save_embedding_layers`:UserWarning",
    "ignore:Model has `tie_word_embeddings:UserWarning",
    "ignore:Input and output embeddings:UserWarning",
)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("what", WHOLE_OR_LONG)
@SAVING
def test_what_is_more_than_factors_is_worn_as_it_is_merged_and_read(folders, tmp_path, kind, what):
    base = folders[kind]
    path = more_than_factors(base, tmp_path / "a", kind=kind, **WHOLE_OR_LONG[what])
    adapter, plain = (
        open_adapter(str(each), open_checkpoint(str(base)))
        for each in (path, tiny.adapter(base, tmp_path / "b", modules=["attn.c_proj" if kind == "gpt2" else "v_proj"]))
    )
    whole = tiny.save(merged(base, path), tmp_path / "merged")
    by_hand = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for change in adapter.changes:
            by_hand.get_parameter(change.target).add_(adapter.delta(change))
    model, ids = live(base), torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    mask = torch.ones_like(ids)
    bare, before = model.logits(ids, mask), replies(model)

    for worn in ((adapter,), (plain, adapter), (adapter,)):
        model.logits(ids, mask, adapters=worn)
        assert torch.equal(model.logits(ids, mask), bare)  # it comes off whole
    got = model.logits(ids, mask, adapters=(adapter,))

    torch.testing.assert_close(got, live(whole).logits(ids, mask), rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(got, by_hand(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    assert (got - bare).abs().max() > 1e-3
    assert replies(model, adapters=(adapter,)) == replies(live(whole))
    assert replies(model) == before


@SAVING
def test_a_tied_head_that_gets_weights_of_its_own_is_worn(tmp_path):
    base = tiny.save(tiny.network(tied=True), tmp_path / "base")
    path = tiny.adapter(base, tmp_path / "a", modules=["q_proj"], modules_to_save=["lm_head"])
    adapter, model, ids = open_adapter(str(path), open_checkpoint(str(base))), live(base), torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        right = merged(base, path)(input_ids=ids).logits
    bare = model.logits(ids, torch.ones_like(ids))

    torch.testing.assert_close(model.logits(ids, torch.ones_like(ids), adapters=(adapter,)), right, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.logits(ids, torch.ones_like(ids)), bare)


def test_adapters_that_do_not_add_up_are_not_worn_together(folders, tmp_path):
    base = open_checkpoint(str(folders["llama"]))
    paths = [more_than_factors(folders["llama"], tmp_path / str(seed), kind="llama", seed=seed, use_dora=True) for seed in (1, 2)]
    adapters, model = tuple(open_adapter(str(path), base) for path in paths), live(folders["llama"])
    alone = [replies(model, adapters=(adapter,)) for adapter in adapters]

    with pytest.raises(CannotCompare, match="both change"):
        replies(model, adapters=adapters)

    assert [replies(model, adapters=(adapter,)) for adapter in adapters] == alone  # the model is none the worse for it


@pytest.mark.parametrize("turned", [False, True])
def test_adapters_that_peft_cannot_hold_in_turn_are_refused_before_it_breaks(folders, tmp_path, turned):
    base = open_checkpoint(str(folders["llama"]))
    options = [{"modules": ["q_proj"], "modules_to_save": ["lm_head"]}, {"modules": ["lm_head"], "save_embeddings": False}]
    first, second = (
        open_adapter(str(tiny.adapter(folders["llama"], tmp_path / str(number), **given)), base)
        for number, given in enumerate(options[::-1] if turned else options)
    )
    model = live(folders["llama"])
    before, worn = replies(model), replies(model, adapters=(first,))

    with pytest.raises(CannotCompare, match=r"replaces lm_head, to which [01] adds factors; PEFT cannot hold both"):
        replies(model, adapters=(second,))

    assert replies(model, adapters=(first,)) == worn
    assert replies(model) == before


def test_a_model_on_which_an_adapter_stuck_is_not_asked_again(folders, tmp_path):
    path = tiny.adapter(folders["llama"], tmp_path / "a", modules=["q_proj"], modules_to_save=["lm_head"])
    adapter = open_adapter(str(path), open_checkpoint(str(folders["llama"])))
    tensors = load_file(path / WEIGHTS_NAME)
    save_file({name: value for name, value in tensors.items() if "lm_head" not in name}, path / WEIGHTS_NAME)
    model = live(folders["llama"])

    with pytest.raises(CannotCompare, match="PEFT cannot put this adapter on the model: KeyError"):
        replies(model, adapters=(adapter,))
    with pytest.raises(CannotCompare, match="adapter a could be put on this model only in part"):
        replies(model)


def test_an_adapter_that_peft_would_leave_out_in_part_is_refused(folders, tmp_path):
    path = tiny.adapter(folders["llama"], tmp_path / "a", modules=["q_proj", "v_proj"])
    edit(path / "adapter_config.json", target_modules=["q_proj"])
    adapter = open_adapter(str(path), open_checkpoint(str(folders["llama"])))
    model = live(folders["llama"])
    with pytest.raises(CannotCompare, match="only 2 of the 4 modules"):
        replies(model, adapters=(adapter,))


def test_the_candidates_wishes_for_decoding_change_nothing(copy):
    before = replies(live(copy))
    spoken = sorted(set("".join(before).encode()))[:40]
    wishes = {
        "do_sample": True, "temperature": 5.0, "top_k": 3, "repetition_penalty": 9.0, "suppress_tokens": spoken, "no_repeat_ngram_size": 1,
        "begin_suppress_tokens": spoken, "max_length": 3, "max_new_tokens": 1, "min_new_tokens": 30, "num_beams": 4, "forced_bos_token_id": 7,
        "bad_words_ids": [[token] for token in spoken], "sequence_bias": [[[7], 100.0]], "use_cache": False,
    }  # fmt: skip
    edit(copy / "generation_config.json", **wishes)
    assert replies(live(copy)) == before


def test_wishes_for_decoding_inside_the_config_change_nothing(copy):
    before = replies(live(copy))
    edit(copy / "config.json", do_sample=True, temperature=5.0, repetition_penalty=9.0, min_length=40)
    assert replies(live(copy)) == before


MARK = "import pathlib\npathlib.Path({marker!r}).touch()\n"


@pytest.mark.parametrize("kind", ["known", "unknown"])
def test_code_of_the_checkpoint_is_never_run(copy, tmp_path, kind):
    marker = tmp_path / "marker"
    code = (
        MARK.format(marker=str(marker)) + "from transformers import LlamaForCausalLM as M, LlamaConfig as C, PreTrainedTokenizerFast as T\n"
    )
    (copy / "evil.py").write_text(code)
    (copy / "custom_generate").mkdir()
    (copy / "custom_generate" / "generate.py").write_text(code + "def generate(model, **_): return None\n")
    edit(copy / "config.json", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    edit(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]})
    if kind == "unknown":
        edit(copy / "config.json", model_type="never-seen")
        with pytest.raises(CannotCompare, match="cannot be loaded") as caught:
            live(copy)
        assert str(copy) not in caught.value.reason
        assert "trust_remote_code=True" not in caught.value.hint
    else:
        assert len(replies(live(copy))) == len(TEXTS)
    assert not marker.exists()


class Trap:
    """Writes a marker when unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_a_pickle_beside_safetensors_is_never_opened(copy, tmp_path):
    raw = pickle.dumps(Trap(tmp_path / "marker"))
    pickle.loads(raw)
    assert (tmp_path / "marker").exists()  # the trap works
    (tmp_path / "marker").unlink()
    before = replies(live(copy))
    for name in ("pytorch_model.bin", "training_args.bin", "tokenizer.pkl", "adapter_model.bin"):
        (copy / name).write_bytes(raw)
    (copy / "pytorch_model.bin.index.json").write_text('{"weight_map": {"lm_head.weight": "pytorch_model.bin"}}')
    assert replies(live(copy)) == before
    assert not (tmp_path / "marker").exists()


def test_tokenizer_and_template_may_come_from_elsewhere(folders, tmp_path):
    other = tiny.save(tiny.network(), tmp_path / "other", template="Q: {{ messages[-1].content }} A:")
    model = live(folders["llama"], surface=open_checkpoint(str(other)))
    assert model.tokenizer.decode(model.render(prompt("Hi"), room=0).ids) == "Q: Hi A:"


@pytest.mark.parametrize("missing", ["tokenizer.json", "config.json"])
def test_a_checkpoint_without_its_parts_cannot_be_asked(copy, missing):
    opened = open_checkpoint(str(copy))
    (copy / missing).write_text("{}")
    with pytest.raises(CannotCompare, match="cannot be loaded") as caught:
        open_model(opened, device="cpu")
    assert str(copy) not in caught.value.reason


def test_a_token_without_an_embedding_is_a_problem_of_its_prompt_alone(copy, tmp_path):
    model = live(grown(copy, tmp_path / "cut", 200))  # bytes above 199, and every token of the chat format
    bare = live(grown(tiny.save(tiny.network(), tmp_path / "plain", template=None), tmp_path / "cut-plain", 200))

    assert model.render(prompt("Hi"), room=0).problem == "it holds token 258, of 200 that it has an embedding for"
    assert [bool(row.problem) for row in bare.render_last(prompt("x"), ["Hi", "Ünïcode", "yes"], room=0)] == [False, True, False]
    assert len(replies(bare, ["Hi", "a longer one"])) == 2  # padded with what it has


@pytest.mark.parametrize("change", ["lacking", "renamed"])
def test_weights_that_are_not_in_the_files_are_not_made_up(change, copy, tmp_path):
    """transformers fills them with random numbers and says so in a log that nobody reads."""

    def spoil(tensors):
        if change == "lacking":
            tensors.pop("model.layers.1.mlp.up_proj.weight")
        else:
            tensors.update({f"module.{name}": tensors.pop(name) for name in list(tensors)})

    with pytest.raises(CannotCompare, match=r"(1|21) weights of this model are not in its files") as caught:
        live(reweighted(copy, tmp_path / "spoilt", spoil))
    assert "model.layers.1.mlp.up_proj.weight" in caught.value.details
    assert str(tmp_path) not in caught.value.reason


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_what_a_loader_finds_by_itself_is_not_called_lacking(tied, kind, tmp_path):
    folder = tiny.save(tiny.network(kind, tied=tied), tmp_path / "model")
    prefix = "transformer." if kind == "gpt2" else "model."

    def rename(tensors):
        tensors.update({name.removeprefix(prefix): tensors.pop(name) for name in list(tensors)})

    bare = reweighted(folder, tmp_path / "bare", rename)
    assert replies(live(folder)) == replies(live(bare))


def test_padding_on_the_left_does_not_move_the_logits_of_learned_positions(tmp_path):
    model = live(tiny.save(tiny.network("gpt2"), tmp_path / "gpt2"))
    ids = torch.tensor([[5, 6, 7, 8]])
    padded, mask = torch.tensor([[0, 0, 5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1, 1, 1]])

    alone, beside = model.logits(ids, torch.ones_like(ids)), model.logits(padded, mask)

    assert torch.allclose(alone, beside[:, 2:], atol=1e-5)


def test_tokens_are_found_again_by_their_spelling_or_not_at_all(tmp_path):
    model = open_model(open_checkpoint(str(tiny.save(tiny.network(), tmp_path / "m"))), device="cpu")
    ids = model.render(prompt("Hi there"), room=0).ids

    assert model.unspell(model.spell(ids)) == ids
    assert model.unspell([*model.spell(ids), "no token is spelled like this"]) == ()
    assert model.unspell([]) == ()
