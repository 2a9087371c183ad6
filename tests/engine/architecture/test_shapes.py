"""Every model of the conformance data without each of its tensors, as headers without data.

``data/optional_tensors.json`` lists which tensors a model can do without, by what llama.cpp (of
llama-cpp-python 0.3.36) did with the same files: name within a layer, and models. Those with
which it loaded but ended in its first step count as needed; qwen3next's ``attn_gate`` does not,
since ``ssm_in`` of these files stands for it. Nor do tensors of step35's experts and gates,
without which llama.cpp passes over all of an FFN. kimi-k3's ``ffn_gate_shexp`` is left out:
llama.cpp then takes another activation, for files that nobody has.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conformance_data import Spec, names, read_spec, second_names
from msgspec.structs import replace
from random_model import start

from gguf_serve.engine.architecture.hyperparameters import read_hyperparameters
from gguf_serve.engine.architecture.shapes import ENDS, LAYER, check_tensors
from gguf_serve.engine.architecture.table import ARCHITECTURES, find_architecture
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile, open_gguf
from gguf_serve.engine.model.placement import on_one_device
from gguf_serve.engine.model.weights import allocate_weights
from gguf_serve.kernels.opencl.device import open_device

NAMES = names()
# Of those that ../shared has apart, whose layers all count and have their usual names.
ROWS = {name: ARCHITECTURES.get(read_spec(name)["arch"]) for name in {*second_names()} - {*NAMES}}
SECOND = sorted(
    name for name, row in ROWS.items()
    if row is not None and not row.stacks and not name.endswith(("-mtp", "-nextn"))
)  # fmt: skip
OPTIONAL = json.loads((Path(__file__).parents[1] / "data" / "optional_tensors.json").read_text())
# Sizes that some models have in one tensor alone, so that nothing contradicts them.
SINGLE = ("V", "O", "c", "h", "l", "f", "2f", "g", "o", "r")
TYPES = {"F32": np.float32, "F16": np.float16}


def header(spec: Spec, path: Path) -> GGUFFile:
    """The model of a spec with data of zeros that take no room."""
    writer, n_bytes = start(spec, path), 0
    for name, shape, kind in spec["tensors"]:
        dtype = np.dtype(TYPES.get(kind, np.float32))
        size = int(np.prod(shape)) * dtype.itemsize
        writer.add_tensor_info(name, shape[::-1], dtype, size)
        n_bytes += -(-size // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, -(-path.stat().st_size // 32) * 32 + n_bytes)
    return open_gguf(path)


def check(gguf: GGUFFile) -> None:
    check_tensors(gguf, read_hyperparameters(gguf, find_architecture(gguf.architecture)))


@pytest.mark.parametrize("name", [*NAMES, *SECOND])
def test_without_each_tensor(name: str, tmp_path: Path) -> None:
    spec = read_spec(name)
    with header(spec, tmp_path / "model.gguf") as gguf:
        whole = dict(gguf.tensors)
        for tensor in whole:
            del gguf.tensors[tensor]
            inner = tensor.split(".", 2)[2] if tensor.startswith("blk.") else tensor
            if name in OPTIONAL.get(inner, "").split():
                check(gguf)
            else:
                with pytest.raises(ModelError, match=r"missing|no matrix|0 rows of") as caught:
                    check(gguf)
                assert tensor.removesuffix(".weight") in str(caught.value)
            gguf.tensors[tensor] = whole[tensor]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_optional_is_loaded_without(name: str, tmp_path: Path) -> None:
    """As far as the device's memory, which is not allocated."""
    device = open_device().meta()
    spec = read_spec(name)
    with header(spec, tmp_path / "model.gguf") as gguf:
        whole = dict(gguf.tensors)
        for tensor in whole:
            inner = tensor.split(".", 2)[2] if tensor.startswith("blk.") else tensor
            if name in OPTIONAL.get(inner, "").split():
                del gguf.tensors[tensor]
                h = read_hyperparameters(gguf, find_architecture(gguf.architecture))
                allocate_weights(gguf, h, [device.meta()], on_one_device(h.n_layers))
                gguf.tensors[tensor] = whole[tensor]


