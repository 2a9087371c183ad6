from __future__ import annotations

import pytest

from gguf_serve.server.sources.choice import (
    Repo,
    all_parts,
    choose_companion,
    choose_model,
    is_model,
    tag_of,
)

FILES = [
    "README.md", "imatrix.gguf", "m-BF16.gguf", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-Q8_0.gguf",
    "mmproj-BF16.gguf", "mmproj-Q8_0.gguf", "mtp-m-Q4_K_M.gguf",
    "Q6_K/m-Q6_K-00001-of-00002.gguf", "Q6_K/m-Q6_K-00002-of-00002.gguf",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "repo"),
    [
        ("a/b", Repo("a/b")),
        ("a/b:Q4_K_M", Repo("a/b", "Q4_K_M")),
        ("a/b-1.5_x:latest", Repo("a/b-1.5_x")),
    ],
)
def test_a_name(text: str, repo: Repo) -> None:
    assert Repo.parse(text) == repo


@pytest.mark.parametrize("text", ["b", "a/b/c", "", "/b", "a/", "a /b", "https://hf.co/a/b"])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match="expected USER/NAME"):
        Repo.parse(text)


@pytest.mark.parametrize(
    ("tag", "path"),
    [
        ("", "m-Q4_K_M.gguf"),
        ("q8_0", "m-Q8_0.gguf"),
        ("Q4_K", None),  # none of Q4_K_M and Q4_K_S
        ("BF16", "m-BF16.gguf"),
        ("Q6_K", "Q6_K/m-Q6_K-00001-of-00002.gguf"),
        ("Q2_K", None),
    ],
)
def test_a_tag(tag: str, path: str | None) -> None:
    assert choose_model(FILES, tag) == path


def test_without_a_default_the_first_model_is_taken() -> None:
    assert choose_model(["mmproj-F16.gguf", "x-Q2_K.gguf", "x-Q3_K.gguf"], "") == "x-Q2_K.gguf"
    assert choose_model(["x-Q8_0.gguf", "x-IQ2_XS.gguf"], "") == "x-Q8_0.gguf"
    assert choose_model(["README.md"], "") is None


def test_all_parts_of_a_split_model() -> None:
    assert all_parts(FILES, FILES[9]) == FILES[9:11]
    assert all_parts(FILES, "m-Q8_0.gguf") == ["m-Q8_0.gguf"]


def test_the_projector_of_the_most_similar_size_in_the_nearest_folder() -> None:
    assert choose_companion(FILES, "m-BF16.gguf", "mmproj") == "mmproj-BF16.gguf"
    assert choose_companion(FILES, "m-Q4_K_M.gguf", "mmproj") == "mmproj-Q8_0.gguf"
    near = [*FILES, "Q6_K/mmproj-F32.gguf"]
    assert choose_companion(near, FILES[9], "mmproj") == "Q6_K/mmproj-F32.gguf"
    assert choose_companion(near, "m-BF16.gguf", "mmproj") == "mmproj-BF16.gguf"
    assert choose_companion(["m.gguf"], "m.gguf", "mmproj") is None


def test_names() -> None:
    assert [path for path in FILES if is_model(path)][:2] == ["m-BF16.gguf", "m-Q4_K_M.gguf"]
    assert [tag_of(path) for path in FILES[3:6]] == ["Q4_K_M", "Q4_K_S", "Q8_0"]
    assert tag_of(FILES[9]) == "Q6_K"
