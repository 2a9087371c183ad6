"""Our side of bench.py: measures the engine of this checkout, in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf_serve.engine.engine import Engine, load_engine
from gguf_serve.engine.forward import runner
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Delta, Embedding, Event, Failed, Finished, Request
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.kernels.opencl.device import open_device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import Counts, Tape
from gguf_serve.kernels.profile import read_bandwidth

Answer = dict[str, Any]
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
SAMPLED = SamplingParams(ignore_eos=True)


@dataclass
class Run:
    """A request's events as they arrive, with the time of each token."""

    request: Request
    times: list[float] = field(default_factory=list)  # one of each generated token
    tokens: list[int] = field(default_factory=list)
    finished: Finished | None = None
    failure: str = ""
    done: threading.Event = field(default_factory=threading.Event)

    def on_event(self, event: Event) -> None:
        if isinstance(event, Delta):
            self.tokens += event.tokens
            self.times += [time.perf_counter()] * len(event.tokens)
        elif isinstance(event, Finished):
            self.finished = event
            self.done.set()
        elif isinstance(event, Failed):
            self.failure = event.message
            self.done.set()


class Outside:
    """Seconds that the engine's thread spent in the driver since ``reset``.

    ``waiting``: reading a step's best tokens, the one blocking call if no sampler wants more.
    ``enqueueing``: handing over a step's launches, which the device begins with the first one.
    """

    def __init__(self) -> None:
        self.waiting = self.enqueueing = 0.0
        timed: Any = runner  # whose names it replaces
        self._read, self._run = timed.read, Tape.run
        timed.read = self._timed_read
        Tape.run = self._timed_run(Tape.run)  # type: ignore[method-assign, assignment]

    def reset(self) -> None:
        self.waiting = self.enqueueing = 0.0

    def _timed_read(self, *args: Any) -> Any:
        start = time.perf_counter()
        try:
            return self._read(*args)
        finally:
            self.waiting += time.perf_counter() - start

    def _timed_run(self, run: Callable[[Tape, Counts], None]) -> Callable[[Tape, Counts], None]:
        def timed(tape: Tape, counts: Counts) -> None:
            start = time.perf_counter()
            run(tape, counts)
            self.enqueueing += time.perf_counter() - start

        return timed


class EngineSubject:
    """A loaded engine; every measurement answers with ``value`` and maybe more."""

    def __init__(
        self,
        model: Path,
        *,
        n_ctx: int,
        n_slots: int,
        device: str | None,
        n_threads: int,
        kernel_family: str | None = None,
        activation_type: str = "auto",
        profile: bool = False,
        shares: bool = False,
    ) -> None:
        """``n_ctx``: tokens of each of the ``n_slots`` slots, or of all together if one ``shares``
        them with others; ``n_threads``: 0 for all."""
        options = EngineOptions(
            n_ctx=n_ctx if shares else n_ctx * n_slots,
            n_parallel=n_slots,
            kv_unified=shares,
            device=device,
            n_threads=n_threads or -1,
            kernel_family=kernel_family,
            activation_type=activation_type,
            profile=profile,
        )
        self._options = options
        start = time.perf_counter()
        self.engine: Engine = load_engine(model, options)
        self.load_seconds = time.perf_counter() - start
        while (
            not self.engine._loop.runner.is_complete
        ):  # programs of batches are compiled in pauses
            time.sleep(0.1)
        self._outside = Outside()

    def close(self) -> None:
        self.engine.close()

    def ask(self, op: str, **arguments: Any) -> Answer:
        answer: Answer = getattr(self, f"op_{op}")(**arguments)
        return answer

    def op_prompt(self, tokens: list[int]) -> Answer:
        start = time.perf_counter()
        (run,) = self._run([Request(tuple(tokens), GREEDY, max_tokens=1, cache_prompt=False)])
        seconds = run.times[0] - start
        return {"value": len(tokens) / seconds, "first_token": seconds}

    def op_generate(self, tokens: list[int], n: int) -> Answer:
        """The prompt may come from the prefix cache: it is not what is measured."""
        (run,) = self._run([Request(tuple(tokens), GREEDY, max_tokens=n)])
        return {"value": (n - 1) / (run.times[-1] - run.times[0])}

    def op_streams(self, prompts: list[list[int]], n: int) -> Answer:
        """Tokens per second of all streams together, while all of them generate."""
        runs = self._run(
            [Request(tuple(p), GREEDY, max_tokens=n, cache_prompt=False) for p in prompts]
        )
        start = max(run.times[0] for run in runs)
        end = min(run.times[-1] for run in runs)
        n_tokens = sum(start < at <= end for run in runs for at in run.times)
        return {"value": n_tokens / (end - start)}

    def op_embed(self, prompts: list[list[int]]) -> Answer:
        """Tokens per second until there are vectors of all prompts."""
        start = time.perf_counter()
        self._run([
            Request(tuple(p), max_tokens=0, wants=Embedding("mean"), cache_prompt=False)
            for p in prompts
        ])  # fmt: skip
        return {"value": sum(map(len, prompts)) / (time.perf_counter() - start)}

    def op_host(self, prompts: list[list[int]], n: int) -> Answer:
        """Milliseconds of the engine's thread for a step of all streams, default samplers.

        ``value`` is what it computes itself, while the device has nothing to do or, handing
        out events, the step before; ``enqueue`` is the driver's time for the step's launches.
        """
        requests = [Request(tuple(p), SAMPLED, max_tokens=n, cache_prompt=False) for p in prompts]
        self._outside.reset()
        start = time.perf_counter()
        end = max(run.times[-1] for run in self._run(requests))
        outside = self._outside
        own = end - start - outside.waiting - outside.enqueueing
        return {"value": 1e3 * own / n, "enqueue": 1e3 * outside.enqueueing / n}

    def op_memory(self) -> Answer:
        """Peak resident memory of this process in MiB."""
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        peak = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
        return {"value": int(peak) / 1024}

    def op_bandwidth(self) -> Answer:
        """Bytes per second that the device reads; needs memory of its own."""
        device = open_device(self._options.device, n_threads=self._options.n_threads)
        return {"value": read_bandwidth(device, Programs(device))}

    def _run(self, requests: Sequence[Request]) -> list[Run]:
        runs = [Run(request) for request in requests]
        for run in runs:
            self.engine.submit(run.request, run.on_event)
        for run in runs:
            run.done.wait()
            if run.failure:
                raise RuntimeError(run.failure)
            wanted = run.request.max_tokens
            if len(run.tokens) != wanted:
                raise RuntimeError(f"{len(run.tokens)} tokens generated instead of {wanted}")
        return runs
