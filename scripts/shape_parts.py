"""What the shapes of models are made of: sizes, keys, and the tensors that layers share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

Number = int | float | bool
Tensor = tuple[str, tuple[int, ...]]  # name, sizes with the fastest first
VOCAB, CTX = 32000, 32768


@dataclass
class Shape:
    """A model: its architecture, keys (without that in front) and tensors. A value that is a
    list is one for each layer. ``more_bits``: some matrices are Q6_K, as in Q4_K_M files."""

    arch: str
    keys: dict[str, Number | Sequence[Number]] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    more_bits: bool = False

    def add(self, *tensors: Tensor, at: int | None = None) -> None:
        """Tensors, of layer ``at``."""
        lead = "" if at is None else f"blk.{at}."
        self.tensors += [(lead + name, sizes) for name, sizes in tensors]

    @property
    def n_params(self) -> int:
        total = 0
        for _, sizes in self.tensors:
            n = 1
            for size in sizes:
                n *= size
            total += n
        return total


def start(
    arch: str, n_layers: int, width: int, vocab: int = VOCAB, ctx: int = CTX, *, output: bool = True
) -> Shape:
    shape = Shape(arch)
    shape.keys |= {
        "block_count": n_layers, "context_length": ctx, "embedding_length": width,
        "vocab_size": vocab, "attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    shape.add(("token_embd.weight", (width, vocab)), ("output_norm.weight", (width,)))
    if output:
        shape.add(("output.weight", (width, vocab)))
    return shape


def set_heads(shape: Shape, heads: int, kv: int, head: int) -> None:
    shape.keys |= {
        "attention.head_count": heads, "attention.head_count_kv": kv,
        "attention.key_length": head, "attention.value_length": head,
        "rope.dimension_count": head, "rope.freq_base": 1e6,
    }  # fmt: skip


def attention(width: int, heads: int, kv: int, head: int) -> Iterator[Tensor]:
    yield "attn_q.weight", (width, heads * head)
    yield "attn_k.weight", (width, kv * head)
    yield "attn_v.weight", (width, kv * head)
    yield "attn_output.weight", (heads * head, width)


def ffn(width: int, ff: int, name: str = "ffn") -> Iterator[Tensor]:
    yield f"{name}_gate.weight", (width, ff)
    yield f"{name}_up.weight", (width, ff)
    yield f"{name}_down.weight", (ff, width)


def experts(width: int, ff: int, n: int) -> Iterator[Tensor]:
    yield "ffn_gate_inp.weight", (width, n)
    yield "ffn_gate_exps.weight", (width, ff, n)
    yield "ffn_up_exps.weight", (width, ff, n)
    yield "ffn_down_exps.weight", (ff, width, n)


def vectors(width: int, *names: str) -> Iterator[Tensor]:
    yield from ((f"{name}.weight", (width,)) for name in names)


def shared_expert(width: int, ff: int) -> Iterator[Tensor]:
    """An FFN beside the experts that every token takes."""
    for name, sizes in ffn(width, ff):
        yield name.replace(".weight", "_shexp.weight"), sizes
