"""A model driven step by step through its Runner, without scheduler or engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from conformance_data import arrays, read_spec
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Hyperparameters, Quirk
from gguf_serve.engine.architecture.drafts import lent_layers, read_draft
from gguf_serve.engine.architecture.heads import read_head
from gguf_serve.engine.architecture.hyperparameters import read_hyperparameters
from gguf_serve.engine.architecture.table import ARCHITECTURES, find_architecture
from gguf_serve.engine.forward.batch import OutputRow
from gguf_serve.engine.forward.corrections import Corrections
from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.forward.selection import Selection
from gguf_serve.engine.gguf.file import GGUFFile, open_gguf
from gguf_serve.engine.loading.assembly import CacheTypes, Sizes, assemble, ring_pages
from gguf_serve.engine.loading.control import read_directions
from gguf_serve.engine.loading.packing import PackRun
from gguf_serve.engine.model.placement import Placement, on_one_device
from gguf_serve.engine.model.weights import Additions, allocate_weights
from gguf_serve.engine.model.wire import Wire
from gguf_serve.engine.options import ControlVectors
from gguf_serve.engine.recording.adapters import read_adapters
from gguf_serve.engine.request import Request
from gguf_serve.engine.scheduling.page_cache import PageCopy
from gguf_serve.engine.scheduling.sequence import Chunk
from gguf_serve.engine.scheduling.sequence import Sequence as RunningSequence
from gguf_serve.kernels.attention.kv import PAGE
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs

Floats = npt.NDArray[np.float32]
SIZES = Sizes(n_pages=32, n_slots=3, n_ctx_slot=256, n_tokens=96, n_batch=96, n_outputs=96)

# What the published model does, and llama.cpp does not: left out for the comparison.
PUBLISHED: dict[str, set[Quirk]] = {"gemma3n": {"population_deviation"}}
T5_SIZES = Sizes(n_pages=32, n_slots=3, n_ctx_slot=320, n_tokens=192, n_batch=192, n_outputs=160)

NO_CONTROL = ControlVectors()


class Stepper:
    """A loaded model with room for three sequences of 256 tokens."""

    def __init__(
        self,
        path: Path,
        device: Device,
        programs: Programs,
        *,
        flash: bool = True,
        others: Sequence[tuple[Device, Programs]] = (),
        place: Callable[[int], Placement] | None = None,
        cache_types: tuple[str, str] = ("f32", "f32"),
        adapters: Sequence[Path] = (),
        control: ControlVectors = NO_CONTROL,
        sizes: Sizes = SIZES,
        without: Set[Quirk] = frozenset(),
        head: int | None = None,
        gives_states: bool = False,
        draft: Path | None = None,
        target: Path | None = None,
        lender: Stepper | None = None,
        wires: Sequence[Wire | None] = (),
    ) -> None:
        """``place``: from the number of layers to which device has what; all on the first.
        ``without``: quirks of the architecture that are left out. ``head``: the head of speculation
        of that number, and not the model; ``gives_states``: hidden states are those that heads
        take, ``draft``: those that this file's model takes; ``target``: the model that this one
        drafts for, ``lender``: that as well, whose K and V it attends to; ``wires``: see
        assemble()."""
        self.corrections: Corrections | None = None
        self.selection: Selection | None = None
        with ExitStack() as files:
            gguf, other = (
                None if each is None else files.enter_context(open_gguf(each))
                for each in (path, draft or target)
            )
            assert gguf is not None
            if target is None:
                arch = find_architecture(gguf.architecture)
                arch = replace(arch, quirks=arch.quirks - without)
                if head is None:
                    hparams = read_hyperparameters(gguf, arch)
                else:
                    gguf, hparams = read_head(gguf, arch, head)
            elif other is not None:
                found = read_draft(gguf, other)
                gguf, hparams = found.gguf, found.hparams
                beside = [_small(*each, device, programs) for each in found.beside]
                if found.selector is not None:
                    self.selection = Selection(found.selector, beside, max_tokens=1)
                elif beside:
                    self.corrections = Corrections(found, *beside)
            hparams = replace(hparams, gives_states=gives_states)
            devices = [(device, programs), *others]
            placement = (place or on_one_device)(hparams.n_layers)
            additions = Additions(
                read_adapters(adapters, gguf),
                read_directions(control, hparams.n_layers, hparams.n_embd),
                None if draft is None else other,
            )
            weights, jobs = allocate_weights(
                gguf, hparams, [d for d, _ in devices], placement, additions
            )
            listed = zip(devices, jobs, strict=True)
            packed = [(*on, job) for on, some in listed for job in some if not on[0].is_meta]
            PackRun(gguf, packed).run()
        self.n_vocab, self.hparams = hparams.n_vocab, hparams
        types = CacheTypes(*cache_types)
        n_rings = ring_pages(hparams, sizes.n_slots, sizes.n_tokens, sizes.n_pages)
        sizes = replace(sizes, n_ring_pages=n_rings)
        lent = [] if lender is None else [
            lender.runner.pages[0].layers[layer] for layer in lent_layers(lender.hparams)
        ]  # fmt: skip
        self.runner: Runner = assemble(
            hparams, weights, devices, sizes, types, flash=flash, lent=lent, wires=wires
        )

    def step(
        self,
        *shares: tuple[RunningSequence, int],
        copies: Sequence[PageCopy] = (),
        wants: Callable[[int], bool] = lambda position: True,
    ) -> list[Floats]:
        """The logits of the next so many tokens of each sequence: float32 [count, n_vocab].

        ``wants``: of which positions; the others have no row.
        """
        chunks = [Chunk(seq, seq.n_computed, count, "all") for seq, count in shares]
        wanted = [
            OutputRow(chunk, chunk.start + i, 4, i % self.n_vocab, scored=True)
            for chunk in chunks
            for i in range(chunk.count)
            if wants(chunk.start + i)
        ]
        found = self.runner.forward(chunks, copies, wanted)
        rows = []
        for i, logits in enumerate(found):
            row = logits.row()
            best = np.lexsort((np.arange(len(row)), -row))[:4]
            assert np.array_equal(logits.best(4).ids, best)
            assert logits.picked == row[wanted[i].pick]
            sum_exp = np.exp(row.astype(np.float64) - row.max()).sum()
            assert abs(logits.log_sum_exp - row.max() - np.log(sum_exp)) < 1e-5
            rows.append(row)
        for seq, count in shares:
            seq.n_computed += count
        ends = np.cumsum([sum(row.chunk is chunk for row in wanted) for chunk in chunks])[:-1]
        return np.split(np.array(rows), ends)

    def states(self, *seqs: RunningSequence) -> list[Floats]:
        """The hidden states of whole prompts, in one step: float32 [tokens, n_embd] each."""
        chunks = [Chunk(seq, 0, len(seq.tokens), "hidden") for seq in seqs]
        self.runner.forward(chunks, (), ())
        ends = np.cumsum([chunk.count for chunk in chunks])
        states = self.runner.hidden(range(int(ends[-1])))
        return np.split(states, ends[:-1])

    def with_states(
        self, seq: RunningSequence, count: int, given: Floats | None = None
    ) -> tuple[Floats, Floats]:
        """The logits and the hidden states of the next so many tokens; ``given``: what a head of
        speculation reads beside each of them."""
        chunk = Chunk(seq, seq.n_computed, count, "hidden")
        wanted = [OutputRow(chunk, chunk.start + i, 1) for i in range(count)]
        found = self.runner.forward([chunk], (), wanted, states=given)
        logits = np.array([row.row() for row in found])
        seq.n_computed += count
        return logits, self.runner.states_of(range(count))

    def read_states(self, seq: RunningSequence, states: Floats) -> None:
        """Give a draft that has keys of its target's states those of the next tokens."""
        seq.n_encoder = seq.n_computed + len(states)
        self.runner.forward(
            [Chunk(seq, seq.n_computed, len(states), "none")], (), (), states=states
        )
        seq.n_computed, seq.n_encoder = seq.n_encoder, 0

    def run(self, seq: RunningSequence, counts: Iterable[int]) -> Floats:
        """The logits of one sequence, in steps of so many tokens."""
        return np.concatenate([self.step((seq, count))[0] for count in counts])


