"""The line of the log that every request gets."""

from __future__ import annotations

import logging
import re
import time
from typing import Any

import httpx
import pytest

from gguf_serve.engine.request import Delta, Failed, Started

NAME = "gguf_serve.server.http.request_log"
COMPLETION = {"prompt": "abc", "max_tokens": 12}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """Waits for the line of a request, which comes after the client has its answer. That of another
    test's, whose server still runs, may come now: what began before does not count."""
    caplog.set_level(logging.DEBUG, logger=NAME)
    began = time.time() - 0.02

    def found(n: int = 1) -> list[logging.LogRecord]:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            records = [
                record
                for record in caplog.records
                if record.name == NAME and record.created - record.fields["seconds"] > began
            ]
            if len(records) >= n:
                return records
            time.sleep(0.01)
        raise AssertionError(f"fewer than {n} lines: {caplog.text}")

    return found


@pytest.mark.parametrize("streaming", [False, True])
def test_tokens_and_times(serve: Any, fakes: Any, lines: Any, streaming: bool) -> None:
    body = COMPLETION | {"stream": streaming}
    httpx.post(serve(fakes.engine()) + "/v1/completions?key=secret", json=body)
    record = lines()[0]
    assert record.levelno == logging.INFO
    assert re.fullmatch(
        r"127\.0\.0\.1 POST /v1/completions 200 in \d+\.\d\d s: 4 tokens in \(2 cached\), "
        r"12 out, \d+\.\d tokens/s, the first after \d+ ms",
        record.getMessage(),
    )
    assert record.fields | {"seconds": 0, "tokens_per_second": 0, "first_token_ms": 0} == {
        "client": "127.0.0.1", "method": "POST", "path": "/v1/completions", "status": 200,
        "seconds": 0, "prompt_tokens": 4, "cached_tokens": 2, "completion_tokens": 12,
        "tokens_per_second": 0, "first_token_ms": 0,
    }  # fmt: skip


def test_reasons_of_errors(serve: Any, fakes: Any, lines: Any) -> None:
    url = serve(fakes.engine(), api_keys=("k",))
    httpx.post(url + "/v1/completions", json=COMPLETION)
    header = {"authorization": "Bearer k"}
    httpx.post(url + "/v1/completions", json={"prompt": "x", "n": -3}, headers=header)
    httpx.get(url + "/nothing", headers=header)
    found = [record.getMessage() for record in lines(3)]
    assert ["401" in found[0], "Invalid API Key" in found[0]] == [True, True]
    assert re.search(r"400 in .*'n'", found[1])
    assert re.search(r"GET /nothing 404 in .*: File Not Found", found[2])
    assert {record.levelno for record in lines(3)} == {logging.WARNING}


def test_an_error_in_a_stream(serve: Any, fakes: Any, lines: Any) -> None:
    events = Started(4, 0, 0), Delta("x", (120,)), Failed("the device is gone")
    engine = fakes.engine(lambda request, cancelled: iter(events))
    httpx.post(serve(engine) + "/v1/completions", json=COMPLETION | {"stream": True})
    assert lines()[0].getMessage().endswith("the device is gone")


def test_a_fault_of_the_servers_own_has_a_traceback(
    serve: Any, fakes: Any, lines: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine = fakes.engine()
    engine.submit = None
    response = httpx.post(serve(engine) + "/v1/completions", json=COMPLETION)
    assert response.status_code == 500
    assert "TypeError" in lines()[0].getMessage()
    assert "Traceback" in caplog.text


def test_what_is_read_time_and_again(serve: Any, fakes: Any, lines: Any) -> None:
    url = serve(fakes.engine())
    httpx.get(url + "/health")
    httpx.post(url + "/page/html", json={"text": "a"})
    assert {record.levelno for record in lines(2)} == {logging.DEBUG}


def test_who_asks_until_the_model_is_there(serve: Any, lines: Any) -> None:
    url = serve(None)
    httpx.get(url + "/health")
    httpx.post(url + "/v1/completions", json=COMPLETION)
    assert [record.levelno for record in lines(2)] == [logging.DEBUG, logging.WARNING]


def test_no_client_writes_lines_of_its_own(serve: Any, fakes: Any, lines: Any) -> None:
    httpx.post(serve(fakes.engine()) + "/a%0AINFO%20all%20is%20well%1b[2K")
    assert "POST /a%0AINFO%20all%20is%20well%1b[2K 404" in lines()[0].getMessage()
