"""FFLEARN_DATA: the user's own files go first, are taken as they are, and are never mixed."""

import gzip
import hashlib
import warnings

import pytest
from data_files import CONTENT, FILES, NAME, fill, source

from fflearn.data import fetch, load
from fflearn.data.official import SOURCES
from fflearn.errors import DataError


def test_a_foreign_checksum_warns_once_and_is_noted(user_folder):
    fill(user_folder / "mnist")
    with pytest.warns(UserWarning) as caught:
        data = load("mnist")
    assert len(caught) == 1 and caught[0].filename == __file__
    assert len(data.notes) == 4
    assert hashlib.md5(CONTENT).hexdigest() in data.notes[0] and NAME in data.notes[0]
    assert data.split_validation().notes[:4] == data.notes


def test_the_official_files_do_not_warn_however_packed(user_folder, server):
    wanted = source(server)
    fill(user_folder / "mnist")
    assert fetch.find(wanted)[1] == ()
    raw = {name: gzip.decompress(content) for name, content in FILES.items()}
    wanted = wanted._replace(
        files=tuple(f._replace(raw_md5=hashlib.md5(raw[f.name]).hexdigest()) for f in wanted.files)
    )
    fill(user_folder / "mnist", {n: gzip.compress(c, 1, mtime=5) for n, c in raw.items()})
    assert fetch.find(wanted)[1] == ()
    for name, content in raw.items():
        (user_folder / "mnist" / name).unlink()
        (user_folder / "mnist" / name.removesuffix(".gz")).write_bytes(content)
    paths, notes = fetch.find(wanted)
    assert notes == () and all(path.suffix == "" for path in paths)


def test_the_users_folder_goes_before_the_cache(user_folder, server):
    fill(user_folder)
    paths, _ = fetch.find(source(server, "good"))
    assert {path.parent for path in paths} == {user_folder} and server.asked == []


@pytest.mark.parametrize("flat", [False, True])
def test_half_a_set_in_the_users_folder_is_not_completed(user_folder, server, flat):
    folder = user_folder if flat else user_folder / "mnist"
    fill(folder, {name: FILES[name] for name in list(FILES)[:3]})
    with pytest.raises(DataError, match="no t10k-labels-idx1-ubyte.gz in"):
        fetch.find(source(server, "good"))
    assert server.asked == []


def test_files_of_another_set_with_the_same_names_are_passed_over(user_folder, server, monkeypatch):
    fill(user_folder)
    mnist = source(server)
    monkeypatch.setitem(SOURCES, "mnist", mnist)
    kmnist = source(server, "forbidden")._replace(name="kmnist")
    with pytest.raises(DataError, match="403"):
        fetch.find(kmnist._replace(files=SOURCES["kmnist"].files))


@pytest.mark.parametrize("value", ["no/such/folder", __file__])
def test_the_variable_must_name_a_folder(monkeypatch, value):
    monkeypatch.setenv("FFLEARN_DATA", value)
    with pytest.raises(DataError, match="FFLEARN_DATA needs to be a folder"):
        load("mnist")


def test_a_damaged_file_of_the_user_is_named_by_the_reader(user_folder):
    fill(user_folder, {**FILES, NAME: CONTENT[:-30]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match="whole gzip data"):
            load("mnist")
