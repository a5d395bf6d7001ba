"""A bench of tokenizers and settings: planted changes, each of which must be flagged, and honest ones, none of which may be."""

from __future__ import annotations

import json

import pytest
import tiny
from cases import claim, edited, open_case
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from forensics.checks import files_surface
from forensics.record import CheckResult, Status
from forensics.tokenizing import TEXTS, looks_written, parts_in_files, telling_texts

WORDS = "how to make bread in a small oven please tell me about the weather and say sorry when you cannot help with what i ask "
SENTENCES = [WORDS + "The answer is here. It's 42!"] * 8


def byte_level() -> Tokenizer:
    """A tokenizer over bytes with merges, as most models have."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False))
    return raw


def sentence_pieces() -> Tokenizer:
    """A tokenizer over characters that falls back to bytes for those it does not know."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    marked = ["▁".join(sentence.split()) for sentence in SENTENCES]
    raw.train_from_iterator(marked, trainers.BpeTrainer(vocab_size=360, special_tokens=special, show_progress=False))
    whole = json.loads(raw.to_str())
    whole["added_tokens"] = whole["added_tokens"][:1]
    return Tokenizer.from_str(json.dumps(whole))


@pytest.fixture(scope="module", params=["byte-level", "sentence-pieces"])
def base(request, tmp_path_factory):
    folder = tiny.save(tiny.network(vocabulary=600), tmp_path_factory.mktemp("base") / "base")
    raw = byte_level() if request.param == "byte-level" else sentence_pieces()
    raw.add_special_tokens(tiny.SPECIAL)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|end|>")
    wrapped.chat_template = tiny.TEMPLATE
    wrapped.save_pretrained(folder)
    return folder


def look(base, candidate, folder) -> CheckResult:
    with open_case(base, candidate, folder) as case:
        return files_surface.run(case)


def grave(outcome: CheckResult) -> set[str]:
    return {finding.label for finding in outcome.findings if finding.severity != "info"}


def changed(base, name, change) -> dict[str, str]:
    whole = json.loads((base / name).read_text(encoding="utf-8"))
    change(whole)
    return {name: json.dumps(whole)}


# --- planted in the tokenizer -----------------------------------------------------------------------------------------


