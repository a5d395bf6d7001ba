"""Tiny random models of several architectures, saved as a user would have them on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
VOCABULARY = 256 + len(SPECIAL)


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte tokenizer: one token a byte, and the four special ones of `TEMPLATE`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: id for id, letter in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(SPECIAL)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|end|>")
    wrapped.chat_template = template
    return wrapped


def network(
    kind: str = "llama", *, tied: bool = False, seed: int = 0, vocabulary: int = VOCABULARY, width: int = 32, layers: int = 2
) -> PreTrainedModel:
    """A small random causal language model."""
    torch.manual_seed(seed)
    shape = {"vocab_size": vocabulary, "tie_word_embeddings": tied, "eos_token_id": 256, "bos_token_id": None, "pad_token_id": None}
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=width, n_layer=layers, n_head=4, n_positions=256, **shape))
    sizes = {
        "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256,
    }  # fmt: skip
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**sizes, **shape))
    return LlamaForCausalLM(LlamaConfig(**sizes, **shape))


def save(
    model: PreTrainedModel, folder: Path, *, dtype: torch.dtype = torch.float32, shard: str = "5GB", template: str | None = TEMPLATE
) -> Path:
    """Write model and tokenizer as `save_pretrained` does."""
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    tokenizer(template).save_pretrained(folder)
    return folder


def nudge(folder: Path, target: Path, *, size: float = 0.05, seed: int = 1) -> Path:
    """A copy of the model in `folder` whose matrices moved by about `size` of their norm."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight += (size * weight.float().norm() * noise / noise.norm()).to(weight.dtype)
    model.save_pretrained(target)
    tokenizer().save_pretrained(target)
    return target


def adapter(
    folder: Path, target: Path, *, modules: list[str], seed: int = 2, save_embeddings: bool | str = "auto", **options: object
) -> Path:
    """A random adapter for the model in `folder`, moved in all that it trains; `options` go to LoraConfig."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings: dict[str, object] = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"} | options
    wrapped = get_peft_model(model, LoraConfig(target_modules=modules, **settings))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                weight.normal_(std=0.05)
            elif "lora_magnitude_vector" in name:
                weight.mul_(1.0 + 0.1 * torch.randn(weight.shape))
            elif ".modules_to_save." in name:
                weight.add_(0.02 * torch.randn(weight.shape))
    wrapped.save_pretrained(target, save_embedding_layers=save_embeddings)
    return target
