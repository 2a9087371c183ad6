"""Options of speculation: what guesses tokens, several of which are then verified in a step.

Names and defaults are llama-server's, save for the type ``grammar``, which it has not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from gguf_serve.engine.option import (
    CACHE_TYPE,
    COUNT,
    FILE,
    NATURAL,
    TEXT,
    Parsed,
    Real,
    Whole,
    option,
)
from gguf_serve.engine.option_values import layer_count

GROUP = "Speculation"
NGRAM_TYPES = ("ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache")
TYPES = ("none", "grammar", *NGRAM_TYPES)
DRAFT, EAGLE, HEADS = "draft-simple", "draft-eagle3", "draft-mtp"
DFLASH, DSPARK = "draft-dflash", "draft-dspark"  # DSpark's are corrected by the token before
MODEL_TYPES = (DRAFT, EAGLE, HEADS, DFLASH, DSPARK)
SIZE, SIZE_OR_0 = Whole(1, 1024), Whole(0, 1024)


def spec_types(text: str) -> tuple[str, ...]:
    """Types separated by commas; ValueError for one that there is not."""
    types = tuple(part.strip() for part in text.split(","))
    for name in types:
        if name not in TYPES + MODEL_TYPES:
            raise ValueError(f"{name!r} is none of the types {', '.join(TYPES)}")
    return types


class NGramSizes(NamedTuple):
    """Tokens that are looked up, tokens that are guessed, and how often they were seen before."""

    n: int
    m: int
    min_hits: int


class NGramModSizes(NamedTuple):
    """Tokens that are looked up; the least and the most that are guessed."""

    n_match: int
    n_min: int
    n_max: int


# fmt: off
@dataclass(frozen=True, slots=True)
class DraftOptions:
    """A model that guesses for the one that is served."""

    model: str | None = option(
        "-md", "--model-draft", "--spec-draft-model", group=GROUP, env="SPEC_DRAFT_MODEL",
        type=FILE, default=None,
        help="GGUF file of a smaller model with the same vocabulary, or of a draft that is made "
        "for the model (EAGLE-3, DFlash, Gemma 4's assistants), which guesses tokens",
    )
    device: str | None = option(
        "-devd", "--device-draft", "--spec-draft-device", group=GROUP, type=TEXT, default=None,
        help="its devices, as in --device; those of the model otherwise",
    )
    n_gpu_layers: str | int = option(
        "-ngld", "--gpu-layers-draft", "--n-gpu-layers-draft", "--spec-draft-ngl", group=GROUP,
        env="N_GPU_LAYERS_DRAFT", type=Parsed("N|auto|all", layer_count), default="auto",
        help="its last so many layers go to the devices, the others to the CPU",
    )
    cache_type_k: str = option(
        "-ctkd", "--cache-type-k-draft", "--spec-draft-type-k", group=GROUP,
        env="SPEC_DRAFT_CACHE_TYPE_K", type=CACHE_TYPE, default="f16", help="type of its keys",
    )
    cache_type_v: str = option(
        "-ctvd", "--cache-type-v-draft", "--spec-draft-type-v", group=GROUP,
        env="SPEC_DRAFT_CACHE_TYPE_V", type=CACHE_TYPE, default="f16", help="type of its values",
    )
    n_max: int = option(
        "--spec-draft-n-max", group=GROUP, env="SPEC_DRAFT_N_MAX", type=NATURAL, default=3,
        help="tokens that it guesses at most",
    )
    n_min: int = option(
        "--spec-draft-n-min", group=GROUP, env="SPEC_DRAFT_N_MIN", type=NATURAL, default=0,
        help="tokens that it guesses at least, or none",
    )
    p_min: float = option(
        "--draft-p-min", "--spec-draft-p-min", group=GROUP, env="SPEC_DRAFT_P_MIN",
        type=Real(0.0, 1.0), default=0.0,
        help="probability that it gives each of them at least",
    )

    n_vocab: int = option(
        "--spec-draft-vocab", group=GROUP, type=NATURAL, default=0,
        help="it guesses the first so many tokens of its vocabulary only, which are the commonest "
        "where a BPE has merged them in that order; 0: all",
    )


@dataclass(frozen=True, slots=True)
class SpeculationOptions:
    """What guesses, apart from what a request says."""

    types: tuple[str, ...] = option(
        "--spec-type", group=GROUP, env="SPEC_TYPE", type=Parsed("TYPE,...", spec_types),
        multiple=True, default=(),
        help="what guesses tokens, beside grammar, which guesses what a schema or grammar forces: "
        f"{', '.join(NGRAM_TYPES)}; {HEADS}: heads of speculation in the model's file; {DRAFT}, "
        f"{EAGLE}, {DFLASH} or {DSPARK} with -md, and without being named; none: nothing, grammar "
        "neither; repeatable",
    )
    default: bool = option(
        "--spec-default", group=GROUP, default=False, help="the same as --spec-type ngram-mod",
    )
    simple_n: int = option(
        "--spec-ngram-simple-size-n", group=GROUP, type=SIZE, default=12,
        help="last tokens that ngram-simple looks up",
    )
    simple_m: int = option(
        "--spec-ngram-simple-size-m", group=GROUP, type=SIZE, default=48,
        help="tokens that it guesses at most",
    )
    simple_min_hits: int = option(
        "--spec-ngram-simple-min-hits", group=GROUP, type=COUNT, default=1,
        help="how often it has seen the tokens before",
    )
    map_k_n: int = option(
        "--spec-ngram-map-k-size-n", group=GROUP, type=SIZE, default=12,
        help="last tokens that ngram-map-k looks up",
    )
    map_k_m: int = option(
        "--spec-ngram-map-k-size-m", group=GROUP, type=SIZE, default=48,
        help="tokens that it guesses at most",
    )
    map_k_min_hits: int = option(
        "--spec-ngram-map-k-min-hits", group=GROUP, type=COUNT, default=1,
        help="how often it has seen the tokens before",
    )
    map_k4v_n: int = option(
        "--spec-ngram-map-k4v-size-n", group=GROUP, type=SIZE, default=12,
        help="last tokens that ngram-map-k4v looks up",
    )
    map_k4v_m: int = option(
        "--spec-ngram-map-k4v-size-m", group=GROUP, type=SIZE, default=48,
        help="tokens that it guesses at most",
    )
    map_k4v_min_hits: int = option(
        "--spec-ngram-map-k4v-min-hits", group=GROUP, type=COUNT, default=1,
        help="how often it has seen the tokens before",
    )
    mod_n_match: int = option(
        "--spec-ngram-mod-n-match", group=GROUP, type=SIZE, default=24,
        help="last tokens that ngram-mod looks up",
    )
    mod_n_min: int = option(
        "--spec-ngram-mod-n-min", group=GROUP, type=SIZE_OR_0, default=48,
        help="tokens that it guesses at least",
    )
    mod_n_max: int = option(
        "--spec-ngram-mod-n-max", group=GROUP, type=SIZE_OR_0, default=64,
        help="tokens that it guesses at most",
    )
    static: str | None = option(
        "-lcs", "--lookup-cache-static", group=GROUP, type=FILE, default=None,
        help="llama-server's file of n-grams that ngram-cache compares its own with",
    )
    dynamic: str | None = option(
        "-lcd", "--lookup-cache-dynamic", group=GROUP, type=FILE, default=None,
        help="and one that it looks in after its own; it is not written",
    )
    draft: DraftOptions = field(default_factory=DraftOptions)
# fmt: on

    @property
    def in_use(self) -> tuple[str, ...]:
        """The types that are asked for, and that there are, each once; none: nothing guesses."""
        if "none" in self.types:
            return ()
        asked = ("grammar", *self.types, *("ngram-mod",) * self.default)
        return tuple(dict.fromkeys(name for name in asked if name in TYPES))

    @property
    def is_asked(self) -> bool:
        """Whether guesses are asked for, not just left as they are by default."""
        return bool(self.in_use) and bool(self.types or self.default or self.has_draft)

    @property
    def has_draft(self) -> bool:
        """Whether a model is to be loaded that guesses: -md says so, unless the types say that it
        names something else, or that nothing guesses."""
        named = [name for name in self.types if name in MODEL_TYPES]
        is_one = self.draft.model is not None and (DRAFT in named or not named)
        return is_one and self.draft.n_max > 0 and "none" not in self.types

    @property
    def missing(self) -> tuple[str, ...]:
        """The types that are asked for and need a model, where there is none for them."""
        return tuple(
            name for name in self.types
            if name in MODEL_TYPES and not (name == DRAFT and self.draft.model is not None)
        )

    @property
    def simple(self) -> NGramSizes:
        return NGramSizes(self.simple_n, self.simple_m, self.simple_min_hits)

    @property
    def map_k(self) -> NGramSizes:
        return NGramSizes(self.map_k_n, self.map_k_m, self.map_k_min_hits)

    @property
    def map_k4v(self) -> NGramSizes:
        return NGramSizes(self.map_k4v_n, self.map_k4v_m, self.map_k4v_min_hits)

    @property
    def mod(self) -> NGramModSizes:
        return NGramModSizes(self.mod_n_match, self.mod_n_min, self.mod_n_max)


OFF = SpeculationOptions(types=("none",))
