"""What ``--profile`` prints: the time of each kernel in typical steps, against the limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from gguf_serve.engine.forward.batch import OutputRow
from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.request import Request
from gguf_serve.engine.scheduling.sequence import Chunk
from gguf_serve.engine.scheduling.sequence import Sequence as RunningSequence
from gguf_serve.kernels.attention.kv import PAGE
from gguf_serve.kernels.opencl.tape import Counts, Launch
from gguf_serve.kernels.opencl.work import Spans
from gguf_serve.kernels.profile import Limits, StepTimes, measure_limits, time_step, touch_pages
from gguf_serve.kernels.quantization.quants import by_name

SHORT_CONTEXT, LONG_CONTEXT, SHORT_PROMPT = 64, 4096, 32
STREAMS = 8
TOKEN, K = 1, 40  # which token does not matter; as many candidates as samplers usually want


class TypicalStep(Struct, frozen=True):
    """A step to measure; ``spans`` are its sequences' first positions and tokens."""

    name: str
    spans: Spans


class Total(Struct, frozen=True):
    """Launches of one kernel in a step, or all of them: time, and work at least to be done."""

    name: str
    calls: int
    seconds: float
    weight_bytes: int
    kv_bytes: int
    macs: int

    @property
    def bytes_per_second(self) -> float:
        return (self.weight_bytes + self.kv_bytes) / self.seconds

    @property
    def macs_per_second(self) -> float:
        return self.macs / self.seconds


