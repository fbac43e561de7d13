"""Downloads: the cache, and mirrors that misbehave (on loopback)."""

import builtins
import hashlib
import multiprocessing
import os

import numpy as np
import pytest
from data_files import CONTENT, FILES, NAME, idx_bytes, source

from fflearn.data import fetch, idx, load
from fflearn.data.official import SOURCES
from fflearn.errors import DataError, MissingExtra

ONE = {NAME: CONTENT}
BROKEN = [
    *("wrong_bytes", "web_page", "promises_more", "promises_less", "truncates", "forbidden"),
    *("nonsense_length", "no_answer", "stalls", "not_http"),
]


def listing(folder) -> dict[str, bytes]:
    """Every file under a folder, hidden ones too."""
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("behaviour", BROKEN)
def test_a_broken_mirror_is_followed_by_the_next(server, cache, behaviour):
    (path,), notes = fetch.find(source(server, behaviour, "good", files=ONE))
    assert path == cache / "mnist" / NAME and notes == ()
    assert server.asked == [behaviour, "good"]
    assert listing(cache) == ONE


@pytest.mark.parametrize("behaviour", BROKEN)
def test_only_broken_mirrors_leave_nothing_and_say_what_is_needed(server, cache, behaviour):
    wanted = source(server, behaviour, "forbidden")
    with pytest.raises(DataError) as caught:
        fetch.find(wanted)
    message = str(caught.value)
    for official in wanted.files:
        assert official.name in message and official.md5 in message
        for mirror in wanted.mirrors:
            assert mirror + official.name in message
    assert "FFLEARN_DATA" in message and "403" in message
    assert listing(cache) == {}


@pytest.mark.parametrize("behaviour", BROKEN)
def test_a_failed_download_leaves_the_old_file(server, cache, behaviour):
    (cache / "mnist").mkdir(parents=True)
    (cache / "mnist" / NAME).write_bytes(b"older version")
    with pytest.raises(DataError):
        fetch.find(source(server, behaviour, files=ONE))
    assert listing(cache) == {NAME: b"older version"}
    fetch.find(source(server, "good", files=ONE))
    assert listing(cache) == ONE


def test_a_refused_connection_is_a_failed_mirror(server, cache):
    wanted = source(server, "good", files=ONE)
    fetch.find(wanted._replace(mirrors=("http://127.0.0.1:1/", *wanted.mirrors)))
    assert listing(cache) == ONE


def test_a_server_must_not_unpack_the_file_on_the_way(server, cache):
    fetch.find(source(server, "packs_again", files=ONE))
    assert listing(cache) == ONE


def test_the_mirror_that_worked_is_asked_first_from_then_on(server, cache):
    fetch.find(source(server, "forbidden", "good"))
    assert server.asked == ["forbidden", "good", "good", "good", "good"]


def test_the_cache_is_used_again(server, cache):
    first, _ = fetch.find(source(server, "good"))
    again, _ = fetch.find(source(server, "forbidden"))
    assert first == again and server.asked == ["good"] * 4
    # world-readable as far as the user's umask allows: temporary files often are not
    assert first[0].stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_damaged_file_in_the_cache_is_downloaded_again(server, cache):
    (path,), _ = fetch.find(source(server, "good", files=ONE))
    path.write_bytes(CONTENT[:-5])
    fetch.find(source(server, "good", files=ONE))
    assert path.read_bytes() == CONTENT


def test_an_interrupt_leaves_nothing(server, cache, monkeypatch):
    def interrupt(url, path, name):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "_get", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch.find(source(server, "good"))
    assert listing(cache) == {}


def test_no_download_on_request(server, cache):
    with pytest.raises(DataError, match="download=False"):
        fetch.find(source(server, "good"), download=False)
    with pytest.raises(DataError, match="f68b3c2dcbeaaa9fbdd348bbdeb94873"):
        load("mnist", download=False)
    assert server.asked == [] and not cache.exists()


def test_a_cache_that_cannot_be_written(server, cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match="FFLEARN_CACHE"):
        fetch.find(source(server, "good"))
    assert server.asked == []


def test_without_pooch_the_extra_is_named(server, cache, monkeypatch):
    real = builtins.__import__

    def no_pooch(name, *args, **kwargs):
        if name == "pooch":
            raise ImportError("no module named pooch")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_pooch)
    with pytest.raises(MissingExtra, match=r'pip install "fflearn\[data\]"'):
        fetch.find(source(server, "good"))
    assert listing(cache) == {}


def _find_in_process(wanted, barrier, results):
    barrier.wait()
    paths, _ = fetch.find(wanted)
    results.put([hashlib.md5(path.read_bytes()).hexdigest() for path in paths])


def test_two_processes_at_once(server, cache, monkeypatch):
    wanted = source(server, "good")
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    workers = [
        context.Process(target=_find_in_process, args=(wanted, barrier, results)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    expected = [official.md5 for official in wanted.files]
    assert [results.get(timeout=60) for _ in workers] == [expected, expected]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert listing(cache) == FILES


def test_a_downloaded_set_is_read(server, cache, monkeypatch):
    monkeypatch.setitem(SOURCES, "mnist", source(server, "good"))
    data = load("mnist")
    assert data.notes == () and len(data.x_train) == 30
    np.testing.assert_array_equal(data.y_test, np.arange(10))
    assert (
        idx.read(cache / "mnist" / NAME, 3).tobytes()
        == idx_bytes((data.x_train[..., 0] * 255).round())[16:]
    )


@pytest.mark.parametrize(
    "environment, folder",
    [
        ({"FFLEARN_CACHE": "/a/b"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/fflearn"),
        ({"HOME": "/home/me", "USERPROFILE": "/home/me"}, "/home/me/.cache/fflearn"),
    ],
)
def test_where_the_cache_is(monkeypatch, environment, folder):
    for name in ("FFLEARN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert fetch.cache_folder().as_posix() == folder


def test_the_table_of_official_files():
    sums = [d for s in SOURCES.values() for f in s.files for d in (f.md5, f.raw_md5) if d]
    assert len(sums) == len(set(sums)) == 22
    assert all(len(d) == 32 and int(d, 16) for d in sums)
    for name, official in SOURCES.items():
        assert official.name == name and len(official.classes) in (0, 10)  # text: its characters
        assert all(m.startswith("http") and m.endswith("/") for m in official.mirrors)
        assert len(official.mirrors) >= (1 if name == "shakespeare" else 2)  # one is known
