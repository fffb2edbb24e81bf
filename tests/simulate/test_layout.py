"""Every run belongs to exactly one piece, and what cannot be laid out is refused with a reason."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shotnoise.errors import InputError
from shotnoise.simulate.layout import Field, Layout

FIELDS = {
    "loss": Field(("step",), "float32", "run"),
    "stopped": Field((), "int32", "run"),
    "spread": Field(("step", "quantile"), "float64", "block"),
}
COORDINATES = {"step": [0, 10, 100], "quantile": [0.1, 0.9]}


def make(cells=None, runs=7, block=3, coordinates=COORDINATES, fields=FIELDS):
    return Layout({"batch_size": [5, 50]} if cells is None else cells, runs, block, coordinates, fields)


@st.composite
def layouts(draw):
    sizes = draw(st.lists(st.integers(1, 4), max_size=3))
    cells = {f"dim{i}": list(range(size)) for i, size in enumerate(sizes)}
    return make(cells, draw(st.integers(1, 25)), draw(st.integers(1, 30)))


@given(layouts())
def test_every_run_of_every_cell_is_in_one_piece(layout):
    times = {name: np.zeros(layout.shape(name), int) for name in FIELDS}
    for index in range(layout.pieces):
        piece = layout.piece(index)
        assert piece.index == index == layout.piece_at([*piece.cell.values(), piece.block_index])
        for name in FIELDS:
            times[name][layout.region(name, piece)] += 1
            assert times[name][layout.region(name, piece)].shape == layout.piece_shape(name, piece)
    assert all((count == 1).all() for count in times.values())
    with pytest.raises(InputError, match=f"no piece {layout.pieces}: this layout has the pieces 0 to"):
        layout.piece(layout.pieces)


@given(layouts())
def test_a_piece_is_one_chunk(layout):
    for name in FIELDS:
        shape, chunk = layout.shape(name), layout.chunk_shape(name)
        assert math.prod(math.ceil(n / c) for n, c in zip(shape, chunk, strict=True)) == layout.pieces
        for index in range(layout.pieces):
            region = layout.region(name, layout.piece(index))
            starts = [part.start or 0 if isinstance(part, slice) else part for part in region]
            assert all(start % size == 0 for start, size in zip(starts, chunk, strict=True))


@given(layouts(), st.integers(1, 9))
def test_shards_share_the_pieces(layout, count):
    shards = [layout.shard(index, count) for index in range(count)]
    assert sorted(piece for shard in shards for piece in shard) == list(range(layout.pieces))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    with pytest.raises(InputError, match=f"no shard {count} of {count}; shards are numbered 0 to {count - 1}"):
        layout.shard(count, count)


@given(layouts())
def test_json_and_back(layout):
    again = Layout.from_json(layout.to_json())
    assert again == layout and again.to_json() == layout.to_json()


def test_pieces_go_cell_by_cell():
    layout = make({"rule": ["sgd", "adam"], "batch_size": [1, 2]}, runs=5, block=2)
    assert (layout.pieces, layout.blocks, layout.grid) == (12, 3, (2, 2, 3))
    found = [layout.piece(index) for index in range(12)]
    assert [tuple(piece.cell.values()) for piece in found[::3]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [(piece.start, piece.stop) for piece in found[:3]] == [(0, 2), (2, 4), (4, 5)]
    assert layout.cell_values(found[-1]) == {"rule": "adam", "batch_size": 2}
    assert layout.dims("spread") == ("rule", "batch_size", "block", "step", "quantile")
    assert layout.shard(1, 5) == [1, 6, 11]


def test_bytes_before_compression():
    assert make().nbytes == 2 * 7 * 3 * 4 + 2 * 7 * 4 + 2 * 3 * 3 * 2 * 8


def test_values_become_plain():
    layout = make(
        {"learning_rate": np.array([0.1, 0.2])}, runs=np.int64(3), coordinates=COORDINATES | {"step": range(4)}
    )
    assert layout.cells == {"learning_rate": (0.1, 0.2)} and type(layout.cells["learning_rate"][0]) is float
    assert layout.coordinates["step"] == (0, 1, 2, 3) and type(layout.runs) is int


WRONG = [
    ({"runs": 0}, "runs is 0; expected a whole number, at least 1"),
    ({"block": 2.0}, "block is 2.0; expected a whole number"),
    ({"block": True}, "block is True"),
    ({"cells": {"batch_size": []}}, r"batch_size is \[\]; expected at least one value"),
    ({"cells": {"batch_size": [5, "all"]}}, "all finite numbers or all text"),
    ({"cells": {"rate": [math.nan]}}, "all finite numbers or all text"),
    ({"cells": {"rule": "sgd"}}, r"rule is the text 'sgd'; expected a sequence of values, such as \['sgd'\]"),
    ({"cells": {"batch_size": [5, 5.0]}}, "batch_size has the value 5 more than once"),
    ({"cells": {"run": [1]}}, "'run' cannot name a dimension or field"),
    ({"cells": {"a/b": [1]}}, "'a/b' cannot name a dimension or field; take letters"),
    ({"cells": {"step": [1]}}, "'step' names 2 dimensions or fields"),
    ({"fields": {}}, "name at least one field"),
    ({"fields": {"manifest": Field((), "int32", "run")}}, "'manifest' cannot name"),
    (
        {"fields": {"a": Field(("parameter",), "int32", "run")}},
        r"a has the dimensions .* coordinates \(step, quantile\)",
    ),
    ({"fields": {"a": Field(("step", "step"), "int32", "run")}}, "expected different ones"),
    ({"fields": {"a": Field((), "float16", "run")}}, "a has dtype 'float16'; expected one of float32, float64, int32"),
    ({"fields": {"a": Field((), "int32", "cell")}}, 'a is per \'cell\'; expected "run" or "block"'),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_what_cannot_be_laid_out(change, message):
    with pytest.raises(InputError, match=message):
        make(**change)
