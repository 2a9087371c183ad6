"""What guesses cost where there is little to guess, and what those of a draft model are worth.

    python scripts/bench_speculation_cost.py alone|streams|first-token -m MODEL
        [--texts chat,summary,code,json,edit] [--spec-type TYPE,...] [-md DRAFT] [--n-max N]
        [--always] [--seconds N] [--json FILE]

Two engines, one that guesses and one that does not, answer the same requests in turn, greedy, each
text once (asked_texts.py):

- ``alone``: one request at a time, milliseconds a token from its first one on;
- ``streams``: eight at once, milliseconds a token of all of them, while all of them generate;
- ``first-token``: one at a time, milliseconds from its submission to its first token, with nothing
  of its prompt in the cache.

With ``--always`` a draft model guesses ``--n-max`` tokens in each step, whatever that costs, so
that the share of them that is right is that of all texts, and not of those where guesses pay.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from asked_texts import CONSTRAINTS, TEXTS
from bench_engine import Run
from bench_speculation import Turn

from gguf_serve.engine.chat.prompt import Conversation
from gguf_serve.engine.engine import Engine, load_engine
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Request
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.engine.speculation import asking, speculation
from gguf_serve.engine.speculation.account import Account
from gguf_serve.engine.speculation.lengths import Offer
from gguf_serve.engine.speculation.models.draft_model import DraftModel
from gguf_serve.engine.speculation.models.timed_steps import TimedSteps
from gguf_serve.engine.speculation_options import OFF, DraftOptions, SpeculationOptions, spec_types

N_CTX = 2048  # of a stream
GREEDY = SamplingParams(temperature=0.0)
WARM_UP = 32  # tokens


def pace(runs: Sequence[Run], began: float) -> float:
    """Milliseconds a token of all requests, while all of them generate."""
    start, end = max(run.times[0] for run in runs), min(run.times[-1] for run in runs)
    n_tokens = sum(start < at <= end for run in runs for at in run.times)
    return 1e3 * (end - start) / max(n_tokens, 1)


def first_token(runs: Sequence[Run], began: float) -> float:
    return 1e3 * (runs[0].times[0] - began)


class Part(NamedTuple):
    """What is measured: so many requests at once, with at most so many tokens each."""

    n_streams: int
    n_tokens: int
    value: Callable[[Sequence[Run], float], float]  # of requests, and when they were submitted
    texts: str  # kinds, if none are named


PARTS = {
    "alone": Part(1, 160, pace, "chat,summary"),
    "streams": Part(8, 96, pace, "chat,json"),
    "first-token": Part(1, 1, first_token, "chat,summary"),
}


def turns(kinds: Sequence[str], n_streams: int) -> Iterator[tuple[str, Sequence[str]]]:
    """The kinds in turn, each with as many texts as there are streams, until all have come."""
    groups = []
    for kind in kinds:
        texts = TEXTS[kind]()
        ends = range(n_streams, len(texts) + 1, n_streams)
        groups.append([(kind, texts[end - n_streams : end]) for end in ends])
    for together in zip_longest(*groups):
        yield from filter(None, together)


class Subject:
    """A model without guesses and with them."""

    def __init__(self, path: Path, part: Part, guesses: SpeculationOptions) -> None:
        self._part = part
        self._engines = [load_engine(path, _options(part, each)) for each in (OFF, guesses)]
        for engine in self._engines:
            while not _is_complete(engine):  # programs of batches are compiled in pauses
                time.sleep(0.1)
            greeting = ["Who are you?"] * part.n_streams
            self._answer(engine, self._requests("chat", greeting, WARM_UP))

    def close(self) -> None:
        for engine in self._engines:
            engine.close()

    def turn(self, kind: str, texts: Sequence[str], on_first: bool) -> Turn:
        requests = self._requests(kind, texts, self._part.n_tokens)
        found = {
            i: self._answer(self._engines[i], requests)
            for i in ((1, 0) if on_first else (0, 1))
        }  # fmt: skip
        (off, alone), (on, runs) = found[0], found[1]
        tokens = [run.tokens for run in runs]
        drafts = [run.finished.timings.drafts for run in runs if run.finished is not None]
        return Turn(
            kind, sum(map(len, tokens)), off, on, tokens == [run.tokens for run in alone],
            sum(each.n_tokens for each in drafts), sum(each.n_accepted for each in drafts),
        )  # fmt: skip

    def _requests(self, kind: str, texts: Sequence[str], n: int) -> list[Request]:
        engine, constraint = self._engines[0], CONSTRAINTS.get(kind)
        written = [
            engine.chat_template.prompt(Conversation([{"role": "user", "content": text}])).text
            for text in texts
        ]
        return [
            Request(
                tuple(engine.tokenizer.encode(prompt)), GREEDY, n, constraint=constraint,
                cache_prompt=self._part.value is not first_token,
            )
            for prompt in written
        ]  # fmt: skip

    def _answer(self, engine: Engine, requests: Sequence[Request]) -> tuple[float, list[Run]]:
        """Milliseconds, as the part has it, and the answers."""
        runs, began = [Run(request) for request in requests], time.perf_counter()
        for run in runs:
            engine.submit(run.request, run.on_event)
        for run in runs:
            run.done.wait()
            if run.failure:
                raise SystemExit(f"a request has failed: {run.failure}")
        return self._part.value(runs, began), runs


def _options(part: Part, guesses: SpeculationOptions) -> EngineOptions:
    return EngineOptions(
        n_ctx=N_CTX * part.n_streams, n_parallel=part.n_streams, speculation=guesses
    )


def _is_complete(engine: Engine) -> bool:
    drafter = engine._speculation._drafter
    draft_is = not isinstance(drafter, DraftModel) or drafter._runner.is_complete
    return engine._loop.runner.is_complete and draft_is


def guess_always() -> None:
    """Models guess as much as they may, and all of it is verified."""

    def chosen(offers: Sequence[Offer], most: int, price: object) -> list[int]:
        return [min(offer.n_tokens, most // len(offers)) for offer in offers]

    names: Any = speculation, asking.Asking, Account, TimedSteps  # what is replaced
    (steps, asks, account, timed) = names
    steps.lengths = chosen
    asks._n_tokens = lambda self, askers, n, room: min(self._drafter.most, room // len(askers))
    asks._worth = lambda *args: 0.0
    account.has = lambda *args: True
    timed.seconds = lambda *args: 0.0


def summary(kind: str, found: Sequence[Turn]) -> str:
    """Of the turns of a kind."""
    gains = [turn.gain for turn in found]
    drafted, accepted = (sum(getattr(t, n) for t in found) for n in ("drafted", "accepted"))
    return (
        f"{kind}: {len(found)} turns, medians {median(t.off for t in found):.2f} -> "
        f"{median(t.on for t in found):.2f} ms, gain: median {median(gains):.3f}, least "
        f"{min(gains):.3f}, most {max(gains):.3f}; {accepted} of {drafted} right"
        + (f" ({accepted / drafted:.0%})" if drafted else "")
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("--texts", help=f"of {', '.join(TEXTS)}; by the part otherwise")
    parser.add_argument("--spec-type", help="what guesses; the server's default otherwise")
    parser.add_argument("-md", "--model-draft")
    parser.add_argument("--n-max", type=int, default=3, help="tokens of a draft's guess at most")
    parser.add_argument("--always", action="store_true")
    parser.add_argument("--seconds", type=float, default=170.0, help="after which no turn begins")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.texts = (args.texts or PARTS[args.part].texts).split(",")
    if unknown := set(args.texts) - set(TEXTS):
        parser.error(f"unknown texts {', '.join(sorted(unknown))}, expected {', '.join(TEXTS)}")
    return args


def main() -> None:
    args = arguments()
    if args.always:
        guess_always()
    part, found = PARTS[args.part], list[Turn]()
    subject = Subject(args.model, part, SpeculationOptions(
        types=spec_types(args.spec_type) if args.spec_type else (),
        draft=DraftOptions(model=args.model_draft, n_max=args.n_max),
    ))  # fmt: skip
    end = time.perf_counter() + args.seconds
    try:
        for kind, texts in turns(args.texts, part.n_streams):
            if time.perf_counter() > end:
                break
            n_before = sum(turn.kind == kind for turn in found)
            found.append(subject.turn(kind, texts, on_first=n_before % 2 == 1))
            print(found[-1].line, flush=True)
    finally:
        subject.close()
    for kind in args.texts:
        if of_kind := [turn for turn in found if turn.kind == kind]:
            print(summary(kind, of_kind))
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(turn) for turn in found], indent=1))


if __name__ == "__main__":
    main()
