"""One forward: the step's inputs to the device, the recorded launches, the logits' best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.forward.batch import Batch, Filled, OutputRow
from gguf_serve.engine.forward.stages import Leading, OnPages, OnStates, StateMethod, Step
from gguf_serve.engine.model.decoder import Decoder
from gguf_serve.engine.model.recording import Recording
from gguf_serve.engine.recording.step import (
    DECODE_TILES,
    FEW_OUTPUTS,
    PROMPT_TILE,
    AttentionMode,
    Mode,
    as_prompt,
    first_modes,
    mode_of,
)
from gguf_serve.engine.scheduling.checkpoints import StateCopy
from gguf_serve.engine.scheduling.page_cache import PageCopy
from gguf_serve.engine.scheduling.sequence import Chunk
from gguf_serve.kernels.attention.attention import PART
from gguf_serve.kernels.attention.kv import KVPages
from gguf_serve.kernels.opencl.tape import ADAPTED, Counts
from gguf_serve.kernels.opencl.tensor import read, read_row, read_rows
from gguf_serve.kernels.recurrent.state import SlotStates
from gguf_serve.kernels.rows.topk import MAX_K, Found, is_broken, parse

RECORDING_PAUSE, COMPILING_PAUSE = 0.05, 0.5  # seconds between two looks at what is to be done


NO_LOGITS = np.zeros(0, np.float32)  # of a guess whose mask is not known: it is dropped


def _attention_mode(chunks: Sequence[Chunk]) -> AttentionMode:
    if any(chunk.count > 1 or chunk.encodes for chunk in chunks):
        return "tiles"
    return "single" if all(chunk.start < PART for chunk in chunks) else "split"


class Compiling(Protocol):
    """What compiles programs for later steps (compiling.py)."""

    @property
    def first(self) -> Sequence[Mode]: ...
    @property
    def later(self) -> Sequence[Mode]: ...
    @property
    def continues(self) -> bool: ...
    def continue_later(self) -> None: ...
    def ready(self, mode: Mode) -> bool: ...


class RowLogits(Struct, frozen=True):
    """One row of logits, which stays on the device until it is asked for."""

    _runner: Runner
    _index: int
    _record: npt.NDArray[np.int32]
    _mask: npt.NDArray[np.int32] | None = None  # bits of the allowed tokens; None: all are
    _kept: npt.NDArray[np.float32] | None = None  # all logits, where the device had no mask

    def best(self, k: int) -> Found:
        """The k likeliest tokens, allowed or not; k at most what the step looked for."""
        return self.allowed(k) if self._mask is None else _best_of_row(self.row(), k, self._record)

    def allowed(self, k: int) -> Found:
        """The k likeliest of the allowed tokens, or as many as there are."""
        found = parse(self._record, k) if k <= MAX_K and self._kept is None else None
        return found or _best_of_row(self.allowed_row(), k, self._record)

    def scores(self) -> npt.NDArray[np.float32]:
        """What the model's ranking head makes of the row's hidden state."""
        scores: npt.NDArray[np.float32] = self._runner.scores_of(
            range(self._index, self._index + 1)
        )[0]
        return scores

    def row(self) -> npt.NDArray[np.float32]:
        """All raw logits, float32 [n_vocab]."""
        return self._runner.read_logits(self._index) if self._kept is None else self._kept.copy()

    @property
    def waits(self) -> bool:
        """Whether its mask is not known yet; ``masked`` is the row to be used then, at any time."""
        return self._kept is not None and self._mask is None

    def masked(self, mask: npt.NDArray[np.int32]) -> RowLogits:
        return replace(self, _mask=mask)

    def allowed_row(self) -> npt.NDArray[np.float32]:
        """The same, -inf for tokens that are not allowed."""
        row = self.row()
        if self._mask is not None:
            bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little", count=len(row))
            row[bits == 0] = -np.inf
        return row

    @property
    def broken(self) -> bool:
        """Whether a logit is NaN, the largest is infinite, or no token is possible."""
        return self._runner.generates and is_broken(self._record)

    @property
    def log_sum_exp(self) -> float:
        """NaN unless the row was ``scored``."""
        return float(self._record.view(np.float32)[1])

    @property
    def picked(self) -> float:
        """The logit of OutputRow.pick."""
        return float(self._record.view(np.float32)[2])


class Begun(Struct, frozen=True):
    """A step that has begun; ``filled``: its inputs, where other processes have a part of it."""

    recording: Recording
    counts: Sequence[Counts]
    rows: Sequence[OutputRow]
    filled: Filled | None


def _best_of_row(row: npt.NDArray[np.float32], k: int, record: npt.NDArray[np.int32]) -> Found:
    k = min(k, len(row))
    ids = np.argpartition(-row, k - 1)[:k] if k < len(row) else np.arange(len(row))
    # argpartition may leave out the lower id of two that tie at the boundary.
    ids = np.flatnonzero(row >= row[ids].min())
    order = ids[np.lexsort((ids, -row[ids]))][:k]
    floats = record.view(np.float32)
    return Found(order.tolist(), row[order].tolist(), float(floats[1]), float(floats[2]))


class Runner:
    """Carries out plans. Lives in the engine's thread: OpenCL kernels are not thread-safe."""

    def __init__(
        self,
        decoder: Decoder,
        batches: Sequence[Batch],
        pages: Sequence[KVPages],
        states: SlotStates,
        output_at: int,
    ) -> None:
        """``batches`` and ``pages`` of each device; that of ``output_at`` has the logits."""
        self._decoder, self._batches, self.pages = decoder, batches, pages
        self.states = states
        self._is_here = [wire is None for wire in decoder.wires]
        self._wires = [wire for wire in decoder.wires if wire is not None]
        # How many steps may have begun before the first of them is completed: one for each process
        # with a part of the model, if the parts of this one do not need each other.
        self.n_at_once = len(batches) if self._wires and decoder.is_parted else 1
        self._output_at, self._last = output_at, batches[output_at]
        self._recordings: dict[Mode, Recording] = {}
        self._of_step: dict[tuple[int, int, AttentionMode, bool, bool], Recording] = {}
        self._compiling: Compiling | None = None
        self._first: Sequence[Mode] = first_modes(
            generates=decoder.generates, encodes=decoder.encodes, states=decoder.gives_states
        )
        self.is_complete = True  # nothing is compiled aside, steps take no longer than they must
        self.topk = decoder.record_topk()
        self._first_not_finite: str | None = None  # in the last step
        self._filled: Filled | None = None  # what the batch has, where others have a part of steps

    def warm_up(self, compiling: Compiling | None = None) -> None:
        """Record, and so compile, what the first request will need.

        ``compiling`` has the programs of other modes; until they are there, steps use a larger
        mode than they need. None: a mode is compiled when it is first needed.
        """
        self._compiling, self.is_complete = compiling, compiling is None
        if compiling is not None:
            self._first = compiling.first
        for mode in self._first:
            self._recording(mode)
        if compiling is None and self._decoder.generates:
            states = self._decoder.gives_states
            self._recording(mode_of(DECODE_TILES[1], 1, "single", hidden=states))

    def use_pause(self) -> float | None:
        """Nothing is to be computed now: compile, or record, a part of what later steps may need.
        The seconds after which there may be more to do; None: there will not."""
        if self._compiling is None or self.is_complete:
            return None
        self.compile_later()
        modes = [mode for mode in self._compiling.later if mode not in self._recordings]
        ready = next(filter(self._compiling.ready, modes), None)
        if ready is not None:
            self._recording(ready)
        elif not modes or not self._compiling.continues:
            # What has not come now does not compile: steps go on without it.
            self._compiling = self._compiling if modes else None
            self.is_complete = True
            return None
        return RECORDING_PAUSE if ready is not None else COMPILING_PAUSE

    def compile_later(self) -> None:
        """Begin to compile what later steps may need, aside."""
        if self._compiling is not None:
            self._compiling.continue_later()

    @property
    def token_bytes(self) -> int:
        """Bytes of weights that a step of one token without adapters reads."""
        tapes = self._recording(self._first[0]).tapes
        launches = [x for _, tape in tapes for x in tape.launches if x.only != ADAPTED]
        return sum(launch.work.weight_bytes for launch in launches)

    @property
    def state_bytes(self) -> int:
        """What a slot keeps beside pages, at most."""
        return self.states.copy_bytes

    @property
    def generates(self) -> bool:
        """Whether the model yields logits; an encoder does not."""
        return self._decoder.generates

    @property
    def ranks(self) -> bool:
        """Whether the model has a head for ranking."""
        return self._decoder.scores is not None or self._decoder.rank_of_mean is not None

    def forward(
        self,
        chunks: Sequence[Chunk],
        copies: Sequence[PageCopy],
        rows: Sequence[OutputRow],
        states: npt.NDArray[np.float32] | None = None,
    ) -> list[RowLogits]:
        """Compute a plan: ``begin`` and ``complete``."""
        begun = self.begin(chunks, copies, rows, states)
        return [] if begun is None else self.complete(begun)

    def begin(
        self,
        chunks: Sequence[Chunk],
        copies: Sequence[PageCopy],
        rows: Sequence[OutputRow],
        states: npt.NDArray[np.float32] | None = None,
    ) -> Begun | None:
        """Begin to compute a plan, which is to be completed in its turn; None: its copies were all.
        ``states``: what a head of speculation reads beside each token, float32 [tokens, n_embd]."""
        if copies:
            self._tell(OnPages(copies))
            self.copy_pages(copies)
        if not chunks:
            return None
        for row in rows:
            if row.mask is not None:
                row.mask.begin()
        recording, counts = self.prepare(chunks, rows, states)
        recording.begin(counts)
        return Begun(recording, counts, rows, self._filled)

    def complete(
        self,
        begun: Begun,
        meanwhile: Callable[[], None] = lambda: None,
        patience: float | None = None,
    ) -> list[RowLogits]:
        """The logits of a step's rows: these, and the hidden states of chunks that ask for them,
        hold until another one is begun or completed. ``meanwhile`` is called while the device
        computes, once more if others do.
        Rows whose masks are not known after ``patience`` seconds of that wait for them."""
        self._first_not_finite = None
        counts, rows = begun.counts, begun.rows
        if begun.filled is not None and begun.filled is not self._filled:
            self._filled = begun.filled
            self._last.put_back(begun.filled)
        begun.recording.end(counts, meanwhile)
        masks = self._last.write_masks(rows, patience)  # while the device computes
        self.topk.run(counts[self._output_at])
        meanwhile()
        records = read(self._last.found, len(rows), self._decoder.queue)
        found = [
            RowLogits(self, i, record, mask)
            for i, (record, mask) in enumerate(zip(records, masks, strict=True))
        ]
        for i, (row, mask) in enumerate(zip(rows, masks, strict=True)):
            if row.mask is not None and mask is None:
                kept = NO_LOGITS if row.n_drafted else self.read_logits(i)
                found[i] = RowLogits(self, i, records[i].copy(), None, kept)
        return found

    def is_at_hand(self, chunks: Sequence[Chunk], n_tokens: int) -> bool:
        """Whether a step of so many tokens, each with a row of logits, and several of them of one
        of these chunks, can begin at once: nothing is to be compiled for it."""
        mode = mode_of(n_tokens, n_tokens, "tiles", hidden=self._decoder.gives_states)
        return mode in self._recordings or self._compiling is None or self._compiling.ready(mode)

    @property
    def is_exact(self) -> bool:
        """Whether a token is computed as if it were alone, bit for bit, whatever its step has
        beside it."""
        return self._decoder.is_simd

    def copy_states(self, saves: Sequence[StateCopy], restores: Sequence[StateCopy]) -> None:
        """Copy what slots keep beside pages, and put copies back; before a plan's forward."""
        for save in saves:
            self.of_all_states("save", save.slot, save.copy)
        for restore in restores:
            self.of_all_states("restore", restore.slot, restore.copy)

    def of_all_states(self, method: StateMethod, *arguments: int) -> Any:
        """Call a method of ``states``, and of those that other processes have."""
        self._tell(OnStates(method, arguments))
        return getattr(self.states, method)(*arguments)

    def claim_copy(self, copy: int, position: int) -> bool:
        """SlotStates.claim, of all states."""
        return bool(self.of_all_states("claim", copy, position))

    def copy_pages(self, copies: Sequence[PageCopy]) -> None:
        """Copy pages of the devices of this process."""
        for copy in copies:
            for pages in self.pages:
                pages.copy_page(copy.source, copy.target)

    def run_filled(self, mode: Mode, filled: Filled) -> None:
        """Carry out the part of this process of a step that another one has prepared."""
        at = self._is_here.index(True)
        counts = self._batches[at].take(filled)
        self._recording(mode).run([counts] * len(self._batches))
        self._batches[at].finish()  # the next step's inputs are written in place

    def prepare(
        self,
        chunks: Sequence[Chunk],
        rows: Sequence[OutputRow],
        states: npt.NDArray[np.float32] | None = None,
    ) -> tuple[Recording, list[Counts]]:
        """Write a step's inputs to the devices; what is left is to run its launches and topk's."""
        attention = _attention_mode(chunks)
        n_tokens = sum(chunk.count for chunk in chunks)
        encodes = any(chunk.encodes for chunk in chunks)
        hidden = any(chunk.outputs == "hidden" for chunk in chunks)
        hidden |= self._decoder.gives_states and not encodes
        key = n_tokens, len(rows), attention, hidden, encodes
        recording = self._of_step.get(key)
        if recording is None:
            wanted = mode_of(n_tokens, len(rows), attention, hidden=hidden, encodes=encodes)
            mode = self._at_hand(wanted)
            assert mode.output_tile > 1 or len(rows) <= 1, f"{len(rows)} rows of logits in {mode}"
            recording = self._recording(mode)
            if mode == wanted:
                self._of_step[key] = recording
        in_tiles = recording.mode.attention == "tiles"
        places = zip(self._batches, self._decoder.tile_queries, self._is_here, strict=True)
        counts = [
            batch.fill(chunks, rows, tile if in_tiles else 1, states) if is_here else ()
            for batch, tile, is_here in places
        ]
        if self._wires:
            self._filled = self._last.filled(counts[self._output_at])
            self._tell(Step(recording.mode, self._filled))
        return recording, counts

    def read_logits(self, index: int) -> npt.NDArray[Any]:
        return read_row(self._decoder.logits, index, self._decoder.queue)

    def scores_of(self, rows: range) -> npt.NDArray[np.float32]:
        """What the ranking head makes of rows of the last forward: float32 [rows, scores]."""
        scores = self._decoder.scores
        if scores is None:
            raise ValueError("the model has no ranking head")
        return read_rows(scores, rows, self._decoder.queue)

    def rank(self, mean: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The scores of a prompt whose hidden states have this mean, [n_embd]."""
        head = self._decoder.rank_of_mean
        if head is None:
            raise ValueError("the model has no ranking head for a mean")
        scores: npt.NDArray[np.float32] = head(mean)
        return scores

    def hidden(self, rows: range) -> npt.NDArray[np.float32]:
        """Hidden states of tokens of the last forward, by their places in it: float32
        [rows, n_embd]. The forward must have had a chunk with outputs "hidden"."""
        return read_rows(self._decoder.hidden, rows, self._decoder.queue)

    @property
    def state_width(self) -> int:
        """Values of what ``states_of`` gives of a token."""
        width: int = self._decoder.states.shape[1]
        return width

    def states_of(self, rows: range) -> npt.NDArray[np.float32]:
        """What heads of speculation or a draft read of tokens of the last forward, by their places
        in it: float32 [rows, values of a state]. The model must give states."""
        return read_rows(self._decoder.states, rows, self._decoder.queue)

    def first_not_finite(self) -> str:
        """Decoder.first_not_finite, the same until the next forward."""
        if self._first_not_finite is None:
            self._first_not_finite = self._decoder.first_not_finite()
        return self._first_not_finite

    def _at_hand(self, mode: Mode) -> Mode:
        """A mode, or while that is being compiled one with a larger tile, or as prompts have: what
        the simd kernels compute for a token depends neither on the tile (matmul_simd.cl) nor on
        how its keys are shared out (attention_simd.cl), so the same results."""
        compiling = self._compiling
        if compiling is None or not self._decoder.is_simd or mode in self._recordings:
            return mode
        larger = [tile for tile in DECODE_TILES if tile > mode.tile and mode.attention != "tiles"]
        others = [replace(mode, tile=tile, output_tile=FEW_OUTPUTS) for tile in larger]
        prompts = as_prompt(replace(mode, tile=PROMPT_TILE, output_tile=FEW_OUTPUTS))
        candidates = (mode, *others, as_prompt(mode), prompts)
        # None is ready in the first second or two of a first start: prompts need three programs.
        return next(filter(compiling.ready, candidates), mode if mode.output_tile == 1 else prompts)

    def on_loss(self, call: Callable[[str], None]) -> None:
        """Have it called, in any thread, when another process with a part of the model is gone."""
        for wire in self._wires:
            wire.on_loss(call)

    def start_over(self, wires: Sequence[Leading]) -> None:
        """These are to the processes that have the other parts from now on, and that have computed
        nothing yet."""
        for wire, new in zip(self._wires, wires, strict=True):
            assert isinstance(wire, Leading)
            wire.become(new)
        for batch in self._batches:
            batch.forget_tables()

    def leave(self) -> None:
        """Leave the processes that have a part of the model."""
        for wire in self._wires:
            wire.close()

    def _tell(self, message: Step | OnPages | OnStates) -> None:
        """Send a message to all processes that have a part of the model."""
        for wire in self._wires:
            wire.send(message)

    def _recording(self, mode: Mode) -> Recording:
        if mode not in self._recordings:
            self._recordings[mode] = self._decoder.record(mode)
        return self._recordings[mode]
