"""The command line: exact option names, variables, messages, exit codes."""

from __future__ import annotations

import subprocess
import sys
import time
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gguf_serve.engine.option import Real
from gguf_serve.engine.options import ControlVectors, RopeOptions
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.server import cli
from gguf_serve.server.configure import (
    SettingsError,
    api_keys,
    api_prefix,
    chat_template,
    cors,
    engine_options,
    problems,
    request_defaults,
    template_kwargs,
    uses_https,
)
from gguf_serve.server.options.settings import Settings


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The settings that a command line gives, nothing served."""
    taken: list[Settings] = []

    def take(settings: Settings) -> int:
        taken.append(settings)
        return 0

    monkeypatch.setattr(cli, "start", take)

    def run(*args: str, **env: str) -> Settings:
        model = [] if "--demo" in args else ["-m", "x.gguf"]
        result = CliRunner().invoke(cli.main, [*model, *args], env=env)
        assert result.exit_code == 0, result.output
        return taken[-1]

    return run


def invoke(*args: str) -> Result:
    return CliRunner().invoke(cli.main, args, prog_name="serve")


def test_the_defaults_are_those_of_the_engine(settings_of: Any) -> None:
    settings = settings_of()
    assert settings == Settings(model="x.gguf")
    assert request_defaults(settings) == request_defaults(Settings())
    assert request_defaults(settings).sampling == type(request_defaults(settings).sampling)()


@pytest.mark.parametrize(
    ("args", "name", "value"),
    [
        (["-ngl", "99"], "engine.n_gpu_layers", 99),
        (["-ngl", "all"], "engine.n_gpu_layers", "all"),
        (["-np", "4"], "engine.n_parallel", 4),
        (["-np", "-1"], "engine.n_parallel", -1),
        (["-n", "5"], "defaults.max_tokens", 5),
        (["-fa", "off"], "engine.flash_attn", "off"),
        (["-fa"], "engine.flash_attn", "on"),
        (["-fa", "-c", "9"], "engine.flash_attn", "on"),
        (["-fa", "-c", "9"], "engine.n_ctx", 9),
        (["-ctk", "f32", "-ctv", "f16"], "engine.cache_type_k", "f32"),
        (["-b", "64", "-ub", "32"], "engine.n_ubatch", 32),
        (["--ctx-size=77"], "engine.n_ctx", 77),
        (["-s", "-1", "--temp", "0"], "defaults.sampling.temperature", 0.0),
        (
            ["-l", "5+1.5", "-l", "6-inf"],
            "defaults.sampling.logit_bias",
            ((5, 1.5), (6, -float("inf"))),
        ),
        (["-r", "a", "-r", "-b"], "defaults.stop", ("a", "-b")),
        (["-sp"], "defaults.special", True),
        (["--no-cache-prompt"], "defaults.cache_prompt", False),
        (["--host", "::1", "--host", "x.sock"], "host", ("::1", "x.sock")),
        (["-dev", "1"], "engine.device", "1"),
        (["-ts", "3,1.5"], "engine.tensor_split", (3.0, 1.5)),
        (["-ot", "a=CPU", "-ot", "b=0"], "engine.override_tensor", ("a=CPU", "b=0")),
        (["-sm", "none", "-mg", "1"], "engine.main_gpu", 1),
        (["-ncmoe", "4"], "engine.n_cpu_moe", 4),
        (["-nkvo"], "engine.kv_offload", False),
        (["-fit", "off"], "engine.fit", False),
        (["--rope-scaling", "yarn"], "engine.rope.kind", "yarn"),
        (["--yarn-ext-factor", "0"], "engine.rope.extrapolation", 0.0),
        (["--kernel-family", "simt"], "engine.kernel_family", "simt"),
        (["--activation-type", "int8"], "engine.activation_type", "int8"),
        (["--profile"], "engine.profile", True),
        (["--tags", "a,b"], "tags", "a,b"),
        (["--spm-infill"], "defaults.spm_infill", True),
        (["--no-reasoning-preserve"], "reasoning_preserve", False),
        (["-mmdev", "1"], "mmproj_device", "1"),
    ],
)
def test_options(settings_of: Any, args: list[str], name: str, value: Any) -> None:
    assert attrgetter(name)(settings_of(*args)) == value


def test_variables_lose_against_flags(settings_of: Any) -> None:
    variables = {"LLAMA_ARG_CTX_SIZE": "5", "LLAMA_ARG_N_PARALLEL": "3"}
    settings = settings_of("-c", "9", **variables)
    assert (settings.engine.n_ctx, settings.engine.n_parallel) == (9, 3)


def test_adapters(settings_of: Any) -> None:
    args = ["--lora", "a.gguf,b.gguf", "--lora", "c.gguf", "--lora-scaled", "C:\\d.gguf:0.5,e:-2"]
    expected = [("a.gguf", 1), ("b.gguf", 1), ("c.gguf", 1), ("C:\\d.gguf", 0.5), ("e", -2)]
    found = engine_options(settings_of(*args)).adapters
    assert [(str(path), scale) for path, scale in found] == expected
    off = engine_options(settings_of(*args, "--lora-init-without-apply")).adapters
    assert [scale for _, scale in off] == [0.0] * 5
    assert "'x' is not a file and a scale" in invoke("--lora-scaled", "x").output


def test_metadata_in_place_of_the_files(settings_of: Any) -> None:
    args = ["--override-kv", "a.b=int:-5,c=str:x,y=z,d=bool:true", "--override-kv", "e=float:0.5"]
    found = engine_options(settings_of(*args)).override_kv
    assert found == (("a.b", -5), ("c", "x,y=z"), ("d", True), ("e", 0.5))
    for wrong in ("a=int:x", "a=long:5", "a", "=int:5", "a=bool:1"):
        assert "--override-kv: '" in invoke("--override-kv", wrong).output


def test_control_vectors(settings_of: Any) -> None:
    args = ["--control-vector", "a.gguf", "--control-vector-scaled", "b.gguf:-0.5"]
    found = engine_options(settings_of(*args, "--control-vector-layer-range", "2", "9")).control
    assert found == ControlVectors(((Path("a.gguf"), 1.0), (Path("b.gguf"), -0.5)), (2, 9))
    assert engine_options(settings_of()).control == ControlVectors()


def test_rope_options(settings_of: Any) -> None:
    """--rope-freq-scale is the reciprocal of --rope-scale; the two together say too much."""
    variables = {"LLAMA_ARG_ROPE_SCALING_TYPE": "linear", "LLAMA_ARG_YARN_ORIG_CTX": "512"}
    settings = settings_of("--rope-freq-scale", "0.25", **variables)
    assert engine_options(settings).rope == RopeOptions("linear", factor=4.0, original_context=512)
    with pytest.raises(SettingsError, match="--rope-scale and --rope-freq-scale"):
        engine_options(settings_of("--rope-freq-scale", "0.25", "--rope-scale", "4"))


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("enabled", True),
        ("disabled", False),
        ("1", True),
        ("0", False),
        ("on", True),
        ("off", False),
    ],
)
def test_words_of_boolean_variables(settings_of: Any, word: str, value: bool) -> None:
    assert settings_of(LLAMA_ARG_CACHE_PROMPT=word).defaults.cache_prompt is value


def test_the_profile_has_a_variable_of_its_own(settings_of: Any) -> None:
    settings = settings_of(GGUF_SERVE_PROFILE="1")
    assert settings.engine.profile
    assert engine_options(settings).profile


@pytest.mark.parametrize("name", ["-mx", "-sx", "-hx", "-cbx", "-nx", "-ngl5"])
def test_unknown_options_are_named(name: str) -> None:
    result = invoke("-m", "x.gguf", name, "0")
    assert result.exit_code == 2
    assert f"No such option '{name}'" in result.output.replace(f": {name}", f" '{name}'")


def test_values_that_look_like_options() -> None:
    """The value of an option is never taken for an option."""
    result = invoke("-m", "x.gguf", "-r", "-xx", "-zz")
    assert "No such option '-zz'" in result.output
    assert "-xx" not in result.output


@pytest.mark.parametrize(
    "args",
    [["-np", "0"], ["-ctk", "q3"], ["-ngl", "x"], ["-l", "x"], ["--port", "99999"], ["-b", "0"]],
)
def test_bad_values(args: list[str]) -> None:
    result = invoke("-m", "x.gguf", *args)
    assert result.exit_code == 2
    assert args[1] in result.output


def test_without_a_model() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert "serve -m FILE.gguf" in result.output


def test_a_model_without_its_option() -> None:
    for words in (["a b.gguf"], ["-c", "512", "a b.gguf"]):
        result = invoke(*words)
        assert result.exit_code == 2
        assert "serve -m 'a b.gguf'" in result.output
    assert "unexpected 'x'" in invoke("-m", "a.gguf", "x").output
    assert invoke("a.gguf", "--version").exit_code == 0


def test_where_images_are_encoded(settings_of: Any) -> None:
    def device(*args: str, **env: str) -> str | None:
        return engine_options(settings_of(*args, **env)).mmproj_device

    assert device() is None
    assert device("-mmdev", "1") == device(MTMD_BACKEND_DEVICE="1") == "1"
    assert device("--no-mmproj-offload") == device("-mmdev", "none") == "none"


def test_reasoning_stays_in_prompts_unless_told_otherwise() -> None:
    def kwargs(**given: Any) -> Any:
        return request_defaults(Settings(**given)).template_kwargs

    assert kwargs() == {"preserve_reasoning": True}
    assert kwargs(reasoning_preserve=False) == {"preserve_reasoning": False}
    text = '{"preserve_reasoning": false, "a": 1}'
    assert kwargs(chat_template_kwargs=text) == {"preserve_reasoning": False, "a": 1}


def test_the_demonstration_model_has_defaults_of_its_own(settings_of: Any) -> None:
    def found(*args: str, **env: str) -> tuple[str, float, float, float]:
        settings = settings_of(*args, **env)
        own = request_defaults(settings).sampling
        activations = engine_options(settings).activation_type
        return activations, own.temperature, own.top_p, own.repeat_penalty

    assert found() == ("auto", 0.8, 0.95, 1)
    assert found("--demo") == ("int16", 0.2, 0.9, 1.1)
    assert found("--demo", "--activation-type", "int8", "--top-p", "1") == ("int8", 0.2, 1, 1.1)
    assert found("--demo", LLAMA_ARG_TEMPERATURE="0.8") == ("int16", 0.8, 0.9, 1.1)


def test_model_and_demo() -> None:
    assert invoke("-m", "x", "--demo").exit_code == 2


def test_a_model_that_is_not_there() -> None:
    result = invoke("-m", "/nowhere/x.gguf")
    assert result.exit_code == 1
    assert result.stderr == "serve: -m: cannot read /nowhere/x.gguf: No such file or directory\n"


def test_files_that_are_not_there_are_told_at_once() -> None:
    options = ["-m", "--mmproj", "-md", "--lookup-cache-static", "--lora", "--control-vector"]
    scaled = ["--lora-scaled", "--control-vector-scaled"]
    args = [word for option in options for word in (option, "/nowhere")]
    args += [word for option in scaled for word in (option, "/nowhere:1")]
    lines = invoke(*args).stderr.splitlines()
    told = [f"serve: {option}: cannot read /nowhere: " for option in (*options, *scaled)]
    assert sorted(line.partition("No such")[0] for line in lines) == sorted(told)
    of_a_repository = invoke("-m", "/nowhere", "-md", "part.gguf", "-hfd", "a/b").stderr
    assert "part.gguf" not in of_a_repository


def test_a_schema_that_is_not_json() -> None:
    assert "--json-schema: '{' is not JSON: " in invoke("-m", "/nowhere", "-j", "{").stderr


@pytest.mark.parametrize(
    ("option", "text", "reason"),
    [
        ("--grammar", 'root ::= "a', "invalid grammar: "),
        ("--json-schema", '{"type": "number", "multipleOf": "x"}', "invalid JSON schema: "),
    ],
)
def test_a_grammar_that_cannot_be_enforced(option: str, text: str, reason: str) -> None:
    told = invoke("-m", "/nowhere", option, text).stderr
    assert f"serve: {option}: {reason}" in told
    assert "serve: -m: cannot read /nowhere" in told


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\3\4")
    result = invoke("-m", str(path))
    assert result.exit_code == 1
    assert "is not a GGUF file" in result.stderr


def test_version() -> None:
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.output.startswith("gguf-serve ")


def test_help_is_grouped_and_complete() -> None:
    result = invoke("--help")
    sections = ["Model:", "Device:", "Context:", "Sampling", "Chat:", "Server:", "Logging:"]
    places = [result.output.index(f"\n{section}") for section in sections]
    assert places == sorted(places)
    words = set(result.output.replace(",", " ").replace("(", " ").replace(")", " ").split())
    for param in cli.main.params:
        assert {*param.opts, *param.secondary_opts} <= words


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from gguf_serve.server.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('uvicorn', 'starlette', 'numpy', 'pyopencl') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.splitlines()[-1] == "[]"
    assert time.monotonic() - begin < 30  # 0.1 s where nothing else runs


@pytest.mark.parametrize("module", ["gguf_serve.server.__main__", "gguf_serve.server.cli"])
def test_runs_as_a_module(module: str) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.startswith("gguf-serve ")


def test_samplers(settings_of: Any) -> None:
    for given in (["--samplers", "top_k;temp"], ["--sampler-seq", "kt"]):
        assert request_defaults(settings_of(*given)).sampling.samplers == ("top_k", "temperature")
    assert settings_of("--samplers", "temp").defaults.sampling.samplers == ("temperature",)
    refused = invoke("--repeat-penalty", "5e-324").output
    assert "--repeat-penalty: expected a number of at least 1e-09, not '5e-324'" in refused
    assert "--samplers: unknown sampler 'magic'" in invoke("--samplers", "top_k;magic").output


def test_dry_breakers(settings_of: Any) -> None:
    def breakers(*given: str) -> tuple[str, ...]:
        args = [arg for breaker in given for arg in ("--dry-sequence-breaker", breaker)]
        sampling: SamplingParams = settings_of(*args).defaults.sampling
        return sampling.dry_sequence_breakers

    assert breakers() == ("\n", ":", '"', "*")
    assert breakers("a", "b") == ("a", "b")
    assert breakers("none") == ()


def test_template_options(tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    path.write_text("{{ x }}")
    assert chat_template(Settings(chat_template_file=str(path))) == "{{ x }}"
    with pytest.raises(SettingsError, match="cannot both be given"):
        chat_template(Settings(chat_template="chatml", chat_template_file=str(path)))
    assert template_kwargs('{"a": 1}') == {"a": 1}
    for bad in ("{", "[1]"):
        with pytest.raises(SettingsError, match="--chat-template-kwargs"):
            template_kwargs(bad)


def test_voices_are_read_before_the_model(tmp_path: Path) -> None:
    assert problems(Settings(voices=str(tmp_path)))[0].startswith("--voices: there is no sound in")
    assert problems(Settings()) == []


def test_api_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# keys\nc\n\n d \n#e\n")
    assert api_keys(Settings(api_key="a, b", api_key_file=str(path))) == ["a", "b", "c", "d"]
    assert api_keys(Settings()) == []
    for empty in ("\n", "#", "# all of\n # them\n"):
        path.write_text(empty)
        with pytest.raises(SettingsError, match="has no key"):
            api_keys(Settings(api_key_file=str(path)))
    for empty in ("", ",", " , "):
        with pytest.raises(SettingsError, match="--api-key: there is no key in"):
            api_keys(Settings(api_key=empty))
    with pytest.raises(SettingsError, match="cannot read"):
        api_keys(Settings(api_key_file=str(tmp_path / "none")))
    assert api_keys(Settings(api_key="a", cache_key_isolation=True)) == ["a"]
    with pytest.raises(SettingsError, match="--cache-key-isolation needs --api-key"):
        api_keys(Settings(cache_key_isolation=True))


def test_arch_list() -> None:
    """Every architecture on a line of its own; no model is asked for."""
    result = CliRunner().invoke(cli.main, ["--arch-list"])
    names = result.output.split("\n")
    assert result.exit_code == 0
    assert {"llama", "qwen3moe", "mamba2"} <= set(names)
    assert names[:-1] == sorted(names[:-1])


@pytest.mark.parametrize(
    "args",
    [
        ["--rpc", "host:1"], ["--models-dir=x"],
        ["--agent"], ["-gan", "4"], ["--memory-f32"], ["-p", "Hello"], ["--no-penalize-nl"],
    ],
)  # fmt: skip
def test_options_that_nothing_would_act_on_are_refused_with_the_reason(args: list[str]) -> None:
    result = invoke("-m", "x.gguf", *args)
    assert result.exit_code == 2
    name = args[0].partition("=")[0]
    assert f"{name} is not supported: " in result.output


def test_options_that_ask_for_what_is_so_anyway_are_taken(settings_of: Any) -> None:
    line = "--jinja -cb --no-mmap --no-warmup -lm auto --cache-reuse=0"
    line += " --no-host --no-perf --perf --no-op-offload --threads-http -1 -sm layer"
    variables = {"LLAMA_ARG_JINJA": "1", "LLAMA_ARG_LOAD_MODE": "none"}
    assert settings_of(*line.split(), "-c", "512", **variables) == settings_of("-c", "512")
    assert settings_of("-r", "--jinja", "-r", "--mlock").defaults.stop == ("--jinja", "--mlock")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODELS_DIR", "x"), ("TOOLS_RUNTIME", "x"), ("RPC", "h:1"), ("AGENT", "1"),
    ],
)  # fmt: skip
def test_variables_that_nothing_would_act_on_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"LLAMA_ARG_{name}", value)
    result = invoke("-m", "x.gguf")
    assert result.exit_code == 2
    assert f"LLAMA_ARG_{name}={value} is not supported: " in result.output
    assert invoke("--version").exit_code == invoke("--help").exit_code == 0


FLOATS = [one.option.flags[-1] for one in cli.OPTIONS if isinstance(one.option.type, Real)]


@pytest.mark.parametrize("flag", FLOATS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_are_finite(flag: str, value: str) -> None:
    assert len(FLOATS) > 20
    result = invoke("-m", "x.gguf", flag, value)
    assert result.exit_code == 2
    assert flag in result.output
    assert value in result.output


@pytest.mark.parametrize(
    "flag", ["-np", "--top-k", "--seed", "--threads", "--main-gpu", "--n-cpu-moe", "--fit-target"]
)
def test_numbers_are_not_too_large(flag: str) -> None:
    result = invoke("-m", "x.gguf", flag, "9" * 20)
    assert (result.exit_code, flag in result.output) == (2, True)


def test_the_option_for_samplers_is_named() -> None:
    with pytest.raises(SettingsError, match=r"^--sampler-seq: unknown sampler"):
        request_defaults(Settings(sampler_seq="0"))


@pytest.mark.parametrize("shares", ["", "1;2", "0,0", "1,-1", "inf"])
def test_shares_that_are_none(shares: str) -> None:
    result = invoke("-m", "x.gguf", "-ts", shares)
    assert result.exit_code == 2
    assert f"{shares!r} is not a list of shares such as 3,1" in result.output


def test_https_needs_both_files(tmp_path: Path) -> None:
    assert not uses_https(Settings())
    with pytest.raises(SettingsError, match="must be given together"):
        uses_https(Settings(ssl_key_file="key.pem"))
    bad = tmp_path / "bad.pem"
    bad.write_text("no key")
    with pytest.raises(SettingsError, match="cannot use"):
        uses_https(Settings(ssl_key_file=str(bad), ssl_cert_file=str(bad)))


def test_prefix_and_cors(settings_of: Any) -> None:
    assert [api_prefix(Settings(api_prefix=it)) for it in ("", "/llm", "/llm/", "/")] == [
        "",
        "/llm",
        "/llm",
        "",
    ]
    with pytest.raises(SettingsError, match="does not begin with /"):
        api_prefix(Settings(api_prefix="llm"))
    made = cors(settings_of("--cors-origins", "http://a, http://b", "--cors-credentials"))
    assert (made.origins, made.credentials) == (("http://a", "http://b"), True)


def test_reasoning_defaults(settings_of: Any) -> None:
    args = ["--reasoning", "off", "--reasoning-budget", "9", "--reasoning-effort", "low"]
    made = request_defaults(settings_of(*args))
    assert (made.thinks, made.reasoning_budget, made.reasoning_effort) == (False, 9, "low")
    assert request_defaults(Settings()).thinks is None


def test_the_page_and_what_is_in_its_place(settings_of: Any, tmp_path: Path) -> None:
    assert settings_of().ui
    assert not settings_of("--no-webui").ui
    assert not settings_of(LLAMA_ARG_UI="off").ui
    assert settings_of("--path", str(tmp_path)).path == str(tmp_path)
