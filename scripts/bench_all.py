"""Measures every family of models beside llama.cpp, and prints one table.

    python scripts/bench_all.py --peer-python other-venv/bin/python
    python scripts/bench_all.py --peer-python ... --families states,mixtures --minutes 10
    python scripts/bench_all.py --peer-python ... --families "" -m a.gguf -m b.gguf --json all.json

Models are synthetic, of the shapes of model_shapes.py, written to a folder that is removed
afterwards (or stays, with --folder); real ones are given with -m. Each is measured by bench.py in a
process of its own, so that memory is one model's: a prompt of 512 tokens, generation after 16, and
eight streams, ours and llama.cpp in turns. A cell has the medians of both and their ratio, in which
more than 1 is better for us. Models share the --minutes by their bytes; a model that would begin
after their end is left out and named.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import bench_report as report
from model_shapes import SHAPES
from peer_process import peer_python
from synthetic_model import write_model

BENCH = Path(__file__).with_name("bench.py")
FAMILIES = {
    "dense": ("llama-small", "gemma3-small", "lfm2-small"),
    "mixtures": ("qwen3moe-small", "gpt-oss-small"),
    "latent": ("deepseek2-small",),
    "states": (
        "mamba2-small",
        "falcon-h1-small",
        "granitehybrid-small",
        "qwen3next-small",
        "rwkv7-small",
    ),
    "large": ("llama-7b", "mamba2-2.7b", "deepseek2-lite", "qwen3moe-10b-a1b"),
}
DAILY = ("dense", "mixtures", "latent", "states")
LEAST_SECONDS = 5.0  # of a model's share
# The table's columns: how a row of bench.py begins, and what it is called here.
COLUMNS = {
    "prompt, 512": "prompt, tok/s",
    "generate": "generation, tok/s",
    "8 streams": "8 streams, tok/s",
    "peak memory": "memory, MiB",
}
OF_A_MODEL = ("model", "memory read", "weights per token")  # facts that the table does not have


@dataclass(frozen=True)
class Model:
    """What is measured: a file that is there, or a shape of which one is written."""

    family: str
    name: str
    path: Path | None = None

    @property
    def size(self) -> int:
        """About its bytes, by which models share the time."""
        return self.path.stat().st_size if self.path else SHAPES[self.name]().n_params * 9 // 16


@dataclass
class Results:
    """Of all models: lines of the table, what failed or was left out, and every number."""

    lines: list[list[str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)

    def add(self, model: Model, result: dict[str, Any]) -> None:
        """What bench.py has found of a model."""
        self.numbers[model.name] = result["rows"]
        facts = {name: fact for name, fact in result["facts"].items() if name not in OF_A_MODEL}
        self.facts = self.facts or facts
        self.lines.append([model.family, model.name, *cells(result["rows"])])


def cells(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """ours / the peer's (ratio) of each column, or ours alone."""
    for begin in COLUMNS:
        row = next((row for row in rows if row["name"].startswith(begin)), None)
        if row is None:
            yield ""
        elif row["ratio"] is None:
            yield figure(row["ours"])
        else:
            yield f"{figure(row['ours'])} / {figure(row['peer'])} (**{row['ratio']:.2f}**)"


def figure(values: Sequence[float]) -> str:
    """The median in three digits or more."""
    value = median(values)
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def bench(path: Path, seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    """bench.py's numbers of a file; RuntimeError with its last words."""
    with tempfile.TemporaryDirectory() as folder:
        numbers = Path(folder) / "numbers.json"
        command = [
            sys.executable, str(BENCH), "-m", str(path), "--prompts", "512", "--generate",
            str(options.generate), "--depth", "0", "--threads", str(options.threads), "--repeat",
            str(options.repeat), "--most-seconds", str(seconds), "--json", str(numbers),
        ]  # fmt: skip
        if not options.alone:
            command += ["--peer", "--peer-python", peer_python(options.peer_python)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError((run.stderr.strip() or "no words").splitlines()[-1])
        result: dict[str, Any] = json.loads(numbers.read_text("utf-8"))
        return result


def measure(models: Sequence[Model], folder: Path, options: argparse.Namespace) -> Results:
    """All of them, one after the other, each with its share of the time that is left."""
    results, end = Results(), time.monotonic() + 60 * options.minutes
    for i, model in enumerate(models):
        left = end - time.monotonic()
        if left <= 0:
            results.missing.append(f"{model.name}: no time was left")
            continue
        share = left * model.size / sum(each.size for each in models[i:])
        print(f"{model.name} ...", file=sys.stderr, flush=True)
        path = model.path or folder / f"{model.name}.gguf"
        if not path.exists():
            write_model(path, SHAPES[model.name]())
        try:
            results.add(model, bench(path, max(share, LEAST_SECONDS), options))
        except RuntimeError as error:
            results.missing.append(f"{model.name}: {error}")
        if model.path is None and not options.folder:
            path.unlink()
    return results


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure every family of models in one table.")
    add = parser.add_argument
    add("--families", default=",".join(DAILY), help=f"of {', '.join(FAMILIES)} (%(default)s)")
    add("-m", "--model", type=Path, action="append", default=[], help="a real one; repeatable")
    add("--folder", type=Path, help="where synthetic models are, or are written and stay")
    add("--minutes", type=float, default=60.0, help="for all together (default 60)")
    add("--repeat", type=int, default=3, help="of every measurement (default 3)")
    add("--generate", type=int, default=64, help="tokens to generate (default 64)")
    add("--threads", type=int, default=0, help="CPU threads of both; 0: every core")
    add("--alone", action="store_true", help="without llama.cpp")
    add("--peer-python", help="its interpreter (default $GGUF_SERVE_PEER_PYTHON or this one)")
    add("--json", type=Path, metavar="FILE", help="write every number to this file")
    options = parser.parse_args()
    options.families = [name for name in options.families.split(",") if name]
    unknown = set(options.families) - set(FAMILIES)
    if unknown:
        parser.error(f"--families {', '.join(sorted(unknown))}: expected {', '.join(FAMILIES)}")
    missing = [str(path) for path in options.model if not path.is_file()]
    if missing:
        parser.error(f"-m {', '.join(missing)}: no such file")
    return options


def main() -> int:
    options = parse_arguments()
    models = [Model("real", path.stem, path) for path in options.model]
    models += [Model(family, name) for family in options.families for name in FAMILIES[family]]
    busy = report.is_busy()
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        results = measure(models, folder, options)
    head = ["family", "model", *COLUMNS.values()]
    print(report.facts(results.facts, markdown=True) if results.facts else "nothing was measured")
    print("\n" + report.markdown_table([head, *results.lines]))
    for text in results.missing:
        print(f"\nnot measured: {text}")
    if busy:
        print("\nWARNING: the machine was busy before the run; the numbers are not comparable.")
    if options.json is not None:
        numbers = {"facts": results.facts, "busy": busy, "models": results.numbers}
        options.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return 0 if results.lines else 1


if __name__ == "__main__":
    sys.exit(main())
