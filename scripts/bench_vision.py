"""Speed of the image encoder beside llama.cpp's, on a ViT-L/14 of 336 pixels with random weights.

    python scripts/bench_vision.py --peer-python other-venv/bin/python [--types F16,Q8_0]

It writes LLaVA 1.5's projector (24 layers of 1024, an MLP to 4096; 0.3 billion parameters) and a
text model of one layer, and encodes one image several times on each side, in turns; then it asks
a question about a new image each time and waits for the first token. llama.cpp computes one layer
of the encoder less (docs/multimodal.md): its way for the embeddings, ours for the first token.
Needs the extra "test" here and llama-cpp-python there.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path
from queue import Queue

import gguf
import model_shapes
import numpy as np
import synthetic_model
from peer_process import PeerProcess, peer_python
from PIL import Image

from gguf_serve.engine.encoders.encoder import MediaEncoder, open_projector
from gguf_serve.engine.engine import Engine, load_engine
from gguf_serve.engine.media.piece import Tile
from gguf_serve.engine.media.prepare import prepare
from gguf_serve.engine.media.span import MediaSpan
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Delta, Event, Failed, Request
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.kernels.opencl.device import open_device
from gguf_serve.kernels.opencl.program import Programs

LAYERS, WIDTH, HIDDEN, SIZE, PATCH, OUT = 24, 1024, 4096, 336, 14, 4096
TOKENS = (SIZE // PATCH) ** 2
MARKER = "<__media__>"
QUESTION = f"USER: {MARKER} What is this? ASSISTANT:"


def write_projector(path: Path, kind: str) -> None:
    """LLaVA 1.5's projector with random matrices of one type."""
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", False)
    for key, value in {
        "embedding_length": WIDTH, "feed_forward_length": HIDDEN, "block_count": LAYERS,
        "projection_dim": 768, "attention.head_count": 16, "image_size": SIZE, "patch_size": PATCH,
    }.items():  # fmt: skip
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.481, 0.458, 0.408])
    writer.add_array("clip.vision.image_std", [0.269, 0.261, 0.276])

    def vector(name: str, n: int, value: float = 0.0) -> None:
        writer.add_tensor(name, np.full(n, value, np.float32))

    def matrix(name: str, rows: int, columns: int) -> None:
        values = (rng.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)
        type_ = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, type_), raw_dtype=type_)
        vector(f"{name}.bias", rows)

    kernel = rng.standard_normal((WIDTH, 3, PATCH, PATCH)) / 24
    writer.add_tensor("v.patch_embd.weight", kernel.astype(np.float16))
    vector("v.class_embd", WIDTH)
    positions = 0.1 * rng.standard_normal((TOKENS + 1, WIDTH))
    writer.add_tensor("v.position_embd.weight", positions.astype(np.float32))
    for name in ("v.pre_ln", *(f"v.blk.{i}.ln{n}" for i in range(LAYERS) for n in (1, 2))):
        vector(f"{name}.weight", WIDTH, 1.0)
        vector(f"{name}.bias", WIDTH)
    for i in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            matrix(f"v.blk.{i}.{part}", WIDTH, WIDTH)
        matrix(f"v.blk.{i}.ffn_up", HIDDEN, WIDTH)
        matrix(f"v.blk.{i}.ffn_down", WIDTH, HIDDEN)
    matrix("mm.0", OUT, WIDTH)
    matrix("mm.2", OUT, OUT)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_text_model(path: Path) -> None:
    shape = model_shapes.llama(
        layers=1, embd=OUT, heads=32, kv_heads=8, ff=256, vocab=512, ctx=2048
    )
    synthetic_model.write_model(path, shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", default="F16,Q8_0")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--device", default=None)
    parser.add_argument("--peer-python", default=None)
    args = parser.parse_args()
    print("| weights | | ms | llama.cpp, ms | ratio | NMSE between them |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        text_model = Path(folder) / "text.gguf"
        write_text_model(text_model)
        for kind in args.types.split(","):
            projector = Path(folder) / f"{kind}.gguf"
            write_projector(projector, kind)
            print(compare(projector, text_model, kind, args), flush=True)
            projector.unlink()


def compare(projector: Path, text_model: Path, kind: str, args: argparse.Namespace) -> str:
    """The rows of one type of weights."""
    peer = PeerProcess(peer_python(args.peer_python), Path(__file__).with_name("vision_peer.py"))
    n_threads = open_device(args.device).info.compute_units
    peer.ask("load", mmproj=str(projector), model=str(text_model), n_threads=n_threads)
    try:
        encoded = compare_encoders(projector, peer, args)
        first = compare_first_tokens(projector, text_model, peer, args)
    finally:
        peer.close()
    return f"| {kind} | an image encoded {encoded}\n| {kind} | a question's first token {first} | |"


def random_image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def compare_encoders(projector: Path, peer: PeerProcess, args: argparse.Namespace) -> str:
    device = open_device(args.device)
    file = open_projector(projector)
    encoder = MediaEncoder(file, device, Programs(device), like_llama_cpp=True)
    pixels = random_image(2)
    assert file.vision is not None
    (tile,) = prepare("mlp", pixels, file.vision.limits)
    assert isinstance(tile, Tile)
    span = MediaSpan(0, TOKENS, b"", tile.pixels, (TOKENS, 1))
    ours, theirs, answer = list[float](), list[float](), {}
    for i in range(args.repeat + 1):
        began = time.perf_counter()
        mine = encoder.encode(span)
        elapsed = time.perf_counter() - began
        answer = peer.ask("encode", pixels=pixels.tobytes().hex(), size=[SIZE, SIZE])
        if i:  # the first ones warm up
            ours.append(elapsed)
            theirs.append(answer["seconds"])
    reference = np.array(answer["first"], np.float32)
    error = float(((mine[0] - reference) ** 2).sum() / (reference**2).sum())
    return f"{columns(ours, theirs)} | {error:.1e} |"


def compare_first_tokens(
    projector: Path, text_model: Path, peer: PeerProcess, args: argparse.Namespace
) -> str:
    options = EngineOptions(mmproj=projector, n_ctx=2048, device=args.device)
    engine = load_engine(text_model, options)
    n_threads = open_device(args.device).info.compute_units
    ours, theirs = list[float](), list[float]()
    for i in range(args.repeat + 1):
        pixels = random_image(3 + i)
        elapsed = first_token(engine, pixels)
        answer = peer.ask(
            "first_token", pixels=pixels.tobytes().hex(), size=[SIZE, SIZE], text=QUESTION,
            n_threads=n_threads,
        )  # fmt: skip
        if i:
            ours.append(elapsed)
            theirs.append(answer["seconds"])
    engine.close()
    return columns(ours, theirs)


def first_token(engine: Engine, pixels: np.ndarray) -> float:
    """Seconds from an image file and a text to the first token."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "BMP")
    assert engine.media is not None
    events: Queue[Event] = Queue()
    began = time.perf_counter()
    image = engine.media.image(stream.getvalue())
    prompt = engine.media.prompt(QUESTION, MARKER, [image], engine.tokenizer)
    sampling = SamplingParams(temperature=0, ignore_eos=True)
    engine.submit(Request(prompt.ids, sampling, 1, media=prompt.spans), events.put)
    while not isinstance(event := events.get(timeout=300), Delta):
        assert not isinstance(event, Failed), event
    return time.perf_counter() - began


def columns(ours: list[float], theirs: list[float]) -> str:
    a, b = statistics.median(ours), statistics.median(theirs)
    return f"| {a * 1e3:.0f} | {b * 1e3:.0f} | {b / a:.2f}"


if __name__ == "__main__":
    main()
