"""load: names, paths and arrays; the digits."""

import subprocess
import sys

import numpy as np
import pytest

from fflearn.data import DataSet, load, load_data, names
from fflearn.errors import DataError


@pytest.mark.parametrize(
    "spec, hint",
    [
        ("mnits", '"mnist"'),
        ("Fashion_MNIST", '"fashion-mnist"'),
        ("cifar-10", '"cifar10"'),
        ("zzz", '"digits"'),
        ("", '"digits"'),
        ("table.xlsx", ".csv or .npz"),
    ],
)
def test_an_unknown_name_names_the_nearest(spec, hint):
    with pytest.raises(DataError, match=r"digits, mnist, fashion-mnist, kmnist, cifar10") as caught:
        load(spec)
    assert hint in str(caught.value) and repr(spec) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere.csv"):
        load(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("spec", [None, 3, [1, 2], np.zeros(3)])
def test_other_types_are_refused(spec):
    with pytest.raises(DataError, match="a name, a path or a tuple"):
        load(spec)


def test_a_data_set_is_returned_as_it_is():
    data = load("digits")
    assert load(data) is data and load_data is load and "digits" in names()


def test_digits():
    data = load("digits")
    assert data.in_shape == (8, 8, 1) and data.n_classes == 10
    assert len(data.x_train) + len(data.x_test) == 1797
    assert data.x_train.min() == 0 and data.x_train.max() == 1
    # sixteenths, so that float32 holds them exactly
    assert (data.x_train * 16 == np.round(data.x_train * 16)).all()
    sizes = np.bincount(np.concatenate([data.y_train, data.y_test]))
    np.testing.assert_array_equal(np.bincount(data.y_test), np.floor(sizes * 0.2 + 0.5))
    # A change here changes every published figure on digits: it belongs in the CHANGELOG.
    assert data.sha256 == "f3415b294ced6ecfa666b88f0c175e49aa5099d44f2edd185c161d3d00f95bb8"


def test_importing_the_data_package_does_not_import_the_heavy_ones():
    code = (
        "import sys, fflearn.data; "
        "print([m for m in ('sklearn', 'pooch', 'tqdm', 'torch') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_top_level_offers_it():
    import fflearn

    assert fflearn.load_data is load and fflearn.DataSet is DataSet


# ---- lengths --------------------------------------------------------------------------------------


def test_sequences_come_at_the_length_after_the_colon(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("to be or not to be " * 8)  # too short for the default of 128
    story = load(f"{path}:10")
    assert (story.in_shape, story.name) == ((10,), "story:10")
    assert load(f"{path}:11").sha256 != story.sha256
    assert load("adding:7").in_shape == (7, 2) and load("adding:7").name == "adding:7"
    assert load("copy:3").in_shape == (2 * 5 + 3, 10) and load("copy:3").delay == 3
    with pytest.raises(DataError, match="more than length = 128 characters"):
        load(path)


def test_shakespeare_comes_at_a_length(tmp_path, monkeypatch):
    monkeypatch.setenv("FFLEARN_DATA", str(tmp_path))
    (tmp_path / "input.txt").write_text("to be or not to be " * 100)
    with pytest.warns(UserWarning, match="shakespeare"):
        found = load("shakespeare:64", download=False)
    assert found.in_shape == (64,) and found.name == "shakespeare:64"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("digits:8", "only shakespeare, adding, copy and .txt files take a length.* Type digits"),
        ("table.csv:8", r"got 'table.csv' with 8"),
        ("adding:1", "length of 2 or more; got 1"),
        ("nowhere.txt:64", "existing file; got 'nowhere.txt'"),
        ("shakespeare:long", "sequences as shakespeare:64.*got 'shakespeare:long'"),
        ("copy:", "got 'copy:'"),
    ],
)
def test_a_wrong_length_is_told(spec, told):
    with pytest.raises(DataError, match=told):
        load(spec)
