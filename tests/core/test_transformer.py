"""A decoder transformer: counts, causality, autograd, and what an error per token reaches."""

from __future__ import annotations

import numpy as np
import pytest

import fflearn
from fflearn import kernels, locality
from fflearn.base import Batch, Env, Key
from fflearn.checks import Bench
from fflearn.data.text import from_text
from fflearn.engine import Engine
from fflearn.errors import SpecError
from fflearn.networks import network
from fflearn.optim import optimizer
from fflearn.registry import rule
from fflearn.zoo import gpt_nano

VOCAB, LENGTH = 11, 6
PLACES = ("macro", "micro")


def tiny(places="macro", depth=2) -> str:
    return gpt_nano(VOCAB, width=8, depth=depth, heads=2, places=places)


def engine_of(name, spec, **given) -> Engine:
    given = {"backend": "reference", "dtype": "float64"} | given
    return Engine(spec, rule(name), (LENGTH,), VOCAB, **given)


def sample_batch(rows=3, seed=0) -> Batch:
    key = Key(seed)
    x = key.fold("x").integers(VOCAB, (rows, LENGTH)).astype(np.float64)
    return Batch(x, key.fold("y").integers(VOCAB, (rows, LENGTH)))


def gradients(engine, state, batch):
    """Every formed gradient by "layer/name"."""
    return {
        f"{i}/{n}": np.asarray(engine.kernels.formed(g))
        for i, u in enumerate(engine.updates(state, batch))
        for n, g in u.grads.items()
    }


# ---- the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 3])
def test_the_parameters_by_hand(depth):
    d, t = 8, LENGTH
    norm, attention = 2 * d, 4 * d * d + 3 * d
    feed_forward = (d * 4 * d + 4 * d) + (4 * d * d + d)
    blocks = depth * (2 * norm + attention + feed_forward)
    expected = VOCAB * d + t * d + blocks + norm + (d * VOCAB + VOCAB)
    for places in PLACES:
        assert network(tiny(places, depth)).n_params((t,)) == expected


def test_macro_and_micro_differ_in_what_is_one_unit():
    macro, micro = (network(tiny(places)) for places in PLACES)
    assert [leaf.kind for leaf in macro.leaves] == [
        *("embed", "position", "block", "block", "layer_norm", "dense")
    ]
    inside = ["layer_norm", "attention", "layer_norm", "dense", "dense"]
    kinds = [leaf.kind for leaf in micro.leaves]
    assert kinds == ["embed", "position", *inside, *inside, "layer_norm", "dense"]
    assert [leaf.kind for leaf in macro.leaves[2].leaves] == inside
    for net in (macro, micro):
        assert net.shapes((LENGTH,))[-1] == (LENGTH, VOCAB)
        assert network(net.spec()) == net


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"places": "meso"}, "places to be one of macro, micro; got 'meso'"),
        ({"depth": 0}, "depth of 1 or more; got 0"),
        ({"width": 10, "heads": 4}, "multiple of heads; got width 10 and 4 heads.*: width=8"),
    ],
)
def test_a_wrong_transformer_is_told(wrong, told):
    with pytest.raises(SpecError, match=told):
        gpt_nano(65, **wrong)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_an_output_depends_on_no_later_token(backend, dtype):
    engine = engine_of("backprop", tiny(), backend=backend, dtype=dtype)
    state, x = engine.init(0), sample_batch().x
    before = engine.predict(state, x)
    for t in range(LENGTH):
        moved = x.copy()
        moved[:, t] = (moved[:, t] + 1) % VOCAB
        after = engine.predict(state, moved)
        assert after[:, :t].tobytes() == before[:, :t].tobytes()
        assert (after[:, t:] != before[:, t:]).any(axis=(0, 2)).all()


# ---- derivatives ----------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize(
    "spec",
    [tiny("macro"), tiny("micro"), tiny().replace("position", "position sinusoidal")],
    ids=["macro", "micro", "sinusoidal"],
)
def test_backprop_is_autograd(spec, backend):
    pytest.importorskip("torch")
    from fflearn.reference import TorchEngine

    ours = engine_of("backprop", spec, backend=backend)
    theirs = TorchEngine(spec, (LENGTH,), VOCAB, dtype="float64")
    state = ours.init(3)
    for weight in (None, np.array([0.5, 2.0, 1.0])):
        batch = sample_batch()._replace(weight=weight)
        expected = [u.grads for u in theirs.updates(state, batch)]
        for path, g in gradients(ours, state, batch).items():
            layer, _, name = path.partition("/")
            other = expected[int(layer)][name]
            assert np.linalg.norm(g - other) <= 1e-10 * np.linalg.norm(other), path
    loss, other = ours.step(state.copy(), batch)[0], theirs.step(state.copy(), batch)[0]
    assert float(loss["loss"]) == pytest.approx(float(other["loss"]), rel=1e-12)


def test_the_tangent_of_a_block_is_adjoint_to_its_message():
    block, k = network(tiny()).leaves[2], kernels.load("reference")
    rng = np.random.default_rng(0)
    p = block.init(Key(0), (LENGTH, 8), np.dtype("float64"))
    x, dx, dy = rng.normal(size=(3, 2, LENGTH, 8))
    dp = {n: rng.normal(size=a.shape) for n, a in p.items()}
    t = block.forward(k, p, x, Env())
    up = (block.jvp(k, t, dx, dp) * dy).sum()
    own = {n: 2 * (k.formed(g) * dp[n]).sum() for n, g in block.param_vjp(k, t, dy).items()}
    assert set(own) == set(dp)
    down = (block.input_vjp(k, t, dy) * dx).sum()
    assert up == pytest.approx(down + sum(own.values()), rel=1e-10)


