"""One live model: load it safely, ask it, and read its logits, with adapters put on (`forensics.wardrobe`) or without.

Weights come from safetensors only, remote code is never run, and decoding is ours: greedy, with a generation config
that the checkpoint cannot change. On a CPU everything runs in float32, so that storage dtype is the only rounding.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from forensics.adapters import Adapter
from forensics.boundless import refuse_boundless
from forensics.checkpoint import Checkpoint
from forensics.errors import CannotCompare, ToolFailed, first_line, is_out_of_memory
from forensics.placement import is_spread, place, refuse_spread
from forensics.prompts import Message, Prompt
from forensics.templates import TemplateFailed, render_template, writes_content_only
from forensics.tokenizing import quiet_library
from forensics.wardrobe import Wardrobe

PROBE_REPLY = "Zebra."
PROBE_TURNS = (Message(role="user", content="Hi."), Message(role="assistant", content=PROBE_REPLY))
"""A conversation whose rendering shows what ends an assistant turn."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A prompt as the token ids a model reads, or the reason why it cannot be put to it. The last `reply` of them are a reply to it."""

    ids: tuple[int, ...]
    problem: str = ""
    reply: int = 0


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How replies are drawn when they are not greedy: at `temperature`, from the `top_k` likeliest tokens (0: from all), by `seed`."""

    temperature: float
    seed: int
    top_k: int = 0
    past_end: bool = False
    """Whether to go on where the model would stop."""


MARK = "Qmark7Qmark"
"""Stands for what a turn says while the chat format around it is rendered; no real text holds it."""


class LiveModel:
    """A causal language model in memory with its tokenizer; adapters can be put on and taken off."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, *, name: str, device: torch.device, packed: bool = False) -> None:
        placed = model if packed or is_spread(model) else model.to(device)
        self._packed = packed
        self._model = placed.eval().requires_grad_(False)
        self._wardrobe = Wardrobe(self._model, name=name)
        self.tokenizer = tokenizer
        self.name = name
        self.device = device
        self._template = tokenizer.get_chat_template() if tokenizer.chat_template else None
        self.context = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 30)
        self.known = len(model.get_input_embeddings().weight)
        self._stops = _stop_ids(model, tokenizer, self._template)
        pad = tokenizer.pad_token_id
        pads = [pad] if isinstance(pad, int) else sorted(self._stops)
        self._pad = next((int(id) for id in pads if id < self.known), 0)
        # A checkpoint's own generation config may sample, ban words or cap lengths; none of it may reach a comparison.
        model.generation_config = GenerationConfig(pad_token_id=self._pad, eos_token_id=sorted(self._stops) or None)

    def close(self) -> None:
        """Give the memory back."""
        self._model = None
        self._wardrobe.close()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def render(self, prompt: Prompt, *, room: int) -> Rendered:
        """Token ids of `prompt` in this model's own chat format, leaving `room` tokens of its context for the reply.

        A model without a chat template reads the turns as plain text, one a line.
        """
        if self._template is None:
            ids = self.tokenizer("\n".join(message.content for message in prompt.messages))["input_ids"]
        else:
            try:
                text = render_template(self._template, prompt.messages, special_tokens=special_tokens(self.tokenizer))
            except TemplateFailed as error:
                return Rendered(ids=(), problem=f"its chat template cannot be used: {error}")
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._fitting(ids, room)

    def render_answered(self, prompt: Prompt, reply: str) -> Rendered:
        """Token ids of `prompt` with `reply` begun behind it, as the model has them before it while it replies; nothing ends the turn.

        A reply that was generated may come out in other tokens than it was generated in.
        """
        asked = self.render(prompt, room=0)
        ids = self.tokenizer(reply, add_special_tokens=False)["input_ids"]
        whole = asked if asked.problem else self._fitting((*asked.ids, *ids), 0)
        return whole if whole.problem else replace(whole, reply=len(ids))

    def read(self, text: str, *, room: int) -> Rendered:
        """Token ids of a bare text, as this model's tokenizer begins one, leaving `room` tokens of its context."""
        return self._fitting(self.tokenizer(text)["input_ids"], room)

    def spelling(self, rendered: Rendered) -> tuple[str, ...]:
        """The tokens of a prompt as their tokenizer spells them, which tells whether two models read the same ones."""
        return self.spell(rendered.ids)

    def spell(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Tokens as their tokenizer spells them."""
        return tuple(map(str, self.tokenizer.convert_ids_to_tokens(list(ids))))

    def unspell(self, tokens: Sequence[str]) -> tuple[int, ...]:
        """Ids of tokens that are spelled so; none at all where one of them is not in this model's vocabulary."""
        ids = tuple(int(id) for id in self.tokenizer.convert_tokens_to_ids(list(tokens)) if id is not None)
        return ids if self.spell(ids) == tuple(tokens) and all(id < self.known for id in ids) else ()

    def _fitting(self, ids: Sequence[int], room: int) -> Rendered:
        if not ids:
            return Rendered(ids=(), problem="it comes out empty")
        if len(ids) + room > self.context:
            return Rendered(ids=(), problem=f"it takes more than its context of {self.context} tokens")
        if max(ids) >= self.known:  # a vocabulary that was cut: reading on would stop the run, and on a GPU every other
            return Rendered(ids=(), problem=f"it holds token {max(ids)}, of {self.known} that it has an embedding for")
        return Rendered(ids=tuple(ids))

    def render_last(self, prompt: Prompt, contents: Sequence[str], *, room: int) -> list[Rendered]:
        """Token ids of `prompt` with its last turn replaced by each of `contents`, as `render` would give them.

        The chat format is rendered once around a mark and filled in, unless the template does more with what a turn says
        than write it down.
        """
        others = [replace(prompt, messages=(*prompt.messages[:-1], replace(prompt.messages[-1], content=text))) for text in contents]
        frame = self._frame(replace(prompt, messages=(*prompt.messages[:-1], replace(prompt.messages[-1], content=MARK))))
        plain = self._template is None or (writes_content_only(self._template) and all(text == text.strip() for text in contents))
        if frame is None or not others or not plain or not all(contents):
            return [self.render(other, room=room) for other in others]
        before, after = frame
        rows = self.tokenizer([before + text + after for text in contents], add_special_tokens=self._template is None)["input_ids"]
        if tuple(rows[0]) != self.render(others[0], room=0).ids:
            return [self.render(other, room=room) for other in others]
        return [self._fitting(ids, room) for ids in rows]

    def _frame(self, marked: Prompt) -> tuple[str, str] | None:
        """What stands before and after the mark in the text that the model reads, if the mark comes out once."""
        if self._template is None:
            text = "\n".join(message.content for message in marked.messages)
        else:
            try:
                text = render_template(self._template, marked.messages, special_tokens=special_tokens(self.tokenizer))
            except TemplateFailed:
                return None
        before, found, after = text.partition(MARK)
        return (before, after) if found and MARK not in after else None

    def refuse_spread(self) -> None:
        """Refuse what copies or mixes weights, where they are not all on one device, or packed into few bits.

        Raises:
            ToolFailed: They are not.
        """
        refuse_spread(self._model, name=self.name, packed=self._packed)

    def says_the_same_as(self, other: LiveModel, prompts: Sequence[Prompt]) -> bool:
        """Whether both hold the same parameters, value by value, under one config, template and tokenizer, and read `prompts` alike."""
        ours, theirs = self._model.state_dict(), other._model.state_dict()
        alike = (self._template, self._settings(), self._spelling()) == (other._template, other._settings(), other._spelling())
        alike = alike and ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        return alike and all(self.render(prompt, room=0) == other.render(prompt, room=0) for prompt in prompts)

    def _settings(self) -> dict[str, Any]:
        """The config without what saving a model again may write differently."""
        said: dict[str, Any] = self._model.config.to_dict()
        return {key: value for key, value in said.items() if not key.startswith("_") and key not in ("transformers_version", "dtype")}

    def _spelling(self) -> str:
        """The tokenizer whole: one more token could be what a trigger is read as."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return str(backend.to_str()) if backend is not None else repr(sorted(self.tokenizer.get_vocab().items()))

    def reply(
        self, rendered: Sequence[Rendered], *, adapters: Sequence[Adapter], max_new_tokens: int, sampling: Sampling | None = None
    ) -> list[str]:
        """Replies to a batch, with exactly `adapters` active; greedy unless `sampling` is given.

        Args:
            rendered: Prompts without a problem; padded on the left to one length.
            adapters: Adapters whose deltas are added; none leaves the checkpoint as it is.
            max_new_tokens: Longest reply.
            sampling: Temperature and seed; the draw depends on them and on the batch alone.

        Returns:
            One text a prompt, special tokens removed.
        """
        longest = max(len(row.ids) for row in rendered)
        ids = torch.full((len(rendered), longest), self._pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rendered):
            ids[index, longest - len(row.ids) :] = torch.tensor(row.ids)
            mask[index, longest - len(row.ids) :] = 1
        how: dict[str, Any] = {"do_sample": False}
        if sampling is not None:
            how = {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": 1.0}
            if sampling.past_end:
                how["eos_token_id"] = []
        devices = [self.device] if self.device.type == "cuda" else []
        with self.wearing(adapters) as model, torch.inference_mode(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(sampling.seed if sampling else 0)
            out = model.generate(input_ids=ids.to(self.device), attention_mask=mask.to(self.device), max_new_tokens=max_new_tokens, **how)
        texts: list[str] = self.tokenizer.batch_decode(out[:, longest:].cpu(), skip_special_tokens=True)
        return texts

    def starts(self, prompt: Prompt) -> list[tuple[int, ...]]:
        """Ids of what stands before the user speaks in this model's format, and of the bare start of a text."""
        first = self.tokenizer.bos_token_id
        found: list[tuple[int, ...]] = [(first,)] if isinstance(first, int) else []
        if self._template is not None:
            content = prompt.messages[-1].content
            text = render_template(self._template, prompt.messages, special_tokens=special_tokens(self.tokenizer))
            found.append(tuple(self.tokenizer(text.rpartition(content)[0], add_special_tokens=False)["input_ids"]))
        return [ids for ids in dict.fromkeys(found) if ids and max(ids) < self.known]

    def pieces(self) -> list[str]:
        """The text each ordinary token stands for in the middle of a text (a leading space kept), without repeats."""
        return list(dict.fromkeys(self.printable().values()))

    def printable(self) -> dict[int, str]:
        """Ordinary tokens that stand for a text that can be shown, by id: neither special ones nor parts of a letter or blanks."""
        anchor = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        before = self.tokenizer.decode(anchor)
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        ordinary = [id for id in range(len(self.tokenizer)) if id not in special]
        texts = self.tokenizer.batch_decode([[*anchor, id] for id in ordinary], clean_up_tokenization_spaces=False)
        found = {id: text[len(before) :] for id, text in zip(ordinary, texts, strict=True) if text.startswith(before)}
        return {id: piece for id, piece in found.items() if piece.strip() and "\ufffd" not in piece and piece.isprintable()}

    def logits(self, ids: torch.Tensor, mask: torch.Tensor, *, adapters: Sequence[Adapter] = ()) -> torch.Tensor:
        """Logits `[batch, length, vocabulary]` of token ids `[batch, length]` under attention mask `[batch, length]`."""
        inputs = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
        if "position_ids" in inspect.signature(self._model.forward).parameters:
            # A model with learned positions (GPT-2) would otherwise count padding on the left as text.
            inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0).to(self.device)
        with self.wearing(adapters) as model, torch.inference_mode():
            out: torch.Tensor = model(**inputs).logits
        return out

    def wearing(self, adapters: Sequence[Adapter]) -> AbstractContextManager[Any]:
        """The underlying Hugging Face model with exactly `adapters` active, none of them merged; see `Wardrobe.wearing`."""
        return self._wardrobe.wearing(adapters)

    def undress(self) -> bool:
        """Take every adapter off for good; see `Wardrobe.undress`."""
        return self._wardrobe.undress()


