"""The lines of a batch's files, as OpenAI writes them: requests, answers and what went wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from gguf_serve.server.batches.objects import new_id

MAX_LINES = 50_000
MAX_ERRORS = 100  # that are told of a file
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
LONGEST_NAME = 512  # characters of a custom_id


class Line(Struct, frozen=True):
    """Where a request is in its file: to keep them all would take as much memory as the file."""

    custom_id: str
    start: int
    n_bytes: int


class Given(Struct):
    custom_id: str
    method: str
    url: str
    body: dict[str, Any]


class InvalidFileError(Exception):
    """What is wrong with a file of requests, as a batch's ``errors``."""

    def __init__(self, data: list[dict[str, Any]]) -> None:
        super().__init__(data[0]["message"])
        self.errors = {"object": "list", "data": data}


def fault(
    code: str, message: str, line: int | None = None, param: str | None = None
) -> dict[str, Any]:
    """An entry of a batch's ``errors``; lines count from 1."""
    return {"code": code, "message": message, "param": param, "line": line}


def read_lines(path: Path, endpoint: str) -> list[Line]:
    """The requests of a file, all of which are for this endpoint; blank lines are none.
    InvalidFileError says which cannot be one."""
    found: list[Line] = []
    names: set[str] = set()
    faults: list[dict[str, Any]] = []
    start = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                wrong = found_wrong(raw, endpoint, number, names)
                if isinstance(wrong, str):
                    found.append(Line(wrong, start, len(raw)))
                else:
                    faults.append(wrong)
            start += len(raw)
            if len(faults) >= MAX_ERRORS or len(found) > MAX_LINES:
                break
    if len(found) > MAX_LINES:
        faults.append(fault("too_many_tasks", f"The file has more than {MAX_LINES} requests"))
    if not found and not faults:
        faults.append(fault("empty_file", "The input file is empty"))
    if faults:
        raise InvalidFileError(faults)
    return found


def found_wrong(raw: bytes, endpoint: str, number: int, names: set[str]) -> str | dict[str, Any]:
    """The ``custom_id`` of a line, or what is wrong with it; ``names``: those of the lines before,
    to which it is added."""
    try:
        given = msgspec.json.decode(raw, type=Given)
    except msgspec.ValidationError as error:
        return fault("invalid_request", f"Line {number}: {error}", number)
    except (msgspec.DecodeError, RecursionError):
        message = f"Line {number} is not parseable as JSON"
        return fault("invalid_json_line", message, number)
    if not 1 <= len(given.custom_id) <= LONGEST_NAME:
        message = f"Line {number}: a custom_id has 1 to {LONGEST_NAME} characters"
        return fault("invalid_custom_id", message, number, "custom_id")
    if given.method != "POST":
        message = f"Line {number}: method: expected 'POST', got {given.method[:40]!r}"
        return fault("invalid_method", message, number, "method")
    if given.url != endpoint:
        message = f"Line {number}: url: expected the batch's {endpoint!r}, got {given.url[:80]!r}"
        return fault("mismatched_url", message, number, "url")
    if given.custom_id in names:
        message = f"Line {number}: the custom_id {given.custom_id[:80]!r} has been there before"
        return fault("duplicate_custom_id", message, number, "custom_id")
    names.add(given.custom_id)
    return given.custom_id


def read_body(path: Path, line: Line) -> dict[str, Any]:
    """The body of one request of a file."""
    with path.open("rb") as file:
        file.seek(line.start)
        return msgspec.json.decode(file.read(line.n_bytes), type=Given).body


def answer(custom_id: str, status: int, body: bytes) -> bytes:
    """A line of the output file, or with a status from 400 on of the error file; ``body`` is
    JSON."""
    response = {"status_code": status, "request_id": new_id("req_"), "body": msgspec.Raw(body)}
    return encoded(custom_id, response, None)


def never_run(custom_id: str) -> bytes:
    """A line of the error file for a request whose time was over."""
    message = "This request could not be executed before the completion window expired."
    return encoded(custom_id, None, {"code": "batch_expired", "message": message})


def encoded(custom_id: str, response: Any, error: Any) -> bytes:
    found = {
        "id": new_id("batch_req_"), "custom_id": custom_id, "response": response, "error": error,
    }  # fmt: skip
    return msgspec.json.encode(found) + b"\n"
