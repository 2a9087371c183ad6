"""Pocket TTS (https://arxiv.org/abs/2509.06926): the model's state of each step becomes a point of
a latent space, by a flow that begins at noise; Mimi's decoder makes samples of such points.

What the step reads next is the point again, as an embedding. A score of the state says where the
speech ends, and some frames more are made for it to fade.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from gguf_serve.engine.encoders.encoder import Embeddings
from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.encoders.weights import EncoderWeights
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.media.mel import MIMI_FRAME, SPEECH_RATE
from gguf_serve.engine.recording.step import DECODE_TILES
from gguf_serve.engine.request import Request, Speaking
from gguf_serve.engine.speech import pocket_graphs as graphs
from gguf_serve.engine.speech.speaker import Features, FixedMask, Floats, Frame, generator
from gguf_serve.engine.speech.vocoder import Vocoder
from gguf_serve.engine.speech.voicing import FIRST
from gguf_serve.engine.text.tokenizer import Tokenizer
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs

END = -4.0  # the least score of a state that ends the speech
FRAMES_A_SECOND = SPEECH_RATE / MIMI_FRAME
TOKENS_A_SECOND, MORE_SECONDS = 3, 2  # of what a text may take
FEW_TOKENS, AFTER_FEW, AFTER_MORE = 6, 5, 3  # frames after the end of a short text, and of others


class Variant(Struct, frozen=True):
    """What the published configuration of a model says, and its weights do not. ``n_after``: frames
    after the end, 0: by the length of the text; ``pads``: spaces are put before short texts."""

    temperature: float = 0.7
    n_after: int = 0
    pads: bool = False


VARIANTS = {
    "english": Variant(0.3),
    "english_2026-01": Variant(pads=True),
    "english_2026-04": Variant(0.3),
    "french_24l": Variant(n_after=8),
}


def variant_of(name: str) -> Variant:
    """The variant that a projector file names."""
    return VARIANTS.get(name, Variant())


class PocketUtterance:
    """An Utterance."""

    def __init__(self, flow: Flow, variant: Variant, request: Request) -> None:
        assert isinstance(request.wants, Speaking)
        n_text = request.wants.n_text
        self._flow = flow
        self._deviation = math.sqrt(request.sampling.temperature)
        self._random = generator(request)
        self._n_after = variant.n_after or (AFTER_FEW if n_text <= FEW_TOKENS else AFTER_MORE)
        self._n_left = math.ceil((n_text / TOKENS_A_SECOND + MORE_SECONDS) * FRAMES_A_SECOND)
        self._ends = False

    def next(self, state: Floats, token: int) -> Frame | None:
        latent, embedding, score = self._flow.step(state, self.noise())
        if score > END and not self._ends:
            self._ends, self._n_left = True, min(self._n_left, self._n_after)
        self._n_left -= 1
        return Frame(latent, embedding) if self._n_left >= 0 else None

    def noise(self) -> Floats:
        """What the next flow begins with."""
        drawn = self._random.standard_normal(self._flow.n_latent, np.float32)
        return drawn * np.float32(self._deviation)


class Flow:
    """From states to points of the latent space."""

    def __init__(self, weights: EncoderWeights, device: Device, programs: Programs) -> None:
        self.n_latent, self.width = weights.shape("a.gen.input_linear.weight")
        times = Graph(weights, device, programs)
        times.finish(graphs.times(times))
        self._graph = Graph(weights, device, programs)
        moment = graphs.mean_time(weights, times.run([]))
        made = graphs.flow(self._graph, self.n_latent, self.width, moment)
        self._graph.finish(made, tile=DECODE_TILES[0])

    def step(self, state: Floats, noise: Floats) -> tuple[Floats, Floats, float]:
        """Of a state [width] and noise [n_latent]: the point [n_latent], the embedding [width] that
        it is to the model, and the score of an end."""
        row = self._graph.run([state[None], noise[None]])[0]
        latent, embedding, (score,) = np.split(row, np.cumsum([self.n_latent, self.width]))
        return latent, embedding, float(score)


class PocketSpeaker:
    """A Speaker."""

    rate = SPEECH_RATE
    frame = MIMI_FRAME
    mask: FixedMask | None = None

    def __init__(
        self,
        gguf: GGUFFile,
        weights: EncoderWeights,
        device: Device,
        programs: Programs,
        *,
        like_llama_cpp: bool = False,
    ) -> None:
        self._variant = variant_of(gguf.get_str("clip.gen.audio.model_variant", ""))
        self._weights, self._device, self._programs = weights, device, programs
        self._tower = graphs.decoder(gguf, like_llama_cpp)
        self._flow = Flow(weights, device, programs)
        self.width = self._flow.width
        self._scale, self._shift = (
            weights.floats(f"a.gen.emb_{name}").reshape(-1) for name in ("std", "mean")
        )
        self.reach = graphs.reach(weights, self._tower)
        self._vocoder = Vocoder(
            self._record_transformer, self._record_convolutions, frame=self.frame,
            density=graphs.DENSITY, n_before=graphs.convolutions_reach(weights),
        )  # fmt: skip

    def warm_up(self) -> None:
        self.sound([np.zeros(self._flow.n_latent, np.float32)] * FIRST, 0)

    def join(self, tokenizer: Tokenizer, embeddings: Embeddings) -> None:
        """Nothing of the model's is needed."""

    def begin(self, request: Request) -> PocketUtterance:
        return PocketUtterance(self._flow, self._variant, request)

    def sound(self, features: Sequence[Features], n_before: int) -> Floats:
        latents = np.array(features, np.float32) * self._scale + self._shift
        return self._vocoder.sound([latents], n_before)

    def _record_transformer(self, n_frames: int) -> Graph:
        g = Graph(self._weights, self._device, self._programs)
        g.finish(graphs.transformed(g, g.input(n_frames, self._flow.n_latent), self._tower))
        return g

    def _record_convolutions(self, n_rows: int) -> Graph:
        g = Graph(self._weights, self._device, self._programs)
        g.finish(graphs.samples(g, g.input(n_rows, self._tower.width)))
        return g
