"""Verbs that read all tokens of a sequence, those after a token too."""

from __future__ import annotations

from gguf_serve.engine.recording.rows import Emission, Rows
from gguf_serve.engine.recording.verbs import Verbs
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.rows.around import around, depthwise
from gguf_serve.kernels.rows.dynamic_conv import dynamic_conv
from gguf_serve.kernels.rows.group_norm import GroupNormWeights, group_norm


class SequenceVerbs(Verbs):
    """They keep no state: a step must have whole sequences."""

    def around(self, x: Rows, taps: int) -> Rows:
        """The ``taps`` rows of which a token's is the middle one, value by value."""
        out = self.rows(x.width * taps)

        def run(e: Emission) -> None:
            around(e.tape, e.floats(x), taps, e.inputs.sequences, e.floats(out))

        self.launch(run, reads=[x], writes=[out], mixes=True)
        return out

    def depthwise(self, x: Rows, weights: Tensor, bias: Tensor | None = None) -> Rows:
        """A convolution of each channel, with the token in the middle; weights [taps, width]."""
        out = self.rows(x.width)

        def run(e: Emission) -> None:
            depthwise(e.tape, e.floats(x), weights, e.inputs.sequences, e.floats(out), bias=bias)

        self.launch(run, reads=[x], writes=[out], mixes=True)
        return out

    def dynamic_conv(self, x: Rows, weights: Tensor, shares: Rows, group: int) -> Rows:
        """A causal convolution of each channel over a sequence's tokens in the step; weights
        [taps, width] and what a token adds to them, for every ``group`` channels."""
        out = self.rows(x.width)

        def run(e: Emission) -> None:
            dynamic_conv(
                e.tape, e.floats(x), weights, e.floats(shares), group, e.inputs.sequences,
                e.floats(out), shares_at=shares.at,
            )  # fmt: skip

        self.launch(run, reads=[x, shares], writes=[out], mixes=True)
        return out

    def group_norm(self, x: Rows, weights: GroupNormWeights, *, silu: bool = False) -> Rows:
        """Groups of channels, each normalized over all tokens of a sequence."""
        out = self.rows(x.width)

        def run(e: Emission) -> None:
            group_norm(e.tape, e.floats(x), weights, e.inputs.sequences, e.floats(out), silu=silu)

        self.launch(run, reads=[x], writes=[out], mixes=True)
        return out
