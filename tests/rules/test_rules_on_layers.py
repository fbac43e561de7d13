"""Every rule with every kind of layer: it learns, or it says by name why not, before training."""

from __future__ import annotations

import numpy as np
import pytest
from test_every_rule import MADE

from fflearn import layers, registry
from fflearn.base import Batch
from fflearn.checks import learned
from fflearn.engine import Engine
from fflearn.errors import ShapeError, SpecError
from fflearn.layers.dense import Dense
from fflearn.networks import network

ROWS, CLASSES = 6, 2


def networks(layer, shape):
    """Networks with the layer: name, layers, shape of a label."""
    out = layer.out_shape(shape)
    yield "at the bottom", [layer, Dense(7, "tanh"), Dense(CLASSES)], ()
    yield "below the output", [layer, Dense(CLASSES)], ()
    if len(out) == len(shape) == 2 and out[0] == shape[0]:
        tops = [Dense(5, "tanh", places=1), Dense(CLASSES, places=1)]
        yield "with a label per place", [layer, *tops], shape[:1]
    if len(shape) == 1 and shape == (7,):
        yield "in the middle", [Dense(7, "relu"), layer, Dense(CLASSES)], ()
    if len(out) == 1 and hasattr(layer, "units") and shape[-1] >= out[0]:
        yield "at the output", [Dense(shape[-1], "tanh", places=len(shape) - 1), layer], ()


def names_both(error, rule, kind) -> bool:
    """Whether a message names the rule, as the command line does or by its class, and the kind."""
    said = str(error).lower().replace("_", "")
    return registry.name_of(rule).replace("_", "") in said and kind.replace("_", "") in said


@pytest.mark.parametrize("kind", layers.names())
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_it_learns_or_is_refused_by_name(make, kind):
    rule, told, trained = make(), [], 0
    for example, shape in layers.load(kind).examples():
        for where, body, places in networks(example, shape):
            classes = body[-1].out_shape(body[-2].out_shape(shape))[-1] if not places else CLASSES
            if classes < 2:
                continue
            rng, what = np.random.default_rng(5), f"{where}: {network(body).spec()} on {shape}"
            x, side = example.example_batch(rng, ROWS, shape)
            y = np.eye(classes)[rng.integers(0, classes, (ROWS, *places))]
            try:
                engine = Engine(body, rule, shape, classes, backend="reference", horizon=(4, 2))
                state = engine.init(0)
            except (SpecError, ShapeError) as e:
                assert names_both(e, rule, kind), f"{what}: {e}"
                told.append(str(e))
                continue
            batch = Batch(x, y, side)
            for path, g in learned(engine, engine.updates(state, batch)):
                assert np.isfinite(g).all(), f"{what}: the update {path} is not finite"
            before = state.copy()
            info, _ = engine.step(state, batch)
            loss = info.get("loss", info.get("head_loss"))
            assert loss is not None and np.isfinite(loss), what
            assert state.first_bad() is None, f"{what}: {state.first_bad()}"
            moved = [p for p, a in state.arrays().items() if (a != before.arrays()[p]).any()]
            assert any(path.startswith("params/") for path in moved), f"{what}: nothing learned"
            for by in rule.predictors:
                scores = engine.predict(state, x, by, side=side)
                assert scores.shape == (ROWS, *places, classes) and np.isfinite(scores).all(), what
            trained += 1
    assert trained or (told and kind != "dense")


def test_most_rules_train_most_kinds_of_layers():
    """The test above does not pass by refusals alone: backprop is refused nothing with slopes."""
    for kind in layers.names():
        for example, shape in layers.load(kind).examples():
            exact = registry.rule("backprop" if example.slopes else "zeroth_order")
            Engine([example, Dense(2)], exact, shape, 2).init(0)
