"""Learning rules, one file each; the file's name is the rule's name.  Nothing to register."""

from __future__ import annotations

import pkgutil


def names() -> list[str]:
    """Names of the rules in this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))
