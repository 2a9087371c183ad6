"""OpenAI's speech with its own client: formats, events, voices, and what goes wrong on the way."""

from __future__ import annotations

import base64
import io
import json
import logging
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import av
import httpx
import openai
import pytest
import soundfile

from gguf_serve.engine.media.sound import decode_sound
from gguf_serve.server.dialects.openai.speech import MEDIA_TYPES
from gguf_serve.server.http import request_log

Serve = Callable[..., str]
Client = Callable[[str], openai.OpenAI]
PATH = "/v1/audio/speech"
TEXT = "Ab. c"
FRAME = 960  # samples of the scripted engine's
RATE = 24000


def samples(text: str) -> bytes:
    """What the scripted engine makes of a sentence."""
    return b"".join(struct.pack("<h", 100 * byte) * FRAME for byte in text.encode())


PCM = samples("Ab") + samples(" c")


def wav() -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, [0.1, -0.1] * 8000, 16000, format="WAV")
    return stream.getvalue()


@pytest.fixture
def engine(fakes: Any) -> Any:
    engine = fakes.engine(fakes.speak())
    engine.speech = fakes.speech(["English", "German"])
    return engine


def ask(url: str, **body: Any) -> httpx.Response:
    return httpx.post(url + PATH, json={"input": TEXT, "response_format": "pcm"} | body, timeout=30)


