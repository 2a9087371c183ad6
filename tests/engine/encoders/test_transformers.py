"""The order of the class token and the number of layers, against the published models' code.

llama.cpp departs from both, so that its results are no reference for them (docs/multimodal.md).
Needs ``pip install torch transformers`` for the CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from vision_data import nmse

from gguf_serve.engine.encoders.vision import VisionEncoder
from gguf_serve.engine.encoders.vision_file import read_vision_file
from gguf_serve.engine.encoders.weights import EncoderWeights
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.kernels.opencl.device import open_device
from gguf_serve.kernels.opencl.program import Programs

pytestmark = pytest.mark.slow
LIMIT = 1e-5  # NMSE
WIDTH, HIDDEN, LAYERS, HEADS, SIZE, PATCH = 64, 96, 4, 4, 112, 14
N_PATCHES = (SIZE // PATCH) ** 2
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
Tensors = dict[str, np.ndarray]
# Of a layer: the published name, the file's.
CLIP = {
    "layer_norm1": "ln1", "layer_norm2": "ln2", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down",
}  # fmt: skip
INTERN = {
    "layernorm_before": "ln1", "layernorm_after": "ln2", "attention.q_proj": "attn_q",
    "attention.k_proj": "attn_k", "attention.v_proj": "attn_v",
    "attention.projection_layer": "attn_out", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down",
}  # fmt: skip


@pytest.fixture(scope="module")
def torch() -> Any:
    pytest.importorskip("transformers", reason="transformers is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.manual_seed(5)
    return torch


def randomized(torch: Any, model: Any) -> Any:
    """Vectors that begin as zeros or ones would hide where they go."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def arrays(model: Any) -> Tensors:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def layers(found: Tensors, prefix: str, names: dict[str, str], n: int) -> Tensors:
    return {
        f"v.blk.{i}.{ours}.{end}": found[f"{prefix}.{i}.{theirs}.{end}"]
        for i in range(n)
        for theirs, ours in names.items()
        for end in ("weight", "bias")
    }


def write(path: Path, kind: str, tensors: Tensors, n_layers: int, *, gelu: bool) -> Path:
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", kind)
    writer.add_bool("clip.use_gelu", gelu)
    for key, value in {
        "embedding_length": WIDTH, "feed_forward_length": HIDDEN, "block_count": n_layers,
        "projection_dim": WIDTH, "attention.head_count": HEADS, "image_size": SIZE,
        "patch_size": PATCH, "projector.scale_factor": 2,
    }.items():  # fmt: skip
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", MEAN)
    writer.add_array("clip.vision.image_std", STD)
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pixels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def planes(torch: Any) -> Any:
    """The same image as the published models take it: [1, 3, height, width]."""
    values = (pixels() / 255 - np.array(MEAN)) / np.array(STD)
    return torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)[None]


def encode(path: Path, *, like_llama_cpp: bool = False) -> np.ndarray:
    device = open_device(None)
    programs = Programs(device)
    with open_gguf(path) as file:
        weights = EncoderWeights(file, device, programs)
        spec = read_vision_file(file)
        encoder = VisionEncoder(spec, weights, device, programs, like_llama_cpp=like_llama_cpp)
        return encoder.encode(pixels())


def clip_features(torch: Any, model: Any) -> Any:
    """What LLaVA reads of CLIP: the last layer but one, without the class token."""
    states = model(planes(torch), output_hidden_states=True).hidden_states
    assert len(states) == LAYERS + 1
    return states[-2][:, 1:]


def clip_model(torch: Any) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, image_size=SIZE, patch_size=PATCH, hidden_act="quick_gelu",
    )  # fmt: skip
    return randomized(torch, CLIPVisionModel(config))


def clip_tensors(model: Any, projector: dict[str, Any]) -> Tensors:
    """As converters of LLaVA write them: without the last layer, which nobody reads."""
    found = {name.removeprefix("vision_model."): value for name, value in arrays(model).items()}
    return {
        "v.patch_embd.weight": found["embeddings.patch_embedding.weight"],
        "v.class_embd": found["embeddings.class_embedding"],
        "v.position_embd.weight": found["embeddings.position_embedding.weight"],
        **{f"v.pre_ln.{end}": found[f"pre_layrnorm.{end}"] for end in ("weight", "bias")},
        **layers(found, "encoder.layers", CLIP, LAYERS - 1),
        **{
            f"{name}.{end}": getattr(part, end).detach().numpy()
            for name, part in projector.items()
            for end in ("weight", "bias")
        },
    }


def test_clip_as_llava_reads_it(torch: Any, tmp_path: Path) -> None:
    model = clip_model(torch)
    first, second = (randomized(torch, torch.nn.Linear(WIDTH, WIDTH)) for _ in range(2))
    with torch.no_grad():
        hidden = torch.nn.functional.gelu(first(clip_features(torch, model)))
        expected = second(hidden)[0].numpy()
    tensors = clip_tensors(model, {"mm.0": first, "mm.2": second})
    path = write(tmp_path / "llava.gguf", "mlp", tensors, LAYERS - 1, gelu=False)
    assert nmse(encode(path), expected) < LIMIT
    assert nmse(encode(path, like_llama_cpp=True), expected) > 100 * LIMIT


def intern_model(torch: Any) -> Any:
    from transformers import InternVLConfig, InternVLModel, InternVLVisionConfig, Qwen2Config

    vision = InternVLVisionConfig(
        hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS, image_size=SIZE,
        num_attention_heads=HEADS, patch_size=PATCH, attention_bias=True, layer_norm_eps=1e-5,
    )  # fmt: skip
    text = Qwen2Config(
        hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=64,
    )  # fmt: skip
    config = InternVLConfig(vision_config=vision, text_config=text, image_token_id=1)
    return randomized(torch, InternVLModel(config))


def intern_tensors(model: Any) -> Tensors:
    found, vision = arrays(model), "vision_tower."
    embeddings, projector = f"{vision}embeddings.", "multi_modal_projector."
    tensors = {
        "v.class_embd": found[f"{embeddings}cls_token"].reshape(-1),
        "v.position_embd.weight": found[f"{embeddings}position_embeddings"][0],
        **layers(found, f"{vision}encoder.layer", INTERN, LAYERS),
    }
    for i in range(LAYERS):
        for n in (1, 2):
            tensors[f"v.blk.{i}.ls{n}.weight"] = found[f"{vision}encoder.layer.{i}.lambda_{n}"]
    for end in ("weight", "bias"):
        theirs = f"{embeddings}patch_embeddings.projection.{end}"
        tensors[f"v.patch_embd.{end}"] = found[theirs]
        for n, part in enumerate(("layer_norm", "linear_1", "", "linear_2")):
            if part:
                tensors[f"mm.model.mlp.{n}.{end}"] = found[f"{projector}{part}.{end}"]
    return tensors


def test_internvl(torch: Any, tmp_path: Path) -> None:
    model = intern_model(torch)
    with torch.no_grad():
        expected = model.get_image_features(planes(torch)).pooler_output[0].numpy()
    path = write(tmp_path / "internvl.gguf", "internvl", intern_tensors(model), LAYERS, gelu=True)
    assert nmse(encode(path), expected) < LIMIT
    assert nmse(encode(path, like_llama_cpp=True), expected) > 100 * LIMIT
