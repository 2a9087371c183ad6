"""The encoders of a projector file, and what they have made lately."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gguf_serve.engine.encoders.audio import AudioEncoder
from gguf_serve.engine.encoders.audio_file import AudioFile, read_audio_file
from gguf_serve.engine.encoders.geometry import Floats
from gguf_serve.engine.encoders.vision import VisionEncoder
from gguf_serve.engine.encoders.vision_file import VisionFile, read_vision_file
from gguf_serve.engine.encoders.weights import EncoderWeights
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile, open_gguf
from gguf_serve.engine.media.piece import Tile
from gguf_serve.engine.media.span import MediaSpan
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs

log = logging.getLogger(__name__)
# Those of tokens of the model, float32 [n, width]
Embeddings = Callable[[npt.ArrayLike], Floats]
LEFT_ALONE = ("gemma3na",)  # types of sounds whose files are used for their images
KEPT_BYTES = 256 << 20  # of embeddings, for images that are asked about again


class ProjectorFile(Struct, frozen=True):
    """An open projector file and what it says."""

    gguf: GGUFFile
    vision: VisionFile | None
    audio: AudioFile | None
    speech: str = ""  # the type of what makes sounds
    variant: str = ""  # of the model, where that matters to it


def open_projector(
    path: Path, min_tokens: int | None = None, max_tokens: int | None = None
) -> ProjectorFile:
    """ModelError for a file that is no projector, or of a type that is not known."""
    gguf = open_gguf(path)
    if gguf.architecture != "clip":
        raise ModelError(
            f"{path}: general.architecture is {gguf.architecture!r}; a projector (--mmproj) has "
            "'clip'"
        )
    flags = [bool(gguf.metadata.get(f"clip.has_{x}_encoder")) for x in ("vision", "audio")]
    if not any(flags):
        flags[0] = True  # old files say nothing
    vision = read_vision_file(gguf, min_tokens, max_tokens) if flags[0] else None
    if vision is not None and gguf.metadata.get("clip.audio.projector_type") in LEFT_ALONE:
        log.warning("%s: no encoder of sounds is made of its %s", path, *LEFT_ALONE)
        flags[1] = False
    audio = read_audio_file(gguf) if flags[1] else None
    if not gguf.metadata.get("clip.has_gen_audio_encoder"):
        return ProjectorFile(gguf, vision, audio)
    speech = gguf.get_str("clip.gen.audio.projector_type", "")
    return ProjectorFile(
        gguf, vision, audio, speech, gguf.get_str("clip.gen.audio.model_variant", "")
    )


class MediaEncoder:
    """Encodes images and sounds. Lives in the engine's thread."""

    def __init__(
        self,
        file: ProjectorFile,
        device: Device,
        programs: Programs,
        *,
        like_llama_cpp: bool = False,
    ) -> None:
        """Loads the weights and compiles, by recording an input of the usual size."""
        self.weights = weights = EncoderWeights(file.gguf, device, programs)
        self.embeddings: Embeddings | None = None  # for spans that are sums of them
        self._vision = None
        self._audio = None
        if file.vision is not None:
            self._vision = VisionEncoder(
                file.vision, weights, device, programs, like_llama_cpp=like_llama_cpp
            )
        if file.audio is not None:
            self._audio = AudioEncoder(
                file.audio, weights, device, programs, like_llama_cpp=like_llama_cpp
            )
        self._kept: OrderedDict[bytes, Floats] = OrderedDict()
        self._n_kept_bytes = 0
        self.width = self._width()

    def _width(self) -> int:
        """Of the embeddings, found by recording; so the weights are loaded, too."""
        widths = []
        if self._vision is not None:
            widths.append(self._vision.warm_up())
        if self._audio is not None:
            widths.append(self._audio.warm_up(self._audio.spec.input.usual))
        if len(set(widths)) != 1:
            raise ModelError(
                f"the projector's encoders give embeddings of {' and '.join(map(str, widths))} "
                "values, expected the same of both"
            )
        return widths[0]

    def find(self, span: MediaSpan) -> Floats | None:
        """The embeddings of a span if they have been made before."""
        if span.key in self._kept:
            self._kept.move_to_end(span.key)
        return self._kept.get(span.key)

    def encode(self, span: MediaSpan) -> Floats:
        """Embeddings float32 [count, width]. Raises ValueError if there are more or fewer."""
        found = self._encoded(span)
        if len(found) != span.count:
            raise ValueError(f"an encoder gave {len(found)} embeddings instead of {span.count}")
        if not np.isfinite(found).all():
            raise ValueError("an encoder gave numbers that are not finite")
        self._keep(span.key, found)
        return found

    def _encoded(self, span: MediaSpan) -> Floats:
        if span.input.ndim == 3:
            assert self._vision is not None
            return self._vision.encode(Tile(span.input, span.layout), span.n_before)
        if span.input.dtype.kind == "i":
            return self._sums(span.input)
        assert self._audio is not None
        found = self._audio.encode(span.input)
        return found + self._sums(np.array([span.layout])) if span.layout else found

    def _sums(self, tokens: npt.NDArray[np.int_]) -> Floats:
        """Sums of the model's embeddings, of the tokens [n, terms]."""
        assert self.embeddings is not None
        found: Floats = self.embeddings(tokens).reshape(*tokens.shape, -1).sum(axis=1)
        return found

    def _keep(self, key: bytes, embeddings: Floats) -> None:
        self._kept[key] = embeddings
        self._n_kept_bytes += embeddings.nbytes
        while self._n_kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            self._n_kept_bytes -= self._kept.popitem(last=False)[1].nbytes
