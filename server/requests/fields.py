"""Request bodies: their fields, types and limits, and the engine's parameters made of them.

Names, limits and precedences are llama-server's: null means absent, some fields clamp,
others are refused with the limits in the message. A field that would change the answer
but cannot be honoured is refused by name, never dropped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec

from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.option import INT32_MAX, Real, Whole
from gguf_serve.engine.sampling_params import (
    PARAMETERS,
    SamplingParams,
    TokenRules,
    parse_samplers,
)
from gguf_serve.server.errors import ApiError, invalid, shown
from gguf_serve.server.interface import Tokenizer
from gguf_serve.server.requests.prompts import checked_token

T = TypeVar("T")
MAX_TOP = 1024  # likeliest tokens of each: they are looked up and written one by one
MAX_STOP_STRINGS = 256  # each is looked for in every token's text, between two steps of all
MAX_BIASES = 2**16  # tokens: more than any script has in a vocabulary
MAX_BIASED_TEXT = 2**12  # characters
MAX_DRY_BREAKERS = 64  # for each, the whole vocabulary is looked through
CacheSalt = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
MAX_BAD_WORDS = 256  # each is looked for before every token

CLAMPED = {
    name: stated.type.clamp
    for name, stated in PARAMETERS.items()
    if isinstance(stated.type, Whole | Real) and stated.type.clamp is not None
}
LIMITED: dict[str, tuple[int, int]] = {
    # Of a seed 32 bits count, whatever it is.
    name: (stated.type.low, stated.type.high)
    for name, stated in PARAMETERS.items()
    if isinstance(stated.type, Whole) and name not in CLAMPED and name != "seed"
} | {
    "n_predict": (-1, INT32_MAX),
    "num_predict": (-INT32_MAX, INT32_MAX),
    "num_keep": (-INT32_MAX, INT32_MAX),
    "max_completion_tokens": (-1, INT32_MAX),
    "max_output_tokens": (-1, INT32_MAX),
    "max_tokens": (-1, INT32_MAX),
    "n_keep": (-1, INT32_MAX),
    "n_discard": (0, INT32_MAX),
    "n_probs": (0, MAX_TOP),
    "logprobs": (0, MAX_TOP),
    "top_logprobs": (0, MAX_TOP),
    "t_max_predict_ms": (-1, INT32_MAX),
    "n_indent": (0, INT32_MAX),
    "draft_num_predict": (-INT32_MAX, INT32_MAX),
    "reasoning_budget_tokens": (-1, INT32_MAX),
    "thinking_budget_tokens": (-1, INT32_MAX),
    "id_slot": (-1, INT32_MAX),
    "embd_normalize": (-1, INT32_MAX),
    "min_tokens": (0, INT32_MAX),
    "prompt_logprobs": (0, MAX_TOP),
    "truncate_prompt_tokens": (-1, INT32_MAX),
    "num_ctx": (1, INT32_MAX),
    "priority": (-INT32_MAX, INT32_MAX),
}

# Fields that cannot be honoured, with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "audio": (),
    "backend_sampling": (False,),
    "chat_template": (),
    "documents": ([],),
    "function_call": ("auto", "none"),
    "functions": ([],),
    "image_data": ([],),
    "logits_processors": ([],),
    "modalities": (["text"],),
    "n_cache_reuse": (0,),
    "prompt_embeds": (),
    "response_fields": ([],),
    "use_beam_search": (False,),
    "web_search_options": (),
}


# Fields that change no answer here: nobody keeps it, prices it or moderates it, every prefix is
# cached, and what is said of beams does nothing without them.
INERT = frozenset(
    {
        "early_stopping", "length_penalty", "metadata", "model", "moderation", "prompt_cache_key",
        "prompt_cache_options", "prompt_cache_retention", "request_id", "safety_identifier",
        "service_tier", "spaces_between_special_tokens", "store", "user", "verbosity",
    }
)  # fmt: skip


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class StructuredOutputs(msgspec.Struct):
    """vLLM's; ``choice``: one of these texts."""

    json: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Any = None


