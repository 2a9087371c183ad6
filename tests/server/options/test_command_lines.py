"""Command lines of llama-server's as people write them: they start unchanged but for their paths.

From llama.cpp's docs, its server's tests, systemd units, compose files, scripts and posts, of 2023
to 2026. All are read daily, two started (test_launch.py), and with -m slow five with a model.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hostile import Server

from gguf_serve.server import cli
from gguf_serve.server.configure import engine_options, request_defaults
from gguf_serve.server.options.settings import Settings

# fmt: off
TAKEN = [
    # llama.cpp's docs
    "-m model.gguf -c 2048",
    "-m model.gguf --port 8080 -c 1024",
    "-m model.gguf --host 0.0.0.0 --port 8000 -n 512 --n-gpu-layers 1",
    "-m model.gguf -c 16384 -np 4",
    "-m model.gguf -md draft.gguf",
    "-m model.gguf --embedding --pooling cls -ub 8192",
    "-m model.gguf --reranking",
    "-m model.gguf --grammar-file grammar.gbnf",
    "-m model.gguf -md draft.gguf --spec-type draft-eagle3",
    "-m gemma-3-4b-it-Q4_K_M.gguf --mmproj mmproj-gemma-3-4b-it-Q4_K_M.gguf",
    "--jinja -fa -m Qwen2.5-7B-Instruct-Q4_K_M.gguf",
    "--model llama.gguf --ui-config '{\"pasteLongTextToFileLen\": 0}'",
    "-m qwen2.5-coder.gguf --port 8012 -ngl 99 -fa -ub 1024 -b 1024 -dt 0.1 --ctx-size 0 "
    "--cache-reuse 256",
    # its server's tests
    "--host 127.0.0.1 --port 8080 --temp 0.8 --seed 42 --model tinyllamas.gguf --batch-size 32 "
    "--ctx-size 512 --parallel 2 --slots --n-predict 64 --no-webui --metrics --no-context-shift",
    "--port 8080 --model bert-bge-small.gguf --batch-size 512 --ubatch-size 512 --ctx-size 512 "
    "--parallel 4 --embeddings --pooling last --alias bert-bge-small --no-slots",
    # systemd units
    "-m DeepSeek-R1-Distill-Qwen-14B-Q5_K_M.gguf --port 8000  --ctx-size 2048 --batch-size 512 "
    "--n-gpu-layers 49 --threads 8 --parallel 1",
    "-m qwen2.5-0.5b-instruct-q4_0.gguf --host 0.0.0.0 --port 8080",
    "--model model.gguf --host :: --port 8080 --api-key-file keys --threads 8 --threads-batch 16 "
    "--mlock --numa distribute --prio 2 --log-file llama.log --log-timestamps",
    "-m model.gguf -b 768 -c 1024 -ngl 99 --temp 0.7 --top-k 40 --top-p 0.9 --cont-batching "
    "--cache-type-k q8_0 --cache-type-v q8_0 --log-disable",
    "--host 0.0.0.0 --port 1234 --parallel 1 --threads 12 --models-max 1 --fit on --fit-target 512 "
    "--flash-attn on --load-mode mlock --no-repack --context-shift --keep -1 --spec-default "
    "--cache-type-k q4_0 --cache-type-v q4_0 -m model.gguf",
    # containers
    "-m /models/ggml-model-q4_0.gguf --port 8000 --host 0.0.0.0 -n 512 --n-gpu-layers 100 "
    "--ctx-size 32768 --embedding --parallel 4",
    "--host 0.0.0.0 --port 8080 --flash-attn on --cont-batching --parallel 4 --batch-size 2048 "
    "--ubatch-size 512 -ngl -1 -c 2048 -n 512 -m model.gguf",
    "-m Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf --host 0.0.0.0 --port 8080 --ctx-size 16384 "
    "--parallel 8 --n-gpu-layers 20",
    "--offline -m gemma-3-4b-it-qat-q4_0.gguf --port 8000 --host 0.0.0.0 --n-gpu-layers 99 "
    "--mmproj mmproj-BF16.gguf --ctx-size 10240 --n-predict 2048 --ubatch-size 256 "
    "--batch-size 1024",
    "-c 2048 -ngl 99 --host 0.0.0.0 --port 8001 --embeddings -m nomic-embed-text-v1.5.Q8_0.gguf",
    # scripts
    "-m Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf --keep -1 --predict -1 --ctx-size 2048 "
    "--batch-size 2048 -ngl 20 --threads 4 --threads-batch 4 --mlock --flash-attn "
    "--repeat-last-n 64 --repeat-penalty 1.1 --mirostat 0 --top-k 40 --top-p 0.9 --min-p 0.0 "
    "--no-escape --host 0.0.0.0 --port 8080",
    "-m ML2-123B-IQ4_NL-00001-of-00002.gguf -ngl 999 --port 8085 --host 0.0.0.0 -c 4096 "
    "--parallel 1",
    "--model Qwen2.5-VL-32B-Instruct-q4_k_m.gguf --mmproj mmproj-f16.gguf --alias qwen_optimize_A "
    "--host 0.0.0.0 --port 10000 --n-gpu-layers 25 --ctx-size 8192 --batch-size 2048 "
    "--ubatch-size 512 --cont-batching --flash-attn --threads 16 --n-predict 2048 --verbose",
    "-m qwen2.5-coder-7b-instruct-q5_k_m.gguf --alias qwen2.5-coder-7b -ngl 29 -c 4096 -t 8 "
    "--host 127.0.0.1 --port 8080 --jinja --chat-template-file agentic.jinja",
    "-m bge-m3-Q4_K_M.gguf --embeddings --port 8085 --no-webui",
    "--model bge-m3-fp16.gguf --host 0.0.0.0 --port 8030 -np 8 --n-gpu-layers 100 --ctx-size 0 "
    "--temp 0.6 --min-p 0.2",
    "-m Qwen3-0.6B-Q8_0.gguf --host 0.0.0.0 --port 8080 --ctx-size 4096 -t 4 --parallel 1 "
    "--metrics",
    "-m m.gguf --host 0.0.0.0 --port 8000 -ngl 99 -fa on -c 8192 --temp 0.7 --top-p 0.95 "
    "--top-k 20 --min-p 0 --jinja -md d.gguf --spec-type draft-dspark --spec-draft-n-max 4 "
    "-ngld 999 -np 1",
    "-m Qwen3-4B-Instruct-2507-Q4_K_M.gguf -c 8192 -ngl 999 --no-webui --port 8099",
    "-m jina-reranker-v3-Q4_K_M.gguf --rerank --port 8080",
    # posts and issues
    "-m gpt-oss-120b.gguf --ctx-size 0 --jinja --flash-attn --n-gpu-layers 99 "
    "--reasoning-format none --n-cpu-moe 3",
    "-m muse-glimmer-30B.gguf --mmproj mmproj-kquant.gguf -a muse-glimmer -ngl 99 -c 131072 -np 1 "
    "--host 127.0.0.1 --port 8080 --api-key muse-glimmer --jinja "
    "--chat-template-kwargs '{\"reasoning_strength\":\"high\"}'",
    "-m Qwen3-235B.gguf -ngl 99 -ot '.ffn_.*_exps.=CPU' -fa 1 -ctk q8_0 -ctv q8_0 --no-mmap "
    "-ub 2048 -b 2048 --temp 0.6 --top_p 0.95 --top_k 20 --min_p 0 --presence-penalty 1.5",
    "-hf ggml-org/gemma-3-4b-it-GGUF --jinja -c 0 --no-warmup",
    "-m llama-70b.gguf -ngl 99 -sm row -ts 3,1 -mg 0 --main_gpu 0 -c 8192 -nocb --no-kv-offload",
    "-m model.gguf -c 4096 --samplers 'top_k;min_p;temperature' -r '\\n' --dry-multiplier 0.8 "
    "--xtc-probability 0.5 -lv 1 --swa-full --threads-http 8 -sps 0.5 -to 600",
]
REFUSED = {
    "-m model.gguf -ngl 33 -p 'Prompt:' -n 256": "-p is not supported: it is llama-cli's",
    "--model m.gguf --ctx-size 256 --draft-max 8 --draft-min 4 --model-draft d.gguf "
    "--flash-attn on": "--draft-max is not supported: llama-server has it no more: use",
    "--models-dir ./models": "--models-dir is not supported: one process serves one model",
    "-m model.gguf --ui --rpc 192.168.1.2:50052":
        "--rpc is not supported: devices of other machines cannot be used",
    "-m model.gguf --grp-attn-n 4 --grp-attn-w 2048 --slots-endpoint-disable --memory-f32":
        "--memory-f32 is not supported: use -ctk f32 -ctv f32",
}
# fmt: on


def read(line: str) -> Result:
    return CliRunner().invoke(cli.main, shlex.split(line))


@pytest.mark.parametrize("line", TAKEN)
def test_lines_that_are_taken(line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    taken: list[Settings] = []
    monkeypatch.setattr(cli, "start", lambda settings: taken.append(settings) or 0)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grammar.gbnf").write_text('root ::= "x"')
    (tmp_path / "agentic.jinja").write_text("x")
    result = read(line)
    assert result.exit_code == 0, result.output
    engine_options(taken[0])
    request_defaults(taken[0])


@pytest.mark.parametrize("line", REFUSED)
def test_lines_that_are_refused_say_why(line: str) -> None:
    result = read(line)
    assert result.exit_code == 2
    assert REFUSED[line] in result.output


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 3, 14, 22, 27])
def test_lines_that_are_started(
    number: int, conformance_model: Callable[[str], Path], tmp_path: Path
) -> None:
    args = shlex.split(TAKEN[number])
    for own in ("-m", "--model", "--port"):
        if own in args:
            del args[args.index(own) : args.index(own) + 2]
    server = Server(conformance_model("llama-dense"), args, tmp_path / "log")
    try:
        assert server.is_alive
    finally:
        server.close()


def test_most_are_taken() -> None:
    assert len(TAKEN) >= 40
    assert len(REFUSED) <= 5
