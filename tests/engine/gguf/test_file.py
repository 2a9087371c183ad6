from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import gguf as oracle
import numpy as np
import pytest

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import count_tensor_types, file_type_name, open_gguf

Fill = Callable[[oracle.GGUFWriter], None]


def write(path: Path, fill: Fill, architecture: str = "llama") -> Path:
    """A file by the gguf package's writer."""
    writer = oracle.GGUFWriter(path, architecture)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def fill_example(writer: oracle.GGUFWriter) -> None:
    rng = np.random.default_rng(1)
    writer.add_uint32("llama.block_count", 3)
    writer.add_int32("a.negative", -5)
    writer.add_uint64("a.large", 2**63 + 1)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_float32("a.nan", float("nan"))
    writer.add_bool("a.yes", True)
    writer.add_bool("a.no", False)
    writer.add_string("general.name", "名前\n2")
    writer.add_array("a.flags", [True, False, True])
    writer.add_array("a.ids", [1, -2, 3])
    writer.add_array("a.words", ["x", "", "ж"])
    writer.add_uint32("general.file_type", 15)
    kinds = oracle.GGMLQuantizationType
    writer.add_tensor("norm.weight", rng.random(6, np.float32))
    writer.add_tensor("half.weight", rng.random((5, 3), np.float32).astype(np.float16))
    writer.add_tensor("q8.weight", rng.integers(0, 255, (4, 68), np.uint8), raw_dtype=kinds.Q8_0)
    writer.add_tensor("q4.weight", rng.integers(0, 255, (2, 144), np.uint8), raw_dtype=kinds.Q4_K)


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "example.gguf", fill_example)


def assert_same_as_oracle(path: Path) -> None:
    """Metadata, tensors and their bytes are what the gguf package's reader finds."""
    reader = oracle.GGUFReader(path)
    with open_gguf(path) as gguf:
        theirs = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
        assert list(gguf.metadata) == list(theirs)
        for key, value in gguf.metadata.items():
            plain = value.tolist() if isinstance(value, np.ndarray) else value
            np.testing.assert_equal(plain, theirs[key], err_msg=key)
        assert list(gguf.tensors) == [tensor.name for tensor in reader.tensors]
        for tensor in reader.tensors:
            info = gguf.tensors[tensor.name]
            assert info.shape == tuple(tensor.shape)
            assert info.type.id == tensor.tensor_type
            assert info.n_bytes == tensor.n_bytes
            assert gguf.data(tensor.name).tobytes() == tensor.data.tobytes()


def test_the_gguf_packages_reader_finds_the_same(example):
    assert_same_as_oracle(example)


@pytest.mark.parametrize("name", ["llama-dense", "gemma3-dense", "gpt-oss-moe", "bloom-dense"])
def test_conformance_models_read_the_same(conformance_model, name):
    assert_same_as_oracle(conformance_model(name))


def test_every_type_of_the_conformance_files_is_known(shared):
    """Whole files by a recent llama.cpp; some types are newer than the gguf package's list."""
    paths = sorted((shared / "conformance" / "quants").glob("*.gguf"))
    assert paths
    for path in paths:
        with open_gguf(path) as gguf:
            assert gguf.tensors["output.weight"].type.name == path.stem
            assert file_type_name(gguf.metadata).startswith(path.stem[:3])


def test_shapes_sizes_and_counts(example):
    with open_gguf(str(example)) as gguf:
        assert gguf.path == example
        assert gguf.version == 3
        assert gguf.architecture == "llama"
        assert {name: info.shape for name, info in gguf.tensors.items()} == {
            "norm.weight": (6,),
            "half.weight": (3, 5),
            "q8.weight": (64, 4),
            "q4.weight": (256, 2),
        }
        assert gguf.n_parameters == 6 + 15 + 256 + 512
        assert gguf.n_bytes == 24 + 30 + 4 * 68 + 2 * 144
        assert gguf.file_size == example.stat().st_size
        assert count_tensor_types(gguf) == {"F32": 1, "F16": 1, "Q8_0": 1, "Q4_K": 1}


def test_tensor_types_are_counted_most_frequent_first(tmp_path):
    def fill(writer: oracle.GGUFWriter) -> None:
        writer.add_tensor("a", np.zeros(4, np.float32))
        writer.add_tensor("b", np.zeros(4, np.float16))
        writer.add_tensor("c", np.zeros(4, np.float16))

    with open_gguf(write(tmp_path / "m.gguf", fill)) as gguf:
        assert list(count_tensor_types(gguf).items()) == [("F16", 2), ("F32", 1)]


def test_metadata_has_types_of_python_and_numpy(example):
    with open_gguf(example) as gguf:
        metadata = gguf.metadata
        assert type(metadata["llama.block_count"]) is int
        assert type(metadata["llama.rope.freq_base"]) is float
        assert metadata["a.yes"] is True
        assert metadata["a.flags"].dtype == np.bool_
        assert metadata["a.ids"].dtype == np.int32
        assert metadata["a.words"] == ["x", "", "ж"]
        with pytest.raises(TypeError):
            metadata["new"] = 1


