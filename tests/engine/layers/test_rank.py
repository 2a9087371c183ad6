"""Ranking heads and pooled vectors of small encoders against llama.cpp's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from queue import Queue

import numpy as np
import pytest
from conformance_data import arrays

from gguf_serve.engine.engine import load_engine
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Embedded, Event, Request, Started, vectors_by

GELU_NMSE = 1e-6


@pytest.mark.parametrize(
    "name",
    [
        "qwen3-rank",
        "bert-rank",
        "jina-bert-v2-rank",
        "modern-bert-rank",
        "modern-bert-swiglu",
        "neo-bert-cls",
        "llama-embed",
        "eurobert",
    ],
)
def test_what_a_prompt_is_pooled_to(name: str, conformance_model: Callable[[str], Path]) -> None:
    """By a head where the file says so, of the first token or of the mean of all; in prompts that
    share their steps with others, too."""
    expected = arrays(name)
    tokens = tuple(expected["tokens"].tolist())
    engine = load_engine(conformance_model(name), EngineOptions())
    try:
        events: Queue[Event] = Queue()
        for prompt in (tokens[:9], tokens, tokens[3:40]):
            request = Request(prompt, wants=vectors_by(engine.info.pooling))
            engine.submit(request, events.put if prompt == tokens else lambda event: None)
        while not isinstance(event := events.get(timeout=120), Embedded):
            assert isinstance(event, Started), event
        (found,) = np.array(event.vectors)
    finally:
        engine.close()
    error = ((found - expected["pooled"]) ** 2).sum() / (expected["pooled"] ** 2).sum()
    assert error <= GELU_NMSE
