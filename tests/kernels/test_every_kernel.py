"""Every method of Kernels, on every backend, against the NumPy definition.

A new method without a line in CASES fails `test_every_method_has_arguments`; a new backend in
`kernels.names()` joins every test.
"""

import inspect

import numpy as np
import pytest

from fflearn.kernels.reference import ACTIVATIONS, BY_INPUT, GOODNESS, NORMS, Kernels, Product

REFERENCE = Kernels()
DTYPES = (np.float32, np.float64)
# These compute no number: they place arrays, or say how steps run.
NO_NUMBERS = {"asarray", "constant", "fits", "host", "running", "side", "stack", "steps"}
METHODS = [
    name
    for name, _ in inspect.getmembers(Kernels, callable)
    if name[0] != "_" and name not in NO_NUMBERS
]


# ---- arguments ------------------------------------------------------------------------------
# Rows of 1, primes, and one size beyond every threshold at which a kernel goes parallel.
SHAPES = [(1, 1), (1, 13), (7, 5), (32, 10), (263, 257)]
PRODUCTS = [(1, 1, 1), (1, 13, 3), (7, 5, 11), (131, 389, 521), (1999, 67, 11)]


def rows(rng, dtype):
    """Matrices of each shape, the second row silent where there is one."""
    for shape in SHAPES:
        x = rng.normal(size=shape).astype(dtype)
        x[1:2] = 0
        yield x


def pairs(rng, dtype, sizes):
    for m, k, n in PRODUCTS:
        a, b = sizes(m, k, n)
        yield rng.normal(size=a).astype(dtype), rng.normal(size=b).astype(dtype)


def labels(rng, shape, dtype):
    return np.eye(shape[1], dtype=dtype)[rng.integers(0, shape[1], shape[0])]


def dense(rng, dtype):
    for x, w in pairs(rng, dtype, lambda m, k, n: ((m, k), (k, n))):
        b = rng.normal(size=w.shape[1]).astype(dtype)
        noise = rng.normal(size=(len(x), len(b))).astype(dtype)
        for act in ACTIVATIONS:
            yield x, w, b, act
        yield x, w, None, "relu"
        yield x, w, b, "hardsigmoid", noise


# Shape of x, units, kernel, stride, padding, groups: patches and taps, ragged ends, more samples
# and fewer than there are partial sums, wide enough for several bands.
CONVS = [
    ((1, 1, 1, 1), 1, 1, 1, 0, 1),
    ((2, 5, 4, 3), 4, 3, 1, 1, 1),
    ((9, 6, 7, 11), 5, 3, 1, 1, 1),
    ((3, 7, 8, 9), 4, 3, 2, 1, 1),
    ((3, 4, 5, 8), 7, 2, 2, 0, 1),
    ((2, 5, 5, 8), 3, 1, 2, 0, 1),
    ((2, 4, 3, 8), 3, 1, 1, 2, 1),
    ((2, 9, 6, 2), 3, 5, 3, 4, 1),
    ((3, 5, 6, 12), 8, 3, 1, 1, 4),
    ((17, 12, 12, 64), 64, 3, 1, 1, 1),
    ((3, 33, 40, 7), 8, 7, 1, 3, 1),
]


