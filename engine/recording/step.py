"""What the parts of a model share while a step is recorded: inputs, memory, and their ways."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from msgspec import Struct, field
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.kernels.attention.attention import AttentionInputs, Scratch
from gguf_serve.kernels.attention.kv import LayerKV
from gguf_serve.kernels.matrix.matmul import RowGroups
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.tape import TOKENS, Tape
from gguf_serve.kernels.opencl.tensor import Tensor, empty
from gguf_serve.kernels.recurrent.state import SlotStates
from gguf_serve.kernels.rows.topk import TopKBuffers

T = TypeVar("T")
DECODE_TILES = (1, 8, 32)  # tokens per pass over the weights; more tokens, more passes
PROMPT_TILE = 32
FEW_OUTPUTS = 8
AttentionMode = Literal["tiles", "single", "split"]


class StepInputs(Struct, frozen=True):
    """What a step reads, written by the engine before it; n tokens, m rows of logits."""

    tokens: Tensor  # int32 [n]
    slot_mapping: Tensor  # int32 [n]: page * PAGE + row, where a token's K and V go
    rows: Tensor  # int32 [m]: which tokens' logits are wanted
    row_tokens: Tensor  # int32 [m]: their ids
    row_counts: Tensor  # as counts, if there were no other tokens than those
    sequences: Tensor  # int32 [s, 4]: first token, tokens, slot, position of the first
    media: Tensor | None  # float32 [n, n_embd or more]: embeddings of the tokens -1, -2, ...
    together: bool  # tiles of images say how far their tokens see
    attention: AttentionInputs
    ring_slot_mapping: Tensor  # as slot_mapping, in layers with a window
    ring: AttentionInputs  # as attention, in layers with a window
    topk: TopKBuffers
    rope_positions: Tensor | None = None  # int32 [n, 4]: time, row, column, other (M-RoPE)
    adapter_scales: Tensor | None = None  # float32 bits in int32 [n, adapters]
    ngrams: Tensor | None = None  # int32 [n, hashes]: rows of the table of n-grams
    row_scales: Tensor | None = None  # as adapter_scales, of the rows
    states: Tensor | None = None  # float32 [n, n_embd]: a target's, of the token before each
    block_positions: Tensor | None = None  # as rope_positions, of the first token of its block

    @property
    def counts(self) -> Tensor:
        return self.attention.counts

    @property
    def of_rows(self) -> StepInputs:
        """For what follows the last mixer: the tokens whose logits are wanted are all there are."""
        return replace(
            self, tokens=self.row_tokens, adapter_scales=self.row_scales,
            attention=replace(self.attention, counts=self.row_counts),
        )  # fmt: skip

    def paging(self, windowed: bool) -> tuple[Tensor, AttentionInputs]:
        """Where a layer's K and V go, and where its attention finds them."""
        if windowed:
            return self.ring_slot_mapping, self.ring
        return self.slot_mapping, self.attention


class Mode(Struct, frozen=True):
    """What a recording is for: tokens per pass over the weights, and how attention goes.

    A tile of 1 is for one alone, of tokens or of rows of logits. ``attention``: "tiles" for
    prompts; for one token per sequence "split" (keys in parts side by side) or, where no sequence
    has more than one part of keys, "single". ``hidden``: the hidden states of all tokens are
    wanted. ``encodes``: the tokens are those of prompts that an encoder reads, for a decoder.
    """

    tile: int
    attention: AttentionMode
    output_tile: int
    hidden: bool = False
    encodes: bool = False


def first_modes(*, generates: bool, encodes: bool = False, states: bool = False) -> list[Mode]:
    """Of the steps of a short first request: one token, and prompts. ``encodes``: which an encoder
    reads; ``states``: the hidden states of all tokens are wanted in all steps."""
    if not generates:
        return [mode_of(PROMPT_TILE, 0, "tiles", hidden=True)]
    encoding = [mode_of(PROMPT_TILE, 0, "tiles", encodes=True)] * encodes
    decode = mode_of(1, 1, "single", hidden=states)
    return [decode, mode_of(PROMPT_TILE, 1, "tiles", hidden=states), *encoding]


def as_prompt(mode: Mode) -> Mode:
    """The mode whose attention goes as that of prompts, with whose programs it is compiled."""
    return replace(mode, attention="tiles")


