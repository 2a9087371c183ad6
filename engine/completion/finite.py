"""Outputs that are NaN or infinite: who is told, what is forgotten, whether the model is at fault.

A client can cause none: its biases and penalties are added to what the device has given. What
remains is a page of the cache whose bytes are damaged, a prompt whose values overflow, or weights
and options that make every value so. The first is recomputed, the second ends a request, and the
third is for ``/health`` to say: a short text of the engine's own tells it from the second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.errors import NotFiniteError, RequestError
from gguf_serve.engine.forward.batch import OutputRow
from gguf_serve.engine.options import ModelInfo
from gguf_serve.engine.request import (
    Embedding,
    Event,
    Failed,
    Finished,
    Generation,
    Request,
    Wanted,
    vectors_by,
)
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.engine.scheduling.sequence import Sequence as RunningSequence

log = logging.getLogger(__name__)
PROBE = "The quick brown fox"  # a text of the engine's own
MOST_PROBED = 8  # tokens


class Row(Protocol):
    """What is asked of a row of logits here (engine/forward/runner.py)."""

    @property
    def broken(self) -> bool: ...


class Soundness:
    """Whether the model gives numbers. In the engine's thread; ``fault`` may be read from any."""

    def __init__(
        self,
        scheduler: Scheduler,
        info: ModelInfo,
        encode: Callable[[str], Sequence[int]],
        submit: Callable[[Request, Callable[[Event], None]], object],
        forget: Callable[[RunningSequence], None] | None = None,
    ) -> None:
        """``forget``: what is to be done with tokens whose cached values are damaged."""
        self._scheduler, self._submit = scheduler, submit
        self._request = Request(
            _probe(encode, info.n_vocab), SamplingParams(temperature=0.0), max_tokens=1,
            cache_prompt=False, wants=_wanted(info),
        )  # fmt: skip
        self._forget = forget or scheduler.forget
        self._is_probing = False
        self.fault = ""  # what is wrong with any output of the model

    def inspect(self, found: Sequence[tuple[OutputRow, Row]]) -> None:
        """Look at a step's rows before what it has computed is put into the cache.

        A sequence with a broken row goes back to the line if it began with cached pages; else
        what it has computed is discarded, and delivering the row will end it.
        """
        seen = set[int]()
        for row, values in found:
            seq = row.chunk.seq
            if seq.id in seen or row.n_drafted:  # a guess may be what no text has
                continue
            if values.broken:
                seen.add(seq.id)
                if self._scheduler.recompute(seq):
                    log.warning("%s: not finite after cached tokens, which are recomputed", of(seq))
                else:
                    self._scheduler.discard(seq)
            elif seq.recomputed and seq.n_reused:
                log.error("%s: cached tokens were damaged, they are forgotten", of(seq))
                seq.n_reused = 0
                self._forget(seq)

    def note(self, seq: RunningSequence) -> None:
        """A request has ended for this: find out whether any would."""
        if not self._is_probing and not self.fault and seq.request is not self._request:
            self._is_probing = True
            self._submit(self._request, self._hear)

    def renew(self) -> None:
        """Something has changed with which the model computes."""
        self.fault = ""

    def _hear(self, event: Event) -> None:
        if isinstance(event, Failed):
            self.fault = f"any text gives this: {event.message}"
            log.error("the model or its options are at fault: %s", self.fault)
        if isinstance(event, Failed | Finished):
            self._is_probing = False


class Diagnosis(Protocol):
    """What knows where values were not finite first (engine/forward/runner.py)."""

    def first_not_finite(self) -> str: ...  # "": nobody has looked


def check_finite(
    values: npt.NDArray[np.float32], what: str, seq: RunningSequence, runner: Diagnosis
) -> None:
    """NotFiniteError if a value is NaN or infinite; ``what``: "the scores", for example."""
    if not np.isfinite(values).all():
        raise not_finite(what, seq, runner)


def not_finite(what: str, seq: RunningSequence, runner: Diagnosis) -> NotFiniteError:
    """What to tell the client and the log."""
    place = runner.first_not_finite()
    where = f", first {place}" if place else " (--check-tensors says after which layer)"
    scales = [scale for scale in seq.adapter_scales if scale]
    loras = f", with LoRA scales {scales}" if scales else ""
    return NotFiniteError(f"{what} of {of(seq)} are NaN or infinite{where}{loras}")


def of(seq: RunningSequence) -> str:
    return f"request {seq.id} in slot {seq.slot}"


def _probe(encode: Callable[[str], Sequence[int]], n_vocab: int) -> tuple[int, ...]:
    try:
        tokens = tuple(encode(PROBE)[:MOST_PROBED])
    except RequestError:  # a model without a vocabulary
        tokens = ()
    return tuple(token for token in tokens if 0 <= token < n_vocab) or (0,)


def _wanted(info: ModelInfo) -> Wanted:
    if not info.is_encoder:
        return Generation()
    return (
        Embedding("mean") if info.pooling == "rank" and not info.ranks else vectors_by(info.pooling)
    )
