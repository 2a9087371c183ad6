"""What a model that speaks has beside its decoder.

The decoder's prompt is a text, and mostly a voice before it. Each step's hidden state becomes a
frame of sound, as numbers that a vocoder understands (``features``), and the embedding of that
frame is what the decoder reads in its next step. The vocoder makes samples of many frames at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gguf_serve.engine.request import Request
from gguf_serve.engine.text.tokenizer import Tokenizer

if TYPE_CHECKING:  # brings what reads images
    from gguf_serve.engine.encoders.encoder import Embeddings

Floats = npt.NDArray[np.float32]
Features = npt.NDArray[np.int32] | Floats  # of a frame: codes, or a point of a latent space


class Frame(Struct, frozen=True):
    """A frame of sound: what the vocoder is given of it, and what the decoder reads next, float32
    [n_embd]."""

    features: Features
    embedding: Floats


class FixedMask:
    """A TokenMask of tokens that are known from the start."""

    is_ready = True

    def __init__(self, allowed: Iterable[int], n_vocab: int) -> None:
        bits = np.zeros(-(-n_vocab // 32) * 32, np.uint8)
        bits[list(allowed)] = 1
        self._words = np.packbits(bits, bitorder="little").view(np.int32)

    def begin(self, when_done: Callable[[], None] | None = None) -> None:
        """There is nothing to find out."""

    def mask_after(self, n_guessed: int) -> FixedMask:
        """They are the same wherever they may come."""
        return self

    def fill(self, words: npt.NDArray[np.int32], until: float | None = None) -> bool:
        words[:] = self._words
        return True


class Utterance(Protocol):
    """The frames of one request, from first to last. Lives in the engine's thread."""

    def next(self, state: Floats, token: int) -> Frame | None:
        """The frame of a step with this hidden state, float32 [n_embd], and this sampled token;
        None: nothing is left to be said."""
        ...


class Speaker(Protocol):
    """The weights beside the decoder. Lives in the engine's thread.

    ``width``: of the decoder's states; ``rate``: samples a second; ``frame``: samples of a frame;
    ``reach``: how many frames before a frame the vocoder has to be given for that frame's samples
    to be what they would be in the whole speech; ``mask``: the tokens that a frame begins with, or
    that end the speech; None: any.
    """

    width: int
    rate: int
    frame: int
    reach: int
    mask: FixedMask | None

    def warm_up(self) -> None:
        """Record, and so load and compile, what the first request needs."""
        ...

    def join(self, tokenizer: Tokenizer, embeddings: Embeddings) -> None:
        """The model that it speaks for: its tokens, and their embeddings."""
        ...

    def begin(self, request: Request) -> Utterance:
        """Begin to speak a request, which wants ``Speaking``."""
        ...

    def sound(self, features: Sequence[Features], n_before: int) -> Floats:
        """Samples float32 in -1 to 1 of consecutive frames, without those of the first
        ``n_before``, which only come before the others (none: the speech begins)."""
        ...


def generator(request: Request) -> np.random.Generator:
    """The random numbers of a request, by its seed if it has one."""
    seed = request.sampling.seed
    return np.random.default_rng(seed if seed >= 0 else None)


class Speech(Protocol):
    """How texts become requests that speak. For any thread.

    ``rate``: samples a second; ``languages``: names that can be asked for, empty: the model has its
    own; ``needs_voice``: whether there is no speech without a voice.
    """

    rate: int
    languages: tuple[str, ...]
    needs_voice: bool

    def requests(
        self, text: str, *, voice: bytes | None = None, language: str = ""
    ) -> tuple[Request, ...]:
        """What is to be submitted to have a text spoken, one after the other; ``msgspec``'s
        ``replace`` gives them sampling parameters. ``voice``: a file with a sound of who is to
        speak. RequestError names a text, a voice or a language that cannot be."""
        ...
