"""How much faster an answer comes with guesses: source files are rewritten with small edits.

    python scripts/bench_speculation.py -m MODEL [--spec-type TYPE,...] [-md DRAFT]
        [--n-max N] [--cases N] [--tokens N] [--peer PYTHON] [--json FILE] [--prices]

Twenty files of this repository, four kinds of edits, greedy. Each is answered without guesses and
with them in turn, by one engine, and so by the peer, if one is named: llama-cpp-python, whose
LlamaPromptLookupDecoding is tried with each of its settings, of which the best counts. Times are
milliseconds a token from the first token on. Texts with and without must be equal.

``--prices`` asks for nothing: it says what guesses of the draft or the heads (``--spec-type
draft-mtp``) take, and what they would bring by how many are right (bench_prices.py).
"""

from __future__ import annotations

import argparse
import json
import re
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from bench_prices import prices, table
from peer_process import PeerProcess, peer_python

from gguf_serve.engine.chat.prompt import Conversation
from gguf_serve.engine.engine import Engine, load_engine
from gguf_serve.engine.loading.loader import load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Delta, DraftLimits, Event, Failed, Finished, Request
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.engine.speculation_options import DraftOptions, SpeculationOptions, spec_types

ROOT = Path(__file__).resolve().parents[1]
FILES = (
    "architecture/by_layer", "architecture/experts", "architecture/stacks", "architecture/table",
    "chat/delta", "chat/spelled", "disk_cache/rate", "disk_cache/worker", "encoders/recordings",
    "grammar/mask_threads", "grammar/process", "loading/control", "media/span",
    "recording/scaled", "scheduling/pace", "speculation/account", "speculation/lengths",
    "text/detokenizer", "text/dna", "text/words",
)  # fmt: skip
EDITS = (
    "rename `{name}` to `{name}_of_step`",
    "remove all docstrings",
    "write the comment `# reviewed` above each function",
    "end the first docstring with the words `See the docs.`",
)
NO_GUESSES = DraftLimits(0, 0, 0.0)
PEERS = ((2, 10), (2, 2), (3, 10))  # tokens that are looked up, and guessed
N_CTX = 2048


def cases() -> list[str]:
    """What a person asks for."""
    return [_case(name, EDITS[i % len(EDITS)]) for i, name in enumerate(FILES)]


def _case(name: str, edit: str) -> str:
    source = (ROOT / "engine" / f"{name}.py").read_text(encoding="utf-8")
    words = Counter(re.findall(r"\b[a-z_]{5,}\b", source))
    wanted = edit.format(name=words.most_common(1)[0][0])
    return f"Repeat this file exactly, but {wanted}:\n{source}"


@dataclass
class Turn:
    """The same answers without and with guesses: milliseconds, and tokens."""

    kind: str  # of what is asked
    tokens: int
    off: float
    on: float
    same: bool
    drafted: int
    accepted: int

    @property
    def gain(self) -> float:
        return self.off / self.on

    @property
    def line(self) -> str:
        return "  ".join([
            f"{self.kind:7}", f"{self.tokens:4} tokens", f"{self.off:7.2f} -> {self.on:7.2f} ms",
            f"{self.gain:5.3f} x", f"{self.accepted} of {self.drafted} right",
            "the same text" if self.same else "ANOTHER TEXT",
        ])  # fmt: skip


@dataclass
class Case:
    """An edit of a file: what guesses do for us and for the peer, milliseconds a token."""

    prompt: int  # tokens
    turn: Turn
    peer_off: float = 0.0
    peer_on: dict[str, float] = field(default_factory=dict)

    @property
    def peer_best(self) -> float:
        return min(self.peer_on.values(), default=0.0)


