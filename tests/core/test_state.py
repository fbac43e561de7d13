"""Checkpoints: what is written is read back, all or nothing, and damage is always told."""

from __future__ import annotations

import errno
import json
import os
import struct

import numpy as np
import pytest

from fflearn.checks import bench, same_bits
from fflearn.errors import CheckpointError
from fflearn.registry import rule
from fflearn.state import Slots, State, check_same_arrays, load, write_atomically


@pytest.fixture
def state() -> State:
    engine, state, batch = bench(lambda: rule("dfa"), "dense 5 relu", dtype="float32")
    engine.step(state, batch)
    state.meta["note"] = {"nested": [1, "two"]}
    return state


def header(blob: bytes) -> dict:
    (n,) = struct.unpack("<Q", blob[:8])
    return json.loads(blob[8 : 8 + n])


def with_header(blob: bytes, head: dict) -> bytes:
    (n,) = struct.unpack("<Q", blob[:8])
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + blob[8 + n :]


# ---- what is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["backprop", "dfa", "fa", "sf[magnitudes=fixed_random]", "ff"])
def test_what_is_saved_is_read_back(name, tmp_path):
    engine, state, batch = bench(lambda: rule(name))
    for _ in range(3):
        engine.step(state, batch)
    state.meta["note"] = {"nested": [1, "two", None, 0.1]}
    state.save(tmp_path / "deep" / "run.safetensors")
    again = load(tmp_path / "deep" / "run.safetensors")
    assert again.arrays().keys() == state.arrays().keys()
    assert same_bits(state, again) is None
    assert (again.step, again.seed, again.meta) == (3, 0, state.meta)
    again.params[0]["W"] = 0  # what was read can be trained on
    assert os.listdir(tmp_path / "deep") == ["run.safetensors"]


def test_paths_of_arrays(state):
    assert set(state.arrays()) == {
        *("params/0/W", "params/0/b", "params/1/W", "params/1/b", "aux/0/B"),
        *(f"opt/{i}/{m}.{n}" for i in "01" for m in "mv" for n in "Wb"),
    }


def test_slots_keep_their_memory_and_show_it_read_only():
    start = np.arange(6.0).reshape(2, 3)
    slots = Slots({"W": start})
    seen, own = slots.readable["W"], slots["W"]
    start[...] = -1
    assert (own == np.arange(6.0).reshape(2, 3)).all()  # a copy of what was given
    slots["W"] = 7
    assert slots["W"] is own and (seen == 7).all()
    with pytest.raises(ValueError, match="read-only"):
        seen[...] = 0
    with pytest.raises(TypeError):
        slots.readable["W"] = own
    assert (list(slots), len(slots)) == (["W"], 1)


def test_a_copy_is_independent_and_restore_is_in_place(state):
    copy, memory = state.copy(), state.params[0]["W"]
    state.params[0]["W"] = 5
    state.step, state.meta["note"] = 9, "changed"
    assert (copy.params[0]["W"] != 5).all() and copy.step == 1
    state.restore(copy)
    assert same_bits(state, copy) is None and state.step == 1
    assert state.params[0]["W"] is memory and state.meta["note"] == {"nested": [1, "two"]}


def test_restoring_another_networks_state_names_the_array(state):
    other = bench(lambda: rule("dfa"), "dense 6 relu", dtype="float32").state
    with pytest.raises(CheckpointError, match=r"float32 \(3, 6\) at aux/0/B, .* float32 \(3, 5\)"):
        state.restore(other)
    wide = bench(lambda: rule("dfa"), "dense 5 relu", dtype="float64").state
    with pytest.raises(CheckpointError, match="has float64"):
        state.restore(wide)
    deep = bench(lambda: rule("dfa"), "dense 5 relu | dense 3", dtype="float32").state
    with pytest.raises(CheckpointError, match="has nothing at aux/1/B"):
        check_same_arrays(deep.arrays(), state.arrays(), "it")


# ---- all or nothing -------------------------------------------------------------------------------


def fails(code: int):
    def call(*args, **named):
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize(("where", "call"), [(os, "fsync"), (os, "replace"), (os, "open")])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    where, call, code, state, tmp_path, monkeypatch
):
    path = tmp_path / "run.safetensors"
    state.save(path)
    before = path.read_bytes()
    state.params[0]["W"] = 5
    with (
        monkeypatch.context() as patched,
        pytest.raises(CheckpointError, match="Nothing was changed"),
    ):
        patched.setattr(where, call, fails(code))
        state.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]
    assert not open_files(tmp_path)


def open_files(folder) -> list[str]:
    """Files in a folder that this process still holds open, where the system can tell."""
    where = "/proc/self/fd"
    if not os.path.isdir(where):
        return []
    held = [
        os.readlink(f"{where}/{n}") for n in os.listdir(where) if os.path.exists(f"{where}/{n}")
    ]
    return [name for name in held if name.startswith(str(folder))]


