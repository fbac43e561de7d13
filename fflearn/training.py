"""The training loop: batches, evaluation, early stopping."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fflearn import memory, registry
from fflearn.base import Ledger, Rule
from fflearn.data import Data
from fflearn.data import load as load_data
from fflearn.energy import EnergyMeter
from fflearn.engine import Engine
from fflearn.errors import CheckpointError, DivergenceError, SpecError
from fflearn.experiment import OBJECTIVES, source, whole
from fflearn.networks import network
from fflearn.optim import Optimizer
from fflearn.optim import optimizer as optimizer_by_name
from fflearn.probes import Probing
from fflearn.registry import Variant
from fflearn.run_files import RunFiles
from fflearn.sizes import size
from fflearn.state import State, check_same_arrays
from fflearn.state import load as load_state


@dataclass(frozen=True)
class Budget:
    """What a run may spend before it stops, besides its epochs, which schedules go by.

    Attributes
    ----------
    seconds : float
        Of training steps alone.
    samples : float
        Shown in training; the last batch may go beyond.
    """

    seconds: float = math.inf
    samples: float = math.inf

    def __post_init__(self) -> None:
        for name in ("seconds", "samples"):
            if not getattr(self, name) > 0:
                raise SpecError(f"a budget needs {name} above 0; got {getattr(self, name)}.")

    def spent(self, seconds: float, samples: float) -> bool:
        """Whether the run has to stop."""
        return seconds >= self.seconds or samples >= self.samples


@dataclass
class Progress:
    """What a callback sees after an epoch, and what a finished run leaves.

    Attributes
    ----------
    curves : dict of str to list
        "epoch", "loss" (mean over the epoch's steps), the first of the data's measures, as
        "accuracy" (held-out part; None where not evaluated), and "seconds" (training alone, so
        far), "joules" (None where no counter can be read), and the probes' "name/layer index".
    best : tuple of (float, int)
        Best of that measure on the held-out part, and its epoch.
    finished : bool
        No epoch is to come: all are done, or the run was stopped.
    samples : int
        Shown in training so far.
    """

    engine: Any
    state: State
    data: Data
    epochs: int
    curves: dict[str, list[Any]] = field(default_factory=dict)
    best: tuple[float, int] = (-math.inf, 0)
    ledger: Ledger = field(default_factory=Ledger)
    compile_seconds: float = 0.0
    finished: bool = False
    label: str = ""
    samples: int = 0

    def __post_init__(self) -> None:
        self.curves = {"epoch": [], "loss": [], self.measure: [], "seconds": []} | self.curves

    @property
    def measure(self) -> str:
        """The score by which networks are compared; the higher the better."""
        return self.data.measures[0]

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.curves["epoch"])

    def note(self, measured: Mapping[str, float | None]) -> None:
        """A further point of the probes' curves; None for those that were not measured."""
        names = [n for n in self.curves if "/" in n]
        for name in dict.fromkeys([*names, *measured]):
            curve = self.curves.setdefault(name, [None] * (self.epoch - 1))
            curve.append(measured.get(name))

    @property
    def train_seconds(self) -> float:
        """Time spent in training steps alone: no evaluation, no compilation, no files."""
        return self.curves["seconds"][-1] if self.curves["seconds"] else 0.0


def train(
    net: Any,
    rule: Rule | str,
    data: Data | str | tuple[Any, ...],
    *,
    epochs: int = 20,
    batch_size: int = 32,
    seed: int = 0,
    optimizer: Optimizer | None = None,
    objective: str = "",
    backend: str = "numba",
    dtype: str = "float32",
    threads: int = 1,
    patience: int = 0,
    evaluate_every: int = 1,
    budget: Budget = Budget(),
    memory_budget: str | int = "",
    probes: Iterable[str] = (),
    out: str | Path | None = None,
    callbacks: Iterable[Callable[[Progress], bool | None]] = (),
    quiet: bool = True,
) -> Progress:
    """Train a network by a rule.

    Parameters
    ----------
    net : str, Network or list of layers
        A name, as "gcn" or "lstm width=32", takes its number of outputs from the data.
    rule : Rule or str
        As the command line writes it: "dfa", "dfa[scale=2]", "my_rule.py", "torch".
    data : Data, name, path, or arrays (x, y); see `fflearn.load_data`
    epochs, batch_size, seed : int
    optimizer : Optimizer, optional
        Default: the rule's own.
    objective : str
        Default: softmax_cross_entropy, or mse for data with numbers to predict.
    patience : int
        Above 0: hold out a tenth of the training part, and stop after this many epochs without
        a better accuracy (R squared) on it.
    evaluate_every : int
        Epochs between two evaluations for the curves; the last epoch is always evaluated.
    budget : Budget
        Seconds or samples after which the run stops, within an epoch if need be.
    memory_budget : str or int
        Bytes that arrays may take, as "200MB": batches go in parts or activity is computed twice
        where that is needed and learns the same, or nothing is begun; see `fflearn.memory`.
    probes : iterable of str
        Names of `fflearn.probes`, measured where the run is evaluated, on its first batch (what
        layers hold on samples of both parts); in ``.curves`` as "name/layer index".
    out : path, optional
        Folder for ``checkpoint.safetensors`` (once an epoch) and ``final.safetensors``.  The
        same call again resumes bit for bit, or returns the finished run.
    callbacks : iterable of callable
        Called with the `Progress` after every epoch; True stops the run.
    quiet : bool
        False shows a progress bar.

    Returns
    -------
    Progress
        ``.engine``, ``.state`` and ``.curves``.

    Raises
    ------
    DivergenceError
        A loss or a parameter that is not finite; files and state are those of the last epoch.
    SpecError, ShapeError, DataError, CheckpointError, BackendUnavailable, MissingExtra
        Before anything is trained.

    Examples
    --------
    >>> import fflearn
    >>> run = fflearn.train("dense 32 relu | dense 10", "dfa", "digits", epochs=2)
    >>> run.epoch
    2
    """
    loaded: Any = load_data(data)
    engine = make_engine(
        net,
        rule if isinstance(rule, Rule) else registry.parse(rule),
        loaded.in_shape,
        loaded.n_classes,
        optimizer=optimizer,
        objective=objective or OBJECTIVES[loaded.task],
        task=loaded.task,
        backend=backend,
        dtype=dtype,
        threads=threads,
    )
    return fit(
        engine,
        loaded,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        patience=patience,
        evaluate_every=evaluate_every,
        budget=budget,
        memory_budget=memory_budget,
        probes=probes,
        out=out,
        callbacks=callbacks,
        quiet=quiet,
    )


def fit(
    engine: Any,
    data: Data,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    patience: int = 0,
    evaluate_every: int = 1,
    budget: Budget = Budget(),
    memory_budget: str | int = "",
    probes: Iterable[str] = (),
    out: str | Path | None = None,
    save_every_seconds: float = 0.0,
    callbacks: Iterable[Callable[[Progress], bool | None]] = (),
    quiet: bool = True,
    label: str = "",
) -> Progress:
    """Run an engine to the end of its epochs: see `train`.

    ``save_every_seconds`` spaces the checkpoints of short epochs; ``label`` is what progress bar
    and errors call the run.
    """
    epochs, patience = whole("epochs", epochs, 1), whole("patience", patience, 0)
    evaluate_every, seed = whole("evaluate_every", evaluate_every, 1), whole("a seed", seed, 0)
    if patience:
        data = data.split_validation()
    batches, callbacks = data.batches(batch_size, seed), tuple(callbacks)
    if k := _device_of(engine):
        batches = batches.on(k)
    engine.horizon = (batches.steps_per_epoch, epochs)
    if memory_budget:
        engine = _within(engine, batches, memory_budget, out)
    run = Progress(engine, engine.init(seed), data, epochs)
    identity = _identity(engine, data, epochs, batches.batch_size, patience, budget)
    run.state.meta |= {"run": identity}
    run.label = label or identity["rule"]
    probing = Probing(engine, batches.batch(0), probes, data)
    first, _ = _rehearsed(run, batches, 1)  # a mistake shows before a file is made
    with RunFiles(out, save_every_seconds) as files:
        files.resume(run)
        run.samples = _samples(run, batches)
        # The second step is recorded or captured, too; the third is the first that is repeated.
        then, run.ledger = _rehearsed(run, batches, 1 if run.finished else 3)
        if not run.finished:
            run.compile_seconds += sum(max(0.0, t - then[-1]) for t in first + then)
        meter = EnergyMeter()
        with _bar(run, batches, quiet) as bar:
            while not run.finished:
                spent = _epoch(run, batches, bar, meter, budget)
                last = run.epoch == epochs or spent
                due = last or run.epoch % evaluate_every == 0
                _evaluate(run, due)
                run.note(probing.measure(run.state) if due else {})
                bar.set_postfix(_shown(run))
                stop = bool(patience) and run.epoch - run.best[1] >= patience
                for callback in callbacks:
                    stop |= bool(callback(run))
                run.finished = last or stop
                files.save(run)
        files.finish(run)
    return run


def _within(engine: Any, batches: Any, budget: str | int, out: Any) -> Any:
    """The engine, kept within a memory budget; the run has a copy of the state, and a file one."""
    if not isinstance(engine, Engine):
        raise SpecError("torch takes the memory that it takes. Leave the memory budget out.")
    copies = 1 + (out is not None)
    return memory.fitted(engine, batches.batch(0), batches.batch_size, size(budget), copies)


def _bar(run: Progress, batches: Any, quiet: bool) -> Any:
    from tqdm import tqdm

    steps = {"total": batches.steps_per_epoch * run.epochs, "initial": run.state.step}
    # disable=None: no bar where the output is no terminal
    return tqdm(**steps, desc=run.label, disable=quiet or None, leave=False)


def _epoch(run: Progress, batches: Any, bar: Any, meter: EnergyMeter, budget: Budget) -> bool:
    """Train for an epoch, or until the budget is spent: then it is True."""
    engine, state = run.engine, run.state
    good, losses = state.copy(), Losses(engine)
    seconds, spent = run.train_seconds, False
    meter.joules()  # what evaluation took before does not count
    with np.errstate(all="ignore"), engine.running():  # what overflows is found below, and raised
        for step in range(state.step, (run.epoch + 1) * batches.steps_per_epoch):
            start = time.perf_counter()
            batch = batches.batch(step)
            info, ledger = engine.step(state, batch)
            bad = losses.note(info.get("loss", 0.0))
            seconds += time.perf_counter() - start
            if bad is not None:
                _diverged(run, good, step - bad)
            if len(batch.x) == batches.batch_size:
                run.ledger = ledger
            bar.update()
            run.samples = _samples(run, batches)
            if spent := budget.spent(seconds, run.samples):
                break
        bad = None
        if losses.waiting:  # for a device: it finishes here
            start = time.perf_counter()
            bad = losses.read()
            seconds += time.perf_counter() - start
        if bad is not None:
            _diverged(run, good, state.step - 1 - bad)
    if state.first_bad():
        _diverged(run, good, state.step - 1)
    complete = state.step % batches.steps_per_epoch == 0
    run.curves["epoch"].append(run.epoch + 1 if complete else state.step / batches.steps_per_epoch)
    run.curves["loss"].append(sum(losses.found) / len(losses.found))
    run.curves["seconds"].append(seconds)
    joules, curve = meter.joules(), run.curves.setdefault("joules", [])
    so_far = curve[-1] if curve else 0.0
    curve.append(None if joules is None or so_far is None else so_far + joules)
    return spent


def _device_of(engine: Any) -> Any:
    """The kernels of a device; None where arrays are NumPy's (and of PyTorch's engine)."""
    k = getattr(engine, "kernels", None)
    return None if k is None or k.on_host else k


class Losses:
    """The losses of an epoch.  A device keeps them, and is asked for `EVERY` at once.

    Attributes
    ----------
    found : list of float
        Those read so far.
    waiting : list
        Those still on the device.
    """

    EVERY = 100

    def __init__(self, engine: Any):
        self.found: list[float] = []
        self._k = _device_of(engine)
        self.waiting: list[Any] = []

    def note(self, loss: Any) -> int | None:
        """Take over a step's; as `read` where it is time to."""
        # A copy: the next step overwrites what this one reports.
        kept = self._k is not None and hasattr(loss, "dtype")
        self.waiting.append(loss + 0.0 if kept else loss)
        return None if kept and len(self.waiting) < self.EVERY else self.read()

    def read(self) -> int | None:
        """Read those that wait: how many steps ago the first was that is not finite, or None."""
        new, self.waiting = self.waiting, []
        if self._k is not None and new and hasattr(new[-1], "dtype"):
            new = self._k.host(self._k.stack(new)).tolist()
        new = list(map(float, new))
        self.found += new
        bad = (i for i, loss in enumerate(new) if not math.isfinite(loss))
        return next((len(new) - 1 - i for i in bad), None)


def _samples(run: Progress, batches: Any) -> int:
    """Shown in training so far; the last batch of an epoch may be short."""
    epochs, steps = divmod(run.state.step, batches.steps_per_epoch)
    return int(epochs * run.data.n_train + steps * batches.batch_size)


def _diverged(run: Progress, good: State, step: int) -> None:
    bad = run.state.first_bad()
    layer = "loss" if bad is None else run.engine.specs[int(bad.split("/")[1])].name
    run.state.restore(good)
    raise DivergenceError(
        f"{run.label}: the {'loss' if bad is None else f'layer {layer!r}'} is not finite at step "
        f"{step}. The state was put back to step {good.step}. Try a smaller learning rate, or "
        f"scale the inputs.",
        layer,
        step,
    )


def _evaluate(run: Progress, force: bool) -> None:
    """Score the held-out part: the validation part where one was split off, else test."""
    found = None
    if force:
        found = score(run.engine, run.state, run.data)[run.measure]
        if found > run.best[0]:
            run.best = (found, run.epoch)
    run.curves[run.measure].append(found)


def score(engine: Any, state: State, data: Any, by: str = "") -> dict[str, float]:
    """The scores that the data give a network on their test part, the first of `measures` first."""
    return data.score(lambda x, side=None: engine.predict(state, x, by, side=side))


def _rehearsed(run: Progress, batches: Any, steps: int) -> tuple[list[float], Ledger]:
    """Steps on one copy of the state, to compile and to count: the seconds of each, the ledger."""
    state, batch, seconds = run.state.copy(), batches.batch(0), []
    with np.errstate(all="ignore"):
        for _ in range(steps):
            start = time.perf_counter()
            _, ledger = run.engine.step(state, batch)
            seconds.append(time.perf_counter() - start)
    return seconds, ledger


def _shown(run: Progress) -> dict[str, str]:
    found = [a for a in run.curves[run.measure] if a is not None]
    shown = {"loss": f"{run.curves['loss'][-1]:.3g}"}
    return {**shown, run.measure: f"{found[-1]:.4f}"} if found else shown


def _identity(
    engine: Any, data: Data, epochs: int, batch_size: int, patience: int, budget: Budget
) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued or used, as JSON gives it back."""
    given = {
        "data_sha256": data.sha256,
        "epochs": epochs,
        "batch_size": batch_size,
        "patience": patience,
        **({} if budget == Budget() else {"budget": [str(v) for v in astuple(budget)]}),
    }
    return {**described(engine, data.classes), **given}


def described(engine: Any, classes: tuple[str, ...]) -> dict[str, Any]:
    """What `engine_of` makes an engine from again, as JSON gives it back."""
    rule = registry.name_of(engine.rule)
    identity = {
        "rule": rule,
        "params": engine.rule.settings(),
        "net": engine.given.spec(),
        "in_shape": engine.in_shape,
        "n_classes": engine.n_classes,
        "classes": classes,
        "task": engine.task,
        "objective": engine.objective.kind,
        "optimizer": engine.optimizer.settings(),
        "dtype": engine.dtype,
        "backend": engine.backend,
        **source(rule),
    }
    return json.loads(json.dumps(identity))


def restored(path: str | Path) -> tuple[Any, State]:
    """The engine and state of a checkpoint, ready to predict or to go on.

    Raises
    ------
    CheckpointError
    """
    state = load_state(path)
    run = state.meta.get("run")
    if not isinstance(run, dict):
        raise CheckpointError(f"{path} does not say which run it belongs to.")
    try:
        engine, named = engine_of(run), len(run["classes"])
    except (AttributeError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path} is damaged: its description of the run ({e}).") from e
    if named not in (0, engine.n_classes):
        raise CheckpointError(f"{path} is damaged: {named} names of {engine.n_classes} classes.")
    check_same_arrays(engine.init(0).arrays(), state.arrays(), str(path))
    return engine, state


def engine_of(run: dict[str, Any], **options: Any) -> Any:
    """The engine that `described` described; ``options`` are further ones of `make_engine`."""
    return make_engine(
        run["net"],
        Variant(run["rule"], _tuples(run["params"])),
        tuple(run["in_shape"]),
        run["n_classes"],
        optimizer=optimizer_by_name(**_tuples(run["optimizer"])),
        objective=run["objective"],
        task=run["task"],
        dtype=run["dtype"],
        **options,
    )


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Settings as they were before JSON turned their tuples into lists."""
    return {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}


def make_engine(
    net: Any, rule: Rule | Variant, in_shape: tuple[int, ...], n_classes: int, **options: Any
) -> Any:
    """The engine of a rule; for the rule "torch", PyTorch's autograd with the same interface."""
    if isinstance(rule, Rule):
        return Engine(net, rule, in_shape, n_classes, **options)
    if rule.network_of:
        net = registry.rule(rule.network_of).adapt(network(net, n_classes))
    if rule.name != registry.REFERENCE:
        return Engine(net, registry.build(rule), in_shape, n_classes, **options)
    from fflearn.reference import TorchEngine

    if rule.params:
        raise SpecError(f"{rule.label}: the reference has no parameters.")
    options.pop("backend", None)  # PyTorch has kernels of its own
    return TorchEngine(net, in_shape, n_classes, **options)
