"""Energy counters, on files made like the system's."""

from __future__ import annotations

import pytest

import fflearn
from fflearn import energy
from fflearn.energy import EnergyMeter


@pytest.fixture
def counters(tmp_path):
    """Two packages, a part of the first and the platform, which must not count twice."""
    zones = {"0": "package-0", "1": "package-1", "0:0": "core", "2": "psys"}
    for zone, kind in zones.items():
        name = f"intel-rapl:{zone}"
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(f"{kind}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("1000000\n")
        (tmp_path / name / "energy_uj").write_text("100\n")

    def write(name: str, value: int) -> None:
        (tmp_path / name / "energy_uj").write_text(f"{value}\n")

    return tmp_path, write


def test_joules_are_the_sum_of_packages_since_the_last_reading(counters):
    folder, write = counters
    meter = EnergyMeter(folder)
    write("intel-rapl:0", 500_100)
    write("intel-rapl:1", 250_100)
    write("intel-rapl:0:0", 400_100)
    write("intel-rapl:2", 900_100)
    assert meter.joules() == pytest.approx(0.75)
    assert meter.joules() == 0


def test_a_counter_that_wrapped_round_is_read_right(counters):
    folder, write = counters
    write("intel-rapl:0", 900_000)
    meter = EnergyMeter(folder)
    write("intel-rapl:0", 50_000)
    assert meter.joules() == pytest.approx(0.15)


def test_without_counters_nothing_is_measured(tmp_path, counters):
    assert EnergyMeter(tmp_path / "none").joules() is None
    folder, _ = counters
    meter = EnergyMeter(folder)
    (folder / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.joules() is None


def test_a_run_counts_training_alone(monkeypatch):
    class Fake:
        def joules(self):
            readings.append(1)
            return 100.0 if len(readings) % 2 else 0.5  # before an epoch, and after it

    readings: list[int] = []
    monkeypatch.setattr("fflearn.training.EnergyMeter", Fake)
    run = fflearn.train("dense 8 relu | dense 10", "dfa", "digits", epochs=3)
    assert run.curves["joules"] == [0.5, 1.0, 1.5]


def test_a_record_says_what_was_measured_or_none(monkeypatch):
    options = {"rules": ["dfa"], "seeds": [0], "epochs": 1, "net": "dense 8 relu | dense 10"}
    monkeypatch.setattr(energy.EnergyMeter, "joules", lambda self: None)
    assert fflearn.compare(**options)[0]["joules"] is None
    monkeypatch.setattr(energy.EnergyMeter, "joules", lambda self: 2.0)
    assert fflearn.compare(**options)[0]["joules"] == 2.0
