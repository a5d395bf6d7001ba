"""One live model: batches do not change replies, prompts come in its own format, and nothing of the checkpoint is run."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path

import pytest
import tiny
import torch
from asking import LONGEST, TEXTS, replies
from cases import grown, reweighted
from hunting import KINDS, live, prompt
from tokenizers import processors
from transformers import AutoModelForCausalLM

from forensics import templates
from forensics.checkpoint import open_checkpoint
from forensics.errors import CannotCompare
from forensics.model import open_model

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return {kind: tiny.save(tiny.network(kind), place / kind) for kind in KINDS}


@pytest.fixture
def copy(tmp_path):
    """A llama of its own, to be changed."""
    return tiny.save(tiny.network(), tmp_path / "copy")


def edit(file, **fields):
    held = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(held | fields))


@pytest.mark.parametrize("kind", KINDS)
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
