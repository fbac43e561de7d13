"""Every rule on every kind of layer, with arrays that do not mix with NumPy's: ready for a GPU."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from foreign import Foreign, ForeignKernels

from fflearn import kernels, layers, registry, rules
from fflearn.base import Batch
from fflearn.engine import Engine
from fflearn.errors import ShapeError, SpecError
from fflearn.kernels.reference import Kernels
from fflearn.layers.dense import Dense
from fflearn.optim import optimizer

ROWS = 6
MADE = {
    f"{name}[{label}]" if label else name: partial(registry.rule, name, **settings)
    for name in rules.names()
    for label, settings in {"": {}, **registry.rule_class(name).variants}.items()
}


def trained(monkeypatch, backend, rule, body, shape, batch):
    """Arrays and scores after a step; None where the rule refuses the network."""
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "load", lambda _: backend)
        try:
            engine = Engine(
                body, rule, shape, 2, optimizer("sgd", lr=0.1), dtype="float64", horizon=(4, 2)
            )
            state = engine.init(0)
        except (SpecError, ShapeError):
            return None
        engine.step(state, batch)
        found = {n: a.get() if isinstance(a, Foreign) else a for n, a in state.arrays().items()}
        return found | {"scores": engine.predict(state, batch.x, side=batch.side)}


@pytest.mark.filterwarnings("ignore::fflearn.errors.SettingsWarning")
@pytest.mark.parametrize("kind", layers.names())
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_step_never_mixes_with_arrays_of_the_host(make, kind, monkeypatch):
    example, shape = layers.load(kind).examples()[0]
    rng = np.random.default_rng(5)
    x, side = example.example_batch(rng, ROWS, shape)
    batch = Batch(x, np.eye(2)[rng.integers(0, 2, ROWS)], side)
    for body in ([example, Dense(7, "tanh"), Dense(2)], [example, Dense(2)]):
        want = trained(monkeypatch, Kernels(), make(), body, shape, batch)
        if want is None:
            continue
        found = trained(monkeypatch, ForeignKernels(), make(), body, shape, batch)
        assert found.keys() == want.keys()
        for path, a in found.items():
            assert isinstance(a, np.ndarray)
            # The same code, but for sparse products, which are dense ones here.
            assert np.allclose(a, want[path], 1e-9, 1e-12), path


@pytest.mark.parametrize(
    "unknown",
    [
        lambda f: np.mean(f, where=f > 0),
        lambda f: np.argsort(f, stable=True),
        lambda f: np.add.reduce(f),
        lambda f: np.exp(f, where=f > 0),
        lambda f: f.sum(initial=1),
        lambda f: np.flatnonzero(f),
    ],
)
def test_the_stand_in_has_no_more_than_a_device_has(unknown):
    with pytest.raises(TypeError, match="CuPy"):
        unknown(Foreign(np.ones(3)))


@pytest.mark.parametrize(
    "mixed",
    [
        lambda f, a: f + a,
        lambda f, a: a + f,
        lambda f, a: np.concatenate([f, a]),
        lambda f, a: np.asarray(f),
        lambda f, a: f.__setitem__(slice(None), a),
    ],
)
def test_the_stand_in_refuses_what_a_device_refuses(mixed):
    with pytest.raises(TypeError, match=r"host|Implicit"):
        mixed(Foreign(np.ones(3)), np.ones(3))
