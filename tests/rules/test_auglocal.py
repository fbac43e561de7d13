"""AugLocal: which copies, two ways in which it is backprop, autograd of each unit's loss, wrong use."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy.sparse import csr_array

from fflearn.base import Batch, Env
from fflearn.checks import bench, learned, same_bits
from fflearn.data import load as load_data
from fflearn.engine import Engine
from fflearn.errors import ShapeError, SpecError
from fflearn.layers.block import Block
from fflearn.networks import network
from fflearn.optim import optimizer
from fflearn.registry import rule
from fflearn.units import in_units

ALL = {"depth": 99, "decay": 0.0}  # every head has a copy of all that is left of the network
BLOCK = (
    "block(residual(layer_norm | attention 2) | "
    "residual(layer_norm | dense 9 gelu places=1 | dense 8 places=1))"
)
RESIDUALS = (
    "conv 4 bias=false | batch_norm relu | "
    "residual(conv 4 bias=false | batch_norm relu | conv 4 bias=false | batch_norm) | act relu | "
    "residual(conv 6 stride=2 bias=false | batch_norm relu | conv 6 bias=false | batch_norm; "
    "conv 6 kernel=1 stride=2 bias=false | batch_norm) | act relu | "
    "residual(conv 6 tanh) | avg_pool | dense 3"
)
NETS = {
    "dense": ("dense 7 tanh | dense 6 relu | dense 5 tanh | dense 3", (4,)),
    "residual": (RESIDUALS, (6, 6, 2)),
    "text": (f"embed 11 8 | position | {BLOCK} | {BLOCK} | layer_norm | dense 3 places=1", (5,)),
    "graph": ("graph_conv 7 tanh | sage 6 relu | graph_conv 5 tanh | dense 3", (4,)),
    "recurrent": ("gru 5 last=false | rnn 4 last=false | lstm 4 | dense 3", (6, 2)),
}


def samples(name, rows=4, seed=0):
    """A batch for one of NETS; for text an error per place, and ids."""
    rng, shape = np.random.default_rng(seed), NETS[name][1]
    x = rng.integers(11, size=(rows, *shape)) if name == "text" else rng.normal(size=(rows, *shape))
    y = rng.integers(3, size=(rows, *shape)) if name == "text" else np.eye(3)[np.arange(rows) % 3]
    side = {}
    if name == "graph":
        mix = csr_array(rng.uniform(size=(rows, rows)) * (rng.uniform(size=(rows, rows)) < 0.6))
        side = {"adjacency": mix, "neighbours": mix}
    return Batch(x.astype(float), y, side)


def engine_on(net, in_shape, name="auglocal", objective="softmax_cross_entropy", **settings):
    return Engine(
        net,
        rule(name, **settings),
        in_shape,
        3,
        optimizer=optimizer("adam", lr=0.01),
        objective=objective,
        backend="reference",
        dtype="float64",
    )


def gradients(engine, state, batch):
    found = learned(engine, engine.updates(state, batch))
    return {path.replace("/grads", ""): g for path, g in found}


def far(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# ---- which copies -------------------------------------------------------------------------------


def test_depths_and_copies_by_hand():
    r = rule("auglocal", depth=3)
    # round(3 (1 - r) + r), r = m / 28: 3 down to the tie 2.5 at m = 7, which goes to 2
    assert r.depths(16) == [3] * 7 + [2] * 8
    assert [r.copied(m, 16) for m in range(15)] == [
        *([5, 10, 15], [6, 10, 15], [6, 11, 15], [7, 11, 15], [8, 11, 15], [8, 12, 15]),
        *([9, 12, 15], [11, 15], [12, 15], [12, 15], [12, 15], [13, 15], [14, 15]),
        *([14, 15], [15]),
    ]


@pytest.mark.parametrize(
    ("depth", "decay", "units", "depths"),
    [
        (5, 1.0, 6, [5, 4, 3, 2, 1]),
        (5, 0.0, 4, [5, 5, 5]),
        (1, 1.0, 4, [1, 1, 1]),
        (0, 0.5, 4, [0, 0, 0]),
        (4, 0.5, 2, [4]),
        (4, 0.5, 1, []),
    ],
)
def test_depths_at_the_ends(depth, decay, units, depths):
    assert rule("auglocal", depth=depth, decay=decay).depths(units) == depths


def test_all_later_units_are_copied_where_the_depth_reaches_them():
    r = rule("auglocal", depth=3, decay=0.0)
    assert [r.copied(m, 5) for m in range(4)] == [[1, 3, 4], [2, 3, 4], [3, 4], [4]]
    assert rule("auglocal", depth=0).copied(1, 5) == []


def resnet_copy(units, halved, end):
    """A residual of ResNet-20 as it is copied, with a projection where the size changes."""
    step = " stride=2" if halved else ""
    skip = f"; conv {units} kernel=1{step} bias=false | batch_norm" if halved else ""
    body = f"conv {units}{step} bias=false | batch_norm relu | conv {units} bias=false | batch_norm"
    return f"block(residual({body}{skip}) | act relu{end})"


def test_the_heads_of_resnet20_by_hand():
    # The stem and nine residuals of 16, 16, 16, 32, 32, 32, 64, 64, 64 maps; 4 and 7 have stride 2
    # and read what comes before them, the others 32, 16 and 8 pixels.  A copy of 5 or 6 on 32
    # pixels, and of 8 or 9 on 16, is halved.  The depth is 3 - m/8, and 2.5 goes to 2.
    copied = [
        {3: False, 6: True, 9: True},
        {4: True, 6: False, 9: True},
        {4: True, 7: True, 9: False},
        {5: True, 7: True, 9: False},
        {6: False, 9: True},
        {7: True, 9: False},
        {8: True, 9: False},
        {8: False, 9: False},
        {9: False},
    ]
    *units, last = engine_on("resnet20 3", (32, 32, 3), depth=3).net.leaves
    assert last.head is None
    for unit, halved in zip(units, copied, strict=True):
        parts = [
            resnet_copy((16, 32, 64)[(j - 1) // 3], half, " | avg_pool" if j == 9 else "")
            for j, half in halved.items()
        ]
        assert network([unit.head]).spec() == " | ".join([*parts, "dense 3"])


def test_greedy_heads_are_the_end_of_the_network():
    heads = {
        "dense 7 tanh | dense 6 | dense 3 bias=false": ["dense 3 bias=false"],
        "conv 4 | max_pool | conv 5 | conv 6 | dense 3": ["dense 3", "dense 3"],
        "conv 4 | conv 5 | avg_pool | dense 3": ["avg_pool | dense 3"],
        "graph_conv 4 | graph_conv 5 | graph_conv 3": ["graph_conv 3"],
    }
    shapes = [(4,), (8, 8, 2), (8, 8, 2), (4,)]
    for (spec, expected), shape in zip(heads.items(), shapes, strict=True):
        *units, last = engine_on(spec, shape, depth=0).net.leaves
        assert [network([unit.head]).spec() for unit in units] == expected and last.head is None


def test_a_head_that_is_given_is_kept():
    spec = "block(dense 7 relu; dense 5 tanh | dense 3) | dense 6 | dense 3"
    net = engine_on(spec, (4,)).net
    assert net.spec() == "block(dense 7 relu; dense 5 tanh | dense 3) | block(dense 6 | dense 3)"


@pytest.mark.parametrize("name", NETS)
def test_heads_are_no_part_of_the_model(name):
    spec, shape = NETS[name]
    engine = engine_on(spec, shape)
    assert engine.net.n_params(shape) == network(spec).n_params(shape)
    state, batch = engine.init(0), samples(name)
    before = engine.predict(state, batch.x, side=batch.side)
    for slots in state.params:
        for path in slots:
            if path.startswith("head."):
                slots[path] = np.nan
    after = engine.predict(state, batch.x, side=batch.side)
    assert np.isfinite(after).all() and after.tobytes() == before.tobytes()


def test_heads_are_not_run_in_use(monkeypatch):
    engine, state, batch = bench(partial(rule, "auglocal"))
    monkeypatch.setattr(Block, "headed", None)
    engine.predict(state, batch.x)
    with pytest.raises(TypeError):
        engine.updates(state, batch)


# ---- what it learns ------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["softmax_cross_entropy", "binary_cross_entropy"])
@pytest.mark.parametrize(
    "net", ["dense 3 tanh", "dense 7 tanh | dense 3", "conv 3 relu | batch_norm | dense 3"]
)
def test_one_unit_is_backprop_bit_for_bit(net, objective):
    rng = np.random.default_rng(0)
    batch = Batch(rng.normal(size=(6, 4, 4, 2)), np.eye(3)[[0, 1, 2, 0, 1, 2]])
    ours = engine_on(net, (4, 4, 2), objective=objective)
    theirs = engine_on(net, (4, 4, 2), "backprop", objective)
    state, plain = ours.init(0), theirs.init(0)
    for path, a in state.params[0].items():
        leaf, name = path.split(".")
        plain.params[int(leaf)][name] = a
    expected, found = gradients(theirs, plain, batch), gradients(ours, state, batch)
    assert len(found) == len(expected)
    for path, g in expected.items():
        assert g.tobytes() == found[f"0/{path.replace('/', '.')}"].tobytes(), path
    assert ours.step(state, batch)[0]["loss"] == theirs.step(plain, batch)[0]["loss"]


@pytest.mark.parametrize("weight", [None, np.array([0.5, 2, 0, 1])])
@pytest.mark.parametrize("name", NETS)
def test_with_the_rest_of_the_network_for_a_head_it_is_backprop(name, weight):
    spec, shape = NETS[name]
    ours, batch = engine_on(spec, shape, **ALL), samples(name)._replace(weight=weight)
    theirs = engine_on(in_units(ours.given), shape, "backprop")
    state, plain = ours.init(0), theirs.init(0)
    later: list[str] = []  # parameters of the units above, bottom first
    copies = {}  # a head's parameter: the one that it is a copy of
    for m in reversed(range(len(plain.params))):
        ahead = [n for n in state.params[m] if n.startswith("head.")]
        if later:
            copies |= {f"{m}/{n}": path for n, path in zip(ahead, later, strict=True)}
        later = [*(f"{m}/{n}" for n in plain.params[m]), *later]
    arrays, originals = state.arrays(), plain.arrays()
    for path, a in originals.items():
        if path.startswith("params/"):
            arrays[path][...] = a
    for copy, path in copies.items():
        arrays[f"params/{copy}"][...] = originals[f"params/{path}"]
    expected, found = gradients(theirs, plain, batch), gradients(ours, state, batch)
    assert set(found) == {*expected, *(copy for copy, path in copies.items() if path in expected)}
    for path, g in found.items():  # the copies learn what their originals learn
        assert far(g, expected[copies.get(path, path)]) <= 1e-10, path


@pytest.mark.torch
@pytest.mark.parametrize("weight", [None, np.array([0.5, 2, 0, 1])])
@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("name", NETS)
def test_updates_are_autograd_of_each_units_own_loss(name, depth, weight):
    torch = pytest.importorskip("torch")
    from fflearn.torch.layers import apply

    spec, shape = NETS[name]
    engine, batch = engine_on(spec, shape, depth=depth), samples(name)._replace(weight=weight)
    state = engine.init(1)
    found, x = gradients(engine, state, batch), torch.tensor(batch.x)
    w = torch.tensor(np.ones(4) if weight is None else weight)
    seen, env = 0, Env(batch.side)
    for m, (unit, slots) in enumerate(zip(engine.net.leaves, state.params, strict=True)):
        p = {
            n: torch.tensor(a.copy(), requires_grad=n not in unit.buffers) for n, a in slots.items()
        }
        body = {n: a for n, a in p.items() if not n.startswith("head.")}
        y = out = apply(type(unit)(unit.body), body, x.detach(), env)
        if unit.ahead is not None:
            ahead = {n.removeprefix("head."): a for n, a in p.items() if n not in body}
            out = apply(unit.ahead, ahead, y, env)
        target = torch.tensor(batch.y if batch.y.dtype.kind == "i" else batch.y.argmax(1))
        each = torch.nn.functional.cross_entropy(
            out.reshape(-1, 3), target.reshape(-1), reduction="none"
        )
        loss = (w * each.reshape(4, -1).mean(1)).sum() / w.sum()
        loss.backward()
        for n, a in p.items():
            if a.requires_grad:
                assert far(found[f"{m}/{n}"], a.grad.numpy()) <= 1e-10, (m, n)
                seen += 1
        reported = engine.step(state.copy(), batch)[0][
            "loss" if unit.ahead is None else f"loss/{m}"
        ]
        assert reported == pytest.approx(loss.item(), rel=1e-10)
        x = y
    assert seen == len(found)


def test_a_step_computed_by_hand():
    # x = 1, W = 2: y = 2, and the head V = (1, -1): logits (2, -2), softmax (1 - q, q) with
    # q = 1 / (1 + e^4).  Label 0: error (-q, q); dV = y error; dW = error V^T = -2 q.
    net = "block(dense 1 bias=false; dense 2 bias=false) | dense 2 bias=false | dense 2 bias=false"
    engine = Engine(net, rule("auglocal"), (1,), 2, dtype="float64")
    state = engine.init(0)
    state.params[0]["0.W"], state.params[0]["head.0.W"] = [[2]], [[1, -1]]
    batch = Batch(np.array([[1.0]]), np.array([[1.0, 0.0]]))
    found, q = gradients(engine, state, batch), 1 / (1 + np.exp(4))
    np.testing.assert_allclose(found["0/0.W"], [[-2 * q]], rtol=1e-12)
    np.testing.assert_allclose(found["0/head.0.W"], [[-2 * q, 2 * q]], rtol=1e-12)
    info, ledger = engine.step(state, batch)
    assert info["loss/0"] == pytest.approx(np.log1p(np.exp(-4)), rel=1e-12)
    # the second unit reads one float, the first reads the label; 1 + 2 floats of activity are
    # computed in units and 2 in the head
    assert ledger.floats == {("activity", 1): 1, ("target", 0): 2}
    assert ledger.forward_passes == 5 / 3 and ledger.transposes == 0


@pytest.mark.parametrize("name", NETS)
def test_no_gradient_flows_between_units(name):
    spec, shape = NETS[name]
    engine, batch = engine_on(spec, shape), samples(name)
    state = engine.init(0)
    before = gradients(engine, state, batch)
    for changed in range(1, len(state.params)):
        moved = state.copy()
        for path, a in moved.params[changed].items():
            moved.params[changed][path] = 1.5 * a + 0.1
        for path, g in gradients(engine, moved, batch).items():
            below = int(path.partition("/")[0]) < changed
            assert not below or g.tobytes() == before[path].tobytes(), (changed, path)


def test_units_learn_from_activity_from_before_the_update():
    engine = engine_on(*NETS["dense"])
    state, batch = engine.init(0), samples("dense")
    first = gradients(engine, state, batch)
    seen = {}
    engine.probes = {"g": lambda v, u: float(seen.update({v.index: u}) or 0)}
    engine.step(state, batch)
    for i, u in seen.items():
        for n, g in u.grads.items():
            assert engine.kernels.formed(g).tobytes() == first[f"{i}/{n}"].tobytes()


# ---- running statistics, memory, locality ---------------------------------------------------------


def test_running_statistics_of_heads_follow_training_alone():
    engine = engine_on("conv 4 | conv 5 | batch_norm | conv 3 | batch_norm | dense 3", (4, 4, 2))
    rng = np.random.default_rng(0)
    state, batch = engine.init(0), Batch(rng.normal(size=(5, 4, 4, 2)), np.eye(3)[[0, 1, 2, 0, 1]])
    start = state.copy()
    engine.predict(state, batch.x)
    assert same_bits(start, state) is None
    engine.updates(state, batch)
    assert same_bits(start, state) is None
    # The copy of the second unit in the first one's head: one convolution of the first's output.
    k, p = engine.kernels, start.params[0]
    y = k.conv(batch.x, p["0.W"], p["0.b"], 1, 1)
    rows = k.conv(y, p["head.0.0.W"], p["head.0.0.b"], 1, 1).reshape(-1, 5)
    engine.step(state, batch)
    np.testing.assert_allclose(state.params[0]["head.0.1.mean"], 0.1 * rows.mean(0), rtol=1e-10)
    moved = 0.9 + 0.1 * rows.var(0, ddof=1)
    np.testing.assert_allclose(state.params[0]["head.0.1.var"], moved, rtol=1e-10)


@pytest.mark.parametrize("depth", [0, 2])
def test_memory_does_not_grow_with_the_network(depth):
    def peak(name, units, **settings):
        net = " | ".join(["dense 16 relu"] * units)
        engine, state, batch = bench(partial(rule, name, **settings), net)
        return engine.step(state, batch)[1].peak_bytes

    assert peak("auglocal", 6, depth=depth) == peak("auglocal", 18, depth=depth)
    assert peak("backprop", 18) > 2 * peak("backprop", 6)


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_network_is_learned(name, depth):
    spec, shape = NETS[name]
    engine, batch = engine_on(spec, shape, depth=depth), samples(name)
    state = engine.init(0)
    losses = [engine.step(state, batch)[0] for _ in range(80)]
    assert len(losses[0]) == len(engine.specs)  # one for each unit: "loss", "loss/0", ...
    for report in losses[0]:
        assert losses[-1][report] < 0.8 * losses[0][report], report


@pytest.mark.slow
def test_deeper_heads_are_better():
    # A residual network of 7 units of 4, 4, 4, 8, 8, 16, 16 maps, two epochs of the digits.
    def residual(units, step=""):
        skip = f"; conv {units} kernel=1{step} bias=false | batch_norm" if step else ""
        first = f"conv {units}{step} bias=false | batch_norm relu"
        return f"residual({first} | conv {units} bias=false | batch_norm{skip}) | act relu"

    halved = " stride=2"
    parts = [residual(4), residual(4), residual(8, halved), residual(8), residual(16, halved)]
    net = " | ".join(
        ["conv 4 bias=false | batch_norm relu", *parts, residual(16), "avg_pool | dense 10"]
    )
    data, labels = load_data("digits"), np.eye(10, dtype=np.float32)
    x, y = data.x_train.reshape(-1, 8, 8, 1), labels[data.y_train]

    def loss(name, **settings):
        adam = optimizer("adam", lr=3e-3)
        engine = Engine(net, rule(name, **settings), (8, 8, 1), 10, optimizer=adam)
        state, found = engine.init(0), []
        for epoch in range(2):
            order = np.random.default_rng(epoch).permutation(len(x))[: 32 * (len(x) // 32)]
            for rows in order.reshape(-1, 32):
                found.append(engine.step(state, Batch(x[rows], y[rows]))[0]["loss"])
        return np.mean(found[-40:])

    greedy, short, long, exact = (
        *(loss("auglocal", depth=depth) for depth in (0, 1, 2)),
        loss("backprop"),
    )
    assert exact < long < short < greedy - 0.5, (greedy, short, long, exact)


# ---- wrong use ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"depth": -1}, "a depth of 0 or more; got -1"),
        ({"decay": -0.1}, "a decay from 0 to 1; got -0.1"),
        ({"decay": 1.5}, "a decay from 0 to 1; got 1.5"),
        ({"decay": float("nan")}, "a decay from 0 to 1"),
        ({"depth": 1.5}, "needs depth like 2; got 1.5"),
    ],
)
def test_settings_that_do_not_fit_are_told(settings, told):
    with pytest.raises(SpecError, match=told):
        rule("auglocal", **settings)


TEXT = "embed 11 6 | dense 8 places=1 | attention 4 | dense 3 places=1"


@pytest.mark.parametrize(
    ("net", "in_shape", "told"),
    [
        (TEXT, (5,), r"no head for 'block\(embed 11 6\)': 'attention 4' needs"),
        ("block(dense 5; dense 7) | dense 4 | dense 3", (4,), r"gives \(7,\), .* gives \(3,\)"),
        ("block(dense 5; conv 3) | dense 4 | dense 3", (4,), "no head for .*'conv 3' needs images"),
        ("dense 5 | block(dense 3; dense 3)", (4,), "the last unit and learns from the network's"),
    ],
)
def test_networks_that_do_not_fit_are_told_before_training(net, in_shape, told):
    with pytest.raises(SpecError, match=told):
        engine_on(net, in_shape, depth=1)


def test_samples_of_the_wrong_shape_are_told_as_for_every_rule():
    with pytest.raises(ShapeError, match="'conv 4' needs images"):
        engine_on("conv 4 | conv 5 | dense 3", (4,))
