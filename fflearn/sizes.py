"""Numbers of bytes as people write them."""

from __future__ import annotations

import math
import re

from fflearn.errors import SpecError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def size(text: str | int) -> int:
    """Bytes from "200MB", "1.5 GB" or a number; SpecError.

    Examples
    --------
    >>> size("200MB"), size("1.5 gb"), size(512)
    (200000000, 1500000000, 512)
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?B?)\s*", str(text), re.IGNORECASE)
    number = _number(found[1]) if found else math.nan
    if found is None or not number > 0 or found[2].upper() not in UNITS:
        raise SpecError(f"a memory budget needs the form 200MB or 1.5GB; got {text!r}.")
    return int(number * UNITS[found[2].upper()])


def shown(n: int) -> str:
    """Bytes as `size` reads them.

    Examples
    --------
    >>> shown(268_435_456)
    '268.4MB'
    """
    unit = next((u for u in ("TB", "GB", "MB", "KB") if n >= UNITS[u]), "B")
    return f"{n / UNITS[unit]:.4g}{unit}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
