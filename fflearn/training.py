"""The training loop: batches, evaluation, early stopping, checkpoints, resuming."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fflearn import registry
from fflearn.base import Batch, Ledger, Rule
from fflearn.data import Batches, DataSet
from fflearn.data import load as load_data
from fflearn.engine import Engine
from fflearn.errors import CheckpointError, DivergenceError, SpecError
from fflearn.networks import network
from fflearn.optim import Optimizer
from fflearn.optim import optimizer as optimizer_by_name
from fflearn.registry import Variant
from fflearn.state import State, check_same_arrays
from fflearn.state import load as load_state

CHECKPOINT, FINAL = "checkpoint.safetensors", "final.safetensors"


@dataclass
class Progress:
    """What a callback sees after an epoch, and what a finished run leaves.

    Attributes
    ----------
    curves : dict of str to list
        "epoch", "loss" (mean over the epoch's steps), "accuracy" (held-out part; None where not
        evaluated) and "seconds" (training alone, so far).
    best : tuple of (float, int)
        Best accuracy on the held-out part, and its epoch.
    """

    engine: Any
    state: State
    data: DataSet
    epochs: int
    curves: dict[str, list[Any]] = field(
        default_factory=lambda: {"epoch": [], "loss": [], "accuracy": [], "seconds": []}
    )
    best: tuple[float, int] = (-1.0, 0)
    ledger: Ledger = field(default_factory=Ledger)
    compile_seconds: float = 0.0
    finished: bool = False

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.curves["epoch"])

    @property
    def train_seconds(self) -> float:
        """Time spent in training steps alone: no evaluation, no compilation, no files."""
        return self.curves["seconds"][-1] if self.curves["seconds"] else 0.0


def train(
    net: Any,
    rule: Rule | str,
    data: DataSet | str | tuple[Any, ...],
    *,
    epochs: int = 20,
    batch_size: int = 32,
    seed: int = 0,
    optimizer: Optimizer | None = None,
    objective: str = "softmax_cross_entropy",
    backend: str = "numba",
    dtype: str = "float32",
    threads: int = 1,
    patience: int = 0,
    out: str | Path | None = None,
    callbacks: Iterable[Callable[[Progress], bool | None]] = (),
    quiet: bool = True,
) -> Progress:
    """Train a network by a rule.

    Parameters
    ----------
    net : str, Network or list of layers
    rule : Rule or str
    data : DataSet, name, path, or arrays (x, y)
    epochs, batch_size, seed : int
    optimizer : Optimizer, optional
        Default: the rule's own.
    patience : int
        Above 0: hold out a tenth of the training part, and stop after this many epochs without
        a better accuracy on it.
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
        A loss that is not finite; the state is that of the last good epoch.
    SpecError, ShapeError, DataError, CheckpointError

    Examples
    --------
    >>> import fflearn
    >>> run = fflearn.train("dense 32 relu | dense 10", "dfa", "digits", epochs=2)
    >>> run.epoch
    2
    """
    data = load_data(data)
    rule = registry.rule(rule) if isinstance(rule, str) else rule
    engine = Engine(
        net,
        rule,
        data.in_shape,
        data.n_classes,
        optimizer=optimizer,
        objective=objective,
        backend=backend,
        dtype=dtype,
        threads=threads,
    )
    return fit(
        engine,
        data,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        patience=patience,
        out=out,
        callbacks=callbacks,
        quiet=quiet,
    )


def fit(
    engine: Any,
    data: DataSet,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    patience: int = 0,
    evaluate_every: int = 1,
    out: str | Path | None = None,
    save_every_seconds: float = 0.0,
    callbacks: Iterable[Callable[[Progress], bool | None]] = (),
    quiet: bool = True,
    label: str = "",
) -> Progress:
    """Run an engine to the end of its epochs: see `train`.

    ``save_every_seconds`` spaces the checkpoints of short epochs.
    """
    if epochs < 1:
        raise SpecError(f"epochs needs a whole number from 1 on; got {epochs!r}.")
    if patience:
        data = data.split_validation()
    batches = Batches(data, batch_size, seed)
    engine.horizon = (batches.steps_per_epoch, epochs)
    state = engine.init(seed)
    run = Progress(engine, state, data, epochs)
    identity = _identity(engine, data, epochs, batch_size, patience)
    state.meta |= {"run": identity}
    files = _Files(Path(out), save_every_seconds) if out is not None else None
    if files is not None:
        files.resume(run)
    if run.finished:
        return run
    _warm_up(run, batches)
    from tqdm import tqdm

    total = batches.steps_per_epoch * epochs
    with tqdm(
        total=total, initial=run.state.step, desc=label, disable=quiet or None, leave=False
    ) as bar:
        while run.epoch < epochs and not run.finished:
            _epoch(run, batches, bar)
            last = run.epoch == epochs
            _evaluate(run, force=last or run.epoch % evaluate_every == 0)
            bar.set_postfix(_shown(run))
            stop = bool(patience) and run.epoch - run.best[1] >= patience
            for callback in callbacks:
                stop |= bool(callback(run))
            run.finished = last or stop
            if files is not None:
                files.save(run)
    return run


def _epoch(run: Progress, batches: Batches, bar: Any) -> None:
    engine, state = run.engine, run.state
    good, losses = state.copy(), []
    one_hot = np.eye(engine.n_classes, dtype=engine.dtype)
    seconds = run.train_seconds
    for step in range(state.step, (run.epoch + 1) * batches.steps_per_epoch):
        start = time.perf_counter()
        x, labels = batches.batch(step)
        info, ledger = engine.step(state, Batch(x, one_hot[labels]))
        losses.append(float(info.get("loss", 0.0)))
        seconds += time.perf_counter() - start
        if not math.isfinite(losses[-1]):
            _diverged(run, good, step)
        if len(x) == batches.batch_size:
            run.ledger = ledger
        bar.update()
    if state.first_bad():
        _diverged(run, good, state.step - 1)
    for name, value in [("epoch", run.epoch + 1), ("loss", sum(losses) / len(losses))]:
        run.curves[name].append(value)
    run.curves["seconds"].append(seconds)


def _diverged(run: Progress, good: State, step: int) -> None:
    bad = run.state.first_bad()
    layer = "loss" if bad is None else run.engine.specs[int(bad.split("/")[1])].name
    run.state.restore(good)
    raise DivergenceError(
        f"the {'loss' if bad is None else f'layer {layer!r}'} is not finite at step {step}. The "
        f"state was put back to step {good.step}. Try a smaller learning rate, or scale the "
        f"inputs.",
        layer,
        step,
    )


def _evaluate(run: Progress, force: bool) -> None:
    """Accuracy on the held-out part: the validation part where one was split off, else test."""
    found = None
    if force:
        found = accuracy(run.engine, run.state, run.data.x_test, run.data.y_test)
        if found > run.best[0]:
            run.best = (found, run.epoch)
    run.curves["accuracy"].append(found)


def accuracy(engine: Any, state: State, x: Any, labels: Any, by: str = "") -> float:
    """Share of samples whose highest score is at their label."""
    return float((engine.predict(state, x, by).argmax(axis=1) == labels).mean())


def _warm_up(run: Progress, batches: Batches) -> None:
    """Compile and count on a copy of the state, so that neither is in the training time."""
    x, labels = batches.batch(0)
    batch = Batch(x, np.eye(run.engine.n_classes, dtype=run.engine.dtype)[labels])
    times = []
    for _ in range(2):
        start = time.perf_counter()
        run.engine.step(run.state.copy(), batch)
        times.append(time.perf_counter() - start)
    run.compile_seconds += max(0.0, times[0] - times[1])


def _shown(run: Progress) -> dict[str, str]:
    found = [a for a in run.curves["accuracy"] if a is not None]
    shown = {"loss": f"{run.curves['loss'][-1]:.3g}"}
    return {**shown, "accuracy": f"{found[-1]:.4f}"} if found else shown


def _identity(
    engine: Any, data: DataSet, epochs: int, batch_size: int, patience: int
) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued or used."""
    return {
        "rule": registry.name_of(engine.rule),
        "params": engine.rule.settings(),
        "net": engine.given.spec(),
        "in_shape": list(engine.in_shape),
        "n_classes": engine.n_classes,
        "classes": list(data.classes),
        "objective": engine.objective.kind,
        "optimizer": json.loads(json.dumps(engine.optimizer.settings())),
        "dtype": engine.dtype,
        "backend": engine.backend,
        "data_sha256": data.sha256,
        "epochs": epochs,
        "batch_size": batch_size,
        "patience": patience,
    }


