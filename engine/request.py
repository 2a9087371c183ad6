"""What goes into the engine and what comes out of it: a Request and a stream of Events.

Plain frozen data. Every event of a request is delivered in order, from the engine's
thread, to the ``on_event`` callable given to ``Engine.submit``; the last one is always a
``Finished`` or a ``Failed``, and exactly one of them.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

from gguf_serve.engine.grammar.constraint import Constraint
from gguf_serve.engine.media.span import MediaSpan
from gguf_serve.engine.sampling_params import NO_RULES, SamplingParams, TokenRules

Pooling = Literal["none", "mean", "cls", "last", "rank"]


Order = Literal["confidence", "margin", "entropy", "random"]


class Denoising(Struct, frozen=True):
    """How a diffusion model writes: masks after the prompt become tokens in ``steps`` forwards, in
    each those that ``order`` puts first. ``shifted``: what a token becomes is read at the one
    before it."""

    mask: int
    shifted: bool = True
    steps: int = 128
    order: Order = "confidence"


class Grid(Struct, frozen=True):
    """Tokens of an image or a video from ``start`` on: frames, in these rows, in these columns.

    With M-RoPE they take fewer positions than they are tokens (positions.py), but not with
    ``marks``: those are a token before all, one at the end of each row and one after all, and the
    image has a ``number`` among the prompt's (HunyuanVL).
    """

    start: int
    rows: int
    columns: int
    frames: int = 1
    marks: bool = False
    number: int = 0

    @property
    def end(self) -> int:
        if self.marks:
            return self.start + self.rows * (self.columns + 1) + 2
        return self.start + self.frames * self.rows * self.columns

    @property
    def n_positions(self) -> int:
        """What text goes on after."""
        if self.marks:
            return self.end - self.start
        return max(self.frames, self.rows, self.columns)


class ReasoningBudget(Struct, frozen=True):
    """``n_tokens`` of reasoning, -1 for no limit until somebody ends it.

    ``forced`` is what is written when they are used up: a message, if any, and an end tag.
    """

    start: str
    ends: tuple[str, ...]
    forced: tuple[int, ...]
    n_tokens: int = -1
    is_open: bool = False  # the prompt has opened it


class DraftLimits(Struct, frozen=True):
    """What may be guessed for a step: so many tokens (-1: as the engine likes), and those only
    where it is at least so many, each right with at least such a chance."""

    most: int = -1
    least: int = 0
    chance: float = 0.0


class Generation(Struct, frozen=True):
    """Text that follows the prompt: ``Delta`` events."""


class Scoring(Struct, frozen=True):
    """Log-probabilities of the prompt's tokens, with the ``n_top`` likeliest in each place, as one
    ``PromptScored``; then text as well."""

    n_top: int = 0


class Embedding(Struct, frozen=True):
    """The prompt's vectors, as one ``Embedded``: of each token, or one made of them."""

    pooling: Literal["none", "mean", "cls", "last"]


class Ranking(Struct, frozen=True):
    """Scores of the prompt by the model's head, as one ``Embedded``."""


class Speaking(Struct, frozen=True):
    """The prompt spoken: ``Sound`` events, and no text. ``n_text``: how many of the prompt's tokens
    are spoken, where the model wants to know."""

    n_text: int = 0


Wanted = Generation | Scoring | Embedding | Ranking | Speaking


class Mark(Struct, frozen=True):
    """Where a completion stands after a token, beside what its tokens tell."""

    n_draws: int = 0  # random numbers drawn so far
    learned: tuple[float, ...] = ()  # by samplers with a feedback
    n_forced: int = 0  # tokens that must come next, to close the reasoning


class Resume(Struct, frozen=True):
    """A completion that another engine has begun: what of it has been delivered.

    The same model computes the prompt and ``tokens``, as many as came with ``Delta`` events, and
    goes on after ``mark``, that of the last of them; their text had ``n_characters``.
    """

    tokens: tuple[int, ...]
    n_characters: int
    mark: Mark


def vectors_by(pooling: Pooling) -> Embedding | Ranking:
    """What is wanted where a file or an option names a pooling."""
    return Ranking() if pooling == "rank" else Embedding(pooling)


