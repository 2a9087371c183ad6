"""The vision transformer that most encoders share: what differs is a row of ``Tower``.

Layers are x += attention(norm(x)), x += ffn(norm(x)). Biases, gates, layer scales, Q/K norms and
norms after a sublayer are used where the file has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.encoders.graph import ALL, Bounds, Graph, Heads
from gguf_serve.engine.encoders.weights import EncoderWeights
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.kernels.attention.attention import Mask
from gguf_serve.kernels.attention.rope import QKNorm
from gguf_serve.kernels.matrix.moe import Routing
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.rows.norm import NormWeights


class Tower(Struct, frozen=True):
    """An encoder's transformer. ``rms``: RMS norms; ``after``: norms follow the sublayers;
    ``scale``: of the scores, 0 for 1 / sqrt(head); ``norm_v``: V's heads are normalized."""

    n_layers: int
    n_heads: int
    width: int
    eps: float
    activation: str
    rms: bool = False
    after: bool = False
    prefix: str = "v"
    scale: float = 0.0
    norm_v: bool = False
    order: tuple[int, ...] | None = None  # of the rows of Q and K, where pairs are moved,
    moved: tuple[int, ...] | None = None  # and of the values of one head
    n_kv: int = 0  # heads of K and V if they are fewer
    limit: float = 0.0  # of the factors of a gated FFN, 0 for none
    head_size: int = 0  # if it is not width / heads
    turned: int = 0  # values of a head that RoPE turns, if not all
    window: int = 0  # a row sees so many rows before it and after it, 0 for all
    causal: bool = False  # a row sees none after it
    n_used_experts: int = 0  # of each row, where a layer has experts
    seen: int = 0  # rows that all see; of the others each those before it; 0: all see all

    @property
    def head(self) -> int:
        return self.head_size or self.width // self.n_heads

    @property
    def qkv_widths(self) -> tuple[int, int, int]:
        n_keys = (self.n_kv or self.n_heads) * self.head
        return self.n_heads * self.head, n_keys, n_keys


def layer_norm(weights: EncoderWeights, name: str, eps: float, rms: bool = False) -> NormWeights:
    """The norm ``name``; without a weight in the file it only normalizes."""
    weight = weights.vector(f"{name}.weight")
    return NormWeights(
        weight, eps, weights.vector(f"{name}.bias"), layer=not rms, weightless=weight is None
    )


def normalized(g: Graph, x: Rows, name: str, eps: float, rms: bool = False) -> Rows:
    return g.norm(x, layer_norm(g.weights, name, eps, rms))


def optional_norm(g: Graph, x: Rows, name: str, tower: Tower) -> Rows:
    """x normalized if the file has that norm."""
    has = g.weights.has(f"{name}.weight")
    return normalized(g, x, name, tower.eps, tower.rms) if has else x


def transformer(
    g: Graph,
    x: Rows,
    tower: Tower,
    groups: Callable[[int], Sequence[int]],
    rope: Tensor | None = None,
    neox: bool = True,
    *,
    first: int = 0,
    last: int | None = None,
    keep: Callable[[int, Rows], None] = lambda layer, x: None,
) -> Rows:
    """The layers from ``first`` to before ``last``.

    ``groups(layer)``: how many consecutive rows attend to each other, one number per group.
    ``keep(layer, x)`` sees what each layer gives.
    """
    for i in range(first, tower.n_layers if last is None else last):
        b = f"{tower.prefix}.blk.{i}."
        x = fed(g, attended(g, x, tower, b, groups(i), rope, neox), tower, b)
        keep(i, x)
    return x


def attended(
    g: Graph, x: Rows, tower: Tower, b: str, lengths: Sequence[int], rope: Tensor | None = None,
    neox: bool = True,
) -> Rows:  # fmt: skip
    """The first half of the layer whose tensors' names begin with ``b``."""
    attend = partial(attention, tower=tower, b=b, lengths=lengths, rope=rope, neox=neox)
    return _residual(g, x, tower, b, "1", attend)