class AdapterScale(msgspec.Struct):
    id: int
    scale: float


def sampling_fields() -> list[tuple[str, Any, Any]]:
    """The numbers and switches of SamplingParams as fields of a struct, which may be absent."""
    kinds: dict[Any, Any] = {Whole: int, Real: float, type(None): bool}
    found = []
    for name, stated in PARAMETERS.items():
        if not stated.multiple and type(stated.type) in kinds:
            meta = msgspec.Meta(description=stated.help)
            found.append((name, Annotated[kinds[type(stated.type)] | None, meta], None))
    return found


if TYPE_CHECKING:

    class SamplingFields(msgspec.Struct, kw_only=True):
        """Fields that pass into SamplingParams under their own name."""
else:
    SamplingFields = msgspec.defstruct(
        "SamplingFields", sampling_fields(), kw_only=True, module=__name__
    )


class Prediction(msgspec.Struct, kw_only=True):
    """OpenAI's: a text that is expected."""

    content: str | list[dict[str, Any]]
    type: Literal["content"] = "content"

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(str(part.get("text") or "") for part in self.content)


class GenerationFields(SamplingFields, kw_only=True):
    """What both completion endpoints take."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    timings_per_token: bool | None = None
    return_tokens: bool | None = None
    n_predict: int | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    n_cmpl: int | None = None
    n: int | None = None
    best_of: int | None = None
    n_keep: int | None = None  # these two act when a context shifts
    n_discard: int | None = None
    stop: str | list[str] | None = None
    samplers: str | list[str] | None = None
    dry_sequence_breakers: list[str] | None = None
    logit_bias: list[Any] | dict[str, Any] | None = None
    n_probs: int | None = None
    post_sampling_probs: bool | None = None
    cache_prompt: bool | None = None
    cache_salt: CacheSalt | None = None
    id_slot: int | None = None
    lora: list[AdapterScale] | None = None
    sse_ping_interval: float | None = None
    return_progress: bool | None = None
    t_max_predict_ms: int | None = None
    prediction: Prediction | None = None
    speculative_n_max: int | None = msgspec.field(default=None, name="speculative.n_max")
    speculative_n_min: int | None = msgspec.field(default=None, name="speculative.n_min")
    speculative_p_min: float | None = msgspec.field(default=None, name="speculative.p_min")
    n_indent: int | None = None
    response_format: dict[str, Any] | None = None
    json_schema: dict[str, Any] | bool | None = None
    grammar: str | None = None
    grammar_lazy: bool | None = None
    grammar_triggers: list[dict[str, Any]] | None = None
    preserved_tokens: list[str] | None = None
    regex: str | None = None
    # vLLM's and SGLang's names for what is there already, or as well.
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    verbose: bool | None = None
    priority: int | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    ebnf: str | None = None


class CompletionFields(GenerationFields, kw_only=True):
    prompt: Any
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = None


def refuse(data: Mapping[str, Any], unsupported: Mapping[str, tuple[object, ...]]) -> None:
    """ApiError for a field that cannot be honoured, unless its value asks for nothing."""
    for name, neutral in unsupported.items():
        if name in data and data[name] not in neutral:
            shown = msgspec.json.encode(data[name]).decode()
            raise invalid(f"Field '{name}': {shown:.80} is not supported by this server")


def convert(data: Any, kind: type[T], *, strict: bool = True) -> T:
    """The fields of a struct, or a list of structs; others are left out. ApiError names what is
    wrong.

    Not ``strict``: numbers and booleans may be written as text, as in a form.
    """
    try:
        fields = msgspec.convert(data, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise invalid(describe(str(error))) from None
    check_limits(fields)
    return fields


def describe(error: str) -> str:
    """msgspec's message with the path in front: Expected `int`, got `str` - at `$.n`."""
    missing = re.fullmatch(r"Object missing required field `(\w+)`", error)
    if missing:
        return f"Field '{missing[1]}' is required"
    what, _, path = error.partition(" - at `$")
    what = what.replace(" | null", "")
    return f"Field '{path[:-1].removeprefix('.')}': {what}" if path else what


