"""Adapters put on a live model, and taken off again: exactly those that are wanted act, none is merged."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from forensics.adapters import Adapter, refuse_together
from forensics.errors import CannotCompare, first_line
from forensics.placement import refuse_adapter


class Wardrobe:
    """A model and the adapters that were ever put on it. Threads may read it at the same time if all want the same ones."""

    def __init__(self, model: Any, *, name: str) -> None:
        self._model = model
        self._name = name
        self._peft: Any = None
        self._slots: dict[str, str] = {}
        self._overwritten: dict[str, list[tuple[torch.nn.Parameter, torch.Tensor]]] = {}
        self._worn: list[Adapter] = []
        self._half_worn = ""
        self._switched: tuple[str, ...] | None = None  # slots that PEFT uses just now, where that is known
        self._within: tuple[str, ...] | None = None  # slots that whoever is reading wants; none where nobody is

    def close(self) -> None:
        """Let go of the model."""
        self._model = self._peft = None

    def undress(self) -> bool:
        """Take every adapter off for good, so that the model is as it was loaded; False where that is not certain.

        It is where PEFT only wrapped layers: their own weights are what they were, and the wrapping comes off. It left weights
        of its own in the place of others otherwise.
        """
        if self._peft is None:
            return not self._half_worn
        if self._half_worn or any(
            change.whole is not None or change.factors is None or change.factors.embedding for worn in self._worn for change in worn.changes
        ):
            return False
        self._peft.unload()
        self._peft, self._slots, self._overwritten, self._worn, self._switched = None, {}, {}, [], None
        return True

    @contextlib.contextmanager
    def wearing(self, adapters: Sequence[Adapter]) -> Iterator[Any]:
        """The underlying Hugging Face model with exactly `adapters` active, none of them merged.

        Raises:
            CannotCompare: What several of them do to one tensor does not add up, or PEFT cannot put one of them on.
        """
        refuse_together(adapters)
        if self._half_worn:
            raise CannotCompare(
                f"adapter {self._half_worn} could be put on this model only in part, and not be taken off again",
                where=self._name,
                hint="leave that adapter out, or save it again with PEFT's save_pretrained",
            )
        for adapter in adapters:
            self._put_on(adapter)
        if self._peft is None:
            yield self._model
            return
        wanted, outer = tuple(self._slots[adapter.digest] for adapter in adapters), self._within
        self._switch(wanted)
        self._within = wanted
        try:
            with self._overwriting(adapters):
                yield self._peft
        finally:
            self._within = outer
            if outer is not None:
                self._switch(outer)

    def _switch(self, wanted: tuple[str, ...]) -> None:
        """Have PEFT use exactly these slots.

        What is switched stays so until others are wanted: PEFT goes through all modules several times to switch, which takes
        longer than a small model takes to read a batch.
        """
        if wanted == self._switched:
            return
        if wanted:
            self._peft.base_model.enable_adapter_layers()
            self._peft.base_model.set_adapter(list(wanted))
        else:
            self._peft.base_model.disable_adapter_layers()
        self._switched = wanted

    @contextlib.contextmanager
    def _overwriting(self, adapters: Sequence[Adapter]) -> Iterator[None]:
        """Whole weights of `adapters` that PEFT would load over the model's own, in their place for a while."""
        swaps = [swap for adapter in adapters for swap in self._overwritten[adapter.digest]]
        own = [parameter.data for parameter, _ in swaps]
        try:
            for parameter, theirs in swaps:
                parameter.data = theirs
            yield
        finally:
            for (parameter, _), before in zip(swaps, own, strict=True):
                parameter.data = before

    def _put_on(self, adapter: Adapter) -> None:
        if adapter.digest in self._slots:
            return
        from peft import PeftModel  # heavy, and only needed with adapters

        refuse_adapter(self._model, name=adapter.name)
        # PEFT's own names may not hold dots. A slot that was refused stays taken.
        slot = f"slot{0 if self._peft is None else len(self._peft.peft_config)}"
        self._refuse_beside(adapter)
        overwritten = self._to_be_overwritten(adapter)
        own = [parameter.data.clone() for parameter, _ in overwritten]
        self._half_worn, self._switched = adapter.name, None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # PEFT still asks transformers under an old name
                warnings.filterwarnings("ignore", "Model has `tie_word_embeddings")  # what that would spoil was refused when it was opened
                if self._peft is None:
                    self._peft = PeftModel.from_pretrained(self._model, str(adapter.path), adapter_name=slot)
                else:
                    self._peft.load_adapter(str(adapter.path), adapter_name=slot)
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise CannotCompare(
                f"PEFT cannot put this adapter on the model: {type(error).__name__}: {first_line(error)}",
                where=adapter.name,
                hint="save it again with PEFT's save_pretrained, or merge it into a full checkpoint and audit that",
            ) from error
        self._peft.eval()
        for (parameter, _), before in zip(overwritten, own, strict=True):
            parameter.data.copy_(before)
        self._overwritten[adapter.digest] = overwritten
        self._half_worn = ""
        self._worn.append(adapter)
        self._refuse_parts(adapter, slot)
        self._slots[adapter.digest] = slot

    def _refuse_beside(self, adapter: Adapter) -> None:
        """Refuse to put on an adapter that PEFT cannot hold beside earlier ones, before it breaks off half way."""
        for other in self._worn:
            for one, two in ((adapter, other), (other, adapter)):
                replaced = {change.module for change in one.changes if change.whole is not None and not change.overwrites}
                both = replaced & {change.module for change in two.changes if change.factors is not None}
                if both:
                    raise CannotCompare(
                        f"adapter {one.name} replaces {min(both)}, to which {two.name} adds factors; PEFT cannot hold both, not even in turn",
                        where=adapter.name,
                        hint="examine these adapters in runs of their own",
                    )

    def _to_be_overwritten(self, adapter: Adapter) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
        """The model's own weights that PEFT will load the adapter's over, for good unless they are put back; and the adapter's."""
        found = []
        for change in adapter.changes:
            if change.overwrites and change.whole is not None:
                module = dict(self._model.named_modules(remove_duplicate=False)).get(change.module)
                parameter = getattr(_own(module), change.target.rpartition(".")[2], None) if module is not None else None
                if parameter is None or not parameter.is_floating_point() or parameter.shape != change.whole.shape:
                    raise CannotCompare(
                        f"the live model has no plain weights where this adapter brings its own {change.target}",
                        where=adapter.name,
                        hint="merge the adapter into a full checkpoint (merge_and_unload) and audit that",
                    )
                found.append((parameter, adapter.whole(change.whole).to(parameter)))
        return found

    def _refuse_parts(self, adapter: Adapter, slot: str) -> None:
        """Refuse an adapter of which PEFT left out a part, as it does in silence with what it cannot place."""
        wanted = {
            change.module: "lora_embedding_A" if change.factors.embedding else "lora_A" for change in adapter.changes if change.factors
        }
        wanted |= {change.module: "modules_to_save" for change in adapter.changes if change.whole and not change.overwrites}
        modules = dict(self._peft.base_model.model.named_modules(remove_duplicate=False))
        live = sum(_holds(modules, name, kind, slot) for name, kind in wanted.items())
        factored = sum(slot in {*getattr(module, "lora_A", {}), *getattr(module, "lora_embedding_A", {})} for module in modules.values())
        if live != len(wanted) or factored != sum(kind != "modules_to_save" for kind in wanted.values()):
            raise CannotCompare(
                f"only {min(live, len(wanted))} of the {max(len(wanted), factored)} modules of this adapter could be put on the model",
                where=adapter.name,
                hint="its target_modules and its tensors do not agree; save it again with PEFT",
            )


def _own(module: Any) -> Any:
    """The model's own module below everything that PEFT wrapped around it."""
    while inner := module._modules.get("base_layer", module._modules.get("original_module")):
        module = inner
    return module


def _holds(modules: dict[str, Any], name: str, kind: str, slot: str) -> bool:
    """Whether the module called `name`, or for whole weights one that it is in, holds what was put into `slot`."""
    while name and kind == "modules_to_save" and kind not in getattr(modules.get(name), "_modules", {}):
        name = name.rpartition(".")[0]
    return slot in getattr(modules.get(name), kind, {})