def test_data_is_a_read_only_view(example):
    with open_gguf(example) as gguf:
        data = gguf.data("q8.weight")
        assert (data.dtype, data.shape) == (np.uint8, (272,))
        assert not data.flags.owndata
        assert not data.flags.writeable
        assert np.shares_memory(data, gguf.data("q8.weight"))
        with pytest.raises(KeyError, match="q9"):
            gguf.data("q9.weight")


def test_views_outlive_the_file(example):
    with open_gguf(example) as gguf:
        data = gguf.data("q4.weight")
        before = data.tobytes()
    assert data.tobytes() == before
    with pytest.raises(ValueError, match=r"example\.gguf is closed"):
        gguf.data("q4.weight")
    gguf.close()  # once more does no harm


def test_nothing_stays_open(example, tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(example.read_bytes()[:-100])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        open_gguf(example).close()
        with pytest.raises(ModelError):
            open_gguf(bad)
    assert len(os.listdir("/proc/self/fd")) == before


def test_getters(example):
    with open_gguf(example) as gguf:
        assert gguf.arch_key("block_count") == "llama.block_count"
        assert gguf.get_int("llama.block_count") == 3
        assert gguf.get_int("a.negative") == -5
        assert gguf.get_int("a.large") == 2**63 + 1
        assert gguf.get_float("llama.rope.freq_base") == 10000.0
        assert gguf.get_float("llama.block_count") == 3.0
        assert gguf.get_str("general.name") == "名前\n2"
        assert gguf.get_bool("a.yes") is True
        assert gguf.get_bool("a.no", True) is False


def test_getters_give_the_default_of_a_missing_key(example):
    with open_gguf(example) as gguf:
        assert gguf.get_int("no.such", 0) == 0
        assert gguf.get_float("no.such", 0.5) == 0.5
        assert gguf.get_str("no.such", "") == ""
        assert gguf.get_bool("no.such", False) is False


@pytest.mark.parametrize("getter", ["get_int", "get_float", "get_str", "get_bool"])
def test_a_missing_key_is_named(example, getter):
    with open_gguf(example) as gguf, pytest.raises(ModelError, match=r"gguf: no\.such is missing"):
        getattr(gguf, getter)("no.such")


@pytest.mark.parametrize(
    ("getter", "key", "message"),
    [
        ("get_int", "llama.rope.freq_base", r"llama\.rope\.freq_base is 10000\.0, not an integer"),
        ("get_int", "a.yes", r"a\.yes is True, not an integer"),
        ("get_int", "general.name", r"general\.name is '名前\\n2', not an integer"),
        ("get_int", "a.ids", r"a\.ids is array\(\[ 1, -2, +3\].*, not an integer"),
        ("get_float", "a.no", r"a\.no is False, not a finite number"),
        ("get_float", "a.nan", r"a\.nan is nan, not a finite number"),
        ("get_str", "a.negative", r"a\.negative is -5, not a string"),
        ("get_str", "a.words", r"a\.words is \['x', '', 'ж'\], not a string"),
        ("get_bool", "llama.block_count", r"llama\.block_count is 3, not true or false"),
    ],
)
def test_a_value_of_another_type_is_shown(example, getter, key, message):
    with open_gguf(example) as gguf, pytest.raises(ModelError, match=message):
        getattr(gguf, getter)(key)


# --- names of files ------------------------------------------------------------------------


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelError, match=r"none\.gguf: no such file"):
        open_gguf(tmp_path / "none.gguf")


def test_a_directory(tmp_path):
    with pytest.raises(ModelError, match=f"{tmp_path}: is a directory"):
        open_gguf(tmp_path)


def test_an_empty_file(tmp_path):
    (tmp_path / "m.gguf").touch()
    with pytest.raises(ModelError, match=r"m\.gguf: the file is empty"):
        open_gguf(tmp_path / "m.gguf")


