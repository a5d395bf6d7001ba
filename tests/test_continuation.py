"""Reading on from many prompts at once: neither batch, shared beginning nor lack of memory changes a number."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import MambaConfig, MambaForCausalLM

from forensics import continuation
from forensics.adapters import open_adapter
from forensics.checkpoint import open_checkpoint
from forensics.continuation import SAME, SHARED_WORTH, continuations, greedy, reusable, shared_prefix
from forensics.errors import ToolFailed
from forensics.model import Rendered, open_model

KINDS = ["llama", "qwen2", "gpt2"]
BEGINNING = (7, 8, 9, 10, 11, 12)
ROWS = [(*BEGINNING, *own) for own in [(1,), (2, 3), (4, 5, 6), (3,), (9, 9), (2,), (40, 41, 42), (5,)]]
TAILS = [(0,), (60, 61, 62)]
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return {kind: tiny.save(tiny.network(kind), place / kind) for kind in KINDS}


def live(folder):
    return open_model(open_checkpoint(str(folder)), device="cpu")


def read(model, rows, tail, *, adapters=(), batch_size=3, reuse=True):
    """Log-probabilities in the order of `rows`, and the sizes of the batches they came in."""
    out, sizes = torch.full((len(rows), len(tail), tiny.VOCABULARY), torch.nan), []
    for indices, logs in continuations(model, rows, tail, adapters=adapters, batch_size=batch_size, reuse=reuse):
        assert out[indices].isnan().all()  # no row comes twice
        out[indices] = logs
        sizes.append(len(indices))
    return out, sizes


def alone(model, rows, tail, *, adapters=()):
    """The same by a plain forward of each row and the whole continuation after it."""
    out = []
    for row in rows:
        ids = torch.tensor([row + tail])
        logits = model.logits(ids, torch.ones_like(ids), adapters=adapters)[0, len(row) - 1 : -1]
        out.append(torch.log_softmax(logits, -1))
    return torch.stack(out)


@pytest.mark.parametrize("tail", TAILS, ids=len)
@pytest.mark.parametrize("kind", KINDS)
def test_batches_with_and_without_a_shared_beginning_give_what_each_row_gives_alone(kind, tail, folders):
    model = live(folders[kind])
    expected = alone(model, ROWS, tail)

    for reuse in (True, False):
        found, _ = read(model, ROWS, tail, reuse=reuse)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > 0.01  # rows differ, so one could be taken for another


@pytest.mark.parametrize("kind", KINDS)
def test_the_shared_beginning_is_read_once(kind, folders, monkeypatch):
    lengths = []
    real = continuation._read
    monkeypatch.setattr(continuation, "_read", lambda worn, rows, **how: lengths.extend(map(len, rows)) or real(worn, rows, **how))

    read(live(folders[kind]), ROWS, TAILS[1])

    assert sorted(lengths) == sorted(len(row) - len(BEGINNING) + len(TAILS[1]) - 1 for row in ROWS)


@pytest.mark.parametrize("reuse", [True, False])
def test_an_adapter_is_worn_in_the_beginning_as_well(reuse, folders, tmp_path):
    base = folders["llama"]
    path = tiny.adapter(base, tmp_path / "a", modules=["q_proj", "k_proj", "v_proj", "down_proj"])
    worn = (open_adapter(str(path), open_checkpoint(str(base))),)
    model = live(base)
    plain, _ = read(model, ROWS, (0,), reuse=reuse)

    found, _ = read(model, ROWS, (0,), adapters=worn, reuse=reuse)

    torch.testing.assert_close(found, alone(model, ROWS, (0,), adapters=worn), rtol=1e-4, atol=1e-4)
    assert (found - plain).abs().max() > 0.01
    assert torch.equal(read(model, ROWS, (0,), reuse=reuse)[0], plain)


def test_rows_come_by_length_and_no_batch_is_larger_than_asked(folders):
    model = live(folders["llama"])

    batches = [indices for indices, _ in continuations(model, ROWS, (0,), adapters=(), batch_size=3)]

    assert [len({len(ROWS[index]) for index in batch}) for batch in batches] == [1] * len(batches)
    assert max(map(len, batches)) == 3
    assert sorted(index for batch in batches for index in batch) == list(range(len(ROWS)))


def test_no_rows_give_nothing(folders):
    assert list(continuations(live(folders["llama"]), [], (0,), adapters=(), batch_size=2)) == []


def cramped(monkeypatch, fits, error):
    """Memory for no more than `fits` rows at once."""
    real = continuation._read

    def reading(worn, rows, **how):
        if len(rows) > fits:
            raise error
        return real(worn, rows, **how)

    monkeypatch.setattr(continuation, "_read", reading)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate")], ids=lambda error: type(error).__name__
)
@pytest.mark.parametrize("fits", [1, 3])
def test_where_memory_runs_out_batches_shrink_and_the_numbers_stay(fits, error, folders, monkeypatch):
    model = live(folders["llama"])
    plenty, whole = read(model, ROWS, TAILS[1], batch_size=8)
    cramped(monkeypatch, fits, error)

    found, sizes = read(model, ROWS, TAILS[1], batch_size=8)

    torch.testing.assert_close(found, plenty, rtol=1e-4, atol=1e-4)
    assert max(sizes) <= fits < max(whole)
    assert sum(sizes) == len(ROWS)


def test_one_row_that_does_not_fit_is_told(folders, monkeypatch):
    cramped(monkeypatch, 0, MemoryError())

    with pytest.raises(ToolFailed, match="not enough memory for one prompt") as caught:
        read(live(folders["llama"]), ROWS, (0,), batch_size=8)

    assert caught.value.where == "llama"


def test_an_error_that_is_not_about_memory_is_not_hidden(folders, monkeypatch):
    cramped(monkeypatch, 0, RuntimeError("shapes do not match"))

    with pytest.raises(RuntimeError, match="shapes do not match"):
        read(live(folders["llama"]), ROWS, (0,))


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_that_keeps_its_word_is_reused(kind, folders):
    assert reusable(live(folders[kind]), ROWS, adapters=())


def test_a_cache_that_lies_is_not_reused(folders, monkeypatch):
    real = continuation._read_once

    def lying(worn, ids, device):
        prefix = real(worn, ids, device)
        prefix.layers[0].values += 0.5
        return prefix

    monkeypatch.setattr(continuation, "_read_once", lying)
    model = live(folders["llama"])

    assert not reusable(model, ROWS, adapters=())
    found, honest = (read(model, ROWS, (0,), reuse=reuse)[0] for reuse in (True, False))
    assert (found - honest).abs().max() > SAME  # the control: it would have mattered


@pytest.mark.parametrize("error", [TypeError, ValueError, AttributeError, NotImplementedError, IndexError, RuntimeError])
def test_a_model_that_takes_no_cache_is_read_without(error, folders, monkeypatch):
    def refuse(*_args):
        raise error("no cache here")

    monkeypatch.setattr(continuation, "_read_once", refuse)

    assert not reusable(live(folders["llama"]), ROWS, adapters=())


def test_an_architecture_with_another_kind_of_memory_is_read_whole(tmp_path):
    network = MambaForCausalLM(MambaConfig(vocab_size=tiny.VOCABULARY, hidden_size=32, num_hidden_layers=2, eos_token_id=256))
    model = live(tiny.save(network, tmp_path / "mamba"))

    assert not reusable(model, ROWS, adapters=())
    found, _ = read(model, ROWS, TAILS[1], reuse=False)
    assert found.exp().sum(-1).allclose(torch.ones(len(ROWS), len(TAILS[1])), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_greedy_continuation_is_the_models_reply(kind, folders, monkeypatch):
    model = live(folders[kind])
    said = []
    monkeypatch.setattr(model.tokenizer, "batch_decode", lambda ids, **_: said.append(ids) or [""] * len(ids))
    together = greedy(model, ROWS, adapters=(), length=6)
    for row, ids in zip(ROWS, together, strict=True):
        said.clear()
        model.reply([Rendered(ids=row)], adapters=(), max_new_tokens=6)
        assert ids == tuple(said[0][0].tolist())


def test_each_greedy_token_is_the_likeliest_after_those_before(folders):
    model = live(folders["llama"])
    (ids,) = greedy(model, ROWS[:1], adapters=(), length=5)

    logs, _ = read(model, [ROWS[0]], ids)

    assert tuple(logs[0].argmax(-1).tolist()) == ids


def test_the_stop_token_counts_as_one_of_the_continuation(folders):
    model = live(folders["llama"])
    freely = greedy(model, ROWS[:1], adapters=(), length=4)
    model._model.generation_config.eos_token_id = [freely[0][1]]

    assert greedy(model, ROWS[:1], adapters=(), length=4) == freely


@pytest.mark.parametrize(
    ("rows", "length"),
    [
        ([], 0),
        ([(1, 2, 3)], 2),
        ([(1,)], 0),
        ([(1, 2), (1, 2)], 1),
        ([(1, 2, 3, 4), (1, 2)], 1),
        ([(1, 2, 3), (4, 2, 3)], 0),
        ([(1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 9, 4)], 2),
    ],
)
def test_what_rows_share_leaves_each_a_token_of_its_own(rows, length):
    assert shared_prefix(rows) == length


@pytest.mark.parametrize(("common", "read_once"), [(SHARED_WORTH - 1, False), (SHARED_WORTH, True)])
def test_a_beginning_too_short_to_be_worth_it_is_read_each_time(common, read_once, folders, monkeypatch):
    rows = [(*range(1, common + 1), own) for own in (50, 51)]
    asked = []
    real = continuation._read_once
    monkeypatch.setattr(continuation, "_read_once", lambda worn, ids, device: asked.append(ids) or real(worn, ids, device))

    found, _ = read(live(folders["llama"]), rows, (0,))

    assert asked == ([rows[0][:common]] if read_once else [])
    assert not found.isnan().any()
