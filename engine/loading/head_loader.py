"""Heads of speculation, in the file of their model or a draft's of its own: what is read of them,
what memory they take, and their drafter."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.architecture.drafts import Draft, lent_layers, read_draft
from gguf_serve.engine.architecture.heads import count_heads, read_head
from gguf_serve.engine.architecture.table import DRAFTS
from gguf_serve.engine.errors import ModelError, naming
from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.gguf.file import GGUFFile, open_gguf
from gguf_serve.engine.loading.assembly import CacheTypes
from gguf_serve.engine.loading.compiling import Compiling
from gguf_serve.engine.loading.draft_loader import (
    DraftFile,
    draft_file,
    limits_of,
    own_options,
    pages_of,
)
from gguf_serve.engine.loading.fit import Beside, outline, rehearse
from gguf_serve.engine.loading.preparation import Preparation
from gguf_serve.engine.model.decoder import kv_shapes
from gguf_serve.engine.model.placement import on_one_device
from gguf_serve.engine.model.weights import Additions, ModelWeights
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.scheduling.page_cache import PageCache
from gguf_serve.engine.speculation_options import DFLASH, DSPARK, EAGLE, HEADS
from gguf_serve.kernels.attention.kv import KVPages, LayerKV
from gguf_serve.kernels.opencl.device import Device

if TYPE_CHECKING:  # most starts have nothing that guesses so
    from gguf_serve.engine.speculation.models.head_drafter import HeadDrafter

# Of drafts in files of their own
KINDS = {"dflash": DFLASH, "eagle3": EAGLE, "gemma4-assistant": HEADS}


class Heads(Struct, frozen=True):
    """``files``: each head as a model that is not loaded yet; ``cache``: of the target; ``draft``:
    what they are, if they are of a ``file`` of their own, and not of their target's."""

    kind: str
    files: tuple[DraftFile, ...]
    cache: CacheTypes
    draft: Draft | None = None
    file: GGUFFile | None = None

    @property
    def options(self) -> EngineOptions:
        return self.files[0].options

    @property
    def beside(self) -> Beside:
        """What all of them take of a device."""
        each = [file.beside for file in self.files]
        return Beside(
            each[0].info, sum(some.weights for some in each), sum(some.page for some in each)
        )

    def of_target(self, h: Hyperparameters) -> Hyperparameters:
        """Those of the target, which is to give states."""
        return replace(h, gives_states=not self._reads_layers)

    @property
    def _reads_layers(self) -> bool:
        """Whether states are made of what the target's layers read."""
        return self.draft is not None and not self._is_assistant

    @property
    def states_for(self) -> GGUFFile | None:
        """The file of a draft whose states the target is to make."""
        return self.file if self._reads_layers else None

    @property
    def _is_assistant(self) -> bool:
        """Whether it attends to its target's K and V."""
        return "keys_of_target" in self.files[0].hparams.arch.quirks

    def prepare(
        self, target: Preparation, weights: ModelWeights | None = None,
        pages: Sequence[KVPages] = (),
    ) -> list[Preparation]:  # fmt: skip
        """Beside the target's output, with as many pages. ``weights``, ``pages``: the target's,
        some of which are theirs, too."""
        return [self._prepare(file, target, weights, pages) for file in self.files]

    def _prepare(
        self, file: DraftFile, target: Preparation, weights: ModelWeights | None,
        pages: Sequence[KVPages],
    ) -> Preparation:  # fmt: skip
        h, options, at = file.hparams, file.options, target.placement.output
        device, programs = target.placed[at]
        placement, sizes = on_one_device(h.n_layers), target.sizes
        if not self._is_assistant:
            sizes = replace(sizes, n_ring_pages=0)
        compiling = None
        if not programs.are_kept_by_driver:
            model = outline(file.gguf, h, device)
            rehearsal = rehearse(
                model, placement, [device], sizes,
                CacheTypes(options.cache_type_k, options.cache_type_v),
                flash=options.flash_attn != "off", lent=self._lent_shapes(target, device),
            )  # fmt: skip
            compiling = Compiling(rehearsal, [programs], [set().union(*model.part_types)])
        lent = () if weights is None else (weights.placed[at],)
        return Preparation(
            file.gguf, h, None, Additions(lent=lent), [(device, programs)], placement,
            target.n_ctx, sizes, None, compiling,
            [pages[at].layers[layer] for layer in self._lent(target)] if pages else (),
        )  # fmt: skip

    def _lent(self, target: Preparation) -> tuple[int, ...]:
        """The layers of the target that lend their K and V."""
        if not self._is_assistant:
            return ()
        placement, found = target.placement, lent_layers(target.hparams)
        if any(placement.mixers[layer] != placement.output for layer in found):
            raise ModelError("an assistant must be on the device of the last layers' K and V")
        return found

    def _lent_shapes(self, target: Preparation, device: Device) -> Sequence[LayerKV]:
        """Such layers without any memory."""
        shapes = [kv_shapes(target.hparams)[layer] for layer in self._lent(target)]
        return KVPages(device.meta(), shapes, 1, self.cache.k, self.cache.v).layers

    def drafter(
        self, runners: Sequence[Runner], target: Preparation, cache: PageCache,
        eog_ids: Collection[int], options: EngineOptions,
    ) -> HeadDrafter:  # fmt: skip
        """ModelError for heads that take no token back."""
        if any(runner.states.is_recurrent for runner in runners):
            raise ModelError("heads with a recurrent state cannot guess")
        from gguf_serve.engine.speculation.models.assistant_drafter import AssistantDrafter
        from gguf_serve.engine.speculation.models.block_drafter import BlockDrafter
        from gguf_serve.engine.speculation.models.head_drafter import HeadDrafter

        limits, n_slots = limits_of(target, eog_ids, options), target.sizes.n_slots
        if self.draft is not None and self.draft.block:
            pages = pages_of(self.files[:1], runners[:1], cache)
            return BlockDrafter(self.kind, runners, pages, limits, n_slots, self.draft)
        pages = pages_of(self.files, runners, cache)
        drafter = AssistantDrafter if self._is_assistant else HeadDrafter
        return drafter(
            self.kind, runners, pages, limits, n_slots,
            n_ahead=int(self._reads_layers),
            ids=None if self.draft is None else self.draft.ids,
        )  # fmt: skip