class _Files:
    """The two files of a run in its folder."""

    def __init__(self, folder: Path, every_seconds: float):
        self.folder, self.every, self.saved = folder, every_seconds, time.monotonic()

    def resume(self, run: Progress) -> None:
        """Take over the state and curves of an earlier, equal run, if there is one."""
        path = next(
            (p for p in (self.folder / FINAL, self.folder / CHECKPOINT) if p.exists()), None
        )
        if path is None:
            return
        kept = load_state(path)
        mine, theirs = run.state.meta["run"], kept.meta.get("run", {})
        differs = [n for n in mine if mine[n] != theirs.get(n)]
        if differs or kept.seed != run.state.seed:
            names = [*differs, *(["seed"] if kept.seed != run.state.seed else [])]
            raise CheckpointError(
                f"{path} belongs to a run with another {', '.join(names)}. Choose another --out, "
                f"or repeat the options of that run."
            )
        check_same_arrays(run.state.arrays(), kept.arrays(), str(path))
        progress = kept.meta.pop("progress")
        run.state.restore(kept)
        run.curves, run.best = progress["curves"], tuple(progress["best"])
        run.compile_seconds, run.finished = progress["compile_seconds"], path.name == FINAL
        if run.finished:
            run.ledger = _counted_again(run)

    def save(self, run: Progress) -> None:
        """Write the checkpoint, or at the end the final file in its place."""
        if not run.finished and time.monotonic() - self.saved < self.every:
            return
        progress = {
            "curves": run.curves,
            "best": run.best,
            "compile_seconds": run.compile_seconds,
        }
        kept = State(
            run.state.params,
            run.state.aux,
            run.state.opt,
            run.state.step,
            run.state.seed,
            {**run.state.meta, "progress": progress},
        )
        kept.save(self.folder / (FINAL if run.finished else CHECKPOINT))
        if run.finished:
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
        self.saved = time.monotonic()


