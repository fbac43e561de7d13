"""The page of a comparison: what is said where.  Text and tables here, drawings in ``figures``."""

from __future__ import annotations

import base64
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from fflearn.base import Channel
from fflearn.report import figures as fig
from fflearn.report.figures import Drawn
from fflearn.report.summary import Cell, Record, cells_of
from fflearn.statistics import MANY, Interval, interquartile_mean, mean_ranks, performance_profile
from fflearn.tuning import SPAN

FACTORS = np.geomspace(1, 32, 64).tolist()
COSTS = {
    "seconds": "accuracy-against-time",
    "peak_bytes": "accuracy-against-memory",
    "floats": "accuracy-against-floats",
    "joules": "accuracy-against-energy",
}

HOWS = {
    "optuna": f"by Optuna, log-uniform from {SPAN[0]:g} to {SPAN[1]:g} times the given rate, from "
    "its tenth on near those that did well, seeded by the run's seed",
    "grid": "from a fixed grid",
}


class Value(NamedTuple):
    """What a table shows, and what it is sorted by."""

    shown: str
    value: float | str = ""


def page(
    records: Sequence[Record], target: float | None = None, audits: Sequence[Record] = ()
) -> tuple[str, dict[str, Drawn]]:
    """The HTML and its figures by file name."""
    cells = cells_of(records)
    drawn: dict[str, Drawn] = {}
    body = [f"<h1>{escape(_title(cells))}</h1>", _read_this(cells)]
    if len(cells) > 1:
        body.append(_across(cells, target, drawn))
    for i, cell in enumerate(cells):
        start = "" if len(cells) == 1 else f"{i + 1}-"
        body.append(_cell(cell, target if target is not None else cell.target, start, drawn))
    if audits:
        body.append(_audited(audits, drawn))
    body.append(_environment(records))
    own = files("fflearn.report")
    style, script = ((own / name).read_text(encoding="utf-8") for name in ("style.css", "sort.js"))
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(_title(cells))}</title><style>\n{style}</style></head>\n<body>\n"
        + "\n".join(body)
        + f"\n<script>\n{script}</script>\n</body></html>\n"
    )
    return text, drawn


def _title(cells: Sequence[Cell]) -> str:
    return "Learning rules compared: " + ", ".join(dict.fromkeys(c.data for c in cells))


def _read_this(cells: Sequence[Cell]) -> str:
    seeds = sorted({s for c in cells for g in c.groups for s in g.scores})
    method = (
        "Intervals are bootstrap intervals of the mean (95 %), and p-values come from an exact "
        "sign-flip test over seeds, adjusted after Holm."
        if len(seeds) >= MANY
        else f"Intervals are Student-t intervals of the mean (95 %); with fewer than {MANY} seeds "
        "there are no p-values."
    )
    return (
        f"<p>Every rule had the same initial weights, data order and budget in each of {len(seeds)} "
        f"run(s), seeds {escape(', '.join(map(str, seeds)))}. {method} Click a heading to sort.</p>"
    )


# -- one data set and network ----------------------------------------------------------------------
def _cell(cell: Cell, target: float, start: str, drawn: dict[str, Drawn]) -> str:
    def figure(name: str, display: Any, caption: str) -> str:
        drawn[start + name] = fig.drawn(display.plot().figure_)
        return _figure(drawn[start + name], caption)

    first = cell.groups[0].first
    parts = [f"<h2>{escape(cell.data)}</h2>", f"<p>Network: <code>{escape(cell.net)}</code></p>"]
    parts += [f'<p class="note">{escape(note)}</p>' for note in first.get("data_notes", ())]
    parts += [_summary(cell)]
    parts += [
        figure("seeds", fig.SeedsDisplay(cell), "Every seed a point; bar: mean and interval.")
    ]
    if len(cell.groups) > 1:
        parts += [_against_the_baseline(cell)]
    parts += ["<h3>What it costs</h3>", _to_target(cell, target)]
    for cost, name in COSTS.items():
        display = fig.ParetoDisplay(cell, cost)
        if display.points:
            parts += [figure(name, display, "The grey line: no other rule is better in both.")]
    if not any(math.isfinite(g.joules) for g in cell.groups):
        parts += ['<p class="note">Energy: not measured.</p>']
    parts += ["<h3>Learning curves</h3>"]
    alongs = ["epoch", "samples"]
    alongs += ["seconds"] if any(g.alone for g in cell.groups) else []
    for along in alongs:
        lines = fig.LearningCurvesDisplay(cell, along)
        parts += [figure(f"curves-by-{along}", lines, "Mean over seeds, and its interval.")]
    for probe in _probes(cell):
        shown = fig.ProbeDisplay(cell, probe)
        caption = f"{probe.replace('_', ' ')}, layer by layer, first seed."
        parts += [f"<h3>{escape(probe.replace('_', ' ').capitalize())} over training</h3>"]
        parts += [figure(probe.replace("_", "-"), shown, caption)]
    parts += [_knows(cell), _tuning(cell), _settings(cell)]
    return "\n".join(parts)


