"""OpenAI's speech: a text becomes a sound file, or events with its pieces, while it is made.

The voice is a name of ``--voices``, or a sound in the request, as servers of such models take it.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable
from functools import partial
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from gguf_serve.engine.errors import EngineError, RequestError
from gguf_serve.engine.request import Event, Failed, Finished, Request, Sound, Started
from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.errors import ApiError, invalid, json_response, plain_error, shown
from gguf_serve.server.http.framing import SSE, Framing
from gguf_serve.server.http.stream import EventStream
from gguf_serve.server.requests.fields import convert, refuse
from gguf_serve.server.requests.service import Service
from gguf_serve.server.speech.reading import (
    UNSUPPORTED,
    SpeechFields,
    read_speech,
    speech_of,
    voice_names,
)
from gguf_serve.server.speech.sound_reply import SoundReply

MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
ALSO = {"model", "user", "stream", *UNSUPPORTED}  # sound is streamed in any case


def routes(service: Service) -> list[BaseRoute]:
    starts = ("/v1", "")
    speak = partial(speech, service)
    return [
        *(Post(f"{start}/audio/speech", speak, SpeechFields, also=ALSO) for start in starts),
        *(Route(f"{start}/audio/voices", partial(voices, service)) for start in starts),
        *(Route(f"{start}/audio/models", partial(models, service)) for start in starts),
    ]


async def speech(service: Service, http: HttpRequest) -> ASGIApp:
    """Speak a text, in a sound file that is sent while it is made."""
    data = await service.read_object(http)
    refuse(data, UNSUPPORTED)
    fields = convert(data, SpeechFields)
    form = fields.response_format
    if form not in MEDIA_TYPES:
        known = ", ".join(MEDIA_TYPES)
        raise invalid(f"Field 'response_format': {shown(form)} is none of {known}")
    rate = speech_of(service).rate
    requests = await read_speech(service, fields)
    writer = await asyncio.to_thread(sound_writer, form, rate, fields.speed)
    shape = SpokenEvents if fields.stream_format == "sse" else Spoken
    dialect = shape(writer, MEDIA_TYPES[form])
    stream = service.event_stream()
    queue = Queue(stream, dialect, requests, -1 if fields.max_tokens is None else fields.max_tokens)
    await queue.submit_next()
    stream.go_on = queue.go_on
    return SoundReply(stream, dialect, service.timeout, service.ping_interval)


async def voices(service: Service, http: HttpRequest) -> Response:
    """The voices that a request for speech may name."""
    found = [{"id": name, "name": name} for name in voice_names(service)]
    return json_response({"voices": found})


async def models(service: Service, http: HttpRequest) -> Response:
    """The model, if it speaks."""
    name = service.model_name
    found = [] if service.engine.speech is None else [{"id": name, "name": name}]
    return json_response({"models": found})


class Writer(Protocol):
    """Samples to a file, as engine.media.sound_writer has it."""

    def write(self, pcm: bytes) -> bytes: ...
    def end(self) -> bytes: ...


def sound_writer(form: str, rate: int, speed: float) -> Writer:
    # Its libraries take 100 ms to import, for which a start need not wait.
    from gguf_serve.engine.media.sound_writer import SoundWriter

    return SoundWriter(form, rate, speed)


class Spoken:
    """The dialect: the bytes of a sound file."""

    def __init__(self, writer: Writer, media_type: str) -> None:
        self.framing = Framing(media_type, bytes)
        self.n_prompt = self.n_frames = 0  # tokens of the text; what was generated
        self._writer = writer

    def chunks(self, index: int, event: Event) -> Iterable[object]:
        if type(event) is Sound:
            return self._shown(self._writer.write(event.pcm))
        if type(event) is Started:
            self.n_prompt += event.n_prompt
        elif type(event) is Finished:
            self.n_frames += event.timings.predicted_n
        return ()

    def last_chunks(self) -> Iterable[object]:
        return self._shown(self._writer.end())

    def failed(self, error: ApiError) -> Iterable[object]:
        """Nothing can be said in a sound: it is cut off."""
        return ()

    def _shown(self, data: bytes) -> list[object]:
        return [data] if data else []


class SpokenEvents(Spoken):
    """The same bytes in OpenAI's events."""

    def __init__(self, writer: Writer, media_type: str) -> None:
        super().__init__(writer, media_type)
        self.framing = SSE

    def last_chunks(self) -> Iterable[object]:
        usage = {
            "input_tokens": self.n_prompt,
            "output_tokens": self.n_frames,
            "total_tokens": self.n_prompt + self.n_frames,
        }
        return [*super().last_chunks(), {"type": "speech.audio.done", "usage": usage}]

    def failed(self, error: ApiError) -> Iterable[object]:
        return (plain_error(error),)

    def _shown(self, data: bytes) -> list[object]:
        audio = base64.b64encode(data).decode()
        return [{"type": "speech.audio.delta", "audio": audio}] if data else []


class Queue(Struct):
    """The requests that are not submitted yet: each is when the one before it has ended."""

    stream: EventStream
    spoken: Spoken
    requests: list[Request]
    max_frames: int  # of all of them; below 0: as many as there are

    async def submit_next(self) -> None:
        """The engine's errors are raised."""
        request = self.requests.pop(0)
        if self.max_frames >= 0:
            left = self.max_frames - self.spoken.n_frames
            most = left if request.max_tokens < 0 else min(left, request.max_tokens)
            request = replace(request, max_tokens=most)
        await self.stream.submit([request])

    async def go_on(self) -> None:
        is_full = 0 <= self.max_frames <= self.spoken.n_frames
        if not self.requests or is_full:
            return
        try:
            await self.submit_next()
        except EngineError as error:
            is_clients = isinstance(error, RequestError)
            self.stream.deliver(0, Failed(str(error), by_request=is_clients))
