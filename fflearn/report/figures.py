"""Figures of a comparison, as matplotlib display objects: ``from_cell(cell).plot(ax)``.

Like scikit-learn's, a display keeps what it drew on as ``ax_`` and ``figure_``.  Rules keep their
colour and marker in every figure.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fflearn.report.summary import Cell, Group, cost
from fflearn.statistics import interval, pareto

# Okabe & Ito's colours: told apart by people with any colour vision; markers tell the rest.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999933")
MARKERS = "osD^vP*X<>"


@dataclass(frozen=True)
class Drawn:
    """A figure as text to put into a page, and as an image file."""

    svg: str
    png: bytes


def drawn(figure: Figure) -> Drawn:
    """The same bytes for the same figure: no dates, no random ids."""
    svg, png = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "fflearn", "svg.fonttype": "none"}):
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    text = svg.getvalue().decode()
    return Drawn(text[text.index("<svg") :], png.getvalue())


def styles(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each rule."""
    return {
        label: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[(i + i // len(COLOURS)) % len(MARKERS)],
        }
        for i, label in enumerate(labels)
    }


@dataclass
class Display:
    """What all displays share: axes of their own where none are given."""

    cell: Cell
    ax_: Axes = field(init=False, repr=False)
    figure_: Figure = field(init=False, repr=False)

    @classmethod
    def from_cell(cls, cell: Cell, **options: Any) -> Self:
        """The display of one data set and network."""
        return cls(cell, **options)

    def _axes(self, ax: Axes | None, height: float = 3.6) -> Axes:
        if ax is None:
            ax = Figure(figsize=(6.4, height), layout="constrained").add_subplot()
        self.ax_, self.figure_ = ax, ax.get_figure()  # type: ignore[assignment]
        ax.spines[["top", "right"]].set_visible(False)
        return ax

    @property
    def _styles(self) -> dict[str, dict[str, Any]]:
        return styles([g.label for g in self.cell.groups])

    @property
    def _measure(self) -> str:
        return f"test {self.cell.groups[0].measure.replace('_', ' ')}"


@dataclass
class SeedsDisplay(Display):
    """Every seed a point, every mean with its interval."""

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw, best mean on top."""
        groups = sorted(self.cell.groups, key=lambda g: g.score.mean)
        ax = self._axes(ax, 0.9 + 0.27 * len(groups))
        for row, g in enumerate(groups):
            style, found = self._styles[g.label], list(g.scores.values())
            ax.plot(found, [row] * len(found), ls="", ms=4, alpha=0.6, **style)
            if math.isfinite(g.score.low):
                ax.plot([g.score.low, g.score.high], [row, row], color=style["color"], lw=1.2)
            ax.plot([g.score.mean] * 2, [row - 0.3, row + 0.3], color=style["color"], lw=1.6)
        ax.set_yticks(range(len(groups)), [g.label for g in groups])
        ax.set_xlabel(self._measure)
        ax.grid(axis="x", alpha=0.3)
        return self


@dataclass
class ParetoDisplay(Display):
    """Score against what it cost, and the front that nothing beats in both.

    Parameters
    ----------
    cost : str
        "seconds", "peak_bytes", "floats" or "joules" of `summary.Group`.
    """

    cost: str = "seconds"
    UNITS = {  # noqa: RUF012
        "seconds": ("training, s", 1.0),
        "peak_bytes": ("peak memory of learning, MB", 1e6),
        "floats": ("floats across layers per sample", 1.0),
        "joules": ("energy of training, J", 1.0),
    }

    @property
    def points(self) -> dict[str, tuple[float, float]]:
        """Rule -> cost in the axis' unit, mean score; those without a cost are left out."""
        unit = self.UNITS[self.cost][1]
        found = {g.label: (getattr(g, self.cost) / unit, g.score.mean) for g in self.cell.groups}
        return {n: p for n, p in found.items() if math.isfinite(p[0]) and p[0] > 0}

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw, cost on a logarithmic axis."""
        ax, points = self._axes(ax), self.points
        for label, (x, y) in points.items():
            ax.plot(x, y, ls="", ms=7, label=label, **self._styles[label])
        front = [points[n] for n in pareto(points)]
        if front:
            ax.step(*zip(*front, strict=True), where="post", color="0.6", lw=1, zorder=0)
        _log(ax)
        ax.set(xlabel=self.UNITS[self.cost][0], ylabel=self._measure)
        _legend(ax)
        return self


@dataclass
class LearningCurvesDisplay(Display):
    """Held-out score over training: mean over seeds, and the 95 % interval of that mean.

    Parameters
    ----------
    along : str
        "epoch", "samples" or "seconds".
    """

    along: str = "epoch"

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw one line per rule."""
        ax = self._axes(ax)
        for g in self.cell.groups:
            records = g.alone if self.along == "seconds" else g.records
            curves = [r["curves"][g.measure] for r in records]
            shown = [i for i, v in enumerate(curves[0]) if v is not None] if curves else []
            if not shown:
                continue
            style, x = self._styles[g.label], _mean_axis(records, self.along, shown)
            at = [
                interval([c[i] for c in curves if i < len(c) and c[i] is not None]) for i in shown
            ]
            every = max(1, len(shown) // 8)
            ax.plot(x, [p.mean for p in at], lw=1.3, ms=4, markevery=every, label=g.label, **style)
            low, high = ([getattr(p, end) for p in at] for end in ("low", "high"))
            ax.fill_between(x, low, high, color=style["color"], alpha=0.12, lw=0)
        ax.set(
            xlabel="training, s" if self.along == "seconds" else self.along, ylabel=self._measure
        )
        _legend(ax)
        return self


def _mean_axis(records: Sequence[Mapping[str, Any]], along: str, shown: list[int]) -> list[float]:
    found = [cost(r, along) for r in records]
    return [float(np.mean([c[i] for c in found if i < len(c)])) for i in shown]


@dataclass
class ProbeDisplay(Display):
    """A probe over training, layer by layer; a panel per rule.

    Parameters
    ----------
    probe : str
        Of `fflearn.probes`, measured in these records.
    """

    probe: str = "gradient_angle"

    def curves(self, group: Group) -> dict[int, list[float | None]]:
        """Layer -> values by epoch, of the first seed."""
        found = group.first["curves"]
        own = {
            int(n.rpartition("/")[2]): c for n, c in found.items() if n.startswith(f"{self.probe}/")
        }
        return {layer: c for layer, c in sorted(own.items()) if any(v is not None for v in c)}

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw the rules that have it side by side, with one vertical axis."""
        groups = [g for g in self.cell.groups if self.curves(g)]
        columns = min(3, len(groups)) or 1
        rows = math.ceil(len(groups) / columns) or 1
        figure = Figure(figsize=(6.4, 0.5 + 1.7 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for panel, g in zip(grid, groups, strict=False):
            curves = self.curves(g)
            shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(curves)))
            for (layer, values), shade in zip(curves.items(), shades, strict=True):
                at = [(e, v) for e, v in zip(g.first["curves"]["epoch"], values, strict=True)]
                at = [(e, v) for e, v in at if v is not None]
                panel.plot(
                    *zip(*at, strict=True), color=shade, lw=1.2, marker=".", label=str(layer)
                )
            panel.set_title(g.label, fontsize=8)
            panel.spines[["top", "right"]].set_visible(False)
        for panel in grid[len(groups) :]:
            panel.set_axis_off()
        if groups:
            grid[0].legend(title="layer", fontsize=6, title_fontsize=6, ncols=2, frameon=False)
        figure.supxlabel("epoch", fontsize=9)
        figure.supylabel(self.probe.replace("_", " "), fontsize=9)
        self.ax_, self.figure_ = grid[0], figure
        return self


@dataclass
class ProfileDisplay:
    """Performance profiles: on what part of the tasks a rule cost at most so many times the cheapest."""

    profiles: Mapping[str, Sequence[float]]
    factors: Sequence[float]
    ax_: Axes = field(init=False, repr=False)
    figure_: Figure = field(init=False, repr=False)

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw one step line per rule."""
        if ax is None:
            ax = Figure(figsize=(6.4, 3.6), layout="constrained").add_subplot()
        self.ax_, self.figure_ = ax, ax.get_figure()  # type: ignore[assignment]
        for label, style in styles(list(self.profiles)).items():
            line = {"lw": 1.3, "ms": 4, "markevery": 8, "label": label, **style}
            ax.plot(self.factors, self.profiles[label], drawstyle="steps-post", **line)
        _log(ax)
        ax.set(xlabel="times the cheapest", ylabel="part of the tasks", ylim=(-0.02, 1.02))
        ax.spines[["top", "right"]].set_visible(False)
        _legend(ax)
        return self


@dataclass
class InfluenceDisplay:
    """Heat maps of audits: what each layer learns against the weights of each layer."""

    audits: Sequence[Mapping[str, Any]]
    ax_: Axes = field(init=False, repr=False)
    figure_: Figure = field(init=False, repr=False)

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw a map per rule, with one scale for all."""
        columns = min(5, len(self.audits))
        rows = math.ceil(len(self.audits) / columns)
        figure = Figure(figsize=(6.4, 0.3 + 1.45 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, a in zip(grid, self.audits, strict=False):
            table = np.array([layer["influence"] for layer in a["layers"]])
            shown = np.where(table > 0, np.log10(np.maximum(table, 1e-12)), np.nan)
            image = panel.imshow(shown, cmap="viridis", vmin=-3, vmax=1)
            panel.set_title(a["rule"][:24], fontsize=6)
            panel.set(xticks=[], yticks=[])
        for panel in grid[len(self.audits) :]:
            panel.set_axis_off()
        bar = figure.colorbar(image, ax=grid.tolist(), shrink=0.6, ticks=[-3, -2, -1, 0, 1])
        bar.ax.set_yticklabels(["0.001", "0.01", "0.1", "1", "10"], fontsize=6)
        self.ax_, self.figure_ = grid[0], figure
        return self


def _log(ax: Axes) -> None:
    """A logarithmic horizontal axis with plain numbers, few enough to be read."""
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    steps = (1,) if high > 100 * low else (1, 2, 5)
    ax.xaxis.set_major_locator(LogLocator(subs=steps))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _legend(ax: Axes) -> None:
    """Beside the axes, where it hides nothing."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7, frameon=False)
