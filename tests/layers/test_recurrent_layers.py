"""Recurrent layers: PyTorch's own cells, credit through time, eligibility traces, wrong use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fflearn import kernels, layers
from fflearn.base import Batch, Env, Key
from fflearn.checks import learned
from fflearn.engine import Engine
from fflearn.errors import ShapeError, SpecError
from fflearn.registry import rule

K = kernels.load("reference")
KINDS = ("rnn", "gru", "lstm")
B, T, D, H = 5, 6, 3, 4


def made(kind, seed=0, **settings):
    """A layer, parameters of some size, inputs, a trace, and errors of every output."""
    layer, rng = layers.load(kind)(H, **settings), np.random.default_rng(seed)
    p = layer.init(Key(seed), (T, D), np.dtype("float64"))
    p = {n: a + rng.normal(size=a.shape, scale=0.3) for n, a in p.items()}
    x = rng.normal(size=(B, T, D))
    t = layer.forward(K, p, x, Env())
    return layer, p, x, t, rng.normal(size=t.y.shape)


def grads(layer, t, da):
    """Sums over the batch, by name; "x" is the message down."""
    found = {n: len(da) * K.formed(g) for n, g in layer.param_vjp(K, t, da).items()}
    return {**found, "x": layer.input_vjp(K, t, da)}


def near(a, b, tolerance=1e-10):
    return np.linalg.norm(a - b) <= tolerance * max(np.linalg.norm(b), 1e-12)


def torch_cell(torch, kind, zx, zh, h, c):
    if kind == "rnn":
        return torch.tanh(zx + zh), c
    if kind == "gru":
        (xr, xu, xn), (hr, hu, hn) = zx.chunk(3, 1), zh.chunk(3, 1)
        u, n = torch.sigmoid(xu + hu), torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
        return n + u * (h - n), c
    i, f, g, o = (zx + zh).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@pytest.mark.torch
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_torchs_own_layer(kind, last):
    torch = pytest.importorskip("torch")
    layer, p, x, t, da = made(kind, last=last)
    theirs = getattr(torch.nn, kind.upper())(D, H, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(torch.tensor(p["Wx"].T))
        theirs.weight_hh_l0.copy_(torch.tensor(p["Wh"].T))
        theirs.bias_ih_l0.copy_(torch.tensor(p["b"]))
        theirs.bias_hh_l0.zero_()
    x = torch.tensor(x, requires_grad=True)
    y = theirs(x)[0]
    y = y[:, -1] if last else y
    np.testing.assert_allclose(t.y, y.detach().numpy(), rtol=1e-12)
    (y * torch.tensor(da)).sum().backward()
    found = grads(layer, t, da)
    assert near(found["x"], x.grad.numpy())
    assert near(found["Wx"], theirs.weight_ih_l0.grad.numpy().T)
    assert near(found["Wh"], theirs.weight_hh_l0.grad.numpy().T)
    assert near(found["b"], theirs.bias_ih_l0.grad.numpy())


@pytest.mark.torch
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("credit", ["step", "eprop"])
@pytest.mark.parametrize("kind", KINDS)
def test_credit_is_autograd_with_the_rest_of_the_past_detached(kind, credit, last):
    torch = pytest.importorskip("torch")
    layer, p, x, t, da = made(kind, credit=credit, last=last)
    p = {n: torch.tensor(a, requires_grad=True) for n, a in p.items()}
    x = torch.tensor(x, requires_grad=True)
    h = c = torch.zeros(B, H, dtype=torch.float64)
    states, own = [], p["Wh"].detach().diagonal() if kind == "rnn" else 0.0
    for at in range(T):
        if credit == "step":
            h, c = h.detach(), c.detach()
        seen = h.detach()
        zh = seen @ p["Wh"]
        if kind == "rnn" and credit == "eprop":
            zh = zh + own * (h - seen)  # 0, with the derivative of the self-connection
        h, c = torch_cell(torch, kind, x[:, at] @ p["Wx"] + p["b"], zh, h, c)
        states.append(h)
    y = h if last else torch.stack(states, 1)
    (y * torch.tensor(da)).sum().backward()
    found = grads(layer, t, da)
    assert near(found["x"], x.grad.numpy())
    for n, a in p.items():
        assert near(found[n], a.grad.numpy()), n


@pytest.mark.torch
@pytest.mark.parametrize("credit", ["bptt", "step", "eprop"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_path_follows_the_credit(kind, credit):
    torch = pytest.importorskip("torch")
    from fflearn.torch.layers import LAYERS

    layer, p, x, t, da = made(kind, credit=credit, last=False)
    p = {n: torch.tensor(a, requires_grad=True) for n, a in p.items()}
    y = LAYERS[kind](layer, p, torch.tensor(x), Env())
    np.testing.assert_allclose(t.y, y.detach().numpy(), rtol=1e-12)
    (y * torch.tensor(da)).sum().backward()
    found = grads(layer, t, da)
    assert all(near(found[n], a.grad.numpy()) for n, a in p.items())


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_eprop_is_exact_where_no_unit_reads_another(kind, last):
    layer, p, x, _, da = made(kind, last=last)
    p["Wh"] = np.diag(np.diag(p["Wh"])) if kind == "rnn" else 0 * p["Wh"]
    t = layer.forward(K, p, x, Env())
    exact, traced = grads(layer, t, da), grads(replace(layer, credit="eprop"), t, da)
    cut = grads(replace(layer, credit="step"), t, da)
    for n, g in exact.items():
        assert near(traced[n], g, 1e-12), n
    assert not near(cut["Wx"], exact["Wx"], 1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_credits_differ_and_agree_on_one_step(kind):
    layer, p, x, t, da = made(kind)
    found = [grads(replace(layer, credit=c), t, da)["Wx"] for c in ("bptt", "eprop", "step")]
    assert not near(found[0], found[1], 1e-3) and not near(found[1], found[2], 1e-3)
    short = layer.forward(K, p, x[:, :1], Env())
    found = [grads(replace(layer, credit=c), short, da)["Wx"] for c in ("bptt", "eprop", "step")]
    assert (found[0] == found[1]).all() and (found[1] == found[2]).all()


def test_eprop_of_an_lstm_is_its_eligibility_traces_forward_in_time():
    # Bellec et al.: e_t = f_t e_{t-1} + d c_t / d w at fixed c_{t-1}, h_{t-1}; the weights of
    # i, f, g reach the loss through c alone, those of o at once.  One trace per weight and
    # sample, memory independent of T; local derivatives by central differences.
    layer, p, x, t, da = made("lstm", credit="eprop", last=False)
    state, h, expected = layer._zeros(x), 1e-6, np.zeros_like(p["Wx"])
    trace = np.zeros((B, D, 4 * H))
    for at in range(T):
        zx, zh = x[:, at] @ p["Wx"] + p["b"], state[0] @ p["Wh"]

        def moved(column, by, zx=zx, zh=zh, state=state):
            shift = np.zeros(4 * H)
            shift[column] = by
            return layer.cell(K, zx + shift, zh, state)[0]

        after, (_, f, _, o, _, top) = layer.cell(K, zx, zh, state)
        read = o * (1 - top**2)  # d h_t / d c_t
        for column in range(4 * H):
            unit = column % H
            up, low = moved(column, h), moved(column, -h)
            dc = (up[1] - low[1])[:, unit] / (2 * h)
            dh = (up[0] - low[0])[:, unit] / (2 * h)
            trace[:, :, column] = f[:, unit, None] * trace[:, :, column] + dc[:, None] * x[:, at]
            direct = (dh - read[:, unit] * dc)[:, None] * x[:, at]  # through o, not through c
            e = read[:, unit, None] * trace[:, :, column] + direct
            expected[:, column] += (da[:, at, unit, None] * e).sum(0)
        state = after
    assert near(grads(layer, t, da)["Wx"], expected, 1e-7)


def test_a_plain_layer_by_hand():
    # relu, x = (1, 2), Wx = 3, Wh = 1/2, b = 1: h = 4, then 6 + 2 + 1 = 9.
    layer = layers.load("rnn")(1, activation="relu")
    p = {"Wx": np.array([[3.0]]), "Wh": np.array([[0.5]]), "b": np.array([1.0])}
    t = layer.forward(K, p, np.array([[[1.0], [2.0]]]), Env())
    assert t.y.tolist() == [[9.0]]
    exact = grads(layer, t, np.array([[1.0]]))
    assert exact["x"].ravel().tolist() == [1.5, 3.0]
    assert (exact["Wx"].item(), exact["Wh"].item(), exact["b"].item()) == (2.5, 4.0, 1.5)
    cut = grads(replace(layer, credit="step"), t, np.array([[1.0]]))
    assert cut["x"].ravel().tolist() == [0.0, 3.0]
    assert (cut["Wx"].item(), cut["Wh"].item(), cut["b"].item()) == (2.0, 4.0, 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_state_is_the_last_of_all_states(kind):
    layer, p, x, t, _ = made(kind)
    all_states = replace(layer, last=False).forward(K, p, x, Env())
    assert (all_states.y[:, -1] == t.y).all() and all_states.y.shape == (B, T, H)
    # A state does not depend on what comes later.
    x[:, 3:] = 0
    again = replace(layer, last=False).forward(K, p, x, Env())
    assert (again.y[:, :3] == all_states.y[:, :3]).all()
    assert (again.y[:, 3:] != all_states.y[:, 3:]).any()


@pytest.mark.parametrize("credit", ["bptt", "eprop", "step"])
@pytest.mark.parametrize("kind", KINDS)
def test_tangents_are_exact_with_every_credit(kind, credit):
    layer, p, x, t, _ = made(kind, credit=credit)
    rng = np.random.default_rng(3)
    dx, dp = rng.normal(size=x.shape), {n: rng.normal(size=a.shape) for n, a in p.items()}
    h = 1e-6
    up, low = (
        layer.forward(K, {n: p[n] + s * h * dp[n] for n in p}, x + s * h * dx, Env()).y
        for s in (1, -1)
    )
    np.testing.assert_allclose(layer.jvp(K, t, dx, dp), (up - low) / (2 * h), atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_first_weights_have_the_deviation_that_is_told(kind):
    layer = layers.load(kind)(60)
    p, std = layer.init(Key(0), (T, 50), np.dtype("float32")), layer.weight_std((T, 50))
    for n in ("Wx", "Wh"):
        assert p[n].std() == pytest.approx(std[n], rel=0.05)
        assert p[n].shape[1] == layer.gates * 60
    forget = p["b"].reshape(layer.gates, 60)
    assert forget.sum() == (60 if kind == "lstm" else 0)
    assert kind != "lstm" or (forget[1] == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_at_every_step_is_learned_by_rules_of_every_kind(kind):
    # Which of two symbols was there first: the answer is asked for at every step.
    first = np.arange(16) % 2
    x = np.zeros((16, 5, 2))
    x[np.arange(16), 0, first] = 1
    y = np.repeat(first[:, None], 5, axis=1)
    for name in ("backprop", "dfa", "fa"):
        engine = Engine(f"{kind} 12 last=false | dense 2 places=1", rule(name), (5, 2), 2)
        state = engine.init(0)
        for _ in range(150):
            engine.step(state, Batch(x, y))
        assert (engine.predict(state, x).argmax(-1) == y).mean() >= 0.95, name


def test_backprop_through_a_network_of_them_is_autograd():
    pytest.importorskip("torch")
    from fflearn.reference import TorchEngine

    net = "gru 5 last=false | lstm 4 last=false | rnn 3 | dense 2"
    rng = np.random.default_rng(0)
    batch = Batch(rng.normal(size=(4, 3, 2)), np.eye(2)[[0, 1, 1, 0]], {}, np.array([1.0, 2, 3, 4]))
    engine = Engine(net, rule("backprop"), (3, 2), 2, dtype="float64")
    torch = TorchEngine(net, (3, 2), 2, dtype="float64")
    theirs = torch.updates(torch.init(0), batch)
    for path, g in learned(engine, engine.updates(engine.init(0), batch)):
        layer, _, name = path.split("/")
        assert near(g, theirs[int(layer)].grads[name]), path


# ---- wrong use ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_settings_are_told(kind):
    layer = layers.load(kind)
    with pytest.raises(SpecError, match=f"{kind} needs a positive number of units; got 0"):
        layer(0)
    with pytest.raises(SpecError, match="credit to be one of bptt, eprop, step; got 'rtrl'"):
        layer(3, credit="rtrl")
    for shape in ((5,), (5, 4, 3)):
        with pytest.raises(ShapeError, match=r"needs sequences \(T, D\)"):
            layer(3).out_shape(shape)
    if kind == "rnn":
        with pytest.raises(SpecError, match="activation tanh or relu; got 'gelu'"):
            layer(3, activation="gelu")
