"""A full context that shifts: generation goes on as a fresh request with the tokens left would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from asking import ask, engine_of, random_prompt

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.loading.loader import load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.kernels.opencl.platforms import list_devices

N_CTX, N_KEEP = 96, 10
OPTIONS = EngineOptions(
    n_ctx=2 * N_CTX, n_parallel=2, n_ubatch=64, n_gpu_layers=0, kernel_family="simd",
    cache_type_k="f32", cache_type_v="f32", context_shift=True,
)  # fmt: skip


@pytest.fixture(scope="module", params=["llama-dense", "gpt-oss-moe", "falcon-h1-dense"])
def engine(
    request: pytest.FixtureRequest, conformance_model: Callable[[str], Path]
) -> Iterator[Engine]:
    if not list_devices():
        pytest.skip("no OpenCL device")
    engine = engine_of(load_model(conformance_model(request.param), OPTIONS, lambda share: None))
    yield engine
    assert engine.healthy
    engine.close()


@pytest.mark.parametrize("n_discard", [0, 20])
def test_generation_goes_on(engine: Engine, n_discard: int) -> None:
    prompt = random_prompt(40, 1)
    reply = ask(engine, prompt, 150, n_keep=N_KEEP, n_discard=n_discard)
    assert (reply.end.reason, reply.end.truncated) == ("limit", True)
    assert reply.end.timings.predicted_n == 150
    tokens, generated = list(prompt), []
    for _ in range(150):
        generated += ask(engine, tokens, 1).tokens
        tokens.append(generated[-1])
        if len(tokens) == N_CTX:
            del tokens[N_KEEP : N_KEEP + (n_discard or (N_CTX - N_KEEP) // 2)]
    assert reply.tokens == generated


def test_without_a_limit_the_whole_prompt_can_stay(engine: Engine) -> None:
    """More than the context less four tokens cannot."""
    reply = ask(engine, random_prompt(N_CTX - 1, 2), 20, n_keep=-1, cache_prompt=False)
    assert len(reply.tokens) == 20
    assert reply.end.truncated
