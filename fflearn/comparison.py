"""Run an experiment: one record per rule and seed, and one table of them all."""

from __future__ import annotations

import json
import math
import statistics
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fflearn import registry, tuning
from fflearn.base import Channel
from fflearn.cluster import spread
from fflearn.data import Data
from fflearn.data import load as load_data
from fflearn.errors import DivergenceError, FFLearnError, ShapeError, SpecError
from fflearn.experiment import Experiment, Run, source, whole
from fflearn.fingerprint import fingerprint, versions
from fflearn.probes import Probing
from fflearn.run_files import writable
from fflearn.state import write_atomically
from fflearn.training import Budget, Progress, fit, make_engine, score

Record = dict[str, Any]


def compare(
    experiment: Experiment | str | Path | None = None,
    *,
    out: str | Path | None = None,
    jobs: int = 1,
    cluster: str = "",
    quiet: bool = True,
    **changes: Any,
) -> list[Record]:
    """Train several rules on the same data and networks, and return a record of each run.

    Parameters
    ----------
    experiment : Experiment or path of a TOML file, optional
        Default: the digits, every rule that can run here, three seeds.
    out : path, optional
        Where the resolved experiment and ``records/*.json`` go; finished records found there
        are taken as they are.  Default: nothing is written.
    jobs : int
        Runs at the same time.  With more than one, times disturb each other: the records say so,
        and no table shows them.
    cluster : str
        The address of a Dask scheduler whose workers do the runs, or "local" for ``jobs`` of them
        on this machine.  They write to ``out`` themselves, and need to see it.
    quiet : bool
        False shows progress bars.
    **changes
        Fields of the Experiment to replace.

    Returns
    -------
    list of dict
        By data set and network, then in the order of the rules and of the seeds; `table` prints
        them.

    Raises
    ------
    SpecError, ShapeError, DataError, MissingExtra
        Before anything is trained.

    Examples
    --------
    >>> import fflearn
    >>> records = fflearn.compare(rules=["dfa"], seeds=[0], epochs=1, net="dense 8 relu | dense 10")
    >>> records[0]["channels_declared"]
    ['error']
    """
    whole("jobs", jobs, 1)
    if isinstance(experiment, (str, Path)):
        experiment = Experiment.load(experiment)
    given = (
        {n: getattr(experiment, n) for n in experiment.__dataclass_fields__} if experiment else {}
    )
    experiment = Experiment.of("compare", given | changes)
    cells = experiment.cells()
    runs: list[tuple[Run, Data]] = []
    loaded = {d: load_data(d, task=experiment.task) for d in dict.fromkeys(c.data for c in cells)}
    for cell in cells:
        whole_cell = _resolved(cell, data := loaded[cell.data])
        _check(found := whole_cell.runs(), data)
        runs += [(run, data) for run in found]
    folder = Path(out) if out is not None else None
    if folder is not None:
        shown = whole_cell if len(cells) == 1 else experiment
        writable(folder / "records")
        write_atomically(folder / "experiment.toml", shown.dump().encode())
    if (jobs > 1 or cluster) and experiment.budget_seconds:
        raise SpecError(
            "a budget in seconds needs the machine to itself: leave jobs at 1, or give a budget in "
            "samples."
        )
    if jobs == 1 and not cluster:
        return [record_of(run, data, folder, quiet) for run, data in runs]
    folder = None if folder is None else folder.absolute()  # workers may start somewhere else
    work = partial(record_of, folder=folder, quiet=True, contended=True)
    if cluster:
        rules = {Path(run.variant.name) for run, _ in runs if source(run.variant.name)}
        files = [*rules, *([] if folder is None else [folder / "experiment.toml"])]
        return spread(cluster, jobs, work, runs, files)
    from joblib import Parallel, delayed

    return list(Parallel(jobs, verbose=0 if quiet else 5)(delayed(work)(*pair) for pair in runs))


def _resolved(cell: Experiment, data: Data) -> Experiment:
    """With every option spelled out; where no rules were chosen, those that fit the data."""
    chosen, cell = bool(cell.rules), cell.resolved(data.n_classes, data.net, data.task)
    return cell if chosen else _of_those_that_fit(cell, data)


def _of_those_that_fit(experiment: Experiment, data: Data) -> Experiment:
    """Without the rules that cannot train this network on these data; a warning says why."""
    refused: dict[str, FFLearnError] = {}
    runs = replace(experiment, adapted=False).runs()[:: len(experiment.seeds)]
    for rule, run in zip(experiment.rules, runs, strict=True):
        try:
            engine_for(run, data).init(run.seed)
        except (SpecError, ShapeError) as e:
            refused[rule] = e
    fits = tuple(rule for rule in experiment.rules if rule not in refused)
    if not fits:
        raise next(iter(refused.values()))
    for rule, why in refused.items():
        warnings.warn(f"{rule} is left out: {why}", UserWarning, stacklevel=4)
    return replace(experiment, rules=fits)


