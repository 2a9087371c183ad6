"""What a model that guesses has computed is kept with the pages of its target: on disk, and in the
files of slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asking import DISK, N_TOKENS, NO_END, SECONDS, ask, disk, guess_everything, random_prompt

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.engine.scheduling.sequence import Chunk
from gguf_serve.engine.speculation.models.timed_steps import TimedSteps
from gguf_serve.engine.speculation_options import OFF, DraftOptions, SpeculationOptions

SAMPLING = SamplingParams(temperature=0.8, seed=1, logit_bias=NO_END)
KINDS = ["llama-dense", pytest.param("glm4moe-mtp", marks=pytest.mark.slow)]


class Counted:
    """How many tokens models that guess have computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n = 0
        forward = TimedSteps.forward

        def counted(steps: TimedSteps, model: Any, chunks: Sequence[Chunk], *more: Any) -> Any:
            self.n += sum(chunk.count for chunk in chunks)
            return forward(steps, model, chunks, *more)

        monkeypatch.setattr(TimedSteps, "forward", counted)

    def of(self, engine: Engine, prompt: Sequence[int]) -> tuple[list[int], int]:
        """The tokens of an answer to a prompt, and of models for it."""
        before = self.n
        reply = ask(engine, prompt, 20, SAMPLING)
        assert reply.end.timings.drafts.n_tokens > 0
        return reply.tokens, self.n - before


Guessing = Callable[..., Engine]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    guess_everything(monkeypatch)
    return Counted(monkeypatch)


@pytest.fixture
def guessing(
    start_engine: Callable[[str, EngineOptions], Engine], conformance_model: Callable[[str], Path]
) -> Guessing:
    """Starts a model that is its own draft, or has heads; or one that nothing guesses for."""

    def started(name: str, guesses: bool = True, **changes: Any) -> Engine:
        of_heads = SpeculationOptions(types=("draft-mtp",))
        of_itself = SpeculationOptions(draft=DraftOptions(model=str(conformance_model(name))))
        spec = of_heads if name.endswith("-mtp") else of_itself
        options = replace(DISK, speculation=spec if guesses else OFF, **changes)
        engine = start_engine(name, options)
        assert engine._disk is not None
        engine._disk._loads._speed = lambda: 0.0
        return engine

    return started


@pytest.mark.parametrize("name", KINDS)
def test_pages_on_disk(guessing: Guessing, counted: Counted, tmp_path: Path, name: str) -> None:
    """With those of the target, which are found without it, too."""
    folder = str(tmp_path / "kv")
    first, prompt = guessing(name, cache_disk=folder), random_prompt(N_TOKENS, 1)
    answer, n_alone = counted.of(first, prompt)
    assert n_alone > N_TOKENS
    assert first.wait_until_kept(SECONDS)
    assert len(list((tmp_path / "kv").glob("*.draft"))) == 10
    other = guessing(name, cache_disk=folder)
    tokens, n = counted.of(other, prompt)
    assert (tokens, disk(other).n_hit_tokens) == (answer, 320)
    assert n < n_alone - 300
    without = guessing(name, guesses=False, cache_disk=folder)
    reply = ask(without, prompt, 20, SAMPLING)
    assert (reply.tokens, reply.n_cached) == (answer, 320)


@pytest.mark.slow
def test_a_damaged_page_is_computed_again(
    guessing: Guessing, counted: Counted, tmp_path: Path
) -> None:
    folder, prompt = str(tmp_path / "kv"), random_prompt(N_TOKENS, 2)
    first = guessing("llama-dense", cache_disk=folder)
    answer, n_alone = counted.of(first, prompt)
    assert first.wait_until_kept(SECONDS)
    for path in (tmp_path / "kv").glob("*.draft"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    other = guessing("llama-dense", cache_disk=folder)
    tokens, n = counted.of(other, prompt)
    assert (tokens, disk(other).n_hit_tokens, disk(other).n_corrupt) == (answer, 320, 10)
    assert n == n_alone


@pytest.mark.parametrize("name", KINDS)
def test_slots(guessing: Guessing, counted: Counted, tmp_path: Path, name: str) -> None:
    """A file is used without the model that guesses, too, and one that has none with it."""
    path, bare, prompt = tmp_path / "slot", tmp_path / "bare", random_prompt(100, 1)
    first, other = (guessing(name, cache_disk=str(tmp_path / folder)) for folder in "ab")
    without = guessing(name, guesses=False, cache_disk=str(tmp_path / "c"))
    answer = counted.of(first, prompt)[0]
    first.save_slot(0, path).result(SECONDS)
    after = [*prompt, *answer, *random_prompt(5, 2)]
    expected, n_first = counted.of(first, after)
    other.restore_slot(0, path).result(SECONDS)
    tokens, n = counted.of(other, after)
    assert tokens == expected
    assert n < n_first + 20
    without.restore_slot(0, path).result(SECONDS)
    reply = ask(without, after, 20, SAMPLING)
    assert reply.tokens == expected
    assert reply.n_cached > 100
    without.erase_slot(0).result(SECONDS)
    ask(without, prompt, 20, SAMPLING, id_slot=0)
    without.save_slot(0, bare).result(SECONDS)
    other._scheduler.cache.clear()
    other.restore_slot(0, bare).result(SECONDS)
    tokens, n = counted.of(other, after)
    assert tokens == expected
    assert n > n_first + 90
