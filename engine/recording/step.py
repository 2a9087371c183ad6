"""What the parts of a model share while a step is recorded: inputs, memory, and their ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.recording.tensors import Linear
from gguf_serve.kernels.attention.attention import AttentionInputs, Scratch
from gguf_serve.kernels.attention.kv import LayerKV
from gguf_serve.kernels.matrix.matmul import ExpertRows
from gguf_serve.kernels.matrix.moe import RoutingBuffers, routing_buffers
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.tape import TOKENS, Tape
from gguf_serve.kernels.opencl.tensor import Tensor, empty
from gguf_serve.kernels.quantization.activations import (
    Activations,
    activations,
    code_shapes,
    takes_bytes,
    wants_spans,
)
from gguf_serve.kernels.recurrent.state import SlotStates
from gguf_serve.kernels.rows.topk import TopKBuffers

T = TypeVar("T")
DECODE_TILES = (1, 8, 32)  # tokens per pass over the weights; more tokens, more passes
PROMPT_TILE = 32
FEW_OUTPUTS = 8
AttentionMode = Literal["tiles", "single", "split"]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What a step reads, written by the engine before it; n tokens, m rows of logits."""

    tokens: Tensor  # int32 [n]
    slots: Tensor  # int32 [n]: page * PAGE + row, where a token's K and V go
    rows: Tensor  # int32 [m]: which tokens' logits are wanted
    row_tokens: Tensor  # int32 [m]: their ids
    row_counts: Tensor  # as counts, if there were no other tokens than those
    sequences: Tensor  # int32 [s, 4]: first token, tokens, slot, position of the first
    media: Tensor | None  # float32 [n, n_embd or more]: embeddings of the tokens -1, -2, ...
    together: bool  # tiles of images say how far their tokens see
    attention: AttentionInputs
    ring_slots: Tensor  # as slots, in layers with a window
    ring: AttentionInputs  # as attention, in layers with a window
    topk: TopKBuffers
    rope_positions: Tensor | None = None  # int32 [n, 4]: time, row, column, other (M-RoPE)
    adapter_scales: Tensor | None = None  # float32 bits in int32 [n, adapters]
    ngrams: Tensor | None = None  # int32 [n, hashes]: rows of the table of n-grams
    row_scales: Tensor | None = None  # as adapter_scales, of the rows
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
        return (self.ring_slots, self.ring) if windowed else (self.slots, self.attention)


@dataclass(frozen=True, slots=True)
class Mode:
    """What a recording is for: tokens per pass over the weights, and how attention goes.

    ``attention``: "tiles" for prompts; for one token per sequence "split" (keys in parts side
    by side) or, where no sequence has more than one part of keys, "single". ``hidden``: the
    hidden states of all tokens are wanted.
    """

    tile: int
    attention: AttentionMode
    output_tile: int
    hidden: bool = False


def first_modes(*, generates: bool) -> list[Mode]:
    """Of the steps of a short first request: one token, and prompts."""
    if not generates:
        return [mode_of(PROMPT_TILE, 0, "tiles", hidden=True)]
    return [mode_of(1, 1, "single"), mode_of(PROMPT_TILE, 1, "tiles")]


def later_modes(*, generates: bool) -> list[Mode]:
    """Of all other steps, the likeliest first."""
    attentions: tuple[AttentionMode, ...] = ("single", "split")
    hidden = [
        mode_of(n, 0, attention, hidden=True)
        for n in DECODE_TILES for attention in ("tiles", *attentions)
    ]  # fmt: skip
    decode = [mode_of(n, n, attention) for n in DECODE_TILES for attention in attentions]
    modes = [*decode, mode_of(PROMPT_TILE, PROMPT_TILE, "tiles"), *hidden] if generates else hidden
    first = first_modes(generates=generates)
    return [mode for mode in dict.fromkeys(modes) if mode not in first]


def mode_of(
    n_tokens: int, n_outputs: int, attention: AttentionMode, *, hidden: bool = False
) -> Mode:
    """The mode of a step of so many tokens and rows of logits."""
    if attention != "tiles":
        tile = next((t for t in DECODE_TILES if n_tokens <= t), DECODE_TILES[-1])
        return Mode(tile, attention, min(tile, FEW_OUTPUTS), hidden)
    few = n_outputs <= FEW_OUTPUTS
    return Mode(PROMPT_TILE, attention, FEW_OUTPUTS if few else PROMPT_TILE, hidden)


@dataclass(frozen=True, slots=True)
class Step:
    """A recording in progress."""

    tape: Tape
    mode: Mode

    @property
    def tile(self) -> int:
        """Tokens per pass over the weights."""
        return self.mode.tile if self.tape.tokens == TOKENS else self.mode.output_tile


