"""Which tokens a step takes of a sequence; what becomes of them is in test_scheduler*.py."""

from __future__ import annotations

from typing import Any

import pytest

from gguf_serve.engine.request import Embedding, Request, Scoring
from gguf_serve.engine.scheduling.chunks import SCORES_OF_STEP, next_chunk
from gguf_serve.engine.scheduling.sequence import Chunk, Sequence


def chunk_of(
    n_prompt: int = 10, n_tokens: int = 32, n_outputs: int = 4, mark: int | None = None,
    whole_prompt: bool = False, **fields: Any,
) -> Chunk:  # fmt: skip
    seq = Sequence.from_request(0, Request(tuple(range(n_prompt)), **fields))
    return next_chunk(seq, n_tokens, n_outputs, 1, mark, whole_prompt=whole_prompt)


@pytest.mark.parametrize(
    ("given", "count", "outputs"),
    [
        ({}, 10, "last"),
        ({"n_tokens": 4}, 4, "none"),  # its last token is not in it
        ({"mark": 8}, 8, "none"),
        ({"n_outputs": 0}, 9, "none"),  # the last one waits for a row of logits
        ({"n_outputs": 0, "whole_prompt": True}, 0, "none"),
        ({"n_tokens": 4, "whole_prompt": True}, 0, "none"),
        ({"max_tokens": 0}, 10, "none"),
        ({"wants": Embedding("mean")}, 10, "hidden"),
        ({"wants": Scoring(1)}, 4, "all"),
        ({"wants": Scoring(SCORES_OF_STEP)}, 1, "all"),
    ],
)
def test_of_a_prompt(given: dict[str, Any], count: int, outputs: str) -> None:
    chunk = chunk_of(**given)
    assert (chunk.start, chunk.count, chunk.outputs) == (0, count, outputs)
