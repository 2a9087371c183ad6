"""OpenAI's files: what batches read, and what they have written."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Literal

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from gguf_serve.server.batches.objects import StoredFile, shown
from gguf_serve.server.batches.runner import Batches
from gguf_serve.server.batches.store import FILE_SECONDS, Store
from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.errors import json_response, not_enabled
from gguf_serve.server.http.client import client
from gguf_serve.server.http.form import FormFile
from gguf_serve.server.http.paging import page
from gguf_serve.server.requests.fields import convert
from gguf_serve.server.requests.service import Service

PATH = "/v1/files"
MOST_LISTED = 10_000
ALSO = ("model",)  # what proxies choose a provider by
LONGEST_NAME = 255  # characters of a file's name that are kept
Seconds = Annotated[int, msgspec.Meta(ge=3600, le=FILE_SECONDS)]


class FileFields(msgspec.Struct, kw_only=True):
    """A form's."""

    file: FormFile
    purpose: Literal["batch"]
    expires_anchor: Literal["created_at"] = msgspec.field(
        default="created_at", name="expires_after[anchor]"
    )
    expires_seconds: Seconds = msgspec.field(default=FILE_SECONDS, name="expires_after[seconds]")


def routes(service: Service) -> list[BaseRoute]:
    return [
        Post(PATH, partial(upload, service), None, form=FileFields, also=ALSO),
        Route(PATH, partial(files, service), methods=["GET"]),
        Route(PATH + "/{id}", partial(file, service), methods=["GET"]),
        Route(PATH + "/{id}", partial(delete, service), methods=["DELETE"]),
        Route(PATH + "/{id}/content", partial(content, service), methods=["GET"]),
    ]


def batches(service: Service) -> Batches:
    if service.batches is None:
        raise not_enabled("files and batches", "--batch-path FOLDER")
    return service.batches


def found(service: Service, http: HttpRequest) -> tuple[Store, StoredFile]:
    store = batches(service).store
    store.drop_old()
    return store, store.find_file(http.path_params["id"])


async def upload(service: Service, http: HttpRequest) -> Response:
    """Keep a file of requests for a batch."""
    store = batches(service).store
    fields = convert(await service.read_form(http), FileFields, strict=False)
    name = fields.file.name[:LONGEST_NAME]
    made = await asyncio.to_thread(store.add_file, fields.file.data, name, fields.expires_seconds)
    return json_response(shown(made))


async def files(service: Service, http: HttpRequest) -> Response:
    """Those of the client, newest first."""
    store = batches(service).store
    store.drop_old()
    query = http.query_params
    listed = [
        shown(file)
        for file in list(store.files.values())
        if file.owner == client.get() and query.get("purpose", file.purpose) == file.purpose
    ]
    return json_response(page(listed, query, what="file", most=MOST_LISTED, default=MOST_LISTED))


async def file(service: Service, http: HttpRequest) -> Response:
    """What is known of a file."""
    return json_response(shown(found(service, http)[1]))


async def delete(service: Service, http: HttpRequest) -> Response:
    """Delete a file."""
    store, kept = found(service, http)
    store.delete_file(kept)
    return json_response({"id": kept.id, "object": "file", "deleted": True})


async def content(service: Service, http: HttpRequest) -> Response:
    """The bytes of a file."""
    store, kept = found(service, http)
    return FileResponse(store.place(kept.id), media_type="application/octet-stream")
