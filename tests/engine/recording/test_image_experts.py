"""CogVLM's other weights for images, against its formulas in double precision.

llama.cpp's logits for images in this model could not be explained by any arrangement of these
weights (its NMSE to them is 1.8), so its reference data is not used here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
from vision_data import Reference, nmse

from gguf_serve.engine.engine import load_engine
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Delta, Event, Finished, Request
from gguf_serve.engine.sampling_params import SamplingParams

Array = np.ndarray[Any, np.dtype[np.float64]]
HEADS, SIZE, EPS = 4, 16, 1e-5
MARKER = "<m>"


def rms(x: Array, weight: Array) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight


def rotated(x: Array) -> Array:
    half = SIZE // 2
    angles = np.arange(len(x))[:, None, None] * 10000.0 ** (-np.arange(half) / half)
    a, b, c, s = x[..., :half], x[..., half:], np.cos(angles), np.sin(angles)
    return np.concatenate([a * c - b * s, a * s + b * c], axis=-1)


def forward(w: dict[str, Array], x: Array, is_image: Array) -> Array:
    """Logits after the last of the rows x."""

    def by_kind(y: Array, text: str, image: str) -> Array:
        return np.where(is_image[:, None], y @ w[f"{image}.weight"].T, y @ w[f"{text}.weight"].T)

    n = len(x)
    for b in ("blk.0.", "blk.1."):
        y = rms(x, w[f"{b}attn_norm.weight"])
        qkv = by_kind(y, f"{b}attn_qkv", f"{b}vis_attn_qkv").reshape(n, 3, HEADS, SIZE)
        q, k, v = rotated(qkv[:, 0]), rotated(qkv[:, 1]), qkv[:, 2]
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(SIZE)
        weights = np.exp(np.where(np.tril(np.ones((n, n))) > 0, scores, -np.inf))
        attended = np.einsum("hij,jhd->ihd", weights / weights.sum(-1, keepdims=True), v)
        x = x + by_kind(attended.reshape(n, -1), f"{b}attn_output", f"{b}vis_attn_output")
        y = rms(x, w[f"{b}ffn_norm.weight"])
        gate = by_kind(y, f"{b}ffn_gate", f"{b}vis_gate")
        hidden = gate / (1 + np.exp(-gate)) * by_kind(y, f"{b}ffn_up", f"{b}vis_up")
        x = x + by_kind(hidden, f"{b}ffn_down", f"{b}vis_down")
    result: Array = rms(x[-1], w["output_norm.weight"]) @ w["output.weight"].T
    return result


@pytest.mark.parametrize("n_ubatch", [512, 8])
def test_images_go_through_their_own_weights(
    vision_folder: Path, conformance_model: Callable[[str], Path], n_ubatch: int
) -> None:
    reference = Reference(vision_folder, "cogvlm")
    model = conformance_model(reference.spec.replace(".json", "-text.json"))
    gguf = pytest.importorskip("gguf", reason="the gguf package reads the model")
    weights = {t.name: np.array(t.data, np.float64) for t in gguf.GGUFReader(model).tensors}
    options = EngineOptions(
        mmproj=conformance_model(reference.spec), n_ctx=512, n_ubatch=n_ubatch,
        cache_type_k="f32", cache_type_v="f32",
    )  # fmt: skip
    engine = load_engine(model, options)
    try:
        assert engine.media is not None
        picture = engine.media.image((vision_folder / "images" / "tall.png").read_bytes())
        prompt = engine.media.prompt(f"describe {MARKER} now", MARKER, [picture], engine.tokenizer)
        assert engine._loop._media_turns is not None
        embeddings = engine._loop._media_turns._encoder.encode(prompt.spans[0])
        events: Queue[Event] = Queue()
        n = engine.info.n_vocab
        sampling = SamplingParams(temperature=0)
        request = Request(prompt.ids, sampling, max_tokens=1, n_probs=n, media=prompt.spans)
        engine.submit(request, events.put)
        found = np.zeros(n)
        while not isinstance(event := events.get(timeout=120), Finished):
            for id, _, logprob in event.scores[0].top if isinstance(event, Delta) else ():
                found[id] = logprob
    finally:
        engine.close()
    ids = np.array(prompt.ids)
    rows = weights["token_embd.weight"][np.maximum(ids, 0)]
    rows[ids < 0] = embeddings
    expected = forward(weights, rows, ids < 0)
    assert nmse(found - found.mean(), expected - expected.mean()) < 1e-8