def check_limits(fields: object) -> None:
    for name, (low, high) in LIMITED.items():
        value = getattr(fields, name, None)
        if value is not None and not low <= value <= high:
            raise out_of_limits(name, value, low, high)


def out_of_limits(name: str, value: int, low: int, high: int) -> ApiError:
    return invalid(f"Field '{name}': Value must be between {low} and {high}, got {value}")


def max_tokens(fields: GenerationFields, default: int) -> int:
    given = (fields.n_predict, fields.max_completion_tokens, fields.max_tokens)
    return next((value for value in given if value is not None), default)


def n_kept(given: int | None, max_tokens: int, n_ctx: int) -> int | None:
    """How many tokens of a prompt ``truncate_prompt_tokens`` keeps, the last ones; None: all.
    -1: those that leave room in the context for an answer."""
    if given == 0:
        raise invalid("Field 'truncate_prompt_tokens': expected -1 or a number above 0, got 0")
    return max(n_ctx - max(max_tokens, 1), 1) if given == -1 else given


def n_choices(fields: GenerationFields, n_slots: int) -> int:
    name = "n" if fields.n_cmpl is None else "n_cmpl"
    n: int | None = getattr(fields, name)
    if n is not None and not 1 <= n <= n_slots:
        raise out_of_limits(name, n, 1, n_slots)
    if fields.best_of not in (None, 1, n):
        raise invalid(
            f"Field 'best_of': all answers are given: {fields.best_of} is not 'n', {n or 1}"
        )
    return n or 1


def stop_strings(fields: GenerationFields, default: tuple[str, ...]) -> tuple[str, ...]:
    given = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
    check_stops("stop", given)
    return tuple(word for word in given if word) or default


def check_stops(name: str, words: Sequence[str]) -> None:
    if len(words) > MAX_STOP_STRINGS:
        raise invalid(f"Field '{name}': at most {MAX_STOP_STRINGS} strings, got {len(words)}")


def sampling_params(
    fields: GenerationFields, default: SamplingParams, tokenizer: Tokenizer
) -> SamplingParams:
    changes = given_numbers(fields)
    if fields.repetition_penalty is not None and "repeat_penalty" not in changes:
        # It looks at the prompt and all that was written.
        changes = {"repeat_last_n": -1} | changes | {"repeat_penalty": fields.repetition_penalty}
    if fields.dry_sequence_breakers is not None:
        if not fields.dry_sequence_breakers:
            raise invalid("Field 'dry_sequence_breakers': must be a non-empty array of strings")
        if len(fields.dry_sequence_breakers) > MAX_DRY_BREAKERS:
            n = len(fields.dry_sequence_breakers)
            raise invalid(f"Field 'dry_sequence_breakers': at most {MAX_DRY_BREAKERS}, got {n}")
        changes["dry_sequence_breakers"] = tuple(fields.dry_sequence_breakers)
    if fields.samplers is not None:
        changes["samplers"] = samplers(fields.samplers)
    if fields.logit_bias is not None:
        changes["logit_bias"] = logit_bias(fields.logit_bias, tokenizer)
    return replace(default, **changes)


def given_numbers(fields: SamplingFields) -> dict[str, Any]:
    """The numbers and switches of SamplingParams that a request gives, within their limits."""
    changes: dict[str, Any] = {}
    for name in SamplingFields.__struct_fields__:
        value = getattr(fields, name)
        if value is not None:
            low, high = CLAMPED.get(name, (value, value))
            changes[name] = min(max(value, low), high)
    if "seed" in changes:
        changes["seed"] = seed(changes["seed"])
    if changes.get("dry_base", 1.0) < 1.0:
        del changes["dry_base"]
    return changes


