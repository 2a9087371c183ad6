"""A step's launches on the devices of a model, and what is carried between these.

The stream of activations is wherever the next part of the model is computed: the recording
knows which devices have its present state and puts a transfer where one is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gguf_serve.engine.layers.indexer import selection
from gguf_serve.engine.model.place import Place
from gguf_serve.engine.recording.step import Mode, Step
from gguf_serve.kernels.opencl.tape import Counts, Tape
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.opencl.transfer import Transfer
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.rows.norm import UNCHANGED, PostNorm, norm


@dataclass(frozen=True, slots=True)
class Part:
    """Launches on the device ``at``, or a transfer to it."""

    at: int
    run: Tape | Transfer


class Recording:
    """What a step of one mode does, for replay: one tape if there is one device."""

    def __init__(self, places: Sequence[Place], mode: Mode) -> None:
        self.mode = mode
        self._places = places
        self._parts: list[Part] = []
        self._started: set[int] = set()
        self._present: dict[str, set[int]] = {
            "stream": set(),
            "embedding": set(),
            "selection": set(),
        }
        self._pending: tuple[int, PostNorm] | None = None

    def run(self, counts: Sequence[Counts]) -> None:
        """Enqueue all for a step; ``counts`` has those of each device (Batch.fill)."""
        for part in self._parts:
            part.run.run(counts[part.at])

    @property
    def tapes(self) -> Iterator[tuple[int, Tape]]:
        """The runs of launches, each with the index of its device."""
        return ((part.at, part.run) for part in self._parts if isinstance(part.run, Tape))

    def on(self, at: int) -> Step:
        """The step on a device, for launches that leave the stream alone."""
        last = self._parts[-1] if self._parts else None
        if last is not None and last.at == at and isinstance(last.run, Tape):
            return Step(last.run, self.mode)
        place = self._places[at]
        tape = Tape(place.device, place.programs)
        self._parts.append(Part(at, tape))
        if at not in self._started:
            self._started.add(at)
            place.record_positions(tape)
        return Step(tape, self.mode)

    def writing(self, at: int, *, anew: bool = False) -> Step:
        """The step on a device which will change the stream, or write it ``anew``."""
        if not anew:
            self.reading(at)
        self._present["stream"] = {at}
        return self.on(at)

    def reading(self, at: int) -> Step:
        """The step on a device that has the stream."""
        self._carry("stream", at, lambda place: place.stream)
        return self.on(at)

    def keep_embedding(self) -> None:
        """The stream is the embedding, which layers will ask for."""
        (at,) = self._present["stream"]
        place = self._places[at]
        assert place.embedding is not None
        kept = Activations(place.stream.shape[1], place.embedding)
        norm(self.on(at).tape, place.stream, UNCHANGED, kept)
        self._present["embedding"] = {at}

    def embedding(self, at: int) -> Tensor:
        """The embedding, brought to a device."""
        self._carry("embedding", at, lambda place: place.embedding)
        kept = self._places[at].embedding
        assert kept is not None
        return kept

    def keep_selection(self, at: int) -> None:
        """An indexer on this device has chosen the keys that layers after it use."""
        self._present["selection"] = {at}

    def bring_selection(self, at: int, layer: int) -> None:
        """The layer, on this device, attends to keys that an indexer of a layer before it chose."""
        self._carry("selection", at, lambda place: selection(place.context, layer))

    @property
    def stream_at(self) -> int:
        """A device that has the stream."""
        return min(self._present["stream"])

    @property
    def awaited(self) -> tuple[int, Tensor] | None:
        """What the next norm is to add to the stream, and the device where it is."""
        return None if self._pending is None else (self._pending[0], self._pending[1].y)

    def await_norm(self, at: int, post: PostNorm) -> None:
        """The next norm of the stream carries out ``post`` before anything else."""
        self._pending = at, post

    def take_pending(self, at: int) -> PostNorm | None:
        """The norm that is awaited, if it can be carried out on this device; on another it is
        at once."""
        if self._pending is None:
            return None
        (where, post), self._pending = self._pending, None
        if where == at:
            return post
        stream = self._places[where].stream
        same = Activations(stream.shape[1], stream)
        norm(self.writing(where).tape, stream, UNCHANGED, same, post=post)
        return None

    def _carry(self, name: str, at: int, tensor_of: Callable[[Place], Tensor | None]) -> None:
        present = self._present[name]
        if at in present:
            return
        source, target = self._places[min(present)], self._places[at]
        x, y = tensor_of(source), tensor_of(target)
        if x is not None and y is not None:
            transfer = Transfer(source.device, x, target.device, y)
            self._parts.append(Part(at, transfer))
        present.add(at)