class Request(Struct, frozen=True):
    """A prompt of token ids and what is wanted of it.

    How text goes on (``max_tokens``, samplers, stop strings) does not matter where none is wanted.
    Engine.submit refuses what the model cannot do: vectors come from every one, scores of a head
    from those with ``ModelInfo.ranks``, text from those without ``ModelInfo.is_encoder``.
    """

    prompt: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int = -1  # -1: until the end of generation or of the context; 0: prompt only
    stop: tuple[str, ...] = ()
    includes_stop: bool = False  # the string or token that ends the text is part of it
    rules: TokenRules = NO_RULES
    n_probs: int = 0  # > 0: log-probabilities of the chosen and of the n likeliest tokens
    post_sampling_probs: bool = False  # probabilities after the samplers, not of raw logits
    cache_prompt: bool = True
    cache_salt: str = ""  # requests with different ones share no cached prefix
    constraint: Constraint | None = None  # what the text must match
    special: bool = False  # render special tokens as text
    shown: frozenset[int] = frozenset()  # special tokens to render as text in any case
    reasoning: ReasoningBudget | None = None
    progress: bool = False  # Progress events while the prompt is computed
    max_ms: int = 0  # > 0: generation ends so long after its first token, at a new line
    min_indent: int = 0  # > 0: it ends before a line that is indented less
    n_keep: int = 0  # tokens that stay when a full context shifts, beside BOS; -1: the prompt
    n_discard: int = 0  # tokens that are dropped then; 0: half of the rest
    media: tuple[MediaSpan, ...] = ()  # in order: where the prompt's ids are negative
    adapters: tuple[tuple[int, float], ...] | None = None  # scales by id; None: the engine's
    grids: tuple[Grid, ...] = ()  # for M-RoPE; empty: those of the images in ``media``
    client: str = ""  # who asks: clients get slots in turn
    priority: int = 0  # above 0: waits while others do; below: first of its client's own
    session: str = ""  # what a client calls its conversation: an engine of several that it goes to
    batch: int = 0  # a number for requests of a client that were made together, one turn of it
    wants: Wanted = field(default_factory=Generation)
    prediction: tuple[int, ...] = ()  # tokens that the client expects to be generated
    drafts: DraftLimits = field(default_factory=DraftLimits)
    marks: bool = False  # each Delta says where it stands, so that the rest can be had elsewhere
    resume: Resume | None = None
    id_slot: int = -1  # -1: any slot; llama-server's meaning otherwise (modulo, waits if busy)

    @property
    def has_text(self) -> bool:
        """Whether text may follow the prompt."""
        return isinstance(self.wants, Generation | Scoring)

    @property
    def goes_on(self) -> bool:
        """Whether tokens may follow the prompt, of text or of speech."""
        return self.has_text or isinstance(self.wants, Speaking)

    @property
    def text_tokens(self) -> tuple[int, ...]:
        """The prompt's tokens of text, without the places of images and sounds."""
        if not self.media:
            return self.prompt
        ids, at = list[int](), 0
        for span in self.media:
            ids += self.prompt[at : span.start]
            at = span.end
        return (*ids, *self.prompt[at:])


class TokenScore(Struct, frozen=True):
    """A token with its log-probability (or probability, with post_sampling_probs)."""

    id: int
    piece: bytes  # the token's own bytes, possibly an incomplete UTF-8 sequence
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()  # likeliest first: (id, piece, logprob)


class Started(Struct, frozen=True):
    """The prompt has a slot; its processing begins. HTTP headers may go out."""

    n_prompt: int
    n_cached: int  # tokens of the prompt whose KV came from the prefix cache
    id_slot: int


class Progress(Struct, frozen=True):
    """How far the prompt is; ``n_done`` counts cached tokens, too."""

    n_prompt: int
    n_cached: int
    n_done: int
    ms: float


class PromptScored(Struct, frozen=True):
    """Scores of the whole prompt; the first token has none, hence None."""

    scores: tuple[TokenScore | None, ...]


class Embedded(Struct, frozen=True):
    """What the model makes of the prompt, not normalized (engine.completion.pooling.normalized).

    One vector of ``ModelInfo.n_embd`` values, or with the pooling "none" one for each token;
    with "rank" one vector of scores, a score for each of ``ModelInfo.labels`` (of a reranker
    mostly one, or as Qwen3's the probabilities of yes and no: the first is the relevance).
    """

    vectors: tuple[tuple[float, ...], ...]


class Delta(Struct, frozen=True):
    """A piece of the completion: text is whole UTF-8 and free of stop strings.

    ``text`` may be empty (held back as a possible stop string or half a character) and
    then comes with a later delta; ``tokens`` are those generated since the last delta.
    ``scores`` parallels ``tokens`` if the request asked for n_probs, else it is empty; ``mark``
    is that of the last of ``tokens``, where the request asked for marks.
    """

    text: str
    tokens: tuple[int, ...]
    scores: tuple[TokenScore, ...] = ()
    mark: Mark | None = None


class Sound(Struct, frozen=True):
    """What follows of the speech: samples of one channel, 16 bits each, little-endian, as many a
    second as ``Speech.rate`` says."""

    pcm: bytes


class Drafts(Struct, frozen=True):
    """How often something was guessed, its tokens, and those that were right; of these the tokens
    of the request's ``prediction``."""

    n: int = 0
    n_tokens: int = 0
    n_accepted: int = 0
    n_predicted: int = 0
    n_predicted_accepted: int = 0


class Timings(Struct, frozen=True):
    """Counts and milliseconds, as llama-server's ``timings`` object needs them.

    Of a completion that was begun elsewhere, those of this part of it.
    """

    cache_n: int = 0
    prompt_n: int = 0  # tokens processed, cached ones not counted
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0  # from the first token to the last
    drafts: Drafts = field(default_factory=Drafts)


class Finished(Struct, frozen=True):
    """The end of a completion."""

    reason: Literal["eos", "limit", "word", "cancelled"]
    timings: Timings
    stopping_word: str = ""
    truncated: bool = False  # the context was full before max_tokens, or it has shifted


class Failed(Struct, frozen=True):
    """The end of a request by a fault of the engine, or of its own: then no other ends."""

    message: str
    by_request: bool = False


Event = Started | Progress | PromptScored | Embedded | Delta | Sound | Finished | Failed