def token_rules(fields: GenerationFields, tokenizer: Tokenizer) -> TokenRules:
    return TokenRules(
        min_tokens=fields.min_tokens or 0,
        stop_ids=frozenset(token_ids("stop_token_ids", fields.stop_token_ids, tokenizer)),
        bad_words=bad_words(fields.bad_words or (), tokenizer),
        allowed=token_ids("allowed_token_ids", fields.allowed_token_ids, tokenizer),
    )


def token_ids(name: str, given: Sequence[int] | None, tokenizer: Tokenizer) -> tuple[int, ...]:
    if given is not None and not given and name == "allowed_token_ids":
        raise invalid(f"Field '{name}': the list is empty: no token could be written")
    return tuple(checked_token(name, token, tokenizer) for token in given or ())


def bad_words(words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """The tokens of each word, at the beginning of a text and after a space."""
    if len(words) > MAX_BAD_WORDS:
        raise invalid(f"Field 'bad_words': at most {MAX_BAD_WORDS} words, got {len(words)}")
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        for text in (word, " " + word.lstrip()) if word.strip() else ():
            found[tuple(biased_tokens(text, tokenizer, "bad_words"))] = None
    return tuple(ids for ids in found if ids)


def seed(value: int) -> int:
    """32 bits count; all of them set, or -1, means a random one."""
    value &= 0xFFFFFFFF
    return -1 if value == 0xFFFFFFFF else value


def adapter_scales(scales: Iterable[AdapterScale]) -> tuple[tuple[int, float], ...]:
    for adapter in scales:
        if not math.isfinite(adapter.scale):
            raise invalid(f"Field 'lora': the scale of adapter {adapter.id} is {adapter.scale}")
    return tuple((adapter.id, adapter.scale) for adapter in scales)


def samplers(value: str | list[str]) -> tuple[str, ...]:
    """Names in their order, or a string with a letter for each, or with names and ';' between."""
    try:
        return parse_samplers(value)
    except RequestError as error:
        raise invalid(f"Field 'samplers': {error}") from None


def logit_bias(
    value: list[Any] | dict[str, Any], tokenizer: Tokenizer
) -> tuple[tuple[int, float], ...]:
    """Pairs (token or text, bias), or an object of them; false bans, a text means its tokens."""
    if isinstance(value, dict):
        # 20 digits: enough to be outside of any vocabulary, and few enough for int().
        pairs = [[int(key[:20]) if key.isdecimal() else key, bias] for key, bias in value.items()]
    else:
        pairs = value
    biases: list[tuple[int, float]] = []
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in (int, str)):
            raise invalid(f"Field 'logit_bias': expected [token or text, bias], got {shown(pair)}")
        bias = bias_value(pair[1])
        biases += [(id, bias) for id in biased_tokens(pair[0], tokenizer)]
        if len(biases) > MAX_BIASES:
            raise invalid(f"Field 'logit_bias': more than {MAX_BIASES} tokens")
    return tuple(biases)


def bias_value(value: Any) -> float:
    if value is False:
        return float("-inf")
    if type(value) is float or (type(value) is int and abs(value) < 2**64):
        return float(value)
    raise invalid(f"Field 'logit_bias': a bias is a number or false, got {shown(value)}")


def biased_tokens(token: int | str, tokenizer: Tokenizer, field: str = "logit_bias") -> list[int]:
    if isinstance(token, str):
        if len(token) > MAX_BIASED_TEXT:
            raise invalid(
                f"Field '{field}': a text has at most {MAX_BIASED_TEXT} characters, "
                f"got {len(token)}"
            )
        return tokenizer.encode(token, add_special=False, parse_special=True)
    return [checked_token(field, token, tokenizer)]