def refusal(url: str, status: int = 400, **body: Any) -> str:
    response = ask(url, **body)
    assert response.status_code == status, response.text
    return str(response.json()["error"]["message"])


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = response.text.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """The line of the one request, which follows its answer."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        for record in caplog.records:
            if record.name == request_log.__name__:
                return record.getMessage()
        time.sleep(0.01)
    raise AssertionError("no line of the log")


@pytest.mark.parametrize("form", MEDIA_TYPES)
def test_the_client_has_every_format(serve: Serve, client: Client, engine: Any, form: Any) -> None:
    create = client(serve(engine)).audio.speech.with_streaming_response.create
    with create(model="any", voice="default", input=TEXT, response_format=form) as response:
        data = b"".join(response.iter_bytes())
        assert response.headers["content-type"] == MEDIA_TYPES[form]
    if form == "pcm":
        assert data == PCM
        return
    if form == "aac":  # libsndfile does not know it
        with av.open(io.BytesIO(data)) as file:
            n = sum(frame.samples for frame in file.decode(audio=0))
        assert 0 <= n - len(PCM) // 2 < RATE // 10
        return
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        assert (file.samplerate, file.channels) == (RATE, 1)
    found = decode_sound(data, rate=RATE)
    assert 0 <= len(found) - len(PCM) // 2 < RATE // 10
    if form in ("wav", "flac"):
        assert [round(32768 * x) for x in found] == list(struct.unpack(f"<{len(PCM) // 2}h", PCM))


def test_mp3_is_the_default(serve: Serve, client: Client, engine: Any) -> None:
    answer = client(serve(engine)).audio.speech.create(model="m", voice="default", input=TEXT)
    assert answer.response.headers["content-type"] == "audio/mpeg"
    with soundfile.SoundFile(io.BytesIO(answer.content)) as file:
        assert file.format == "MP3"


def test_events(serve: Serve, engine: Any) -> None:
    response = ask(serve(engine), stream_format="sse")
    assert response.headers["content-type"].startswith("text/event-stream")
    *deltas, done = events(response)
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == PCM
    usage = {"input_tokens": 4, "output_tokens": 4, "total_tokens": 8}
    assert done == {"type": "speech.audio.done", "usage": usage}


def test_it_is_heard_while_it_is_made(serve: Serve, engine: Any, fakes: Any) -> None:
    engine.script = fakes.speak(pause=0.05)
    url = serve(engine) + PATH
    body = {"input": "a" * 400, "response_format": "pcm"}
    with httpx.stream("POST", url, json=body, timeout=30) as response:
        next(response.iter_raw())
        assert engine.n_running == 1


def test_a_request_begins_when_the_one_before_it_has_ended(
    serve: Serve, engine: Any, fakes: Any
) -> None:
    order = []

    def script(request: Any, cancelled: threading.Event) -> Any:
        order.append("begin")
        *sounds, end = fakes.speak()(request, cancelled)
        yield from sounds
        time.sleep(0.02)
        order.append("end")
        yield end

    engine.script = script
    assert ask(serve(engine), input="a. b. c").content == samples("a") + samples(" b c")
    assert len(engine.requests) == 3
    assert order == ["begin", "end"] * 3


def test_whoever_leaves_ends_it(serve: Serve, engine: Any, fakes: Any) -> None:
    engine.script = fakes.speak(pause=0.05)
    body = {"input": "a" * 100 + ". and more", "response_format": "pcm"}
    with httpx.stream("POST", serve(engine) + PATH, json=body, timeout=30) as response:
        next(response.iter_raw())
    until = time.monotonic() + 20
    while not engine.cancelled and time.monotonic() < until:
        time.sleep(0.01)
    assert [ticket for ticket, _ in engine.cancelled] == [0]
    assert len(engine.requests) == 1


def test_a_fault_before_the_first_sound_is_an_error(serve: Serve, engine: Any, fakes: Any) -> None:
    engine.script = fakes.speak(fault="the device is lost", n_before=0)
    assert refusal(serve(engine), status=500) == "the device is lost"


def fault_behind(fakes: Any, begun: threading.Event) -> Any:
    """A script of some sounds, and a fault when it is known that they have been heard."""

    def script(request: Any, cancelled: threading.Event) -> Any:
        speak = fakes.speak(fault="the device is lost", n_before=3)
        *sounds, fault = speak(request, cancelled)
        yield from sounds
        assert begun.wait(20)
        yield fault

    return script


@pytest.mark.parametrize("form", ["pcm", "mp3"])
def test_a_fault_behind_it_cuts_the_sound(
    serve: Serve, engine: Any, fakes: Any, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    """A client can tell that from an end, and the log says why."""
    begun = threading.Event()
    engine.script = fault_behind(fakes, begun)
    url, body = serve(engine) + PATH, {"input": "abcdef", "response_format": form}
    with httpx.stream("POST", url, json=body, timeout=30) as response:
        begun.set()
        with pytest.raises(httpx.TransportError):
            response.read()
    assert "the device is lost" in logged(caplog)


def test_a_fault_among_events_is_one(serve: Serve, engine: Any, fakes: Any) -> None:
    begun = threading.Event()
    engine.script = fault_behind(fakes, begun)
    body = {"input": "abcdef", "response_format": "pcm", "stream_format": "sse"}
    with httpx.stream("POST", serve(engine) + PATH, json=body, timeout=30) as response:
        begun.set()
        response.read()
    *_, last = events(response)
    assert last["error"]["message"] == "the device is lost"


def test_a_part_that_the_engine_refuses(serve: Serve, engine: Any) -> None:
    """The first part is heard; the second has too many tokens."""
    text = "a. " + "b" * engine.n_ctx
    *deltas, last = events(ask(serve(engine), input=text, stream_format="sse"))
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == samples("a")
    assert "exceeds the available context size" in last["error"]["message"]


def test_voices(serve: Serve, engine: Any) -> None:
    voices = {"ada": b"RIFF ada", "default": b"RIFF default", "nova": b"RIFF nova"}
    url = serve(engine, voices=voices)
    given = ["ada", {"id": "ada"}, {"name": "ada"}, "default", "", None, "alloy", "nova"]
    for voice in given:
        assert ask(url, voice=voice).content == PCM
    heard = [voice for _, voice, _ in engine.speech.asked]
    assert heard == [b"RIFF ada"] * 3 + [b"RIFF default"] * 4 + [b"RIFF nova"]
    assert refusal(url, voice="eve") == (
        "Field 'voice': there is no 'eve': expected one of ada, default, nova, or a sound as "
        "'ref_audio'"
    )


def test_openais_voices_are_the_models_own(serve: Serve, engine: Any, fakes: Any) -> None:
    url = serve(engine, voices={"ada": b"RIFF ada"})
    assert ask(url, voice="Alloy").content == PCM
    assert [voice for _, voice, _ in engine.speech.asked] == [None]
    engine.speech = fakes.speech(needs_voice=True)
    assert "there is no 'alloy'" in refusal(serve(engine, voices={}), voice="alloy")


@pytest.mark.parametrize("path", ["/v1/audio/voices", "/audio/voices"])
def test_the_list_of_voices(serve: Serve, engine: Any, fakes: Any, path: str) -> None:
    """Ids and names, as Open WebUI reads them."""
    listed = httpx.get(serve(engine, voices={"ada": b""}) + path).json()
    assert listed == {"voices": [{"id": name, "name": name} for name in ("ada", "default")]}
    engine.speech = fakes.speech(needs_voice=True)
    listed = httpx.get(serve(engine, voices={"ada": b""}) + path).json()
    assert [voice["id"] for voice in listed["voices"]] == ["ada"]


def test_a_model_that_needs_a_voice(serve: Serve, engine: Any, fakes: Any) -> None:
    engine.speech = fakes.speech(needs_voice=True)
    url = serve(engine)
    assert refusal(url) == (
        "Field 'voice': the model has none of its own: expected a sound as 'ref_audio'"
    )
    assert ask(url, ref_audio=base64.b64encode(wav()).decode()).status_code == 200


@pytest.mark.parametrize("field", ["ref_audio", "reference_audio"])
def test_a_voice_in_the_request(serve: Serve, engine: Any, field: str) -> None:
    encoded = base64.b64encode(wav()).decode()
    url = serve(engine, voices={"ada": b"RIFF"})
    for value in (encoded, f"data:audio/wav;base64,{encoded}"):
        assert ask(url, **{field: value}).content == PCM
    assert [voice for _, voice, _ in engine.speech.asked] == [wav()] * 2
    assert refusal(url, voice="ada", **{field: encoded}).startswith("Field 'voice': cannot go")
    assert refusal(url, **{field: "!"}).startswith(f"Field '{field}': the base64 cannot be read")
    nonsense = base64.b64encode(b"nonsense").decode()
    assert refusal(url, **{field: nonsense}) == (
        f"Field '{field}': the sound cannot be decoded: no WAV"
    )


def test_languages(serve: Serve, engine: Any, fakes: Any) -> None:
    url = serve(engine, language="German")
    for body in ({}, {"language": "English"}, {"lang": "English"}):
        assert ask(url, **body).status_code == 200
    asked = [language for *_, language in engine.speech.asked]
    assert asked == ["German", "English", "English"]
    assert refusal(url, language="Latin") == "language 'Latin' is not known"
    engine.speech = fakes.speech()
    assert ask(serve(engine), language="auto").status_code == 200
    assert engine.speech.asked[-1][2] == ""


def test_how_it_is_sampled(serve: Serve, engine: Any, defaults: Any) -> None:
    """What is not given is as the engine's requests say."""
    url = serve(engine)
    own = engine.speech.requests("a")[0].sampling
    ask(url, input="a", temperature=0.5, top_p=0.25, top_k=7, seed=5)
    sampling = engine.requests[-1].sampling
    given = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed)
    assert given == (0.5, 0.25, 7, 5)
    ask(url, input="a")
    assert engine.requests[-1].sampling == own


