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
