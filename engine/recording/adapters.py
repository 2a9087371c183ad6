"""LoRA adapters (https://arxiv.org/abs/2106.09685) from GGUF files: low-rank updates of matrices.

A matrix W becomes W + scale * alpha / rank * B A. The scales are each request's own, so nothing
is merged: what the updates yield is added to what W yields (recording/verbs.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.errors import ModelError, RequestError, naming
from gguf_serve.engine.gguf.file import GGUFFile, open_gguf
from gguf_serve.engine.gguf.header import TensorInfo
from gguf_serve.engine.options import AdapterRoom, AdapterState

Floats = npt.NDArray[np.float32]
ENDS = (".lora_a", ".lora_b")
INVOCATION = "adapter.alora.invocation_tokens"
EMBEDDING = "token_embd.weight"
# Matrices that a file's own adapters change, and by which names
SWITCHED = {
    "attn_qkv": ("attn_q", "attn_k", "attn_v"),
    **{name: (name,) for name in ("attn_output", "ffn_gate", "ffn_up", "ffn_down")},
}
ADAPTABLE = re.compile(
    r"(token_embd|output|blk\.\d+\.(attn_(q|k|v|qkv|output|gate|q_a|q_b|kv_a_mqa|kv_b)"
    r"|ffn_(gate|up|down)(_shexp)?|ffn_(gate|up|down|gate_up)_(ch)?exps"
    r"|ssm_(in|out)|shortconv\.(in|out)_proj))\.weight"
)
# Those whose updates may come while the model is served
RESERVABLE = re.compile(r"blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down))\.weight")


class LowRank(Struct, frozen=True):
    """An adapter's update of a matrix: b @ a, times the scale of adapter ``index``.

    Of experts, a matrix for each. Of the embedding, whose rows are tokens, it is a @ b^T.
    ``reserved``: the tensor for whose update this has the room, its rows from ``begin`` on; "": it
    is an update itself.
    """

    index: int
    a: Floats  # [rank, n_cols], [experts, rank, n_cols] or [n_vocab, rank]
    b: Floats  # [n_rows, rank] or [experts, n_rows, rank], with alpha / rank in it
    reserved: str = ""
    begin: int = 0

    def expert(self, expert: int, begin: int, end: int) -> LowRank:
        """Of some rows of one expert's matrix."""
        return LowRank(self.index, self.a[expert], self.b[expert, begin:end])

    def rows(self, begin: int, end: int) -> LowRank:
        """Of some rows, without what changes none of them."""
        b = self.b[begin:end]
        if self.reserved:
            return replace(self, b=b, begin=self.begin + begin)
        counts = b.any(axis=0)
        return LowRank(self.index, self.a[counts], b[:, counts])

    def of(self, adapter: Adapter | None) -> LowRank | None:
        """What an adapter has to put into reserved room; None: nothing."""
        if adapter is None or self.reserved not in adapter.updates:
            return None
        a, b = adapter.updates[self.reserved]
        return LowRank(self.index, a, b[self.begin : self.begin + len(self.b)])


class Adapter(Struct, frozen=True):
    """A file's updates by the name of the tensor that they change. ``invocation``: tokens that a
    prompt must have for them to count, from there on (aLoRA, https://arxiv.org/abs/2504.12397).
    ``is_reserved``: zeros in whose place others may come."""

    path: Path
    updates: dict[str, tuple[Floats, Floats]]
    invocation: tuple[int, ...] = ()
    fingerprint: str = ""  # of the whole file
    is_reserved: bool = False


class Adapted(Struct, frozen=True):
    """What is asked of a model to read its adapters."""

    path: Path
    architecture: str
    tensors: Mapping[str, TensorInfo]


def read_adapters(paths: Sequence[Path], model: GGUFFile) -> list[Adapter]:
    """The adapters of a model; ModelError for a file that is not one, or is another model's."""
    base = Adapted(model.path, model.architecture, model.tensors)
    return [read_adapter(path, base) for path in paths]


