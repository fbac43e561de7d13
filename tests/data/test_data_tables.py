"""CSV files: with and without header, text and number labels, and what is refused."""

import numpy as np
import pytest

from fflearn.data import load
from fflearn.data.tables import load as load_csv
from fflearn.errors import DataError

ROWS = [f"{i},{i * 0.5},{'ab'[i % 2]}" for i in range(10)]


@pytest.fixture
def csv_file(tmp_path):
    def write(text: str | bytes):
        path = tmp_path / "table.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def samples(data):
    """(features, label) of all samples, as a sorted list."""
    x = np.concatenate([data.x_train, data.x_test])
    y = np.concatenate([data.y_train, data.y_test])
    return sorted((*map(float, row), data.classes[label]) for row, label in zip(x, y, strict=True))


EXPECTED = [(float(i), i * 0.5, "ab"[i % 2]) for i in range(10)]
HEADERS = {
    "none": "",
    "named": "height,width,label\n",
    "last is the label": "height,width,species\n",
    "numeric names": "0,1,class\n",
    "byte order mark": "\ufeffheight,width,Target\n",
    "quoted": '"height, in cm",width,y\n',
    "Windows lines": "height,width,label\r\n",
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_reads_with_and_without_header(csv_file, header):
    data = load(csv_file(header + "\n".join(ROWS) + "\n\n"))
    assert samples(data) == EXPECTED
    assert data.name == "table" and data.classes == ("a", "b") and data.in_shape == (2,)
    assert len(data.x_test) == 2 and sorted(data.y_test) == [0, 1]
    assert "stratified fifth" in data.notes[0]


def test_the_label_column_may_be_anywhere(csv_file):
    lines = ["y,a,target,b"] + [f"{i},1.5,{i % 2 + 7},2.5" for i in range(6)]
    data = load(csv_file("\n".join(lines)))
    assert data.in_shape == (3,) and data.classes == ("7", "8")  # "target" goes before "y"
    assert samples(data) == [(float(i), 1.5, 2.5, str(i % 2 + 7)) for i in range(6)]


def test_labels_named_y_and_n_are_no_header(csv_file):
    data = load(csv_file("\n".join(f"{i},{'yn'[i % 2]}" for i in range(8))))
    assert len(samples(data)) == 8 and data.classes == ("n", "y")


def test_number_labels_are_sorted_as_numbers(csv_file):
    data = load(csv_file("\n".join(f"{i},{label}" for i, label in enumerate([10, 9, 9.0, 10] * 3))))
    assert data.classes == ("9", "10")


def test_the_split_is_the_same_each_time(csv_file):
    path = csv_file("\n".join(ROWS))
    assert load(path).sha256 == load(str(path)).sha256


BAD = {
    "empty": ("", "at least one row; got an empty file"),
    "blank lines": ("\n\n\n", "an empty file"),
    "header only": ("a,b,label\n", "a header only"),
    "one column": ("1\n2\n", "one column"),
    "ragged": ("1,2,a\n1,2,3,b\n", "3 cells; got 4 in row 2"),
    "text feature": ("1,2,a\n1,two,b\n", "got 'two' in row 2, column 2 of"),
    "text feature, header": ("u,label,v\n1,a,2\n1,b,big\n", r"row 3, column 3 \(v\)"),
    "text feature in the first row": ("1,two,a\n1,2,b\n", "got 'two' in row 1, column 2"),
    "empty cell": ("1,2,a\n1,,b\n", "got '' in row 2, column 2"),
    "nan": ("1,2,a\nnan,2,b\n", "got 'nan' in row 2, column 1"),
    "infinite": ("1,2,a\n1,1e999,b\n", "got '1e999' in row 2"),
    "beyond float32": ("1,2,a\n1,1e99,b\n", "got '1e99' in row 2"),
    "underscore": ("1,2,a\n1,20_01,b\n", "got '20_01'"),
    "no label": ("1,2,a\n1,2,\n", "row 2"),
    "nan label": ("1,2,0\n1,2,nan\n", "a label in every row"),
    "fractional label": ("1,2,0.5\n1,2,1\n", "whole numbers or text as labels; got 0.5 in row 1"),
    "one class": ("1,2,a\n3,4,a\n", "at least two classes"),
    "every label once": ("1,2,a\n3,4,b\n", "at least two samples"),
    "pandas index": (",u,label\n0,1,a\n1,2,b\n", "index=False"),
    "open quote": ('1,"2,a\n1,2,b\n', "comma-separated text"),
    "not UTF-8": (b"1,2,\xff\xfe\n", "comma-separated text"),
    "NUL": ("1,\0,a\n1,2,b\n", "table.csv"),
    "semicolons": ("1;2;a\n1;2;b\n", "Separate the cells by commas"),
}


@pytest.mark.parametrize("text, message", BAD.values(), ids=BAD.keys())
def test_a_bad_table_is_refused(csv_file, text, message):
    path = csv_file(text)
    with pytest.raises(DataError, match=message) as caught:
        load_csv(path)
    assert "table" in str(caught.value) or "split" in str(caught.value)
