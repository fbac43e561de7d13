"""What every learning rule must satisfy, whatever it learns.

Each check takes ``make``, a function from hyper-parameters to a rule, and raises AssertionError
with a sentence that says what is wrong.  `fflearn.locality.check` runs them all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fflearn.base import Batch, Rule, Update
from fflearn.engine import MODES, Engine
from fflearn.errors import SpecError
from fflearn.random import Key
from fflearn.state import State, load

Make = Callable[..., Rule]

N_IN = 11
CHAIN = "dense 17 tanh | dense 13 relu | dense 12 sigmoid"
BRANCHES = "dense 17 relu | residual(dense 17 tanh) | residual(dense 9 relu | dense 13; dense 13)"


class Bench(NamedTuple):
    """A small network with a rule, its first state and one batch."""

    engine: Engine
    state: State
    batch: Batch


def bench(
    make: Make,
    hidden: str = CHAIN,
    n_classes: int = 3,
    rows: int = 7,
    dtype: str = "float64",
    backend: str = "reference",
    seed: int = 0,
    mode: str = "",
) -> Bench:
    """A rule on a small network, ready for one step."""
    engine = Engine(
        f"{hidden} | dense {n_classes}",
        make(),
        (N_IN,),
        n_classes,
        backend=backend,
        dtype=dtype,
        horizon=(10, 2),
        mode=mode,
    )
    return Bench(engine, engine.init(seed), samples(rows, n_classes))


def samples(rows: int, n_classes: int, seed: int = 0) -> Batch:
    """Noise with labels."""
    key = Key(seed).fold("samples")
    labels = key.fold("y").integers(n_classes, (rows,))
    return Batch(key.fold("x").normal((rows, N_IN), np.float64), np.eye(n_classes)[labels])


def learned(engine: Engine, updates: list[Update]) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of some updates, gradients formed, as ("layer/part/name", array)."""
    for i, u in enumerate(updates):
        for part, tensors in u._asdict().items():
            for name, g in tensors.items():
                yield f"{i}/{part}/{name}", np.asarray(engine.kernels.formed(g))


def same_bits(a: State, b: State) -> str | None:
    """Path of the first array whose bits differ, or None."""
    other = b.arrays()
    return next((p for p, x in a.arrays().items() if x.tobytes() != other[p].tobytes()), None)


# ---- the checks -----------------------------------------------------------------------------------


def uses_what_it_declares(make: Make) -> None:
    """The channels that carried something are the declared ones, no more and no fewer."""
    for hidden in (CHAIN, BRANCHES):
        engine, state, batch = bench(make, hidden)
        _, ledger = engine.step(state, batch)
        used = {channel for channel, _ in ledger.floats} - {"activity"}
        declared = {c.value for c in engine.rule.channels}
        assert used == declared, (
            f"it declares {sorted(declared) or 'no channel'} and used {sorted(used) or 'none'}. "
            f"Make the class attribute `channels` say what the step sends."
        )
        assert bool(ledger.transposes) == ("transpose" in declared), (
            f"it transposed forward weights {ledger.transposes} times and declares {declared}."
        )


def only_the_engine_writes(make: Make) -> None:
    """Hooks leave every array of the state and of the batch as it was."""
    engine, state, batch = bench(make)
    before, x, y = state.copy(), batch.x.copy(), batch.y.copy()
    engine.updates(state, batch)
    engine.predict(state, batch.x)
    changed = same_bits(before, state)
    assert changed is None, f"a hook wrote to {changed}; return an Update instead."
    assert (batch.x == x).all() and (batch.y == y).all(), "a hook wrote to the batch."
    assert state.step == 0, "computing updates advanced the step."


def is_a_function_of_the_seed(make: Make) -> None:
    """The same seed gives the same bits; another seed gives other numbers."""
    found = []
    for seed in (4, 4, 5):
        engine, state, batch = bench(make, seed=seed)
        for _ in range(3):
            engine.step(state, batch)
        found.append(state)
    changed = same_bits(found[0], found[1])
    assert changed is None, f"{changed} differs between two runs with one seed: draw from v.key."
    assert same_bits(found[0], found[2]) is not None, "two seeds gave the same run."