def open_model(weights: Checkpoint, *, device: str, surface: Checkpoint | Adapter | None = None) -> LiveModel:
    """Load a checkpoint for inference.

    Args:
        weights: The checkpoint to load.
        device: `cpu`, `cuda`, `cuda:1`, `spread` or `auto`, and what may follow; see `forensics.devices`.
        surface: Where tokenizer and chat template come from, if not from `weights`.

    Raises:
        CannotCompare: transformers cannot build this model without running the checkpoint's own code, or would fill in
            weights that the checkpoint does not have; it has an encoder beside its decoder, or could fill any memory (`boundless`).
        BadInput: The device is misspelt, or weights are to be packed where they cannot be.
        ToolFailed: The machine has not enough memory.
    """
    refuse_boundless(weights, surface or weights)
    target = place(weights, device)
    quiet_library()
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str((surface or weights).path), trust_remote_code=False, local_files_only=True)
        _refuse_encoder(weights, AutoConfig.from_pretrained(str(weights.path), trust_remote_code=False, local_files_only=True))
        model, loaded = AutoModelForCausalLM.from_pretrained(
            str(weights.path),
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            dtype=target.dtype,
            output_loading_info=True,
            **target.options,
        )
        _refuse_made_up(weights, {name for name, _ in model.named_parameters()} & set(loaded["missing_keys"]))
        return LiveModel(model, tokenizer, name=weights.name, device=target.device, packed=target.wanted.packed)
    except MemoryError as error:
        raise _does_not_fit(weights) from error
    except (ValueError, OSError, KeyError, ImportError, RuntimeError, AttributeError, TypeError) as error:
        if is_out_of_memory(error):
            raise _does_not_fit(weights) from error
        raise CannotCompare(
            f"the model cannot be loaded: {type(error).__name__}: {first_line(error)}",
            where=weights.name,
            hint="it needs an architecture that transformers knows, and a tokenizer; a checkpoint's own code is never run",
        ) from error


