"""A model's weights on the device: what the model has beside its layers (layers.py), as the file
shows it.

All memory is allocated first, so that launches can be recorded, and their programs built, while
the matrices are packed (packing.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.architecture.drafts import TARGET_EMBEDDING
from gguf_serve.engine.architecture.keys import as_read
from gguf_serve.engine.architecture.shapes import check_tensors
from gguf_serve.engine.architecture.stacks import as_layers
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.layers.convolved import load_first_convolution
from gguf_serve.engine.layers.ends import LOWEST_LOGIT, Embedding, Head, load_per_layer_embedding
from gguf_serve.engine.layers.hyper import HyperWeights
from gguf_serve.engine.layers.nextn import Fusion, StateFusion, load_fusion, load_state_fusion
from gguf_serve.engine.layers.rank import RankOfMean, load_rank
from gguf_serve.engine.layers.residuals import Residuals, load_residuals
from gguf_serve.engine.layers.sublayer import Deepstack, Direction, Entry, Scaled, Skip, Sublayer
from gguf_serve.engine.model.layers import Layer, load_layers, load_norm
from gguf_serve.engine.model.placement import Placement
from gguf_serve.engine.recording.adapters import Adapter, check_used, switched_adapters
from gguf_serve.engine.recording.low_rank import Reservation
from gguf_serve.engine.recording.tensors import Linear, Places, TensorSource
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.quantization.weights import Matrix, PackJob
from gguf_serve.kernels.rows.norm import NormWeights

EMBEDDING = "token_embd.weight"
EMBEDDINGS = (
    TARGET_EMBEDDING,
    EMBEDDING,
    "output.weight",
)  # of which the first that there is counts
IMAGE_IDS = slice(4, 8196)  # Chameleon's


class ModelWeights(Struct, frozen=True):
    """A model as a list: the embedding, what is done with it before the first layer, the layers,
    what is done after the last one, the head."""

    placement: Placement
    embedding: Embedding
    before: tuple[Entry, ...]
    layers: tuple[Layer, ...]
    after: tuple[Entry, ...]
    head: Head
    handover: StateFusion | None  # what makes the states for a draft
    state_width: int  # of the states that it takes or gives, all residual streams of them
    rope_factors: npt.NDArray[np.float32] | None
    rope_factors_long: npt.NDArray[np.float32] | None
    n_bytes: int
    n_adapters: int
    reservations: Sequence[Sequence[Reservation]]  # for adapters that come later, by device
    placed: Sequence[Mapping[Places, Matrix]]  # by device, while the file is open


class Additions(NamedTuple):
    """What is computed beside the file's matrices: LoRA adapters, control vectors by layer, states
    for the draft of an open file; ``lent``: matrices that are there, by device, see
    TensorSource."""

    adapters: Sequence[Adapter] = ()
    directions: Mapping[int, npt.NDArray[np.float32]] = {}
    draft: GGUFFile | None = None
    lent: Sequence[Mapping[Places, Matrix]] = ()


NO_ADDITIONS = Additions()


def allocate_weights(
    gguf: GGUFFile,
    hparams: Hyperparameters,
    devices: Sequence[Device],
    placement: Placement,
    additions: Additions = NO_ADDITIONS,
) -> tuple[ModelWeights, list[list[PackJob]]]:
    """The model's weights with the matrices still empty, and the jobs that fill them, by device.

    Raises ModelError for a tensor that is missing, of a wrong shape, or of a type without
    kernels.
    """
    adapters, directions, draft, lent = additions
    gguf = as_layers(gguf, hparams.arch)
    check_tensors(gguf, hparams)
    if hparams.switch is not None:
        own = switched_adapters(gguf, hparams.n_layers, hparams.switch.n_adapters)
        adapters = (*own, *adapters)
    sources = [
        TensorSource(
            gguf, device, hparams.arch.unused, adapters, placed,
            # Where tokens are generated it would be a sixteenth more to read for each.
            as_integers=device.is_simd and not hparams.generates,
        )
        for device, placed in zip(devices, lent or [{}] * len(devices), strict=True)
    ]  # fmt: skip
    source, last = sources[placement.embedding], sources[placement.output]
    source.check_types()
    read = next((name for name in EMBEDDINGS if source.has(name)), EMBEDDING)
    matrix = source.matrix(read)
    head_at = len(placement.parts) - 1
    per_layer = load_per_layer_embedding(source, hparams, 0)
    convolution, fusion = load_first_convolution(source, hparams), load_fusion(source, hparams, 0)
    handover = None
    if draft is not None:
        other = TensorSource(draft, devices[placement.output])
        handover, last.jobs[:0] = load_state_fusion(other, draft, hparams, head_at), other.jobs
    residuals = load_residuals(last, as_read(gguf, hparams.arch.all_keys), hparams, head_at)
    layers = load_layers(sources, hparams, placement)
    tied = None if last is not source or read == TARGET_EMBEDDING else matrix
    if residuals is not None:
        layers = tuple(_tied(layer, residuals) for layer in layers)
        if directions:
            name = hparams.arch.name
            raise ModelError(f"control vectors are not supported in the several streams of {name}")
    else:
        layers = tuple(
            Layer(layer.part, (*layer.entries, *entries))
            for i, layer in enumerate(layers)
            for entries in [_additions(sources, hparams, placement, i, matrix, directions)]
        )
    weights = ModelWeights(
        placement=placement,
        embedding=_embedding(source, hparams, matrix),
        before=(
            *(() if convolution is None else (convolution,)),
            *(() if fusion is None else (fusion,)),
            *(() if per_layer is None else (per_layer,)),
            *(() if residuals is None or isinstance(fusion, Fusion) else (residuals.begin,)),
        ),
        layers=layers,
        after=() if residuals is None else (residuals.finish,),
        head=Head(
            head_at, _output_norm(last, hparams),
            _output(last, hparams, tied) if hparams.generates else None,
            load_rank(last, hparams),
            RankOfMean(last, hparams) or None if hparams.rank_pooling == "mean" else None,
            _dense(last, hparams), "hidden_before_norm" not in hparams.arch.quirks,
        ),
        rope_factors=_first(source, "rope_freqs.weight", "rope_factors_short.weight"),
        rope_factors_long=_first(source, "rope_freqs.weight", "rope_factors_long.weight"),
        handover=handover,
        state_width=hparams.state_size * _streams_of_a_state(residuals, fusion),
        n_bytes=gguf.n_bytes,
        n_adapters=len(adapters),
        reservations=[source.reservations for source in sources],
        placed=[source.placed for source in sources],
    )  # fmt: skip
    check_used(adapters, set().union(*(source.adapted for source in sources)))
    return weights, [source.jobs for source in sources]


def _streams_of_a_state(residuals: Residuals | None, fusion: Entry | None) -> int:
    """All of the model's, but for a draft that has keys of states."""
    all_of_them = fusion is None or isinstance(fusion, Fusion)
    return residuals.count if all_of_them and isinstance(residuals, HyperWeights) else 1


