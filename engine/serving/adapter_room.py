"""Adapters that come and go while the engine serves.

A file is read, checked and laid out in the thread of whoever asks. The engine's thread only writes
what is ready to the device, a few MiB between two steps, into columns that nobody's scales touch:
an adapter that is unloaded keeps them until the last request that has it ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from gguf_serve.engine.errors import ModelError, RequestError
from gguf_serve.engine.options import AdapterState
from gguf_serve.engine.recording.adapters import Adapter, read_adapter
from gguf_serve.engine.recording.low_rank import OnDevice, Reserved
from gguf_serve.engine.serving.admission import Admission
from gguf_serve.kernels.quantization.weights import PackJob

WRITTEN_BYTES = 4 << 20  # between two steps


class Adapters:
    """Loads and unloads; from any thread."""

    def __init__(
        self,
        reserved: Reserved,
        admission: Admission,
        run: Callable[[Callable[[], None]], Future[None]],
    ) -> None:
        """``run``: have the engine's thread do something between two steps."""
        self._reserved, self._admission, self._run = reserved, admission, run
        self._present: dict[int, Adapter] = {}  # by their number in the matrices
        self._turn = threading.Lock()
        self._n_places = len(admission.adapters) + reserved.room.count
        self._first_place = len(admission.adapters)

    def load(self, path: Path, name: str, replaces: int | None = None) -> AdapterState:
        """Load a file for requests that name it; without a name it has no scale. ``replaces``: the
        id of one that goes once the new one is there. RequestError if the file does not fit, or
        there is no place."""
        with self._turn:
            try:
                adapter = read_adapter(path, self._reserved.base)
                self._check(adapter)
            except (ModelError, OSError) as error:
                raise RequestError(str(error)) from error
            if replaces is not None:
                self._check_unloadable(replaces)
            place = self._free_place()
            self._present[self._index(place)] = adapter
            self._write(self._index(place))
            return self._admission.add_adapter(
                lambda id: AdapterState(
                    id, path, 0.0, adapter.invocation, adapter.fingerprint, name, place
                ),
                replaces,
            )

    def unload(self, id: int) -> None:
        """Have no further request use an adapter. RequestError for one that is not there, or that
        the options named."""
        with self._turn:
            self._check_unloadable(id)
            self._admission.remove_adapter(id)

    def _check_unloadable(self, id: int) -> None:
        state = next((each for each in self._admission.adapters if each.id == id), None)
        if state is None:
            raise RequestError(f"there is no LoRA adapter {id}")
        if state.place < self._first_place:
            raise RequestError(f"the LoRA adapter {state.name} was loaded at the start: it stays")

    def _free_place(self) -> int:
        """One that no adapter has and no request uses."""
        taken = {each.place for each in self._admission.adapters}
        places = range(self._first_place, self._n_places)
        free = [place for place in places if place not in taken]
        idle = [place for place in free if not self._admission.uses(place)]
        for place in idle:
            self._present.pop(self._index(place), None)
        if idle:
            return idle[0]
        count = self._reserved.room.count
        if free:
            raise RequestError(
                f"requests under way still use what was unloaded, and the {count} places for LoRA "
                "adapters (--max-loras) are full: try again when they have ended"
            )
        raise RequestError(
            f"all {count} places for LoRA adapters (--max-loras) are taken: unload one first"
        )

    def _index(self, place: int) -> int:
        """The number in the matrices of a reserved place."""
        return self._reserved.first + place - self._first_place

    def _check(self, adapter: Adapter) -> None:
        """ModelError for what there is no room for, or no numbers."""
        names, most = self._reserved.names, self._reserved.room.rank
        for name, (a, b) in adapter.updates.items():
            if name not in names:
                raise ModelError(
                    f"{adapter.path}: tensor {name}.lora_a: an adapter of {name} can be loaded at "
                    "the start only (--lora)"
                )
            if len(a) > most:
                raise ModelError(
                    f"{adapter.path}: tensor {name}.lora_a has the rank {len(a)}, there is room "
                    f"for {most} (--max-lora-rank)"
                )
            if not (np.isfinite(a).all() and np.isfinite(b).all()):
                raise ModelError(f"{adapter.path}: values of {name}'s update are NaN or infinite")

    def _write(self, index: int) -> None:
        """Have the device's matrices be as the present adapters say, where one has changed."""
        for on in self._reserved.devices:
            jobs, n_bytes = list[PackJob](), 0
            for reservation in on.reservations:
                if not reservation.is_of(index):
                    continue
                made = reservation.jobs(self._present)
                jobs += made
                n_bytes += sum(job.part.data.nbytes for job in made)
                if n_bytes >= WRITTEN_BYTES:
                    self._hand_over(on, jobs)
                    jobs, n_bytes = [], 0
            self._hand_over(on, jobs)

    def _hand_over(self, on: OnDevice, jobs: Sequence[PackJob]) -> None:
        if jobs:
            self._run(lambda: on.write(jobs)).result()