@pytest.mark.timeout(10)
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match=r"m\.gguf: is not a regular file"):
        open_gguf(tmp_path / "m.gguf")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(example, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(example.read_bytes())
    path.chmod(0)
    with pytest.raises(ModelError, match=r"m\.gguf.*cannot be read: Permission denied"):
        open_gguf(path)


@pytest.mark.parametrize("name", ["a\0b.gguf", "x" * 300, "loop.gguf"])
def test_a_name_that_cannot_be_opened(tmp_path, name):
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    with pytest.raises(ModelError, match="cannot be read: "):
        open_gguf(tmp_path / name)


# --- split models --------------------------------------------------------------------------


def write_part(folder: Path, i: int, count: int = 3, **changes: int) -> Path:
    """Part ``i`` (from 0) with one tensor, t.i = [i, i], named as gguf-split does."""
    facts = {"no": i, "count": count, "tensors.count": count, "tensor": i} | changes

    def fill(writer: oracle.GGUFWriter) -> None:
        writer.add_uint16("split.no", facts["no"])
        writer.add_uint16("split.count", facts["count"])
        writer.add_int32("split.tensors.count", facts["tensors.count"])
        writer.add_tensor(f"t.{facts['tensor']}", np.full(2, i, np.float32))

    return write(folder / f"m-{i + 1:05d}-of-{count:05d}.gguf", fill)


@pytest.fixture
def split(tmp_path) -> list[Path]:
    return [write_part(tmp_path, i) for i in range(3)]


def test_a_split_model_is_one_model(split):
    with open_gguf(split[0]) as gguf:
        assert gguf.path == split[0]
        assert list(gguf.tensors) == ["t.0", "t.1", "t.2"]
        values = [gguf.data(name).view(np.float32).tolist() for name in gguf.tensors]
        assert values == [[0, 0], [1, 1], [2, 2]]
        assert gguf.n_bytes == 24
        assert gguf.n_parameters == 6
        assert gguf.file_size == sum(path.stat().st_size for path in split)


def test_a_missing_part_is_named(split):
    split[1].unlink()
    with pytest.raises(ModelError, match=r"m-00002-of-00003\.gguf: this part .* is missing"):
        open_gguf(split[0])


def test_another_part_says_which_to_give(split):
    with pytest.raises(ModelError, match=r"part 3 of 3 .* give the first one, m-00001-of-00003"):
        open_gguf(split[2])


def test_a_damaged_part_is_named(split):
    split[2].write_bytes(split[2].read_bytes()[:-32])
    with pytest.raises(ModelError, match=r"m-00003-of-00003\.gguf: truncated"):
        open_gguf(split[0])


def test_a_renamed_first_part_cannot_find_the_others(split):
    with pytest.raises(ModelError, match=r"one of 3 parts .* not named \.\.\.-00001-of-00003"):
        open_gguf(split[0].rename(split[0].with_name("model.gguf")))


def test_the_name_gives_another_number_of_parts(split):
    with pytest.raises(ModelError, match=r"one of 3 parts .* not named \.\.\.-00001-of-00003"):
        open_gguf(split[0].rename(split[0].with_name("m-00001-of-00004.gguf")))


def test_the_first_part_by_another_parts_name(split):
    with pytest.raises(ModelError, match=r"first part .*split\.no is 0.* named as part 2"):
        open_gguf(split[0].rename(split[1]))


def test_a_part_in_anothers_place(split):
    split[2].write_bytes(split[1].read_bytes())
    with pytest.raises(ModelError, match=r"m-00003.*split\.no is 1 and split\.count 3, not 2"):
        open_gguf(split[0])


def test_a_part_of_another_split(split):
    write_part(split[0].parent, 1, count=5).rename(split[1])
    with pytest.raises(ModelError, match=r"m-00002.*split\.count 5"):
        open_gguf(split[0])


def test_parts_with_other_numbers_of_tensors(split):
    write_part(split[0].parent, 0, **{"tensors.count": 4})
    with pytest.raises(ModelError, match=r"split\.tensors\.count is 4, but the 3 parts have 3"):
        open_gguf(split[0])


def test_a_tensor_in_two_parts(split):
    write_part(split[0].parent, 2, tensor=0)
    with pytest.raises(ModelError, match=r"m-00003.*tensor 't\.0' is in an earlier part"):
        open_gguf(split[0])


def test_a_count_that_is_no_count(tmp_path):
    path = write(tmp_path / "m.gguf", lambda writer: writer.add_string("split.count", "3"))
    with pytest.raises(ModelError, match=r"split\.count is '3'"):
        open_gguf(path)


def test_one_part_of_one_needs_no_such_name(tmp_path):
    path = write_part(tmp_path, 0, 1).rename(tmp_path / "m.gguf")
    with open_gguf(path) as gguf:
        assert list(gguf.tensors) == ["t.0"]


# --- file types ----------------------------------------------------------------------------


def test_file_type_names_are_those_of_the_gguf_package():
    for kind in oracle.LlamaFileType:
        if kind.name != "GUESSED":
            expected = kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")
            assert file_type_name({"general.file_type": int(kind)}) == expected
            assert file_type_name({"general.file_type": int(kind) | 1024}) == expected


@pytest.mark.parametrize("metadata", [{}, {"general.file_type": 999}, {"general.file_type": "Q4"}])
def test_an_unknown_file_type_has_no_name(metadata):
    assert file_type_name(metadata) == ""


def test_metadata_is_overridden(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", lambda writer: writer.add_uint32("llama.block_count", 2))
    with open_gguf(path) as gguf:
        gguf.override({"llama.block_count": 3, "new.key": 0.5, "general.architecture": "qwen2"})
        assert gguf.get_int("llama.block_count") == 3
        assert (gguf.get_float("new.key"), gguf.architecture) == (0.5, "qwen2")
        with pytest.raises(ModelError, match=r"llama\.block_count is .*3.* \(int\), not '3'"):
            gguf.override({"llama.block_count": "3"})