def room_for_adapters(model: GGUFFile, room: AdapterRoom) -> list[Adapter]:
    """Places for adapters that come later, of the matrices that most have."""
    shapes = {
        name: info.shape
        for name, info in model.tensors.items()
        if RESERVABLE.fullmatch(name) and len(info.shape) == 2
    }
    updates = {
        name: (np.zeros((room.rank, n_cols), np.float32), np.zeros((n_rows, room.rank), np.float32))
        for name, (n_cols, n_rows) in shapes.items()
    }
    return [Adapter(model.path, updates, is_reserved=True)] * room.count


def switched_adapters(model: GGUFFile, n_layers: int, n: int) -> list[Adapter]:
    """The ``n`` adapters that a file has itself, which follow one of zeros: of Q, K and V as of one
    matrix. ModelError for tensors that do not fit."""
    found: list[dict[str, tuple[Floats, Floats]]] = [{} for _ in range(n)]
    for layer in range(n_layers):
        for matrix, parts in SWITCHED.items():
            name = f"blk.{layer}.{matrix}.weight"
            tensors = [f"blk.{layer}.{part}" for part in parts]
            a, b = ([_floats(model, t + end) for t in tensors] for end in ENDS)
            rows = sum(each.shape[-2] for each in b)
            sizes = {(each.ndim, len(each)) for each in (*a, *b)}
            if sizes != {(3, n + 1)} or rows != prod(model.tensors[name].shape[1:]):
                raise ModelError(
                    f"{model.path}: tensors {', '.join(tensors)} (.lora_a, .lora_b) of shapes "
                    f"{[each.shape[::-1] for each in (*a, *b)]} do not fit {name} of shape "
                    f"{model.tensors[name].shape} and {n} adapters"
                )
            if any(each[0].any() for each in b):
                raise ModelError(f"{model.path}: the first adapter of {name} is not zero")
            for i in range(n):
                found[i][name] = _below([each[i + 1] for each in a], [each[i + 1] for each in b])
    return [Adapter(model.path, updates) for updates in found]


def _below(a: Sequence[Floats], b: Sequence[Floats]) -> tuple[Floats, Floats]:
    """The update of matrices below each other, of theirs."""
    whole = np.zeros((sum(map(len, b)), sum(map(len, a))), np.float32)
    row = column = 0
    for low, high in zip(a, b, strict=True):
        whole[row : row + len(high), column : column + len(low)] = high
        row, column = row + len(high), column + len(low)
    return np.concatenate(a), whole


def invoked_at(prompt: Sequence[int], invocation: Sequence[int]) -> int | None:
    """Where these tokens are in a prompt for the last time; None: nowhere."""
    n, wanted = len(invocation), tuple(invocation)
    places = range(len(prompt) - n, -1, -1)
    return next((i for i in places if tuple(prompt[i : i + n]) == wanted), None)


def scales_of(
    adapters: Sequence[AdapterState], scales: Iterable[tuple[int, float]] | None, n_places: int
) -> tuple[float, ...]:
    """A scale for each place: those of adapters named by id, else 0; None: what they have.
    RequestError for an id that no adapter has."""
    if scales is None:
        scales = [(adapter.id, adapter.scale) for adapter in adapters]
    places = {adapter.id: adapter.place for adapter in adapters}
    found = [0.0] * n_places
    for id, scale in scales:
        if id not in places:
            known = f", of {len(places)} with the ids {sorted(places)}" if places else ""
            raise RequestError(f"there is no LoRA adapter {id}{known}")
        found[places[id]] = scale
    return tuple(found)


