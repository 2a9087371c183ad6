"""Layers, experts and overrides on devices, as numbers."""

from __future__ import annotations

import pytest

from gguf_serve.engine.errors import EngineError
from gguf_serve.engine.model.placement import (
    Placement,
    ffns_on,
    in_stages,
    layers_with_experts,
    on_one_device,
    overridden,
    part_of,
    placement_of,
    spread,
    unmatched,
)

NAMES = [
    "token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight",
    *(f"blk.{i}.{name}.weight" for i in range(3) for name in ("attn_norm", "attn_q", "ffn_norm")),
    "blk.0.ffn_up.weight", "blk.1.ffn_up_exps.weight", "blk.2.ffn_gate_up_exps.weight",
]  # fmt: skip


@pytest.mark.parametrize(
    ("n_offloaded", "shares", "layers", "output"),
    [
        (7, [1.0], "000000", 0),
        (99, [1.0], "000000", 0),
        (6, [1.0], "900000", 0),
        (3, [1.0], "999900", 0),
        (0, [1.0], "999999", 9),
        (7, [3.0, 1.0], "000000", 1),
        (7, [1.0, 1.0], "000011", 1),
        (5, [2.0, 0.0, 3.0], "990022", 2),
    ],
)
def test_layers_are_shared_out(
    n_offloaded: int, shares: list[float], layers: str, output: int
) -> None:
    """The last layers are offloaded, and the output layer counts as one."""
    expected = tuple(int(at) for at in layers)
    placement = spread(6, n_offloaded, shares, cpu=9)
    assert placement == Placement(expected[0], expected, expected, output)


def test_parts_and_back() -> None:
    placement = Placement(4, (0, 1, 2), (3, 4, 5), 6)
    assert placement.parts == [4, 0, 3, 1, 4, 2, 5, 6]
    assert placement_of(placement.parts) == placement


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("token_embd.weight", 0), ("token_embd_norm.weight", 0), ("blk.0.attn_q.weight", 1),
        ("blk.0.ffn_gate_inp.weight", 2), ("blk.1.ssm_in.weight", 3),
        ("blk.1.exp_probs_b.bias", 4), ("blk.2.post_attention_norm.weight", 5),
        ("output.weight", 7), ("cls.output.weight", 7), ("rope_freqs.weight", None),
        ("per_layer_token_embd.weight", 0), ("blk.0.proj.weight", 2),
        ("blk.3.nextn.eh_proj.weight", None),
    ],
)  # fmt: skip
def test_what_computes_with_a_tensor(name: str, part: int | None) -> None:
    assert part_of(name, 3) == part


def test_experts_of_the_first_layers() -> None:
    has = layers_with_experts(NAMES, 3)
    assert has == [False, True, True]
    assert ffns_on(on_one_device(3), has, 2, cpu=1).parts == [0, 0, 0, 0, 1, 0, 0, 0]


def test_the_first_pattern_that_matches_counts() -> None:
    overrides = [(r"blk\.1\.", 1), ("exps", 2), ("token_embd", 3)]
    assert overridden(on_one_device(3), NAMES, overrides).parts == [3, 0, 0, 1, 1, 0, 2, 0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([("ffn_(up", 1)], r"'ffn_\(up' is not a pattern"),
        ([("ffn_norm", 1), ("ffn_up", 2)],
         "blk.0.ffn_norm.weight and blk.0.ffn_up.weight are computed together"),
    ],
)  # fmt: skip
def test_overrides_that_cannot_be(overrides: list[tuple[str, int]], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        overridden(on_one_device(3), NAMES, overrides)


def test_patterns_that_match_nothing() -> None:
    overrides = [("ffn_up", 1), ("attn_v", 1), ("nextn", 1)]
    assert unmatched(NAMES, overrides) == ["attn_v", "nextn"]
    assert overridden(on_one_device(3), NAMES, [("attn_v", 1)]) == on_one_device(3)


def test_dense_ffns_of_the_first_layers() -> None:
    dense = [not has for has in layers_with_experts(NAMES, 3)]
    assert ffns_on(on_one_device(3), dense, 2, cpu=1).parts == [0, 0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("embedding", "layers", "output", "tied", "n", "found"),
    [
        (0, [4, 4, 4, 4], 0, 0, 2, "0011"),
        (8, [4, 4, 4, 4], 8, 8, 2, "0111"),  # 12 of 24 bytes each
        (8, [4, 4, 4, 4], 8, 0, 2, "1111"),
        (4, [4, 4, 4, 4, 4, 4, 4], 0, 0, 4, "0112233"),
    ],
)
def test_layers_of_stages_have_as_many_bytes(
    embedding: int, layers: list[int], output: int, tied: int, n: int, found: str
) -> None:
    """A layer's bytes are those of its mixer and its FFN."""
    part_bytes = [embedding, *(half for size in layers for half in (1, size - 1)), output]
    placement = in_stages(part_bytes, tied, n)
    expected = tuple(map(int, found))
    assert placement == Placement(0, expected, expected, 0)


def test_too_many_stages() -> None:
    with pytest.raises(EngineError, match="2 layers cannot be shared out to 4 stages"):
        in_stages([1, 1, 1, 1, 1, 1], 0, 4)
