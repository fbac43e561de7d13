"""Run the recipes of docs/results.md again and write the pages: ``python -m benchmarks.replay``.

Records go to ``benchmarks/results/<recipe>/records``; finished ones found there are kept, so an
interrupted replay goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from benchmarks import results, which_rule
from benchmarks.results import Recipe
from fflearn.comparison import compare
from fflearn.errors import SpecError


def chosen(names: list[str]) -> list[Recipe]:
    """The recipes of these names, or all."""
    known = {r.name: r for r in results.read_recipes()}
    for name in names:
        if name not in known:
            raise SpecError(f"there is no recipe {name!r}; there are: {', '.join(known)}.")
    return [known[name] for name in names or known]


def listed(recipe: Recipe) -> str:
    """One line: what the recipe runs, and what is there already."""
    e = recipe.experiment
    records = results.read_records(results.RESULTS / recipe.name)
    cells = [Recipe(cell, recipe.published) for cell in e.cells()]
    done = sum(len(own) for c in cells for own in results.belonging(c, records).values())
    rules, seeds = ", ".join(e.rules) or "every rule", ", ".join(map(str, e.seeds))
    return f"{recipe.name}: {rules}; {e.epochs} epochs, seeds {seeds}; {done} runs done"


def quick(recipe: Recipe, jobs: int) -> str:
    """One epoch, one seed, kept nowhere: the section as it would look."""
    short = replace(recipe.experiment, epochs=1, seeds=recipe.experiment.seeds[:1])
    return results.section(Recipe(short, recipe.published), compare(short, jobs=jobs))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.replay", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="which (all)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; disturbs the times")
    parser.add_argument("--quick", action="store_true", help="one epoch, one seed; print only")
    parser.add_argument("--list", action="store_true", help="list the recipes and stop")
    options = parser.parse_args(argv)
    try:
        recipes = chosen(options.recipes)
        for recipe in recipes:
            if options.list:
                print(listed(recipe))
            elif options.quick:
                print(quick(recipe, options.jobs), flush=True)
            else:
                folder = results.RESULTS / recipe.name
                compare(recipe.experiment, out=folder, jobs=options.jobs, quiet=False)
                results.write()
                which_rule.write()
    except SpecError as mistake:
        print(mistake, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
