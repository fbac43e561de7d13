"""The command line: ``fflearn compare | train | predict | rules | networks | check | doctor``.

Every mistake a user can make ends in one line on stderr and exit code 2, before training starts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from fflearn import __version__
from fflearn.errors import DivergenceError, FFLearnError, SpecError

DATA = """digits, mnist+crop, cora, shakespeare:64 (of length 64), ..., or a .csv, .npz or .txt
file; a name that is none lists them all"""
NET = """e.g. "dense 512 relu | dense 10", or a name that fflearn networks lists: "lstm width=32"
(default: what suits the data)"""

# Options of `compare` that are fields of the Experiment: flag, field, how to read it, help.
FIELDS: tuple[tuple[str, str, str, str], ...] = (
    ("--data", "data", "text", DATA),
    ("--task", "task", "text", "regression: predict the numbers of a table; or classification"),
    ("--net", "net", "text", NET),
    ("--epochs", "epochs", "whole", "passes over the training part"),
    ("--batch-size", "batch_size", "whole", "samples per step"),
    (
        "--objective",
        "objective",
        "text",
        "softmax_cross_entropy, binary_cross_entropy, mse or zero_one",
    ),
    ("--lr", "lr", "number", "learning rate of every rule (default: each rule's own)"),
    ("--optimizer", "optimizer", "text", "sgd, adam or adamw"),
    ("--momentum", "momentum", "number", "of sgd"),
    ("--weight-decay", "weight_decay", "numbers", "one number, or one per epoch: 0.03,1e-4"),
    ("--schedule", "schedule", "text", "constant, cosine, halves, step:20,30:0.5"),
    ("--patience", "patience", "whole", "stop early after so many epochs without improvement"),
    ("--budget-seconds", "budget_seconds", "number", "stop a run after so much training time"),
    ("--budget-samples", "budget_samples", "whole", "stop a run after so many training samples"),
    (
        "--memory-budget",
        "memory_budget",
        "text",
        "what a run's arrays may take, as 200MB, or refuse",
    ),
    ("--evaluate-every", "evaluate_every", "whole", "epochs between two points of the curves"),
    ("--probes", "probes", "texts", "measured of each layer: gradient_angle,dead_units,..."),
    ("--backend", "backend", "text", "numba, reference or cuda"),
    ("--dtype", "dtype", "text", "float32 or float64"),
    ("--threads", "threads", "whole", "threads of the kernels; results do not depend on it"),
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        """argparse's mistakes in our form: one line, exit code 2."""
        raise SpecError(f"{message}. Type {self.prog} --help for the options.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 (a check failed), 2 (a mistake)."""
    args = argparse.Namespace()
    try:
        args = _parser().parse_args(argv)
        with warnings.catch_warnings():
            warnings.showwarning = _say
            code = args.run(args)
        sys.stdout.flush()  # here, where a reader that went away can be told
    except FFLearnError as e:
        print(f"fflearn: {' '.join(str(e).split())}", file=sys.stderr)
        return 1 if isinstance(e, DivergenceError) else 2
    except MemoryError as e:
        print(f"fflearn: not enough memory: {e or 'the system gave none'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        out = getattr(args, "out", None)
        again = f"; the same command with --out {out} goes on" if out else ""
        print(f"fflearn: stopped{again}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as with `| head`; or Python would complain when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _say(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning in one line, without the place in the code where it arose."""
    print(f"fflearn: {' '.join(str(message).split())}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fflearn", description="Train neural networks without backpropagation.")
    parser.add_argument("--version", action="version", version=f"fflearn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    _compare_options(commands.add_parser("compare", help="train several rules, print one table"))
    _train_options(commands.add_parser("train", help="train one rule, keep its network"))

    predict = commands.add_parser("predict", help="labels and scores for new samples")
    predict.add_argument("checkpoint", help="final.safetensors of a training run")
    predict.add_argument("file", help=".csv or .npz with the samples")
    predict.add_argument("--by", default="", help="how to predict, where the rule has a choice")
    predict.add_argument("--out", help="CSV file to write (default: standard output)")
    predict.set_defaults(run=_predict)

    rules = commands.add_parser("rules", help="list the learning rules")
    rules.add_argument("--json", action="store_true", help="everything, as JSON")
    rules.set_defaults(run=_rules)

    networks = commands.add_parser("networks", help="list the networks by name, or spell one out")
    networks.add_argument("spec", nargs="?", help='e.g. gcn or "gpt-nano depth=2 places=micro"')
    networks.add_argument("--classes", type=_whole, default=10, help="its classes, or outputs")
    networks.set_defaults(run=_networks)

    check = commands.add_parser("check", help="put a rule through the shared tests")
    check.add_argument("rule", help="name of a rule, or path of a file with one")
    check.set_defaults(run=_check)

    audit = commands.add_parser("audit", help="measure what each layer's update is made of")
    audit.add_argument("rules", nargs="?", type=_rules_list, help="default: every rule")
    audit.add_argument("--json", action="store_true", help="everything measured, as JSON")
    audit.set_defaults(run=_audit)

    doctor = commands.add_parser("doctor", help="what this machine can run, and what is missing")
    doctor.add_argument("--json", action="store_true", help="as JSON")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_fields(parser: argparse.ArgumentParser) -> None:
    for flag, field, kind, text in FIELDS:
        parser.add_argument(flag, dest=field, type=_READERS[kind], help=text)
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        type=_setting,
        metavar="RULE.PARAM=VALUE",
        help="a parameter or optimizer setting of one rule; may be repeated",
    )
    parser.add_argument("--out", help="folder for the results")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="a TOML file with any of the options below")
    parser.add_argument("--name", help="names the output folder (default: the data's name)")
    parser.add_argument("--rules", type=_rules_list, help='e.g. "dfa,ff[negatives=hard]"')
    parser.add_argument("--seeds", type=_seeds, help="how many (3) or which (0,5,7)")
    parser.add_argument("--datasets", type=_texts, help="several in place of --data: cora,citeseer")
    parser.add_argument("--nets", type=_texts, help="several in place of --net, by commas")
    parser.add_argument("--tune", type=_whole, help="learning rates to try per rule and seed")
    parser.add_argument("--search", help="how --tune finds them: optuna (default) or grid")
    parser.add_argument(
        "--adapted",
        action="store_true",
        default=None,
        help="also run backprop on each network that a rule adapted",
    )
    parser.add_argument("--jobs", type=_whole, default=1, help="runs at the same time")
    parser.add_argument(
        "--cluster",
        default="",
        metavar="ADDRESS",
        help="run on the workers of this Dask scheduler; local: on --jobs of them here",
    )
    parser.add_argument(
        "--from", dest="source", metavar="DIR", help="draw the records of DIR again; train nothing"
    )
    parser.add_argument(
        "--against", metavar="DIR", help="with --from: how those differ from the records of DIR"
    )
    _add_fields(parser)
    parser.set_defaults(run=_compare)


def _train_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rule", required=True, help='e.g. dfa or "ff[negatives=hard]"')
    parser.add_argument("--seed", type=_whole, default=0)
    _add_fields(parser)
    parser.set_defaults(run=_train)


# -- commands ------------------------------------------------------------------------------------
def _given(args: argparse.Namespace, *more: str) -> dict[str, Any]:
    names = [field for _, field, _, _ in FIELDS] + list(more)
    given = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    if args.settings:
        given["settings"] = dict(args.settings)
    return given


def _compare(args: argparse.Namespace) -> int:
    if args.against is not None and args.source is None:
        raise SpecError("--against needs --from: two folders of records.")
    own = ("name", "rules", "seeds", "datasets", "nets", "tune", "search", "adapted")
    given = _given(args, *own)
    if args.source is not None:
        if more := [*given, *(n for n in ("out", "recipe") if getattr(args, n))]:
            raise SpecError(
                f"--from draws what is in {args.source} again, into that folder: it takes no "
                f"{', no '.join(more)}. Leave out everything but --from and --against."
            )
        return _redraw(args)
    from fflearn.comparison import compare, default_folder, table
    from fflearn.experiment import Experiment

    base = Experiment.load(args.recipe) if args.recipe else None
    if base is not None:
        settings = {**base.settings, **given.pop("settings", {})}
        kept = {n: getattr(base, n) for n in base.__dataclass_fields__}
        for one, several in (("data", "datasets"), ("net", "nets")):
            if one in given:
                kept[several] = ()
        given = {**kept, **given, "settings": settings}
    experiment = Experiment.of("the command line", given)
    args.out = args.out or str(default_folder(experiment))
    how = {"jobs": args.jobs, "cluster": args.cluster, "quiet": args.quiet}
    records = compare(experiment, out=args.out, **how)
    print(table(records))
    _report(args.out)
    print(f"records: {Path(args.out) / 'records'}")
    return 0


def _report(folder: str) -> None:
    from fflearn import report
    from fflearn.audit import keep_audits

    if report.can_draw():
        records = report.read(folder)
        keep_audits(dict.fromkeys(r["label"] for r in records if r["kind"] == "rule"), folder)
        found = report.write(records, folder, audits=report.read_audits(folder))
        print(f"report: {found}")
    else:
        print('for a report with figures, type: pip install "fflearn[plot]"')


def _redraw(args: argparse.Namespace) -> int:
    """The table and report of records that are there, or of two sets of them; nothing is trained."""
    from fflearn import report
    from fflearn.comparison import table

    records = report.read(args.source)
    if args.against is None:
        print(table(records))
        _report(args.source)
        return 0
    print(report.difference(records, report.read(args.against)))
    return 0


def _train(args: argparse.Namespace) -> int:
    from fflearn.comparison import budget_of, engine_for
    from fflearn.data import load
    from fflearn.experiment import Experiment
    from fflearn.run_files import FINAL
    from fflearn.training import fit, score

    given = _given(args) | {"rules": (args.rule,), "seeds": (args.seed,)}
    experiment = Experiment.of("the command line", given)
    data = load(experiment.data, task=experiment.task)
    (run,) = experiment.resolved(data.n_classes, data.net, data.task).runs()
    args.out = args.out or f"runs/{experiment.name}-{run.slug(data.sha256)}"
    final = Path(args.out) / FINAL
    was_there = final.exists()
    engine = engine_for(run, data)
    done = fit(
        engine,
        data,
        epochs=experiment.epochs,
        batch_size=experiment.batch_size,
        seed=args.seed,
        patience=experiment.patience,
        evaluate_every=experiment.evaluate_every,
        budget=budget_of(experiment),
        memory_budget=experiment.memory_budget,
        probes=experiment.probes,
        out=args.out,
        quiet=args.quiet,
        label=run.label,
    )
    measure, engine = data.measures[0], done.engine
    found = {by: score(engine, done.state, data, by)[measure] for by in engine.rule.predictors}
    shown = ", ".join(f"{by} {a:.4f}" for by, a in found.items())
    print(f"{'already finished' if was_there else 'finished'}: {final}")
    print(f"{run.label} on {data.name}, {done.epoch} epochs, test {measure} by {shown}")
    return 0


def _predict(args: argparse.Namespace) -> int:
    from fflearn.predict import predict_file

    text = predict_file(args.checkpoint, args.file, args.by)
    if args.out:
        from fflearn.state import write_atomically

        write_atomically(Path(args.out), text.encode())
        print(f"written: {args.out}")
    else:
        sys.stdout.write(text)
    return 0


def _rules(args: argparse.Namespace) -> int:
    from fflearn import reference, registry

    found = [registry.describe(n) for n in registry.names()] + [reference.describe()]
    if args.json:
        print(json.dumps(found, indent=1, default=str))
        return 0
    for r in found:
        reads = ", ".join(r["channels"]) or "nothing"
        print(f"{r['name']:<18} {r['summary']}")
        print(f"{'':<18} crosses layers: {reads}; weight transport: {r['weight_transport']}")
        print(f"{'':<18} {r['citation']}")
    return 0


def _networks(args: argparse.Namespace) -> int:
    from fflearn import zoo
    from fflearn.networks import network

    if args.spec is not None:
        print(network(args.spec, args.classes).spec())
        return 0
    for name in zoo.NETWORKS:
        _, *settings = zoo.options(name).values()
        print(f"{name:<10} {zoo.summary(name)}")
        if settings:
            print(f"{'':<10} options: {', '.join(_option(s) for s in settings)}")
    return 0


def _option(parameter: Any) -> str:
    return f"{parameter.name}={str(parameter.default).lower()}"


def _check(args: argparse.Namespace) -> int:
    from fflearn.locality import check

    results = check(args.rule)
    for name, verdict in results:
        print(f"ok    {name}" if verdict == "ok" else f"FAIL  {name}: {verdict}")
    failed = sum(verdict != "ok" for _, verdict in results)
    print(f"{len(results) - failed} of {len(results)} checks passed")
    return 1 if failed else 0


def _audit(args: argparse.Namespace) -> int:
    from fflearn import registry
    from fflearn.audit import audit, table

    found = [audit(rule) for rule in args.rules or registry.names()]
    print(json.dumps([a.to_dict() for a in found], indent=1) if args.json else table(found))
    return 0 if all(a.ok for a in found) else 1


def _doctor(args: argparse.Namespace) -> int:
    from fflearn.doctor import examine, shown

    found = examine()
    print(json.dumps(found, indent=1) if args.json else shown(found))
    return 0


# -- reading options -----------------------------------------------------------------------------
def _texts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"needs a whole number; got {text!r}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"needs a number; got {text!r}") from None


def _numbers(text: str) -> float | tuple[float, ...]:
    found = tuple(_number(part) for part in text.split(","))
    return found[0] if len(found) == 1 else found


def _seeds(text: str) -> int | tuple[int, ...]:
    found = tuple(_whole(part) for part in text.split(",") if part)
    return found[0] if len(found) == 1 and "," not in text else found


def _rules_list(text: str) -> tuple[str, ...]:
    from fflearn.registry import split_list

    found = tuple(split_list(text))
    if not found:
        raise argparse.ArgumentTypeError(f"needs at least one rule; got {text!r}")
    return found


def _setting(text: str) -> tuple[str, Any]:
    from fflearn.registry import literal

    name, equals, value = text.rpartition("=")  # a variant has = in its brackets
    if not equals or "." not in name:
        raise argparse.ArgumentTypeError(f"needs RULE.PARAM=VALUE; got {text!r}")
    found = literal(value.strip())
    return name.strip(), "none" if found is None else found


_READERS: dict[str, Any] = {
    "text": str,
    "texts": _texts,
    "whole": _whole,
    "number": _number,
    "numbers": _numbers,
}
