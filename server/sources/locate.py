"""The model's files on this disk, whatever the command line names them by."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gguf_serve.server.configure import SettingsError

if TYPE_CHECKING:
    from gguf_serve.server.options.settings import Settings
    from gguf_serve.server.sources.hub import Found


def located(settings: Settings) -> Settings:
    """With ``model`` and ``mmproj`` as paths, downloaded first where they are not there yet;
    SettingsError says why they cannot be had."""
    settings = with_draft(with_model(settings))
    if settings.mmproj_url is not None and settings.mmproj is None:
        from gguf_serve.server.sources.url import fetched

        settings = replace(
            settings, mmproj=str(fetched(settings.mmproj_url, offline=settings.offline))
        )
    return settings


def with_draft(settings: Settings) -> Settings:
    """With the file of a draft model, if a repository names one."""
    if settings.draft_repo is None:
        return settings
    found = in_hub(settings, "-hfd", settings.draft_repo, settings.engine.speculation.draft.model)
    speculation = settings.engine.speculation
    draft = replace(speculation.draft, model=str(found.model))
    speculation = replace(speculation, draft=draft)
    return replace(settings, engine=replace(settings.engine, speculation=speculation))


def in_hub(
    settings: Settings, option: str, name: str, file: str | None, *, with_mmproj: bool = False
) -> Found:
    """A repository's model, or a file of it; SettingsError, which names the option, if it cannot
    be had."""
    from gguf_serve.server.sources.choice import Repo
    from gguf_serve.server.sources.hub import Hub

    try:
        repo = Repo.parse(name)
    except ValueError as error:
        raise SettingsError(f"{option}: {error}") from None
    hub = Hub(token=settings.hf_token, offline=settings.offline)
    return hub.find(repo, file, with_mmproj=with_mmproj)


def with_model(settings: Settings) -> Settings:
    if settings.hf_repo is not None:
        wants_mmproj = settings.use_mmproj and settings.mmproj is None
        found = in_hub(
            settings, "-hf", settings.hf_repo, settings.hf_file,
            with_mmproj=wants_mmproj and settings.mmproj_url is None,
        )  # fmt: skip
        mmproj = settings.mmproj if found.mmproj is None else str(found.mmproj)
        return replace(settings, model=str(found.model), mmproj=mmproj)
    if settings.hf_file is not None:
        raise SettingsError("-hff names a file of a repository: give that with -hf USER/NAME")
    if settings.model_url is not None:
        from gguf_serve.server.sources.url import fetched

        return replace(settings, model=str(fetched(settings.model_url, offline=settings.offline)))
    if settings.docker_repo is not None:
        from gguf_serve.server.sources import docker

        model = docker.fetched(settings.docker_repo, offline=settings.offline)
        return replace(settings, model=str(model))
    return settings