def answered(
    engine: Engine, prompt: Sequence[int], n: int, guesses: bool
) -> tuple[list[int], Finished]:
    """The tokens of an answer, and its end."""
    events, done = list[Event](), threading.Event()

    def hear(event: Event) -> None:
        events.append(event)
        if isinstance(event, Finished | Failed):
            done.set()

    limits = DraftLimits() if guesses else NO_GUESSES
    engine.submit(Request(tuple(prompt), SamplingParams(temperature=0.0), n, drafts=limits), hear)
    done.wait()
    if not isinstance(events[-1], Finished):
        raise SystemExit(f"a request has failed: {events[-1]}")
    return [t for e in events if isinstance(e, Delta) for t in e.tokens], events[-1]


def pace(end: Finished) -> float:
    return end.timings.predicted_ms / max(end.timings.predicted_n - 1, 1)


def measure(engine: Engine, kind: str, text: str, n: int, peer: PeerProcess | None) -> Case:
    messages = [{"role": "user", "content": text}]
    written = engine.chat_template.prompt(Conversation(messages)).text
    prompt = engine.tokenizer.encode(written)
    alone, without = answered(engine, prompt, n, guesses=False)
    tokens, end = answered(engine, prompt, n, guesses=True)
    drafts = end.timings.drafts
    case = Case(len(prompt), Turn(
        kind, len(tokens), pace(without), pace(end), tokens == alone,
        drafts.n_tokens, drafts.n_accepted,
    ))  # fmt: skip
    if peer is not None:
        asked = {"tokens": prompt, "n": len(tokens)}
        case.peer_off = peer.ask("generate", **asked)["value"]
        for size, most in PEERS:
            found = peer.ask("generate", **asked, size=size, most=most)
            case.peer_on[f"{size},{most}"] = found["value"]
    return case


def line(case: Case) -> str:
    peer = f"  peer {case.peer_off:.2f} -> {case.peer_best:.2f} ms" if case.peer_on else ""
    return case.turn.line + peer


def summary(found: Sequence[Case]) -> str:
    gains = [case.turn.gain for case in found]
    text = f"gain: median {median(gains):.2f}, least {min(gains):.2f}, most {max(gains):.2f}"
    if found[0].peer_on:
        ahead = [case.peer_best / case.turn.on for case in found]
        text += f"; peer's best / ours: median {median(ahead):.2f}, least {min(ahead):.2f}"
    return text


def options(args: argparse.Namespace) -> EngineOptions:
    guesses = SpeculationOptions(
        types=spec_types(args.spec_type),
        draft=DraftOptions(model=args.model_draft, n_max=args.n_max),
    )
    return EngineOptions(n_ctx=N_CTX, speculation=guesses)


def say_prices(path: Path, asked: EngineOptions, seconds: float) -> None:
    model = load_model(path, asked, lambda share: None)
    if model.drafter is None:
        raise SystemExit("no model guesses: name one with -md, or heads with --spec-type draft-mtp")
    print(*table(*prices(model.runner, model.drafter, seconds)), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("--spec-type", default="ngram-simple")
    parser.add_argument("-md", "--model-draft")
    parser.add_argument("--n-max", type=int, default=3, help="tokens of a model's guess at most")
    parser.add_argument("--prices", action="store_true")
    parser.add_argument("--seconds", type=float, default=30.0, help="for --prices, at least")
    parser.add_argument("--cases", type=int, default=len(FILES))
    parser.add_argument("--tokens", type=int, default=400, help="of an answer at most")
    parser.add_argument("--peer", nargs="?", const="", help="the peer's Python")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.prices:
        say_prices(args.model, options(args), args.seconds)
        return
    engine, peer = load_engine(args.model, options(args)), None
    if args.peer is not None:
        script = Path(__file__).with_name("bench_speculation_peer.py")
        peer = PeerProcess(peer_python(args.peer), script)
        peer.ask("load", model=str(args.model), n_ctx=N_CTX)
    found = list[Case]()
    try:
        for i, text in enumerate(cases()[: args.cases]):
            kind = EDITS[i % len(EDITS)].partition(" ")[0]
            found.append(measure(engine, kind, text, args.tokens, peer))
            print(line(found[-1]), flush=True)
    finally:
        engine.close()
        if peer is not None:
            peer.close()
    print(summary(found))
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(case) for case in found], indent=1))


if __name__ == "__main__":
    main()
