"""Images and sounds through every dialect: what reaches the engine, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from images_and_sounds import AUDIO, N_TOKENS, VISION, data_url, png, video, wav

from gguf_serve.engine.encoders.reader import MediaReader
from gguf_serve.server.errors import ApiError
from gguf_serve.server.http.fetch import Fetcher, is_public
from gguf_serve.server.http.room import Room
from gguf_serve.server.requests.media import (
    BASE64_PIECE,
    MARKER,
    UNQUOTED_PIECE,
    from_base64,
    from_data_url,
    read_media,
)

Serve = Callable[..., str]


@pytest.fixture
def engine(fakes: Any) -> Any:
    engine = fakes.engine(fakes.say("A red square."))
    engine.media = MediaReader(VISION, AUDIO, n_embd=64)
    return engine


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def ask(url: str, messages: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json={"messages": messages}, timeout=30)


def refusal(url: str, messages: Any) -> str:
    response = ask(url, messages)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"
    return str(response.json()["error"]["message"])


def spans(engine: Any) -> list[tuple[int, int]]:
    (request,) = engine.requests
    for span in request.media:
        assert all(id < 0 for id in request.prompt[span.start : span.end])
    n_negative = sum(id < 0 for id in request.prompt)
    assert n_negative == sum(span.count for span in request.media)
    return [(span.start, span.count) for span in request.media]


def test_the_openai_client_sends_two_images(serve: Serve, engine: Any) -> None:
    client = openai.OpenAI(base_url=f"{serve(engine)}/v1", api_key="none")
    answer = client.chat.completions.create(
        model="any",
        messages=user(
            {"type": "text", "text": "First "}, image_part(data_url(png())),
            {"type": "text", "text": "then "}, image_part(data_url(png("blue"))),
        ),
    )  # fmt: skip
    assert answer.choices[0].message.content == "A red square."
    assert [count for _, count in spans(engine)] == [N_TOKENS, N_TOKENS]
    assert engine.requests[0].media[0].key != engine.requests[0].media[1].key
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(engine.requests[0].prompt)


def test_the_same_image_has_the_same_ids(serve: Serve, engine: Any) -> None:
    url = serve(engine)
    for _ in range(2):
        ask(url, user(image_part(data_url(png()))))
    first, second = engine.requests
    assert first.prompt == second.prompt


def test_a_sound(serve: Serve, engine: Any) -> None:
    part = {"type": "input_audio", "input_audio": {"data": wav(), "format": "wav"}}
    assert ask(serve(engine), user(part)).status_code == 200
    assert [count for _, count in spans(engine)] == [26]  # two chunks of 100 frames


def test_base64_and_urls_for_images_and_sounds(serve: Serve, engine: Any) -> None:
    """The same places of a prompt, whichever way an image and a sound are given."""
    url, letters = serve(engine), (base64.b64encode(png()).decode(), wav())
    given = [
        (letters[0], {"data": letters[1]}),
        (f"data:image/png;base64,{letters[0]}", {"data": f"data:audio/wav;base64,{letters[1]}"}),
        (letters[0], {"url": f"data:audio/wav;base64,{letters[1]}"}),
    ]
    for image, audio in given:
        part = {"type": "input_audio", "input_audio": audio}
        assert ask(url, user(image_part(image), part)).status_code == 200
    first, *others = [request.prompt for request in engine.requests]
    assert all(prompt == first for prompt in others)
    assert len(engine.requests[0].media) == 2


def test_anthropic(serve: Serve, engine: Any) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": data_url(png())[22:]}
    image = {"type": "image", "source": source}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [image]}
    call = {"type": "tool_use", "id": "t1", "name": "look", "input": {}}
    body = {
        "max_tokens": 9,
        "messages": [
            {"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
        ],
    }
    response = httpx.post(f"{serve(engine)}/v1/messages", json=body)
    assert response.status_code == 200, response.text
    assert [count for _, count in spans(engine)] == [N_TOKENS, N_TOKENS]


def test_ollama(serve: Serve, engine: Any) -> None:
    url, image = serve(engine), data_url(png())[22:]
    message = {"role": "user", "content": "What is it?", "images": [image]}
    chat = {"messages": [message], "stream": False}
    generate = {"prompt": "What is it?", "images": [image], "stream": False}
    assert httpx.post(f"{url}/api/chat", json=chat).status_code == 200
    assert httpx.post(f"{url}/api/generate", json=generate).status_code == 200
    assert [len(request.media) for request in engine.requests] == [1, 1]


def test_responses(serve: Serve, engine: Any) -> None:
    part = {"type": "input_image", "image_url": data_url(png()), "detail": "auto"}
    body = {"input": [{"role": "user", "content": [part, {"type": "input_text", "text": "?"}]}]}
    response = httpx.post(f"{serve(engine)}/v1/responses", json=body)
    assert response.status_code == 200, response.text
    assert len(spans(engine)) == 1


def test_token_counts_and_rendered_prompts_know_images(serve: Serve, engine: Any) -> None:
    url, body = serve(engine), {"messages": user(image_part(data_url(png())))}
    counted = httpx.post(f"{url}/v1/chat/completions/input_tokens", json=body).json()
    rendered = httpx.post(f"{url}/apply-template", json=body).json()
    ask(url, body["messages"])
    assert counted["input_tokens"] == len(engine.requests[0].prompt)
    assert "<__media__>" in rendered["prompt"]
    assert MARKER not in rendered["prompt"]


def test_a_text_model_says_what_is_missing(serve: Serve, fakes: Any) -> None:
    message = refusal(serve(fakes.engine()), user(image_part(data_url(png()))))
    assert message == (
        "Field 'messages[0].content[0]': image input is not supported - hint: if this is "
        "unexpected, you may need to provide the mmproj"
    )


def test_a_model_for_images_takes_no_sounds(serve: Serve, engine: Any) -> None:
    engine.media = MediaReader(VISION, None, n_embd=64)
    part = {"type": "input_audio", "input_audio": {"data": wav(), "format": "wav"}}
    assert "takes no audio" in refusal(serve(engine), user(part))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("data:image/png;base64,AAAA", "the image is in none of these formats"),
        ("data:image/png;base64,*", "the base64 cannot be read"),
        ("data:image/png;base64", "has no comma"),
        (data_url(png())[:-60], "the image cannot be decoded"),
        ("ftp://example.org/a.png", "expected base64 or a URL that begins with data:"),
        ("file:///etc/passwd", "file: URLs are not allowed unless --media-path names a folder"),
        ("http://127.0.0.1:1/a.png", "has the address 127.0.0.1, which is not public"),
        ("http://localhost:1/a.png", "which is not public"),
        ("http://[::1]:1/a.png", "has the address ::1, which is not public"),
        ("http://2130706433:1/a.png", "has the address 127.0.0.1, which is not public"),
        ("http://0x7f.1:1/a.png", "has the address 127.0.0.1, which is not public"),
        ("http://0177.0.0.1:1/a.png", "has the address 127.0.0.1, which is not public"),
        ("http://[::127.0.0.1]:1/a.png", "which is not public"),
        ("http://[64:ff9b::127.0.0.1]:1/a.png", "which is not public"),
        ("data:" + ";" * 10_000 + ",", "has no comma in its first 1024 characters"),
        ("http://example.org/" + "a" * 10_000, "the URL is longer than 8192 characters"),
        ("file:///" + "%41" * 10_000, "the URL is longer than 8192 characters"),
    ],
)
def test_a_bad_image_is_named(serve: Serve, engine: Any, url: str, reason: str) -> None:
    message = refusal(serve(engine), user({"type": "text", "text": "?"}, image_part(url)))
    assert message.startswith("Field 'messages[0].content[1]': ")
    assert reason in message
    assert not engine.requests


def test_each_dialect_names_the_part_in_its_own_way(serve: Serve, engine: Any) -> None:
    url = serve(engine)
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    image = {"type": "image", "source": source}
    body = {"max_tokens": 9, "system": "s", "messages": [{"role": "user", "content": [image]}]}
    answer = httpx.post(f"{url}/v1/messages", json=body).json()
    assert answer["error"]["message"].startswith("Field 'messages[0].content[0]'")
    chat = {"messages": [{"role": "user", "content": "?", "images": ["AAAA"]}]}
    answer = httpx.post(f"{url}/api/chat", json=chat).json()
    assert answer["error"].startswith("Field 'messages[0].images[0]'")


def test_a_marker_in_a_text_is_text(serve: Serve, engine: Any) -> None:
    text = {"type": "text", "text": "<__media__>"}
    assert ask(serve(engine), user(text, image_part(data_url(png())))).status_code == 200
    assert len(spans(engine)) == 1


def test_modalities_are_reported(serve: Serve, engine: Any, fakes: Any) -> None:
    url, text_only = serve(engine), serve(fakes.engine())
    seen = httpx.get(f"{url}/props").json()["modalities"]
    assert seen == {"vision": True, "video": True, "audio": True}
    models = httpx.get(f"{url}/v1/models").json()["models"]
    assert models[0]["capabilities"] == ["completion", "multimodal"]
    models = httpx.get(f"{text_only}/v1/models").json()["models"]
    assert models[0]["capabilities"] == ["completion"]
    shown = httpx.post(f"{url}/api/show", json={"model": "any"}).json()["capabilities"]
    assert {"vision", "audio"} <= set(shown)


def test_files_below_the_folder_and_no_others(serve: Serve, engine: Any, tmp_path: Path) -> None:
    folder = tmp_path / "media"
    folder.mkdir()
    (folder / "a b.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    url = serve(engine, fetcher=Fetcher(folder))
    for good in ("file://a%20b.png", f"file://{folder}/a%20b.png"):
        assert ask(url, user(image_part(good))).status_code == 200
    for bad in ("file://../secret.png", f"file://{tmp_path}/secret.png", "file://link.png"):
        assert "below --media-path" in refusal(url, user(image_part(bad)))


class Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        places = {"/moved": "/a.png", "/loop": "/loop", "/away": "http://10.0.0.1/a.png"}
        if self.path in places:
            self.send_response(302)
            self.send_header("location", places[self.path])
            self.end_headers()
        elif self.path == "/a.png":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(png())
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(2000):
                self.wfile.write(bytes(4096))
        elif self.path == "/slow":
            threading.Event().wait(2)
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def pictures() -> Iterator[str]:
    """An HTTP server with pictures, on the loopback interface."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_downloads(serve: Serve, engine: Any, pictures: str) -> None:
    url, hasty = (
        serve(engine, fetcher=Fetcher(max_bytes=1 << 20, timeout=seconds, allow_private=True))
        for seconds in (20.0, 1.0)
    )
    for path in ("/a.png", "/moved"):
        assert ask(url, user(image_part(pictures + path))).status_code == 200
    reasons = {
        "/none": "was answered with 404", "/loop": "more than 3 redirects",
        "/endless": "longer than the limit of 1048576 bytes",
    }  # fmt: skip
    for path, reason in reasons.items():
        assert reason in refusal(url, user(image_part(pictures + path)))
    assert "took longer than 1 second" in refusal(hasty, user(image_part(pictures + "/slow")))


