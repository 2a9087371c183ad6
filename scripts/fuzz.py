"""Fuzz what reads files and clients' texts, guided by coverage: python scripts/fuzz.py TARGET.

Needs atheris (pip install atheris; CPython up to 3.13 on Linux). Ends at the first input that a
target does not refuse in its own words, that takes longer than --timeout or more memory than
--memory, and leaves it in --findings. Put what is mended into tests/fuzz_corpus/TARGET, which the
daily tests replay.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / folder) for folder in ("tests", "tests/support"))]
NAMES = ("model", "projector", "tokenizer", "chat", "grammar", "slot")


@click.command()
@click.argument("target", type=click.Choice(NAMES))
@click.option("--seconds", type=click.IntRange(1), default=1800, show_default=True)
@click.option(
    "--timeout", type=click.IntRange(1), default=10, show_default=True, help="s per input"
)
@click.option("--memory", type=click.IntRange(256), default=2048, show_default=True, help="MiB")
@click.option("--max-len", type=click.IntRange(1), default=16384, show_default=True, help="bytes")
@click.option("--corpus", type=click.Path(path_type=Path), help="kept from run to run")
@click.option("--findings", type=click.Path(path_type=Path), default=Path("findings"))
def main(
    target: str, seconds: int, timeout: int, memory: int, max_len: int, corpus: Path | None,
    findings: Path,
) -> None:  # fmt: skip
    """Fuzz TARGET for so many seconds."""
    import atheris

    with atheris.instrument_imports(include=["gguf_serve.engine"]):
        import fuzz_targets

    fuzzed = fuzz_targets.TARGETS[target]
    with tempfile.TemporaryDirectory() as folder:
        seeds, words = Path(folder) / "seeds", Path(folder) / "words"
        seeds.mkdir()
        known = [*fuzzed.seeds(), *fuzz_targets.corpus(target).values()]
        for i, seed in enumerate(known):
            (seeds / str(i)).write_bytes(seed)
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in fuzzed.words))
        findings.mkdir(parents=True, exist_ok=True)
        folders = [seeds] if corpus is None else [corpus, seeds]
        if corpus is not None:
            corpus.mkdir(parents=True, exist_ok=True)
        options = [
            f"-max_total_time={seconds}", f"-timeout={timeout}", f"-rss_limit_mb={memory}",
            f"-max_len={max(max_len, *map(len, known))}", "-print_final_stats=1",
            f"-artifact_prefix={findings}/{target}-",
        ]  # fmt: skip
        if fuzzed.words:
            options.append(f"-dict={words}")
        atheris.Setup([sys.argv[0], *options, *map(str, folders)], fuzzed)
        atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main()