def fed(g: Graph, x: Rows, tower: Tower, b: str) -> Rows:
    """The second half of a layer."""
    return _residual(g, x, tower, b, "2", partial(feed_forward, tower=tower, b=b))


Sublayer = Callable[[Graph, Rows], Rows]
_POST_NORMS = {"1": "attn_post_norm", "2": "ffn_post_norm"}


def _residual(g: Graph, x: Rows, tower: Tower, b: str, which: str, sublayer: Sublayer) -> Rows:
    """x + sublayer(norm(x)), or with the norm after the sublayer."""
    own = layer_norm(g.weights, f"{b}ln{which}", tower.eps, tower.rms)
    y = sublayer(g, x) if tower.after else sublayer(g, g.norm(x, own))
    if tower.after:
        y = g.norm(y, own)
    y = optional_norm(g, y, b + _POST_NORMS[which], tower)
    scale = g.weights.vector(f"{b}ls{which}.weight")
    return g.add(x, y, scale=1.0 if scale is None else scale)


def attention(
    g: Graph, x: Rows, tower: Tower, b: str, lengths: Sequence[int], rope: Tensor | None,
    neox: bool,
) -> Rows:  # fmt: skip
    """Self-attention with the tensors whose names begin with ``b``."""
    w = g.weights
    q_norm, k_norm = (_head_norm(w, f"{b}attn_{x_}_norm.weight", tower) for x_ in "qk")
    norm = QKNorm(tower.eps, q_norm, k_norm) if q_norm or k_norm else None
    scale = tower.scale or 1 / math.sqrt(tower.head)
    heads = Heads(tower.n_heads, tower.head, scale, norm, rope, neox, tower.n_kv, tower.turned)
    mask = ALL
    if tower.causal:
        mask = Mask(window=tower.window + 1 if tower.window else 0)
    elif tower.window:
        mask = replace(ALL, window=2 * tower.window, sinks=w.vector(f"{b}attn_sinks"))
    if tower.seen:
        mask = Mask(together=True)
    q, k, v = _qkv(g, x, tower, b)
    y = g.attention(q, k, v, heads, lengths, mask, seen=tower.seen)
    return linear(g, y, f"{b}attn_out")


def _head_norm(w: EncoderWeights, name: str, tower: Tower) -> Tensor | None:
    """The norm of single heads; one of a whole row is not meant."""
    if not w.has(name) or w.shape(name) != (tower.head,):
        return None
    order = list(tower.moved or range(tower.head))
    return w.constant(name, lambda: w.floats(name)[order])


def _qkv(g: Graph, x: Rows, tower: Tower, b: str) -> list[Rows]:
    """Q, K and V: out of one matrix, or each by itself where something comes in between."""
    w, widths = g.weights, tower.qkv_widths
    whole = w.has(f"{b}attn_qkv.weight")
    _check_rows(w, b, {"qkv": sum(widths)} if whole else dict(zip("qkv", widths, strict=True)))
    if whole:
        parts = linear(g, x, f"{b}attn_qkv").split(*widths)
    elif _simple(w, tower, b):
        parts = g.linear(x, w.stacked([f"{b}attn_{x_}" for x_ in "qkv"])).split(*widths)
    else:
        parts = [linear(g, x, f"{b}attn_{x_}", tower.order if x_ != "v" else None) for x_ in "qkv"]
    for i, name in enumerate(("attn_q_norm", "attn_k_norm")):
        if w.has(f"{b}{name}.weight") and w.shape(f"{b}{name}.weight") == (tower.width,):
            parts[i] = normalized(g, parts[i], f"{b}{name}", tower.eps, tower.rms)
    if tower.norm_v:
        plain = NormWeights(None, tower.eps, weightless=True)
        parts[2] = g.norm(parts[2], plain, groups=tower.n_heads)
    return parts