def _small(gguf: GGUFFile, hparams: Hyperparameters, device: Device, programs: Programs) -> Runner:
    """A model on one device, for one token at a time."""
    placement = on_one_device(hparams.n_layers)
    weights, (jobs,) = allocate_weights(gguf, hparams, [device], placement)
    PackRun(gguf, [(device, programs, job) for job in jobs]).run()
    sizes = Sizes(n_pages=1, n_slots=1, n_ctx_slot=32, n_tokens=1, n_batch=1, n_outputs=1)
    return assemble(
        hparams, weights, [(device, programs)], sizes, CacheTypes("f32", "f32"), flash=True
    )


def sequence(tokens: Iterable[int], slot: int, table: list[int]) -> RunningSequence:
    """A sequence in a slot with its pages."""
    request = Request(tuple(int(token) for token in tokens))
    seq = RunningSequence.from_request(slot, request)
    seq.slot, seq.table = slot, table
    return seq


def nmse(result: Floats, reference: npt.NDArray[np.floating[Any]]) -> float:
    """Squared error, relative to the reference's squares."""
    assert result.shape == reference.shape
    difference = result.astype(np.float64) - reference
    return float((difference**2).sum() / (reference.astype(np.float64) ** 2).sum())


def distance(name: str, path: Path, device: Device, programs: Programs) -> float:
    """The NMSE of the logits or the hidden states that the file's model gives for the tokens of
    the reference ``name``: of a prompt and five single tokens, or of the whole prompt where tokens
    see each other."""
    found, n = arrays(name), len(arrays(name)["tokens"])
    tokens, long = found["tokens"].tolist(), "encoder_tokens" in found or n > SIZES.n_tokens
    sizes = T5_SIZES if long else SIZES
    table = list(range(sizes.n_ctx_slot // PAGE))
    model = Stepper(path, device, programs, sizes=sizes, without=PUBLISHED.get(name, set()))
    if "embeddings" in found:
        return nmse(model.states(sequence(tokens, 1, table))[0], found["embeddings"])
    if "encoder_tokens" in found:
        prompt = found["encoder_tokens"].tolist()
        seq = sequence([*prompt, *tokens], 1, table)
        seq.n_computed = seq.n_encoder = len(prompt)
        model.runner.forward([Chunk(seq, 0, len(prompt), "none")], (), ())
        return nmse(model.run(seq, [n]), found["logits"])
    both_ways = "denoises" in ARCHITECTURES[read_spec(name)["arch"]].quirks
    logits = model.run(sequence(tokens, 1, table), [n] if both_ways else [n - 5, *[1] * 5])
    expected = found.get("logits_short", found["logits"])  # which is of so short a context
    return nmse(logits[:, found.get("columns", slice(None))], expected)
