"""A device with what the parts of a model on it share: inputs, KV pages, memory of a step.

The device may be another process's, to which there is a wire; here it is a meta device then.
"""

from __future__ import annotations

from collections.abc import Sequence

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.architecture.rope import pair_components
from gguf_serve.engine.model.weights import ModelWeights
from gguf_serve.engine.model.wire import Wire
from gguf_serve.engine.recording.step import Context, StepInputs, Workspace
from gguf_serve.kernels.attention import attention as attn
from gguf_serve.kernels.attention.attention import Scratch
from gguf_serve.kernels.attention.kv import KVPages, LayerKV
from gguf_serve.kernels.attention.rope import rope_table
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import Tape
from gguf_serve.kernels.opencl.tensor import Tensor, upload
from gguf_serve.kernels.recurrent.state import SlotStates


class Place:
    """One of the devices that compute a model, in steps of up to ``n_tokens``."""

    def __init__(
        self,
        h: Hyperparameters,
        weights: ModelWeights,
        pages: KVPages,
        inputs: StepInputs,
        device: Device,
        programs: Programs,
        states: SlotStates,
        *,
        n_tokens: int,
        n_split: int,
        n_ctx: int,
        flash: bool,
        lent: Sequence[LayerKV] = (),
        wire: Wire | None = None,
    ) -> None:
        """``n_split``: most sequences of a step of single tokens; ``flash``: fused attention;
        ``lent``: what comes after the layers' own K and V, see Hyperparameters.kv_layers;
        ``wire``: to the process that computes this part, None: this one does."""
        self._h, self._weights, self.wire = h, weights, wire
        self.pages, self.inputs, self.device, self.programs = pages, inputs, device, programs
        workspace = self.workspace = Workspace(device, n_tokens)
        self._rope = {
            windowed: self._rope_memory(n_ctx, windowed)
            for windowed in {w for w, rope in zip(h.rope_as_windowed, h.rope, strict=True) if rope}
        }
        self._components = None if not h.rope_sections else upload(device, pair_components(
            h.rope_sections, h.n_rot // 2, interleaved=h.arch.sections_interleaved
        ))  # fmt: skip
        self._block_table = None if inputs.block_positions is None else workspace.tensor(
            "rope of blocks", n_tokens, 2, h.n_rot // 2
        )  # fmt: skip
        split, plain = _scratch(h, device, pages, n_split, n_ctx, flash)
        self.tile_queries = _tile_queries(h, device, flash)
        self.context = Context(
            h, device, workspace, inputs, states, flash, [*pages.layers[: h.n_layers], *lent],
            pages.layers[h.n_layers : 2 * h.n_layers], pages.layers[2 * h.n_layers :],
            {windowed: frequencies for windowed, (frequencies, _) in self._rope.items()},
            {windowed: table for windowed, (_, table) in self._rope.items()}, self._block_table,
            split, plain, self.tile_queries,
        )  # fmt: skip
        self.context_of_rows = self.context.of_rows

    def record_positions(self, tape: Tape) -> None:
        """Record what depends on the positions of a step's tokens alone."""
        inputs, h = self.inputs, self._h
        positions = inputs.rope_positions or inputs.attention.positions
        for windowed, (frequencies, table) in self._rope.items():
            magnitude = (h.rope_scaling_window if windowed else h.rope_scaling).magnitude
            rope_table(tape, positions, frequencies, table, magnitude, self._components)
        if self._block_table is not None and inputs.block_positions is not None:
            rope_table(
                tape, inputs.block_positions, self._rope[False][0], self._block_table,
                h.rope_scaling.magnitude, self._components,
            )  # fmt: skip

    def _rope_memory(self, n_ctx: int, windowed: bool) -> tuple[Tensor, Tensor]:
        """Frequencies, and room for cos and sin of a step's tokens."""
        h, weights, workspace = self._h, self._weights, self.workspace
        scaling = h.rope_scaling_window if windowed else h.rope_scaling
        long = n_ctx > h.rope_scaling.longest_short
        factors = weights.rope_factors_long if long else weights.rope_factors
        if windowed and "rope_factors_outside_windows" in h.arch.quirks:
            factors = None
        base = h.rope_base_window if windowed else h.rope_base
        n_rot = h.sizes_by_window(windowed).rotated
        frequencies = scaling.frequencies(base, n_rot, factors)
        table = workspace.tensor(f"rope {windowed}", workspace.n_tokens, 2, n_rot // 2)
        return upload(self.device, frequencies), table


def _tile_queries(h: Hyperparameters, device: Device, flash: bool) -> int:
    """The most tokens of a tile in a mode without split."""
    groups = [n // k for n, k in zip(h.n_heads, h.n_kv, strict=True) if n and k]
    return attn.tile_queries(device, max(groups, default=1), 1, plain=not flash)


def _scratch(
    h: Hyperparameters, device: Device, pages: KVPages, n_split: int, n_ctx: int, flash: bool
) -> tuple[Scratch | None, Scratch | None]:
    if not flash:
        return None, attn.plain_scratch(device, n_ctx)
    shapes = [layer.shape for layer in pages.layers if not layer.shape.joint]
    if not shapes:  # kernels/attention/joint.cl needs none
        return None, None
    largest = max(shapes, key=lambda s: s.head_v_padded)
    return attn.split_scratch(device, n_split, max(h.n_heads), largest, n_ctx), None