def test_most_frames_are_those_of_all_parts(serve: Serve, engine: Any) -> None:
    url = serve(engine)
    assert ask(url, input="abc. def. ghi", max_tokens=5).content == samples("abc d")
    assert [request.max_tokens for request in engine.requests] == [5, 2]
    assert ask(url, max_tokens=0).content == b""
    assert ask(url, max_tokens=-1).content == PCM


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": " \n"}, "Field 'input': there is nothing to be said"),
        ({"input": "a" * 65537}, "Field 'input': at most 65536 characters, got 65537"),
        ({"input": None}, "Field 'input' is required"),
        ({"input": 7}, "Field 'input': Expected `str`, got `int`"),
        (
            {"response_format": "amr"},
            "Field 'response_format': 'amr' is none of mp3, opus, aac, flac, wav, pcm",
        ),
        ({"speed": 5}, "Field 'speed': expected 0.25 to 4.0, got 5.0"),
        ({"instructions": "Shout"}, "Field 'instructions': \"Shout\" is not supported by this"),
        ({"stream_format": "ws"}, "Field 'stream_format': Invalid enum value 'ws'"),
        ({"temperature": "hot"}, "Field 'temperature': Expected `float`, got `str`"),
        ({"max_tokens": -2}, "Field 'max_tokens': Value must be between -1"),
    ],
)
def test_what_is_refused(serve: Serve, engine: Any, body: dict[str, Any], message: str) -> None:
    assert refusal(serve(engine), **body).startswith(message)
    assert not engine.requests


def test_another_speed(serve: Serve, engine: Any) -> None:
    answer = ask(serve(engine), input="a" * 50, speed=2)
    assert len(answer.content) == pytest.approx(len(samples("a" * 50)) / 2, rel=0.05)


def test_what_asks_for_nothing(serve: Serve, engine: Any) -> None:
    body = {"speed": 1.0, "instructions": "", "model": "tts-1", "stream": True}
    assert ask(serve(engine), **body).content == PCM


def test_models_that_do_not_speak(serve: Serve, fakes: Any, engine: Any) -> None:
    url = serve(fakes.engine())
    assert refusal(url, status=501) == "The model tiny.Q8_0.gguf does not speak"
    assert httpx.get(url + "/v1/audio/voices").json() == {"voices": []}
    assert httpx.get(url + "/v1/audio/models").json() == {"models": []}
    assert httpx.get(url + "/props").json()["speech"] is None
    assert "--embedding" in refusal(serve(engine, only_vectors=True), status=501)


def test_where_it_is_said_that_a_model_speaks(serve: Serve, engine: Any) -> None:
    url = serve(engine, voices={"ada": b"RIFF"})
    assert httpx.get(url + "/props").json()["speech"] == {
        "sample_rate": RATE, "languages": ["English", "German"], "voices": ["ada", "default"],
    }  # fmt: skip
    (model,) = httpx.get(url + "/v1/models").json()["models"]
    assert model["capabilities"] == ["speech"]
    assert httpx.post(url + "/api/show", json={}).json()["capabilities"] == ["speech"]
    (model,) = httpx.get(url + "/audio/models").json()["models"]
    assert model["id"] == "tiny.Q8_0.gguf"


def test_the_line_of_the_log(serve: Serve, engine: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        ask(serve(engine))
        assert "4 tokens in, 4 out, the first after" in logged(caplog)
