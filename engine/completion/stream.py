"""One request on its way through the engine: its sampler, its text, its events, its clock."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from gguf_serve.engine.completion.denoising import Denoiser
from gguf_serve.engine.completion.output import Output
from gguf_serve.engine.completion.pooling import Pool
from gguf_serve.engine.completion.reasoning import BudgetWatch
from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.forward.batch import TokenMask
from gguf_serve.engine.forward.runner import RowLogits
from gguf_serve.engine.grammar.guide import Guide
from gguf_serve.engine.request import (
    Delta,
    Drafts,
    Embedded,
    Embedding,
    Event,
    Failed,
    Finished,
    Mark,
    Progress,
    PromptScored,
    Request,
    Resume,
    Scoring,
    Sound,
    Started,
    Timings,
    TokenScore,
)
from gguf_serve.engine.sampling.sampler import Candidates, LogitNeeds, Sampled, Sampler, logprob
from gguf_serve.engine.scheduling.sequence import Sequence
from gguf_serve.engine.speculation.proposals import Proposals
from gguf_serve.engine.speech.speaker import FixedMask
from gguf_serve.engine.speech.voicing import Voicing

log = logging.getLogger(__name__)


class Pieces(Protocol):
    """What of a tokenizer gives a token's bytes."""

    def piece(self, id: int, special: bool = True) -> bytes: ...


Outbox = deque[tuple["Stream", Event]]


