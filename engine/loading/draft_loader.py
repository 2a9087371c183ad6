"""The model that guesses for another: does it go with it, what memory it takes, and its drafter."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct, structs

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import ModelError, naming
from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.loading.fit import Beside, Machine, outline
from gguf_serve.engine.loading.machine import find_machine
from gguf_serve.engine.loading.preparation import Preparation, prepare, read_model
from gguf_serve.engine.model.decoder import kv_shapes
from gguf_serve.engine.model.weights import ModelWeights
from gguf_serve.engine.options import NO_ROOM, ControlVectors, EngineOptions, RopeOptions
from gguf_serve.engine.scheduling.page_cache import PageCache
from gguf_serve.engine.speculation_options import DRAFT, OFF
from gguf_serve.kernels.attention.kv import KVPages
from gguf_serve.kernels.quantization.packing import ROWS

if TYPE_CHECKING:  # most starts have nothing that guesses so
    from gguf_serve.engine.speculation.models.draft_model import DraftModel
    from gguf_serve.engine.speculation.models.draft_pages import DraftPages
    from gguf_serve.engine.speculation.models.guess_limits import GuessLimits

VOCABULARY = "tokenizer.ggml."
MOST_MORE = 128  # tokens that one vocabulary may have more than the other, as in llama.cpp
FIRST_COMPARED = 5  # those before may differ, as there


class DraftFile(Struct, frozen=True):
    """A draft model that goes with its target, not loaded yet. ``options``: the engine's, for it;
    ``beside``: what it takes of the device that its target may be on."""

    gguf: GGUFFile
    hparams: Hyperparameters
    options: EngineOptions
    machine: Machine
    beside: Beside
    kind = DRAFT

    def prepare(
        self, target: Preparation, weights: ModelWeights | None = None,
        pages: Sequence[KVPages] = (),
    ) -> list[Preparation]:  # fmt: skip
        """As many pages as its target has, for the same tokens. ``weights``, ``pages``: the
        target's, if they are there."""
        options = replace(self.options, n_ctx=target.n_ctx)
        found = prepare(self.gguf, self.hparams, options, machine=self.machine)
        assert found.sizes.n_pages == target.sizes.n_pages
        return [found]

    def drafter(
        self, runners: Sequence[Runner], target: Preparation, cache: PageCache,
        eog_ids: Collection[int], options: EngineOptions,
    ) -> DraftModel:  # fmt: skip
        """``cache``, ``eog_ids``: the target's. ModelError for a model that takes no token back."""
        (runner,) = runners
        with naming(self.gguf.path):
            if runner.states.is_recurrent:
                raise ModelError("a model with a recurrent state cannot guess for another one")
        limits = limits_of(target, eog_ids, options)
        from gguf_serve.engine.speculation.models.draft_model import DraftModel

        pages = pages_of([self], runners, cache)
        self.gguf.close()
        return DraftModel(runner, pages, limits, target.sizes.n_slots)