def test_downloads_wait_for_room(fakes: Any, pictures: str) -> None:
    """What all requests have fetched and not decoded yet is bounded, and given back."""
    reader = MediaReader(VISION, AUDIO, n_embd=64)
    room = Room(2**20)
    hasty, fetcher = (
        Fetcher(max_bytes=2**20, timeout=seconds, allow_private=True, room=room)
        for seconds in (0.3, 20.0)
    )
    engine = fakes.engine()
    engine.media = reader
    messages = user(image_part(f"{pictures}/a.png"))

    async def ask_twice() -> None:
        await room.take(1)
        with pytest.raises(ApiError, match="all of the 1048576 bytes for downloads") as caught:
            await read_media(messages, engine, hasty)
        assert caught.value.status == 503
        assert await read_media(user(image_part(data_url(png()))), engine, hasty)
        room.give(1)
        for _ in range(2):
            assert await read_media(messages, engine, fetcher)

    asyncio.run(ask_twice())
    assert room.free == 2**20


def test_the_address_of_a_redirect_is_checked(
    monkeypatch: pytest.MonkeyPatch, pictures: str
) -> None:
    """A public server cannot send us to a private one."""
    monkeypatch.setattr(
        "gguf_serve.server.http.fetch.is_public", lambda address: address == "127.0.0.1"
    )
    with pytest.raises(ValueError, match=r"10\.0\.0\.1, which is not public"):
        asyncio.run(Fetcher().download(f"{pictures}/away"))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True), ("10.0.0.1", False), ("169.254.169.254", False),
        ("::ffff:127.0.0.1", False), ("fe80::1%eth0", False), ("2606:4700::1111", True),
        ("224.0.0.1", False), ("0.0.0.0", False), ("100.64.0.1", False), ("::", False),
        ("64:ff9b::7f00:1", False), ("64:ff9b::5db8:d822", True), ("64:ff9b:1::5db8:d822", False),
        ("2002:7f00:1::", False), ("2002:a00:1::1", False), ("2002:5db8:d822::1", True),
        ("::127.0.0.1", False), ("::93.184.216.34", False), ("::ffff:93.184.216.34", True),
        ("::ffff:0:127.0.0.1", False), ("2001:0:7f00:1::f5ff:fffe", False),
        ("2001:0:5db8:d822::80ff:fffe", False), ("fc00::1", False), ("fec0::1", False),
        ("ff0e::1", False), ("5f00::1", False), ("2001:db8::1", False),
        ("255.255.255.255", False), ("192.0.0.1", False), ("198.18.0.1", False),
    ],
)  # fmt: skip
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    ("url", "peak"),
    [
        ("data:image/png;base64," + "QUJD" * 2**18, 4),
        ("data:image/png;base64," + "%51%55JD" * 2**18, 6),
        ("data:," + "%41" * 2**19, 6),
        ("data:" + ";" * 2**23, 1),
        ("data:image/png" + ";a=b" * 2**21 + ";base64,QUJD", 1),
    ],
    ids=["base64", "quoted base64", "quoted", "marks", "options"],
)
def test_memory_of_data_urls(url: str, peak: int) -> None:
    """``peak``: MiB beside the URL."""
    tracemalloc.start()
    with contextlib.suppress(ValueError):
        from_data_url(url)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < peak << 20