def _counted_again(run: Progress) -> Ledger:
    size = min(run.state.meta["run"]["batch_size"], len(run.data.x_train))
    labels = run.data.y_train[:size]
    y = np.eye(run.engine.n_classes, dtype=run.engine.dtype)[labels]
    return run.engine.step(run.state.copy(), Batch(run.data.x_train[:size], y))[1]


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
        engine = make_engine(
            Variant(run["rule"], run["params"]),
            run["net"],
            tuple(run["in_shape"]),
            run["n_classes"],
            optimizer=optimizer_by_name(**run["optimizer"]),
            objective=run["objective"],
            dtype=run["dtype"],
        )
    except (KeyError, TypeError) as e:
        raise CheckpointError(f"{path} is damaged: its description lacks {e}.") from e
    check_same_arrays(engine.init(0).arrays(), state.arrays(), str(path))
    return engine, state


def make_engine(variant: Variant, net: Any, *args: Any, **options: Any) -> Any:
    """The engine of a rule, or PyTorch's autograd for the rule "torch"; same interface."""
    if variant.name == registry.REFERENCE:
        from fflearn.reference import TorchEngine

        options.pop("backend", None)  # PyTorch has kernels of its own
        return TorchEngine(net, *args, **options)
    if variant.network_of:
        net = registry.build(Variant(variant.network_of)).adapt(network(net))
    return Engine(net, registry.build(variant), *args, **options)
