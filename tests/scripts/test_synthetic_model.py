"""A synthetic model is a valid file, its weights have the right size, and it can be run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import synthetic_model as synthetic
from asking import Reply
from model_shapes import SHAPES, llama
from shape_parts import Shape

from gguf_serve.engine.engine import load_engine
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Request
from gguf_serve.engine.sampling_params import SamplingParams

SMALL = llama(layers=2, embd=256, heads=4, kv_heads=2, ff=512, vocab=700, ctx=128, more_bits=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synthetic") / "small.gguf"
    synthetic.write_model(path, SMALL)
    return path


def test_the_default_has_seven_billion_parameters() -> None:
    assert 7.2e9 < llama().n_params < 7.3e9


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("qwen3moe-30b-a3b", 30.0), ("gpt-oss-20b", 20.3), ("mamba2-2.7b", 2.7),
        ("deepseek2-lite", 15.6),
    ],
)  # fmt: skip
def test_shapes_have_the_sizes_of_their_models(name: str, billions: float) -> None:
    """But for the vocabularies, which are smaller here."""
    assert SHAPES[name]().n_params / 1e9 == pytest.approx(billions, rel=0.03)


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


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("blk.0.attn_q.weight", "Q4_K"), ("blk.0.ffn_down.weight", "Q4_K"),
        ("blk.1.attn_v.weight", "Q6_K"), ("blk.1.ffn_down.weight", "Q6_K"),
    ],
)  # fmt: skip
def test_weights_keep_activations_at_their_size(path: Path, name: str, kind: str) -> None:
    quants = pytest.importorskip("gguf.quants")
    constants = pytest.importorskip("gguf.constants")
    with open_gguf(path) as gguf:
        assert gguf.tensors[name].type.name == kind
        n_cols, n_rows = gguf.tensors[name].shape
        data = np.array(gguf.data(name)).reshape(n_rows, -1)
    weights = quants.dequantize(data, constants.GGMLQuantizationType[kind])
    assert weights.std() * n_cols**0.5 == pytest.approx(1, abs=0.05)
    assert abs(weights.mean()) * n_cols**0.5 < 0.05


def test_it_generates(path: Path) -> None:
    tokens = generated(path)
    assert len(tokens) == 8
    assert len(set(tokens)) > 1, "NaN everywhere would give one token again and again"


def of_two_layers(name: str) -> Shape:
    """The small shape cut after its first layers, of which some have every kind of layer."""
    shape = SHAPES[name]()
    if name.startswith("gemma4"):  # whose last layers have no K and V, as wide tables say
        return shape
    n = 4 if name.startswith(("lfm2", "granite")) else 2
    shape.tensors = [
        one for one in shape.tensors
        if not one[0].startswith("blk.") or int(one[0].split(".")[1]) < n
    ]  # fmt: skip
    shape.keys = {
        key: value if isinstance(value, int | float) else value[:n]
        for key, value in shape.keys.items()
    }
    shape.keys["block_count"] = n
    return shape


@pytest.mark.parametrize("name", [name for name in SHAPES if name.endswith("-small")])
def test_every_family_generates(name: str, tmp_path: Path) -> None:
    """Logits that are no numbers end a request with an error instead."""
    synthetic.write_model(tmp_path / "m.gguf", of_two_layers(name))
    assert len(generated(tmp_path / "m.gguf")) == 8


def generated(path: Path) -> list[int]:
    """Eight tokens, the likeliest ones."""
    reply = Reply()
    engine = load_engine(path, EngineOptions(n_ctx=128))
    try:
        prompt = tuple(engine.tokenizer.encode("What is there to say?"))
        assert engine.tokenizer.decode(prompt) == "What is there to say?"
        engine.submit(
            Request(prompt, SamplingParams(temperature=0.0, ignore_eos=True), max_tokens=8),
            reply,
        )
        return reply.wait().tokens
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("sizes", "word"),
    [
        ({"embd": 300}, "embd is 300"),
        ({"vocab": 100}, "vocab is 100"),
        ({"vocab": 70000}, "vocab is 70000"),
        ({"heads": 3}, "3 heads"),
        ({"kv_heads": 3}, "3 KV heads"),
        ({"layers": 0}, "below 1"),
    ],
)
def test_impossible_sizes(tmp_path: Path, sizes: dict[str, int], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        synthetic.write_model(tmp_path / "x.gguf", llama(**sizes))
    assert not (tmp_path / "x.gguf").exists()
