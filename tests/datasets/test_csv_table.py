import numpy as np
import pytest

from shotnoise.datasets import load
from shotnoise.errors import DataError, InputError

GOOD = "id, size ,rooms,price \r\na,10,1,5\r\nb,20,2,9\r\n\r\nc,60,2,4"


@pytest.fixture
def write(tmp_path, no_default_folder):
    def write(text, encoding="utf-8"):
        path = tmp_path / "houses.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_raw_values_and_stripped_headers(write, encoding):
    data = load("csv", path=write(GOOD, encoding), target="price", drop=["id"], standardise=False)
    assert data.inputs.tolist() == [[10, 1], [20, 2], [60, 2]] and data.targets.tolist() == [[5], [9], [4]]
    assert data.feature_names == ("size", "rooms") and (data.name, data.task) == ("houses", "regression")


def test_standardised_by_default(write):
    data = load("csv", path=write(GOOD), target=" price", drop="id")
    np.testing.assert_allclose(data.inputs[:, 0], (np.array([10, 20, 60]) - 30) / np.std([10, 20, 60]), rtol=1e-6)
    np.testing.assert_allclose(data.targets[:, 0], (np.array([5, 9, 4]) - 6) / np.std([5, 9, 4]), rtol=1e-6)


def test_quoted_cells_and_exponents(write):
    data = load("csv", path=write('"a, b",y\n"1e3",-2\n" 5 ",.5\n'), target="y", standardise=False)
    assert data.inputs.tolist() == [[1000], [5]] and data.feature_names == ("a, b",)


def test_path_inside_the_data_folder(write, monkeypatch):
    path = write(GOOD)
    options = {"path": "houses.csv", "target": "price", "drop": ["id"]}
    assert len(load("csv", data_dir=path.parent, **options)) == 3
    monkeypatch.setenv("SHOTNOISE_DATA", str(path.parent))
    assert len(load("csv", **options)) == 3


def test_missing_file_names_every_place(tmp_path, no_default_folder):
    with pytest.raises(DataError, match=rf"no file 'absent\.csv' nor '{tmp_path}/absent\.csv'.*--data-dir"):
        load("csv", data_dir=tmp_path, path="absent.csv", target="y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; expected a header line"),
        ("x,y\n", "has a header but no rows"),
        ("1,2\n3,4\n", r"the first line holds only numbers \(1, 2\); expected column names"),
        ("x,y,x\n1,2,3\n", "the column 'x' more than once"),
        ("x,y\n1,2\n3\n", "line 3: 1 cells, but the header has 2 columns"),
        ("x,y\n1,2\n3,4,5\n", "line 3: 3 cells, but the header has 2 columns"),
        ("x,y\n1,2\n\n3,four\n", "line 4, column 'y': 'four' is not a number"),
        ("x,y\n1,2\n1_000,2\n", "line 3, column 'x': '1_000' is not a number"),
        ("x,y\n1,2\n ,4\n", "line 3, column 'x': the value is missing"),
        ("x,y\n1,2\n3,NA\n", r"line 3, column 'y': the value is missing \('NA'\)"),
        ("x,y\n1,2\nNaN,1\n", "line 3, column 'x': the value is missing"),
        ("x,y\n1,2\n3,-inf\n", "line 3, column 'y': '-inf' is infinite or beyond single precision"),
        ("x,y\n1,2\n1e39,1\n", "column 'x': '1e39' is infinite or beyond single precision"),
        ("x,y\n1,2\n1,3\n", "column 'x' has the same value in all 2 rows"),
    ],
)
def test_unusable_tables(write, text, message):
    with pytest.raises(DataError, match=message) as caught:
        load("csv", path=write(text), target="y")
    assert "houses.csv" in str(caught.value)


def test_file_in_another_encoding(write):
    with pytest.raises(DataError, match="cannot be read as a CSV file in UTF-8"):
        load("csv", path=write("größe,y\n1,2\n", "latin-1"), target="y")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "prize"}, "no column 'prize'; its columns are 'id', 'size', 'rooms', 'price'"),
        ({"target": "price", "drop": ["nr", "id"]}, "no column 'nr'; its columns are"),
        ({"target": "price", "drop": ["price"]}, "nothing to learn"),
        ({"target": "price", "drop": ["id", "size", "rooms"]}, "nothing to learn"),
    ],
)
def test_columns_that_are_not_there(write, options, message):
    with pytest.raises(InputError, match=message):
        load("csv", path=write(GOOD), **options)


def test_graduate_admission(real_data):
    data = load(
        "csv",
        data_dir=real_data,
        path="graduate_admission/Admission_Predict_Ver1.1.csv",
        target="Chance of Admit",
        drop=["Serial No."],
    )
    assert data.inputs.shape == (500, 7) and data.feature_names[4] == "LOR"
    correlation = np.linalg.eigvalsh(np.corrcoef(data.inputs.double().numpy().T))
    expected = [0.1479, 0.1783, 0.2637, 0.3804, 0.5616, 0.7418, 4.7264]
    np.testing.assert_allclose(correlation, expected, atol=1e-4)
