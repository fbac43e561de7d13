"""The report of a comparison: one HTML file that needs nothing else, from records alone.

``figures`` draws, ``page`` lays out, ``summary`` counts; none of them trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fflearn.errors import MissingExtra
from fflearn.report.summary import difference, read, read_audits
from fflearn.run_files import writable
from fflearn.state import write_atomically

__all__ = ["can_draw", "difference", "read", "read_audits", "write"]


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return find_spec("matplotlib") is not None


def write(
    records: Iterable[Mapping[str, Any]],
    folder: str | Path,
    target: float | None = None,
    audits: Iterable[Mapping[str, Any]] = (),
) -> Path:
    """Write ``report.html`` and its figures as PNG and SVG (``figures/``) into a folder.

    Parameters
    ----------
    records : iterable of dict
        As `fflearn.compare` returns them, or `read` from files.
    folder : path
        Links to records assume that they are in ``records/`` there.
    target : float, optional
        Score whose cost is told; default 98 % of the best rule's, for each data set.
    audits : iterable of dict
        As `fflearn.audit.Audit.to_dict` gives them, or `read_audits` from files.

    Returns
    -------
    Path
        Of the report.

    Raises
    ------
    MissingExtra
        matplotlib is not installed.
    SpecError
        There are no records.
    """
    if not can_draw():
        raise MissingExtra.of("matplotlib", "plot", "a report")
    from fflearn.report.page import page

    folder = Path(folder)
    text, figures = page(list(records), target, list(audits))
    writable(folder / "figures")
    for name, drawn in figures.items():
        write_atomically(folder / "figures" / f"{name}.svg", drawn.svg.encode())
        write_atomically(folder / "figures" / f"{name}.png", drawn.png)
    path = folder / "report.html"
    write_atomically(path, text.encode())
    return path
