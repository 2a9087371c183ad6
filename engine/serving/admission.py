"""From a request to the stream that the engine serves, or to the reason why it cannot be."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
import threading
from collections.abc import Callable, Iterable

from msgspec.structs import replace

from gguf_serve.engine.completion.denoising import Denoiser
from gguf_serve.engine.completion.output import output_of
from gguf_serve.engine.completion.stream import Outbox, Stream
from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.grammar.compile import Grammars
from gguf_serve.engine.grammar.guide import Guide
from gguf_serve.engine.options import AdapterState, ModelInfo
from gguf_serve.engine.recording.adapters import invoked, scales_of
from gguf_serve.engine.request import (
    Embedding,
    Event,
    Generation,
    Ranking,
    Request,
    Scoring,
    Speaking,
)
from gguf_serve.engine.sampling.infill import infill_step
from gguf_serve.engine.sampling.sampler import Sampler
from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.engine.scheduling.sequence import Sequence
from gguf_serve.engine.speculation.making import Drafting
from gguf_serve.engine.speculation.model_drafter import ByModel
from gguf_serve.engine.speech.speaker import Speaker
from gguf_serve.engine.speech.voicing import Voicing
from gguf_serve.engine.text.tokenizer import Tokenizer

MASKS = 128  # tokens that a diffusion model writes, where a request names no number


class Admission:
    """Checks requests and makes streams of them, in the threads of those who submit."""

    def __init__(
        self,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        info: ModelInfo,
        grammars: Grammars,
        outbox: Outbox,
        by_model: Callable[[], ByModel | None] = lambda: None,
        speaker: Speaker | None = None,
    ) -> None:
        """``by_model``: for each request, if a model guesses its tokens; ``speaker``: what speaks,
        if the model does."""
        self._speaker = speaker
        self.drafting = Drafting(info.speculation, tokenizer.eog_ids, by_model)
        self._scheduler, self._tokenizer, self._info = scheduler, tokenizer, info
        self._grammars, self._outbox = grammars, outbox
        self._ids = itertools.count()
        self._piece = tokenizer.piece  # one bound method: what samplers derive is cached by it
        self.encode_plain = functools.partial(
            tokenizer.encode, add_special=False, parse_special=False
        )
        self.adapters: tuple[AdapterState, ...] = info.adapters  # with their present scales
        self._n_places = len(info.adapters) + info.adapter_room.count
        self._adapter_ids = itertools.count(len(info.adapters))
        self._adapted: list[Sequence] = []  # those that have scales, and some that have ended
        self._choosing = threading.Lock()  # scales, while adapters come and go

    def set_adapters(self, scales: Iterable[tuple[int, float]]) -> None:
        """New scales by id, others become 0. RequestError for an id that no adapter has."""
        with self._choosing:
            found = scales_of(self.adapters, scales, self._n_places)
            self.adapters = tuple(replace(each, scale=found[each.place]) for each in self.adapters)

    def add_adapter(
        self, state: Callable[[int], AdapterState], replaces: int | None = None
    ) -> AdapterState:
        """One more, which is told its id. ``replaces``: that of one that goes at the same time."""
        with self._choosing:
            added = state(next(self._adapter_ids))
            kept = [each for each in self.adapters if each.id != replaces]
            self.adapters = (*kept, added)
            return added

    def remove_adapter(self, id: int) -> None:
        """Requests that have it keep it."""
        with self._choosing:
            self.adapters = tuple(each for each in self.adapters if each.id != id)

    def uses(self, place: int) -> bool:
        """Whether a request that has not ended has the adapter of a place."""
        with self._choosing:
            return any(seq.adapter_scales[place] for seq in self._still_adapted())

    def _still_adapted(self) -> list[Sequence]:
        self._adapted = [seq for seq in self._adapted if seq.state != "finished"]
        return self._adapted

    def admit(self, request: Request, on_event: Callable[[Event], None]) -> Stream:
        """Raises ContextOverflowError or RequestError for one that cannot be served."""
        self._check(request)
        ranks_mean = isinstance(request.wants, Ranking) and self._info.rank_pooling == "mean"
        if ranks_mean:
            request = replace(request, wants=Embedding("mean"))
        seq = self._sequence(request)
        try:
            return self._stream(seq, on_event, ranks_mean)
        except BaseException:
            seq.state = "finished"  # it never begins
            raise

    def _sequence(self, request: Request) -> Sequence:
        """With the adapters that it asks for, which stay while it is there."""
        with self._choosing:
            scales = scales_of(self.adapters, request.adapters, self._n_places)
            scales, starts = invoked(self.adapters, request.prompt, scales)
            named = tuple(
                (each.fingerprint, scales[each.place])
                for each in self.adapters
                if scales[each.place]
            )
            adapted = (named, starts) if named else None
            salt = (adapted, request.cache_salt) if adapted or request.cache_salt else None
            seq = Sequence.from_request(next(self._ids), request, salt)
            seq.adapters, seq.adapter_scales, seq.adapter_starts = named, scales, starts
            if named:
                self._still_adapted().append(seq)
        if self._info.start_token is not None:
            seq.encode_first(self._info.start_token)
        return seq

    def _stream(self, seq: Sequence, on_event: Callable[[Event], None], ranks_mean: bool) -> Stream:
        request, denoiser = seq.request, self._denoiser(seq)
        constraint = request.constraint
        guide = None if constraint is None else Guide(constraint, self._grammars)
        proposals = None
        if denoiser is None:
            proposals = self.drafting.proposals(request, guide, seq.salt)
        stream = Stream(
            seq, self._sampler(request), output_of(request, self._tokenizer), self._tokenizer,
            on_event, self._outbox, guide, ranks_mean=ranks_mean, denoiser=denoiser,
            proposals=proposals, voicing=self._voicing(request),
        )  # fmt: skip
        if request.resume is not None:
            self._scheduler.resume(seq, request.resume.tokens)
            stream.resume(request.resume)
        return stream

    def _voicing(self, request: Request) -> Voicing | None:
        if self._speaker is None or not isinstance(request.wants, Speaking):
            return None
        return Voicing(self._speaker, self._speaker.begin(request))

    def _denoiser(self, seq: Sequence) -> Denoiser | None:
        """Where a diffusion model is to write: with masks after the prompt."""
        how, request = self._info.denoising, seq.request
        if how is None or not request.has_text or request.max_tokens == 0:
            return None
        room = min(self._scheduler.max_tokens, self._scheduler.n_ctx) - seq.n_prompt
        if room < 1:
            raise RequestError(
                f"after {seq.n_prompt} tokens of prompt there is no room for text: this model "
                f"processes both at once, {room + seq.n_prompt} tokens at most (--ubatch-size and "
                "--batch-size)"
            )
        wanted = request.max_tokens if request.max_tokens > 0 else MASKS
        seq.masks = list(range(seq.n_prompt, seq.n_prompt + min(wanted, room)))
        seq.tokens += [how.mask] * len(seq.masks)
        return Denoiser(how, random.Random(request.sampling.seed).random)

    def _check(self, request: Request) -> None:
        self._scheduler.check(request)
        if request.has_text and self._info.is_encoder:
            raise RequestError("this model is an encoder: it has embeddings, not completions")
        if isinstance(request.wants, Speaking) and self._speaker is None:
            raise RequestError("this model does not speak (its projector makes no sounds)")
        if self._info.denoising is not None:
            self._check_denoising(request)
        if isinstance(request.wants, Scoring) and self._info.start_token is not None:
            raise RequestError(
                "this model's encoder reads the prompt: its tokens have no log-probabilities"
            )
        if isinstance(request.wants, Ranking) and not self._info.ranks:
            raise RequestError("this model has no head for ranking: it cannot rerank")
        if request.constraint is not None:
            for name, given in (
                ("ignore_eos", request.sampling.ignore_eos),
                ("min_tokens", request.rules.min_tokens > 0),
            ):
                if given:
                    raise RequestError(f"{name} cannot go with a grammar, which ends the text")
        if request.media and isinstance(request.wants, Scoring | Ranking):
            raise RequestError("images and sounds have no log-probabilities and no ranks")
        n_vocab, tokens = self._info.n_vocab, request.text_tokens
        if request.resume is not None:
            if not isinstance(request.wants, Generation) or self._info.denoising is not None:
                raise RequestError("resume: only generated text, token after token, can go on")
            tokens += request.resume.tokens
        for token in (min(tokens, default=0), max(tokens, default=0)):
            if not 0 <= token < n_vocab:
                raise RequestError(f"token {token} is not in the vocabulary of {n_vocab}")

    def _check_denoising(self, request: Request) -> None:
        refused = {
            "a grammar": request.constraint is not None,
            "log-probabilities": request.n_probs > 0 or isinstance(request.wants, Scoring),
        }
        for what, asked in refused.items():
            if asked:
                raise RequestError(f"{what} cannot be had of a diffusion model's text")

    def _sampler(self, request: Request) -> Sampler:
        sampling, how = request.sampling, self._info.denoising
        if how is not None:  # a mask becomes no mask
            bias = (*sampling.logit_bias, (how.mask, -math.inf))
            sampling = dataclasses.replace(sampling, logit_bias=bias)
        return Sampler(
            sampling, n_vocab=self._info.n_vocab, eog_ids=self._tokenizer.eog_ids,
            n_ctx=self._scheduler.n_ctx, prompt=request.text_tokens,
            encode=self.encode_plain, pieces=self._piece,
            infill=infill_step(request, self._tokenizer), rules=request.rules,
        )  # fmt: skip
