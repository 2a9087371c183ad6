"""A draft for another model, in a file of its own.

It reads states that are made of the inputs of some of its target's layers (layers/nextn.py,
StateFusion). EAGLE-3 (https://arxiv.org/abs/2503.01840) reads one beside each token, and then its
own. DFlash (https://arxiv.org/abs/2602.06036) has keys of the states, and of a block that begins
with the last token and goes on with masks, all of which become tokens at once. Gemma 4's assistants
have no keys: they attend to those of their target's last layers, and read its embeddings. What a
draft has no embedding or output matrix for, the target has.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Architecture, Hyperparameters
from gguf_serve.engine.architecture.heads import of_layers
from gguf_serve.engine.architecture.hyperparameters import read_hyperparameters
from gguf_serve.engine.architecture.table import DRAFTS, DRAFTS_OF_STREAMS
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import FLOAT_TYPES, GGUFFile
from gguf_serve.engine.gguf.header import TensorInfo

IDS = "d2t"
LENT = ("token_embd.weight", "output.weight")  # by the target, where the draft has none
TARGET_EMBEDDING = "target_embd.weight"  # of another width than the draft's
NORM = "enc.output_norm.weight"  # of what states are made of, or of the states
# Of DFlash 2's selector: a row for each token before, and for each after
SELECTOR_TABLES = ("selector_predecessor.weight", "selector_successor.weight")
SELECTOR_GATE = "selector_hidden.weight"
GATE = "cls.output.weight"  # as which it is read: it makes few numbers of a hidden state
MAX_CANDIDATES = 64  # the pairs of two places' are scored


class Confidence(Struct, frozen=True):
    """How sure a draft is of a token: the logistic function of weight . [state, embedding]."""

    weight: npt.NDArray[np.float32]
    bias: float

    def of(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """0 to 1, of each row."""
        found: npt.NDArray[np.float32] = 1 / (1 + np.exp(-(features @ self.weight + self.bias)))
        return found


class Selector(Struct, frozen=True):
    """What a block's tokens are chosen by where each depends on the one before (DFlash 2): models
    of no layers, whose embeddings are those of a token and of one after it, and how many of a
    row's likeliest tokens there are to choose from (forward/selection.py). The draft's ranking
    head makes of a row's state what both are multiplied by."""

    predecessors: tuple[GGUFFile, Hyperparameters]
    successors: tuple[GGUFFile, Hyperparameters]
    top_k: int


class Draft(Struct, frozen=True):
    """A draft as a model. ``ids``: its tokens by the target's ids, int64 [n_vocab]; None: the
    same. Of drafts of blocks: ``block``, tokens of one at most; ``mask``, the token in the places
    of those to come; ``from_anchor``, whether the first place drafts a token, too; ``bigrams``:
    the model that corrects logits by the token before (forward/corrections.py)."""

    gguf: GGUFFile
    hparams: Hyperparameters
    ids: npt.NDArray[np.int64] | None
    block: int = 0
    mask: int = -1
    from_anchor: bool = False
    bigrams: tuple[GGUFFile, Hyperparameters] | None = None
    confidence: Confidence | None = None
    selector: Selector | None = None

    @property
    def beside(self) -> list[tuple[GGUFFile, Hyperparameters]]:
        """The models of no layers that a block's tokens are chosen by."""
        if self.selector is not None:
            return [self.selector.predecessors, self.selector.successors]
        return [] if self.bigrams is None else [self.bigrams]


def read_draft(gguf: GGUFFile, target: GGUFFile) -> Draft:
    """A file's draft for a target, for as long as both are open; ModelError for files that do not
    fit, or another architecture."""
    arch = DRAFTS.get(gguf.architecture)
    if arch is None:
        raise ModelError(f"{gguf.path}: {gguf.architecture} is not one of {', '.join(DRAFTS)}")
    if "output_hc_fn.weight" in gguf.tensors:
        arch = DRAFTS_OF_STREAMS.get(arch.name, arch)
    ids = _ids(gguf)
    if "keys_of_target" in arch.quirks:
        return Draft(*_narrower(gguf, target, arch), None)
    of_target = (IDS, "fc.weight", *([] if "keys_of_states" in arch.quirks else [NORM]))
    own = {
        GATE if name == SELECTOR_GATE else name: info
        for name, info in gguf.tensors.items()
        if name not in of_target and name not in SELECTOR_TABLES
    }
    view = _with_ends(gguf.with_tensors(own), target)
    is_shared = not {"blk.0.attn_v.weight", "blk.0.attn_kv.weight"} & own.keys()
    if "keys_of_states" in arch.quirks and is_shared:
        arch = replace(arch, quirks=arch.quirks | {"normed_values"})
    h = read_hyperparameters(view, arch)
    h = replace(
        h,
        takes_states=True,
        n_vocab=h.n_vocab if ids is None else len(ids),
        normed_residual=bool(gguf.metadata.get(gguf.arch_key("norm_before_residual"), False)),
    )
    if "keys_of_states" not in arch.quirks:
        return Draft(view, h, ids)
    if any(h.compress_ratios):
        raise ModelError(f"{gguf.path}: a draft with compressed keys {h.compress_ratios}")
    selector = _selector(gguf, h)
    if selector is None:  # what follows does not depend on how large logits are
        h = replace(h, logit_scale=1.0, logit_softcap=0.0)
    bigrams = _bigrams(gguf, h)
    anchored = gguf.metadata.get(gguf.arch_key("sample_from_anchor"), True)
    return Draft(
        view, h, ids, gguf.get_int(gguf.arch_key("block_size")),
        gguf.get_int("tokenizer.ggml.mask_token_id"), bigrams is not None and bool(anchored),
        bigrams, _confidence(gguf), selector,
    )  # fmt: skip


