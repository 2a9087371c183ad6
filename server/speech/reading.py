"""From the body of a request for speech to the engine's requests: text, voice, language."""

from __future__ import annotations

import asyncio
import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec.structs import replace

from gguf_serve.engine.errors import MediaError
from gguf_serve.engine.request import Request
from gguf_serve.server.errors import ApiError, invalid, shown
from gguf_serve.server.requests.fields import SamplingFields, given_numbers
from gguf_serve.server.requests.generate import check_generates
from gguf_serve.server.requests.media import DECODERS, Source, read_source
from gguf_serve.server.requests.service import Service
from gguf_serve.server.speech.voices import DEFAULT

if TYPE_CHECKING:
    from gguf_serve.engine.speech.speaker import Speech

SPEEDS = (0.25, 4.0)  # OpenAI's
MAX_INPUT = 2**16  # characters: an hour of speech
AUTO = "auto"  # of languages: as the model finds
OPENAI_VOICES = frozenset(
    ("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage",
     "shimmer", "verse")
)  # fmt: skip

# Fields that these models cannot honour, with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "instructions": ("",),
    "ref_text": ("",),
}


class VoiceName(msgspec.Struct):
    """A voice as OpenAI has those that were made of a client's sounds."""

    id: str | None = None
    name: str | None = None


class SpeechFields(SamplingFields, kw_only=True):
    input: str
    voice: str | VoiceName | None = None
    response_format: str = "mp3"
    stream_format: Literal["audio", "sse"] = "audio"
    speed: float = 1.0
    max_tokens: int | None = None  # frames of sound
    # Names that other servers have for what OpenAI's has not.
    language: str | None = None
    lang: str | None = None
    ref_audio: str | None = None
    reference_audio: str | None = None


def speech_of(service: Service) -> Speech:
    """ApiError where the model does not speak."""
    check_generates(service)
    found = service.engine.speech
    if found is None:
        raise ApiError("not_supported_error", f"The model {service.model_name} does not speak")
    return found


async def read_speech(service: Service, fields: SpeechFields) -> list[Request]:
    """What is to be submitted, one after the other; ApiError, or the engine's error, names a text,
    a voice or a language that cannot be."""
    speech = speech_of(service)
    text = fields.input
    if not text.strip():
        raise invalid("Field 'input': there is nothing to be said")
    if len(text) > MAX_INPUT:
        raise invalid(f"Field 'input': at most {MAX_INPUT} characters, got {len(text)}")
    if not SPEEDS[0] <= fields.speed <= SPEEDS[1]:
        raise invalid(f"Field 'speed': expected {SPEEDS[0]} to {SPEEDS[1]}, got {fields.speed}")
    language = fields.language or fields.lang or service.language
    if language.lower() == AUTO and not speech.languages:
        language = ""
    source = reference(fields)
    if source is None:
        voice = named_voice(voice_name(fields), service, speech)
    else:
        voice = await read_source(source, service.fetcher)
    make = partial(speech.requests, text, voice=voice, language=language)
    threads = None if voice is None else DECODERS
    try:
        requests = await asyncio.get_running_loop().run_in_executor(threads, make)
    except MediaError as error:
        raise invalid(f"Field '{source.name if source else 'voice'}': {error}") from None
    seed = service.defaults.sampling.seed
    changes = {"seed": seed, **given_numbers(fields)}
    return [replace(one, sampling=dataclasses.replace(one.sampling, **changes)) for one in requests]


def reference(fields: SpeechFields) -> Source | None:
    """The sound of a voice that comes with the request."""
    for field in ("ref_audio", "reference_audio"):
        value = getattr(fields, field)
        if value:
            if voice_name(fields) != DEFAULT:
                raise invalid(f"Field 'voice': cannot go with '{field}', which is a voice itself")
            return Source(field, "input_audio", value)
    return None


def voice_name(fields: SpeechFields) -> str:
    given = fields.voice
    return (given.id or given.name if isinstance(given, VoiceName) else given) or DEFAULT


def named_voice(name: str, service: Service, speech: Speech) -> bytes | None:
    """A sound of the voice; None: the model's own. OpenAI's, which clients name where nobody has
    chosen one, are the default unless there is such a voice. ApiError lists the known ones."""
    if name in service.voices:
        return service.voices[name]
    if name.lower() in OPENAI_VOICES and DEFAULT in service.voices:
        return service.voices[DEFAULT]
    if name.lower() in (DEFAULT, *OPENAI_VOICES) and not speech.needs_voice:
        return None
    missing = "the model has none of its own" if name == DEFAULT else f"there is no {shown(name)}"
    known = ", ".join(voice_names(service))
    known = f"one of {known}, or " if known else ""
    raise invalid(f"Field 'voice': {missing}: expected {known}a sound as 'ref_audio'")


def voice_names(service: Service) -> list[str]:
    """Those that a request may name; none if the model does not speak."""
    speech = service.engine.speech
    if speech is None:
        return []
    own = () if speech.needs_voice else (DEFAULT,)
    return sorted({*service.voices, *own})