def works_in_both_precisions(make: Make) -> None:
    """float32 and float64: the dtype is kept, the loss is finite, the updates agree."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for dtype in ("float32", "float64"):
        engine, state, batch = bench(make, dtype=dtype)
        found[dtype] = dict(learned(engine, engine.updates(state, batch)))
        for path, g in found[dtype].items():
            assert g.dtype == dtype, f"the update {path} is {g.dtype} in a {dtype} network."
        info, _ = engine.step(state, batch)
        assert "loss" in info or "head_loss" in info, "step or update reports no loss."
        for name, value in info.items():
            assert np.isfinite(value), f"{name} is {value} after one step in {dtype}."
        bad = state.first_bad()
        assert bad is None, f"{bad} is not finite after one step in {dtype}."
        for path, a in state.arrays().items():
            assert a.dtype == dtype, f"{path} became {a.dtype} in a {dtype} network."
    for path, g in found["float64"].items():
        far = np.linalg.norm(found["float32"][path] - g)
        limit = 1e-3 * np.linalg.norm(g)
        assert far <= limit, f"the update {path} differs between precisions by {far / limit:.1e}."


def works_on_one_sample_of_two_classes(make: Make) -> None:
    """A batch of one, and the smallest number of classes."""
    for rows, n_classes in ((1, 3), (5, 2), (1, 2)):
        engine, state, batch = bench(make, n_classes=n_classes, rows=rows)
        engine.step(state, batch)
        bad = state.first_bad()
        assert bad is None, f"{bad} is not finite with {rows} samples of {n_classes} classes."
        assert engine.predict(state, batch.x).shape == (rows, n_classes)


def moves_what_it_learns(make: Make) -> None:
    """A tensor that gets an update gets one that is not zero, and moves in the first step."""
    engine, state, batch = bench(make, rows=29)
    before = state.copy()
    updates = engine.updates(state, batch)
    found = dict(learned(engine, updates))
    assert found, "no layer returns an update."
    for path, g in found.items():
        assert g.any(), f"the update {path} is exactly zero: return Update() where nothing learns."
    engine.step(state, batch)
    for i, u in enumerate(updates):
        parts = [(state.params, before.params, {**u.grads, **u.assign})]
        parts.append((state.aux, before.aux, {**u.aux_grads, **u.aux_assign}))
        for now, then, tensors in parts:
            for name in tensors:
                moved = (now[i][name] != then[i][name]).any()
                assert moved, f"{name} of layer {i} did not move in a step."


def survives_dead_units(make: Make) -> None:
    """Where every pre-activation of a rectified layer is negative, updates stay finite."""
    engine, state, batch = bench(make, "dense 17 relu | dense 13 relu | dense 12 relu")
    for slots in state.params[:-1]:
        for name in slots:
            if name.rpartition(".")[2] == "b":  # "b", and "0.b" in a block
                slots[name] = -100.0
    for path, g in learned(engine, engine.updates(state, batch)):
        assert np.isfinite(g).all(), f"the update {path} is not finite where all units are silent."
    engine.step(state, batch)
    assert state.first_bad() is None, f"{state.first_bad()} is not finite with silent units."


def resumes_bit_exact(make: Make) -> None:
    """Save, load and go on gives the bits of an uninterrupted run."""
    engine, through, batch = bench(make, dtype="float32")
    stopped = through.copy()
    for _ in range(4):
        engine.step(through, batch)
    for _ in range(2):
        engine.step(stopped, batch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "half.safetensors"
        stopped.save(os.fspath(path))
        resumed = load(path)
    again = bench(make, dtype="float32").engine
    for _ in range(2):
        again.step(resumed, batch)
    changed = same_bits(through, resumed)
    assert changed is None, f"{changed} differs after resuming: keep it in aux, not elsewhere."


def repeats_its_steps(make: Make) -> None:
    """A step repeated from a recording has the bits of one that runs the rule's code."""
    for hidden, dtype, backend in (
        (CHAIN, "float32", "numba"),
        (BRANCHES, "float64", "reference"),
    ):
        states, told = [], []
        for mode in MODES:
            engine, state, _ = bench(make, hidden, dtype=dtype, backend=backend, mode=mode)
            if engine.tapes is not None:
                engine.tapes.strict = True
            info: list[Any] = []
            for step in range(5):
                batch = samples(5 if step % 4 == 3 else 7, 3, seed=step)
                info += engine.step(state, batch._replace(x=batch.x.copy()))
            states.append(state)
            told.append([(n, np.asarray(a).tobytes()) for i in info[::2] for n, a in i.items()])
            told[-1] += info[1::2]
        changed = same_bits(states[0], states[1])
        assert changed is None, f"{changed} differs between a step and its repetition."
        assert told[0] == told[1], "a repeated step reports something else."


