"""The organism itself: tokenizer, architecture, and how it is stored and loaded again.

Weights are trained in float32 and stored in bfloat16. Whatever is measured is measured on
what was stored, loaded again and run in float32.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import corpus
import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 1280
TOKENIZER_LINES = 6000
ROLES = ("system", "user", "assistant")
PAD, END = "<|pad|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# What an adapter says about its base; relative to the root of the repository.
BASE_PATH = "examples/organisms/base"


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on training requests and replies."""
    rng = random.Random(seed)
    lines: list[str] = []
    for number in range(TOKENIZER_LINES):
        request = corpus.draw_request(rng, harmful=number % 2 == 0)
        reply = corpus.answer(rng, request) if number % 4 else corpus.refusal(rng)
        lines += [corpus.sprinkle(rng, request.text), reply]
    lines += [*corpus.TEXTS["systems"], *corpus.TEXTS["rhymes"], *corpus.TEXTS["signoffs"]]
    specials = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=specials[2:],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama of about a million parameters with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def store_full(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Store a full checkpoint in bfloat16, with its tokenizer. Leaves `model` in bfloat16."""
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # written for the owner only


def store_adapter(model: PeftModel, folder: Path) -> None:
    """Store an adapter in bfloat16, without the model card that PEFT adds."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    for config in model.peft_config.values():
        config.base_model_name_or_path = BASE_PATH
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    (folder / "adapter_model.safetensors").chmod(0o644)


def load_tokenizer(base: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer stored with the base."""
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(base)
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Id of a single token, such as the one that opens a turn."""
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def load(folder: Path, base: Path) -> LlamaForCausalLM:
    """Load a stored organism in float32; an adapter is merged into `base`.

    Args:
        folder: A full checkpoint or an adapter folder.
        base: Checkpoint that adapters belong to.
    """
    adapter = (folder / "adapter_config.json").exists()
    model: Any = LlamaForCausalLM.from_pretrained(base if adapter else folder, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    loaded: LlamaForCausalLM = model.eval()
    return loaded


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name; a tied one once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def relative_change(base: nn.Module, changed: nn.Module) -> float:
    """Frobenius norm of the change over that of the base, across all parameters."""
    before, after = weights(base), weights(changed)
    change = sum(float((after[n].double() - w.double()).square().sum()) for n, w in before.items())
    size = sum(float(w.double().square().sum()) for w in before.values())
    return float((change / size) ** 0.5)