# ---- direct feedback, an error per token ----------------------------------------------------------


def moved_rows(places, sample, token):
    """By layer/name of a weight: in which (sample, token) its ``da`` moves with one label."""
    engine, batch = engine_of("dfa", tiny(places)), sample_batch()
    state = engine.init(0)
    other = batch.y.copy()
    other[sample, token] = (other[sample, token] + 1) % VOCAB
    pairs = zip(
        engine.updates(state, batch), engine.updates(state, batch._replace(y=other)), strict=True
    )
    shape = (len(batch.x), LENGTH, -1)
    return {
        f"{i}/{n}": {(int(b), int(t)) for b, t in np.argwhere(rows.any(-1))}
        for i, (a, b) in enumerate(pairs)
        for n in a.grads
        if hasattr(a.grads[n], "da")  # a Product: its da has a row per token
        for rows in [(a.grads[n].da != b.grads[n].da).reshape(shape)]
    }


@pytest.mark.parametrize("places", PLACES)
def test_the_error_of_a_token_reaches_that_token_alone(places):
    sample, token = 1, 3
    moved = moved_rows(places, sample, token)
    seen = {(sample, t) for t in range(token + 1)}
    for path, rows in moved.items():
        # Keys and values, inside a unit of attention, belong to all the tokens that were seen.
        inside = path.endswith(("Wk", "Wv"))
        assert rows == (seen if inside else {(sample, token)}), path
    assert len(moved) == 2 * 6 + 1  # four weights of attention and two dense, twice; the head


@pytest.mark.parametrize("places", PLACES)
def test_the_table_learns_from_the_tokens_that_were_there(places):
    # Ids that all differ: the gradient of row id is da of its token over the number of samples.
    engine, batch = engine_of("dfa", tiny(places)), sample_batch(1)
    state = engine.init(0)
    batch = batch._replace(x=np.arange(1.0, 1 + LENGTH)[None])
    before = gradients(engine, state, batch)
    y = batch.y.copy()
    y[0, 2] = (y[0, 2] + 1) % VOCAB
    after = gradients(engine, state, batch._replace(y=y))
    assert set(np.flatnonzero((after["0/E"] != before["0/E"]).any(1))) == {3}
    assert set(np.flatnonzero((after["1/P"] != before["1/P"]).any(1))) == {2}
    # The same matrix projects to both: with one sample a place and its id get one message.
    np.testing.assert_array_equal(before["0/E"][1 : 1 + LENGTH], before["1/P"])
    assert not before["0/E"][0].any()


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize(("name", "depends"), [("dfa", False), ("backprop", True)])
def test_the_weights_of_other_layers_stay_unseen(name, depends, places):
    engine = engine_of(name, tiny(places))
    report = locality.poison(Bench(engine, engine.init(0), sample_batch()))
    assert report.ok and bool(report.depend) == depends, report.verdict


def test_what_direct_feedback_sends_is_counted():
    engine, batch = engine_of("dfa", tiny()), sample_batch(4)
    _, ledger = engine.step(engine.init(0), batch)
    hidden = len(engine.net.leaves) - 1
    assert ledger.per_sample()["error"] == hidden * LENGTH * VOCAB
    assert ledger.transposes == 0


# ---- learning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("name", ["backprop", "dfa", "fa", "sign_symmetry", "frozen"])
def test_a_step_of_every_rule_that_fits_is_finite(name, places):
    engine, batch = engine_of(name, tiny(places), dtype="float32"), sample_batch()
    state = engine.init(0)
    info, _ = engine.step(state, batch)
    assert np.isfinite(info["loss"]) and state.first_bad() is None
    assert engine.predict(state, batch.x).shape == (3, LENGTH, VOCAB)


STORY = "to be or not to be, that is. "


def learned(name, lr, steps, **given):
    """Nats per character on a sentence that repeats, and so can be known by heart."""
    story = from_text("story", STORY * 20, length=16)
    spec = gpt_nano(story.n_classes, width=32, depth=2, heads=4, **given)
    engine = Engine(
        spec, rule(name), story.in_shape, story.n_classes, optimizer("adam", lr=lr), threads=1
    )
    state, crops = engine.init(0), story.batches(16, seed=0)
    for step in range(steps):
        engine.step(state, crops.batch(step))
    return story.score(lambda x, side=None: engine.predict(state, x))["loss"]


@pytest.mark.slow
def test_backprop_learns_a_story_by_heart():
    assert learned("backprop", 3e-3, 100) < 0.2


@pytest.mark.slow
def test_direct_feedback_learns_a_story_that_the_read_out_alone_cannot():
    direct, control = learned("dfa", 3e-3, 400), learned("frozen", 1e-2, 400)
    assert direct < 0.25 and control > 0.6


def test_training_takes_a_text():
    story = from_text("story", STORY * 8, length=16)
    spec = gpt_nano(story.n_classes, width=8, depth=1, heads=2)
    run = fflearn.train(spec, "dfa", story, epochs=2, batch_size=8)
    assert run.epoch == 2 and 0 <= run.curves["accuracy"][-1] <= 1
    again = fflearn.train(spec, "dfa", story, epochs=2, batch_size=8)
    a, b = run.state.arrays(), again.state.arrays()
    assert all(a[path].tobytes() == b[path].tobytes() for path in a)