def _check_rows(w: EncoderWeights, b: str, expected: Mapping[str, int]) -> None:
    """ModelError where attention's matrices have not as many rows as its heads have values."""
    for name, n in expected.items():
        found = w.shape(f"{b}attn_{name}.weight")[-1]
        if found != n:
            raise ModelError(f"{b}attn_{name}.weight has {found} rows, expected {n}")


def _simple(w: EncoderWeights, tower: Tower, b: str) -> bool:
    """Whether Q, K and V can come out of one matrix."""
    whole_norm = w.has(f"{b}attn_q_norm.weight")
    bounded = w.has(f"{b}attn_q.input_max")
    return not (whole_norm or bounded or tower.norm_v or tower.order)


def feed_forward(g: Graph, x: Rows, tower: Tower, b: str) -> Rows:
    """The FFN; files that have its matrices exchanged are known by the width of "down"."""
    w = g.weights
    if w.has(f"{b}ffn_gate_inp.weight"):
        return experts(g, x, tower, b)
    up, down, gate = f"{b}ffn_up", f"{b}ffn_down", f"{b}ffn_gate"
    if w.shape(f"{down}.weight")[0] == tower.width != w.shape(f"{up}.weight")[0]:
        up, down = down, up
    if w.has(f"{gate}.weight"):
        return linear(g, gated(g, x, gate, up, tower.activation, tower.limit), down)
    return linear(g, g.activate(linear(g, x, up), tower.activation), down)


def experts(g: Graph, x: Rows, tower: Tower, b: str) -> Rows:
    """Gated experts, as many of a row as the file says, by the shares of their sigmoids; a bias
    counts for the choice alone."""
    n = g.weights.shape(f"{b}ffn_gate_inp.weight")[1]
    if tower.n_used_experts < 1:
        raise ModelError(f"{b}ffn_gate_inp.weight: the file does not say how many experts count")
    routing = Routing(n, min(tower.n_used_experts, n), "sigmoid", normalize=True)
    bias = g.weights.vector(f"{b}exp_probs_b.weight")
    choice = g.route(linear(g, x, f"{b}ffn_gate_inp"), routing, bias=bias)
    own = g.weights.experts(f"{b}ffn_", "_exps")
    hidden = g.expert_glu(x, own.first[0], choice, tower.activation, 0.0)
    return g.combine(g.expert_linear(hidden, own.down, choice), choice, scale=1.0)


def gated(g: Graph, x: Rows, gate: str, up: str, activation: str, limit: float = 0.0) -> Rows:
    """activation(gate x) * (up x), the factors within ``limit`` unless that is 0."""
    if not g.weights.has(f"{gate}.input_max"):
        return g.glu(x, g.weights.paired(gate, up), activation, limit)
    factors = linear(g, x, up)
    return g.activate(linear(g, x, gate), activation, times=factors)


def linear(g: Graph, x: Rows, name: str, order: Sequence[int] | None = None) -> Rows:
    """A matrix with its bias, and with the bounds of its input and output that Gemma 4 has.
    ``order``: its rows in another order."""
    w = g.weights
    layer = w.linear(name) if order is None else w.stacked([name], order)[0]
    inside, outside = (_bounds(w, name, side) for side in ("input", "output"))
    if inside is not None:
        x = g.bounded(x, inside)
    y = g.linear(x, layer)
    return y if outside is None else g.bounded(y, outside)


def _bounds(w: EncoderWeights, name: str, side: str) -> Bounds | None:
    if not w.has(f"{name}.{side}_max"):
        return None
    low, high = (float(w.floats(f"{name}.{side}_{end}")[0]) for end in ("min", "max"))
    return low, high


def mlp(g: Graph, x: Rows, first: str, second: str, activation: str = "gelu") -> Rows:
    """Two matrices with an activation in between."""
    return linear(g, g.activate(linear(g, x, first), activation), second)