def _summary(cell: Cell) -> str:
    measure = cell.groups[0].measure.replace("_", " ")
    head = [
        "rule",
        f"test {measure}",
        "95 % interval",
        "training, s",
        "peak MB",
        "floats across layers",
        "forward passes",
        "angle to the gradient",
        "weight transport",
    ]
    rows = [
        [
            Value(escape(g.label), g.label),
            _number(g.score.mean, ".4f"),
            _interval(g.score),
            _number(g.seconds, ".2f"),
            _number(g.peak_bytes / 1e6, ".3f"),
            _number(g.floats, ".6g"),
            _number(g.first["forward_passes"], ".3g"),
            _number(g.angle, ".0f", "°"),
            Value(g.first["weight_transport"], g.first["weight_transport"]),
        ]
        for g in cell.groups
    ]
    note = (
        "Training: time in training steps; - where runs were made side by side. Peak: "
        "arrays kept alive for learning. Floats: per sample, across layer boundaries. Angle: between "
        "what hidden layers learn and the gradient, after training."
    )
    return _table(head, rows) + f'<p class="note">{note}</p>'


def _against_the_baseline(cell: Cell) -> str:
    head = ["rule", "difference", "95 % interval", "seeds better", "p (Holm)"]
    rows, smallest = [], 0.0
    for label, (pairs, p) in cell.differences().items():
        better = sum(d > 0 for d in pairs.differences)
        smallest = max(smallest, pairs.smallest_p)
        rows.append(
            [
                Value(escape(label), label),
                _number(pairs.interval.mean, "+.4f"),
                _interval(pairs.interval),
                Value(f"{better} of {len(pairs.differences)}", better / len(pairs.differences)),
                _number(p, ".3g"),
            ]
        )
    many = any(math.isfinite(p) for _, p in cell.differences().values())
    note = f"The smallest p that so many seeds can give is {smallest:.2g}." if many else ""
    return (
        f"<h3>Against {escape(cell.baseline.label)}, seed by seed</h3>"
        + _table(head, rows)
        + (f'<p class="note">{note}</p>' if note else "")
    )


def _to_target(cell: Cell, target: float) -> str:
    rows = [
        [
            Value(escape(g.label), g.label),
            _reached(g.cost_to(target, "samples"), ",.0f"),
            _reached(g.cost_to(target, "seconds"), ".2f"),
        ]
        for g in cell.groups
    ]
    head = ["rule", f"samples to {target:.3f}", f"seconds to {target:.3f}"]
    return _table(head, rows) + '<p class="note">Median over seeds, at the ends of epochs.</p>'


def _reached(cost: float, form: str) -> Value:
    return Value("never", "Infinity") if math.isinf(cost) else _number(cost, form)


def _probes(cell: Cell) -> list[str]:
    names = (n.partition("/")[0] for g in cell.groups for n in g.first["curves"] if "/" in n)
    return [
        n
        for n in dict.fromkeys(names)
        if any(fig.ProbeDisplay(cell, n).curves(g) for g in cell.groups)
    ]