def later_modes(*, generates: bool, encodes: bool = False, states: bool = False) -> list[Mode]:
    """Of all other steps, the likeliest first."""
    attentions: tuple[AttentionMode, ...] = ("single", "split")
    hidden = [
        mode_of(n, 0, attention, hidden=True)
        for n in DECODE_TILES for attention in ("tiles", *attentions)
    ]  # fmt: skip
    decode = [
        mode_of(n, n, attention, hidden=states) for n in DECODE_TILES for attention in attentions
    ]
    few, many = (
        mode_of(PROMPT_TILE, n, "tiles", hidden=states) for n in (FEW_OUTPUTS, PROMPT_TILE)
    )
    modes = [few, *decode, many, *hidden] if generates else hidden
    if encodes:
        modes[-len(hidden) :] = [mode_of(PROMPT_TILE, 0, "tiles", hidden=True, encodes=True)]
    first = first_modes(generates=generates, encodes=encodes, states=states)
    return [mode for mode in dict.fromkeys(modes) if mode not in first]


def mode_of(
    n_tokens: int, n_outputs: int, attention: AttentionMode, *, hidden: bool = False,
    encodes: bool = False,
) -> Mode:  # fmt: skip
    """The mode of a step of so many tokens and rows of logits."""
    if attention != "tiles":
        tile = next((t for t in DECODE_TILES if n_tokens <= t), DECODE_TILES[-1])
        return Mode(tile, attention, min(tile, FEW_OUTPUTS), hidden, encodes)
    # One row goes as a single token does, with programs that a first request needs anyway. They
    # are for no more than one.
    output_tile = next((t for t in (1, FEW_OUTPUTS) if n_outputs <= t), PROMPT_TILE)
    return Mode(PROMPT_TILE, attention, output_tile, hidden, encodes)


class Step(Struct, frozen=True):
    """A recording in progress."""

    tape: Tape
    mode: Mode

    @property
    def tile(self) -> int:
        """Tokens per pass over the weights."""
        return self.mode.tile if self.tape.tokens == TOKENS else self.mode.output_tile


class Workspace(Struct):
    """What a step's launches need beside rows (memory.py): memory by name, and constants."""

    device: Device
    n_tokens: int
    _tensors: dict[tuple[object, ...], Tensor] = field(default_factory=dict)
    kinds: dict[tuple[Tape, int], RowGroups] = field(default_factory=dict)  # image_experts.py
    _constants: dict[Hashable, Any] = field(default_factory=dict)

    def tensor(self, name: str, *shape: int, dtype: npt.DTypeLike = np.float32) -> Tensor:
        """The memory of that name and shape."""
        key = (name, shape, np.dtype(dtype).name)
        if key not in self._tensors:
            self._tensors[key] = empty(self.device, shape, dtype)
        return self._tensors[key]

    def constant(self, key: Hashable, make: Callable[[], T]) -> T:
        """What never changes, made once."""
        if key not in self._constants:
            self._constants[key] = make()
        found: T = self._constants[key]
        return found

    def rows(self, name: str, n_cols: int, times: int = 1) -> Tensor:
        """float32 [n_tokens * times, n_cols]."""
        return self.tensor(name, self.n_tokens * times, n_cols)


class Surroundings(Protocol):
    """What launches are noted and emitted with, whatever they belong to."""

    @property
    def device(self) -> Device: ...

    @property
    def workspace(self) -> Workspace: ...

    @property
    def counts(self) -> Tensor:
        """What says how many rows there are."""

    @property
    def split(self) -> Scratch | None: ...

    @property
    def plain(self) -> Scratch | None: ...

    def queries(self, n_heads: int, n_kv: int) -> int:
        """The most tokens of a tile of attention."""


class Context(Struct, frozen=True):
    """What a layer's parts are built with."""

    h: Hyperparameters
    device: Device
    workspace: Workspace
    inputs: StepInputs
    states: SlotStates
    flash: bool
    kv: Sequence[LayerKV]  # per layer
    index_pages: Sequence[LayerKV]  # per layer, of its indexer's keys
    compressed_pages: Sequence[LayerKV]  # the same of its compressed keys; empty: no layer has any
    rope_frequencies: dict[bool, Tensor]  # by Hyperparameters.rope_as_windowed
    rope_tables: dict[bool, Tensor]  # cos and sin of the step's tokens, by the same
    block_table: Tensor | None  # of the first tokens of their blocks, where these have one key
    split: Scratch | None
    plain: Scratch | None
    tile_queries: int  # the most tokens of a tile of attention

    @property
    def counts(self) -> Tensor:
        return self.inputs.counts

    def queries(self, n_heads: int, n_kv: int) -> int:
        return self.tile_queries

    @property
    def of_rows(self) -> Context:
        """For what follows the last mixer, of the tokens alone whose logits are wanted."""
        return replace(self, inputs=self.inputs.of_rows)