def invoked(
    adapters: Sequence[AdapterState], prompt: Sequence[int], scales: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The scales for a prompt, and from which token on each counts, if not all do at once: 0
    for an adapter whose invocation the prompt lacks."""
    found, starts = list(scales), [0] * len(scales)
    for adapter in adapters:
        if adapter.invocation and scales[adapter.place]:
            place = invoked_at(prompt, adapter.invocation)
            starts[adapter.place] = place or 0
            found[adapter.place] = 0.0 if place is None else scales[adapter.place]
    return tuple(found), tuple(starts) if any(starts) else ()


def check_used(adapters: Sequence[Adapter], used: AbstractSet[str]) -> None:
    """ModelError for an update that would be without effect; ``used``: the tensors that have
    been loaded with theirs."""
    for adapter in adapters:
        for name in () if adapter.is_reserved else adapter.updates:
            if name not in used or not ADAPTABLE.fullmatch(name):
                raise ModelError(
                    f"{adapter.path}: tensor {name}.lora_a: adapters of {name} are not supported"
                )


def read_adapter(path: Path, model: Adapted) -> Adapter:
    """ModelError for a file that is not an adapter, or is another model's."""
    with open_gguf(path) as gguf, naming(path):
        kind = (gguf.metadata.get("general.type"), gguf.metadata.get("adapter.type"))
        if kind != ("adapter", "lora"):
            raise ModelError(
                f"{path}: general.type and adapter.type are {kind}, expected ('adapter', 'lora')"
            )
        if gguf.architecture != model.architecture:
            raise ModelError(
                f"{path}: an adapter of {gguf.architecture}, the model is {model.architecture}"
            )
        alpha = gguf.get_float("adapter.lora.alpha", 0.0)
        names = {name[: -len(ENDS[0])] for name in gguf.tensors if name.endswith(ENDS)}
        stray = next((name for name in gguf.tensors if not name.endswith(ENDS)), None)
        if stray is not None:
            raise ModelError(
                f"{path}: tensor {stray} is not a low-rank update, expected a name that ends with "
                f"{' or '.join(ENDS)}"
            )
        updates = {name: _update(gguf, model, name, alpha) for name in sorted(names)}
        return Adapter(path, updates, _invocation(gguf), gguf.digest())


def _invocation(gguf: GGUFFile) -> tuple[int, ...]:
    tokens = gguf.metadata.get(INVOCATION)
    if tokens is None:
        return ()
    if not isinstance(tokens, np.ndarray) or tokens.dtype.kind not in "iu" or not tokens.size:
        raise ModelError(f"{gguf.path}: {INVOCATION} is {tokens}, expected a list of tokens")
    return tuple(tokens.tolist())


def _update(gguf: GGUFFile, model: Adapted, name: str, alpha: float) -> tuple[Floats, Floats]:
    """A and B of a tensor of the model, as LowRank has them."""
    a, b = (_floats(gguf, name + end) for end in ENDS)
    base = model.tensors.get(name)
    if base is None:
        raise ModelError(f"{gguf.path}: tensor {name}.lora_a is for {name}, which the model lacks")
    first = a.T if name == EMBEDDING else a  # [.., rank, n_cols], or that of its transpose
    rank = first.shape[-2]
    shape = base.shape[1::-1] if name == EMBEDDING else base.shape
    fits = first.shape[:-2] == b.shape[:-2] == shape[:1:-1] and b.shape[-1] == rank
    if not fits or (first.shape[-1], b.shape[-2]) != shape[:2]:
        found = " and ".join(str(gguf.tensors[name + end].shape) for end in ENDS)
        raise ModelError(
            f"{gguf.path}: tensors {name}.lora_a and .lora_b of shapes {found} do not fit {name} "
            f"of shape {base.shape}"
        )
    return a, b * np.float32(alpha / rank if alpha else 1.0)


def _floats(gguf: GGUFFile, name: str) -> Floats:
    """A matrix in rows, or one for each expert; of the types that adapters are converted to."""
    info = gguf.tensors.get(name)
    if info is None:
        raise ModelError(f"{gguf.path}: tensor {name} is missing")
    if len(info.shape) not in (2, 3):
        raise ModelError(f"{gguf.path}: tensor {name} of shape {info.shape} is no matrix")
    data, kind = gguf.data(name), info.type.name
    if kind == "F32":
        flat = data.view(np.float32)
    elif kind == "F16":
        flat = data.view(np.float16).astype(np.float32)
    elif kind == "BF16":
        flat = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif kind == "Q8_0":
        blocks = data.reshape(-1, info.type.block_bytes)
        scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        flat = blocks[:, 2:].copy().view(np.int8) * scales
    else:
        raise ModelError(f"{gguf.path}: tensor {name} is of type {kind}, not F32, F16, BF16, Q8_0")
    return np.array(flat, np.float32).reshape(info.shape[::-1])
