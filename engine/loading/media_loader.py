"""The projector file beside a text model: is it one for it, and its encoders."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from msgspec import Struct

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import ModelError, naming
from gguf_serve.engine.forward.batch import MediaShape
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.text.tokenizer import Tokenizer
from gguf_serve.kernels.opencl.device import Device, open_device
from gguf_serve.kernels.opencl.platforms import choose, choose_cpu, list_devices
from gguf_serve.kernels.opencl.program import Programs

if TYPE_CHECKING:  # else imported with a projector: together they take 60 ms
    from gguf_serve.engine.encoders.encoder import MediaEncoder, ProjectorFile
    from gguf_serve.engine.encoders.reader import MediaReader
    from gguf_serve.engine.encoders.weights import EncoderWeights
    from gguf_serve.engine.speech.speaker import Speaker, Speech

log = logging.getLogger(__name__)


class Media(Struct, frozen=True):
    """``reader`` is for any thread, ``encoder`` and ``speaker`` are for the engine's;
    ``fingerprint``: of the file."""

    reader: MediaReader
    encoder: MediaEncoder
    shape: MediaShape
    device: Device
    fingerprint: str
    speaker: Speaker | None = None  # where the file makes sounds


def open_media(options: EngineOptions, h: Hyperparameters) -> ProjectorFile | None:
    """The projector file of the options, None if there is none; ModelError if it is none."""
    if options.mmproj is None:
        return None
    if not h.causal:
        raise ModelError(f"{options.mmproj}: an encoder of texts takes no images and no sounds")
    from gguf_serve.engine.encoders.encoder import open_projector

    with naming(options.mmproj):
        return open_projector(options.mmproj, options.image_min_tokens, options.image_max_tokens)


def load_media(
    file: ProjectorFile, options: EngineOptions, h: Hyperparameters, device: Device
) -> Media:
    """The encoders, loaded. ModelError if their embeddings do not fit the text model."""
    from gguf_serve.engine.encoders.encoder import MediaEncoder

    device = _device(options, device)
    with naming(file.gguf.path):
        encoder = MediaEncoder(file, device, Programs(device))
        speaker = _speaker(file, encoder.weights, device)
    wanted = h.n_embd * (1 + h.n_deepstack)
    if encoder.width != wanted:
        deep = f", {1 + h.n_deepstack} times" if h.n_deepstack else ""
        raise ModelError(
            f"{file.gguf.path}: the projector gives embeddings of {encoder.width} values, the text "
            f"model takes {wanted} ({h.n_embd}{deep}): they do not belong together"
        )
    if speaker is not None and speaker.width != h.n_embd:
        raise ModelError(
            f"{file.gguf.path}: the projector speaks of states of {speaker.width} values, the text "
            f"model's have {h.n_embd}: they do not belong together"
        )
    fingerprint = file.gguf.fingerprint()
    file.gguf.close()
    reader = media_reader(file, options, h)
    together = file.vision is not None and file.vision.sees_together(h.n_embd)
    shape = MediaShape(encoder.width, together)
    return Media(reader, encoder, shape, device, fingerprint, speaker)


def _speaker(file: ProjectorFile, weights: EncoderWeights, device: Device) -> Speaker | None:
    """What makes sounds, with all that its first request needs; None where the file has nothing of
    it."""
    if not file.speech:
        return None
    from gguf_serve.engine.speech.kinds import find_kind

    speaker = find_kind(file.speech).speaker(file.gguf, weights, device, Programs(device))
    speaker.warm_up()
    return speaker


def speech_of(file: ProjectorFile, tokenizer: Tokenizer, reader: MediaReader) -> Speech | None:
    """How texts are spoken, None where the projector makes no sounds."""
    if not file.speech:
        return None
    from gguf_serve.engine.speech.kinds import find_kind

    return find_kind(file.speech).speech(tokenizer, reader, file.variant)


def media_reader(file: ProjectorFile, options: EngineOptions, h: Hyperparameters) -> MediaReader:
    """What decodes a projector's images and sounds."""
    from gguf_serve.engine.encoders.reader import MediaReader

    return MediaReader(file.vision, file.audio, n_embd=h.n_embd, limits=options.media_limits)


def _device(options: EngineOptions, device: Device) -> Device:
    """The text model's device, or the one that is to encode in its place."""
    wanted = options.mmproj_device
    if wanted is None or (wanted == "none" and device.info.kind == "cpu"):
        return device
    known = list_devices(options.n_threads)
    info = choose_cpu(known) if wanted == "none" else choose(known, wanted)
    if info == device.info:
        return device
    family = options.kernel_family
    return open_device(str(info.index), family=family, n_threads=options.n_threads)