def _knows(cell: Cell) -> str:
    """What each rule had to know, as its ledger counted."""
    order = ["activity", *(c.value for c in Channel)]
    used = [c for c in order if any(c in g.first["floats_per_sample"] for g in cell.groups)]
    rows = []
    for g in cell.groups:
        floats = g.first["floats_per_sample"]
        declared = ", ".join(g.first["channels_declared"]) or "none"
        counts = [_number(floats.get(c, math.nan), ".6g") for c in used]
        rows.append([Value(escape(g.label), g.label), Value(escape(declared), declared), *counts])
    return (
        "<h3>What each rule had to know</h3>"
        + _table(["rule", "channels declared", *used], rows)
        + '<p class="note">Floats per sample that crossed a layer boundary, by channel, counted while '
        "training.</p>"
    )


def _tuning(cell: Cell) -> str:
    """How learning rates were found, and what that was worth on the validation part."""
    tuned = [g for g in cell.groups if g.first["trials"]]
    if not tuned:
        return ""
    rows, hows = [], dict[str, None]()
    for g in tuned:
        spec, trials = g.first["spec"], [r["trials"] for r in g.records]
        hows[HOWS[spec.get("search", "grid")]] = None
        chosen = ", ".join(f"{r['optimizer']['lr']:.3g}" for r in g.records)
        first = [_score(t[0], g.measure) for t in trials]
        top = [max(_score(trial, g.measure) for trial in t) for t in trials]
        lost = sum(trial[g.measure] is None for t in trials for trial in t)
        rows.append(
            [
                Value(escape(g.label), g.label),
                Value(str(len(trials[0])), len(trials[0])),
                Value(chosen, statistics.mean(r["optimizer"]["lr"] for r in g.records)),
                _number(statistics.mean(first), ".4f"),
                _number(statistics.mean(top), ".4f"),
                Value(str(lost), lost),
            ]
        )
    measure = cell.groups[0].measure.replace("_", " ")
    head = ["rule", "tried per seed", "learning rate, by seed", f"{measure}, given rate"]
    head += [f"{measure}, chosen rate", "diverged"]
    note = (
        f"Learning rates were tried {' or '.join(hows)}, the given one first, and chosen by the "
        "score on a part held out of training: that score, mean over seeds, is the one shown here. "
        "The test part was not looked at. Every rule had as many, from the same range and draws."
    )
    return (
        "<h3>How learning rates were found</h3>"
        + _table(head, rows)
        + f'<p class="note">{escape(note)}</p>'
    )


def _score(trial: Mapping[str, Any], measure: str) -> float:
    return -math.inf if trial[measure] is None else trial[measure]


def _settings(cell: Cell) -> str:
    rows = []
    for g in cell.groups:
        chosen = ", ".join(f"{n} = {v}" for n, v in g.first["optimizer"].items())
        tuned = " (learning rate of the first seed: see above)" if g.first["trials"] else ""
        own = "" if g.first["net_as_trained"] == g.first["net"] else g.first["net_as_trained"]
        links = " ".join(
            f'<a href="{escape(r["file"])}">{r["seed"]}</a>' if "file" in r else str(r["seed"])
            for r in g.records
        )
        rows.append(
            f"<dt>{escape(g.label)}</dt><dd>{escape(chosen + tuned)}"
            + (f"; network as trained <code>{escape(own)}</code>" if own else "")
            + f"; records of seeds {links}</dd>"
        )
    return "<h3>Settings and records</h3><dl>" + "".join(rows) + "</dl>"


