"""Graphs: the parts, the matrices, both kinds of files, and what a pickle may hold."""

from __future__ import annotations

import pickle
from collections import defaultdict

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from fflearn.data import GraphData, load, planetoid
from fflearn.data.graphs import operators
from fflearn.errors import DataError

EDGES = np.array([[0, 1], [1, 0], [1, 2], [1, 2], [2, 2]])


def small(**changes):
    given = {
        "name": "small",
        "x": np.eye(6, 4) + 1,
        "y": np.array([0, 1, 0, 1, -1, 0]),
        "edges": EDGES,
        "train": np.array([0, 1]),
        "validation": np.array([2]),
        "test": np.array([3, 5]),
        "n_classes": 2,
    }
    return GraphData(**{**given, **changes})


# ---- the matrices ---------------------------------------------------------------------------------


def test_operators_by_hand():
    side = operators(EDGES, 4)
    r = 1 / np.sqrt(6)  # degrees with the node itself: 2, 3, 2, 1
    expected = [[1 / 2, r, 0, 0], [r, 1 / 3, r, 0], [0, r, 1 / 2, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(side["adjacency"].toarray(), expected, rtol=1e-15)
    expected = [[0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(side["neighbours"].toarray(), expected)
    assert all(m.format == "csr" and m.dtype == np.float64 for m in side.values())


def test_directions_and_repetitions_do_not_count():
    rng = np.random.default_rng(0)
    edges = rng.integers(20, size=(60, 2))
    again = np.concatenate([edges[::-1, ::-1], edges[:30]])
    for name, mix in operators(edges, 20).items():
        assert (mix.toarray() == operators(again, 20)[name].toarray()).all()
    a = operators(edges, 20)["adjacency"].toarray()
    assert (a == a.T).all()
    # The largest eigenvalue of the normalised adjacency with self-loops is 1.
    assert np.linalg.eigvalsh(a).max() == pytest.approx(1)


def test_a_graph_without_edges_mixes_nothing():
    side = operators(np.zeros((0, 2), np.int64), 3)
    assert (side["adjacency"].toarray() == np.eye(3)).all() and side["neighbours"].nnz == 0


# ---- the data -------------------------------------------------------------------------------------


def test_a_batch_is_the_graph_and_shows_training_labels_alone():
    data = small()
    batches = data.batches(32, seed=5)
    assert batches.steps_per_epoch == 1 and batches.batch_size == 6
    batch = batches.batch(7)
    assert (batch.x == data.x).all() and batch.x.dtype == np.float32
    assert batch.y.tolist() == [[1, 0], [0, 1], *[[0, 0]] * 4]
    assert batch.weight.tolist() == [1, 1, 0, 0, 0, 0]
    assert set(batch.side) == {"adjacency", "neighbours"} and batch.side is data.side
    with pytest.raises(DataError, match="step of 0 or more; got -1"):
        batches.batch(-1)


def test_score_looks_at_each_part_alone():
    data = small()
    seen = []

    def predict(x, side=None):
        seen.append((x, side))
        scores = np.zeros((6, 2))
        scores[[0, 1, 2, 3, 5], [1, 0, 0, 1, 1]] = 1  # right at 2 and 3, wrong at 5
        return scores

    # Right at 3, of class 1; wrong at 5, of class 0 and called 1: recalls 1 and 0, F1 2/3 and 0.
    found = data.score(predict)
    assert found == {
        "accuracy": 0.5,
        "balanced_accuracy": 0.5,
        "f1": pytest.approx(1 / 3),
        "validation_accuracy": 1.0,
    }
    assert next(iter(found)) == "accuracy" == data.measures[0]
    assert seen[0][0] is data.x and seen[0][1] is data.side
    assert (data.test_n, data.n_train, data.in_shape) == (2, 2, (4,))
    assert "2 train, 1 validation, 2 test" in repr(data)


def test_validation_is_the_part_for_it_and_then_a_cut_of_training():
    data = small()
    inner = data.split_validation()
    assert inner.test.tolist() == [2] and not len(inner.validation)
    assert inner.train.tolist() == [0, 1] and inner.name == "small-validation"
    assert "validation part of small" in inner.notes[-1] and inner.sha256 != data.sha256
    wide = small(
        x=np.ones((40, 2)),
        y=np.arange(40) % 2,
        train=np.arange(30),
        validation=np.array([], int),
        test=np.arange(30, 40),
    )
    cut = wide.split_validation()
    assert len(cut.test) == 4 and len(cut.train) == 26  # round(1.5) of each class
    assert sorted([*cut.train, *cut.test]) == list(range(30))
    assert (cut.split_validation().test == wide.split_validation().split_validation().test).all()
    found = wide.score(lambda x, side=None: np.eye(2)[np.zeros(40, int)])
    assert set(found) == {"accuracy", "balanced_accuracy", "f1"}


def test_the_digest_tells_graphs_apart():
    changed = [
        small(),
        small(edges=EDGES[:3]),
        small(y=np.array([0, 1, 1, 1, -1, 0])),
        small(x=np.ones((6, 4))),
        small(train=np.array([0]), validation=np.array([1, 2])),
    ]
    assert len({d.sha256 for d in changed}) == 5 and small().sha256 == changed[0].sha256


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"y": np.array([0, 1, 0, 2, -1, 0])}, "one label below 2 per node"),
        ({"y": np.zeros(5)}, "one label below 2 per node"),
        ({"edges": np.array([[0, 6]])}, "pairs of nodes 0 .. 5"),
        ({"edges": np.array([[-1, 0]])}, "pairs of nodes 0 .. 5"),
        ({"edges": np.array([0, 1])}, "pairs of nodes"),
        ({"test": np.array([1, 3])}, "disjoint parts"),
        ({"test": np.array([6])}, "disjoint parts"),
        ({"test": np.array([3, 4])}, "a training and a test part of labelled nodes"),
        ({"test": np.array([], int)}, "a training and a test part"),
        ({"x": np.full((6, 4), np.nan)}, "finite"),
    ],
)
def test_parts_that_do_not_fit_are_told(changes, told):
    with pytest.raises(DataError, match=told):
        small(**changes)