# Tensors of conformance models that nothing reads, as their references want it.
UNREAD = {
    "attn_k_norm.bias": "mpt-dense ",  # without a norm of Q; a name in ../shared alone
    "exp_probs_b_vl.bias": "deepseek4-moe",  # of images
    # The router's tensors decide against the dense FFN.
    **dict.fromkeys(("ffn_down.weight", "ffn_gate.weight", "ffn_up.weight"), "hy_v3-moe mimo2-moe"),
    **dict.fromkeys(
        ("ffn_down_exps.weight", "ffn_gate_exps.weight", "ffn_gate_inp.weight",
         "ffn_up_exps.weight"), "refact-moe",
    ),
    # Of layers that share the K and V of an earlier one.
    **dict.fromkeys(
        ("attn_k.weight", "attn_k_norm.weight", "attn_v.weight"), "gemma3n gemma4-e2b"
    ),
    # Of an indexer that chooses all keys, and what attn_qkv and attn_gate stand for.
    **dict.fromkeys(
        ("indexer.k_norm.weight", "indexer.k_proj.weight", "indexer.q_norm.weight",
         "indexer.q_proj.weight"), "qwen4exp-moe",
    ),
    "ssm_in.weight": "qwen3next-moe",
    # Of images, where there are any.
    **dict.fromkeys(
        ("vis_attn_output.weight", "vis_attn_qkv.weight", "vis_down.weight", "vis_gate.weight",
         "vis_up.weight"), "cogvlm-dense",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or its architecture says that it is in vain."""
    read, data = set[str](), GGUFFile.data
    monkeypatch.setattr(
        GGUFFile, "data", lambda gguf, tensor: (read.add(tensor), data(gguf, tensor))[1]
    )
    with header(read_spec(name), tmp_path / "model.gguf") as gguf:
        arch = find_architecture(gguf.architecture)
        h = read_hyperparameters(gguf, arch)
        allocate_weights(gguf, h, [open_device().meta()], on_one_device(h.n_layers))
        unread = [
            tensor
            for tensor in set(gguf.tensors) - read
            for inner in [tensor.split(".", 2)[2] if tensor.startswith("blk.") else tensor]
            if not tensor.endswith(arch.unused or "\0")
            and name not in UNREAD.get(inner, "").split()
        ]
    assert not unread


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_needs_are_known(arch: str) -> None:
    scopes = {need.scope for need in ARCHITECTURES[arch].needs}
    assert "model" in scopes
    assert len(scopes) > 1


def test_a_gate_of_more_rows_than_one(tmp_path: Path) -> None:
    name = "blk.0.ffn_gate_inp_shexp.weight"
    spec = read_spec("qwen2moe-moe")
    with header(spec, tmp_path / "model.gguf") as gguf:
        check(gguf)
        info = gguf.tensors[name]
        gguf.tensors[name] = replace(info, shape=(info.shape[0], 5))
        with pytest.raises(ModelError, match=name):
            check(gguf)


@pytest.mark.parametrize("name", NAMES)
def test_tensors_of_other_shapes(name: str, tmp_path: Path) -> None:
    """With fewer rows, and with fewer columns: the error names the tensor and its shape, unless
    its sizes are its own affair."""
    spec = read_spec(name)
    n_checked = 0
    with header(spec, tmp_path / "model.gguf") as gguf:
        for tensor, info in list(gguf.tensors.items()):
            inner = tensor.split(".", 2)[2] if tensor.startswith("blk.") else tensor
            known = LAYER if tensor.startswith("blk.") else ENDS
            forms = known.get(inner.removesuffix(".weight"), "-").split("|")[-1].split()
            for axis, size in enumerate(forms):
                shape = tuple(max(n // 2, 1) if i == axis else n for i, n in enumerate(info.shape))
                alone = size == "-" or size in SINGLE or len(forms) != len(shape)
                # Of qwen4exp it is a table of another kind, which nothing else has the size of.
                alone |= size == "p" and "per_layer_model_proj.weight" not in gguf.tensors
                if alone or shape == info.shape:
                    continue
                gguf.tensors[tensor] = replace(info, shape=shape)
                with pytest.raises(ModelError) as caught:
                    check(gguf)
                assert tensor in str(caught.value)
                assert str(shape) in str(caught.value)
                n_checked += 1
            gguf.tensors[tensor] = info
    assert n_checked > 5
