"""The command line: read, run, report."""

from __future__ import annotations

import argparse
import json
import sys
from fnmatch import fnmatch
from pathlib import Path

import benchmarks.mutation
from benchmarks.mutation.entries import FOLDER, Mistake, Mutant, by_hand, read_plan, read_toml
from benchmarks.mutation.laboratory import Result, run
from benchmarks.mutation.operators import mechanical

ROOT = Path(__file__).resolve().parent.parent.parent


def show(mutant: Mutant) -> str:
    """A survivor, in a form that can be pasted into equivalent.toml."""
    values = {"file": mutant.file, "where": mutant.where}
    values |= {"before": mutant.before, "after": mutant.after}
    lines = [f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in values.items()]
    return "\n".join([f"# line {mutant.line}, {mutant.kind}: {mutant.why}", *lines])


def report(results: list[Result], equivalents: list[dict[str, str]]) -> float:
    """Print the summary; the percentage killed."""
    survivors = [r.mutant for r in results if not r.killed]
    if survivors:
        print("\nSurvived: write the test that notices")
        print("\n\n".join(map(show, survivors)))
    if equivalents:
        print("\nEquivalent, not counted")
        for entry in equivalents:
            print(f"  {entry['file']} {entry['where']}: {entry['after']}\n    {entry['why']}")
    print()
    share = 0.0
    for kind in ("hand", "mechanical", "all"):
        some = [r for r in results if kind in (r.mutant.kind, "all")]
        killed = sum(r.killed for r in some)
        slow = sum(r.status == "timeout" for r in some)
        share = 100 * killed / len(some) if some else 100.0
        print(f"{kind:12}{killed:4} of {len(some):4} killed ({slow} by time)  {share:6.1f} %")
    return share


def save(path: Path, results: list[Result], equivalents: list[dict[str, str]]) -> None:
    keys = ("kind", "file", "line", "where", "before", "after", "why")
    rows = [{k: getattr(r.mutant, k) for k in keys} | {"status": r.status} for r in results]
    data = {"mutants": rows, "equivalent": equivalents}
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.mutation", description=benchmarks.mutation.__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--jobs", type=int, default=2, help="mutants tried at a time (2)")
    parser.add_argument("--only", default="*", help="part of a mutant's name, * and ? allowed")
    parser.add_argument("--kind", choices=("hand", "mechanical"), help="only these")
    parser.add_argument("--sample", type=int, help="mechanical mutants (plan.toml says how many)")
    parser.add_argument("--slow", action="store_true", help="run tests marked slow on survivors")
    parser.add_argument("--list", action="store_true", help="list the mutants and stop")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (this one)")
    return parser.parse_args(argv)


def check(options: argparse.Namespace) -> int:
    root = options.root.resolve()
    plan = read_plan(root)
    hand = by_hand(root, plan)
    equivalents = read_toml(root / FOLDER / "equivalent.toml").get("equivalent", [])
    mutants = [] if options.kind == "mechanical" else hand
    if options.kind != "hand":
        # At least half are mechanical, however many are written by hand.
        count = max(plan.sample, len(hand)) if options.sample is None else options.sample
        mutants = mutants + mechanical(root, plan, count, equivalents)
    mutants = [m for m in mutants if fnmatch(m.name, f"*{options.only}*")]
    if not mutants:
        raise Mistake(f"there is no mutant with {options.only!r} in its name (* means any)")
    if options.list:
        for mutant in mutants:
            print(f"{mutant.kind:11} {mutant.name}\n    - {mutant.before}\n    + {mutant.after}")
        return 0
    results = run(root, mutants, options.jobs, options.slow)
    share = report(results, equivalents)
    if options.json:
        save(options.json, results, equivalents)
    return 0 if share >= plan.threshold else 1


def main(argv: list[str] | None = None) -> int:
    try:
        return check(arguments(argv))
    except Mistake as mistake:
        print(mistake, file=sys.stderr)
        return 2