@pytest.mark.parametrize("shift", range(4))
def test_data_urls_in_pieces(shift: int) -> None:
    """A piece never ends between a mark and its digits."""
    text = "x" * (UNQUOTED_PIECE - shift) + "%00%ff" + "y" * BASE64_PIECE + "%4"
    expected = b"x" * (UNQUOTED_PIECE - shift) + b"\0\xff" + b"y" * BASE64_PIECE + b"%4"
    assert from_data_url("data:," + text) == expected
    encoded = base64.b64encode(expected).decode().replace("=", "%3D").replace("+", "%2B")
    assert from_data_url("data:a/b;c=d;base64," + encoded) == expected


@pytest.mark.parametrize("n_bytes", [0, 1, BASE64_PIECE * 3 // 4, BASE64_PIECE + 5])
@pytest.mark.parametrize("n_columns", [76, 10**6])
def test_base64_in_pieces(n_bytes: int, n_columns: int) -> None:
    data = bytes(range(251)) * (n_bytes // 251 + 1)
    text = base64.b64encode(data[:n_bytes]).decode()
    lines = [text[at : at + n_columns] for at in range(0, len(text), n_columns)]
    assert from_base64("\r\n".join(lines)) == data[:n_bytes]


@pytest.mark.parametrize(
    "text",
    ["A", "AAAAA", "AA=", "AA==AAAA", "AA-_", "A" * (BASE64_PIECE - 1) + "=" + "AAAA", "äAAA"],
)
def test_bad_base64(text: str) -> None:
    with pytest.raises(ValueError, match="the base64 cannot be read"):
        from_base64(text)


VIDEO = base64.b64encode(video(4, 2)).decode()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("input_video", {"data": VIDEO}),
        ("input_video", {"url": VIDEO}),
        ("video_url", {"url": f"data:video/webm;base64,{VIDEO}"}),
    ],
)
def test_a_video_is_as_many_images(
    serve: Serve, engine: Any, kind: str, value: dict[str, str]
) -> None:
    answer = ask(serve(engine), user({"type": kind, kind: value}))
    assert answer.status_code == 200, answer.text
    assert len(spans(engine)) == 4


def test_what_is_no_video_is_named(serve: Serve, engine: Any) -> None:
    answer = ask(serve(engine), user({"type": "video_url", "video_url": {"url": "AAAA"}}))
    message = answer.json()["error"]["message"]
    assert message.startswith("Field 'messages[0].content[0]': the video cannot be decoded")