def _check(runs: list[Run], data: Data) -> None:
    """Every mistake shows before the first step of training."""
    e = runs[0].experiment
    if e.tune > 1:
        tuning.require(e.search)
    learned = data.split_validation() if e.patience or e.tune > 1 else data
    learned.batches(e.batch_size, seed=0)
    few = learned.batches(min(2, e.batch_size), seed=0).batch(0)
    plain = replace(e, backend="reference")  # nothing to compile: that is timed, and later
    for run in runs[:: len(e.seeds)]:
        engine_for(run, data).init(run.seed)
        engine = engine_for(replace(run, experiment=plain), data)
        Probing(engine, few, e.probes)
        with np.errstate(all="ignore"):
            engine.updates(engine.init(run.seed), few)


def engine_for(run: Run, data: Data, factor: float = 1.0) -> Any:
    """The engine of a run, its learning rate times ``factor``."""
    e, chosen = run.experiment, run.optimizer()
    return make_engine(
        e.net,
        run.variant,
        data.in_shape,
        data.n_classes,
        optimizer=replace(chosen, lr=chosen.lr * factor),
        objective=e.objective,
        task=data.task,
        backend=e.backend,
        dtype=e.dtype,
        threads=e.threads,
    )


def record_of(
    run: Run, data: Data, folder: Path | None, quiet: bool, contended: bool = False
) -> Record:
    """The record of one run: found finished in ``folder``, or made now.

    ``contended`` says that other runs share the machine, and that its times are no measure.
    """
    slug = run.slug(data.sha256)
    path = folder / "records" / f"{slug}.json" if folder is not None else None
    if path is not None and (found := _finished(path, run)):
        return found
    e, factor, trials = run.experiment, 1.0, []
    if e.tune > 1:
        trials = _tried(run, data, quiet, folder and folder / "trials" / f"{slug}.json")
        factor = tuning.best(trials, data.measures[0])["factor"]
    progress = fit(
        engine_for(run, data, factor),
        data,
        epochs=e.epochs,
        batch_size=e.batch_size,
        seed=run.seed,
        patience=e.patience,
        evaluate_every=e.evaluate_every,
        budget=budget_of(e),
        memory_budget=e.memory_budget,
        probes=e.probes,
        out=folder / "checkpoints" / slug if folder is not None else None,
        save_every_seconds=20.0,
        quiet=quiet,
        label=f"{run.label} seed {run.seed}",
    )
    record = {**_record(run, data, progress, trials), "contended": contended}
    if path is not None:
        write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
    return record


def budget_of(e: Experiment) -> Budget:
    """What a run may spend."""
    return Budget(e.budget_seconds or math.inf, e.budget_samples or math.inf)