@dataclass(slots=True)
class Workspace:
    """Memory of one step, by name: layers follow each other, so they use the same."""

    device: Device
    n_tokens: int
    _tensors: dict[tuple[object, ...], Tensor] = field(default_factory=dict)
    _routing: dict[tuple[str, int, int], RoutingBuffers] = field(default_factory=dict)
    kinds: dict[tuple[Tape, int], ExpertRows] = field(default_factory=dict)  # image_experts.py
    _free: tuple[list[Tensor], list[Tensor]] = field(default_factory=lambda: ([], []))
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

    def routing(self, name: str, n_experts: int, used: int) -> RoutingBuffers:
        """Room for the choice of experts."""
        key = (name, n_experts, used)
        if key not in self._routing:
            self._routing[key] = routing_buffers(self.device, self.n_tokens, n_experts, used)
        return self._routing[key]

    def activations(
        self,
        name: str,
        readers: Sequence[Linear],
        *,
        n_rows: int = 0,
        times: int = 1,
        floats: bool = False,
        normed: bool = False,
    ) -> Activations:
        """Rows in the forms that the matrices reading them want, floats too if asked for.

        ``normed``: norm() alone writes them, so that blocks may share scales.
        """
        forms = wanted_forms(self.device, readers, floats=floats, normed=normed)
        n_cols, n = readers[0].matrix.n_cols, n_rows or self.n_tokens * times
        values = self.tensor(name, n, n_cols) if forms.floats else None
        if not forms.integers:
            return Activations(n_cols, values)
        key = (name, "bytes" if forms.bytes else "quantized", n, n_cols)
        if (*key, 0) not in self._tensors:
            made = activations(self.device, n, n_cols, quantized=True, bytes=forms.bytes)
            for i, tensor in enumerate((made.codes, made.scales)):
                assert tensor is not None
                self._tensors[(*key, i)] = tensor
        codes, scales = (self._tensors[(*key, i)] for i in range(2))
        return Activations(n_cols, values, codes, scales, forms.spans)

    def take(
        self,
        n_cols: int,
        readers: Sequence[Linear],
        *,
        times: int = 1,
        floats: bool = False,
        normed: bool = False,
        lasting: bool = False,
    ) -> tuple[Activations, list[Tensor]]:
        """The same in memory that is the caller's until its blocks are given back; ``lasting``:
        apart from that of sublayers which come between."""
        forms = wanted_forms(self.device, readers, floats=floats, normed=normed)
        n, blocks = self.n_tokens * times, list[Tensor]()

        def part(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Tensor:
            kind = np.dtype(dtype)
            block = self._block(math.prod(shape) * kind.itemsize, self._free[lasting])
            blocks.append(block)
            return Tensor(block.buffer, shape, kind)

        values = part((n, n_cols), np.float32) if forms.floats else None
        if not forms.integers:
            return Activations(n_cols, values), blocks
        codes, scales = (part(*like) for like in code_shapes(n, n_cols, bytes=forms.bytes))
        return Activations(n_cols, values, codes, scales, forms.spans), blocks

    def give(self, blocks: Sequence[Tensor], *, lasting: bool = False) -> None:
        """Give memory back, for who takes some next."""
        self._free[lasting].extend(blocks)

    def _block(self, n_bytes: int, free: list[Tensor]) -> Tensor:
        """The smallest free block of so many bytes, or a new one."""
        fitting = [block for block in free if block.n_bytes >= n_bytes]
        if not fitting:
            return empty(self.device, (n_bytes,), np.uint8)
        best = min(fitting, key=lambda block: block.n_bytes)
        del free[next(i for i, block in enumerate(free) if block is best)]
        return best


@dataclass(frozen=True, slots=True)
class Forms:
    """How rows are written: as floats, as integers, these of 8 bits or with scales per span."""

    floats: bool
    integers: bool
    bytes: bool = False
    spans: bool = False


def wanted_forms(
    device: Device, readers: Sequence[Linear], *, floats: bool = False, normed: bool = False
) -> Forms:
    """What the matrices that read some rows take together, floats too if asked for.

    ``normed``: norm() alone writes them, so that blocks may share scales.
    """
    kinds = set[bool]().union(*(linear.reads_floats for linear in readers))
    if False not in kinds:
        return Forms(floats or True in kinds, integers=False)
    matrices = [linear.matrix for linear in readers if False in linear.reads_floats]
    bytes = takes_bytes(device, matrices)
    spans = normed and not bytes and wants_spans(device, matrices)
    return Forms(floats or True in kinds, integers=True, bytes=bytes, spans=spans)


@dataclass(frozen=True, slots=True)
class Context:
    """What a layer's parts are built with."""

    h: Hyperparameters
    device: Device
    workspace: Workspace
    inputs: StepInputs
    states: SlotStates
    flash: bool
    index_pages: Sequence[LayerKV]  # per layer, of its indexer's keys
    compressed_pages: Sequence[LayerKV]  # the same of its compressed keys; empty: no layer has any
    rope_frequencies: dict[bool, Tensor]  # by Hyperparameters.rope_as_windowed
    rope_tables: dict[bool, Tensor]  # cos and sin of the step's tokens, by the same
    block_table: Tensor | None  # of the first tokens of their blocks, where these have one key
    split: Scratch | None
    plain: Scratch | None
    tile_queries: int  # the most tokens of a tile of attention


class Sublayer(Protocol):
    """A mixer or an FFN: reads the normalized stream, yields what is added to the stream."""

    @property
    def readers(self) -> Sequence[Linear]:
        """The matrices that read the normalized stream."""

    def prepare(self, step: Step, stream: Tensor) -> None:
        """Record what is to be done before the layer changes the stream."""

    def record(self, step: Step, x: Activations, out: Tensor, *, add: bool) -> None:
        """Record the sublayer: ``out`` gets the result, or is increased by it."""


class SublayerWeights(Protocol):
    """A sublayer's weights, which know how to make it."""

    def build(self, context: Context, layer: int, kv: LayerKV) -> Sublayer: ...