def typical_steps(
    n_ctx: int, n_tokens: int, n_outputs: int, *, generates: bool = True
) -> list[TypicalStep]:
    """Steps in a slot of ``n_ctx`` tokens, of up to n_tokens tokens and n_outputs logits; prompts
    alone of a model that does not generate."""
    long, prompt = min(LONG_CONTEXT, n_ctx), min(n_tokens, n_ctx)
    whole = TypicalStep(f"prompt of {prompt}", [(0, prompt)])
    if not generates:
        n = max(prompt // SHORT_PROMPT, 1)
        length = min(SHORT_PROMPT, prompt)
        return [TypicalStep(f"{n} prompts of {length}", [(0, length)] * n), whole]
    n = min(STREAMS, n_tokens, n_outputs, n_ctx)
    # All in one slot: each token sees its own number of the same keys.
    short = min(SHORT_CONTEXT, n_ctx - n)
    return [
        TypicalStep(f"one token after {short}", [(short, 1)]),
        TypicalStep(
            f"{n} sequences, one token each after {short}", [(short + i, 1) for i in range(n)]
        ),
        TypicalStep(f"one token after {long - 1}", [(long - 1, 1)]),
        whole,
    ]


def profile(runner: Runner, steps: Sequence[TypicalStep]) -> Iterator[str]:
    """Measure, before anything is served; yields lines of text.

    Writes to pages of the KV cache, from the first on.
    """
    recording, _ = runner.prepare(*_inputs(steps[0], runner.generates))
    tapes = dict(recording.tapes)
    _, tape = max(tapes.items())
    limits = measure_limits(tape.device, tape.programs)
    yield (
        f"limits: memory {limits.bytes_per_second / 1e9:.1f} GB/s read, "
        f"{limits.macs_per_second / 1e9:.0f} GMAC/s ({tape.device.family})"
    )
    ends = [at + n for step in steps for at, n in step.spans]
    for at, tape in tapes.items():
        touch_pages(tape.device, runner.pages[at], -(-max(ends) // PAGE))
    for step in steps:
        recording, counts = runner.prepare(*_inputs(step, runner.generates))
        *runs, (last, tape) = recording.tapes  # the last device finds the best logits
        runs.append((last, tape.joined(runner.topk) if runner.generates else tape))
        times = [time_step(tape, counts[at]) for at, tape in runs]
        whole = StepTimes(
            sum(time.seconds for time in times), tuple(x for time in times for x in time.launches)
        )
        yield ""
        yield from report(step, whole, counts[0], limits)


def _inputs(step: TypicalStep, generates: bool) -> tuple[list[Chunk], list[OutputRow]]:
    chunks = []
    for i, (start, count) in enumerate(step.spans):
        seq = RunningSequence.from_request(i, Request((TOKEN,) * (start + count)))
        seq.slot, seq.table = 0, list(range(-(-max(map(sum, step.spans)) // PAGE)))
        chunks.append(Chunk(seq, start, count, "last" if generates else "hidden"))
    if not generates:
        return chunks, []
    return chunks, [OutputRow(chunk, chunk.start + chunk.count - 1, K) for chunk in chunks]


def report(step: TypicalStep, times: StepTimes, counts: Counts, limits: Limits) -> Iterator[str]:
    """A step as two lines on the whole of it and a table of its kernels."""
    kernels = _by_kernel(step, times, counts)
    whole = Total(
        "", sum(k.calls for k in kernels), times.seconds, sum(k.weight_bytes for k in kernels),
        sum(k.kv_bytes for k in kernels), sum(k.macs for k in kernels),
    )  # fmt: skip
    inside = sum(k.seconds for k in kernels)
    yield (
        f"{step.name}: {_ms(whole.seconds)} ms, {whole.calls} launches "
        f"({_ms(inside)} ms inside kernels)"
    )
    yield (
        f"  weights {whole.weight_bytes / 1e6:.1f} MB, KV {whole.kv_bytes / 1e6:.1f} MB: "
        f"{whole.bytes_per_second / limits.bytes_per_second:.0%} of the memory's limit; "
        f"{whole.macs / 1e9:.2f} GMAC: "
        f"{whole.macs_per_second / limits.macs_per_second:.0%} of the multiply-adds'"
    )
    yield f"  {'ms':>9} {'share':>6} {'calls':>6} {'us/call':>8} {'GB/s':>6} {'GMAC/s':>7}  kernel"
    yield from (_row(kernel, inside) for kernel in kernels)


def _by_kernel(step: TypicalStep, times: StepTimes, counts: Counts) -> list[Total]:
    """The longest first."""
    groups: dict[str, list[tuple[Launch, float]]] = {}
    for launch, seconds in times.launches:
        groups.setdefault(launch.name, []).append((launch, seconds))
    totals = [
        Total(
            short_name(name), len(group), sum(seconds for _, seconds in group),
            sum(launch.work.weight_bytes for launch, _ in group),
            sum(launch.work.kv_bytes(step.spans) for launch, _ in group),
            sum(launch.work.multiply_adds(counts, step.spans) for launch, _ in group),
        )
        for name, group in groups.items()
    ]  # fmt: skip
    return sorted(totals, key=lambda total: -total.seconds)


def short_name(label: str) -> str:
    """``matmul(ACT_INT TYPE_Q4_1 NT=1)`` as ``matmul int Q4_1 NT1``."""
    name, _, defines = label.rstrip(")").partition("(")
    words = [name, *defines.split()]
    types = [by_name(word[5:]) for word in words if word.startswith("TYPE_")]
    known = {define for kind in types for define in kind.defines[1:]}
    return " ".join(
        word.replace("TYPE_", "").replace("ACT_", "").replace("INT", "int").replace("=", "")
        for word in words
        if word not in known and not word.startswith(("PAGE=", "CAPACITY=", "PREFETCH_BYTES="))
    )


def _row(kernel: Total, inside: float) -> str:
    rates = [kernel.bytes_per_second / 1e9, kernel.macs_per_second / 1e9]
    read, multiplied = (f"{rate:.1f}" if rate else "" for rate in rates)
    return (
        f"  {_ms(kernel.seconds):>9} {kernel.seconds / inside:>6.1%} {kernel.calls:>6} "
        f"{kernel.seconds / kernel.calls * 1e6:>8.1f} {read:>6} {multiplied:>7}  {kernel.name}"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"