def _bigrams(gguf: GGUFFile, h: Hyperparameters) -> tuple[GGUFFile, Hyperparameters] | None:
    """The model of no layers whose logits are added to a block's."""
    embedding, output = (gguf.tensors.get(f"markov_w{i}.weight") for i in (1, 2))
    if embedding is None or output is None:
        return None
    found = {LENT[0]: embedding, LENT[1]: output}
    if "markov_w2.scale" in gguf.tensors:
        found["output.scale"] = gguf.tensors["markov_w2.scale"]
    return gguf.with_tensors(found), _without_layers(h, embedding)


def _without_layers(h: Hyperparameters, embedding: TensorInfo) -> Hyperparameters:
    """Those of a model beside a draft that has an embedding, and nothing between it and its end."""
    arch, width = Architecture(h.arch.name, needs=()), embedding.shape[0]
    return replace(
        of_layers(h, slice(0)), arch=arch, n_embd=width, n_embd_token=width, embedding_scale=1.0,
        logit_scale=1.0, logit_softcap=0.0, takes_states=False,
    )  # fmt: skip


def _selector(gguf: GGUFFile, h: Hyperparameters) -> Selector | None:
    """ModelError for one that is not whole, or does not fit."""
    if all(name not in gguf.tensors for name in (*SELECTOR_TABLES, SELECTOR_GATE)):
        return None
    before, after = (_table(gguf, h, name) for name in SELECTOR_TABLES)
    gate = gguf.tensors.get(SELECTOR_GATE)
    rank, key = before[1].n_embd, gguf.arch_key("selector_top_k")
    if gate is None or gate.shape != (h.n_embd, rank) or after[1].n_embd != rank:
        found = None if gate is None else gate.shape
        raise ModelError(
            f"{gguf.path}: a selector's tables have rows of {rank} and {after[1].n_embd} values, "
            f"and {SELECTOR_GATE} has shape {found}, expected {(h.n_embd, rank)}"
        )
    top_k = gguf.get_int(key)
    if not 0 < top_k <= min(MAX_CANDIDATES, h.n_vocab):
        raise ModelError(f"{gguf.path}: {key} is {top_k}, expected 1 to {MAX_CANDIDATES}")
    return Selector(before, after, top_k)


def _table(gguf: GGUFFile, h: Hyperparameters, name: str) -> tuple[GGUFFile, Hyperparameters]:
    """A selector's table of tokens as the embedding of a model."""
    embedding = gguf.tensors.get(name)
    if embedding is None:
        raise ModelError(f"{gguf.path}: tensor {name} is missing")
    return gguf.with_tensors({LENT[0]: embedding}), _without_layers(h, embedding)


def _confidence(gguf: GGUFFile) -> Confidence | None:
    """None without it, too where it is quantized: it only advises."""
    weight, bias = "conf_proj.weight", "conf_proj.bias"
    if weight not in gguf.tensors or gguf.tensors[weight].type.name not in FLOAT_TYPES:
        return None
    added = float(gguf.floats(bias)[0]) if bias in gguf.tensors else 0.0
    return Confidence(gguf.floats(weight), added)


def lent_layers(target: Hyperparameters) -> tuple[int, int]:
    """The layers of a target whose K and V its assistant attends to: the last one with a window,
    and the last one without."""
    last = {kind: target.kv_layers[i] for i, kind in enumerate(target.windowed)}
    if len(last) < 2:
        raise ModelError(f"{target.arch.name} has no layers both with and without a window")
    return last[True], last[False]


def _narrower(
    gguf: GGUFFile, target: GGUFFile, arch: Architecture
) -> tuple[GGUFFile, Hyperparameters]:
    """A draft that reads embeddings and states of its target's width."""
    lender = target.with_tensors({TARGET_EMBEDDING: target.tensors[LENT[0]]})
    view = gguf.borrowing(lender, [TARGET_EMBEDDING])
    no_heads = {gguf.arch_key("nextn_predict_layers"): 0}  # they are all its layers
    h = read_hyperparameters(view.with_metadata({**view.metadata, **no_heads}), arch)
    width = view.tensors[TARGET_EMBEDDING].shape[0]
    return view, replace(
        h, takes_states=True, n_embd_target=width, embedding_scale=float(np.float32(width**0.5)),
        kv_layers=tuple(h.n_layers + (not windowed) for windowed in h.windowed),
    )  # fmt: skip


def _with_ends(gguf: GGUFFile, target: GGUFFile) -> GGUFFile:
    """With the embedding and the output that it has not itself. One of them is the other where
    they are tied, in the draft or in the target."""
    embedding, output = LENT
    ties = output not in target.tensors and embedding in target.tensors
    lender = target.with_tensors(
        target.tensors | {output: target.tensors[embedding]} if ties else target.tensors
    )
    has = gguf.tensors.keys()
    names = [name for name in LENT if name not in has and not (name == output and embedding in has)]
    return gguf.borrowing(lender, names)


def target_layers(gguf: GGUFFile) -> tuple[int, ...]:
    """The layers of the target whose inputs a draft's states are made of; ModelError for none."""
    key = gguf.arch_key("target_layers")
    value = gguf.metadata.get(key)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or not value.size:
        raise ModelError(f"{gguf.path}: {key} is {value}, expected numbers of layers")
    return tuple(int(layer) for layer in value)


def _ids(gguf: GGUFFile) -> npt.NDArray[np.int64] | None:
    info = gguf.tensors.get(IDS)
    if info is None:
        return None
    if info.type.name != "I64":
        raise ModelError(f"{gguf.path}: tensor {IDS} is of type {info.type.name}, expected I64")
    return gguf.data(IDS).view(np.int64)