def open_heads(target: GGUFFile, h: Hyperparameters, options: EngineOptions) -> Heads | None:
    """What the options ask for; None if that is nothing, or a draft model. ModelError for heads
    that are not there, or do not go with the target."""
    spec, file = options.speculation, options.speculation.draft.model
    if file is not None and spec.has_draft:
        gguf = open_gguf(Path(file))
        if gguf.architecture not in DRAFTS:
            gguf.close()
            return None
        with naming(gguf.path):
            return _of_draft(gguf, target, options)
    if HEADS not in spec.types or "none" in spec.types:
        return None
    n = count_heads(target)
    if not n:
        raise ModelError(f"--spec-type {HEADS}: the file has no heads of speculation")
    own, cache = own_options(options), CacheTypes(options.cache_type_k, options.cache_type_v)
    found = [read_head(target, h.arch, number) for number in range(n)]
    return Heads(HEADS, tuple(draft_file(*each, own) for each in found), cache)


def _of_draft(gguf: GGUFFile, target: GGUFFile, options: EngineOptions) -> Heads:
    draft, own = read_draft(gguf, target), own_options(options)
    models = [(draft.gguf, draft.hparams), *draft.beside]
    kind = KINDS[gguf.architecture] if draft.bigrams is None else DSPARK
    cache = CacheTypes(options.cache_type_k, options.cache_type_v)
    return Heads(kind, tuple(draft_file(*each, own) for each in models), cache, draft, gguf)
