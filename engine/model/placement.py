"""Which device computes which part of a model.

The parts are the embedding, the mixers and the FFN of each layer, and the output layer. A part's
weights lie where it is computed, and so does what its layer keeps in the KV cache.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.errors import EngineError

EXPERTS = re.compile(r"ffn_(up|down|gate|gate_up)_(ch|)exps")
FFN_TENSORS = (
    "ffn", "exp_probs_b", "pre_ffw_norm", "post_ffw_norm", "layer_output", "inp_gate", "proj",
    "post_norm",
)  # fmt: skip
OUTPUT_TENSORS = ("output", "cls")
INPUT_TENSORS = ("token_embd", "position_embd", "token_types", "per_layer")


class Placement(Struct, frozen=True):
    """Devices by their index among those in use."""

    embedding: int
    mixers: tuple[int, ...]
    ffns: tuple[int, ...]
    output: int

    @property
    def parts(self) -> list[int]:
        """The device of each part: embedding, mixers and FFN of each layer, output."""
        layers = (at for pair in zip(self.mixers, self.ffns, strict=True) for at in pair)
        return [self.embedding, *layers, self.output]


def placement_of(parts: Sequence[int]) -> Placement:
    """The reverse of ``Placement.parts``."""
    return Placement(parts[0], tuple(parts[1:-1:2]), tuple(parts[2:-1:2]), parts[-1])


def on_one_device(n_layers: int) -> Placement:
    """All of a model on the first device."""
    return Placement(0, (0,) * n_layers, (0,) * n_layers, 0)


def spread(n_layers: int, n_offloaded: int, shares: Sequence[float], cpu: int) -> Placement:
    """llama.cpp's way: of the layers and the output layer, which counts as the last, the last
    ``n_offloaded`` go to the first devices in these shares, the others to the device ``cpu``. The
    embedding is where the first layer is."""
    n = min(n_offloaded, n_layers + 1)
    total, begin, ends = sum(shares), 0.0, list[float]()
    for share in shares:
        begin += share / total
        ends.append(begin)
    ends[-1] = 1.0

    def device(layer: int) -> int:
        rank = layer - (n_layers + 1 - n)
        return cpu if rank < 0 else next(i for i, end in enumerate(ends) if rank / n < end)

    layers = tuple(device(i) for i in range(n_layers))
    return Placement(layers[0], layers, layers, device(n_layers))


def in_stages(part_bytes: Sequence[int], n_tied: int, n: int) -> Placement:
    """Consecutive layers to each of ``n`` devices, so that all have about as many bytes of weights;
    the first has the embedding and the output layer, which may be one matrix of ``n_tied`` bytes.

    Raises EngineError if there are too few layers.
    """
    ends = part_bytes[0] + part_bytes[-1] - n_tied
    layers = [sum(pair) for pair in zip(part_bytes[1:-1:2], part_bytes[2:-1:2], strict=True)]
    share, before, found = (ends + sum(layers)) / n, float(ends), list[int]()
    for size in layers:
        found.append(min(int((before + size / 2) / share), n - 1))
        before += size
    if not set(range(1, n)) <= set(found):
        raise EngineError(f"{len(layers)} layers cannot be shared out to {n} stages: fewer of them")
    return Placement(0, tuple(found), tuple(found), 0)


def ffns_on(placement: Placement, chosen: Sequence[bool], n: int, cpu: int) -> Placement:
    """The chosen ones of the first ``n`` layers' FFNs on the device ``cpu``."""
    ffns = tuple(
        cpu if i < n and has else at
        for i, (at, has) in enumerate(zip(placement.ffns, chosen, strict=True))
    )
    return replace(placement, ffns=ffns)


def layers_with_experts(names: Iterable[str], n_layers: int) -> list[bool]:
    """Which layers have tensors of experts."""
    found = {part_of(name, n_layers) for name in names if EXPERTS.search(name)}
    return [2 * i + 2 in found for i in range(n_layers)]


def part_of(name: str, n_layers: int) -> int | None:
    """The index in ``Placement.parts`` of what computes with a tensor; None: several do."""
    match = re.match(r"blk\.(\d+)\.(.*)", name)
    if match is None:
        if name.startswith(INPUT_TENSORS):
            return 0
        return 2 * n_layers + 1 if name.startswith(OUTPUT_TENSORS) else None
    layer = int(match[1])
    if layer >= n_layers:
        return None
    return 2 * layer + (2 if match[2].startswith(FFN_TENSORS) else 1)


def overridden(
    placement: Placement, names: Iterable[str], overrides: Sequence[tuple[str, int]]
) -> Placement:
    """``overrides``: pairs of a pattern and a device. The part of every tensor whose name has a
    match goes to the device of the first pattern that does.

    Raises EngineError for a pattern that is none, or for a part that two patterns want on different
    devices.
    """
    n_layers = len(placement.mixers)
    parts, moved = placement.parts, dict[int, str]()
    compiled = [(_compiled(text), at) for text, at in overrides]
    for name in names:
        part = part_of(name, n_layers)
        found = next((at for p, at in compiled if p.search(name)), None)
        if part is None or found is None:
            continue
        at = found
        if part in moved and parts[part] != at:
            raise EngineError(
                f"--override-tensor: {moved[part]} and {name} are computed together, and cannot be "
                "on different devices"
            )
        parts[part], moved[part] = at, name
    return placement_of(parts)


def unmatched(names: Collection[str], overrides: Sequence[tuple[str, int]]) -> list[str]:
    """The patterns that match no tensor's name."""
    return [text for text, _ in overrides if not any(map(_compiled(text).search, names))]


def _compiled(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise EngineError(f"--override-tensor: {text!r} is not a pattern: {error}") from None
