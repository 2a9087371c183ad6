"""How far rounding moves what a model says, ours and llama.cpp's: divergence from exact weights.

    python scripts/compare_divergence.py -m model.gguf --peer-python other-venv/bin/python

The same weights as 32-bit floats, computed by llama.cpp, are the truth. For each token of a few
pages of text the truth's likeliest tokens (TOP), and all others together, are a distribution;
printed are the mean Kullback-Leibler divergence from it of each way to compute, and perplexities.
Exit code 1 if ours by default is further from the truth than llama.cpp on the same file.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # this checkout, whatever is installed

from compare_engine import CompareEngine  # noqa: E402
from compare_peer import default_texts, windows_of  # noqa: E402
from dequantize import dequantize  # noqa: E402
from peer_process import PeerError, PeerProcess, peer_python  # noqa: E402

from gguf_serve.engine.errors import EngineError  # noqa: E402

TOP = 64  # tokens of a place that are told apart
SEEN = 1000  # that ours is asked for; one of the truth's beyond them counts as one of the others
DEFAULT = "auto"
Logprobs = Mapping[int, float]


@dataclass(frozen=True)
class Said:
    """Of each place but the first of all windows: what is expected there, and how likely what
    comes is."""

    rows: Sequence[Logprobs]
    scores: Sequence[float]

    @property
    def perplexity(self) -> float:
        return math.exp(-sum(self.scores) / len(self.scores))


def divergence(truth: Logprobs, found: Logprobs) -> float:
    """Of ``found`` from ``truth``: of the tokens that both have, and of all others together."""
    shared = truth.keys() & found.keys()
    told = sum(math.exp(truth[token]) * (truth[token] - found[token]) for token in shared)
    rest = 1 - math.fsum(math.exp(truth[token]) for token in shared)
    its = 1 - math.fsum(math.exp(found[token]) for token in shared)
    return told + (rest * math.log(rest / its) if rest > 0 and its > 0 else 0.0)


def mean_divergence(truth: Said, found: Said) -> float:
    pairs = zip(truth.rows, found.rows, strict=True)
    return math.fsum(divergence(*pair) for pair in pairs) / len(truth.rows)


def of_peer(peer: PeerProcess, windows: Sequence[Sequence[int]], truth: Said | None) -> Said:
    """What llama.cpp says; without a truth, of the tokens that it finds likeliest."""
    rows: list[Logprobs] = []
    scores: list[float] = []
    for window in windows:
        wanted = None if truth is None else [list(row) for row in truth.rows[len(rows) :]]
        answer = peer.ask("expect", tokens=window, n=TOP, wanted=wanted)
        rows += [dict(row) for row in answer["rows"]]
        scores += answer["logprobs"]
    return Said(rows, scores)


def of_ours(engine: CompareEngine, windows: Iterable[Sequence[int]]) -> Said:
    found = [score for window in windows for score in engine.scores(list(window), n_top=SEEN)]
    rows = [{token: p for token, _, p in score.top} for score in found]
    return Said(rows, [score.logprob for score in found])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("-m", "--model", type=Path, required=True, help="GGUF file")
    add("--peer-python", help="its interpreter (default $GGUF_SERVE_PEER_PYTHON or this one)")
    add("--activation-types", default="int16,int8,auto", help="of ours (default int16,int8,auto)")
    add("--tokens", type=int, default=2048, help="of text (default 2048)")
    return parser.parse_args()


def compare(options: argparse.Namespace) -> bool:
    """Print the table; True if ours by default is as near to the truth as llama.cpp."""
    kinds = options.activation_types.split(",")
    python, worker = peer_python(options.peer_python), Path(__file__).with_name("compare_worker.py")
    found: dict[str, Said] = {}
    windows: list[list[int]] = []
    for kind in kinds:
        with contextlib.closing(CompareEngine(options.model, None, None, kind)) as engine:
            text = engine.encode("\n\n".join(default_texts()))[: options.tokens]
            windows = windows_of(text, adds_bos=engine.adds_bos)
            found[f"ours, {kind}"] = of_ours(engine, windows)
    peer = PeerProcess(python, worker)
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(peer):
        exact = Path(folder) / "exact.gguf"
        dequantize(options.model, exact)
        peer.ask("load", model=str(exact))
        truth = of_peer(peer, windows, None)
        peer.ask("load", model=str(options.model))
        found["llama.cpp"] = of_peer(peer, windows, truth)
    print(f"{len(truth.scores)} tokens; perplexity of the exact weights {truth.perplexity:.4f}\n")
    print("| computed by | divergence | perplexity | difference |\n|---|---|---|---|")
    for name, said in found.items():
        far, moved = mean_divergence(truth, said), said.perplexity / truth.perplexity - 1
        print(f"| {name} | {far:.2e} | {said.perplexity:.4f} | {moved:+.3%} |")
    ours, theirs = found.get(f"ours, {DEFAULT}"), found["llama.cpp"]
    return ours is None or mean_divergence(truth, ours) <= mean_divergence(truth, theirs)


def main() -> int:
    options = parse_arguments()
    try:
        near = compare(options)
    except (EngineError, PeerError, OSError) as error:
        print(f"compare_divergence: {error}", file=sys.stderr)
        return 1
    return 0 if near else 1


if __name__ == "__main__":
    sys.exit(main())
