"""Attention over keys that are their own values, of tokens or compressed (joint.cl)."""

from __future__ import annotations

from msgspec import Struct

from gguf_serve.kernels.attention.attention import PART, AttentionInputs
from gguf_serve.kernels.attention.compress import page_rows
from gguf_serve.kernels.attention.kv import PAGE, LayerKV
from gguf_serve.kernels.opencl.signature import Arguments
from gguf_serve.kernels.opencl.tape import PARTS, TILES, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.opencl.work import NO_WORK, Work

MOST_HEADS = {"simd": 8, "simt": 4}  # of a work-group
SIMT_GROUP = 32
SCORE_GROUP = 64


class Keys(Struct, frozen=True):
    """A cache of joint keys: ``inputs`` say where its pages are, ``ratio`` how many tokens a key
    stands for; of them a query sees the last ``window`` (0: all), or those ``selected``: int32
    [n, words], bits. ``together``: of its own step it sees those after it, too."""

    layer: LayerKV
    inputs: AttentionInputs
    ratio: int = 1
    window: int = 0
    selected: Tensor | None = None
    together: bool = False

    @property
    def defines(self) -> list[str]:
        """ValueError if a page's rows are not those keys."""
        shape = self.layer.shape
        if not shape.joint or shape.rows != page_rows(self.ratio) or shape.head % 16:
            raise ValueError(f"keys of {self.ratio} tokens in pages of {shape}")
        return [
            f"RATIO={self.ratio}", f"HD={shape.head}", f"HDV={shape.head}",
            f"PAGE={shape.rows}", f"PAGE_TOKENS={PAGE}", *self.layer.defines,
            *["TOGETHER"] * self.together,
        ]  # fmt: skip

    @property
    def args(self) -> Arguments:
        return {**self.inputs.paging, "cache": self.layer.v.arg}

    def work(self, n_heads: int) -> Work:
        if self.ratio > 1:  # they depend on the context in a way that Work cannot say
            return NO_WORK
        key_bytes, macs = self.layer.token_bytes, 2 * n_heads * self.layer.shape.head
        return Work(key_bytes=key_bytes, pair_macs=macs, window=self.window)


class Ending(Struct, frozen=True):
    """What ends attention: the sinks, and the rotation of the output.

    sinks: float32 [heads], attention sinks, the score of one more key without a value; rotation:
    float32 [n, 2, n_rot / 2], cos and sin of the tokens, by which the output is rotated back.
    """

    sinks: Tensor
    rotation: Tensor


def attend(
    tape: Tape,
    q: Tensor,
    n_heads: int,
    caches: list[Keys],
    ending: Ending,
    out: Tensor,
    partial: Tensor,
) -> None:
    """out[t] = softmax(q[t] K) K over the keys of all caches together, rotated back.

    q, out: float32 [n, n_heads * head]; partial: float32 [n, n_heads * 2], between launches.
    """
    group = tape.device.group(SIMT_GROUP)
    most = MOST_HEADS[tape.device.family]
    heads = max(g for g in range(1, most + 1) if n_heads % g == 0)
    for i, keys in enumerate(caches):
        if q.shape[1] != n_heads * keys.layer.shape.head or out.shape != q.shape:
            raise ValueError(f"queries {q.shape}, {n_heads} heads, keys of {keys.layer.shape}")
        defines = [*keys.defines, f"G={heads}", f"WG={group}", *["BEGINS"] * (i == 0)]
        args: dict[str, object] = {
            "queries": q, "n_heads": n_heads, **keys.args, "window": keys.window, "out": out,
            "partial": partial,
        }  # fmt: skip
        if keys.selected is not None:
            args |= {"selected": keys.selected, "n_words": keys.selected.shape[1]}
        if keys is caches[-1]:
            defines.append(f"N_ROT={2 * ending.rotation.shape[-1]}")
            args |= {"sinks": ending.sinks, "rotation": ending.rotation}
        grid = (n_heads // heads * group, Per(TILES))
        tape.add(
            "attention/joint.cl", "attend", defines, args, grid, (group, 1), keys.work(n_heads)
        )


def score_keys(
    tape: Tape, q: Tensor, weights: Tensor, keys: Keys, top_k: int, scores: Tensor
) -> None:
    """scores[t, s] = sum_h weights[t, h] max(0, q[t, h] . k[s]) for tiles beyond top_k keys.

    q: float32 [n, heads * head]; weights: [n, heads]; scores: [n, keys].
    """
    n_heads = weights.shape[1]
    if q.shape[1] != n_heads * keys.layer.shape.head:
        raise ValueError(f"queries {q.shape}, {n_heads} heads, keys of {keys.layer.shape}")
    defines = [*keys.defines, f"HEADS={n_heads}", f"TOP_K={top_k}", "WG=1"]
    args = {
        "queries": q, "weights": weights, **keys.args, "scores": scores,
        "stride": scores.shape[1],
    }  # fmt: skip
    group = tape.device.group(SCORE_GROUP)
    per_part = -(-PART // keys.ratio // group) * group
    grid = (Per(PARTS, 1, per_part), Per(TILES))
    tape.add("attention/joint.cl", "scores", defines, args, grid, (group, 1))
