"""The pages of docs/gallery belong to the records that lie beside them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fflearn import registry, report
from fflearn.experiment import Experiment
from fflearn.report.summary import cells_of

GALLERY = Path(__file__).resolve().parents[2] / "docs" / "gallery"
PAGES = sorted(GALLERY.glob("*/report.html"))
TEXT = (GALLERY / "README.md").read_text(encoding="utf-8")


@pytest.fixture(params=PAGES, ids=lambda path: path.parent.name)
def folder(request) -> Path:
    return request.param.parent


def test_every_page_is_shown_and_there():
    assert PAGES
    assert re.findall(r"\]\((\S+/report\.html)\)", TEXT) == [
        f"{p.parent.name}/{p.name}" for p in PAGES
    ]


def test_the_experiment_is_that_of_the_records(folder):
    e, records = Experiment.load(folder / "experiment.toml"), report.read(folder)
    (sha,) = {r["data_sha256"] for r in records}
    slugs = {run.slug(sha) for cell in e.cells() for run in cell.runs()}
    assert slugs == {path.stem for path in (folder / "records").iterdir()}


def test_the_command_makes_that_experiment(folder, monkeypatch):
    from fflearn import cli, comparison

    made = []
    monkeypatch.setattr(comparison, "compare", lambda e, **how: made.append((e, how)) or [])
    monkeypatch.setattr(comparison, "table", lambda records: "")
    monkeypatch.setattr(cli, "_report", lambda folder: None)
    found = re.findall(r"^fflearn (compare --data .*?)$", TEXT.replace("\\\n", ""), re.MULTILINE)
    (words,) = (w for w in found if f"runs/{folder.name}" in w)
    assert cli.main(re.sub(r'"([^"]*)"', lambda m: m[1].replace(" ", "\0"), words).split()) == 0
    (given, how), kept = made[0], Experiment.load(folder / "experiment.toml")
    given = Experiment.of("", {**vars(given), "net": given.net.replace("\0", " ")})
    assert given.resolved(10) == kept
    records = report.read(folder)
    assert all(r["contended"] for r in records) == (how["jobs"] > 1)


def test_the_page_says_what_the_records_say_and_fetches_nothing(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert len(text) < 2e6
    for cell in cells_of(report.read(folder)):
        for group in cell.groups:
            mean = re.escape(f">{group.score.mean:.4f}</td>")
            assert re.search(rf"<tr><td [^>]*>{re.escape(group.label)}</td><td [^>]*{mean}", text)
            assert registry.parse(group.label)
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    own = [a for a in links if not a.startswith("data:image/svg+xml;base64,")]
    assert own and all((folder / a).is_file() for a in own)
