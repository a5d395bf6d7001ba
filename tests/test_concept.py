"""`forensics probe` for concepts: what the figures mean, what is kept, and what is refused."""

from __future__ import annotations

import hashlib
import json
from shutil import copytree

import numpy as np
import pytest
import tiny
from cases import ORGANISMS, PROMPTS, open_case, read_rows, reweighted, write_rows
from safetensors.numpy import load_file, save_file
from test_cli import forensics

from forensics.concept import LEAST, activations, contrast_pairs, read_kinds, readable
from forensics.errors import BadInput
from forensics.kept import MAX_CARD_BYTES, RECORD, SCHEMA, TENSORS, load_arrays, load_card
from probes.concept import Plan, best_layer, cosines, cross_fit, elsewhere, nested_scores, threshold_for, whole_fit
from probes.linear import auroc, grouped_folds

BASE = ORGANISMS / "base"


def kinds(folder, *, count=40, positive="refuse", negative="comply"):
    """Harmful and harmless questions of the organisms as the two kinds of a concept."""
    files = []
    for name, expect in (("positive", positive), ("negative", negative)):
        rows = [row for row in read_rows(PROMPTS) if row["expect"] == expect and "prompt" in row]
        rows = [rows[index * len(rows) // count] for index in range(count)]
        plain = [{"prompt": row["prompt"], "category": row["category"]} for row in rows]
        files.append(write_rows(folder / f"{name}.jsonl", plain))
    return files


def words(files):
    return ["--positive", files[0], "--negative", files[1], "--name", "harm"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A probe for harm, fitted on the base and followed into an abliterated candidate; its folder, prompts and page."""
    folder = tmp_path_factory.mktemp("concept")
    files = kinds(folder)
    code, out, err = forensics("probe", BASE, ORGANISMS / "abliterated", *words(files), "--out", folder / "probe")
    assert (code, err) == (0, "")
    return folder / "probe", files, out


def evidence(rows, name):
    return next(row for row in rows if row.name == name)


def test_a_concept_is_found_in_the_base_and_gone_from_a_candidate_it_was_taken_out_of(kept):
    card = load_card(kept[0])
    (followed,) = card.followed

    found = evidence(card.evidence, "concept.auroc")
    assert found.value > 0.99 > found.low
    assert evidence(card.evidence, "concept.shuffled-auroc").value == pytest.approx(0.5, abs=0.1)
    assert evidence(card.evidence, "concept.random-best").n == 1000
    assert evidence(followed.evidence, "follow.base-probe.auroc").high < found.low
    assert evidence(followed.evidence, "follow.mean-cosine").value < 0.5
    assert [row.layer for row in card.layers] == [0, 1, 2, 3, 4] == [row.layer for row in followed.layers]
    assert card.layers[0].auroc < 0.7, "the last token of the template is the same for all before the first block"


def test_in_the_twin_of_the_same_size_the_concept_is_where_it_was(kept, tmp_path):
    code, out, _ = forensics("probe", BASE, ORGANISMS / "abliterated-twin", *words(kept[1]), "--json", "--out", tmp_path / "probe")

    (followed,) = json.loads(out)["followed"]
    numbers = {row["name"]: row["value"] for row in followed["evidence"]}
    assert code == 0
    assert numbers["follow.base-probe.auroc"] > 0.99
    assert numbers["follow.positive-above.candidate"] > 0.9
    assert numbers["follow.negative-above.candidate"] < 0.1


def test_a_kept_probe_scores_other_prompts_of_its_model_as_it_did_there(kept, tmp_path):
    others = kinds(tmp_path, count=61)
    flagged = []
    for file in others:
        code, out, _ = forensics("probe", BASE, "--apply", kept[0], "--prompts", file, "--json")
        assert code == 0
        flagged.append(np.mean([row["flagged"] for row in json.loads(out)["rows"]]))

    assert flagged[0] > 0.9
    assert flagged[1] < 0.1


def test_a_kept_probe_is_put_to_a_fine_tune_only_where_its_base_is_named(kept):
    prompts = kept[1][0]

    code, _, err = forensics("probe", ORGANISMS / "abliterated", "--apply", kept[0], "--prompts", prompts)
    assert code == 3
    assert "was fitted on another base" in err
    code, out, _ = forensics("probe", BASE, ORGANISMS / "abliterated", "--apply", kept[0], "--prompts", prompts, "--json")
    scores = json.loads(out)
    assert (code, scores["configuration"]) == (0, "candidate")
    own = json.loads(forensics("probe", BASE, "--apply", kept[0], "--prompts", prompts, "--json")[1])
    assert own["configuration"] == "base"
    assert np.mean([row["score"] for row in scores["rows"]]) < np.mean([row["score"] for row in own["rows"]]) - 1.0


def test_the_page_shows_layers_limits_and_where_it_lies(kept):
    folder, _, out = kept

    assert "blocks.0.hook_resid_pre" in out
    assert "candidate   digest e4cd9a91d599" in out
    assert "wording, length and topic" in out
    assert str(folder) in out


def test_the_same_command_resumes_and_gives_the_same_card(kept):
    folder, files, _ = kept

    again = forensics("probe", BASE, ORGANISMS / "abliterated", *words(files), "--json", "--out", folder)[1]

    assert again == (folder / RECORD).read_text()
    assert forensics("probe", BASE, *words(files), "--out", folder)[0] == 2


def test_an_adapter_is_followed_alone_and_without_a_candidate_nothing_is(kept, small_kept, tmp_path):
    out = forensics("probe", BASE, ORGANISMS / "benign-lora", *words(kept[1]), "--layer", 3, "--json", "--out", tmp_path / "a")[1]
    assert [row["configuration"] for row in json.loads(out)["followed"]] == ["adapter:benign-lora"]
    assert json.loads(out)["layer"] == 3
    assert load_card(small_kept).followed == ()


# --- what is refused --------------------------------------------------------------------------------------------------


def test_too_few_prompts_are_told_how_many_what_takes(tmp_path):
    files = kinds(tmp_path, count=LEAST - 1)

    code, _, err = forensics("probe", BASE, *words(files), "--out", tmp_path / "probe")

    assert code == 2
    assert f"at least {LEAST} of either kind" in err
    assert "21 of either kind for a perfect AUROC to be known above 0.9" in err
    assert not (tmp_path / "probe").exists()


def test_few_categories_and_texts_of_both_kinds_are_refused(tmp_path):
    rows = [{"prompt": f"question {index}", "category": f"c{index % 2}"} for index in range(20)]
    two = write_rows(tmp_path / "two.jsonl", rows)
    many = write_rows(tmp_path / "many.jsonl", [{"prompt": f"other {index}"} for index in range(20)])
    with pytest.raises(BadInput, match="fewer than 3 categories"):
        read_kinds(two, many)
    with pytest.raises(BadInput, match="20 prompts stand in both files"):
        read_kinds(many, many)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--positive", "p.jsonl"], "one is missing"),
        (["--positive", "p.jsonl", "--negative", "n.jsonl", "--watch"], "ask for two things"),
        (["--positive", "p.jsonl", "--negative", "n.jsonl", "--prompts", PROMPTS], "no part in fitting"),
        (["--apply", "nowhere", "--prompts", PROMPTS, "--out", "there"], "writes nothing"),
        (["--layer", "1"], "and none is"),
        (["--watch"], "no CANDIDATE"),
        ([], "no CANDIDATE"),
        (["--apply", "nowhere", "--prompts", PROMPTS], "no saved probe"),
    ],
)
def test_options_that_do_not_go_together_are_said(given, says):
    code, _, err = forensics("probe", BASE, *given)

    assert code == 2
    assert says in err


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A tiny model of which nothing sensible can be read, and prompts for it."""
    folder = tmp_path_factory.mktemp("small")
    files = [
        write_rows(folder / f"{kind}.jsonl", [{"prompt": f"{kind} {index}"} for index in range(LEAST)]) for kind in ("positive", "negative")
    ]
    return tiny.save(tiny.network(), folder / "base"), files


@pytest.fixture(scope="module")
def small_kept(small):
    """A probe fitted on the tiny model, and followed nowhere; its folder."""
    base, files = small
    code, out, _ = forensics("probe", base, *words(files), "--out", base.parent / "kept")
    assert (code, "no chat template" in out) == (0, False)
    return base.parent / "kept"


def test_a_prompt_longer_than_the_context_is_named(small, tmp_path):
    base, files = small
    long = write_rows(tmp_path / "long.jsonl", [*read_rows(files[0]), {"id": "too-long", "prompt": "word " * 100}])

    code, _, err = forensics("probe", base, "--positive", long, "--negative", files[1], "--out", tmp_path / "probe")

    assert code == 2
    assert "too-long: it takes more than its context of 256 tokens" in err


def test_a_model_without_a_template_reads_plain_text_and_it_is_said(small, tmp_path):
    plain = tiny.save(tiny.network(), tmp_path / "plain", template=None)

    assert "no chat template" in forensics("probe", plain, *words(small[1]), "--out", tmp_path / "probe")[1]  # see `small_kept`


def test_activations_that_are_not_finite_are_not_compared(small, tmp_path):
    base, files = small
    broken = reweighted(base, tmp_path / "broken", lambda tensors: tensors["model.layers.1.mlp.down_proj.weight"].fill_(float("nan")))

    code, _, err = forensics("probe", broken, *words(files), "--out", tmp_path / "probe")

    assert code == 3
    assert "not finite from blocks.1.hook_resid_post on" in err


def test_there_is_no_layer_beyond_the_last(small, tmp_path):
    base, files = small

    code, _, err = forensics("probe", base, *words(files), "--layer", 3, "--out", tmp_path / "probe")

    assert code == 2
    assert "from 0, the embedding, to 2" in err


def test_a_card_or_tensors_that_were_changed_are_refused(small_kept, tmp_path):
    copytree(small_kept, tmp_path / "probe")
    card = load_card(tmp_path / "probe")
    file, text = tmp_path / "probe" / TENSORS, (tmp_path / "probe" / RECORD).read_text()
    tensors = load_file(file)

    save_file(tensors | {"vector": -tensors["vector"]}, file)
    with pytest.raises(BadInput, match="do not belong together"):
        load_arrays(tmp_path / "probe", card)
    file.write_bytes(b"no tensors")
    with pytest.raises(BadInput, match="damaged"):
        load_arrays(tmp_path / "probe", card)
    for wrong, says in (
        (text.replace(SCHEMA, "forensics.probe/9"), "not a saved probe"),
        (text.replace('"layer": ', '"layer": "x", "old": ', 1), "changed or is damaged"),
        ("{", "no saved probe"),
        ("[]", "not a saved probe"),
        (text.replace('"kind": "concept"', '"kind": []'), "not a saved probe"),
    ):
        (tmp_path / "probe" / RECORD).write_text(wrong)
        with pytest.raises(BadInput, match=says):
            load_card(tmp_path / "probe")


def packed(header, data=b""):
    """A safetensors file by hand, which may say what no writer would."""
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def tensor(dtype, shape, size):
    return {"vector": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}


@pytest.mark.parametrize(
    "raw",
    [
        packed(tensor("F8_E4M3", [4], 4), bytes(4)),
        packed(tensor("BF16", [4], 8), bytes(8)),
        packed(tensor("C64", [1], 8), bytes(8)),
        packed(tensor("F32", [3], 8), bytes(8)),
        packed(tensor("F32", [-2], 8), bytes(8)),
        packed(tensor("F32", [1], 4), b"\x00\x00\xc0\x7f"),
    ],
    ids=["float8", "bfloat16", "complex", "shape", "negative", "nan"],
)
def test_tensors_that_cannot_be_numbers_are_one_error(raw, kept, tmp_path):
    (tmp_path / TENSORS).write_bytes(raw)
    card = load_card(kept[0]).model_copy(update={"tensors": hashlib.sha256(raw).hexdigest()})

    with pytest.raises(BadInput, match="fit it again"):
        load_arrays(tmp_path, card)


def test_tensors_are_read_as_float64_and_whole_numbers_stay_whole(kept, tmp_path):
    save_file({"vector": np.ones(4, dtype=np.float16), "layers": np.ones(4, dtype=np.int32)}, tmp_path / TENSORS)
    digest = hashlib.sha256((tmp_path / TENSORS).read_bytes()).hexdigest()

    arrays = load_arrays(tmp_path, load_card(kept[0]).model_copy(update={"tensors": digest}))

    assert {name: array.dtype for name, array in arrays.items()} == {"vector": np.float64, "layers": np.int64}


def test_a_card_larger_than_any_is_not_read(tmp_path):
    with (tmp_path / RECORD).open("wb") as stream:
        stream.truncate(MAX_CARD_BYTES + 1)

    with pytest.raises(BadInput, match="larger than"):
        load_card(tmp_path)


# --- the mathematics --------------------------------------------------------------------------------------------------


def planted(*, shift, layers=3, seed=0):
    """Rows `[120, layers, 40]` of 12 groups whose kinds differ at the last layer alone."""
    rng = np.random.default_rng(seed)
    rows, labels = rng.normal(size=(120, layers, 40)), np.arange(120) % 2 == 0
    rows[labels, -1, 0] += shift
    return rows, labels, [index // 10 for index in range(120)]


def test_the_layer_that_holds_the_concept_is_chosen_and_judged_without_the_rows_scored():
    rows, labels, groups = planted(shift=4.0)
    crossed = cross_fit(rows, labels, grouped_folds(labels, groups, seed=0), Plan(shuffles=5))

    assert best_layer(crossed.scores, labels) == 2
    judged = nested_scores(rows, labels, groups, crossed, seed=0)
    assert auroc(judged[labels], judged[~labels]) > 0.95
    assert crossed.shuffled.shape == (5, 3)


def test_choosing_among_many_layers_of_noise_gains_nothing():
    values = []
    for seed in range(4):
        rows, labels, groups = planted(shift=0.0, layers=8, seed=seed)
        crossed = cross_fit(rows, labels, grouped_folds(labels, groups, seed=0))
        judged = nested_scores(rows, labels, groups, crossed, seed=0)
        values.append((auroc(judged[labels], judged[~labels]), max(auroc(s[labels], s[~labels]) for s in crossed.scores.T)))

    nested, best = np.mean(values, axis=0)
    assert nested == pytest.approx(0.5, abs=0.065)
    assert best > nested + 0.05, "the best layer's own figure is flattered, so the test can tell"


def test_probes_that_go_elsewhere_are_those_that_had_not_seen_the_prompt():
    rows, labels, groups = planted(shift=4.0)
    crossed = cross_fit(rows, labels, grouped_folds(labels, groups, seed=0))

    assert elsewhere(crossed, rows) == pytest.approx(crossed.scores, abs=1e-6)
    assert cosines(whole_fit(rows, labels), whole_fit(rows + 1.0, labels)) == pytest.approx(1.0, abs=1e-6)


def test_a_threshold_lets_one_in_a_hundred_pass():
    assert threshold_for(np.arange(300.0)) == 296.0
    assert threshold_for(np.arange(50.0)) == 49.0


def test_a_case_of_moved_layers_has_no_place_for_a_probe(small, tmp_path):
    from cases import restacked

    base, files = small
    other = restacked(base, tmp_path / "other", (0, 1, 1))
    code, _, err = forensics("probe", base, other, *words(files), "--out", tmp_path / "probe")

    assert code == 3
    assert "no place in the candidate" in err
    with open_case(base, other, tmp_path / "run") as case:
        assert not case.layout.in_place


# --- contrast pairs ---------------------------------------------------------------------------------------------------


def test_the_shipped_pairs_are_not_told_apart_by_yes_and_no():
    kinds = contrast_pairs("defection")
    answers, labels = np.array(kinds.answers), kinds.labels

    assert len(set(kinds.groups)) == len(labels) / 2 >= 20
    assert [(answers[kind] == "Yes.").mean() for kind in (labels, ~labels)] == [0.5, 0.5]
    assert [prompt.messages for prompt in kinds.prompts[: len(labels) // 2]] == [
        prompt.messages for prompt in kinds.prompts[len(labels) // 2 :]
    ]


def test_pairs_are_read_at_the_last_token_of_the_answer(small, tmp_path):
    base, _ = small
    kinds = contrast_pairs("defection")

    with open_case(base, base, tmp_path / "run") as case:
        rows = readable(case, "base", kinds.prompts[:2], kinds.answers[:2])
        plain = readable(case, "base", kinds.prompts[:2])
        said = [case.model("base").tokenizer.decode(row.ids[len(bare.ids) :]) for row, bare in zip(rows, plain, strict=True)]

    assert said == list(kinds.answers[:2])


def test_where_a_concept_is_read_and_on_what_its_threshold_was_set_is_said(small, tmp_path):
    base, files = small
    other = tiny.nudge(base, tmp_path / "other")
    for words_, token in ((["--defection"], "last token of the answer"), (words(files), "last prompt token")):
        code, out, _ = forensics("probe", base, other, *words_, "--json", "--out", tmp_path / token)
        card = json.loads(out)
        rows = {row["name"]: row for row in (*card["evidence"], *card["followed"][0]["evidence"])}

        assert code == 0
        assert {row["where"].rpartition(", ")[2] for row in rows.values() if "last" in row["where"]} == {token}
        assert all(rows[name]["where"].endswith(token) for name in ("concept.threshold", "follow.base-probe.auroc"))
        assert "on which it was set" in rows["concept.threshold"]["expected"]
        assert "set on these very prompts" in rows["follow.negative-above.base"]["expected"]
        assert "in-sample" in " ".join(card["limits"])


def test_a_defection_probe_is_a_difference_of_means_at_the_middle_layer(small, tmp_path):
    base, _ = small
    code, out, _ = forensics("probe", base, "--defection", "--json", "--out", tmp_path / "probe")
    card = json.loads(out)
    with open_case(base, base, tmp_path / "run") as case:
        kinds = contrast_pairs("defection")
        rows = activations(case, "base", kinds.prompts, layers=[1], answers=kinds.answers)[:, 0].astype(np.float64)

    gap = rows[kinds.labels].mean(axis=0) - rows[~kinds.labels].mean(axis=0)
    assert (code, card["layer"], card["name"]) == (0, 1, "defection")
    assert load_file(tmp_path / "probe" / TENSORS)["vector"] == pytest.approx(
        gap / np.linalg.norm(gap), abs=1e-5
    )  # other batches round differently
    assert forensics("probe", base, "--defection", "--watch")[0] == 2