def test_a_write_that_fails_half_way_leaves_the_old_file(state, tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    state.save(path)
    before, opened = path.read_bytes(), os.fdopen

    def full(handle, mode):
        f = opened(handle, mode, buffering=0)

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                f.close()

            def write(self, blob):
                f.write(blob[: len(blob) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return Full()

    with monkeypatch.context() as patched, pytest.raises(CheckpointError, match="No space left"):
        patched.setattr(os, "fdopen", full)
        state.save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_a_written_file_may_be_read_by_whom_any_new_file_may(tmp_path):
    write_atomically(tmp_path / "written", b"x")
    (tmp_path / "plain").write_bytes(b"x")
    modes = {p.stat().st_mode for p in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_temporary_file_that_is_gone_is_no_second_error(state, tmp_path, monkeypatch):
    def takes_it_away(source, target):
        os.unlink(source)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched, pytest.raises(CheckpointError, match="Nothing was"):
        patched.setattr(os, "replace", takes_it_away)
        state.save(tmp_path / "run.safetensors")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_told(state, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        state.save(tmp_path / "file" / "run.safetensors")


def test_a_new_file_replaces_the_old_one(tmp_path):
    write_atomically(tmp_path / "x", b"old")
    write_atomically(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new" and os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_is_not_saved(value, state, tmp_path):
    state.params[1]["b"][0] = value
    assert state.first_bad() == "params/1/b"
    with pytest.raises(CheckpointError, match="params/1/b is not finite at step 1: not saved"):
        state.save(tmp_path / "run.safetensors")
    assert os.listdir(tmp_path) == []


# ---- damage ---------------------------------------------------------------------------------------


def test_a_truncated_file_is_told_wherever_it_ends(state, tmp_path):
    path = tmp_path / "run.safetensors"
    state.save(path)
    blob = path.read_bytes()
    for n in sorted({*range(64), *range(64, len(blob), 37), len(blob) - 1}):
        path.write_bytes(blob[:n])
        with pytest.raises(CheckpointError):
            load(path)


def test_a_flipped_bit_in_the_header_is_told_or_harmless(state, tmp_path):
    # The format has no checksum: a flip inside a number of an array cannot be seen, and a flip
    # inside a free text of the header only changes that text.  Nothing else may be raised.
    path = tmp_path / "run.safetensors"
    state.save(path)
    blob = path.read_bytes()
    end, told = 8 + struct.unpack("<Q", blob[:8])[0], 0
    for at in range(0, end, 3):
        path.write_bytes(blob[:at] + bytes([blob[at] ^ (1 << at % 8)]) + blob[at + 1 :])
        try:
            again = load(path)
        except CheckpointError:
            told += 1
        else:
            assert all(np.isfinite(a).all() for a in again.arrays().values())
    assert told > end / 3 / 2


def wrong(**change):
    """A file whose header says something else; None takes an entry out."""

    def make(blob: bytes) -> bytes:
        head = header(blob)
        own = json.loads(head["__metadata__"]["fflearn"])
        own = {n: v for n, v in {**own, **change}.items() if v is not None}
        return with_header(blob, {**head, "__metadata__": {"fflearn": json.dumps(own)}})

    return make


def renamed(old: str, new: str):
    def make(blob: bytes) -> bytes:
        head = header(blob)
        head[new] = head.pop(old)
        return with_header(blob, head)

    return make


def nan(blob: bytes) -> bytes:
    return blob[:-4] + np.float32(np.nan).tobytes()


WRONG = {
    "empty": lambda blob: b"",
    "text": lambda blob: b"these are the notes of a meeting, and no checkpoint at all",
    "zip": lambda blob: b"PK\x03\x04" + bytes(100),
    "huge header": lambda blob: struct.pack("<Q", 1 << 62) + blob[8:],
    "header past the end": lambda blob: struct.pack("<Q", len(blob)) + blob[8:],
    "header is a list": lambda blob: struct.pack("<Q", 8) + b"[1, 2]  ",
    "no metadata": lambda blob: with_header(
        blob, {n: v for n, v in header(blob).items() if n != "__metadata__"}
    ),
    "metadata no json": lambda blob: with_header(
        blob, {**header(blob), "__metadata__": {"fflearn": "{"}}
    ),
    "metadata a list": lambda blob: with_header(
        blob, {**header(blob), "__metadata__": {"fflearn": "[1]"}}
    ),
    "no step": wrong(step=None),
    "step a word": wrong(step="many"),
    "no seed": wrong(seed=None),
    "no format": wrong(format=None),
    "newer format": wrong(format=999),
    "no depth": wrong(depth=None),
    "negative depth": wrong(depth=-1),
    "huge depth": wrong(depth=10**9),
    "depth past the limit": wrong(depth=100_000),
    "fewer layers": wrong(depth=1),
    "array of no layer": renamed("params/0/W", "params/7/W"),
    "array of no part": renamed("params/0/W", "weights/0/W"),
    "array without a place": renamed("params/0/W", "W"),
    "not finite": nan,
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_what_is_no_checkpoint_is_told(make, state, tmp_path):
    path = tmp_path / "run.safetensors"
    state.save(path)
    path.write_bytes(make(path.read_bytes()))
    with pytest.raises(CheckpointError, match="run.safetensors"):
        load(path)


def test_an_array_that_is_missing_is_told_when_the_run_takes_it_over(state, tmp_path):
    path = tmp_path / "run.safetensors"
    state.save(path)
    path.write_bytes(renamed("params/0/W", "params/0/V")(path.read_bytes()))
    with pytest.raises(CheckpointError, match="nothing at params/0/W|at params/0/V"):
        state.restore(load(path))


def test_a_missing_file_or_a_folder_is_told(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match="there is no checkpoint"):
            load(path)
