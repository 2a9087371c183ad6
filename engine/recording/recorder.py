"""The recorder of the language that models are written in (graph.py has its verbs).

An encoder, a mixer, an FFN, a whole decoder is a function from rows to rows. It runs once, when
the model is built: what it does is noted, and nothing is launched. Then everything is known that
is worth knowing before a launch: which matrices read which rows, on which device, and who touches
them last. So planning decides, for each kind of step,

- in which forms rows are written: floats, or integers of 8 or 16 bits with scales per block or per
  span, whichever the matrices that read them take together. A launch that can write these does;
  after one that cannot, a copy does;
- which memory they have: a block belongs to rows from their first writer to their last reader, then
  to others, of this sublayer or of a later one;
- what is one launch: a matrix adds to the residual stream what it yields, and a norm of that may be
  carried out by the next norm; a launch writes over its own input, if nobody reads that afterwards;
- which tokens: from the last mixer on those alone whose logits are wanted, where that is enough;
- what is carried from device to device, and when.

A recording for each mode of a step replays the same launches onto its tape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.recording.planning import gathering
from gguf_serve.engine.recording.rows import Emission, Launch, Rows, Value
from gguf_serve.engine.recording.step import Context, Surroundings
from gguf_serve.engine.recording.tensors import Linear
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.rows.norm import NormWeights


class Recorder:
    """Notes the launches of a model. ``kept``: rows that a part of the model leaves for later ones,
    by name."""

    def __init__(self, contexts: Sequence[Surroundings], devices: Sequence[int] = (0,)) -> None:
        """``devices``: of each part of the model (see Placement.parts) the index of its context."""
        self.launches: list[Launch] = []
        self.kept: dict[str, Rows] = {}
        self.stored: list[Rows] = []  # of an encoder's output, for the steps of the decoder
        self._contexts, self._devices, self._at = contexts, devices, 0
        self._begin: int | None = None  # where the layer does; while something early is noted
        self._layer: tuple[int, Rows] | None = None
        self._of_rows: set[Value] = set()

    @property
    def surroundings(self) -> Surroundings:
        """Of the device that computes what is noted now."""
        return self._contexts[self._at]

    @property
    def device(self) -> Device:
        return self.surroundings.device

    @property
    def context(self) -> Context:
        """A decoder's surroundings."""
        return cast(Context, self.surroundings)

    @property
    def h(self) -> Hyperparameters:
        return self.context.h

    @contextmanager
    def on(self, part: int) -> Iterator[None]:
        """What is said inside is computed where this part of the model is."""
        before, self._at = self._at, self._devices[part]
        yield
        self._at = before

    def rows(
        self, width: int, times: int = 1, dtype: npt.DTypeLike = np.float32, n: int | None = None
    ) -> Rows:
        """Rows that a launch will write: so many for each token, or each of ``n``."""
        return Value(width, times, np.dtype(dtype), n=n).rows

    def given(self, memory: Tensor) -> Rows:
        """Rows of tokens that a step is given: float32 [n, width]."""
        return Value(memory.shape[1], memory=memory).rows

    def keep(self, x: Rows, memory: Tensor) -> Rows:
        """Give rows memory of their own, which outlives the step."""
        x.value.memory = memory
        return x

    def state(self, *shape: int) -> Tensor:
        """float32 [slots, *shape], which sequences keep from step to step."""
        return self.context.states.rows(self.context.device, *shape)

    def begin_layer(self, x: Rows) -> None:
        """The rows that a layer reads, for what it does ``early``."""
        self._layer = len(self.launches), x

    @contextmanager
    def early(self) -> Iterator[Rows]:
        """What is said inside happens before all else in the layer, whose input it may read."""
        assert self._layer is not None, "early, but not in a layer"
        self._begin, x = self._layer
        yield x
        self._layer, self._begin = (self._begin, x), None

    def wanted(self, x: Rows) -> Rows:
        """The rows of the tokens whose logits are wanted."""
        out = self.rows(x.width)
        self.note(gathering(x, out, self._at))
        self._of_rows.add(out.value)
        return out

    def launch(
        self,
        run: Callable[[Emission], None],
        *,
        reads: Sequence[Rows] = (),
        operands: Iterable[tuple[Rows, Linear]] = (),
        writes: Sequence[Rows],
        writes_forms: bool = False,
        norm: NormWeights | None = None,
        normed: bool = False,
        over: Rows | None = None,
        addend: Rows | None = None,
        can_add: bool = False,
        mixes: bool = False,
        n_tiles: int = 0,
    ) -> None:
        """Note a launch; see Launch."""
        operands = list(operands)
        launch = Launch(
            run, self._at, tuple(reads), tuple(operands), tuple(writes), writes_forms, normed,
            norm, over, addend, can_add, mixes,
            of_rows=not self._of_rows.isdisjoint(
                rows.value for rows in (*reads, *(x for x, _ in operands))
            ),
            n_tiles=n_tiles,
        )  # fmt: skip
        if launch.of_rows:
            self._of_rows.update(launch.outputs)
        self.note(launch)

    def note(self, launch: Launch) -> None:
        for value in launch.inputs:
            value.n_reads += 1
        if self._begin is None:
            self.launches.append(launch)
        else:
            self.launches.insert(self._begin, launch)
            self._begin += 1