# -- several data sets and networks ------------------------------------------------------------------
def _across(cells: Sequence[Cell], target: float | None, drawn: dict[str, Drawn]) -> str:
    means = [{g.label: g.score.mean for g in c.groups} for c in cells]
    ranks = mean_ranks(means)
    names = list(dict.fromkeys(g.label for c in cells for g in c.groups))
    rows = []
    for name in names:
        scores = [s for c in cells for g in c.groups if g.label == name for s in g.scores.values()]
        known = sum(name in m for m in means)
        rows.append(
            [
                Value(escape(name), name),
                _number(ranks.get(name, math.nan), ".2f"),
                _number(interquartile_mean(scores), ".4f"),
                Value(f"{known} of {len(cells)}", known),
            ]
        )
    costs = [
        {
            g.label: g.cost_to(target if target is not None else c.target, "samples")
            for g in c.groups
        }
        for c in cells
    ]
    display = fig.ProfileDisplay(performance_profile(costs, FACTORS), FACTORS).plot()
    drawn["profiles"] = fig.drawn(display.figure_)
    head = ["rule", "mean rank", "interquartile mean", "tasks"]
    return (
        "<h2>All tasks</h2>"
        + _table(head, rows)
        + '<p class="note">Ranks are of the rules that ran on every task.</p>'
        + _figure(drawn["profiles"], "Samples to each task's target: performance profiles.")
    )


# -- locality, measured ------------------------------------------------------------------------------
def _audited(audits: Sequence[Record], drawn: dict[str, Drawn]) -> str:
    whole = [a for a in audits if not a["refused"]]
    columns = list(whole[0]["verdict"]) if whole else []
    rows = []
    for a in whole:
        same = sum(layer["replays"] for layer in a["layers"])
        wrong = ", ".join(a["cheating"])
        replay = f"{same} of {len(a['layers'])} layers" + (f"; not {wrong}" if wrong else "")
        found = [Value(escape(v), v) for v in a["verdict"].values()]
        rows.append([Value(escape(a["rule"]), a["rule"]), Value(escape(replay), same), *found])
    about = (
        f"<p>On a small network: <code>{escape(audits[0]['net'])}</code> or as each rule adapts it. "
        "Replay: each layer alone in a fresh process, fed what it was sent, learns the same bits.</p>"
    )
    parts = ["<h2>Locality, measured</h2>", about, _table(["rule", "replay", *columns], rows)]
    parts += [
        f"<p>{escape(a['rule'])} was refused: {escape(a['refused'])}</p>"
        for a in audits
        if a["refused"]
    ]
    if whole:
        drawn["influence"] = fig.drawn(fig.InfluenceDisplay(whole).plot().figure_)
        caption = (
            "Influence: how much what a layer learns (row) changes with the weights of each layer "
            "(column), bottom layer first. Empty above the diagonal: it waits for nothing above it."
        )
        parts += [_figure(drawn["influence"], caption)]
    return "\n".join(parts)


# -- how to do it again -------------------------------------------------------------------------------
def _environment(records: Iterable[Mapping[str, Any]]) -> str:
    records = list(records)
    seen: dict[str, dict[str, None]] = {}
    for r in records:
        for name, value in {**r["fingerprint"], **r["versions"]}.items():
            seen.setdefault(name, {})[str(value)] = None
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(', '.join(values))}</dd>"
        for name, values in seen.items()
    )
    return (
        "<h2>To do it again</h2><p>The folder's <code>experiment.toml</code> holds every setting: "
        "<code>fflearn compare experiment.toml</code>.</p>"
        f"<h3>Environment</h3><dl>{rows}</dl>"
    )


# -- pieces -------------------------------------------------------------------------------------------
def _number(value: float, form: str, unit: str = "") -> Value:
    return Value(f"{value:{form}}{unit}", value) if math.isfinite(value) else Value("-")


def _interval(i: Interval) -> Value:
    if not math.isfinite(i.low):
        return Value("-")
    return Value(f"{i.low:.4f} to {i.high:.4f}", i.high - i.low)


def _table(head: Sequence[str], rows: Sequence[Sequence[Value]]) -> str:
    top = "".join(f'<th scope="col"><button>{escape(h)}</button></th>' for h in head)
    body = "\n".join(
        "<tr>"
        + "".join(f'<td data-value="{escape(str(c.value))}">{c.shown}</td>' for c in row)
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _figure(drawn: Drawn, caption: str) -> str:
    data = base64.b64encode(drawn.svg.encode()).decode()
    text = escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )
