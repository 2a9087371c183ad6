from __future__ import annotations

import pytest

from gguf_serve.kernels.quantization.quants import TENSOR_TYPES, by_name


def test_sizes_are_those_of_the_gguf_package():
    constants = pytest.importorskip("gguf.constants")
    ours = {kind.id: (kind.block_elements, kind.block_bytes) for kind in TENSOR_TYPES.values()}
    theirs = {int(kind): size for kind, size in constants.GGML_QUANT_SIZES.items()}
    assert {i: ours.get(i) for i in theirs} == theirs


def test_names_are_those_of_the_gguf_package():
    constants = pytest.importorskip("gguf.constants")
    for kind in constants.GGMLQuantizationType:
        assert TENSOR_TYPES[int(kind)].name == kind.name


def test_keys_and_names_are_unique():
    assert all(TENSOR_TYPES[kind.id] is kind for kind in TENSOR_TYPES.values())
    assert len({kind.name for kind in TENSOR_TYPES.values()}) == len(TENSOR_TYPES)


def test_by_name():
    kind = by_name("Q4_K")
    assert (kind.name, kind.id, kind.block_elements, kind.block_bytes) == ("Q4_K", 12, 256, 144)
    for kind in TENSOR_TYPES.values():
        assert by_name(kind.name) is kind


@pytest.mark.parametrize("name", ["Q9_K", "q4_k", ""])
def test_an_unknown_name_is_named(name):
    with pytest.raises(ValueError, match=repr(name)):
        by_name(name)
