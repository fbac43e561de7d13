"""Our backpropagation against PyTorch's autograd, on networks drawn at random."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fflearn.base import Batch
from fflearn.engine import Engine
from fflearn.errors import SpecError
from fflearn.networks import network
from fflearn.optim import OPTIMIZERS, optimizer
from fflearn.registry import describe as describe_rule
from fflearn.registry import rule
from fflearn.state import load

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from fflearn.kernels.reference import ACTIVATIONS, NORMS
from fflearn.reference import TorchEngine, describe

ENDS = (2, 3, 5, 7)  # sizes of input and output
# Hidden sizes: with very few units a row may have one live unit, whose normalised activity is
# constant.  Its gradient is then the eps of the norm times a cancellation, in any arithmetic.
PRIMES = (11, 13, 17, 19, 23, 29, 31)
OBJECTIVES = ("softmax_cross_entropy", "mse", "binary_cross_entropy")
CASES = 120
# n-term sums in another order: a few hundred roundings of 1e-16 or 6e-8 each.
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


def drawn_case(case: int):
    """A network, input size, class count, objective and batch; sizes are distinct primes."""
    draw = random.Random(case)
    sizes = [*draw.sample(ENDS, 2), *draw.sample(PRIMES, 6)]
    n_in, n_classes = sizes[0], sizes[1]

    def dense(units: int) -> str:
        act = draw.choice([*ACTIVATIONS, "relu", "tanh"])
        norm = draw.choice(["none", "none", *NORMS])
        bias = draw.choice(["true", "true", "false"])
        return f"dense {units} {act} norm={norm} bias={bias}"

    parts, width = [], n_in
    for hidden in sizes[2 : 2 + draw.randint(0, 4)]:
        kind = draw.choice(["dense", "dense", "same", "nested", "skip", "block"])
        if kind == "same":
            parts.append(f"residual({dense(width)})")
            continue
        if kind == "nested":
            parts.append(f"residual(residual({dense(width)}))")
            continue
        if kind == "skip":
            parts.append(f"residual({dense(sizes[7])} | {dense(hidden)}; {dense(hidden)})")
        elif kind == "block":
            parts.append(f"block({dense(sizes[7])} | residual({dense(hidden)}; {dense(hidden)}))")
        else:
            parts.append(dense(hidden))
        width = hidden
    bias = draw.choice(["true", "false"])
    spec = " | ".join([*parts, f"dense {n_classes} bias={bias}"])
    rng = np.random.default_rng(case)
    rows = draw.choice([1, 2, 5, 7, 37])
    x = rng.normal(size=(rows, n_in))
    y = np.eye(n_classes)[rng.integers(0, n_classes, rows)]
    weight = rng.uniform(0.1, 3, rows) if draw.random() < 0.4 else None
    return spec, n_in, n_classes, draw.choice(OBJECTIVES), Batch(x, y, {}, weight)


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    scale = np.linalg.norm(theirs)
    return float(np.linalg.norm(ours - theirs) / scale) if scale else float(np.abs(ours).max())


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_backprop_is_autograd_on_random_networks(backend, dtype):
    for case in range(CASES):
        spec, n_in, n_classes, objective, batch = drawn_case(case)
        ours = Engine(
            spec,
            rule("backprop"),
            (n_in,),
            n_classes,
            objective=objective,
            backend=backend,
            dtype=dtype,
        )
        theirs = TorchEngine(spec, (n_in,), n_classes, objective=objective, dtype=dtype)
        state = ours.init(case)
        for mine, other in zip(
            ours.updates(state, batch), theirs.updates(state, batch), strict=True
        ):
            assert set(mine.grads) == set(other.grads)
            for name, g in mine.grads.items():
                far = distance(ours.kernels.formed(g), other.grads[name])
                assert far <= TOLERANCE[dtype], f"case {case}: {spec}: {name} differs by {far:.1e}"


def test_the_drawn_networks_cover_the_whole_language():
    specs = [drawn_case(case)[0] for case in range(CASES)]
    text = " ".join(specs)
    for word in [*ACTIVATIONS, *NORMS, "residual(", "block(", ";", "bias=false"]:
        assert text.count(word) >= 20, word
    assert {drawn_case(case)[3] for case in range(CASES)} == set(OBJECTIVES)
    assert {len(drawn_case(case)[4].x) for case in range(CASES)} == {1, 2, 5, 7, 37}
    depths = {len(network(s).leaves) for s in specs}
    assert {1, 2, 3, 4, 5} <= depths


NET = "dense 17 tanh | residual(dense 17 gelu norm=rms) | dense 11 relu | dense 3"
SETTINGS = {
    "sgd": [{"lr": 0.1}, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}],
    "adam": [{"lr": 1e-2}, {"lr": 1e-2, "weight_decay": 1e-2, "beta1": 0.8}],
    "adamw": [{"lr": 1e-2, "weight_decay": (0.0, 0.1), "schedule": "warmup:1+cosine"}],
}
RUNS = [(name, settings) for name in OPTIMIZERS for settings in SETTINGS[name]]


def batches(n: int, rows: int = 13):
    rng = np.random.default_rng(0)
    for _ in range(n):
        x, labels = rng.normal(size=(rows, 7)), rng.integers(0, 3, rows)
        yield Batch(x, np.eye(3)[labels], {}, rng.uniform(0.5, 2, rows))


@pytest.mark.parametrize(("name", "settings"), RUNS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 2e-4)])
def test_five_steps_of_training_stay_together(name, settings, dtype, tolerance):
    # Adam divides by the size of the gradient, which turns relative into absolute errors.
    given = {"optimizer": optimizer(name, **settings), "dtype": dtype, "horizon": (2, 3)}
    ours = Engine(NET, rule("backprop"), (7,), 3, backend="reference", **given)
    theirs = TorchEngine(NET, (7,), 3, **given)
    mine, other = ours.init(3), theirs.init(3)
    for batch in batches(5):
        info, ledger = ours.step(mine, batch)
        info_torch, ledger_torch = theirs.step(other, batch)
        assert abs(info["loss"] - info_torch["loss"]) <= tolerance
    assert other.step == 5
    for path, a in mine.arrays().items():
        np.testing.assert_allclose(a, other.arrays()[path], atol=tolerance, err_msg=path)
    assert ledger_torch.per_sample() == ledger.per_sample()
    assert ledger_torch.peak_bytes > 0
    x = np.random.default_rng(5).normal(size=(9, 7))
    scores = theirs.predict(other, x, rows=4)
    np.testing.assert_allclose(ours.predict(mine, x), scores, atol=10 * tolerance)


@pytest.mark.parametrize(("name", "settings"), RUNS)
def test_resume_is_bit_exact(name, settings, tmp_path):
    engine = TorchEngine(NET, (7,), 3, optimizer=optimizer(name, **settings), horizon=(2, 3))
    through, stopped = engine.init(1), engine.init(1)
    todo = list(batches(6))
    for batch in todo:
        engine.step(through, batch)
    for batch in todo[:3]:
        engine.step(stopped, batch)
    stopped.save(tmp_path / "half.safetensors")
    again = TorchEngine(NET, (7,), 3, optimizer=optimizer(name, **settings), horizon=(2, 3))
    resumed = load(tmp_path / "half.safetensors")
    for batch in todo[3:]:
        again.step(resumed, batch)
    assert resumed.step == through.step == 6
    for path, a in through.arrays().items():
        assert a.tobytes() == resumed.arrays()[path].tobytes(), path


def test_updates_change_nothing_and_restore_puts_a_run_back():
    engine = TorchEngine(NET, (7,), 3)
    state, (first, second) = engine.init(0), batches(2)
    before = state.copy()
    engine.updates(state, first)
    assert all((a == before.arrays()[p]).all() for p, a in state.arrays().items())
    engine.step(state, first)
    once = state.copy()
    engine.step(state, second)
    state.restore(before)
    engine.step(state, first)
    assert all((a == once.arrays()[p]).all() for p, a in state.arrays().items())


def test_threads_are_put_back_and_read_only_batches_are_fine():
    import torch

    before = torch.get_num_threads()
    engine = TorchEngine(NET, (7,), 3, threads=2 if before == 1 else 1)
    batch = next(batches(1))
    x = batch.x.astype(np.float32)
    x.flags.writeable = False
    engine.step(engine.init(0), Batch(x, batch.y))
    assert torch.get_num_threads() == before


def test_autograd_keeps_at_least_the_inputs_of_every_layer():
    # 13 rows; dense 7-5-3 saves x (7), the tanh's output (5) and the log-softmax (3) at least.
    engine = TorchEngine("dense 5 tanh | dense 3", (7,), 3, dtype="float64")
    batch = next(batches(1))
    _, ledger = engine.step(engine.init(0), batch)
    gradients = 8 * (7 * 5 + 5 + 5 * 3 + 3)
    assert ledger.peak_bytes - gradients >= 8 * 13 * (7 + 5 + 3)
    assert ledger.peak_bytes - gradients <= 8 * 13 * (7 + 5 + 5 * 3)


def test_the_head_of_a_block_is_no_part_of_the_reference():
    headed = "block(dense 17 tanh; dense 5 relu) | dense 3"
    ours = Engine(headed, rule("backprop"), (7,), 3, backend="reference", dtype="float64")
    theirs = TorchEngine(headed, (7,), 3, dtype="float64")
    mine, other, batch = ours.init(3), theirs.init(3), next(batches(1))
    for a, b in zip(ours.updates(mine, batch), theirs.updates(other, batch), strict=True):
        assert set(a.grads) == set(b.grads)
    before = other.copy().arrays()
    ours.step(mine, batch)
    theirs.step(other, batch)
    for path, a in mine.arrays().items():
        np.testing.assert_allclose(a, other.arrays()[path], atol=1e-9, err_msg=path)
        assert "head." not in path or (a == before[path]).all()


def test_what_torch_has_no_counterpart_of_is_told():
    engine = TorchEngine(NET, (7,), 3)
    with pytest.raises(SpecError, match="'goodness' is no way to predict"):
        engine.predict(engine.init(0), np.zeros((1, 7)), by="goodness")
    assert set(describe()) == set(describe_rule("backprop"))
    assert (describe()["name"], describe()["kind"]) == ("torch", "reference")
