"""T5: an encoder alone, and one whose output a decoder attends to, against llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conformance_data import arrays
from stepping import Floats, Stepper, nmse, sequence

from gguf_serve.engine.loading.assembly import Sizes
from gguf_serve.engine.scheduling.sequence import Chunk
from gguf_serve.engine.scheduling.sequence import Sequence as RunningSequence
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs

SIZES = Sizes(n_pages=32, n_slots=3, n_ctx_slot=320, n_tokens=192, n_batch=192, n_outputs=160)
GELU_NMSE = 1e-7  # llama.cpp has a table of halves
TABLE = [3, 7, 5, 9, 2, 11, 1, 0, 4]

Build = Callable[[str], Path]


def test_encoder(device: Device, programs: Programs, conformance_model: Build) -> None:
    """Distances of all buckets, beside others."""
    path = conformance_model("t5encoder")
    model, found = Stepper(path, device, programs, sizes=SIZES), arrays("t5encoder")
    tokens = found["tokens"].tolist()
    tables = ([12], TABLE, [13])
    prompts = (tokens[:9], tokens, tokens[3:20])
    seqs = [sequence(prompts[i], i, tables[i]) for i in range(3)]
    assert nmse(model.states(*seqs)[1], found["embeddings"]) <= GELU_NMSE


def encoded(model: Stepper, prompt: list[int], tokens: list[int], slot: int) -> RunningSequence:
    """A sequence whose prompt the encoder has read; its pages are those of a slot."""
    seq = sequence([*prompt, *tokens], slot, list(range(10 * slot, 10 * slot + 10)))
    seq.n_encoder = len(prompt)
    model.runner.forward([Chunk(seq, 0, len(prompt), "none")], (), ())
    seq.n_computed = len(prompt)
    return seq


@pytest.mark.whole_models
@pytest.mark.parametrize("name", ["t5", "t5-gated"])
def test_decoder(device: Device, programs: Programs, conformance_model: Build, name: str) -> None:
    """Whole, in uneven chunks and one by one, beside others; and what the encoder yields."""
    model, found = Stepper(conformance_model(name), device, programs, sizes=SIZES), arrays(name)
    prompt, tokens = found["encoder_tokens"].tolist(), found["tokens"].tolist()
    seq = sequence(prompt, 1, list(range(10, 20)))
    seq.n_encoder = len(prompt)
    assert nmse(model.states(seq)[0][::4], found["encoder_output"]) <= GELU_NMSE
    whole = model.run(encoded(model, prompt, tokens, 1), [len(tokens)])
    assert nmse(whole, found["logits"]) <= GELU_NMSE
    me, others = (
        encoded(model, prompt, tokens, 1),
        [encoded(model, prompt[:n], tokens[::-1], slot) for n, slot in ((31, 0), (70, 2))],
    )
    assert nmse(beside(model, me, others, len(tokens)), found["logits"]) <= GELU_NMSE


def beside(model: Stepper, me: RunningSequence, others: list[RunningSequence], n: int) -> Floats:
    rows = [
        model.step((others[0], 20), (me, 7))[1],
        model.step((others[1], 1), (me, 20), (others[0], 3))[1],
        *(model.step((me, 1), (others[0], 1), (others[1], 1))[0] for _ in range(10)),
        model.step((me, n - 37))[0],
    ]
    return np.concatenate(rows)