def _finished(path: Path, run: Run) -> Record | None:
    """The record of a run, if it is there and whole; otherwise it is made anew."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    wanted = json.loads(json.dumps(run.spec()))
    return record if isinstance(record, dict) and record.get("spec") == wanted else None


def _tried(run: Run, data: Data, quiet: bool, kept: Path | None) -> list[Record]:
    """What became of each learning rate on the validation part; the test part is not looked at.

    Every rule gets the same factors or draws and the same budget.  Every seed is tuned by itself: a
    run depends on nothing but its own settings, and the spread over seeds holds that of tuning.
    """
    e, inner, measure = run.experiment, data.split_validation(), data.measures[0]

    def trial(factor: float) -> Record:
        engine = engine_for(run, data, factor)
        try:
            found = fit(
                engine,
                inner,
                epochs=e.epochs,
                batch_size=e.batch_size,
                seed=run.seed,
                evaluate_every=e.epochs,
                budget=budget_of(e),
                memory_budget=e.memory_budget,
                quiet=quiet,
                label=f"{run.label} lr {engine.optimizer.lr:.3g}",
            ).best[0]
        except DivergenceError:
            found = None  # a learning rate that diverges is a bad one, not an error
        return {"factor": factor, "lr": engine.optimizer.lr, measure: found}

    return tuning.tried(e.search, e.tune, run.seed, trial, measure, kept)


def _record(run: Run, data: Data, progress: Progress, trials: list[Record]) -> Record:
    engine, state, e = progress.engine, progress.state, run.experiment
    metrics = {by: score(engine, state, data, by) for by in engine.rule.predictors}
    measure = progress.measure
    first = next(iter(metrics.values()))
    batch = progress.data.batches(e.batch_size, run.seed).batch(0)
    angles = Probing(engine, batch, ["gradient_angle"]).measure(state)
    inner = [s.index for s in engine.specs if not s.is_output]
    hidden = {str(i): angles.get(f"gradient_angle/{i}") for i in inner}
    channels = sorted(engine.rule.channels, key=list(Channel).index)
    transport = [c.transport for c in channels if c.transport != "no"]
    return {
        "rule": run.variant.name,
        "label": run.label,
        "kind": "reference" if run.variant.name == registry.REFERENCE else "rule",
        "seed": run.seed,
        "data": data.name,
        "data_sha256": data.sha256,
        "data_notes": list(data.notes),
        "net": e.net,
        "net_as_trained": engine.net.spec(),
        "epochs": progress.curves["epoch"][-1],
        "samples_seen": progress.samples,
        "test_n": data.test_n,
        "measures": list(data.measures),
        f"test_{measure}": first[measure],
        "accuracies": {by: m["accuracy"] for by, m in metrics.items() if "accuracy" in m},
        "metrics": metrics,
        "train_seconds": progress.train_seconds,
        "joules": (progress.curves.get("joules") or [None])[-1],
        "compile_seconds": progress.compile_seconds,
        "peak_learning_bytes": progress.ledger.peak_bytes,
        "optimizer_bytes": sum(a.nbytes for slots in state.opt for a in slots.values()),
        "channels_declared": [c.value for c in channels],
        "floats_per_sample": progress.ledger.per_sample(),
        "forward_passes": progress.ledger.forward_passes,
        "weight_transport": transport[-1] if transport else "no",
        "gradient_angles": {layer: a for layer, a in hidden.items() if a is not None},
        "optimizer": engine.optimizer.settings(),
        "trials": trials,
        "spec": run.spec(),
        "versions": versions(),
        "fingerprint": fingerprint(e.backend, e.dtype, e.threads),
        "curves": progress.curves,
    }


def default_folder(experiment: Experiment) -> Path:
    """``runs/<date>-<name>``."""
    return Path("runs") / f"{datetime.now(UTC).astimezone():%Y-%m-%d}-{experiment.name}"


# -- the table -----------------------------------------------------------------------------------
COLUMNS = (  # after the rule and its scores
    "train s",
    "peak MB",
    "floats across layers / sample",
    "forward",
    "angle",
    "transport",
)


def table(records: Iterable[Mapping[str, Any]]) -> str:
    """One row per rule: mean over seeds, and the spread of the data's measures.

    Each data set with each network has a table of its own.
    """
    cells: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for r in records:
        cells.setdefault((r["data"], r["net"]), []).append(r)
    if not cells:
        raise SpecError("there are no records to show.")
    return "\n\n".join(_table(cell) for cell in cells.values())


def _table(records: Iterable[Mapping[str, Any]]) -> str:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for r in records:
        groups.setdefault(r["label"], []).append(r)
    measures = _measures(next(iter(groups.values()))[0])
    head = ("rule", *(f"test {m.replace('_', ' ')}" for m in measures), *COLUMNS)
    rows = [head, *(_row(label, found, measures) for label, found in groups.items())]
    width = [max(len(row[i]) for row in rows) for i in range(len(head))]
    left = {0, len(head) - 4, len(head) - 1}
    lines = [
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, width, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * w for w in width))
    return "\n".join([*lines, "", *_notes(groups)])


def _measures(record: Mapping[str, Any]) -> list[str]:
    """Scores that the table shows; records of before there were others have the accuracy."""
    return record.get("measures", ["accuracy"])


def _row(label: str, found: list[Mapping[str, Any]], measures: list[str]) -> tuple[str, ...]:
    first = found[0]
    by = next(iter(first["metrics"]))
    floats = first["floats_per_sample"]
    alone = [r["train_seconds"] for r in found if not r.get("contended")]
    angles = [a for r in found for a in r.get("gradient_angles", {}).values()]
    order = ["activity", *(c.value for c in Channel)]
    crossed = " + ".join(f"{floats[c]:.6g} {c}" for c in order if c in floats)
    return (
        label,
        *(_spread([r["metrics"][by][m] for r in found]) for m in measures),
        f"{statistics.mean(alone):.2f}" if alone else "-",
        f"{max(r['peak_learning_bytes'] for r in found) / 1e6:.3f}",
        crossed or "none",
        f"{first['forward_passes']:.3g}",
        f"{statistics.mean(angles):.0f}°" if angles else "-",
        first["weight_transport"],
    )


def _spread(values: list[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.4f}" if len(values) < 2 else f"{mean:.4f} ± {statistics.stdev(values):.4f}"


def _notes(groups: Mapping[str, list[Mapping[str, Any]]]) -> list[str]:
    first = next(iter(groups.values()))[0]
    seeds = sorted({r["seed"] for found in groups.values() for r in found})
    many = "±: standard deviation over seeds. " if len(seeds) > 1 else ""
    legend = (
        f"{first['data']}, {first['test_n']} test samples, seeds {', '.join(map(str, seeds))}. "
        f"{many}Train s: training steps alone, {first['fingerprint']['threads']} thread(s). "
        f"Peak MB: arrays kept alive for learning. Angle: mean over hidden layers between what they "
        f"learn and the gradient, after training."
    )
    notes = [legend, f"net: {first['net']}"]
    for label, found in groups.items():
        r = found[0]
        if r["net_as_trained"] != r["net"]:
            notes.append(f"net as trained by {label}: {r['net_as_trained']}")
        for by in r["metrics"] if len(r["metrics"]) > 1 else ():
            values = [q["metrics"][by][_measures(r)[0]] for q in found]
            notes.append(f"{label}, predicting by {by}: {_spread(values)}")
        if r["trials"]:
            lrs = ", ".join(f"{q['optimizer']['lr']:.3g}" for q in found)
            notes.append(f"{label}: learning rate chosen on the validation set: {lrs}")
    return notes