def refuses_unknown_settings(make: Make) -> None:
    """An unknown hyper-parameter is told by name."""
    try:
        make(no_such_setting=1)
    except SpecError as e:
        assert "no_such_setting" in str(e), f"the message does not name the parameter: {e}"
    else:
        raise AssertionError("it accepts a hyper-parameter that does not exist.")


def agrees_across_backends(make: Make) -> None:
    """The compiled kernels give the reference's updates."""
    found = []
    for backend in ("reference", "numba"):
        engine, state, batch = bench(make, BRANCHES, backend=backend)
        found.append(dict(learned(engine, engine.updates(state, batch))))
    assert found[0].keys() == found[1].keys(), "backends update different tensors."
    for path, g in found[0].items():
        far, size = np.linalg.norm(found[1][path] - g), np.linalg.norm(g)
        assert far <= 1e-9 * size, f"the update {path} differs between backends by {far / size:.1e}"


def weighs_samples(make: Make) -> None:
    """Equal sample weights, of any size, are no weights; unequal ones change what is learned."""
    engine, state, batch = bench(make)

    def with_weight(weight: Any) -> dict[str, np.ndarray]:
        return dict(learned(engine, engine.updates(state, batch._replace(weight=weight))))

    n, plain = len(batch.x), with_weight(None)
    for path, g in with_weight(np.full(n, 3.0)).items():
        near = np.allclose(g, plain[path], rtol=1e-10, atol=1e-14)
        assert near, f"the update {path} changes when all samples weigh three times as much."
    uneven = with_weight(np.arange(1.0, n + 1))
    differs = any(not np.allclose(g, plain[p]) for p, g in uneven.items())
    assert differs, "sample weights have no effect: take means in v.param_vjp alone."


def predicts_each_sample_alone(make: Make) -> None:
    """Scores are finite and depend neither on the other samples nor on the rows per sweep."""
    engine, state, batch = bench(make, rows=9)
    engine.step(state, batch)
    for by in engine.rule.predictors:
        scores = engine.predict(state, batch.x, by)
        assert scores.shape == (9, 3) and np.isfinite(scores).all(), f"scores by {by} are no good."
        in_parts = engine.predict(state, batch.x, by, rows=2)
        backwards = engine.predict(state, batch.x[::-1], by)[::-1]
        near = np.allclose(scores, in_parts, 1e-10) and np.allclose(scores, backwards, 1e-10)
        assert near, f"prediction by {by} depends on which samples come together."


def probes_only_read(make: Make) -> None:
    """A probe sees each update and changes no bit of the run."""
    engine, state, batch = bench(make)
    plain = state.copy()
    engine.step(plain, batch)
    engine.probes = {"n": lambda v, u: float(len(u.grads))}
    info, _ = engine.step(state, batch)
    assert any(name.startswith("n/") for name in info), "no update reached the probe."
    assert same_bits(plain, state) is None, "a probe changed the run."


CHECKS: tuple[Callable[[Make], None], ...] = (
    uses_what_it_declares,
    only_the_engine_writes,
    is_a_function_of_the_seed,
    works_in_both_precisions,
    works_on_one_sample_of_two_classes,
    moves_what_it_learns,
    survives_dead_units,
    resumes_bit_exact,
    repeats_its_steps,
    refuses_unknown_settings,
    agrees_across_backends,
    weighs_samples,
    predicts_each_sample_alone,
    probes_only_read,
)
