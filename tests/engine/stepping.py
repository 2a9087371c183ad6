"""A model driven step by step through its Runner, without scheduler or engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.batch import Batch, OutputRow
from engine.cache import PageCopy
from engine.gguf import open_gguf
from engine.models.arch import read_hyperparameters
from engine.models.decoder import Decoder, kv_shapes
from engine.models.table import find_architecture
from engine.request import Request
from engine.runner import Runner
from engine.scheduler import Chunk
from engine.scheduler import Sequence as RunningSequence
from engine.weights import allocate_weights, pack_weights
from kernels.device import Device
from kernels.kv import KVPages
from kernels.program import Programs

Floats = npt.NDArray[np.float32]
N_CTX, N_PAGES, N_SLOTS, N_TOKENS = 256, 32, 3, 96


class Stepper:
    """A loaded model with room for three sequences of 256 tokens; the KV cache is float32."""

    def __init__(
        self, path: Path, device: Device, programs: Programs, *, flash: bool = True
    ) -> None:
        with open_gguf(path) as gguf:
            hparams = read_hyperparameters(gguf, find_architecture(gguf.architecture))
            weights, jobs = allocate_weights(gguf, hparams, device)
            pack_weights(gguf, jobs, device, programs, lambda share: None)
        pages = KVPages(device, kv_shapes(hparams), N_PAGES, "f32", "f32")
        batch = Batch(
            device, n_tokens=N_TOKENS, n_outputs=N_TOKENS, n_sequences=N_SLOTS, n_ctx=N_CTX,
            n_vocab=hparams.n_vocab,
        )  # fmt: skip
        decoder = Decoder(
            hparams, weights, pages, batch.inputs, device, programs, n_tokens=N_TOKENS,
            n_outputs=N_TOKENS, n_split=N_SLOTS, n_ctx=N_CTX, flash=flash,
        )  # fmt: skip
        self.n_vocab = hparams.n_vocab
        self.runner = Runner(decoder, batch, pages)

    def step(
        self, *shares: tuple[RunningSequence, int], copies: Sequence[PageCopy] = ()
    ) -> list[Floats]:
        """The logits of the next so many tokens of each sequence: float32 [count, n_vocab]."""
        chunks = [Chunk(seq, seq.n_computed, count, "all") for seq, count in shares]
        wanted = [
            OutputRow(chunk, chunk.start + i, 4, i) for chunk in chunks for i in range(chunk.count)
        ]
        found = self.runner.forward(chunks, copies, wanted)
        rows = []
        for i, logits in enumerate(found):
            row = logits.row()
            best = np.lexsort((np.arange(len(row)), -row))[:4]
            assert np.array_equal(logits.best(4).ids, best)
            assert logits.picked == row[wanted[i].pick]
            sum_exp = np.exp(row.astype(np.float64) - row.max()).sum()
            assert abs(logits.log_sum_exp - row.max() - np.log(sum_exp)) < 1e-5
            rows.append(row)
        for seq, count in shares:
            seq.n_computed += count
        ends = np.cumsum([count for _, count in shares])[:-1]
        return np.split(np.array(rows), ends)

    def states(self, *seqs: RunningSequence) -> list[Floats]:
        """The hidden states of whole prompts, in one step: float32 [tokens, n_embd] each."""
        chunks = [Chunk(seq, 0, len(seq.tokens), "hidden") for seq in seqs]
        self.runner.forward(chunks, (), ())
        ends = np.cumsum([chunk.count for chunk in chunks])
        states = self.runner.hidden(range(int(ends[-1])))
        return np.split(states, ends[:-1])

    def run(self, seq: RunningSequence, counts: Iterable[int]) -> Floats:
        """The logits of one sequence, in steps of so many tokens."""
        return np.concatenate([self.step((seq, count))[0] for count in counts])


def sequence(tokens: Iterable[int], slot: int, table: list[int]) -> RunningSequence:
    """A sequence in a slot with its pages."""
    request = Request(tuple(int(token) for token in tokens))
    seq = RunningSequence.from_request(slot, request)
    seq.slot, seq.table = slot, table
    return seq


def nmse(result: Floats, reference: npt.NDArray[np.floating[Any]]) -> float:
    """Squared error, relative to the reference's squares."""
    assert result.shape == reference.shape
    difference = result.astype(np.float64) - reference
    return float((difference**2).sum() / (reference.astype(np.float64) ** 2).sum())