# ---- files ----------------------------------------------------------------------------------------

N, F, C, TRAIN = 40, 7, 3, 6


def made():
    """A graph in the order of the Planetoid files: training, others, test (two left out)."""
    rng = np.random.default_rng(0)
    x = (rng.uniform(size=(N, F)) < 0.4).astype(np.float32)
    y = np.arange(N) % C
    missing = [32, 35]  # nodes in the range of the test part that no file has
    x[missing], y[missing], x[3] = 0, -1, 0
    edges = np.array([(i, j) for i in range(N) for j in rng.integers(N, size=2)])
    test = np.array([i for i in range(30, N) if i not in missing])
    return x, y, edges, test


def write_arrays(folder, base="cora"):
    x, y, edges, test = made()
    m = csr_matrix(x)
    arrays = {"x_data": m.data, "x_indices": m.indices, "x_indptr": m.indptr, "x_shape": m.shape}
    parts = {"train": np.arange(TRAIN), "val": np.arange(TRAIN, 30), "test": test}
    np.savez(folder / f"{base}.npz", **arrays, y=y, edges=edges, **parts)


def write_planetoid(folder, base="cora", protocol=2):
    x, y, edges, test = made()
    order = np.random.default_rng(1).permutation(test)
    one_hot = np.where(y[:, None] >= 0, np.eye(C)[y], 0).astype(np.int32)
    graph = defaultdict(list)
    for i, j in edges.tolist():
        graph[i].append(j)
    pieces = {
        "x": csr_matrix(x[:TRAIN]),
        "tx": csr_matrix(x[order]),
        "allx": csr_matrix(x[:30]),
        "y": one_hot[:TRAIN],
        "ty": one_hot[order],
        "ally": one_hot[:30],
        "graph": graph,
    }
    for name, value in pieces.items():
        (folder / f"ind.{base}.{name}").write_bytes(pickle.dumps(value, protocol))
    text = "".join(f"{i}\n" for i in order)
    (folder / f"ind.{base}.test.index").write_text(text)


@pytest.fixture
def folder(user_folder):
    (user_folder / "cora").mkdir()
    return user_folder / "cora"


def test_one_file_of_arrays(folder):
    write_arrays(folder)
    data, (x, y, _, test) = load("cora"), made()
    total = x.sum(1, keepdims=True)
    np.testing.assert_allclose(data.x, np.where(total, x / np.maximum(total, 1), 0), rtol=1e-6)
    np.testing.assert_allclose(data.x.sum(1)[total[:, 0] > 0], 1, rtol=1e-6)
    assert (data.y == y).all() and data.n_classes == C and data.name == "cora"
    assert data.train.tolist() == list(range(TRAIN)) and (data.test == test).all()
    assert load(data) is data


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_the_official_files_hold_the_same_graph(folder, protocol):
    write_arrays(folder)
    first = load("cora")
    (folder / "cora.npz").unlink()
    write_planetoid(folder, protocol=protocol)
    second = load("cora")
    assert (first.x == second.x).all() and (first.y == second.y).all()
    assert (first.train == second.train).all() and (first.test == second.test).all()
    assert (first.validation == second.validation).all()
    for name, mix in first.side.items():
        assert (mix.toarray() == second.side[name].toarray()).all()


def test_the_random_split_is_stratified_and_always_the_same(folder):
    write_arrays(folder)
    data, again = load("cora-64-16-20"), load("cora-64-16-20")
    assert data.sha256 == again.sha256 and data.sha256 != load("cora").sha256
    used = np.concatenate([data.train, data.validation, data.test])
    assert sorted(used.tolist()) == np.flatnonzero(made()[1] >= 0).tolist()
    sizes = [np.bincount(data.y[part], minlength=C) for part in (data.train, data.test)]
    assert (sizes[1] == np.floor(np.bincount(data.y[used]) * 0.2 + 0.5)).all()
    assert (sizes[0] >= 7).all()


def test_files_that_are_missing_are_listed(user_folder):
    for name in planetoid.NAMES:
        base = name.removesuffix("-64-16-20")
        with pytest.raises(DataError, match="they are not downloaded") as caught:
            load(name)
        assert f"ind.{base}.allx" in str(caught.value) and f"{base}.npz" in str(caught.value)
        assert "x_indptr" in str(caught.value) and "FFLEARN_DATA" in str(caught.value)


class Evil:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize("evil", [Evil(), np.array([Evil()], object), {"a": Evil()}, Exception])
def test_a_pickle_of_anything_else_is_refused(folder, evil, capsys):
    write_planetoid(folder)
    (folder / "ind.cora.graph").write_bytes(pickle.dumps(evil))
    with pytest.raises(DataError, match="does not belong in a data file"):
        load("cora")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("piece", ["x", "graph", "test.index"])
def test_damaged_files_are_told(folder, piece):
    write_planetoid(folder)
    path = folder / f"ind.cora.{piece}"
    path.write_bytes(path.read_bytes()[:-9] + b"zz")
    with pytest.raises(DataError, match="cora needs whole files"):
        load("cora")


def test_an_archive_without_an_array_is_told(folder):
    np.savez(folder / "cora.npz", x_data=np.zeros(3))
    with pytest.raises(DataError, match="x_indices"):
        load("cora")
