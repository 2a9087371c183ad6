"""Command lines, variables and files together: spellings, hints, and all refusals at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gguf_serve.engine.option import Choice, Real, Whole
from gguf_serve.server import cli
from gguf_serve.server.configure import request_defaults
from gguf_serve.server.options.settings import Settings
from gguf_serve.server.options.stated import spellings

WRONG = "no-such-value"
Given = Callable[..., tuple[Settings | None, Result]]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Given:
    """What a command line gives, None if it is refused, and what was printed."""
    taken: list[Settings] = []
    monkeypatch.setattr(cli, "start", lambda settings: taken.append(settings) or 0)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("x.gguf").touch()

    def run(*args: str, **env: str) -> tuple[Settings | None, Result]:
        taken.clear()
        result = CliRunner().invoke(cli.main, ["-m", "x.gguf", *args], env=env)
        assert result.exit_code == (0 if taken else 2), result.output
        return (taken[0] if taken else None), result

    return run


def settings(found: tuple[Settings | None, Result]) -> Settings:
    assert found[0] is not None, found[1].output
    return found[0]


@pytest.mark.parametrize(
    ("args", "value"),
    [
        (["-fa", "1"], "on"), (["-fa", "true"], "on"), (["-fa", "enabled"], "on"),
        (["-fa", "on"], "on"), (["-fa"], "on"), (["--flash_attn", "0"], "off"),
        (["--flash-attn=disabled"], "off"), (["-fa", "auto"], "auto"),
    ],
)  # fmt: skip
def test_spellings_of_a_choice(given: Given, args: list[str], value: str) -> None:
    assert settings(given(*args)).engine.flash_attn == value


def test_other_spellings(given: Given) -> None:
    args = [
        "--ctx_size",
        "9",
        "--fit",
        "1",
        "-ts",
        "3/1",
        "-fitt",
        "512,1024",
        "--min_p",
        "0.1",
        "--reasoning",
        "0",
    ]
    made = settings(given(*args))
    engine = made.engine
    assert (engine.n_ctx, engine.fit, engine.tensor_split) == (9, True, (3.0, 1.0))
    assert engine.fit_target == (512, 1024)
    assert made.defaults.sampling.min_p == 0.1
    assert made.defaults.thinks is False
    assert settings(given("--reasoning-effort", "default")).defaults.reasoning_effort is None
    assert settings(given("--fit", "off")).engine.fit is False
    assert settings(given("--alias", "a_b", "-r", "--x_y")).defaults.stop == ("--x_y",)


def test_the_models_context(given: Given) -> None:
    """-c 0 is all of it, as with llama-server; without -c it may shrink."""
    assert settings(given("-c", "0")).engine.n_ctx == 0
    assert settings(given()).engine.n_ctx == -1
    assert settings(given(LLAMA_ARG_CTX_SIZE="0")).engine.n_ctx == 0
    assert settings(given("-cms", "0")).engine.checkpoint_min_step == 0
    assert settings(given("--cms", "0", "--ngl=3")).engine.checkpoint_min_step == 0


def test_escapes(given: Given) -> None:
    args = ["-r", r"\n", "-r", r"a\x41\"", "--dry-sequence-breaker", r"\t"]
    made = request_defaults(settings(given(*args)))
    assert made.stop == ("\n", 'aA"')
    assert made.sampling.dry_sequence_breakers == ("\t",)
    assert request_defaults(settings(given("-e", *args))).stop == made.stop
    plain = request_defaults(settings(given(*args, "--no-escape")))
    assert plain.stop == (r"\n", r"a\x41\"")
    assert plain.sampling.dry_sequence_breakers == (r"\t",)


@pytest.mark.parametrize(
    "line",
    [
        "--mlock", "--numa distribute", "--prio -1", "-tb 8", "--cache-reuse 256", "-dt 0.1",
        "-sps 0.5", "--threads-http 8", "--no-repack", "--no-jinja", "-nocb", "--poll 100",
        "--cpu-mask ff", "-lm mlock", "--mmap", "--poll-draft 1",
        "--draft-p-split 0.1", "-sm row", "-sm tensor", "--log-colors on", "--no_repack",
    ],
)  # fmt: skip
def test_hints_are_taken_with_a_line_of_warning(given: Given, line: str) -> None:
    found = given(*line.split(), "-c", "7")
    assert settings(found) == settings(given("-c", "7"))
    lines = found[1].stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("serve: ")
    assert " changes nothing here: " in lines[0]


def test_hints_of_one_kind_share_a_line(given: Given) -> None:
    args = ("-td", "4", "-cd", "8", "--mlock")
    stderr = given(*args, LLAMA_ARG_SPEC_DRAFT_N_CPU_MOE="1")[1].stderr
    assert len(stderr.splitlines()) == 2
    assert "serve: LLAMA_ARG_SPEC_DRAFT_N_CPU_MOE=1, -td, -cd change nothing here: a" in stderr


def test_a_hint_may_lack_its_value(given: Given) -> None:
    """--numa had none, once: the next option is not taken for it."""
    assert settings(given("--numa", "-c", "7")).engine.n_ctx == 7


@pytest.mark.parametrize(
    ("name", "value", "warned"),
    [
        ("MLOCK", "1", True), ("MLOCK", "0", False), ("NO_MMAP", "1", False),
        ("JINJA", "on", False),
        ("NO_JINJA", "1", True), ("CACHE_REUSE", "256", True),
        ("CONTEXT", "1", True), ("CTX_SIZES", "1", True),
        ("NUMA", "", False),
    ],
)  # fmt: skip
def test_variables(given: Given, name: str, value: str, warned: bool) -> None:
    """Those that nobody reads are warned of."""
    found = given(**{f"LLAMA_ARG_{name}": value})
    assert settings(found) == settings(given())
    assert (f"LLAMA_ARG_{name}" in found[1].stderr) == warned


def test_variables_that_turn_off(given: Given) -> None:
    """Whatever they are set to."""
    made = settings(given(LLAMA_ARG_NO_KV_OFFLOAD="0", LLAMA_ARG_NO_MMPROJ_AUTO="1"))
    assert (made.engine.kv_offload, made.use_mmproj) == (False, False)
    assert settings(given("-kvo", LLAMA_ARG_NO_KV_OFFLOAD="1")).engine.kv_offload is True


def test_all_that_is_refused_is_told_at_once(given: Given) -> None:
    line = (
        "--foo 3 --rpc h:1 -c x --mlock --temp nan --memory-f32 --bar=1 --models-dir a --demo=1 -b"
    )
    taken, result = given(*line.split(), LLAMA_ARG_PORT="x", LLAMA_ARG_TOOLS_RUNTIME="x")
    assert taken is None
    told = result.stderr
    assert "11 things cannot be used:" in told
    for reason in (
        "No such option '--foo'", "No such option '--bar'", "--rpc is not supported: devices",
        "--memory-f32 is not supported: use -ctk f32 -ctv f32", "--models-dir is not supported",
        "-c, --ctx-size: expected a whole number of at least -1, not 'x'",
        "--temp, --temperature: expected a number, not 'nan'",
        "--demo: expected no value, not '1'", "-b: expected a value after it",
        "LLAMA_ARG_TOOLS_RUNTIME=x is not supported",
        "LLAMA_ARG_PORT: expected a whole number of at least 0 and at most 65535, not 'x'",
    ):  # fmt: skip
        assert reason in told
    assert "--mlock changes nothing here" in told


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("-ncmoe abc", "-ncmoe, --n-cpu-moe: expected a whole number of at least 0, not 'abc'"),
        ("-t 1.5", "-t, --threads: expected a whole number, not '1.5'"),
        ("-t 9999999999", "expected a whole number of at most 2147483647, not '9999999999'"),
        ("--port 65536", "--port: expected a whole number of at least 0 and at most 65535, not"),
        ("--dynatemp-range -inf", "expected a number of at least -1000000000, not '-inf'"),
        ("--adaptive-target 2", "--adaptive-target: expected a number of at most 1, not '2'"),
        ("-ctk q3", "-ctk, --cache-type-k: expected f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, "),
        ("--kernel-family x", "--kernel-family: expected simd or simt, not 'x'"),
        ("--fit x", "-fit, --fit: 'x' is neither on nor off"),
        ("-rea x", "-rea, --reasoning: 'x' is none of on, off and auto"),
        ("--replicas x", "--replicas: 'x' is neither a number of at least 1 nor LEAST:MOST"),
        ("--control-vector-layer-range 1 x", "expected a whole number of at least 0, not 'x'"),
        ("--control-vector-layer-range 1", "range: expected 2 values after it"),
        ("--voices /nowhere", "--voices: expected a folder that is there, not '/nowhere'"),
        ("--log-file /", "--log-file: expected a file, and '/' is a folder"),
        ("--no-kv-offload=1", "--no-kv-offload: expected no value, not '1'"),
    ],
)
def test_a_wrong_value(given: Given, line: str, told: str) -> None:
    """The option is named with what it was given and what is expected."""
    assert told in given(*line.split())[1].stderr


def test_a_wrong_word_for_a_flag(given: Given) -> None:
    stderr = given(LLAMA_ARG_KV_OFFLOAD="abc")[1].stderr
    assert "LLAMA_ARG_KV_OFFLOAD: expected on or off, not 'abc'" in stderr


def test_every_option_says_what_it_expects(given: Given) -> None:
    """All those at once that take a number or one of some words."""
    flags = [spellings(one.option)[0] for one in cli.OPTIONS if one.option.type is not None]
    numbers = [one for one in cli.OPTIONS if isinstance(one.option.type, Whole | Real)]
    words = [one for one in cli.OPTIONS if isinstance(one.option.type, Choice)]
    args = [word for flag in flags for word in (flag, *[WRONG] * cli.FLAGS[flag].n_values[-1])]
    lines = given(*args)[1].stderr.splitlines()
    for one in [*numbers, *words]:
        told = [line for line in lines if line.startswith(f"  {', '.join(spellings(one.option))}:")]
        assert len(told) == 1
        assert re.search(f": expected .*, not '{WRONG}'$", told[0])


def test_options_that_do_not_go_together_are_told_too(tmp_path: Path) -> None:
    args = [
        "-m",
        "/nowhere.gguf",
        "--api-prefix",
        "x",
        "--chat-template-kwargs",
        "[1]",
        "--api-key",
        ",",
    ]
    result = CliRunner().invoke(cli.main, args)
    assert result.exit_code == 1
    expected = [
        "-m: cannot read /nowhere.gguf: No such file",
        "--chat-template-kwargs: expected a",
        "--api-key: there is no",
        "--api-prefix: x",
    ]
    lines = result.stderr.splitlines()
    assert len(lines) == 4
    for line, words in zip(lines, expected, strict=True):
        assert line.startswith(f"serve: {words}")
    with_others = CliRunner().invoke(cli.main, [*args, "--foo"])
    assert with_others.exit_code == 2
    assert "5 things cannot be used:" in with_others.stderr


def test_one_refusal_is_told_alone(given: Given) -> None:
    assert (
        "Error: No such option '--ctx-sizes' (--ctx-size or --ctx-size-draft?)"
        in given("--ctx-sizes", "1")[1].stderr
    )
    assert "unexpected 'y': it belongs" in given("-c", "1", "y")[1].stderr


def test_configuration_files(given: Given, tmp_path: Path) -> None:
    """[*] and [default] of llama.cpp's config.ini count, below variables and the command line."""
    file = tmp_path / "llama.cpp" / "config.ini"
    file.parent.mkdir()
    file.write_text(
        "version = 1\ntop-k = 7 ; of all\n[*]\nctx-size = 5\ntop-k = 9\nLLAMA_ARG_PORT = 81\n"
        "no-kv-offload = true\nmlock = true\nwhatever = 3\ncontrol-vector-layer-range = 1 2\n"
        "[another]\nctx-size = 6\n[default]\nhost = a, b\n# n = 3\nfa = 1\nr = stop\n"
    )
    made = settings(given())
    assert (made.engine.n_ctx, made.port, made.host) == (5, 81, ("a", "b"))
    assert (made.engine.kv_offload, made.engine.flash_attn) == (False, "on")
    assert (made.defaults.sampling.top_k, made.defaults.max_tokens) == (7, -1)
    assert (made.defaults.stop, made.engine.control.layers) == (("stop",), (1, 2))
    assert settings(given(LLAMA_ARG_CTX_SIZE="8")).engine.n_ctx == 8
    assert settings(given("-c", "9", LLAMA_ARG_CTX_SIZE="8")).engine.n_ctx == 9
    file.write_text("ctx-size = x\n")
    assert f"ctx-size in {file}: expected a whole number" in given()[1].stderr


def test_completion_in_bash(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(cli.main, ["--completion-bash"])
    assert result.exit_code == 0
    assert {"--ctx-size", "-ngl", "--version", "--no-kv-offload"} <= set(result.output.split())
    assert result.output.rstrip().endswith("complete -o filenames -F _gguf_serve serve gguf-serve")


def test_help_under_its_other_name() -> None:
    assert CliRunner().invoke(cli.main, ["--usage"]).output.startswith("Usage:")
