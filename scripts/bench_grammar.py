"""What a grammar costs: free and constrained generation of as many tokens, in one process.

    python scripts/bench_grammar.py -m model.gguf

Free and constrained runs take turns; the prompt, the sampler and the number of tokens are the
same. A schema asks for more than is generated, so that no run ends early. Compilation, which
happens before a request enters the engine, is measured apart.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from bench_engine import Run
from msgspec.structs import replace

from gguf_serve.engine.engine import Engine, load_engine
from gguf_serve.engine.grammar.constraint import Constraint
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Request
from gguf_serve.engine.sampling_params import SamplingParams

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "born": {"type": "string", "format": "date"},
        "children": {"type": "integer", "minimum": 0, "maximum": 12},
        "city": {"enum": ["Athens", "Berlin", "Cairo", "Delhi", "Edinburgh"]},
        "remarks": {"type": "array", "items": {"type": "string", "maxLength": 80}, "minItems": 1},
    },
    "required": ["name", "born", "children", "city", "remarks"],
    "additionalProperties": False,
}
PEOPLE = {"type": "array", "items": PERSON, "minItems": 1000}
CONSTRAINTS = {
    "schema": Constraint("json_schema", json.dumps(PEOPLE)),
    "any JSON": Constraint("json_schema", '{"type": "array", "minItems": 1000}'),
    "regex": Constraint("regex", r"([A-Z][a-z]+( [a-z]+){2,12}[.!?] ){1000}"),
    "GBNF": Constraint("gbnf", 'root ::= line{1000}\nline ::= "- " [a-zA-Z ,.]+ "\\n"'),
}
PROMPT = "Three invented people, as a JSON list with names, birthdays, cities and remarks:\n"
SAMPLERS = {
    "greedy": SamplingParams(temperature=0.0),
    "default": SamplingParams(seed=1),
}


def speed(engine: Engine, request: Request, n_streams: int) -> float:
    """Tokens per second of all streams, from the last one's first token to the first one's last."""
    runs = [Run(request) for _ in range(n_streams)]
    for run in runs:
        engine.submit(run.request, run.on_event)
    for run in runs:
        run.done.wait()
        if run.failure or len(run.tokens) != request.max_tokens:
            raise SystemExit(f"{len(run.tokens)} tokens, {run.failure or run.finished}")
    start = max(run.times[0] for run in runs)
    end = min(run.times[-1] for run in runs)
    return sum(start < at <= end for run in runs for at in run.times) / (end - start)


def compare(
    engine: Engine, free: Request, constraint: Constraint, n_streams: int, n_rounds: int
) -> tuple[float, float, list[float]]:
    """Medians of free and constrained speed, and the loss of every round."""
    bound = replace(free, constraint=constraint)
    sampling = dataclasses.replace(free.sampling, ignore_eos=True)
    free = replace(free, sampling=sampling)
    pairs = [
        (speed(engine, free, n_streams), speed(engine, bound, n_streams)) for _ in range(n_rounds)
    ]
    frees, bounds = zip(*pairs, strict=True)
    return statistics.median(frees), statistics.median(bounds), [1 - b / f for f, b in pairs]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what a grammar costs.")
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("-n", "--tokens", type=int, default=96, help="generated in each run")
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-s", "--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--only", nargs="+", choices=CONSTRAINTS, default=list(CONSTRAINTS))
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    return parser.parse_args()


def report(engine: Engine, options: argparse.Namespace, names: Sequence[str]) -> None:
    prompt = tuple(engine.tokenizer.encode(PROMPT))
    for name in names:
        start = time.perf_counter()
        engine.compile(CONSTRAINTS[name])
        print(f"{name} compiled in {1e3 * (time.perf_counter() - start):.1f} ms", flush=True)
    print("\n| constraint | sampling | streams | free, t/s | constrained, t/s | slower by |")
    print("|---|---|---|---|---|---|")
    for sampler in options.samplers:
        request = Request(prompt, SAMPLERS[sampler], max_tokens=options.tokens)
        for n_streams in options.streams:
            for name in names:
                free, bound, losses = compare(
                    engine, request, CONSTRAINTS[name], n_streams, options.rounds
                )
                loss = f"{statistics.median(losses):.1%} ({min(losses):.1%} to {max(losses):.1%})"
                row = [name, sampler, str(n_streams), f"{free:.1f}", f"{bound:.1f}", loss]
                print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    options = arguments()
    n_slots = max(options.streams)
    engine = load_engine(options.model, EngineOptions(n_ctx=1024 * n_slots, n_parallel=n_slots))
    print(f"vocabulary of {engine.info.n_vocab}, {engine.info.device_name}", flush=True)
    try:
        report(engine, options, options.only)
    finally:
        engine.close()


if __name__ == "__main__":
    main()
