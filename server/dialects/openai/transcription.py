"""OpenAI's audio transcriptions: a form with a sound becomes a chat that asks for its words; so
does JSON with the sound in base64, as OpenRouter takes it and Open WebUI may send it.

The model is any that takes sounds, and it is asked in words, so there are no times: what would
need them (``srt``, ``vtt``, ``timestamp_granularities``) is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

from msgspec import Struct
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from gguf_serve.engine.request import Event, Finished
from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.errors import ApiError, invalid, plain_error
from gguf_serve.server.http.form import FormFile
from gguf_serve.server.http.framing import SSE_DONE
from gguf_serve.server.interface import Engine, MediaReader
from gguf_serve.server.requests.answer import Choice, Piece
from gguf_serve.server.requests.chat import prepare
from gguf_serve.server.requests.conversation import read_chat
from gguf_serve.server.requests.fields import CacheSalt, SamplingFields, convert, refuse
from gguf_serve.server.requests.generate import Options, start
from gguf_serve.server.requests.media import MARKER, Source, decode, read_source, unsupported
from gguf_serve.server.requests.service import Service

INSTRUCTION = "Transcribe audio to text"  # llama-server's words
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "include": ([],),
    "known_speaker_names": ([],),
    "known_speaker_references": ([],),
    "timestamp_granularities": ([],),
}
ALSO = {"model", "chunking_strategy", *UNSUPPORTED}  # model may name an adapter


class TranscriptionFields(SamplingFields, kw_only=True):
    """What the form and JSON have."""

    prompt: str | None = None
    language: str | None = None
    response_format: Literal["json", "text", "verbose_json"] = "json"
    stream: bool | None = None
    max_tokens: int | None = None
    cache_salt: CacheSalt | None = None


class TranscriptionForm(TranscriptionFields, kw_only=True):
    file: FormFile


class InputAudio(Struct):
    """A sound as in a chat; what ``format`` it has is seen by its bytes."""

    data: str
    format: str | None = None


class TranscriptionBody(TranscriptionFields, kw_only=True):
    input_audio: InputAudio


def routes(service: Service) -> list[BaseRoute]:
    endpoint = partial(transcriptions, service)
    paths = ("/v1/audio/transcriptions", "/audio/transcriptions")
    return [
        Post(path, endpoint, TranscriptionBody, form=TranscriptionForm, also=ALSO) for path in paths
    ]


async def transcriptions(service: Service, http: HttpRequest) -> ASGIApp:
    """The words of a sound, sent as multipart/form-data, or in base64 as JSON."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    fields, sound = await (from_json if kind == "application/json" else from_form)(service, http)
    chat = read_chat(chat_body(fields))
    job = await prepare(service, chat, [sound])
    dialect = Transcription(job.choices()[0], fields, sound.seconds)
    return await start(service, chat, job, Options(), dialect)


async def from_form(service: Service, http: HttpRequest) -> tuple[TranscriptionFields, Any]:
    """The fields of a form, and its sound, decoded."""
    data = await service.read_form(http)
    refuse(data, UNSUPPORTED)
    fields = convert(data, TranscriptionForm, strict=False)
    check_numbers(fields)
    source = Source("file", "input_audio", "")
    return fields, await decode(source, fields.file.data, media_reader(service.engine, source))


async def from_json(service: Service, http: HttpRequest) -> tuple[TranscriptionFields, Any]:
    """The fields of a JSON body, and its sound, decoded."""
    data = await service.read_object(http)
    refuse(data, UNSUPPORTED)
    fields = convert(data, TranscriptionBody)
    source = Source("input_audio.data", "input_audio", fields.input_audio.data)
    reader = media_reader(service.engine, source)  # before anything is fetched
    return fields, await decode(source, await read_source(source, service.fetcher), reader)


def check_numbers(fields: TranscriptionFields) -> None:
    """A form can write what JSON cannot."""
    for name in fields.__struct_fields__:
        value = getattr(fields, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise invalid(f"Field '{name}': expected a finite number, got {value}")


def media_reader(engine: Engine, source: Source) -> MediaReader:
    if engine.media is None:
        raise unsupported(source, "audio")
    return engine.media


def chat_body(fields: TranscriptionFields) -> dict[str, Any]:
    """The chat that asks for the words; the likeliest unless a temperature is given."""
    language = f" (language: {fields.language})" if fields.language else ""
    hint = f"\n{fields.prompt}" if fields.prompt else ""
    text = f"{INSTRUCTION}{language}{hint}"
    parts = [{"type": "text", "text": part} for part in (text, MARKER)]
    given = {
        name: value
        for name in (*SamplingFields.__struct_fields__, "max_tokens", "stream", "cache_salt")
        if (value := getattr(fields, name)) is not None
    }
    return {"temperature": 0} | given | {"messages": [{"role": "user", "content": parts}]}


class Transcription:
    """The dialect: the answer's text, whole or in events."""

    framing = SSE_DONE

    def __init__(self, choice: Choice, fields: TranscriptionFields, seconds: float) -> None:
        self.choice = choice
        self._format = fields.response_format
        self._language = fields.language or ""
        self._seconds = seconds
        self._texts: list[str] = []

    def chunks(self, index: int, event: Event) -> Iterable[object]:
        pieces = self._take(event)
        deltas = [{"type": "transcript.text.delta", "delta": text} for text in pieces]
        return [*deltas, self._done()] if type(event) is Finished else deltas

    def last_chunks(self) -> Iterable[object]:
        return ()

    def failed(self, error: ApiError) -> Iterable[object]:
        return (plain_error(error),)

    def take(self, index: int, event: Event) -> None:
        self._take(event)

    def whole(self) -> object:
        done = self._done()
        if self._format == "text":
            return PlainTextResponse(f"{done['text']}\n")
        if self._format == "json":
            return done
        usage = {"type": "duration", "seconds": math.ceil(self._seconds)}
        head = {"task": "transcribe", "language": self._language, "duration": self._seconds}
        return head | {"text": done["text"], "usage": usage}

    def _take(self, event: Event) -> list[str]:
        pieces: Iterable[Piece] = self.choice.take(event)
        texts = [piece.text for piece in pieces if piece.text]
        self._texts += texts
        return texts

    def _done(self) -> dict[str, Any]:
        text = "".join(self._texts).strip()
        return {"type": "transcript.text.done", "text": text, "usage": self._usage()}

    def _usage(self) -> dict[str, Any]:
        n_input, n_output = self.choice.started.n_prompt, self.choice.timings.predicted_n
        n_audio = sum(span.count for span in self.choice.prompt.media)
        return {
            "type": "tokens",
            "input_tokens": n_input,
            "input_token_details": {"text_tokens": n_input - n_audio, "audio_tokens": n_audio},
            "output_tokens": n_output,
            "total_tokens": n_input + n_output,
        }
