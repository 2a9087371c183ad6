"""What a step has computed, to the requests that asked for it: tokens, scores, hidden states."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.completion.denoising import Denoiser
from gguf_serve.engine.completion.finite import check_finite, not_finite
from gguf_serve.engine.completion.stream import Stream
from gguf_serve.engine.forward.batch import OutputRow
from gguf_serve.engine.forward.runner import RowLogits, Runner
from gguf_serve.engine.layers.rank import softmax
from gguf_serve.engine.options import ModelInfo
from gguf_serve.engine.request import Ranking
from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.engine.scheduling.sequence import Chunk
from gguf_serve.engine.serving.streams import Streams
from gguf_serve.engine.speech.voicing import Voicing, stand_in
from gguf_serve.engine.stats import Counters

Floats = npt.NDArray[np.float32]


class Delivery:
    """Says which rows a step is to compute, and takes what came of them to their streams."""

    def __init__(
        self,
        streams: Streams,
        scheduler: Scheduler,
        runner: Runner,
        counters: Counters,
        info: ModelInfo,
    ) -> None:
        self._streams, self._scheduler, self._runner = streams, scheduler, runner
        self._counters, self._info = counters, info

    def embed(self, chunks: Iterable[Chunk]) -> None:
        """Hand out the hidden states of a step to those who asked for them."""
        at = 0  # of the chunk's first token in the step
        for chunk in chunks:
            stream = self._streams.get(chunk.seq.id)
            if stream and chunk.outputs == "hidden":
                wanted = stream.pool.wants(chunk.start, chunk.count)
                first = at - chunk.start
                states = self._runner.hidden(range(wanted.start + first, wanted.stop + first))
                self._streams.attempt(
                    stream, self._take_states, stream, chunk, wanted.start, states
                )
            at += chunk.count

    def _take_states(self, stream: Stream, chunk: Chunk, start: int, states: Floats) -> None:
        check_finite(states, "the hidden states", stream.seq, self._runner)
        stream.pool.add(start, states)
        if chunk.is_final:
            if stream.ranks_mean:
                self._rank(stream, self._runner.rank(stream.pool.vectors[0]))
            else:
                stream.embed(stream.pool.vectors)

    def _rank(self, stream: Stream, scores: Floats) -> None:
        check_finite(scores, "the scores", stream.seq, self._runner)
        stream.embed((softmax(scores) if self._info.rank_softmax else scores)[None])

    def speak(self, chunks: Iterable[Chunk]) -> None:
        """Have what a step has sampled become frames of speech, of its last hidden states."""
        at = 0  # of the chunk's end in the step
        for chunk in chunks:
            at += chunk.count
            stream = self._streams.get(chunk.seq.id)
            if stream and stream.voicing is not None and stream.voicing.token is not None:
                state = self._runner.hidden(range(at - 1, at))[0]
                self._streams.attempt(stream, self._speak, stream, stream.voicing, state)

    def _speak(self, stream: Stream, voicing: Voicing, state: Floats) -> None:
        seq = stream.seq
        frame = voicing.next(state)
        if frame is None:
            self._streams.end(stream, "eos")
            return
        seq.spoken[len(seq.tokens)] = frame.embedding[None]
        self._scheduler.append(seq, stand_in(frame))
        if seq.n_generated == 1:
            self._counters.note_prompt(stream.timings())
        stream.send_sound()
        self.end_if_due(stream)

    def end_prompts(self, chunks: Iterable[Chunk]) -> None:
        """End the requests that want nothing beyond their prompts, where these are computed."""
        for chunk in chunks:
            stream = self._streams.get(chunk.seq.id)
            if stream and chunk.is_final and stream.ends_with_prompt:
                self._counters.note_prompt(stream.timings())
                self._streams.end(stream, "limit")

    def rows(self, chunk: Chunk) -> list[OutputRow]:
        """The rows of logits that a chunk asks for."""
        seq, end = chunk.seq, chunk.start + chunk.count
        stream = self._streams[seq.id]
        n_vocab = self._info.n_vocab
        if chunk.outputs in ("none", "hidden"):
            return []
        if isinstance(seq.request.wants, Ranking):
            at = chunk.start if self._info.rank_pooling == "cls" else end - 1
            return [OutputRow(chunk, at, 1)]
        if chunk.outputs == "last":
            return [
                OutputRow(
                    chunk, position, min(stream.k + stream.k_growth * i, n_vocab),
                    mask=stream.mask_after(i), scored=stream.scores,
                )
                for i, position in enumerate(range(chunk.end - 1, end))
            ]  # fmt: skip
        if chunk.outputs == "masks" and (denoiser := stream.denoiser) is not None:
            k = min(max(stream.k, denoiser.k), n_vocab)
            return [OutputRow(chunk, denoiser.row(at), k, scored=True) for at in chunk.masks]
        k = stream.prompt_k
        picks = [*seq.tokens[chunk.start + 1 : end + 1], 0][: chunk.count]
        masks = [None] * (len(seq.tokens) - 1 - chunk.start) + [stream.mask]  # only the next
        return [
            OutputRow(chunk, chunk.start + i, min(k, n_vocab), pick, mask, scored=True)
            for i, (pick, mask) in enumerate(zip(picks, masks, strict=False))
        ]

    def deliver(self, row: OutputRow, logits: RowLogits) -> None:
        """Hand a row to its request, if that still runs."""
        stream = self._streams.get(row.chunk.seq.id)  # None: an earlier row has ended it
        if stream is None or stream.seq.state != "running":
            return
        if not row.n_drafted or self._accept(stream, row, logits):
            self._streams.attempt(stream, self._deliver, stream, row, logits)

    def _accept(self, stream: Stream, row: OutputRow, logits: RowLogits) -> bool:
        """Whether the tokens before a row are what a draft has guessed, so that it holds.

        One that is not finite, or whose mask is another by now, is computed anew in the next step.
        """
        seq, guessed = stream.seq, row.chunk.draft[row.n_drafted - 1]
        if row.position + 1 != len(seq.tokens) or seq.tokens[-1] != guessed:
            return False
        if logits.waits or logits.broken or not stream.accept_guess():
            return False
        self._scheduler.accept(seq)
        return True

    def _denoise(
        self, stream: Stream, denoiser: Denoiser, row: OutputRow, logits: RowLogits
    ) -> None:
        """Guess a token for a mask; after the last one, keep the best of the step."""
        seq = stream.seq
        denoiser.guess(row.position, stream.draw(logits), logits)
        if row.position != denoiser.row(row.chunk.masks[-1]):
            return
        self._scheduler.unmask(seq, denoiser.take(len(seq.masks)))
        if denoiser.n_steps == 1:
            self._counters.note_prompt(stream.timings())
        stream.send_unmasked()
        if stream.reason is None and seq.masks and not stream.deaf:
            return
        self._scheduler.cut(seq, stream.n_sent)
        self._streams.end(stream, "cancelled" if stream.deaf else stream.reason or "limit")

    def _deliver(self, stream: Stream, row: OutputRow, logits: RowLogits) -> None:
        """Score the prompt's next token, or sample the sequence's next one."""
        seq = stream.seq
        if isinstance(seq.request.wants, Ranking):
            self._rank(stream, logits.scores())
            return
        if logits.broken:
            raise not_finite("the logits", seq, self._runner)
        if stream.denoiser is not None:
            self._denoise(stream, stream.denoiser, row, logits)
            return
        if row.chunk.outputs == "all":
            stream.score_prompt(row.position, logits)
        if row.position + 1 < len(seq.tokens) or seq.request.max_tokens == 0:
            return
        if stream.voicing is not None:
            stream.utter(logits)
            return
        self._scheduler.append(seq, stream.sample(logits))
        if seq.n_generated == seq.n_resumed + 1:
            self._counters.note_prompt(stream.timings())
        if not self.end_if_due(stream) and self._scheduler.is_full(seq):
            self._scheduler.shift(seq)

    def end_if_due(self, stream: Stream) -> bool:
        """End a text whose last token is there; whether it was."""
        seq = stream.seq
        if stream.deaf:
            self._streams.end(stream, "cancelled")
        elif stream.reason is not None:
            self._streams.end(stream, stream.reason)
        elif self._scheduler.is_full(seq) and not self._scheduler.shifts(seq):
            self._streams.end(stream, "limit", truncated=True)
        elif 0 <= seq.request.max_tokens <= seq.n_generated or stream.is_overdue:
            self._streams.end(stream, "limit")
        else:
            return False
        return True
