"""Verbs of AltUp: streams that are predicted before a layer and corrected after it."""

from __future__ import annotations

from gguf_serve.engine.recording.rows import Emission, Rows
from gguf_serve.engine.recording.verbs import Verbs, carried
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.rows.altup import add_others, correct, match, predict


class AltUpVerbs(Verbs):
    """Streams lie side by side in one row of each token; kernels.rows.altup has the formulas."""

    def predict(self, streams: Rows, logits: Rows, factors: Tensor) -> tuple[Rows, Rows]:
        """The streams as they are predicted, and the first of them by itself."""
        out, active = self.rows(streams.width), self.rows(streams.width // logits.width)

        def run(e: Emission) -> None:
            predict(
                e.tape, e.floats(streams), e.floats(logits), factors, e.floats(out),
                e.floats(active),
            )  # fmt: skip

        self.launch(run, reads=[streams, logits], writes=[out, active])
        return out, active

    def correct(
        self, predictions: Rows, activated: Rows, logits: Rows, factors: Tensor, scale: Tensor
    ) -> tuple[Rows, Rows]:
        """The streams after the first has become ``activated``, and that one times a scale."""
        out, scaled = self.rows(predictions.width), self.rows(activated.width)

        def run(e: Emission) -> None:
            correct(
                e.tape, e.floats(predictions), e.floats(activated), e.floats(logits), factors,
                scale, e.floats(out), e.floats(scaled),
            )  # fmt: skip

        self.launch(run, reads=[predictions, activated, logits], writes=[out, scaled])
        return out, scaled

    def add_others(self, streams: Rows, y: Rows) -> Rows:
        """The streams, with y added to all but the first."""
        out = self.rows(streams.width)

        def run(e: Emission) -> None:
            add_others(e.tape, e.floats(y), out.width // y.width, carried(e, streams, out))

        self.launch(run, reads=[streams, y], writes=[out], over=streams)
        return out

    def match(self, streams: Rows, n: int) -> None:
        """Give all of ``n`` streams the magnitude of the first, in place."""

        def run(e: Emission) -> None:
            match(e.tape, n, e.floats(streams))

        self.launch(run, reads=[streams], writes=[streams])