def open_draft(
    target: GGUFFile, target_hparams: Hyperparameters, options: EngineOptions
) -> DraftFile | None:
    """None where the options name none; ModelError for one that does not go with the target."""
    given = options.speculation.draft
    if not options.speculation.has_draft or given.model is None:
        return None
    own = own_options(options)
    gguf, h = read_model(Path(given.model), own)
    with naming(gguf.path):
        _check_kind(h)
        _check_sizes(h.n_vocab, target_hparams.n_vocab)
        check_vocabularies(gguf.metadata, target.metadata)
        whole_groups = -(-given.n_vocab // ROWS) * ROWS
        return draft_file(gguf, structs.replace(h, n_vocab_output=whole_groups), own)


def own_options(options: EngineOptions) -> EngineOptions:
    """Those of what guesses for a model with these."""
    given = options.speculation.draft
    return replace(
        options, device=given.device or options.device, n_gpu_layers=given.n_gpu_layers,
        cache_type_k=given.cache_type_k, cache_type_v=given.cache_type_v, swa_full=True,
        fit=False, tensor_split=(), override_tensor=(), cpu_moe=False, n_cpu_moe=0, n_cpu_ffn=0,
        rope=RopeOptions(), adapters=(), adapter_room=NO_ROOM, control=ControlVectors(),
        mmproj=None, override_kv=(), speculation=OFF,
    )  # fmt: skip


def draft_file(gguf: GGUFFile, h: Hyperparameters, own: EngineOptions) -> DraftFile:
    """A file that goes with its target; ``own``: its options."""
    machine = find_machine(own, gguf.n_parameters)
    return DraftFile(gguf, h, own, machine, _needs(gguf, h, own, machine))


def _needs(gguf: GGUFFile, h: Hyperparameters, options: EngineOptions, machine: Machine) -> Beside:
    device = machine.open(0)
    types = options.cache_type_k, options.cache_type_v
    page = KVPages(device.meta(), kv_shapes(h), 1, *types).n_bytes
    return Beside(device.info, sum(outline(gguf, h, device).part_bytes), page)


def _check_kind(h: Hyperparameters) -> None:
    if not (h.causal and h.generates) or h.n_encoder or h.takes_states:
        raise ModelError("the model generates no text by itself: it cannot guess for another one")


def _check_sizes(own: int, others: int) -> None:
    if abs(own - others) > MOST_MORE:
        raise ModelError(
            f"the vocabulary has {own} tokens, the model's {others}: a model that guesses for it "
            f"may have {MOST_MORE} more or fewer"
        )


def check_vocabularies(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """ModelError, with the first difference, for a draft's metadata whose vocabulary is not the
    target's: llama.cpp's rules."""
    for name in ("model", "add_bos_token", "add_eos_token"):
        _check_same(name, ours.get(VOCABULARY + name), theirs.get(VOCABULARY + name))
    for name in ("bos", "eos"):
        if ours.get(f"{VOCABULARY}add_{name}_token"):
            key = f"{name}_token_id"
            _check_same(key, ours.get(VOCABULARY + key), theirs.get(VOCABULARY + key))
    own, others = (list(found.get(f"{VOCABULARY}tokens", ())) for found in (ours, theirs))
    n = min(len(own), len(others))
    if own[FIRST_COMPARED:n] != others[FIRST_COMPARED:n]:
        i = next(i for i in range(FIRST_COMPARED, n) if own[i] != others[i])
        raise ModelError(
            f"token {i} is {own[i]!r}, the model's {others[i]!r}: a model that guesses for it must "
            "have the same vocabulary"
        )


def _check_same(name: str, own: object, other: object) -> None:
    if own != other:
        raise ModelError(
            f"{VOCABULARY}{name} is {own!r}, the model's {other!r}: a model that guesses for it "
            "must have the same vocabulary"
        )


def pages_of(files: Sequence[DraftFile], models: Sequence[Runner], cache: PageCache) -> DraftPages:
    """Of models of these files that guess for the one whose ``cache`` is given."""
    from gguf_serve.engine.speculation.models.draft_pages import DraftPages

    made_with = {
        "models": [[file.gguf.fingerprint(), file.hparams.n_layers] for file in files],
        "cache types": [files[0].options.cache_type_k, files[0].options.cache_type_v],
        "device": files[0].beside.info.driver,
    }
    return DraftPages(models, cache, made_with)


def limits_of(target: Preparation, eog_ids: Collection[int], options: EngineOptions) -> GuessLimits:
    """Of guesses for a model with these options."""
    given, sizes = options.speculation.draft, target.sizes
    from gguf_serve.engine.speculation.models.guess_limits import GuessLimits

    return GuessLimits(
        target.hparams.n_vocab, eog_ids, sizes.n_ctx_slot, sizes.n_tokens, given.n_max,
        given.n_min, given.p_min,
    )  # fmt: skip
