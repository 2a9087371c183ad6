"""Tensors that cannot be right are refused by their shapes, before anything is allocated.

The loaders believe the file: what it has decides what a layer is. So this looks at what no
variant of a layer changes: widths that the metadata fixes, biases as long as their matrix
has rows, and the tensors that files of the architecture must have, as its row says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from itertools import zip_longest
from math import prod

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.architecture.needs import Scope
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile

# Names, or ends of names, of tensors without ".weight"
BARE = ("ssm_a", "ssm_d", "hrm.z_l_init", "_conv_base", ".bias", ".scale", ".lora_a", ".lora_b")
# Shapes in the file's order, maybe less ones at the end; "|" between those that a tensor may have.
# Of letters some are sizes of the model (see _sizes), others any number that is the same in all
# tensors of a layer.
ENDS = {
    "token_embd": "T V", "output": "E O", "output.bias": "O", "output_norm": "E",
    "output_norm.bias": "E", "enc.output_norm": "E", "token_embd_norm": "E",
    "token_embd_norm.bias": "E", "position_embd": "E -", "rope_freqs": "R",
    "rope_factors_short": "R", "rope_factors_long": "R", "per_layer_model_proj": "E p",
    "per_layer_token_embd": "p -",
}  # fmt: skip
LAYER = {
    "attn_norm": "E", "attn_norm_2": "E", "ffn_norm": "E", "ffn_norm_exps": "E",
    "post_attention_norm": "E", "post_ffw_norm": "E", "layer_output_norm": "E",
    "post_ffw_norm_1": "E", "post_ffw_norm_2": "E", "pre_ffw_norm_2": "E", "post_norm": "E",
    "layer_output_scale": "1", "inp_gate": "E e", "proj": "e E",
    "attn_output": "o E", "attn_q_a": "E q", "attn_q_a_norm": "q", "attn_q_b": "q -",
    "attn_kv_a_mqa": "E -", "attn_kv_a_norm": "l", "attn_kv_b": "l -", "attn_v_b": "l - -|l -",
    "attn_k_b": "- l -|- -", "attn_qkv": "E -", "attn_gate": "E -", "attn_sinks": "A",
    "attn_sub_norm": "o", "ffn_down": "f E", "ffn_sub_norm": "f", "ffn_gate": "E f",
    "ffn_up": "E f|E 2f",
    "ffn_down_shexp": "s E", "ffn_gate_shexp": "E s", "ffn_up_shexp": "E s|E 2s",
    "ffn_gate_inp": "E N", "ffn_gate_inp.bias": "N", "exp_probs_b.bias": "N", "exp_probs_b": "N",
    "ffn_down_exps": "x i N", "ffn_gate_exps": "i x N", "ffn_up_exps": "i x N",
    "ffn_gate_up_exps": "i 2x N",
    "ffn_gate_inp_shexp": "E|E 1", "ssm_f_a": "E r", "ssm_f_b": "r -", "ssm_g_a": "E g",
    "ssm_g_b": "g -", "ssm_beta": "E h", "ssm_alpha": "E h", "ssm_in": "E -", "ssm_out": "- E",
    "ssm_conv1d": "- c", "ssm_conv1d.bias": "c",
    "time_mix_w0": "E", "time_mix_w1": "E w", "time_mix_w2": "w E|- E 5", "time_mix_a0": "E",
    "time_mix_a1": "E a", "time_mix_a2": "a E", "time_mix_v0": "E", "time_mix_v1": "E b",
    "time_mix_v2": "b E", "time_mix_g1": "E p", "time_mix_g2": "p E", "time_mix_k_k": "E",
    "time_mix_k_a": "E", "time_mix_r_k": "E", "time_mix_decay": "E", "time_mix_decay_w1": "E d",
    "time_mix_decay_w2": "d E", "time_mix_key": "E k", "time_mix_value": "E k",
    "time_mix_receptance": "E E", "time_mix_gate": "E E", "time_mix_output": "E E",
    "time_mix_ln": "E", "time_mix_first": "- -", "channel_mix_key": "E m",
    "channel_mix_value": "m E", "channel_mix_receptance": "E E",
    "attn_q.lora_a": "E t n", "attn_q.lora_b": "t - n", "attn_k.lora_a": "E t n",
    "attn_k.lora_b": "t - n", "attn_v.lora_a": "E t n", "attn_v.lora_b": "t - n",
    "attn_output.lora_a": "o t n", "attn_output.lora_b": "t E n", "ffn_gate.lora_a": "E t n",
    "ffn_gate.lora_b": "t f n", "ffn_up.lora_a": "E t n", "ffn_up.lora_b": "t f n",
    "ffn_down.lora_a": "f t n", "ffn_down.lora_b": "t E n",
    "nextn.eh_proj": "2E E", "nextn.enorm": "E", "nextn.hnorm": "E",
    "attn_conv_base": "E - 2", "attn_conv_proj": "E -", "ffn_conv_base": "E - 2",
    "ffn_conv_proj": "E -",
    "shortconv.in_proj": "E 3E", "shortconv.conv": "- E", "shortconv.out_proj": "E E",
}  # fmt: skip
Shape = tuple[int, ...]


def check_tensors(gguf: GGUFFile, h: Hyperparameters) -> None:
    """Raises ModelError that names the first tensor which is missing or of a wrong shape."""
    shapes = {name: info.shape for name, info in gguf.tensors.items()}
    _check_needs(gguf, h)
    _check_shapes(gguf, ENDS, "", shapes, _sizes(h))
    for name, shape in shapes.items():
        if name.endswith(".bias"):
            _check_bias(gguf, shapes, name, shape)
    for layer in range(h.n_layers):
        _check_shapes(gguf, LAYER, f"blk.{layer}.", shapes, _sizes(h) | {"A": h.n_heads[layer]})
        _check_head_norms(gguf, h, shapes, layer)


def _check_needs(gguf: GGUFFile, h: Hyperparameters) -> None:
    by_layer: dict[str, set[str]] = {}
    for layer, _, rest in (name.removeprefix("blk.").partition(".") for name in gguf.tensors):
        by_layer.setdefault(layer, set()).add(rest.removesuffix(".weight"))
    whole = {name.removesuffix(".weight") for name in gguf.tensors}
    outside: set[Scope] = {"model"}
    if any(n.scope == "tables" and not whole.isdisjoint(n.names) for n in h.arch.needs):
        outside.add("tables")
    _check_scopes(gguf, h, outside, "", whole)
    for i in range(h.n_layers if h.cycles is None else 2 * h.cycles[0]):
        here = by_layer.get(str(i), set())
        scopes = {need.scope for need in h.arch.needs if not here.isdisjoint(need.names)}
        scopes = scopes - {"model"} | {"layer"}
        if not h.arch.mixed:
            scopes |= {"attention"} if "experts" in scopes else {"attention", "ffn"}
        scopes |= {"later layers"} if i else set()
        if h.kv_layers[i] == i:
            scopes |= {"own K and V"}
        _check_scopes(gguf, h, scopes, f"blk.{i}.", here)


def _check_scopes(
    gguf: GGUFFile, h: Hyperparameters, scopes: Set[Scope], b: str, here: Set[str]
) -> None:
    """``here``: the names of tensors of the same layer, ``b`` what comes before them."""
    for need in h.arch.needs:
        if need.scope in scopes and here.isdisjoint(need.names) and need.unless not in here:
            full = [b + (name if name.endswith(BARE) else f"{name}.weight") for name in need.names]
            raise ModelError(f"{gguf.path}: tensor {' or '.join(full)} is missing")


def _wrong(gguf: GGUFFile, name: str, shape: Shape, expected: object) -> ModelError:
    return ModelError(f"{gguf.path}: tensor {name} has shape {shape}, not {expected}")


def _sizes(h: Hyperparameters) -> dict[str, int]:
    half = "half_rope_outside_windows" in h.arch.quirks
    rotated = h.head_window.rotated if half else h.n_rot  # rope_freqs are of the wider layers
    sizes = {"E": h.n_embd, "T": h.n_embd_token, "N": h.experts.n, "R": rotated // 2}
    if "output" in h.arch.projections:  # of hidden states, then
        return sizes | {"O": h.state_size}
    return sizes if "logits_of_last_ids" in h.arch.quirks else sizes | {"O": h.n_vocab}


def _check_shapes(
    gguf: GGUFFile,
    expected: Mapping[str, str],
    b: str,
    shapes: Mapping[str, Shape],
    sizes: Mapping[str, int],
) -> None:
    """``b``: what comes before the names that ``expected`` has. The first tensor with a letter
    that is no size of the model says what it is; both are named if they do not agree."""
    known: dict[str, tuple[str, Shape]] = {}  # by letter: the tensor that says so, and its shape
    numbers = dict(sizes)
    for name, forms in expected.items():
        full = next((n for n in (f"{b}{name}.weight", b + name) if n in shapes), None)
        if full is None:
            continue
        shape, found = shapes[full], [form.split() for form in forms.split("|")]
        possible = [_resolved(form, numbers) for form in found]
        fits = [
            len(wanted) >= len(shape)
            and all(n in (None, size) for n, size in zip_longest(wanted, shape, fillvalue=1))
            for wanted in possible
        ]
        if True not in fits:
            says = {known[c[-1]] for c in found[0] if c[-1] in known}
            as_in = "".join(f", as {other} of shape {its} has it" for other, its in sorted(says))
            wanted_shape = tuple("any" if n is None else n for n in possible[0])
            raise _wrong(gguf, full, shape, f"{wanted_shape}{as_in}")
        for letter, size in zip(found[fits.index(True)], shape, strict=False):
            if letter.isalpha() and letter not in numbers:
                numbers[letter], known[letter] = size, (full, shape)


def _resolved(form: Sequence[str], numbers: Mapping[str, int]) -> list[int | None]:
    """A shape's numbers, None where any will do: ``2f`` is twice what ``f`` is."""

    def number(size: str) -> int | None:
        if size.isdigit():
            return int(size)
        return int(size[:-1] or 1) * numbers[size[-1]] if size[-1] in numbers else None

    return [number(size) for size in form]


def _check_bias(gguf: GGUFFile, shapes: dict[str, Shape], name: str, shape: Shape) -> None:
    """A matrix's bias has a value per row; of experts' matrices each, and a norm's per value."""
    weight = shapes.get(name.removesuffix(".bias") + ".weight")
    if weight is None:
        return
    expected = weight[1:] if len(weight) > 1 else weight
    if shape != expected and prod(shape) != prod(weight):
        matrix = name.removesuffix(".bias") + ".weight"
        raise _wrong(gguf, name, shape, f"{expected}, as {matrix} of shape {weight} has it")


def _check_head_norms(
    gguf: GGUFFile, h: Hyperparameters, shapes: dict[str, Shape], layer: int
) -> None:
    b, size = f"blk.{layer}.", h.head_sizes(layer).qk
    for norm in ("attn_q_norm", "attn_k_norm"):
        shape = shapes.get(f"{b}{norm}.weight")
        if shape is not None and len(shape) == 1 and not h.mla_latent and shape[0] % size:
            raise _wrong(gguf, f"{b}{norm}.weight", shape, f"a multiple of {size}")
