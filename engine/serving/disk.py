"""The cache on disk, as the engine sees it: requests that come, prompts and sequences that end.

All of it is in the engine's thread and takes a small share of its time; the disk is others'.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from gguf_serve.engine.disk_cache.folder import Folder
from gguf_serve.engine.disk_cache.host_pages import HostPages
from gguf_serve.engine.disk_cache.names import root_of
from gguf_serve.engine.forward.cached_bytes import CachedBytes, PagesBeside
from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.options import PROJECTOR, EngineOptions, ModelInfo
from gguf_serve.engine.scheduling.checkpoints import Checkpoints
from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.engine.scheduling.sequence import Sequence
from gguf_serve.engine.serving.disk_loads import LEAST_TOKENS, DiskLoads, Loaded
from gguf_serve.engine.serving.disk_names import DiskNames
from gguf_serve.engine.serving.disk_saves import DiskSaves
from gguf_serve.engine.stats import DiskStats
from gguf_serve.kernels.attention.kv import LAYOUT
from gguf_serve.kernels.opencl.memory import available_memory

ALONE_SECONDS, BESIDE_SECONDS = 0.05, 0.002  # of the engine's thread at once, beside others
# Of the time, to copy pages that are to be written while others wait for tokens. Their thread needs
# about as much again, of one processor.
SAVING_SHARE = 0.01
CLOSE_SECONDS = 2.0  # for what is still to be written when the engine ends
WAIT_SECONDS = 0.02  # until ``wait`` looks again


class DiskOptions(Struct, frozen=True):
    """Where pages are kept (None: in the host's memory), how many bytes of them, and of how long a
    chain at least. ``settings``: what else decides their bytes, beside what a slot's file names."""

    folder: Path | None
    limit: int
    min_tokens: int
    settings: Mapping[str, Any] = field(default_factory=dict)


def host_options(
    options: EngineOptions, info: ModelInfo, checkpoints: Checkpoints | None
) -> DiskOptions | None:
    """What --cache-ram has for pages of a device with memory of its own: no more than checkpoints
    leave, and than half of what is free. None: nothing."""
    if not info.has_own_memory:
        return None
    most = (available_memory() or 0) // 2
    if options.cache_ram_mib >= 0:
        most = min(most, options.cache_ram_mib << 20)
    most -= 0 if checkpoints is None else checkpoints.most_bytes
    return DiskOptions(None, most, LEAST_TOKENS) if most > 0 else None


def disk_options(options: EngineOptions) -> DiskOptions | None:
    """Where --cache-disk keeps them; None: nowhere."""
    if options.cache_disk is None:
        return None
    settings: dict[str, Any] = {
        "layout": LAYOUT,
        "flash attention": options.flash_attn,
        "kernels": options.kernel_family,
    }
    if options.mmproj is None:
        settings[PROJECTOR] = []
    else:  # a slot's file names it, but not where it runs
        settings["device of the projector"] = options.mmproj_device
    folder = Path(options.cache_disk).expanduser()
    return DiskOptions(
        folder, options.cache_disk_mib << 20, options.cache_disk_min_tokens, settings
    )


class DiskCache:
    """Loads what requests begin with and keeps what has been computed."""

    def __init__(
        self,
        options: DiskOptions,
        scheduler: Scheduler,
        runner: Runner,
        info: ModelInfo,
        made_with: Mapping[str, Any],
        speed: Callable[[], float],
        wake: Callable[[], None],
        beside: PagesBeside | None = None,
    ) -> None:
        """``made_with``: what a slot's file names; ``speed``: tokens of prompts that are computed
        in a second; ``wake``: for other threads, wakes the engine's; ``beside``: of a model
        that guesses."""
        root = root_of({**made_with, **options.settings, "device": info.driver})
        cached = CachedBytes(scheduler, runner, beside)
        draft = b"" if beside is None else root_of(beside.made_with)
        names = DiskNames(root, scheduler.cache.page_size, draft)
        folder, limit = options.folder, options.limit
        store = HostPages(limit) if folder is None else Folder(folder, limit)
        self._store, self._loaded = store, Loaded()
        self._last_stats: DiskStats | None = None
        self._saves = DiskSaves(store, names, scheduler, cached, options.min_tokens, wake)
        self._loads = DiskLoads(store, names, scheduler, cached, speed, wake, self._loaded)
        self._worked = time.perf_counter()  # when ``work`` did last
        self._credit = 0.0  # seconds of copying that saving may take, or has taken ahead
        self._open: list[DiskSaves | DiskLoads] = [self._saves, self._loads]

    def admit(self, seq: Sequence) -> None:
        """A sequence has come; it may have to wait for what is loaded for it."""
        self._loads.offer(seq)

    def keep(self, seq: Sequence) -> None:
        """A prompt has been computed, or a sequence has ended."""
        self._saves.offer(seq)

    def forget(self, seq: Sequence) -> None:
        """What is kept of a sequence's tokens is damaged."""
        self._saves.forget(seq)

    @property
    def n_waiting(self) -> int:
        """Sequences that wait for what is loaded."""
        return self._loads.n_waiting

    def has_work(self, has_requests: bool) -> bool:
        """Whether ``work`` would do something, but for what the next step's time allows."""
        may_save = not has_requests or self._credit > 0.0
        return self._loads.has_work or (may_save and self._saves.has_work)

    def work(self, is_computing: bool, has_requests: bool) -> None:
        """Copy some pages; few of them if somebody waits for a step."""
        began, before = time.perf_counter(), self._worked
        self._worked = began
        self._loads.work(BESIDE_SECONDS if is_computing else ALONE_SECONDS)
        if not has_requests:
            self._saves.work(ALONE_SECONDS)
            return
        # A page may take longer than the share of a short step: then the next ones have none.
        began = time.perf_counter()
        self._credit = min(self._credit, 0.0) + (began - before) * SAVING_SHARE
        if self._credit > 0.0:
            self._saves.work(min(self._credit, ALONE_SECONDS))
            self._credit -= time.perf_counter() - began

    def wait(self, seconds: float) -> bool:
        """Let all that is on its way be written, for so long; False: something was not. From
        another thread than the engine's."""
        end = time.monotonic() + seconds
        while self._saves.is_behind and time.monotonic() < end:
            time.sleep(WAIT_SECONDS)
        return not (self._saves.is_behind or self._saves.has_failed)

    def stats(self) -> DiskStats:
        """From any thread."""
        if self._last_stats is not None:
            return self._last_stats
        store, loaded = self._store, self._loaded
        return DiskStats(
            place="disk" if isinstance(store, Folder) else "ram",
            n_bytes=store.n_bytes,
            n_files=store.n_files,
            n_hit_tokens=loaded.n_tokens,
            load_seconds=loaded.seconds,
            n_written=store.n_written,
            n_evicted=store.n_evicted,
            n_corrupt=store.n_corrupt,
        )

    def close(self) -> None:
        """Let what is on its way be written, for a moment."""
        while self._open:
            self._open.pop().close(CLOSE_SECONDS)

    def release(self) -> None:
        """Once it is closed: let the memory go, the device's and the host's. ``stats`` stays."""
        self._last_stats = self.stats()
        del self._saves, self._loads, self._store
