"""What a diffusion model writes, against the same steps done by hand."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from asking import ask, engine_of, random_prompt
from stepping import Stepper, sequence

from gguf_serve.engine.completion.denoising import Denoiser
from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.forward.runner import RowLogits
from gguf_serve.engine.grammar.constraint import Constraint
from gguf_serve.engine.loading.loader import load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Denoising, Order
from gguf_serve.kernels.opencl.device import open_device
from gguf_serve.kernels.opencl.program import Programs

MASK, N, STEPS = 127, 12, 5
OPTIONS = EngineOptions(
    n_ctx=256, n_parallel=2, n_ubatch=64, n_gpu_layers=0, kernel_family="simd",
    cache_type_k="f32", cache_type_v="f32", diffusion_steps=STEPS,
)  # fmt: skip


def denoised(path: Path, prompt: list[int], *, shifted: bool) -> list[int]:
    """The likeliest tokens, in every step the share that is the surest."""
    device = open_device(family="simd")
    model = Stepper(path, device, Programs(device))
    tokens, masks = [*prompt, *[MASK] * N], list(range(len(prompt), len(prompt) + N))
    for left in range(STEPS, 0, -1):
        logits = model.run(sequence(tokens, 0, [3, 7, 5]), [len(tokens)]).astype(np.float64)
        rows = logits[[at - shifted for at in masks]]
        sums = np.log(np.exp(rows).sum(axis=1))
        rows[:, MASK] = -np.inf
        sure = rows.max(axis=1) - sums
        for i in np.argsort(-sure)[: ceil(len(masks) / left)]:
            tokens[masks[i]] = int(rows[i].argmax())
        masks = [at for at in masks if tokens[at] == MASK]
    return tokens[len(prompt) :]


@pytest.mark.parametrize(("name", "shifted"), [("dream", True), ("llada", False)])
def test_text(name: str, shifted: bool, conformance_model: Callable[[str], Path]) -> None:
    """Alone and beside another; what is before the end token, and what cannot be asked for."""
    path, prompt = conformance_model(name), random_prompt(20, 1)
    expected = denoised(path, prompt, shifted=shifted)
    engine = engine_of(load_model(path, OPTIONS, lambda share: None))
    try:
        reply = ask(engine, prompt, N)
        assert reply.tokens == expected
        assert reply.text == "".join(map(chr, expected))
        assert (reply.end.reason, reply.end.timings.predicted_n) == ("limit", N)
        assert len(ask(engine, random_prompt(60, 2), 10).tokens) == 4  # what a step has room for
        with pytest.raises(RequestError, match="no room for text"):
            ask(engine, random_prompt(64, 2), 10)
        with pytest.raises(RequestError, match="a grammar cannot be had"):
            ask(engine, prompt, constraint=Constraint("regex", "a"))
        with pytest.raises(RequestError, match="log-probabilities cannot be had"):
            ask(engine, prompt, n_probs=2)
    finally:
        engine.close()
    model = load_model(path, OPTIONS, lambda share: None)
    engine = engine_of(model, eog_ids=[expected[4]])
    try:
        reply = ask(engine, prompt, N)
        assert reply.end.reason == "eos"
        assert reply.tokens == expected[: expected.index(expected[4]) + 1]
    finally:
        engine.close()


def row(*logits: float) -> RowLogits:
    """A row of logits as a runner gives it."""
    values = np.array(logits, np.float32)
    best = np.argsort(-values)
    return cast(RowLogits, SimpleNamespace(
        best=lambda k: SimpleNamespace(ids=best[:k].tolist(), logits=values[best[:k]].tolist()),
        row=lambda: values, log_sum_exp=float(np.log(np.exp(values).sum())),
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("order", "first"), [("confidence", 1), ("margin", 0), ("entropy", 2), ("random", 2)]
)
def test_orders(order: Order, first: int) -> None:
    """Rows of which another comes first in each order: the first has the largest distance of
    probabilities, the second the largest one; the third lies between two tokens."""
    numbers: Any = iter((0.1, 0.2, 0.9)).__next__
    denoiser = Denoiser(Denoising(MASK, shifted=False, steps=3, order=order), numbers)
    rows = [
        [0.58] + [0.42 / 40] * 40,
        [0.62, 0.1] + [0.28 / 39] * 39,
        [0.51, 0.49] + [1e-9] * 39,
    ]
    for position, logits in enumerate(row(*np.log(probabilities)) for probabilities in rows):
        denoiser.guess(position, int(position == 2), logits)
    assert list(denoiser.take(3)) == [first]


def test_the_steps_are_enough() -> None:
    denoiser = Denoiser(Denoising(MASK, shifted=True, steps=4), lambda: 0.5)
    left, taken = list(range(5, 15)), []
    while left:
        for position in left:
            denoiser.guess(denoiser.row(position), 0, row(position, 0))
        found = denoiser.take(len(left))
        assert set(found) <= set(left)
        taken.append(len(found))
        left = [position for position in left if position not in found]
    assert taken == [3, 3, 2, 2]
