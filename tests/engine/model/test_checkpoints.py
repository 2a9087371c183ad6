"""Models with a state beside pages: prefixes are shared, and the logits stay what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from asking import ask, assert_same_logits, engine_of, random_prompt

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.loading.loader import load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.kernels.opencl.platforms import list_devices
from gguf_serve.kernels.recurrent.state import SlotStates

OPTIONS = EngineOptions(
    n_ctx=1024, n_parallel=2, n_ubatch=64, n_gpu_layers=0, kernel_family="simd",
    cache_type_k="f32", cache_type_v="f32",
)  # fmt: skip
# Of each kind of layer that keeps a state, with attention and without; windows.
NAMES = [
    "mamba-dense", "mamba2-dense", "jamba-dense", "falcon-h1-dense", "nemotron_h-dense",
    "plamo2-dense", "granitehybrid-dense", "lfm2-dense", "qwen35-dense", "qwen3next-moe",
    "kimi-linear-moe", "bailingmoe3-moe", "minimax-01-moe", "qwen4exp-moe", "gemma3-dense",
    "gpt-oss-moe", "deepseek4-moe", "rwkv7",
]  # fmt: skip


@pytest.fixture(scope="module", params=NAMES)
def engine(
    request: pytest.FixtureRequest, conformance_model: Callable[[str], Path]
) -> Iterator[Engine]:
    if not list_devices():
        pytest.skip("no OpenCL device")
    engine = engine_of(load_model(conformance_model(request.param), OPTIONS, lambda share: None))
    yield engine
    assert engine.healthy
    engine.close()


def test_a_second_turn_computes_only_what_is_new(engine: Engine) -> None:
    """In the other slot, and so few tokens that none forgets what was before them."""
    first = random_prompt(100, 1)
    answer = ask(engine, first, 20, id_slot=0).tokens
    second = [*first, *answer, 5]
    reply = ask(engine, second, 8, n_probs=128, id_slot=1)
    assert reply.n_cached == len(first) + len(answer) - 1  # the last one was never computed
    assert reply.end.timings.prompt_n == 2
    assert_same_logits(reply, ask(engine, second, 8, n_probs=128, cache_prompt=False))


def test_a_second_turn_whose_answer_is_rendered_otherwise(engine: Engine) -> None:
    first = random_prompt(150, 3)
    ask(engine, first, 20, id_slot=0)
    second = [*first[:130], 6]
    reply = ask(engine, second, 8, n_probs=128, id_slot=1)
    assert reply.n_cached == 128
    assert_same_logits(reply, ask(engine, second, 8, n_probs=128, cache_prompt=False))


def test_a_common_beginning_is_computed_twice_at_most(engine: Engine) -> None:
    common = random_prompt(200, 5)
    replies = [ask(engine, [*common, *random_prompt(20, 10 + i)], 4, n_probs=128) for i in range(3)]
    assert replies[0].n_cached == 0
    assert replies[2].n_cached == 192
    prompt = [*common, *random_prompt(20, 12)]
    stats = engine.stats()
    assert 0 < stats.n_checkpoints <= 64
    assert stats.checkpoint_bytes >= stats.n_checkpoints
    assert_same_logits(replies[2], ask(engine, prompt, 4, n_probs=128, cache_prompt=False))


def test_answers_go_on_where_no_checkpoint_can_be_made(
    conformance_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: SlotStates, position: int) -> int:
        raise MemoryError

    monkeypatch.setattr(SlotStates, "copy_bytes_at", refuse)
    model = load_model(conformance_model("mamba-dense"), OPTIONS, lambda share: None)
    engine = engine_of(model)
    prompt = random_prompt(100, 1)
    first, again = (ask(engine, prompt, 8, n_probs=128) for _ in range(2))
    assert again.n_cached == 0
    assert_same_logits(again, first)
    assert engine.healthy
    engine.close()
