"""Activations are the model's own, whatever the batch; steering does what the algebra says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from cases import open_case, tiny_prompts
from transformers import AutoModelForCausalLM

from forensics.adapters import open_adapter
from forensics.anatomy import writing_matrices
from forensics.capture import Sites, mean_residual, residuals, site_name, template_tokens
from forensics.checkpoint import open_checkpoint
from forensics.errors import CannotCompare, ToolFailed
from forensics.interventions import ablating, adding
from forensics.model import open_model
from forensics.prompts import Message, Prompt
from forensics.subject import Subject, first_token, replies

KINDS = ("llama", "qwen2", "gpt2")
TEXTS = ("a", "a much longer question than the first", "middling one", "b", "what?")
ALL = Sites(layers=(0, 1, 2), positions=(-3, -1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("capture")
    return {kind: tiny.save(tiny.network(kind), root / kind) for kind in KINDS}


def opened(folder, **options):
    return Subject(model=open_model(open_checkpoint(str(folder)), device="cpu"), side="base", **options)


@pytest.fixture(scope="module")
def subjects(folders):
    return {kind: opened(folders[kind]) for kind in KINDS}


def rendered(subject, texts=TEXTS):
    prompts = [Prompt(id=text, messages=(Message(role="user", content=text),), category="x", expect="either") for text in texts]
    return [subject.model.render(prompt, room=0) for prompt in prompts]


def unit(seed=0, width=32):
    vector = np.random.default_rng(seed).normal(size=width)
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_the_hidden_states_of_transformers(kind, subjects):
    subject = subjects[kind]
    rows = rendered(subject)

    found = residuals(subject, rows, Sites(layers=(0, 1, 2), positions=(-3, -2, -1)))

    with subject.model.wearing(()) as model, torch.inference_mode():
        for index, row in enumerate(rows):
            states = model(torch.tensor([row.ids]), output_hidden_states=True).hidden_states
            for layer in (0, 1):
                assert found[index, layer] == pytest.approx(states[layer][0, -3:].numpy(), abs=2e-5)
            # The last entry of transformers has gone through the final norm; ours has not.
            norm = subject.anatomy().final_norm
            assert norm(torch.tensor(found[index, 2])).numpy() == pytest.approx(states[2][0, -3:].numpy(), abs=2e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformer_lens and what it imports
def test_they_are_what_transformer_lens_calls_by_the_same_names(folders):
    bridge_module = pytest.importorskip("transformer_lens.model_bridge")
    subject = opened(folders["llama"])
    (row,) = rendered(subject, TEXTS[1:2])
    ours = residuals(subject, [row], Sites(layers=(0, 1, 2), positions=(-2, -1)))[0]

    bridge = bridge_module.TransformerBridge.boot_transformers(str(folders["llama"]), device="cpu", dtype=torch.float32)
    names = [site_name(layer, 2) for layer in range(3)]
    with torch.inference_mode():
        _, cache = bridge.run_with_cache(torch.tensor([row.ids]), attention_mask=torch.ones(1, len(row.ids), dtype=torch.long))
    for layer, name in enumerate(names):
        assert ours[layer] == pytest.approx(cache[name][0, -2:].numpy(), abs=2e-5)
    assert ours[2] == pytest.approx(cache["blocks.1.hook_out"][0, -2:].numpy(), abs=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_batch_nor_padding_changes_them(kind, subjects):
    together, alone = subjects[kind], replace(subjects[kind], batch_size=1)
    rows = rendered(together)

    assert residuals(together, rows, ALL) == pytest.approx(residuals(alone, rows, ALL), abs=2e-5)
    assert first_token(together, rows) == pytest.approx(first_token(alone, rows), abs=2e-4)
    backwards = residuals(replace(together, batch_size=3), rows[::-1], ALL)
    assert backwards[::-1] == pytest.approx(residuals(alone, rows, ALL), abs=2e-5)


def test_means_are_those_of_the_rows(subjects):
    subject = subjects["llama"]
    rows = rendered(subject)

    assert mean_residual(subject, rows, ALL) == pytest.approx(residuals(subject, rows, ALL).astype(np.float64).mean(axis=0), abs=1e-9)


def test_log_probabilities_are_those_of_the_last_logits(subjects):
    subject = subjects["gpt2"]
    (row,) = rendered(subject, TEXTS[:1])
    ids = torch.tensor([row.ids])

    right = subject.model.logits(ids, torch.ones_like(ids))[0, -1].log_softmax(dim=-1).numpy()
    assert first_token(subject, [row])[0] == pytest.approx(right, abs=1e-5)


def test_adapters_are_live_alone_and_stacked(folders, tmp_path):
    base = open_checkpoint(str(folders["llama"]))
    paths = [
        tiny.adapter(folders["llama"], tmp_path / name, modules=["q_proj", "down_proj"], seed=seed) for name, seed in (("a", 2), ("b", 3))
    ]
    adapters = tuple(open_adapter(str(path), base) for path in paths)
    subject = opened(folders["llama"])
    rows = rendered(subject)
    plain = residuals(subject, rows, ALL)

    for worn in (adapters[:1], adapters[1:], adapters, ()):
        merged = AutoModelForCausalLM.from_pretrained(folders["llama"], dtype=torch.float32)
        with torch.no_grad():
            for adapter in worn:
                for change in adapter.changes:
                    merged.get_parameter(change.target).add_(adapter.delta(change))
        tiny.save(merged, tmp_path / f"merged{len(worn)}{worn[0].name if worn else ''}")
        right = residuals(opened(tmp_path / f"merged{len(worn)}{worn[0].name if worn else ''}"), rows, ALL)
        found = residuals(replace(subject, adapters=worn), rows, ALL)
        assert found == pytest.approx(right, abs=5e-5)
        assert bool(np.abs(found - plain).max() > 1e-3) is bool(worn)


@pytest.mark.parametrize("kind", KINDS)
def test_ablation_leaves_nothing_along_the_direction_anywhere(kind, subjects):
    subject, vector = subjects[kind], unit()
    rows = rendered(subject)
    before = residuals(subject, rows, ALL)

    with ablating(subject, vector):
        after = residuals(subject, rows, ALL)

    assert np.abs(before @ vector).max() > 1e-3
    assert after @ vector == pytest.approx(np.zeros(after.shape[:-1]), abs=1e-6)
    assert residuals(subject, rows, ALL) == pytest.approx(before, abs=0)  # the hooks are gone


def test_ablation_equals_taking_the_direction_out_of_the_weights(folders, tmp_path):
    vector, subject = torch.tensor(unit(), dtype=torch.float32), opened(folders["llama"])
    rows = rendered(subject)
    with ablating(subject, vector.numpy()):
        by_hooks = first_token(subject, rows)

    with subject.model.wearing(()) as model, torch.no_grad():
        for matrix in writing_matrices(model):
            matrix.weight.sub_(torch.outer(vector, vector @ matrix.weight))  # a view of the stored float32 weight

    assert first_token(subject, rows) == pytest.approx(by_hooks, abs=1e-4)


def test_a_subspace_taken_out_equals_taking_it_out_of_the_weights(folders):
    columns = np.linalg.qr(np.random.default_rng(3).normal(size=(len(unit()), 3)))[0]
    held, subject = torch.tensor(columns, dtype=torch.float32), opened(folders["llama"])
    rows = rendered(subject)
    with ablating(subject, columns):
        by_hooks = first_token(subject, rows)

    with subject.model.wearing(()) as model, torch.no_grad():
        for matrix in writing_matrices(model):
            matrix.weight.sub_(held @ (held.T @ matrix.weight))

    assert first_token(subject, rows) == pytest.approx(by_hooks, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_loses_a_direction_of_its_own(kind, subjects):
    subject = subjects[kind]
    rows = rendered(subject)
    blocks = subject.anatomy().layers
    columns = [np.linalg.qr(np.random.default_rng(layer).normal(size=(len(unit()), 1)))[0] for layer in range(blocks)]

    with ablating(subject, columns):
        after = residuals(subject, rows, Sites(layers=tuple(range(blocks)), positions=(-2, -1)))

    for layer in range(blocks):
        assert after[:, layer] @ columns[layer] == pytest.approx(np.zeros((len(rows), 2, 1)), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_components_are_set_on_the_prompt_and_left_alone_in_replies(kind, subjects):
    subject = replace(subjects[kind], max_new_tokens=6)
    rows = rendered(subject)
    blocks = subject.anatomy().layers
    levels = [np.array([5.0 + layer]) for layer in range(blocks + 1)]

    with ablating(subject, unit()[:, None], levels):
        after = residuals(subject, rows, ALL)
        seen = []
        tap = (
            subject.anatomy()
            .blocks[0]
            .register_forward_pre_hook(
                lambda _module, args, kwargs: seen.append(
                    (args or (kwargs["hidden_states"],))[0] @ torch.tensor(unit(), dtype=torch.float32)
                ),
                with_kwargs=True,
            )
        )
        replies(subject, rows)
        tap.remove()

    assert (after @ unit())[:, :, -1] == pytest.approx(
        np.broadcast_to(np.array([level[0] for level in levels]), (len(rows), blocks + 1)), abs=1e-4
    )
    assert seen[0] == pytest.approx(torch.full_like(seen[0], 5.0), abs=1e-4)
    later = torch.cat([one for one in seen if one.shape[1] == 1])
    assert len(later) >= len(rows) and ((later - 5.0).abs() > 1e-3).all()


def test_columns_and_levels_fit_the_blocks(subjects):
    with pytest.raises(ValueError, match="each of"), ablating(subjects["llama"], [unit()[:, None]]):
        pass
    with pytest.raises(ValueError, match="one layer more"), ablating(subjects["llama"], unit(), [np.zeros(1)]):
        pass


@pytest.mark.parametrize("layer", [0, 1])
def test_addition_moves_what_enters_its_layer_and_nothing_before(layer, subjects):
    subject, vector = subjects["llama"], 3.0 * unit()
    rows = rendered(subject)
    before = residuals(subject, rows, ALL)

    with adding(subject, vector, layer):
        after = residuals(subject, rows, ALL)

    # The taps were set after the steering hook, so they read what the block reads.
    assert after[:, layer] - before[:, layer] == pytest.approx(np.broadcast_to(vector, after[:, layer].shape), abs=1e-5)
    assert after[:, :layer] == pytest.approx(before[:, :layer], abs=0)
    assert np.abs(after[:, 2] - before[:, 2]).max() > 0.1


def test_what_is_added_to_the_prompt_alone_is_not_added_to_replies(subjects):
    subject = replace(subjects["llama"], max_new_tokens=4)
    rows = rendered(subject)
    block, vector = subject.anatomy().blocks[1], torch.tensor(unit(), dtype=torch.float32)
    came, went = [], []

    def note(into):
        return lambda _module, args, kwargs: into.append((args or (kwargs["hidden_states"],))[0] @ vector)

    first = block.register_forward_pre_hook(note(came), with_kwargs=True)
    with adding(subject, 3.0 * unit(), 1, prompt_alone=True):
        last = block.register_forward_pre_hook(note(went), with_kwargs=True)
        replies(subject, rows)
    first.remove()
    last.remove()

    moved = {(after.shape[1] == 1, round(float((after - before).mean()), 4)) for before, after in zip(came, went, strict=True)}
    assert moved == {(False, 3.0), (True, 0.0)}


def test_steering_holds_while_replies_are_generated(subjects):
    subject = replace(subjects["llama"], max_new_tokens=8)
    rows = rendered(subject)
    plain = replies(subject, rows)

    with adding(subject, 50.0 * unit(), 1):
        steered = replies(subject, rows)

    assert steered != plain == replies(subject, rows)
    assert replies(replace(subject, batch_size=1), rows) == plain


def test_activations_that_are_not_finite_are_named_by_layer_and_side(folders, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folders["llama"], dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[3, 3] = float("nan")
    subject = replace(opened(tiny.save(model, tmp_path / "broken")), side="candidate")

    with pytest.raises(CannotCompare, match=r"activations of the candidate are not finite from blocks\.1\.hook_resid_pre on"):
        residuals(subject, rendered(subject), Sites(layers=(0, 1, 2)))
    assert np.isfinite(residuals(subject, rendered(subject), Sites(layers=(0,)))).all()


@pytest.mark.parametrize(
    "failure", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_where_memory_runs_out_batches_are_halved_and_it_goes_on(failure, subjects, monkeypatch):
    subject = subjects["llama"]
    rows, right, sizes = rendered(subject), residuals(subject, rendered(subject), ALL), []
    trunk = subject.anatomy().trunk
    real = trunk.forward

    def tight(input_ids, attention_mask, position_ids, use_cache):
        sizes.append(len(input_ids))
        if len(input_ids) > limit:
            raise failure
        return real(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache)

    monkeypatch.setattr(trunk, "forward", tight)
    limit = 1
    assert residuals(subject, rows, ALL) == pytest.approx(right, abs=2e-5)
    assert max(sizes) > 1
    limit = 0
    with pytest.raises(ToolFailed, match="one prompt"):
        residuals(subject, rows, ALL)


def test_another_error_is_not_taken_for_a_lack_of_memory(subjects, monkeypatch):
    def broken(**_inputs):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(subjects["llama"].anatomy().trunk, "forward", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        residuals(subjects["llama"], rendered(subjects["llama"]), ALL)


def test_the_tokens_after_the_question_are_counted_from_what_all_prompts_share(subjects):
    rows = rendered(subjects["llama"])

    assert template_tokens(rows) == 2  # <|end|><|assistant|>
    assert template_tokens(rows[:1]) <= 8
    assert template_tokens([replace(rows[0], ids=(1, 2)), replace(rows[0], ids=(3, 4))]) == 1


def test_a_prompt_shorter_than_the_positions_is_refused(subjects):
    subject = subjects["llama"]

    with pytest.raises(CannotCompare, match="fewer than 40 tokens"):
        residuals(subject, rendered(subject), Sites(layers=(0,), positions=(-40,)))


def test_a_resumed_run_reads_them_back_instead_of_running_the_model(folders, tmp_path, monkeypatch):
    prompts = tiny_prompts(tmp_path / "p.jsonl")
    with open_case(folders["llama"], folders["llama"], tmp_path / "run", prompts=prompts) as case:
        rows = [case.model("base").render(prompt, room=0) for prompt in case.prompts]
        first, mean = case.activations("base", rows, ALL), case.activations("base", rows, ALL, mean=True)
        held = sorted((tmp_path / "run" / "cache").iterdir())
        assert len(held) == 2

    monkeypatch.setattr("forensics.capture.read", None)
    with open_case(folders["llama"], folders["llama"], tmp_path / "run", prompts=prompts) as case:
        assert np.array_equal(case.activations("base", rows, ALL), first)
        assert np.array_equal(case.activations("base", rows, ALL, mean=True), mean)
        for other in (Sites(layers=(0, 1)), Sites(layers=(0, 1, 2), positions=(-3, -2))):
            with pytest.raises(TypeError):
                case.activations("base", rows, other)
        held[0].write_bytes(b"torn")
        held[1].write_bytes(b"")
        with pytest.raises(TypeError):
            case.activations("base", rows, ALL)