def convs(rng, dtype, part):
    for shape, units, size, stride, padding, groups in CONVS:
        x = rng.normal(size=shape).astype(dtype)
        w = rng.normal(size=(size, size, shape[3] // groups, units)).astype(dtype)
        b = rng.normal(size=units).astype(dtype)
        da = REFERENCE.conv(x, w, b, stride, padding)
        da = rng.normal(size=da.shape).astype(dtype)
        if part == "conv":
            yield x, w, b, stride, padding
            yield x, w, None, stride, padding
        elif part == "weights":
            yield x, da, float(len(x)), w.shape, stride, padding
        else:
            yield da, w, shape[1:], stride, padding


def standards(rng, dtype, *, back):
    for x in rows(rng, dtype):
        for axis, center in ((0, True), (1, True), (1, False)):
            n, _, var = REFERENCE.standardize(x, axis, 1e-2, center)
            dn = rng.normal(size=x.shape).astype(dtype)
            yield (dn, n, var, axis, 1e-2, center) if back else (x + 1, axis, 1e-2, center)


def activations(rng, dtype, *, with_dy):
    for a in rows(rng, dtype):
        for kind in ACTIVATIONS:
            y = REFERENCE.act(a, kind)
            dy = rng.normal(size=a.shape).astype(dtype)
            yield (dy, a, y, kind) if with_dy else (a, y, kind)


def norms(rng, dtype):
    for x in rows(rng, dtype):
        for kind in NORMS:
            dn = rng.normal(size=x.shape).astype(dtype)
            yield dn, x, REFERENCE.normalize(x, kind), kind


def losses(rng, dtype):
    for scale in (1, 1e4):
        for z in rows(rng, dtype):
            yield z * dtype(scale), labels(rng, z.shape, dtype)
            soft = rng.dirichlet(np.ones(z.shape[1]), len(z)).astype(dtype)
            yield z * dtype(scale), soft


def logistics(rng, dtype):
    for scale in (1, 1e4):
        g = (scale * rng.normal(size=31)).astype(dtype)
        yield g, rng.choice([-1, 1], 31).astype(dtype), 0.7, 0.3


def gradients(rng, dtype):
    """A parameter and its gradient: vectors, matrices, and products not yet formed."""
    for shape in [(1,), (13,), *SHAPES]:
        yield rng.normal(size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)
    for x, da in pairs(rng, dtype, lambda m, k, n: ((k, m), (k, n))):
        w = rng.normal(size=(x.shape[1], da.shape[1])).astype(dtype)
        yield w, Product(x, da, len(x))


def sgds(rng, dtype):
    for w, g in gradients(rng, dtype):
        for m in (None, rng.normal(size=w.shape).astype(dtype)):
            for decay in (0.0, 0.01):
                yield w.copy(), g, m, 0.1, 0.0 if m is None else 0.9, decay


def adams(rng, dtype):
    for w, g in gradients(rng, dtype):
        for decay, decoupled in ((0.0, False), (0.01, False), (0.01, True)):
            m = rng.normal(size=w.shape).astype(dtype)
            v = rng.uniform(0.1, 1, size=w.shape).astype(dtype)
            yield w.copy(), g, m, v, 1e-2, 0.9, 0.999, 1e-8, decay, decoupled, 3


def samples(rng, dtype):
    for shape in [(1, 2), (7, 5), (64, 10)]:
        yield labels(rng, shape, dtype), rng.uniform(size=shape[0]).astype(dtype)


def draws(rng, dtype):
    return [(2**64 - 1, 2**33 + 5, shape, dtype) for shape in (0, 1, (3, 5), 20011)]


POOLS = [((1, 1, 1, 1), 1, 1), ((2, 5, 7, 3), 2, 2), ((3, 6, 6, 5), 3, 2), ((2, 7, 5, 2), 3, 1)]


def pools(rng, dtype, part):
    """Images with ties, and what comes back to them: shape of x, size of a patch, stride."""
    for shape, size, stride in POOLS:
        x = rng.integers(0, 4, shape).astype(dtype)
        y, tap = REFERENCE.max_pool(x, size, stride)
        dy = rng.normal(size=y.shape).astype(dtype)
        if part == "pool":
            yield x, size, stride
        elif part == "pick":
            yield rng.normal(size=shape).astype(dtype), tap, size, stride
        elif part == "put":
            yield dy, tap, shape[1:], size, stride
        else:
            yield dy, shape[1:], size, stride


CASES = {
    "avg_pool": lambda r, t: pools(r, t, "pool"),
    "avg_pool_input": lambda r, t: pools(r, t, "back"),
    "max_pool": lambda r, t: pools(r, t, "pool"),
    "pick": lambda r, t: pools(r, t, "pick"),
    "put": lambda r, t: pools(r, t, "put"),
    "matmul": lambda r, t: pairs(r, t, lambda m, k, n: ((m, k), (k, n))),
    "matmul_tn": lambda r, t: pairs(r, t, lambda m, k, n: ((k, m), (k, n))),
    "matmul_nt": lambda r, t: pairs(r, t, lambda m, k, n: ((m, k), (n, k))),
    "dense": dense,
    "formed": lambda r, t: [(g,) for _, g in gradients(r, t)],
    "colmean": lambda r, t: [(x, float(len(x))) for x in rows(r, t)],
    "conv": lambda r, t: convs(r, t, "conv"),
    "conv_weights": lambda r, t: convs(r, t, "weights"),
    "conv_input": lambda r, t: convs(r, t, "input"),
    "standardize": lambda r, t: standards(r, t, back=False),
    "standardize_vjp": lambda r, t: standards(r, t, back=True),
    "act": lambda r, t: [(a, kind) for a in rows(r, t) for kind in ACTIVATIONS],
    "act_grad": lambda r, t: activations(r, t, with_dy=False),
    "act_vjp": lambda r, t: activations(r, t, with_dy=True),
    "normalize": lambda r, t: [(x, kind) for x in rows(r, t) for kind in NORMS],
    "normalize_vjp": norms,
    "normalize_jvp": norms,
    "softmax": lambda r, t: [(z,) for z, _ in losses(r, t)],
    "softmax_ce": losses,
    "mse": losses,
    "bce": losses,
    "goodness": lambda r, t: [(y, kind) for y in rows(r, t) for kind in GOODNESS],
    "goodness_vjp": lambda r, t: [
        (r.normal(size=len(y)).astype(t), y, kind) for y in rows(r, t) for kind in GOODNESS
    ],
    "logistic": logistics,
    "sgd": sgds,
    "adam": adams,
    "random_words": lambda r, t: [(2**63 + 1, 7, n) for n in (0, 1, 5, 20011)],
    "uniform": draws,
    "normal": draws,
    "sample_wrong": samples,
    "sample_softmax_wrong": lambda r, t: [
        ((s * r.normal(size=y.shape)).astype(t), y, u) for y, u in samples(r, t) for s in (1, 1e4)
    ],
    "erfc": lambda r, t: [(a,) for a in rows(r, t)],
    "ndtri": lambda r, t: [(r.uniform(0.001, 0.999, a.shape).astype(t),) for a in rows(r, t)],
    "one_hot": lambda r, t: [(r.integers(0, 7, s), 7, t) for s in SHAPES],
    "sum_by_id": lambda r, t: [(r.integers(0, 7, len(x)), x, 7) for x in rows(r, t)],
}

# Largest |difference| allowed, in roundings (eps) of the largest |value| of the array.
SUM = 40  # an n-term sum in another order, n <= 2000: about sqrt(n) roundings
EXP = 8  # another exp, log or sqrt, an ulp or two each, then a few operations
# Winograd's transforms multiply and add up to 18-fold along each axis, then cancel most of it; a
# bound for each number is in test_winograd.py.
TILES = 8 * SUM
TOLERANCE = {
    "matmul": SUM, "matmul_tn": SUM, "matmul_nt": SUM, "dense": SUM, "formed": SUM,
    "colmean": SUM, "normalize": SUM, "normalize_vjp": SUM, "normalize_jvp": SUM,
    "goodness": SUM, "goodness_vjp": SUM, "softmax": EXP, "softmax_ce": SUM,
    "conv": TILES, "conv_weights": TILES, "conv_input": TILES, "standardize": SUM,
    "standardize_vjp": SUM, "logistic": EXP, "normal": 2, "sgd": SUM, "adam": SUM,
}  # fmt: skip
EXACT_UNLESS_PRODUCT = {"sgd", "adam"}  # elementwise: same operations, same order
IN_PLACE = {"sgd", "adam"}


def copied(args):
    return [a.copy() if isinstance(a, np.ndarray) else a for a in args]


def results(k, name, args):
    args = copied(args)
    out = getattr(k, name)(*args)
    if name in IN_PLACE:
        return [a for a in args if isinstance(a, np.ndarray)]
    return list(out) if isinstance(out, tuple) else [out]


def test_every_method_has_arguments():
    assert set(CASES) == set(METHODS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", METHODS)
def test_matches_the_reference(k, name, dtype):
    ran = 0
    for args in CASES[name](np.random.default_rng(0), dtype):
        with k.running(2):
            got, want = results(k, name, args), results(REFERENCE, name, args)
        roundings = TOLERANCE.get(name, 0)
        if name in EXACT_UNLESS_PRODUCT and not isinstance(args[1], Product):
            roundings = 0
        for x, y in zip(got, want, strict=True):
            whole = np.issubdtype(y.dtype, np.integer)  # random words, the taps of a pool
            assert x.dtype == y.dtype and (whole or y.dtype == dtype)
            assert x.shape == y.shape
            assert np.isfinite(x).all()
            # A saturated activity has the absolute error of the sum it came from.
            scale = max(np.abs(a).max(initial=0) for a in (want if name == "dense" else [y]))
            error = np.abs(x.astype(np.float64) - y).max(initial=0)
            assert error <= roundings * np.finfo(dtype).eps * scale, [np.shape(a) for a in args]
        ran += 1
    assert ran > 0


def test_arguments_are_not_written(k):
    rng = np.random.default_rng(1)
    for name in set(METHODS) - set(IN_PLACE):
        for args in CASES[name](rng, np.float32):
            before = copied(args)
            getattr(k, name)(*args)
            for a, b in zip(args, before, strict=True):
                assert np.array_equal(a, b) or isinstance(a, Product), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_in_place_have_the_same_bits(k, kind, dtype):
    rng = np.random.default_rng(3)
    for shape in [*SHAPES, (300, 401)]:  # the last in parallel
        a, dy = rng.normal(size=(2, *shape)).astype(dtype)
        y = k.act(a, kind)
        da = k.act_vjp(dy, a, y, kind)
        found, other = a.copy(), np.full_like(a, 7)
        assert k.act(found, kind, found) is found or kind == "identity"
        assert found.tobytes() == y.tobytes() == k.act(a, kind, other).tobytes()
        own, other = dy.copy(), np.full_like(a, 7)
        assert k.act_vjp(own, a, y, kind, own) is own
        assert own.tobytes() == da.tobytes() == k.act_vjp(dy, a, y, kind, other).tobytes()


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_a_dense_product_without_its_pre_activation_has_the_same_bits(k, kind):
    for x, W, b, _, *noise in CASES["dense"](np.random.default_rng(4), np.float32):
        none, y = k.dense(x, W, b, kind, *(noise or [None]), False)
        assert none is None
        assert y.tobytes() == k.dense(x, W, b, kind, *noise)[1].tobytes()


@pytest.mark.parametrize("kind", sorted(set(ACTIVATIONS) - set(BY_INPUT)))
def test_the_activity_tells_the_slope(k, kind):
    a = np.array([[-2, -0.0, 0.0, 1e-40, 0.5, 1, 1.5, np.nan]], np.float32)
    y, dy = k.act(a, kind), np.full_like(a, 3)
    slope = {
        "relu": a > 0, "hardsigmoid": (a > 0) & (a < 1), "identity": np.isfinite(a) | True,
        "tanh": 1 - np.tanh(a) ** 2, "sigmoid": np.exp(-a) / (1 + np.exp(-a)) ** 2,
    }[kind]  # fmt: skip
    np.testing.assert_allclose(k.act_vjp(dy, None, y, kind), 3 * slope.astype(np.float32), 1e-5)


VIEWED = [
    "conv",
    "conv_weights",
    "conv_input",
    "standardize",
    "matmul",
    "dense",
    "goodness_vjp",
    "softmax_ce",
    "normalize_vjp",
    "colmean",
]


def arrays_through(change, args):
    return [change(a) if isinstance(a, np.ndarray) else a for a in args]


def locked(a):
    a = a[...]  # the owner stays writable, as a rule's view of the state
    a.flags.writeable = False
    return a


@pytest.mark.parametrize("name", VIEWED)
def test_read_only_arguments_give_the_same_bits(k, name):
    for args in list(CASES[name](np.random.default_rng(2), np.float32))[:12]:
        got, want = results(k, name, args), getattr(k, name)(*arrays_through(locked, args))
        for x, y in zip(got, want if isinstance(want, tuple) else [want], strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", VIEWED)
def test_strided_arguments_give_the_same_numbers(k, name):
    """NumPy may sum a strided row in another order: the same numbers, not the same bits."""
    for args in list(CASES[name](np.random.default_rng(2), np.float32))[:12]:
        apart = arrays_through(lambda a: np.repeat(a, 2, -1)[..., ::2], args)
        got, want = getattr(k, name)(*apart), results(k, name, args)
        for x, y in zip(got if isinstance(got, tuple) else [got], want, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_memory_that_nobody_may_write_is_accepted(k):
    mapped = np.frombuffer(np.arange(6, dtype=np.float32).tobytes(), np.float32).reshape(2, 3)
    np.testing.assert_array_equal(k.colmean(mapped, 2.0), [1.5, 2.5, 3.5])


@pytest.mark.parametrize("name", ["matmul", "matmul_tn", "matmul_nt"])
@pytest.mark.parametrize("dtypes", [("c16", "c16"), ("f4", "f8"), ("i8", "i8")])
def test_products_that_no_loop_covers_go_to_numpy(k, name, dtypes):
    for a, b in list(CASES[name](np.random.default_rng(2), np.float64))[:3]:
        a, b = ((100 * m).astype(t) for m, t in zip((a, b), dtypes, strict=True))
        got, want = getattr(k, name)(a, b), getattr(REFERENCE, name)(a, b)
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


def test_shapes_that_do_not_fit_raise(k):
    x, image = np.ones((3, 4), np.float32), np.ones((2, 5, 4, 3), np.float32)
    for call in (
        lambda: k.matmul(x, x),
        lambda: k.matmul_tn(x, x[:2]),
        lambda: k.matmul_nt(x, x[:, :2]),
        lambda: k.dense(x, x.T, np.ones(7, np.float32), "relu"),
        lambda: k.formed(Product(x, x[:2], 3)),
        lambda: k.sgd(x.copy(), np.ones(7, np.float32), None, 0.1, 0.0, 0.0),
        lambda: k.softmax_ce(x, np.ones((3, 5), np.float32)),
        lambda: k.conv(image, np.ones((3, 3, 4, 2), np.float32), None, 1, 1),
        lambda: k.conv(image, np.ones((3, 3, 3, 2), np.float32), np.ones(5, np.float32), 1, 1),
        lambda: k.conv(image, np.ones((7, 7, 3, 2), np.float32), None, 1, 0),
        lambda: k.conv_weights(image, image[:, 1:], 2.0, (3, 3, 3, 3), 1, 1),
        lambda: k.conv_input(image[:, 1:], np.ones((3, 3, 3, 3), np.float32), (5, 4, 3), 1, 1),
    ):
        with pytest.raises(ValueError, match=r"."):
            call()


def test_unknown_kinds_raise(k):
    x = np.ones((3, 4))
    for call in (
        lambda: k.act(x, "swish"),
        lambda: k.dense(x, x.T, None, "swish"),
        lambda: k.act_vjp(x, x, x, "swish"),
        lambda: k.normalize(x, "l7"),
        lambda: k.goodness(x, "l7"),
        lambda: k.goodness_vjp(x[:, 0], x, "l7"),
    ):
        with pytest.raises(ValueError, match="needs one of"):
            call()


def test_nan_is_not_hidden(k):
    """A diverged value must reach the check for divergence."""
    x = np.array([[np.nan, 1.0], [1.0, 2.0]], np.float32)
    eye = np.eye(2, dtype=np.float32)
    for act in ACTIVATIONS:
        assert np.isnan(k.dense(x, eye, None, act)[1]).any()
    loss, error = k.softmax_ce(x, eye)
    assert np.isnan(loss[0])
    assert np.isnan(error[0]).all()
    assert np.isnan(k.goodness(x, "ssq")[0])
