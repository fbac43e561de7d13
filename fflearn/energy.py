"""Energy from the processor's own counters, where the system lets them be read; never estimated."""

from __future__ import annotations

from pathlib import Path

COUNTERS = Path("/sys/class/powercap")  # Linux: RAPL, of Intel and AMD processors


class EnergyMeter:
    """Joules that the processor packages took since the last reading.

    It counts all that the machine does.  A counter that wraps round once between two readings is
    read right; they do so after minutes at the earliest.

    Parameters
    ----------
    folder : Path
        Where the system shows the counters.
    """

    def __init__(self, folder: Path = COUNTERS):
        # intel-rapl:0 is a package, intel-rapl:0:1 a part of it; "psys" is the whole platform.
        zones = sorted(folder.glob("*-rapl:[0-9]*/name"))
        self._files = [z.parent / "energy_uj" for z in zones if _is_package(z)]
        self._last = self._read()

    def _read(self) -> list[int] | None:
        try:
            return [int(path.read_text()) for path in self._files] or None
        except (OSError, ValueError):  # mostly PermissionError: root alone may read them
            return None

    def joules(self) -> float | None:
        """Since the last call, or since the meter was made; None where there is no counter."""
        before, self._last = self._last, self._read()
        if before is None or self._last is None:
            return None
        spent = 0
        for path, old, new in zip(self._files, before, self._last, strict=True):
            spent += new - old if new >= old else new + _range(path) - old
        return spent / 1e6


def _is_package(name: Path) -> bool:
    try:
        return name.read_text().startswith("package")
    except OSError:
        return False


def _range(path: Path) -> int:
    return int((path.parent / "max_energy_range_uj").read_text())
