"""Features that meet in one engine: each request is answered as if it were alone.

Windows in rings, recurrent states and checkpoints, shared prefixes, pauses for want of pages,
contexts that shift, quantized KV and several devices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asking import SECONDS, Reply, ask, assert_same_logits, at_once, random_prompt, submit

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Embedded, Embedding, PromptScored, Scoring
from gguf_serve.kernels.opencl.platforms import list_devices

OPTIONS = EngineOptions(
    n_ctx=512, n_ubatch=32, n_gpu_layers=0, kernel_family="simd", cache_type_k="f32",
    cache_type_v="f32",
)  # fmt: skip
COMMON = random_prompt(70, 1)

Start = Callable[..., Engine]


@pytest.fixture
def start(start_engine: Callable[[str, EngineOptions], Engine]) -> Start:
    """Starts a model: four slots that share 512 tokens."""
    return lambda name, **changes: start_engine(name, replace(OPTIONS, **changes))


def crowd(engine: Engine) -> list[tuple[list[int], int, Reply]]:
    """Eight requests at once, of which not all fit; half of them begin alike."""
    asked = []
    with at_once(engine):
        for i in range(8):
            prompt = [*COMMON[: 70 * (i % 2)], *random_prompt(20 + 9 * i, 2)]
            asked.append((prompt, 60 + 10 * i, submit(engine, prompt, 60 + 10 * i, n_probs=128)))
    for _, _, reply in asked:
        reply.wait()
    return asked


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gemma3-dense", {}),
        ("gemma3-dense", {"swa_full": True}),
        ("gpt-oss-moe", {"context_shift": True}),
        ("granitehybrid-dense", {}),
        ("deepseek32-moe", {}),
    ],
)
def test_a_crowd_for_which_pages_run_out(start: Start, name: str, changes: dict[str, Any]) -> None:
    engine = start(name, **changes)
    keeps_state = name != "deepseek32-moe" and not changes.get("swa_full")
    assert (engine._loop.runner.state_bytes > 0) == keeps_state
    asked = crowd(engine)
    stats = engine.stats()
    assert engine.healthy
    assert stats.n_preempted > 0
    assert (stats.n_pages_used, stats.n_processing, stats.n_deferred) == (0, 0, 0)
    for prompt, n, reply in asked[:4]:
        alone = ask(engine, prompt, n, n_probs=128, cache_prompt=False)
        assert_same_logits(reply, alone)


@pytest.mark.parametrize("name", ["gemma3-dense", "granitehybrid-dense"])
def test_what_generates_nothing_beside_what_does(start: Start, name: str) -> None:
    """Scores, vectors, and prompts that are only to be cached."""
    engine = start(name)
    prompt = [*COMMON, *random_prompt(40, 3)]
    long = submit(engine, COMMON, 200)
    cached = submit(engine, prompt, 0)
    scored = submit(engine, prompt, 0, wants=Scoring(1))
    embedded = submit(engine, prompt, 0, wants=Embedding("mean"))
    for reply in (long, cached, scored, embedded):
        reply.wait()
    assert cached.tokens == scored.tokens == []
    alone = ask(engine, prompt, 0, wants=Scoring(1))
    scores = [[s.logprob for s in r.all(PromptScored)[0].scores[1:]] for r in (scored, alone)]
    assert len(scores[0]) == len(prompt) - 1
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    vectors = [
        r.all(Embedded)[0].vectors[0]
        for r in (embedded, ask(engine, prompt, 0, wants=Embedding("mean")))
    ]
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-3)
    again = ask(engine, prompt, 5, n_probs=128)
    assert again.n_cached > len(COMMON) // 2
    assert_same_logits(again, ask(engine, prompt, 5, n_probs=128, cache_prompt=False))


@pytest.mark.parametrize(
    "name",
    [
        "gemma3-dense",
        pytest.param("granitehybrid-dense", marks=pytest.mark.slow),
        pytest.param("deepseek32-moe", marks=pytest.mark.slow),
    ],
)
def test_a_slot_of_several_devices_and_quantized_kv(
    start: Start, tmp_path: Path, name: str
) -> None:
    """Saved after a shift of its context, restored by another engine."""
    infos = [info for info in list_devices() if info.kind == "cpu"]
    if len(infos) < 2:
        pytest.skip("no two OpenCL devices")
    engines = [
        start(
            name, device=",".join(str(info.index) for info in infos[:2]), tensor_split=(1.0, 1.0),
            n_gpu_layers="auto", n_parallel=2, context_shift=True, cache_type_k="q8_0",
            cache_type_v="q5_1", n_ctx=768,
        )
        for _ in range(2)
    ]  # fmt: skip
    first, other = engines
    prompt = random_prompt(300, 5)
    answer = ask(first, prompt, 100, n_keep=20, id_slot=1)
    assert answer.end.truncated
    saved = first.save_slot(1, tmp_path / "slot").result(SECONDS)
    assert saved.n_tokens > 64
    other.restore_slot(0, tmp_path / "slot").result(SECONDS)
    kept, slot = first._slots._cache._left[1][0][: saved.n_tokens], [7, 8, 9]
    reply = ask(other, [*kept, *slot], 6, n_probs=128)
    assert reply.n_cached == saved.n_tokens
    assert_same_logits(reply, ask(first, [*kept, *slot], 6, n_probs=128))