def _embedding(source: TensorSource, h: Hyperparameters, matrix: Matrix) -> Embedding:
    positions, types = "position_embd.weight", "token_types.weight"
    return Embedding(
        0, matrix, source.embedding_updates(EMBEDDING),
        positions=source.matrix(positions) if source.has(positions) else None,
        token_types=source.matrix(types) if source.has(types) else None,
        norm=_embedding_norm(source, h),
    )  # fmt: skip


def _additions(
    sources: Sequence[TensorSource],
    h: Hyperparameters,
    placement: Placement,
    layer: int,
    embedding: Matrix,
    directions: Mapping[int, npt.NDArray[np.float32]],
) -> list[Entry]:
    """What is done with what a layer yields: a later part of an encoder's embeddings is added, and
    the tokens' by a factor, or it is scaled; a control vector is added."""
    part = 2 * layer + 2
    source = sources[placement.parts[part]]
    found: list[Entry] = []
    if layer < len(h.deepstack) and h.deepstack[layer]:
        found.append(Deepstack(part, embedding, h.deepstack[layer] * h.n_embd))
    scale = source.floats(f"blk.{layer}.layer_output_scale.weight")
    if scale is not None:
        entry = Scaled if "scaled_layers" in h.arch.quirks else Skip
        found.append(entry(part, float(scale[0])))
    if h.rescale_every and (layer + 1) % h.rescale_every == 0:
        found.append(Scaled(part, 0.5))
    if layer in directions:
        found.append(Direction(part, source.float_matrix(directions[layer][None])))
    return found


def _tied(layer: Layer, residuals: Residuals) -> Layer:
    """The layer with its mixer and its FFN between the model's streams."""
    sublayers = [entry for entry in layer.entries if isinstance(entry, Sublayer)]
    return Layer(layer.part, tuple(residuals.tied(n, each) for n, each in enumerate(sublayers)))


def _output(source: TensorSource, h: Hyperparameters, embedding: Matrix | None) -> Linear:
    """``embedding``: the matrix that the file ties to it, if that is on the same device."""
    if source.has("output.weight"):
        output = source.linear("output", h.n_embd)
    else:
        matrix = source.matrix(EMBEDDING) if embedding is None else embedding
        output = Linear(matrix, source.vector("output.bias"))
    if "silent_images" in h.arch.quirks:
        bias = np.zeros(h.n_vocab, np.float32)
        bias[IMAGE_IDS] = LOWEST_LOGIT
        output = replace(output, bias=source.upload(bias))
    n_silent = h.n_vocab - output.matrix.n_rows  # before the last ids, which have rows
    if n_silent < 0:
        raise ModelError(f"output.weight has {output.matrix.n_rows} rows for {h.n_vocab} tokens")
    if h.n_vocab_output and not n_silent:
        output = replace(output, matrix=output.matrix.first_rows(h.n_vocab_output))
    return replace(output, offset=n_silent)


def _dense(source: TensorSource, h: Hyperparameters) -> tuple[Linear, ...]:
    names = [name for name in h.arch.projections if source.has(f"{name}.weight")]
    found = tuple(source.linear(name) for name in names)
    if found and (found[0].matrix.n_cols, found[-1].matrix.n_rows) != (h.n_embd, h.state_size):
        raise ModelError(
            f"{' and '.join(names)} go from {found[0].matrix.n_cols} values to "
            f"{found[-1].matrix.n_rows}, expected {h.n_embd} and {h.state_size}"
        )
    return found


def _output_norm(source: TensorSource, h: Hyperparameters) -> NormWeights:
    if h.arch.layers == "norms_after" or h.cycles:  # the last layer has normalized the stream
        return NormWeights(None, h.eps)
    norm = load_norm(source, h, "output_norm", "enc.output_norm", "token_embd_norm")
    other = h.takes_states and "layer_norm_after_heads" in h.arch.quirks
    return replace(norm, layer=True) if other else norm


def _first(source: TensorSource, *names: str) -> npt.NDArray[np.float32] | None:
    found = (source.floats(name) for name in names)
    return next((array for array in found if array is not None), None)


def _embedding_norm(source: TensorSource, h: Hyperparameters) -> NormWeights | None:
    own = h.arch.layers == "norms_after" or source.has("output_norm.weight")
    if own and h.arch.embedding_norm and source.has("token_embd_norm.weight"):
        return load_norm(source, h, "token_embd_norm")
    return (
        NormWeights(None, h.eps, weightless=True) if "normed_embedding" in h.arch.quirks else None
    )
