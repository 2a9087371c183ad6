"""A synthetic model is a valid file, its weights have the right size, and it can be run."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import synthetic_model as synthetic

from gguf_serve.engine.engine import load_engine
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Delta, Event, Failed, Finished, Request
from gguf_serve.engine.sampling_params import SamplingParams

SMALL = synthetic.Shape(layers=2, embd=256, heads=4, kv_heads=2, ff=512, vocab=700, ctx=128)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synthetic") / "small.gguf"
    synthetic.write_model(path, SMALL)
    return path


def test_the_default_has_seven_billion_parameters() -> None:
    sizes = [cols * max(rows, 1) for _, cols, rows in synthetic.Shape().tensors()]
    assert 7.2e9 < sum(sizes) < 7.3e9


def test_the_file_is_read_back(path: Path) -> None:
    with open_gguf(path) as gguf:
        assert gguf.architecture == "llama"
        assert gguf.tensors["blk.1.ffn_down.weight"].shape == (512, 256)
        assert gguf.tensors["token_embd.weight"].shape == (256, 700)
        assert gguf.tensors["token_embd.weight"].type.name == "Q4_K"
        norm = gguf.data("output_norm.weight").view(np.float32)
        assert (norm == 1).all()


def test_the_same_sizes_give_the_same_file(path: Path, tmp_path: Path) -> None:
    synthetic.write_model(tmp_path / "again.gguf", SMALL)
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()


def test_matrices_differ(path: Path) -> None:
    with open_gguf(path) as gguf:
        up = [bytes(gguf.data(f"blk.{i}.ffn_up.weight")) for i in (0, 1)]
    assert up[0] != up[1]


@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "blk.0.ffn_down.weight"])
def test_weights_keep_activations_at_their_size(path: Path, name: str) -> None:
    quants = pytest.importorskip("gguf.quants")
    constants = pytest.importorskip("gguf.constants")
    with open_gguf(path) as gguf:
        n_cols, n_rows = gguf.tensors[name].shape
        data = np.array(gguf.data(name)).reshape(n_rows, -1)
    weights = quants.dequantize(data, constants.GGMLQuantizationType.Q4_K)
    assert weights.std() * n_cols**0.5 == pytest.approx(1, abs=0.05)
    assert abs(weights.mean()) * n_cols**0.5 < 0.05


def test_it_generates(path: Path) -> None:
    events: list[Event] = []
    engine = load_engine(path, EngineOptions(n_ctx=128))
    try:
        prompt = tuple(engine.tokenizer.encode("What is there to say?"))
        assert engine.tokenizer.decode(prompt) == "What is there to say?"
        engine.submit(
            Request(prompt, SamplingParams(temperature=0.0, ignore_eos=True), max_tokens=8),
            events.append,
        )
        _wait(events)
    finally:
        engine.close()
    tokens = [token for e in events if isinstance(e, Delta) for token in e.tokens]
    assert len(tokens) == 8
    assert len(set(tokens)) > 1, "NaN everywhere would give one token again and again"


def _wait(events: list[Event]) -> None:
    end = time.monotonic() + 30
    while not any(isinstance(event, Finished | Failed) for event in events):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("sizes", "word"),
    [
        ({"embd": 300}, "embd is 300"),
        ({"vocab": 100}, "vocab is 100"),
        ({"vocab": 70000}, "vocab is 70000"),
        ({"heads": 3}, "3 heads"),
        ({"kv_heads": 3}, "3 KV heads"),
        ({"layers": 0}, "layers=0"),
    ],
)
def test_impossible_sizes(tmp_path: Path, sizes: dict[str, int], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        synthetic.write_model(tmp_path / "x.gguf", synthetic.Shape(**sizes))
    assert not (tmp_path / "x.gguf").exists()
