"""Writes kernels/quantization/grids.cl: the codebooks of the IQ1, IQ2 and IQ3 tensor types.

    python scripts/make_grids.py > kernels/quantization/grids.cl

Needs the gguf package (extra ``test``), whose ``gguf.quants`` has them as facts of the format.
"""

from __future__ import annotations

from gguf import quants

HEADER = """\
// Codebooks of the IQ tensor types, by scripts/make_grids.py from the gguf package.
//
// An entry of GRID holds the indices of 8 magnitudes (values of IQ1: -1, 0, 1) of 2 bits each,
// for IQ3 types of 4 magnitudes of 3 bits; the first column in the lowest bits.
"""
NAMES = ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
ALIASES = {"IQ1_S": "defined(TYPE_IQ1_S) || defined(TYPE_IQ1_M)"}
PER_LINE = 13


def entries(name: str) -> list[int]:
    """The codebook as packed indices into the type's list of values."""
    kind = getattr(quants, name)
    kind.init_grid()
    values = {float(value): i for i, value in enumerate(kind.grid_map)}
    bits = 3 if name.startswith("IQ3") else 2
    rows = kind.grid.reshape(kind.grid_shape)
    return [sum(values[float(v)] << (bits * i) for i, v in enumerate(row)) for row in rows]


def array(numbers: list[int]) -> str:
    words = [f"0x{n:04x}," for n in numbers]
    lines = ["    " + "".join(words[i : i + PER_LINE]) for i in range(0, len(words), PER_LINE)]
    return f"constant ushort GRID[{len(numbers)}] = {{\n" + "\n".join(lines) + "\n};"


def main() -> None:
    print(HEADER)
    for i, name in enumerate(NAMES):
        condition = ALIASES.get(name, f"defined(TYPE_{name})")
        print(f"#{'el' * (i > 0)}if {condition}\n{array(entries(name))}")
    print("#endif")


if __name__ == "__main__":
    main()
