"""Measures the engine of this checkout, and llama.cpp on the same file if asked.

    python scripts/bench.py -m model.gguf
    python scripts/bench.py -m model.gguf --peer --peer-python other-venv/bin/python
    python scripts/bench.py -m model.gguf --widths

With --peer the two take turns at every measurement (ours, peer, ours, peer, ...) and the
medians are compared; who is not measured waits and uses no processor. Prompts are random
tokens of a fixed seed, the same for both, and generation is greedy. With --widths it is measured
instead what a step costs by how many tokens it has (bench_widths.py), with --disk what the cache
on disk gains and costs (bench_disk.py), with --embed how fast an embedding model reads
(bench_embeddings.py).
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # this checkout, whatever is installed

import bench_disk  # noqa: E402
import bench_embeddings  # noqa: E402
import bench_report as report  # noqa: E402
import bench_start  # noqa: E402
import bench_widths as step_widths  # noqa: E402
from bench_engine import EngineSubject  # noqa: E402
from bench_report import Row  # noqa: E402
from peer_process import PeerError, PeerProcess, peer_python  # noqa: E402

from gguf_serve.engine.errors import EngineError  # noqa: E402
from gguf_serve.engine.gguf.file import open_gguf  # noqa: E402
from gguf_serve.kernels.attention.kv import PAGE  # noqa: E402

SHORT_PROMPT = 16
FIRST_TOKEN_PROMPT = 32
SETTLE_SECONDS = 0.3  # for threads that spin for a while after their work
SEED = 1

Ask = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Measurement:
    """A question to both subjects, and an untimed smaller one before the first."""

    row: Row
    op: str
    arguments: Callable[[], dict[str, Any]]  # new random tokens with every call
    warm_up: Callable[[], dict[str, Any]]
    key: str = "value"
    scale: float = 1.0


class Plan:
    """The measurements that fit the model's context."""

    def __init__(self, options: argparse.Namespace, n_vocab: int, n_ctx_train: int) -> None:
        self._random = np.random.default_rng(SEED)
        self._n_vocab, self._options = n_vocab, options
        longest = max([*options.prompts, options.depth, SHORT_PROMPT]) + options.generate + 8
        self.n_ctx = min(longest, n_ctx_train)
        pages = -(-(SHORT_PROMPT + options.generate) // PAGE) + 1  # of a stream
        self.n_all = max(self.n_ctx, max(options.streams) * pages * PAGE)  # tokens in the cache
        self.skipped: list[str] = []
        self.measurements = [
            *(self._prompt(n) for n in options.prompts if self._fits(n, "prompt")),
            self._first_token(),
            self._generate(SHORT_PROMPT),
        ]
        if options.depth and self._fits(options.depth + options.generate, "depth"):
            self.measurements.append(self._generate(options.depth))
        self.measurements += [self._streams(n) for n in options.streams if n > 1]

    def _fits(self, n: int, what: str) -> bool:
        fits = bool(n + 1 < self.n_ctx)
        if not fits:
            self.skipped.append(f"{what} of {n} tokens: the context has {self.n_ctx}")
        return fits

    def _tokens(self, n: int) -> list[int]:
        low = min(300, self._n_vocab // 4)  # above special tokens and bytes
        return [int(t) for t in self._random.integers(low, self._n_vocab // 2, n)]

    def _prompt(self, n: int) -> Measurement:
        return Measurement(
            Row(f"prompt, {n} tokens", "tok/s"), "prompt",
            lambda: {"tokens": self._tokens(n)}, lambda: {"tokens": self._tokens(min(n, 64))},
        )  # fmt: skip

    def _first_token(self) -> Measurement:
        ask = lambda: {"tokens": self._tokens(FIRST_TOKEN_PROMPT)}  # noqa: E731
        row = Row(f"first token, prompt of {FIRST_TOKEN_PROMPT}", "ms", lower_is_better=True)
        return Measurement(row, "prompt", ask, ask, key="first_token", scale=1e3)

    def _generate(self, depth: int) -> Measurement:
        n, tokens = self._options.generate, self._tokens(depth)
        return Measurement(
            Row(f"generate {n} after {depth}", "tok/s"), "generate",
            lambda: {"tokens": tokens, "n": n}, lambda: {"tokens": tokens, "n": 8},
        )  # fmt: skip

    def short_prompts(self, n: int) -> list[list[int]]:
        return [self._tokens(SHORT_PROMPT) for _ in range(n)]

    def _streams(self, n_streams: int) -> Measurement:
        def ask(n: int) -> dict[str, Any]:
            return {"prompts": self.short_prompts(n_streams), "n": n}

        n = self._options.generate
        row = Row(f"{n_streams} streams generate {n} each, total", "tok/s")
        return Measurement(row, "streams", lambda: ask(n), lambda: ask(n))


def take_turns(
    plan: Plan, ours: Ask, peer: Ask | None, repeat: int, row_done: Callable[[Row], None],
    seconds: float = math.inf,
) -> None:  # fmt: skip
    """Measure everything, ``repeat`` times or once: no repetition begins after its measurement's
    share of ``seconds``."""
    start = time.monotonic()
    for n_done, m in enumerate(plan.measurements, 1):
        end = start + seconds * n_done / len(plan.measurements)
        warm_up = m.warm_up()
        for ask in filter(None, (ours, peer)):
            ask(m.op, **warm_up)
        for i in range(repeat):
            if i and time.monotonic() > end:
                break
            arguments = m.arguments()
            time.sleep(SETTLE_SECONDS)
            answer = ours(m.op, **arguments)
            m.row.ours.append(answer[m.key] * m.scale)
            if peer is not None:
                time.sleep(SETTLE_SECONDS)
                m.row.peer.append(peer(m.op, **arguments)[m.key] * m.scale)
        row_done(m.row)


def host_rows(plan: Plan, ours: Ask, options: argparse.Namespace) -> list[Row]:
    """The engine's own time, and the driver's for enqueueing, in a step that generates."""
    rows = []
    for n_streams in dict.fromkeys((1, *options.streams)):
        name = f"of {n_streams} streams" if n_streams > 1 else "of one stream"
        own = Row(f"host time, step {name}", "ms", lower_is_better=True)
        enqueue = Row(f"enqueueing by the driver, step {name}", "ms", lower_is_better=True)
        for _ in range(options.repeat):
            answer = ours("host", prompts=plan.short_prompts(n_streams), n=options.generate)
            own.ours.append(answer["value"])
            enqueue.ours.append(answer["enqueue"])
        rows += [own, enqueue]
    return rows


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the engine, and llama.cpp beside it.")
    add = parser.add_argument
    add("-m", "--model", type=Path, required=True, help="GGUF file")
    add("--device", help="as serve --device")
    add("--kernel-family", choices=("simd", "simt"), help="as serve --kernel-family")
    add("--activation-type", choices=("auto", "int8", "int16"), default="auto", help="as serve's")
    add("--profile", action="store_true", help="log each kernel's time, as a part of loading")
    add("--threads", type=int, default=0, help="CPU threads of both; 0: every core")
    add("--prompts", type=numbers, default=(512, 2048), help="lengths (default 512,2048)")
    add("--generate", type=int, default=128, help="tokens to generate (default 128)")
    add("--depth", type=int, default=4096, help="also generate after so many; 0: do not")
    add("--streams", type=numbers, default=(8,), help="in parallel (default 8); 1: do not")
    add("--repeat", type=int, default=3, help="of every measurement (default 3)")
    add("--most-seconds", type=float, default=math.inf, help="no repetition begins after so many")
    add("--widths", type=numbers, nargs="?", const=step_widths.WIDTHS,
        help="measure steps of so many tokens instead (default 1,2,3,4,6,8,16,32)")  # fmt: skip
    add("--seconds", type=float, default=20.0, help="that --widths measures (default 20)")
    add(
        "--disk",
        action="store_true",
        help="measure --cache-disk instead: first tokens of --prompts",
    )
    add("--embed", action="store_true", help="measure an embedding model instead")
    add("--peer", action="store_true", help="measure llama-cpp-python too")
    add("--peer-python", help="its interpreter (default $GGUF_SERVE_PEER_PYTHON or this one)")
    add("--markdown", action="store_true", help="print Markdown")
    add("--json", type=Path, metavar="FILE", help="write every number to this file")
    options = parser.parse_args()
    if options.repeat < 1 or options.generate < 2 or min(options.streams) < 1 or options.depth < 0:
        parser.error("--repeat and --streams need 1 or more, --generate 2, --depth 0")
    if options.widths and 1 not in options.widths:
        parser.error("--widths needs 1, of which the others are multiples")
    return options


def numbers(text: str) -> tuple[int, ...]:
    values = tuple(int(part) for part in text.split(",") if part)
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of positive numbers")
    return values


def load(
    options: argparse.Namespace, n_ctx: int, n_slots: int, *, shares: bool = False
) -> EngineSubject:
    return EngineSubject(
        options.model, n_ctx=n_ctx, n_slots=n_slots, device=options.device,
        n_threads=options.threads, kernel_family=options.kernel_family,
        activation_type=options.activation_type, profile=options.profile, shares=shares,
    )  # fmt: skip


def run_widths(options: argparse.Namespace) -> dict[str, Any]:
    """What bench_widths.py measures."""
    facts = {"model": options.model.name, **report.machine()}
    busy = report.is_busy()
    most = max(options.widths)
    subject = load(options, step_widths.DEPTH + most, most)
    try:
        facts |= report.versions(subject.engine)
        runner = subject.engine._loop.runner
        times = step_widths.measure(runner, options.widths, step_widths.DEPTH, options.seconds)
    finally:
        subject.close()
    facts["after"] = f"{step_widths.DEPTH} tokens"
    return {
        "facts": facts, "busy": busy, "skipped": [], "table": step_widths.cells(times),
        "widths": step_widths.as_json(times),
    }  # fmt: skip


def run_disk(options: argparse.Namespace) -> dict[str, Any]:
    """What bench_disk.py measures."""
    facts, busy = {"model": options.model.name, **report.machine()}, report.is_busy()
    facts["gguf-serve"] = report.installed("gguf-serve")
    rows = [
        *bench_disk.first_tokens(options.model, options.prompts),
        *bench_disk.beside(options.model, options.generate, options.repeat),
    ]
    return {"facts": facts, "busy": busy, "skipped": [], "table": [bench_disk.HEAD, *rows]}


def run_embeddings(options: argparse.Namespace) -> dict[str, Any]:
    """What bench_embeddings.py measures."""
    facts, busy = {"model": options.model.name, **report.machine()}, report.is_busy()
    n, length = (max(sizes) for sizes in zip(*bench_embeddings.SIZES, strict=True))
    ready, memory = (
        Row(name, unit, lower_is_better=True)
        for name, unit in (("ready after", "s"), ("peak memory", "MiB"))
    )
    subject, peer = load(options, n * length, n, shares=True), None
    ready.ours.append(subject.load_seconds)
    facts |= report.versions(subject.engine)
    try:
        if options.peer:
            peer, facts["peer"] = start_peer(options, length, ready)
        ask, n_vocab = peer.ask if peer else None, subject.engine.info.n_vocab
        rows = bench_embeddings.measure(subject.ask, ask, n_vocab, options.repeat)
        memory.ours.append(subject.ask("memory")["value"])
        if peer:
            memory.peer.append(peer.ask("memory")["value"])
    finally:
        subject.close()
        if peer:
            peer.close()
    rows += [ready, memory]
    return {
        "facts": facts, "busy": busy, "skipped": [], "table": report.cells(rows, options.peer),
        "rows": [row.as_dict() for row in rows],
    }  # fmt: skip


def start_peer(options: argparse.Namespace, n_ctx: int, ready: Row) -> tuple[PeerProcess, str]:
    script = Path(__file__).with_name("bench_peer.py")
    peer = PeerProcess(peer_python(options.peer_python), script)
    answer = peer.ask("load", model=str(options.model), n_ctx=n_ctx, n_threads=options.threads)
    ready.peer.append(answer["value"])
    return peer, f"{answer['version']} ({answer['system'].strip()})"


def bandwidth_share(subject: EngineSubject, plan: Plan, facts: dict[str, str]) -> Row:
    """How much of the memory's measured read bandwidth one stream's weights take."""
    bandwidth, token_bytes = subject.ask("bandwidth")["value"], subject.engine.info.token_bytes
    facts["memory read"] = f"{bandwidth / 1e9:.1f} GB/s measured on the device"
    facts["weights per token"] = f"{token_bytes / 1e6:.1f} MB"
    generate = next(m.row for m in plan.measurements if m.op == "generate")
    row = Row(f"share of memory read, {generate.name}", "%")
    row.ours += [100 * rate * token_bytes / bandwidth for rate in generate.ours]
    return row


def start_row(options: argparse.Namespace) -> Row:
    """What a start of the server takes once its programs have been compiled: processor time, which
    depends less on what else the machine does. More of a start: bench_start.py."""
    row = Row("start of the server", "s of processors", lower_is_better=True)
    threads = ("--threads", str(options.threads)) * bool(options.threads)
    bench_start.start(options.model, threads)
    row.ours += [bench_start.start(options.model, threads).processor for _ in range(3)]
    return row


def run(options: argparse.Namespace) -> dict[str, Any]:
    with open_gguf(options.model) as gguf:
        n_ctx_train = gguf.get_int(gguf.arch_key("context_length"))
        n_vocab = len(gguf.metadata["tokenizer.ggml.tokens"])
    facts = {"model": options.model.name, **report.machine()}
    busy = report.is_busy()
    plan = Plan(options, n_vocab, n_ctx_train)
    started = start_row(options)
    ready = Row("ready after", "s", lower_is_better=True)
    memory = Row("peak memory", "MiB", lower_is_better=True)
    subject = load(options, plan.n_all, max(options.streams), shares=True)
    ready.ours.append(subject.load_seconds)
    facts |= report.versions(subject.engine)
    peer = None
    try:
        if options.peer:
            peer, facts["peer"] = start_peer(options, plan.n_ctx, ready)
        take_turns(
            plan, subject.ask, peer.ask if peer else None, options.repeat,
            lambda row: print(f"  {row.name}: {report.number(row.ours)}", file=sys.stderr),
            options.most_seconds,
        )  # fmt: skip
        host = host_rows(plan, subject.ask, options)
        memory.ours.append(subject.ask("memory")["value"])
        if peer:
            memory.peer.append(peer.ask("memory")["value"])
        share = bandwidth_share(subject, plan, facts)
    finally:
        subject.close()
        if peer:
            peer.close()
    rows = [*(m.row for m in plan.measurements), share, *host, started, ready, memory]
    return {
        "facts": facts, "busy": busy, "skipped": plan.skipped,
        "table": report.cells(rows, options.peer), "rows": [row.as_dict() for row in rows],
    }  # fmt: skip


def main() -> int:
    options = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        measured = {
            bool(options.widths): run_widths, options.disk: run_disk,
            options.embed: run_embeddings,
        }.get(True, run)  # fmt: skip
        result = measured(options)
    except (EngineError, PeerError, bench_disk.DifferenceError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    table = result.pop("table")
    layout = report.markdown_table if options.markdown else report.text_table
    print(report.facts(result["facts"], markdown=options.markdown), layout(table), sep="\n\n")
    for skipped in result["skipped"]:
        print(f"\nskipped: {skipped}")
    if result["busy"]:
        print("\nWARNING: the machine was busy before the run; the numbers are not comparable.")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
