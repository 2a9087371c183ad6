"""Which tokens of a sequence the next step computes, and which of them yield something."""

from __future__ import annotations

from gguf_serve.engine.request import Embedding, Scoring
from gguf_serve.engine.scheduling.sequence import Chunk, Sequence

SCORES_OF_STEP = 2**14  # of prompts: to look them up takes the host 10 milliseconds


def next_chunk(
    seq: Sequence, n_tokens: int, n_outputs: int, most: int, mark: int | None, *, whole_prompt: bool
) -> Chunk:
    """The next tokens of a sequence, so many and with so many logits rows at most; of count 0 if a
    step with room for no more can have none of them.

    Tokens of an image that see each other go together, if need be up to ``most``. ``mark``: the
    position at which a checkpoint is to be made, where the chunk ends. ``whole_prompt``: a prompt
    is one chunk or none.
    """
    start = seq.n_computed
    pending = len(seq.tokens) - start
    if seq.encodes:
        count = seq.n_encoder if seq.n_encoder <= n_tokens else 0
        embeds = isinstance(seq.request.wants, Embedding)
        return Chunk(seq, 0, count, "hidden" if embeds else "none")
    count = min(pending, n_tokens, pending if mark is None else mark - start)
    if seq.request.media:
        count = seq.whole_media(start, count, most)
        if not count:
            return Chunk(seq, start, 0, "none")
    wants = seq.request.wants
    if isinstance(wants, Scoring) and seq.n_scored < seq.n_prompt:
        if start < seq.n_scored:  # computed again after a pause
            return Chunk(seq, start, min(count, seq.n_scored - start), "none")
        n_scored = max(SCORES_OF_STEP // (1 + wants.n_top), 1)
        return Chunk(seq, start, min(count, n_outputs, n_scored), "all")
    if whole_prompt and count < pending:  # not in this forward
        return Chunk(seq, start, 0, "none")
    if isinstance(wants, Embedding):
        return Chunk(seq, start, count, "hidden")
    if seq.masks:
        masks = tuple(seq.masks[:n_outputs])
        return Chunk(seq, start, count if masks else 0, "masks", masks)
    if count < pending or (seq.request.max_tokens == 0 and seq.request.has_text):
        return Chunk(seq, start, count, "none")
    if n_outputs < 1:
        return Chunk(seq, start, 0 if whole_prompt else count - 1, "none")
    return Chunk(seq, start, count, "last")