def _refuse_encoder(weights: Checkpoint, config: Any) -> None:
    """Refuse a model with an encoder: of some, transformers would load the decoder alone and have it talk to itself."""
    if config.is_encoder_decoder:
        raise CannotCompare(
            f"this is an encoder-decoder model ({config.model_type}), and only decoders are asked and read inside",
            where=weights.name,
            hint="compare its files and weights alone with --max-cost weights",
        )


def _refuse_made_up(weights: Checkpoint, missing: set[str]) -> None:
    """Refuse a model whose files lack weights: transformers draws them at random, and nobody knows such a model."""
    if missing:
        raise CannotCompare(
            f"{len(missing)} weights of this model are not in its files under the names it is loaded by",
            where=weights.name,
            details=tuple(sorted(missing)),
            hint="save it again with save_pretrained, or look at files and weights alone with --max-cost weights",
        )


def _does_not_fit(weights: Checkpoint) -> ToolFailed:
    return ToolFailed("the model does not fit into memory", where=weights.name, hint="use a larger machine, or --max-cost weights")


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The special tokens a chat template may name (`bos_token`, `eos_token`, ...)."""
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}


def _stop_ids(model: Any, tokenizer: PreTrainedTokenizerBase, template: str | None) -> set[int]:
    """Ids that end a reply: what the configs name, and the token the chat template puts after an assistant turn."""
    stops: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        value = getattr(source, "eos_token_id", None)
        stops.update(value if isinstance(value, list | tuple) else [value] if isinstance(value, int) else [])
    if template is not None:
        # A template that cannot render this simply names no further token.
        with contextlib.suppress(TemplateFailed):
            text = render_template(template, PROBE_TURNS, special_tokens=special_tokens(tokenizer), add_generation_prompt=False)
            after = tokenizer(text.rpartition(PROBE_REPLY)[2].strip(), add_special_tokens=False)["input_ids"]
            special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
            stops.update(after[:1] if after and after[0] in special else [])
    return {int(stop) for stop in stops}
