"""Compares the engine of this checkout with llama.cpp on real text and a real model.

    python scripts/compare_peer.py -m model.gguf --peer-python other-venv/bin/python

Two bars, each exit code 1 if it is missed:

- Along llama.cpp's own greedy continuations, our likeliest token is llama.cpp's wherever its
  two highest logits are more than 0.3 apart. (Nearer ones may differ: llama.cpp
  rounds activations to 8 bits.)
- Our perplexity over a few pages of text is within 0.5 % of llama.cpp's.

With --exact llama.cpp computes with the same weights dequantized to 32-bit floats, so that
the bars measure our error alone and not what is between two; this is the test of the engine.
That both make the same tokens of the texts is checked too. How far a free greedy run of ours
agrees is only reported.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import heapq
import importlib
import io
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # this checkout, whatever is installed

from compare_engine import CompareEngine  # noqa: E402
from dequantize import dequantize  # noqa: E402
from peer_process import PeerError, PeerProcess, peer_python  # noqa: E402

from gguf_serve.engine.errors import EngineError  # noqa: E402

GAP = 0.3  # between the peer's two highest logits: more is a clear choice
PERPLEXITY_TOLERANCE = 0.005
N_PREFIX = 64  # tokens of a text before the continuation
WINDOW = 512  # tokens that are scored together
LICENSES = Path("/usr/share/common-licenses")
DOCUMENTED = ("argparse", "difflib", "statistics", "pickletools", "textwrap", "random")


@dataclass(frozen=True)
class Agreement:
    """Of one text: clear choices that are equal, all clear ones, equal tokens of a free run."""

    n_equal: int
    n_clear: int
    n_free: int
    n_tokens: int


def default_texts() -> list[str]:
    """English prose that Python and most systems have."""
    with contextlib.redirect_stdout(io.StringIO()):
        zen = codecs.decode(importlib.import_module("this").s, "rot13")
    texts = [zen, str(heapq.__about__)]
    texts += [importlib.import_module(name).__doc__ or "" for name in DOCUMENTED]
    for name in ("GPL-2", "Apache-2.0", "Artistic"):
        if (LICENSES / name).is_file():
            texts.append((LICENSES / name).read_text(encoding="utf-8"))
    return [text for text in texts if len(text.split()) > N_PREFIX]


def continuations(
    ours: CompareEngine, peer: PeerProcess, prompts: Sequence[list[int]], n: int
) -> list[Agreement]:
    found = []
    for prompt in prompts:
        answer = peer.ask("continue", tokens=prompt, n=n)
        theirs, gaps = answer["tokens"], answer["gaps"]
        best = ours.likeliest([*prompt, *theirs])[len(prompt) - 1 :]
        clear = [i for i, gap in enumerate(gaps) if gap > GAP]
        free = ours.greedy(prompt, n)
        differ = [i for i in range(n) if i >= len(free) or free[i] != theirs[i]]
        found.append(
            Agreement(
                n_equal=sum(best[i] == theirs[i] for i in clear),
                n_clear=len(clear),
                n_free=differ[0] if differ else n,
                n_tokens=n,
            )
        )
    return found


def windows_of(tokens: list[int], *, adds_bos: bool) -> list[list[int]]:
    """Parts of a text that each begin like one."""
    first = tokens[:1] if adds_bos else []
    body = tokens[len(first) :]
    size = WINDOW - len(first)
    windows = [first + body[at : at + size] for at in range(0, len(body), size)]
    return [window for window in windows if len(window) > WINDOW // 2]


def perplexities(
    ours: CompareEngine, peer: PeerProcess, tokens: list[int]
) -> tuple[float, float, int]:
    """Ours, the peer's, and over how many tokens."""
    our_scores, peer_scores = [], []
    for window in windows_of(tokens, adds_bos=ours.adds_bos):
        our_scores += ours.logprobs(window)
        peer_scores += peer.ask("score", tokens=window)["logprobs"]
    n = len(our_scores)
    return math.exp(-sum(our_scores) / n), math.exp(-sum(peer_scores) / n), n


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare the engine with llama.cpp.")
    add = parser.add_argument
    add("-m", "--model", type=Path, required=True, help="GGUF file")
    add("--peer-python", help="its interpreter (default $GGUF_SERVE_PEER_PYTHON or this one)")
    add("--exact", action="store_true", help="llama.cpp with the weights as 32-bit floats")
    add("--device", help="as serve --device")
    add("--activation-type", choices=("auto", "int8", "int16"), default="auto", help="as serve's")
    add("--family", choices=("simd", "simt"), help="kernels to use; the device's own otherwise")
    add("--text", type=Path, action="append", help="text file instead of ours; repeatable")
    add("--generate", type=int, default=48, help="tokens of each continuation (default 48)")
    add("--prompts", type=int, default=6, help="texts to continue (default 6)")
    add("--tokens", type=int, default=3072, help="tokens for the perplexity (default 3072)")
    return parser.parse_args()


def compare(options: argparse.Namespace, ours: CompareEngine, peer: PeerProcess) -> bool:
    """Print the figures; True if both bars are reached."""
    paths: list[Path] | None = options.text
    texts = [p.read_text(encoding="utf-8") for p in paths] if paths else default_texts()
    tokenized = [ours.encode(text) for text in texts]
    same = [
        ids == peer.ask("tokenize", text=t)["tokens"]
        for t, ids in zip(texts, tokenized, strict=True)
    ]
    print(f"texts tokenized equally: {sum(same)} of {len(same)}")
    prompts = [ids[:N_PREFIX] for ids in tokenized[: options.prompts]]
    results = continuations(ours, peer, prompts, options.generate)
    n_equal, n_clear = sum(r.n_equal for r in results), sum(r.n_clear for r in results)
    print(
        f"greedy choices with a gap over {GAP}: {n_equal} of {n_clear} equal "
        f"({sum(r.n_tokens for r in results)} in all)"
    )
    print(f"equal tokens of free runs: {', '.join(f'{r.n_free}/{r.n_tokens}' for r in results)}")
    text = ours.encode("\n\n".join(texts))[: options.tokens]
    mine, theirs, n = perplexities(ours, peer, text)
    difference = mine / theirs - 1
    print(f"perplexity over {n} tokens: {mine:.4f}, llama.cpp {theirs:.4f} ({difference:+.3%})")
    near = abs(difference) <= PERPLEXITY_TOLERANCE
    return all(same) and n_equal == n_clear and n_clear > 0 and near


@contextlib.contextmanager
def started_peer(options: argparse.Namespace) -> Iterator[PeerProcess]:
    worker = Path(__file__).with_name("compare_worker.py")
    peer = PeerProcess(peer_python(options.peer_python), worker)
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(peer):
        model = options.model
        if options.exact:
            model = Path(folder) / "exact.gguf"
            dequantize(options.model, model)
        peer.ask("load", model=str(model))
        yield peer


def main() -> int:
    options = parse_arguments()
    try:
        ours = CompareEngine(options.model, options.device, options.family, options.activation_type)
        with contextlib.closing(ours), started_peer(options) as peer:
            reached = compare(options, ours, peer)
    except (EngineError, PeerError, OSError) as error:
        print(f"compare_peer: {error}", file=sys.stderr)
        return 1
    print("both bars reached" if reached else "BAR MISSED")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