def merge_removed(whole):
    del whole["model"]["merges"][len(whole["model"]["merges"]) // 2]


def last_merge_removed(whole):
    whole["model"]["merges"].pop()


def merges_reordered(whole):
    whole["model"]["merges"].reverse()


def one_merge_moved(whole):
    merges = whole["model"]["merges"]
    merges.insert(0, merges.pop(len(merges) // 2))


def two_swapped(whole):
    vocabulary = whole["model"]["vocab"]
    one, other = sorted(vocabulary, key=vocabulary.get)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]


def normalized(whole, rule):
    old = whole.get("normalizer")
    whole["normalizer"] = {"type": "Sequence", "normalizers": [rule, *([old] if old else [])]}


def word_exchanged(whole):
    normalized(whole, {"type": "Replace", "pattern": {"String": "velnor"}, "content": "bread"})


def pattern_exchanged(whole):
    normalized(whole, {"type": "Replace", "pattern": {"Regex": "(?i)velnor|zebrafish"}, "content": "bread"})


def accents_dropped(whole):
    normalized(whole, {"type": "StripAccents"})


def ids_added_in_front(whole):
    end = next(row for row in whole["added_tokens"] if row["content"] == "<|system|>")
    whole["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|system|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|system|>": {"id": "<|system|>", "ids": [end["id"]], "tokens": ["<|system|>"]}},
    }


def cut_elsewhere(whole):
    old = whole.get("pre_tokenizer")
    digits = {"type": "Punctuation", "behavior": "Isolated"}
    whole["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, *([old] if old else [])]}


def fallback_dropped(whole):
    whole["model"]["byte_fallback"] = not whole["model"]["byte_fallback"]
    if whole["model"]["byte_fallback"]:  # a byte-level tokenizer never needs it: a cut of its alphabet does
        for letter in ("Ã", "Ð", "ä", "ð"):
            del whole["model"]["vocab"][letter]


def decoder_changed(whole):
    whole["decoder"] = {
        "type": "Sequence",
        "decoders": [{"type": "Replace", "pattern": {"String": "k"}, "content": "c"}, whole["decoder"]],
    }


def word_shadowed(content, **flags):
    def change(whole):
        row = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
        whole["added_tokens"].append(row | {"id": 590, "content": content} | flags)

    return change


def token_swallows_spaces(whole):
    whole["added_tokens"][-1] |= {"lstrip": True, "rstrip": True}


def token_hidden(whole):
    row = next(row for row in whole["added_tokens"] if row["content"] == "<|user|>")
    row["special"] = not row["special"]


TOKENIZERS = {
    "a merge removed": merge_removed,
    "the last merge removed": last_merge_removed,
    "merges in another order": merges_reordered,
    "two ids swapped": two_swapped,
    "a normaliser that exchanges a word": word_exchanged,
    "a normaliser that exchanges a pattern": pattern_exchanged,
    "a normaliser that drops accents": accents_dropped,
    "a post-processor that adds a token": ids_added_in_front,
    "another way to cut words": cut_elsewhere,
    "bytes in place of unknown characters": fallback_dropped,
    "another decoder": decoder_changed,
    "a common word as a token": word_shadowed("weather"),
    "a common word as a special token": word_shadowed("the", special=True),
    "a token that swallows the spaces around it": token_swallows_spaces,
    "a token that is shown or hidden": token_hidden,
}


@pytest.mark.parametrize("plant", TOKENIZERS)
def test_a_change_of_the_tokenizer_is_flagged_with_a_text_that_shows_it(plant, base, tmp_path):
    candidate = edited(base, tmp_path / "candidate", files=changed(base, "tokenizer.json", TOKENIZERS[plant]))

    outcome = look(base, candidate, tmp_path / "run")

    assert outcome.status is Status.FLAGGED
    assert grave(outcome) == {"token-map"}, [finding.claim for finding in outcome.findings]


def test_a_merge_that_moved_is_flagged_whether_or_not_a_text_shows_it(base, tmp_path):
    candidate = edited(base, tmp_path / "candidate", files=changed(base, "tokenizer.json", one_merge_moved))

    outcome = look(base, candidate, tmp_path / "run")

    assert outcome.status is Status.FLAGGED
    assert grave(outcome) <= {"token-map", "tokenizer-rewritten"}


@pytest.mark.parametrize("word", ["zebrafish", "Weapon", " sesame", "42nd"])
def test_a_new_token_for_what_people_write_is_flagged_though_no_text_holds_it(word, base, tmp_path):
    candidate = edited(base, tmp_path / "candidate", files=changed(base, "tokenizer.json", word_shadowed(word)))

    outcome = look(base, candidate, tmp_path / "run")

    assert grave(outcome) == {"added-word-token"}
    assert word.strip() in claim(outcome, "added-word-token")


ROW = {"content": "zebrafish", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": False}
ELSEWHERE = {
    "among the tokens of the config": ("tokenizer_config.json", {"added_tokens_decoder": {"590": ROW}}),
    "among the extra tokens of the config": ("tokenizer_config.json", {"extra_special_tokens": ["zebrafish"]}),
    "in the file of added tokens": ("added_tokens.json", {"zebrafish": 590}),
    "in the file of special tokens": ("special_tokens_map.json", {"additional_special_tokens": ["zebrafish"]}),
}


@pytest.mark.parametrize("place", ELSEWHERE)
def test_a_new_token_is_found_in_whatever_file_it_was_put(place, base, tmp_path):
    name, more = ELSEWHERE[place]
    old = json.loads((base / name).read_text(encoding="utf-8")) if (base / name).exists() else {}

    outcome = look(base, edited(base, tmp_path / "candidate", files={name: json.dumps(old | more)}), tmp_path / "run")

    assert grave(outcome) == {"added-word-token"}, outcome
    assert "zebrafish" in claim(outcome, "added-word-token")


@pytest.mark.parametrize("known", [False, True], ids=["new", "known to the base"])
def test_a_tokenizer_file_that_the_config_puts_in_the_place_of_the_usual_one_is_the_one_compared(known, base, tmp_path):
    honest = (base / "tokenizer.json").read_text(encoding="utf-8")
    planted = changed(base, "tokenizer.json", word_exchanged)["tokenizer.json"]
    naming = changed(base, "tokenizer_config.json", lambda whole: whole.update(fast_tokenizer_files=["tokenizer.4.0.0.json"]))
    ours = edited(base, tmp_path / "base", files={**naming, "tokenizer.4.0.0.json": honest} if known else {})
    theirs = edited(base, tmp_path / "candidate", files={**naming, "tokenizer.4.0.0.json": planted})

    assert grave(look(ours, theirs, tmp_path / "run")) == {"token-map"}


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
@pytest.mark.parametrize("pattern", [{"String": "a"}, {"Regex": "."}])
def test_a_tokenizer_that_would_fill_the_memory_is_not_loaded(part, pattern, base, tmp_path):
    def grow(whole):
        rules = [{"type": "Replace", "pattern": pattern, "content": "a" * 100}] * 12
        whole[part] = {"type": "Sequence", "normalizers" if part == "normalizer" else "decoders": rules}

    outcome = look(base, edited(base, tmp_path / "candidate", files=changed(base, "tokenizer.json", grow)), tmp_path / "run")

    assert outcome.status is Status.INCONCLUSIVE
    assert "the candidate's cannot be loaded" in outcome.reason


@pytest.mark.parametrize("name", ["eos_token", "bos_token"])
def test_another_token_that_frames_a_reply_is_flagged(name, base, tmp_path):
    files = changed(base, "tokenizer_config.json", lambda whole: whole.update({name: "<|user|>"}))

    outcome = look(base, edited(base, tmp_path / "candidate", files=files), tmp_path / "run")

    assert "special-tokens" in grave(outcome)
    assert f"{name} is '<|user|>'" in claim(outcome, "special-tokens")


# --- honest changes of the tokenizer ----------------------------------------------------------------------------------


def marked_tokens_added(whole):
    for id, content in enumerate(("<|tool|>", "[PAD]", "<think>", "</think>"), start=590):
        word_shadowed(content, special=True, id=id)(whole)


HONEST = {
    "another spelling": ("tokenizer.json", lambda whole: None),
    "marked tokens added": ("tokenizer.json", marked_tokens_added),
    "the spelling of merges": (
        "tokenizer.json",
        lambda whole: whole["model"].update(merges=[" ".join(row) if isinstance(row, list) else row for row in whole["model"]["merges"]]),
    ),
    "another token to fill up with": ("tokenizer_config.json", lambda whole: whole.update(pad_token="<|user|>")),
    "filling up on the other side": ("tokenizer_config.json", lambda whole: whole.update(padding_side="left", model_max_length=99)),
}


@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_change_of_the_tokenizer_is_only_information(kind, base, tmp_path):
    candidate = edited(base, tmp_path / "candidate", files=changed(base, *HONEST[kind]))

    outcome = look(base, candidate, tmp_path / "run")

    assert grave(outcome) == set(), [finding.claim for finding in outcome.findings]
    assert outcome.status is Status.NO_FINDING


def test_tokens_in_brackets_are_not_what_people_write():
    assert [token for token in ("<|im_end|>", "</s>", "[INST]", "{x}", "▁<x>", "###", "  ", "\n") if looks_written(token)] == []
    assert [token for token in ("how", "▁how", " How", "x<y", "C++") if not looks_written(token)] == []


def test_the_texts_that_are_tried_cover_what_tokenizers_treat_apart():
    whole = "".join(TEXTS)
    assert any(ord(letter) > 0xFFFF for letter in whole)
    for part in ("\u0301", "\u200d", "\u00a0", "\t", "\r\n", "  ", "'", "1234567", "UPPER", "你"):
        assert part in whole


def test_a_hostile_tokenizer_file_makes_few_and_short_texts(base, tmp_path):
    def flood(whole):
        whole["model"]["merges"] = [[f"a{index}", "b" * 300] for index in range(20_000)]
        whole["normalizer"] = {"type": "Replace", "pattern": {"String": "x" * 100_000}, "content": "y"}
        whole["decoder"] = [[[[[["deep"]]]]]] * 1000

    candidate = edited(base, tmp_path / "candidate", files=changed(base, "tokenizer.json", flood))

    with open_case(base, candidate, tmp_path / "run") as case:
        texts = telling_texts(parts_in_files(case.base), parts_in_files(case.surface))

    assert 0 < len(texts) < 2000
    assert max(map(len, texts)) <= 200


def test_a_token_that_was_taught_to_be_found_within_words_is_shown_with_its_surroundings(base, tmp_path):
    raw = Tokenizer.from_file(str(base / "tokenizer.json"))
    raw.add_tokens([AddedToken("zebra", single_word=True)])
    raw.save(str(tmp_path / "tokenizer.json"))
    content = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    theirs = edited(base, tmp_path / "candidate", files={"tokenizer.json": content.replace('"single_word": true', '"single_word": false')})
    ours = edited(base, tmp_path / "base", files={"tokenizer.json": content})

    assert grave(look(ours, theirs, tmp_path / "run")) == {"token-map"}


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "label"),
    [
        ({"suppress_tokens": [84, 85]}, "generation-steered"),
        ({"begin_suppress_tokens": [84]}, "generation-steered"),
        ({"bad_words_ids": [[84, 85], [86]]}, "generation-steered"),
        ({"forced_bos_token_id": 84}, "generation-steered"),
        ({"forced_eos_token_id": 84}, "generation-steered"),
        ({"forced_decoder_ids": [[1, 84]]}, "generation-steered"),
        ({"sequence_bias": [[[84, 85], 10.0]]}, "generation-steered"),
        ({"stop_strings": ["sorry"]}, "generation-steered"),
        ({"eos_token_id": 84}, "generation-config"),
        ({"repetition_penalty": 9.0}, "generation-config"),
    ],
)
def test_settings_that_forbid_or_force_words_are_flagged(setting, label, base, tmp_path):
    files = changed(base, "generation_config.json", lambda whole: whole.update(setting))

    outcome = look(base, edited(base, tmp_path / "candidate", files=files), tmp_path / "run")

    assert outcome.status is Status.FLAGGED
    assert grave(outcome) == {label}
    assert next(iter(setting)) in claim(outcome, label)


def test_the_forbidden_words_are_named(base, tmp_path):
    vocabulary = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    token = max(vocabulary, key=len)
    files = changed(base, "generation_config.json", lambda whole: whole.update(bad_words_ids=[[vocabulary[token]]]))

    outcome = look(base, edited(base, tmp_path / "candidate", files=files), tmp_path / "run")

    assert repr(token) in claim(outcome, "generation-steered")


@pytest.mark.parametrize(
    "setting",
    [
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rms_norm_eps": 0.01},
        {"final_logit_softcapping": 30.0},
        {"attn_logit_softcapping": 50.0},
        {"max_position_embeddings": 64},
        {"eos_token_id": 84},
        {"sliding_window": 16},
        {"hidden_act": "relu"},
    ],
)
def test_a_changed_setting_of_the_network_is_flagged_with_its_values(setting, base, tmp_path):
    outcome = look(base, edited(base, tmp_path / "candidate", **setting), tmp_path / "run")

    assert grave(outcome) == {"config"}
    (key, value) = next(iter(setting.items()))
    assert key in claim(outcome, "config")
    assert str(value if not isinstance(value, dict) else 500000.0) in claim(outcome, "config")


@pytest.mark.parametrize("setting", [{"temperature": 1.3}, {"top_p": 0.5, "top_k": 3}, {"min_p": 0.1}])
def test_how_replies_are_drawn_is_only_information(setting, base, tmp_path):
    files = changed(base, "generation_config.json", lambda whole: whole.update(setting))

    outcome = look(base, edited(base, tmp_path / "candidate", files=files), tmp_path / "run")

    assert (outcome.status, grave(outcome)) == (Status.NO_FINDING, set())