class Stream:
    """The engine's side of a request.

    Its events go to ``outbox``, from where the engine's thread gives them to ``hear``, and that
    to ``on_event``: at a time when the device has something to do meanwhile.
    """

    def __init__(
        self,
        seq: Sequence,
        sampler: Sampler,
        output: Output,
        tokenizer: Pieces,
        on_event: Callable[[Event], None],
        outbox: Outbox,
        guide: Guide | None = None,
        *,
        ranks_mean: bool = False,
        denoiser: Denoiser | None = None,
        proposals: Proposals | None = None,
        voicing: Voicing | None = None,
    ) -> None:
        """``ranks_mean``: what is wanted of the mean of its hidden states are a head's scores;
        ``denoiser``: of a diffusion model; ``proposals``: guesses of what follows, if any;
        ``voicing``: where it is spoken."""
        self.proposals, self.voicing = proposals, voicing
        self.ranks_mean, self.denoiser = ranks_mean, denoiser
        self.n_sent = seq.n_prompt  # tokens of the sequence that need not be sent any more
        self.seq, self._sampler, self._output = seq, sampler, output
        self._outbox = outbox
        self._guide = guide
        self._marks: deque[Mark] = deque()  # of the tokens that are not sent
        budget = seq.request.reasoning
        self._budget = None if budget is None else BudgetWatch(budget, tokenizer.piece)
        self._tokenizer, self._on_event = tokenizer, on_event
        wants = seq.request.wants
        self.pool = Pool(wants.pooling if isinstance(wants, Embedding) else "none", seq.n_prompt)
        self._n_top = wants.n_top if isinstance(wants, Scoring) else 0  # of the prompt's scores
        self._scores: list[TokenScore | None] = [None]
        self._made_at = time.perf_counter()
        self._started_at = self._first_at = self._last_at = 0.0
        self.ended = False
        self.has_new_line = False  # in the text so far
        self.deaf = False  # on_event has failed: nobody hears the rest

    @property
    def request(self) -> Request:
        return self.seq.request

    @property
    def ends_with_prompt(self) -> bool:
        return self.request.max_tokens == 0 or not self.request.goes_on

    @property
    def needs(self) -> LogitNeeds:
        return self._sampler.needs()

    @property
    def k(self) -> int:
        """How many of the likeliest tokens the next step is to find."""
        return max(1, self.needs.k, self.request.n_probs if self.scores else 0)

    @property
    def k_growth(self) -> int:
        """By how many ``k`` may grow with each token."""
        return int(self._sampler.needs_change)

    @property
    def prompt_k(self) -> int:
        """How many where the prompt is scored."""
        return max(self.k, self._n_top)

    @property
    def scores(self) -> bool:
        """Whether it asks for log-probabilities of what it samples."""
        return self.request.n_probs > 0 and not self.request.post_sampling_probs

    @property
    def mask(self) -> Guide | FixedMask | None:
        """What says which tokens may come next; None: any."""
        if self.voicing is not None:
            return self.voicing.mask
        return self._guide if self._guide is not None and self._guide.constrains else None

    def mask_after(self, n_guessed: int) -> TokenMask | None:
        """The mask after so many tokens of the guess that is in the step."""
        mask = self.mask
        return None if mask is None else mask.mask_after(n_guessed)

    def accept_guess(self) -> bool:
        """The next token of the guess that is in the step has come; whether the masks after it
        are those that the step had."""
        if self._guide is not None and not self._guide.goes_as_foreseen:
            return False
        if self.proposals is not None:
            self.proposals.accept()
        return True

    def resume(self, resume: Resume) -> None:
        """Go on where another engine was. RequestError where it cannot have been there."""
        try:
            for token in resume.tokens:
                self._accept(token)
                if self._budget is not None:
                    self._budget.accept(token)
            text = self._output.resume(resume.tokens, resume.n_characters)
        except ValueError as error:
            raise RequestError(f"resume: {error}") from None
        self.has_new_line = "\n" in text
        self._sampler.resume(resume.mark.n_draws, resume.mark.learned)
        if self._budget is not None:
            self._budget.resume(resume.mark.n_forced)

    def start(self) -> float:
        """The request has its slot; returns the seconds that it waited for it."""
        self._started_at = time.perf_counter()
        self._emit(Started(self.seq.n_prompt, self.seq.n_cached, self.seq.slot))
        self.progress(self.seq.n_cached)
        return self._started_at - self._made_at

    def progress(self, n_done: int) -> None:
        """Tell that so many tokens of the prompt are computed, if anybody wants to know."""
        if self.request.progress and n_done <= self.seq.n_prompt and not self.seq.n_generated:
            ms = 1e3 * (time.perf_counter() - self._started_at)
            self._emit(Progress(self.seq.n_prompt, self.seq.n_cached, n_done, ms))

    def end_reasoning(self) -> None:
        if self._budget is not None:
            self._budget.end()

    @property
    def is_overdue(self) -> bool:
        """Whether the request's time is up; what is written ends with its line."""
        spent = 1e3 * (self._last_at - self._first_at)
        return 0 < self.request.max_ms < spent and self.has_new_line

    def score_prompt(self, position: int, logits: RowLogits) -> None:
        """Note the score of the prompt's token after ``position``."""
        if position + 1 < self.seq.n_prompt:
            token = self.seq.tokens[position + 1]
            self._scores.append(self._score(token, logits.picked, logits, self._n_top))
        if len(self._scores) == self.seq.n_prompt and position >= self.seq.n_prompt - 2:
            self._emit_scores()

    def _emit_scores(self) -> None:
        if self._scores:
            self._emit(PromptScored(tuple(self._scores)))
            self._scores = []

    def embed(self, vectors: npt.NDArray[np.float32]) -> None:
        """Send the prompt's vectors, float32 [vectors, values], or its scores as one."""
        self._emit(Embedded(tuple(tuple(vector) for vector in vectors.tolist())))

    def sample(self, logits: RowLogits) -> int:
        """Choose the next token from its row of logits and send what it completes."""
        needs = self.needs
        candidates = self._candidates(needs, logits)
        n_probs = self.request.n_probs if self.request.post_sampling_probs else 0
        sampled = self._sampler.sample(candidates, n_probs=n_probs)
        if self._budget is not None:
            sampled = self._within_budget(sampled, self._budget)
        self._accept(sampled.token)
        if self.request.marks:
            n_forced = 0 if self._budget is None else self._budget.n_forced
            self._marks.append(Mark(self._sampler.n_draws, self._sampler.learned, n_forced))
        self._last_at = time.perf_counter()
        self._first_at = self._first_at or self._last_at
        score = self._sampled_score(sampled, logits) if self.request.n_probs else None
        delta = self._output.push(sampled.token, score)
        if delta is not None:
            self.has_new_line = self.has_new_line or "\n" in delta.text
            self._emit(self._marked(delta))
        return sampled.token

    def _accept(self, token: int) -> None:
        """A token has been chosen: for all that looks at the tokens so far."""
        self._sampler.accept(token)
        if self._guide is not None:
            self._guide.accept(token)
        if self.proposals is not None:
            self.proposals.note(token)

    def _marked(self, delta: Delta) -> Delta:
        """With where its last token leaves the completion, where that was asked for."""
        if not self._marks or not delta.tokens:
            return delta
        marks = [self._marks.popleft() for _ in delta.tokens]
        return replace(delta, mark=marks[-1])

    def utter(self, logits: RowLogits) -> None:
        """Choose the token that the next frame of its speech begins with."""
        assert self.voicing is not None
        self.voicing.token = token = self.draw(logits)
        self._accept(token)

    def send_sound(self, *, last: bool = False) -> None:
        """Send samples of what has been said, if it is time; ``last``: of all."""
        if self.voicing is not None and (pcm := self.voicing.samples(last=last)):
            self._emit(Sound(pcm))

    def draw(self, logits: RowLogits) -> int:
        """Choose a token for a mask; others may take its place."""
        self._last_at = time.perf_counter()
        self._first_at = self._first_at or self._last_at
        return self._sampler.sample(self._candidates(self.needs, logits)).token

    def send_unmasked(self) -> None:
        """Send the tokens before the first mask."""
        tokens = self.seq.tokens
        end = min(self.seq.masks, default=len(tokens))
        while self.n_sent < end and self.reason is None:
            delta = self._output.push(tokens[self.n_sent])
            self.n_sent += 1
            if delta is not None:
                self._emit(delta)

    def _within_budget(self, sampled: Sampled, budget: BudgetWatch) -> Sampled:
        """The token itself, or the one that ends the reasoning."""
        if budget.next is not None:
            sampled = sampled._replace(token=budget.next)
        budget.accept(sampled.token)
        return sampled

    @property
    def reason(self) -> Literal["eos", "word", "limit"] | None:
        """Why the text itself has ended, if it has."""
        return self._output.reason

    def _candidates(self, needs: LogitNeeds, logits: RowLogits) -> Candidates:
        if needs.full_row:
            return Candidates(row=logits.allowed_row())
        best = logits.allowed(needs.k)
        if not needs.ids:
            return Candidates(best.ids, best.logits)
        id_logits = logits.allowed_row()[needs.ids].tolist()
        return Candidates(best.ids, best.logits, id_logits=id_logits)

    def _sampled_score(self, sampled: Sampled, logits: RowLogits) -> TokenScore:
        piece = self._tokenizer.piece
        if self.request.post_sampling_probs:
            top = tuple((i, piece(i), p) for i, p in sampled.top)
            return TokenScore(sampled.token, piece(sampled.token), sampled.prob, top)
        found = logits.best(self.k)
        known = dict(zip(found.ids, found.logits, strict=True))
        raw = known[sampled.token] if sampled.token in known else float(logits.row()[sampled.token])
        return self._score(sampled.token, raw, logits, self.request.n_probs)

    def _score(self, token: int, logit: float, logits: RowLogits, n_top: int) -> TokenScore:
        lse, piece = logits.log_sum_exp, self._tokenizer.piece
        best = logits.best(n_top) if n_top else None
        pairs = zip(best.ids, best.logits, strict=True) if best else ()
        top = tuple((i, piece(i), logprob(v, lse)) for i, v in pairs)
        return TokenScore(token, piece(token), logprob(logit, lse), top)

    def finish(self, reason: Literal["eos", "limit", "word", "cancelled"], truncated: bool) -> None:
        """End the stream; idempotent. What was held back goes out first."""
        if self.ended:
            return
        delta = self._output.finish()
        if delta is not None and reason != "cancelled":
            self._emit(self._marked(delta))
        if reason != "cancelled":
            self.send_sound(last=True)
        self._end(Finished(reason, self.timings(), self._output.stopping_word, truncated))

    def fail(self, message: str, by_request: bool = False) -> None:
        if not self.ended:
            self._end(Failed(message, by_request))

    def _end(self, event: Event) -> None:
        self.ended = True
        self._emit(event)

    def _emit(self, event: Event) -> None:
        self._outbox.append((self, event))

    def hear(self, event: Event) -> None:
        """Hand an event over. A receiver's fault is its own: it must not end the others."""
        if self.deaf:
            return
        try:
            self._on_event(event)
        except Exception:
            log.exception("the receiver of a request's events has failed")
            self.deaf = True

    def timings(self) -> Timings:
        started = self._started_at or self._last_at
        first = self._first_at or time.perf_counter()
        return Timings(
            cache_n=self.seq.n_cached,
            prompt_n=self.seq.n_prompt - self.seq.n_cached,
            prompt_ms=(first - started) * 1e3 if started else 0.0,
            predicted_n=self.seq.n_generated - self.seq.n_resumed,
            predicted_ms=(self._last_at - self._first_at) * 1e3,
            drafts=Drafts() if self.proposals is None else self.proposals.counts.drafts,
        )
