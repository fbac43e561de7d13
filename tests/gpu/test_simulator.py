"""Every CUDA kernel in Numba's simulator, and every method that launches one, against NumPy's."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from numba import config

from fflearn import kernels as backends
from fflearn import random, registry, rules
from fflearn.base import Batch
from fflearn.engine import Engine
from fflearn.errors import RecordError, ShapeError, SpecError
from fflearn.gpu import kernels, table
from fflearn.gpu.device import SimulatedDevice
from fflearn.gpu.table import CudaKernels, Setting
from fflearn.kernels.reference import ACTIVATIONS, GOODNESS, Kernels, Product
from fflearn.optim import optimizer

pytestmark = pytest.mark.skipif(not config.ENABLE_CUDASIM, reason="there is a CUDA device")

REALS = (np.float32, np.float64)
CONVOLUTIONS = ((3, 1, 1), (3, 2, 1), (1, 1, 0), (2, 2, 0), (5, 3, 1), (1, 2, 0), (1, 1, 2))


class Noted:
    """A simulated device that notes which kernels it launches."""

    def __init__(self, **options: Any):
        self.device, self.launched = SimulatedDevice(**options), []
        simulate = self.device.launch

        def launch(name: str, *args: Any) -> None:
            self.launched.append(name)
            simulate(name, *args)

        self.device.launch = launch
        self.k = CudaKernels(self.device)


# ---- cases: method, arguments, and the kernels that it must launch ---------------------------------


class Draw:
    """Arguments of one case: the same for whoever asks with the same seed."""

    def __init__(self, real: Any):
        self.rng, self.real = np.random.default_rng(7), real

    def __call__(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape).astype(self.real)

    def hollow(self, *shape: int) -> np.ndarray:
        """Not contiguous."""
        return self(*shape[:-1], 2 * shape[-1])[..., ::2]

    def one_hot(self, rows: int, cols: int) -> np.ndarray:
        return np.eye(cols, dtype=self.real)[self.rng.integers(0, cols, rows)]


def dense(k, d, act, biased, noisy, rows=5):
    b, noise = (d(3) if biased else None), (d(rows, 3) if noisy else None)
    return k.dense(d(rows, 7), d(7, 3), b, act, noise)


def vjp(k, d, act):
    a = d.hollow(3, 29)
    return k.act(a, act), k.act_vjp(d.hollow(3, 29), a, Kernels().act(a, act), act)


def normalized(k, d, kind, cols):
    x = d(3, cols)
    x[1] = 0
    n = k.normalize(x, kind)
    return n, k.normalize_vjp(d(3, cols), x, Kernels().normalize(x, kind), kind)


def scored(k, d, kind):
    y = d.hollow(4, 19)
    y[2] = 0
    return k.goodness(y, kind), k.goodness_vjp(d.hollow(4), y, kind)


def lost(k, d, name, cols):
    return getattr(k, name)(d.hollow(5, cols), d.one_hot(5, cols))


def standardized(k, d, axis, center, rows, cols):
    x = d(rows, cols) + d.real(3)
    n, mean, var = k.standardize(x, axis, 1e-5, center)
    known = Kernels().standardize(x, axis, 1e-5, center)
    return n, mean, var, k.standardize_vjp(d(rows, cols), known[0], known[2], axis, 1e-5, center)


def stepped(k, d, decay, momentum, product):
    w, m = d(7, 3), (np.ones((7, 3), d.real) if momentum else None)
    g = Product(d(5, 7), d(5, 3), 5.0)
    k.sgd(w, g if product else d.hollow(7, 3), m, 0.1, momentum, decay)
    return (w,) if m is None else (w, m)


def adam(k, d, decay, decoupled):
    w, m, v = d(7, 3), d(7, 3), np.abs(d(7, 3))
    k.adam(w, Product(d(5, 7), d(5, 3), 5.0), m, v, 0.1, 0.9, 0.999, 1e-8, decay, decoupled, 3)
    return w, m, v


def convolved(k, d, kernel, stride, padding, groups=1):
    x, W = d(2, 4, 5, 3 * groups), d(kernel, kernel, 3, 4 * groups)
    a = k.conv(x, W, d(4 * groups), stride, padding)
    da = d(*a.shape)
    plain = k.conv(x, W, None, stride, padding)
    g = k.conv_weights(x, da, 2.0, W.shape, stride, padding)
    return a, plain, g, k.conv_input(da, W, x.shape[1:], stride, padding)


def pooled(k, d, size, stride):
    x = np.round(d(2, 5, 7, 3))  # with ties
    x[0, 1, 1, 0] = np.nan
    y, tap = k.max_pool(x, size, stride)
    x, known = d(2, 5, 7, 3), Kernels().max_pool(x, size, stride)[1]
    dy = d(*y.shape)
    summed = k.avg_pool(x, size, stride), k.avg_pool_input(dy, x.shape[1:], size, stride)
    picked = k.pick(x, known, size, stride), k.put(dy, known, x.shape[1:], size, stride)
    return y, tap, *summed, *picked


def spread(k, d):
    from scipy.sparse import csr_array

    dense = d(7, 7) * (d(7, 7) > 0.5)
    dense[3] = 0
    matrix, rows = k.side(csr_array(dense)), d(7, 5)
    again = matrix.astype(np.float64) @ rows.astype(np.float64)
    return matrix @ rows, matrix.T @ rows, again


def drawn(k, d, name, n, static, step):
    if name == "random_words":
        return (k.random_words(static, step, n),)
    return (getattr(k, name)(static, step, (n,), d.real),)


CASES: dict[str, tuple[Any, set[str], dict[str, Any]]] = {}


def case(name: str, call: Any, *launches: str, **options: Any) -> None:
    CASES[name] = call, set(launches), options


for act in ACTIVATIONS:
    for biased in (False, True):
        for noisy in (False, True):
            name, given = f"dense {act} {biased} {noisy}", (act, biased, noisy)
            fused = () if act == "identity" and not biased and not noisy else ("bias_act",)
            case(name, partial(dense, act=act, biased=biased, noisy=noisy), *fused)
            call = partial(dense, act=act, biased=biased, noisy=noisy)
            case(name + " small", call, "product", small=1 << 20)
    if act != "identity":
        case(f"act {act}", partial(vjp, act=act), "act", "act_vjp")
for kind in ("rms", "unit"):
    for cols in (5, 37):
        call = partial(normalized, kind=kind, cols=cols)
        case(f"normalize {kind} {cols}", call, "normalize", "normalize_vjp")
for kind in GOODNESS:
    case(f"goodness {kind}", partial(scored, kind=kind), "goodness", "goodness_vjp")
for cols in (3, 37):
    for name in ("softmax_ce", "mse", "bce"):
        kernel = "softmax_ce" if name == "softmax_ce" else "row_loss"
        case(f"{name} {cols}", partial(lost, name=name, cols=cols), kernel)
    case(f"softmax {cols}", lambda k, d, n=cols: (k.softmax(d.hollow(2, 3, n) * 30),), "softmax")
phases = np.array([1, -1, 1, -1, 1, 1, -1, -1, 1])
case(
    "logistic",
    lambda k, d: k.logistic(d.hollow(9), phases.astype(d.real), 0.3, 1.5),
    "logistic",
)
for rows, parts in ((3, ()), (27, ("column_finish",))):
    call = lambda k, d, n=rows: (k.colmean(d.hollow(n, 5), 2.5),)
    divided = {"parts": 10} if parts else {}
    case(f"colmean {rows}", call, "column_sums", *parts, **divided)
    for center in (True, False):
        call = partial(standardized, axis=0, center=center, rows=rows, cols=5)
        names = "column_sums", "standardize_columns", "standardize_columns_vjp", *parts
        case(f"standardize 0 {center} {rows}", call, *names, **divided)
for center in (True, False):
    call = partial(standardized, axis=1, center=center, rows=3, cols=37)
    case(f"standardize 1 {center}", call, "standardize_rows", "standardize_rows_vjp")
for decay in (0.0, 0.1):
    for momentum in (0.0, 0.9):
        names = ("sgd",) if momentum else ("fold",)
        call = partial(stepped, decay=decay, momentum=momentum, product=True)
        case(f"sgd {decay} {momentum}", call, *names)
        names = ("product", *names)
        case(f"sgd {decay} {momentum} small", call, *names, small=1 << 20)
    call = partial(stepped, decay=decay, momentum=0.0, product=False)
    case(f"sgd {decay} of an array", call, "sgd")
    for decoupled in (False, True):
        call = partial(adam, decay=decay, decoupled=decoupled)
        case(f"adam {decay} {decoupled}", call, "adam", "adam_scales")
for at in CONVOLUTIONS:
    names = ("bias_act",) if at == (1, 1, 0) else ("im2col", "bias_act")
    call = partial(convolved, kernel=at[0], stride=at[1], padding=at[2])
    case(f"conv {at}", call, "col2im", *names)
DIRECT = "conv", "conv_weights", "conv_input", "column_sums"
for at in ((3, 1, 1), (2, 3, 0), (5, 3, 1)):
    call = partial(convolved, kernel=at[0], stride=at[1], padding=at[2])
    case(f"conv {at} direct", call, *DIRECT, direct=True)
call = partial(convolved, kernel=3, stride=2, padding=1, groups=2)
case("conv groups", call, *DIRECT)
call = partial(convolved, kernel=2, stride=1, padding=0)
case("conv parts", call, *DIRECT, direct=True, parts=7)
for size, stride in ((2, 2), (3, 2), (3, 1), (2, 3)):
    case(
        f"pool {size} {stride}",
        partial(pooled, size=size, stride=stride),
        "max_pool",
        "pool_down",
        "pool_up",
    )
case("sparse", spread, "sparse_product")
for n in (1, 2, 3, 6, 131):
    for step in (0, 2**40 + 1):
        for name, kernel in (
            ("random_words", "words"),
            ("uniform", "uniform"),
            ("normal", "normal"),
        ):
            call = partial(drawn, name=name, n=n, static=random.Key(n).static(), step=step)
            case(f"{name} {n} {step}", call, kernel)

SETTINGS = {"settle", "advance"}  # tested below: no method of the reference has them


@pytest.mark.parametrize("real", REALS, ids=["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:overflow")  # words of 32 bits, in NumPy's numbers
def test_a_kernel_computes_what_the_reference_does(name, real, monkeypatch):
    call, launches, options = CASES[name]
    noted = Noted(**{n: v for n, v in options.items() if n != "parts"})
    if parts := options.get("parts"):
        monkeypatch.setattr(table, "CHUNK", parts)
        noted.device.grid = 40, 3
    found, want = call(noted.k, Draw(real)), call(Kernels(), Draw(real))
    assert set(noted.launched) == launches
    assert len(found) == len(want)
    for a, b in zip(found, want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        if a.dtype.kind in "ui":
            assert np.array_equal(a, b)
        else:
            scale = max(1.0, np.nanmax(np.abs(b)))
            assert np.array_equal(np.isnan(a), np.isnan(b))
            assert np.nanmax(np.abs(a - b)) <= 64 * np.finfo(a.dtype).eps * scale


def test_no_kernel_is_untested():
    tested = set().union(*(launches for _, launches, _ in CASES.values())) | SETTINGS
    assert tested == set(kernels.table(np.float32)) == set(kernels.table(np.float64))


def test_settings_lie_in_memory():
    """A captured step reads them when it runs: other numbers, the same launch."""
    k, w = CudaKernels(SimulatedDevice()), np.ones(3)
    k.settle(4, 0.25, 0.5, 0.0)
    k.sgd(w, np.ones(3), None, Setting(kernels.LR, 0.1), 0.0, Setting(kernels.DECAY))
    assert np.array_equal(w, np.full(3, 1 - 0.5 * 0.1))
    k.advance()
    assert k.counter[0] == 5 and k.live[kernels.PROGRESS] == 0.25
    k.settle(5, 0.5, 0.25, 0.1)
    k.sgd(w, np.zeros(3), None, Setting(kernels.LR), 0.0, Setting(kernels.DECAY))
    assert np.allclose(w, 0.95 * (1 - 0.25 * 0.1), rtol=1e-15)
    drawn = k.random_words(7, k.counter, 5)
    assert np.array_equal(drawn, random.words(7, 5, 5))
    with pytest.raises(RecordError, match="learning rate"):
        float(Setting(kernels.LR))


@pytest.mark.parametrize("real", REALS)
def test_empty_arrays_cost_no_launch(real):
    noted = Noted(small=1 << 20)
    for k in (noted.k, Kernels()):
        none = np.zeros((0, 7), real)
        assert k.act(none, "relu").shape == (0, 7)
        assert k.act_vjp(none, none, none, "tanh").shape == (0, 7)
        assert k.matmul(none, np.zeros((7, 3), real)).shape == (0, 3)
        assert np.array_equal(k.matmul_tn(none, np.zeros((0, 3), real)), np.zeros((7, 3)))
        assert k.normal(1, 2, (0, 3), real).shape == (0, 3)
    assert not noted.launched


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("small", [0, 1 << 20])
def test_products_of_every_form(small, real):
    d = Draw(real)
    k, r = CudaKernels(SimulatedDevice(small=small)), Kernels()
    tolerance = 1e-5 if real is np.float32 else 1e-13
    for a, b in (((5, 7), (7, 3)), ((2, 3, 5, 7), (2, 3, 7, 4)), ((1, 1), (1, 1))):
        x, y = d.hollow(*a), d.hollow(*b)
        for name, given in {
            "matmul": (x, y),
            "matmul_tn": (x.swapaxes(-1, -2), y),
            "matmul_nt": (x, y.swapaxes(-1, -2)),
        }.items():
            found, want = getattr(k, name)(*given), getattr(r, name)(*given)
            assert found.dtype == want.dtype and found.shape == want.shape
            assert np.allclose(found, want, tolerance, tolerance)
    states = d(5, 7) + 1j * d(5, 7)
    states = states.astype(np.result_type(real, np.complex64))
    assert np.allclose(k.matmul(states, d.hollow(7, 3) * 0 + 1), states.sum(1, keepdims=True), 1e-5)
    with pytest.raises(ValueError, match="middle"):
        k.matmul(d(5, 7), d(5, 3))


def test_constants_and_side_data_are_brought_once():
    k = CudaKernels(SimulatedDevice())
    assert k.constant(np.arange(3)) is k.constant(np.arange(3))
    assert k.constant(np.arange(3)) is not k.constant(np.arange(3.0))
    side = np.eye(3)
    assert k.side(side) is k.side(side)


# ---- whole steps -----------------------------------------------------------------------------------


def simulated(rule: str, monkeypatch: Any, steps: int, k: Any, body: Any = None) -> Any:
    """State and scores after steps with some kernels; None where the rule refuses the network."""
    rng = np.random.default_rng(3)
    batch = Batch(rng.normal(size=(3, 5)), np.eye(2)[[0, 1, 1]])
    with monkeypatch.context() as patch:
        patch.setattr(backends, "load", lambda _: k)
        try:
            net = body or "dense 4 tanh | dense 3 relu | dense 2"
            engine = Engine(net, registry.rule(rule), (5,), 2, dtype="float64", horizon=(4, 2))
            state = engine.init(0)
        except (SpecError, ShapeError):
            return None
        infos = [engine.step(state, batch)[0] for _ in range(steps)]
        found = {**state.arrays(), "scores": engine.predict(state, batch.x)}
        return found, [{n: float(v) for n, v in info.items()} for info in infos], engine


@pytest.mark.parametrize("rule", rules.names())
@pytest.mark.filterwarnings("ignore:overflow", "ignore::fflearn.errors.SettingsWarning")
def test_a_rule_learns_what_it_does_on_the_reference(rule, monkeypatch):
    want = simulated(rule, monkeypatch, 2, Kernels())
    if want is None:
        pytest.skip("the rule needs another network")
    found = simulated(rule, monkeypatch, 2, CudaKernels(SimulatedDevice()))
    for path, a in want[0].items():
        assert np.allclose(found[0][path], a, 1e-10, 1e-12), path
    for one, other in zip(found[1], want[1], strict=True):
        assert one.keys() == other.keys()
        assert np.allclose(list(one.values()), list(other.values()), 1e-10, 1e-12)


def test_how_many_launches_a_small_step_takes(monkeypatch):
    """Where nothing fills a GPU, launches are what a step costs."""
    device, launched = SimulatedDevice(small=1 << 20), []
    device.launch = lambda name, *args: launched.append(name)  # nothing is computed
    monkeypatch.setattr(backends, "load", lambda _: CudaKernels(device))
    net, rule = "dense 128 relu | dense 64 relu | dense 10", registry.rule("dfa")
    rng = np.random.default_rng(0)
    batch = Batch(rng.normal(size=(32, 64)), np.eye(10)[rng.integers(0, 10, 32)])
    for name, want in {"sgd": 19, "adam": 22}.items():
        engine = Engine(net, rule, (64,), 10, optimizer(name, lr=0.1))
        state = engine.init(0)
        engine.step(state, batch)
        launched.clear()
        engine.step(state, batch)
        assert len(launched) == want, launched
