"""Encoders: small random ones against NumPy, and a real one against its published weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from queue import Queue

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from bert_reference import (
    ENCODERS,
    N_EMBD,
    N_VOCAB,
    hidden_states,
    linear,
    random_tensors,
    write_model,
)
from conformance_data import arrays
from stepping import Stepper, nmse, sequence

from gguf_serve.engine.architecture.hyperparameters import read_hyperparameters
from gguf_serve.engine.architecture.table import find_architecture
from gguf_serve.engine.engine import load_engine
from gguf_serve.engine.forward.batch import OutputRow
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.model.placement import on_one_device
from gguf_serve.engine.model.weights import allocate_weights
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Embedded, Event, Request, Started, vectors_by
from gguf_serve.engine.scheduling.sequence import Chunk
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs

Load = Callable[[str], Stepper]
FLOAT_NMSE = 1e-11
GELU_NMSE = 1e-7  # llama.cpp has a table of halves
MINILM = "all-MiniLM-L6-v2-F16.gguf"
MINILM_NMSE = 6e-7  # of matrices as integers: half of llama.cpp's error
HALVES_NMSE = {"wavtokenizer-dec": 2e-7}  # which it convolves
CONFORMANCE = [
    "bert", "bert-rank", "eurobert", "gemma-embedding", "gemma-embedding-dense", "jina-bert-v2",
    "jina-bert-v2-code", "jina-bert-v2-rank", "jina-bert-v3", "llama-embed", "modern-bert",
    "modern-bert-rank", "modern-bert-swiglu", "neo-bert", "neo-bert-cls", "nomic-bert",
    "nomic-bert-moe", "wavtokenizer-dec",
]  # fmt: skip


@pytest.fixture(scope="session")
def load(device: Device, programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Load:
    folder = tmp_path_factory.mktemp("encoders")

    @cache
    def loaded(name: str) -> Stepper:
        e = ENCODERS[name]
        return Stepper(write_model(folder / name, e, random_tensors(e)), device, programs)

    return loaded


def ranker_tensors() -> dict[str, npt.NDArray[np.float32]]:
    """A BERT with a head of two matrices, for two scores."""
    rng = np.random.default_rng(8)
    tensors = random_tensors(ENCODERS["bert"])
    for name, n in (("cls", N_EMBD), ("cls.output", 2)):
        matrix = rng.standard_normal((n, N_EMBD), dtype=np.float32)
        tensors[f"{name}.weight"] = matrix * np.float32(N_EMBD**-0.5)
        tensors[f"{name}.bias"] = rng.standard_normal(n, dtype=np.float32)
    return tensors


def random_tokens(seed: int, n: int) -> list[int]:
    return np.random.default_rng(seed).integers(N_VOCAB, size=n).tolist()


@pytest.mark.parametrize("name", ENCODERS)
def test_hidden_states(load: Load, name: str) -> None:
    """Prompts of several lengths in one step, over page ends, and one of a single token."""
    e, model = ENCODERS[name], load(name)
    tensors = random_tensors(e)
    prompts = [random_tokens(i, n) for i, n in enumerate((33, 1, 62))]
    tables = [[3, 7], [5], [9, 2]]
    seqs = [
        sequence(tokens, slot, table)
        for slot, (tokens, table) in enumerate(zip(prompts, tables, strict=True))
    ]
    found = model.states(*seqs)
    for tokens, states in zip(prompts, found, strict=True):
        assert nmse(states, hidden_states(e, tensors, tokens)) <= FLOAT_NMSE
    alone = model.states(sequence(prompts[1], 2, [1]))[0]
    assert nmse(alone, found[1].astype(np.float64)) <= FLOAT_NMSE


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFORMANCE)
def test_hidden_states_of_llama_cpp(
    device: Device, programs: Programs, conformance_model: Callable[[str], Path], name: str
) -> None:
    """Of a prompt beside others."""
    model, found = Stepper(conformance_model(name), device, programs), arrays(name)
    tokens = found["tokens"].tolist()
    prompts = [tokens[:9], tokens, tokens[3:20]]
    tables = [[3], [7, 5], [9]]
    seqs = [sequence(prompts[i], i, tables[i]) for i in range(3)]
    assert nmse(model.states(*seqs)[1], found["embeddings"]) <= HALVES_NMSE.get(name, GELU_NMSE)


def test_scores(device: Device, programs: Programs, tmp_path: Path) -> None:
    e, tensors, tokens = ENCODERS["bert"], ranker_tensors(), random_tokens(5, 21)
    model = Stepper(write_model(tmp_path / "ranker", e, tensors), device, programs)
    seq = sequence(tokens, 0, [4])
    chunk = Chunk(seq, 0, len(tokens), "last")
    found = model.runner.forward([chunk], (), [OutputRow(chunk, 0, 1)])[0].scores()
    first = hidden_states(e, tensors, tokens)[0]
    expected = linear(np.tanh(linear(first, tensors, "cls")), tensors, "cls.output")
    assert np.abs(found - expected).max() <= 1e-5


@pytest.mark.slow
def test_minilm(shared: Path) -> None:
    """Mean-pooled vectors of a real model, at float16, against NumPy on its own tensors."""
    path = shared / "models" / MINILM
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    tensors = {t.name: t.data.astype(np.float32) for t in gguf.GGUFReader(path).tensors}
    engine = load_engine(path, EngineOptions())
    try:
        for text in ("hello", "The capital of France is Paris."):
            tokens = engine.tokenizer.encode(text, add_special=True, parse_special=False)
            events: Queue[Event] = Queue()
            engine.submit(Request(tuple(tokens), wants=vectors_by(engine.info.pooling)), events.put)
            while not isinstance(event := events.get(timeout=120), Embedded):
                assert isinstance(event, Started)
            (vector,) = np.array(event.vectors)
            expected = hidden_states(ENCODERS["bert"], tensors, tokens, 12).mean(0)
            assert nmse(vector, expected) <= MINILM_NMSE
    finally:
        engine.close()


def test_halves_become_integers(shared: Path, device: Device) -> None:
    """On CPUs, of what is multiplied."""
    path = shared / "models" / MINILM
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    with open_gguf(path) as file:
        h = read_hyperparameters(file, find_architecture(file.architecture))
        placement = on_one_device(h.n_layers)
        weights, (jobs,) = allocate_weights(file, h, [device.meta()], placement)
    assert weights.embedding.matrix.type.name == "F16"
    found = {job.matrix.type.name for job in jobs if job.matrix.n_rows == h.n_embd}
    assert found == {"F16_INT13" if device.is_simd else "F16"}
