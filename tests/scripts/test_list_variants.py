"""The page of architectures: made from the table, from what tests compare, and from figures."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from conformance_data import names, second_names

from gguf_serve.engine.architecture.table import ARCHITECTURES
from scripts.list_variants import DOC, MISSING, README, VARIANTS, claim, llama_architectures, page

MODELS = Path(__file__).parents[1] / "engine" / "model"
TESTED_APART = {
    "chameleon-swin", "dream", "llada", "llada-moe", "phi3-longrope", "rnd1", "t5", "t5-gated",
    "t5encoder",
}  # fmt: skip
LISTED: dict[str, tuple[str, float | None]] = json.loads(VARIANTS.read_text("utf-8"))


def test_the_page_is_what_the_script_writes() -> None:
    """``python scripts/list_variants.py`` writes it."""
    assert DOC.read_text("utf-8") == page()


def test_what_is_not_served_is_named() -> None:
    assert set(ARCHITECTURES) | set(MISSING) == llama_architectures()
    assert not set(ARCHITECTURES) & set(MISSING)
    assert claim() in " ".join(README.read_text("utf-8").split())


def test_every_architecture_has_a_variant() -> None:
    assert {arch for arch, _ in LISTED.values()} == set(ARCHITECTURES)


def test_figures_are_within_the_bar() -> None:
    assert all(value is None or value <= 1e-7 for _, value in LISTED.values())


def listed(module: str, name: str) -> list[str]:
    """A list of names of models in a module of tests beside the models'."""
    tree = ast.parse((MODELS / f"{module}.py").read_text("utf-8"))
    values = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    )
    found: list[str] = ast.literal_eval(next(values))
    return found


def test_what_is_listed_is_tested() -> None:
    """And the other way round, as far as the references are there."""
    tested = {
        *names(), *listed("test_conformance", "SECOND"), *listed("test_encoders", "CONFORMANCE"),
        *listed("test_nextn", "MODELS"), *TESTED_APART,
    }  # fmt: skip
    if second_names():
        assert set(LISTED) == tested
        assert tested <= {*names(), *second_names()}
    assert tested <= set(LISTED)
