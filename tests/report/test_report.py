"""The report: what it says of given records, and how it behaves in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="figures need matplotlib")

import fflearn
from fflearn import report
from fflearn.cli import main
from fflearn.errors import SpecError
from fflearn.report import figures
from fflearn.report.page import page
from fflearn.report.summary import cells_of

RULES = ["backprop", "dfa", "frozen"]
NETS = ["dense 12 relu | dense 10", "dense 6 relu | dense 6 relu | dense 10"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A comparison as the command line leaves it."""
    out = tmp_path_factory.mktemp("run")
    options = ["--rules", ",".join(RULES), "--seeds", "3", "--epochs", "3", "--quiet"]
    options += ["--nets", ",".join(NETS), "--probes", "gradient_angle", "--out", str(out)]
    assert main(["compare", *options]) == 0
    return out


@pytest.fixture(scope="module")
def records(folder):
    return report.read(folder)


@pytest.fixture(scope="module")
def one_net(records):
    """Of the first network alone: half the figures to draw."""
    return [r for r in records if r["net"] == NETS[0]]


class Page(HTMLParser):
    """Text of the tables' cells, and every address that the page names."""

    def __init__(self, text: str):
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.addresses += [v or "" for n, v in attrs if n in ("src", "href", "action", "data")]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


# ---- what it says --------------------------------------------------------------------------------


def test_every_rule_and_network_is_there_with_its_numbers(folder, records):
    read = Page((folder / "report.html").read_text(encoding="utf-8"))
    text = (folder / "report.html").read_text(encoding="utf-8")
    for net in NETS:
        assert f"<code>{net}</code>" in text
    summaries = [t for t in read.tables if "test accuracy" in t[0]]
    assert len(summaries) == 2
    for table, cell in zip(summaries, cells_of(records), strict=True):
        assert [row[0] for row in table[1:]] == RULES == [g.label for g in cell.groups]
        for row, group in zip(table[1:], cell.groups, strict=True):
            assert row[1] == f"{group.score.mean:.4f}"
            assert row[2] == f"{group.score.low:.4f} to {group.score.high:.4f}"
    assert read.tables[0][0][1] == "mean rank"  # of all tasks, first of all


def test_differences_are_paired_by_seed(records):
    cell = cells_of(records)[0]
    found, _ = cell.differences()["dfa"]
    by = {(r["label"], r["seed"]): r["test_accuracy"] for r in cell.groups[0].records}
    by |= {(r["label"], r["seed"]): r["test_accuracy"] for r in cell.groups[1].records}
    assert found.differences == pytest.approx([by["dfa", s] - by["backprop", s] for s in (0, 1, 2)])


def test_what_was_not_measured_is_not_shown(one_net):
    contended = [{**r, "contended": True} for r in one_net]
    text, drawn = page(contended)
    summary = next(t for t in Page(text).tables if "training, s" in t[0])
    assert {row[summary[0].index("training, s")] for row in summary[1:]} == {"-"}
    assert not any("time" in name or "seconds" in name for name in drawn)
    assert "Energy: not measured." in text and "against-energy" not in " ".join(drawn)


def test_energy_is_shown_where_it_was_measured(one_net):
    text, drawn = page([{**r, "joules": 12.5} for r in one_net])
    assert "accuracy-against-energy" in drawn and "Energy: not measured" not in text


def test_how_learning_rates_were_found_is_told(one_net):
    assert "How learning rates were found" not in page(one_net)[0]
    scores = {0: (0.5, 0.75), 1: (0.25, None), 2: (None, 1.0)}  # by seed; of lr 0.1 and 0.4
    tuned = []
    for r in one_net:
        found = zip((1.0, 4.0), scores[r["seed"]], strict=True)
        trials = [{"factor": f, "lr": 0.1 * f, "accuracy": a} for f, a in found]
        chosen = {**r["optimizer"], "lr": 0.1 if r["seed"] == 1 else 0.4}
        spec = {**r["spec"], "tune": 2, "search": "optuna"}
        tuned.append({**r, "trials": trials, "optimizer": chosen, "spec": spec})
    dfa = [r for r in tuned if r["label"] == "dfa"]
    text, _ = page([r for r in one_net if r["label"] == "backprop"] + dfa)
    (table,) = (t for t in Page(text).tables if "diverged" in t[0])
    assert table[1:] == [["dfa", "2", "0.4, 0.1, 0.4", "-", "0.6667", "2"]]
    assert "by Optuna, log-uniform from 0.01 to 100 times the given rate" in text
    assert "The test part was not looked at." in text
    grid = [{**r, "spec": {n: v for n, v in r["spec"].items() if n != "search"}} for r in dfa]
    assert "tried from a fixed grid, the given one first" in page(grid)[0]


def test_samples_and_seconds_to_a_target(records):
    cell = cells_of(records)[0]
    group = cell.groups[0]
    curve = group.records[0]["curves"]["accuracy"]
    alone = type(group)(group.label, [group.records[0]])
    n = group.first["samples_seen"] / 3
    reached = next(i for i, a in enumerate(curve) if a >= curve[-1])
    assert alone.cost_to(curve[-1], "samples") == pytest.approx(n * (reached + 1))
    seconds = group.records[0]["curves"]["seconds"]
    assert alone.cost_to(curve[-1], "seconds") == seconds[reached]


def test_the_same_records_give_the_same_bytes(one_net):
    one, two = page(one_net, target=2.0), page(one_net, target=2.0)
    assert "never" in one[0]
    assert one[0] == two[0] and one[1] == two[1]


def test_text_from_records_cannot_become_markup(one_net):
    evil = [{**r, "data": "<script>alert(1)</script>", "label": 'a"><b>'} for r in one_net]
    text, _ = page(evil)
    assert "<script>alert" not in text and '"><b>' not in text


def test_figures_are_files_too(folder):
    names = {p.stem for p in (folder / "figures").iterdir()}
    assert {"1-seeds", "2-curves-by-epoch", "1-gradient-angle", "profiles"} <= names
    for path in (folder / "figures").iterdir():
        start = path.read_bytes()[:5]
        assert start == b"<svg " if path.suffix == ".svg" else start[1:4] == b"PNG"


def test_displays_draw_on_given_axes(records):
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    cell = cells_of(records)[0]
    display = figures.SeedsDisplay.from_cell(cell).plot(ax)
    assert display.ax_ is ax and display.figure_ is ax.figure
    drawn = [line for line in ax.lines if len(line.get_xdata()) == 3]
    assert sorted(map(tuple, (d.get_xdata() for d in drawn))) == sorted(
        tuple(g.scores.values()) for g in cell.groups
    )


def test_probes_have_a_panel_for_each_rule_that_has_them(records):
    display = figures.ProbeDisplay(cells_of(records)[1], "gradient_angle").plot()
    assert [a.get_title() for a in display.figure_.axes] == RULES
    (line,) = (ln for ln in display.figure_.axes[1].lines if ln.get_label() == "0")
    dfa = cells_of(records)[1].groups[1].first["curves"]["gradient_angle/0"]
    assert list(line.get_ydata()) == dfa


def test_audits_are_kept_with_the_records_and_shown(folder):
    kept = report.read_audits(folder)
    assert [a["rule"] for a in kept] == RULES and all(a["ok"] for a in kept)
    text = (folder / "report.html").read_text(encoding="utf-8")
    (table,) = (t for t in Page(text).tables if "update locking" in t[0])
    assert [row[0] for row in table[1:]] == RULES
    assert {row[1] for row in table[1:]} == {"4 of 4 layers"}
    locking, transport = (table[0].index(n) for n in ("update locking", "weight transport"))
    assert [row[transport] for row in table[1:]] == ["yes", "no", "no"]
    assert table[1][locking] == "yes"
    assert (folder / "figures" / "influence.svg").is_file()


def test_influence_maps_have_a_cell_for_every_pair_that_matters():
    layers = [{"influence": row} for row in ([0.5, 0.0], [2.0, 0.1])]
    display = figures.InfluenceDisplay([{"rule": "x", "layers": layers}]).plot()
    shown = display.ax_.images[0].get_array().filled(float("nan"))
    assert shown[0, 0] == pytest.approx(-0.30103) and shown[1, 0] == pytest.approx(0.30103)
    assert shown[0, 1] != shown[0, 1]


# ---- reading and redrawing -------------------------------------------------------------------------


def test_redrawing_trains_nothing_and_gives_the_same_page(folder, capsys, monkeypatch):
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    monkeypatch.setattr("fflearn.comparison.record_of", None)
    assert main(["compare", "--from", str(folder)]) == 0
    assert (folder / "report.html").read_bytes() == before
    assert "backprop" in capsys.readouterr().out


def test_two_sets_of_records_are_compared_by_seed(folder, tmp_path, capsys):
    other = tmp_path / "other" / "records"
    other.mkdir(parents=True)
    for path in (folder / "records").glob("dfa*.json"):
        record = json.loads(path.read_text())
        record["metrics"]["logits"]["accuracy"] -= 0.125
        (other / path.name).write_text(json.dumps(record))
    assert main(["compare", "--from", str(folder), "--against", str(other.parent)]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == len(NETS)
    for row in rows:
        assert row.split()[1] == "dfa" and "+0.1250  +0.1250 to +0.1250" in row


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--from", "nowhere"], "there are no records in nowhere"),
        (["--against", "x"], "--against needs --from"),
        (["--from", "x", "--out", "y", "--epochs", "3"], "it takes no epochs, no out"),
        (["mine.toml", "--from", "x"], "it takes no recipe"),
    ],
)
def test_mistakes_are_told(options, says, capsys):
    assert main(["compare", *options]) == 2
    assert says in capsys.readouterr().err.replace("/records", "")


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "x.json").write_text("{")
    with pytest.raises(SpecError, match=r"x\.json cannot be read"):
        report.read(tmp_path)
    with pytest.raises(SpecError, match="no records"):
        report.write([], tmp_path)


def test_sets_without_a_common_run(records):
    with pytest.raises(SpecError, match="no rule, network and seed in common"):
        report.difference(records, [{**r, "data": "other"} for r in records])


def test_old_records_can_be_drawn(one_net):
    """Of before there were angles, probes, contention or energy."""
    gone = ("gradient_angles", "contended", "measures")
    old = [{n: v for n, v in r.items() if n not in gone} for r in one_net]
    text, _ = page(old)
    assert "test accuracy" in text


def test_without_matplotlib_the_extra_is_named(records, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    with pytest.raises(fflearn.errors.MissingExtra, match=r"fflearn\[plot\]"):
        report.write(records, tmp_path)


# ---- in a browser ------------------------------------------------------------------------------------
BROWSER = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), ""
)
PROBE = """
<pre id="found"></pre><script>
const errors = [];
window.addEventListener("error", (e) => errors.push(String(e.message)));
window.addEventListener("load", () => {
  const all = [...document.querySelectorAll("table")];
  const table = all.find((t) => t.rows[0].innerText.includes("peak MB"));
  const head = [...table.tHead.rows[0].cells];
  const column = head.findIndex((h) => h.innerText.includes("peak MB"));
  const values = () => [...table.tBodies[0].rows].map((r) => r.cells[column].innerText);
  const button = head[column].querySelector("button");
  button.click(); const up = values(), state = head[column].getAttribute("aria-sort");
  button.click(); const down = values();
  const fetched = performance.getEntriesByType("resource").map((e) => e.name);
  const images = [...document.images];
  document.getElementById("found").textContent = JSON.stringify({
    errors, up, down, state, width: innerWidth, needs: document.documentElement.scrollWidth,
    fetched: fetched.filter((n) => !n.startsWith("data:")),
    broken: images.filter((i) => !i.naturalWidth).length, images: images.length,
    small: [...document.querySelectorAll("td, p")].filter(
      (e) => parseFloat(getComputedStyle(e).fontSize) < 11).length,
  });
});
</script>
"""


def browsed(folder: Path, tmp_path: Path, width: int) -> dict:
    """What a browser makes of the page at this width."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    path = tmp_path / "probed.html"
    path.write_text(
        text.replace("<head>", "<head>" + PROBE.partition("</pre>")[2], 1).replace(
            "</body>", '<pre id="found"></pre></body>'
        )
    )
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
    ]
    command += [f"--window-size={width},900", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1], done.stderr[-2000:]
    return json.loads(found[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no chromium to open the report in")
@pytest.mark.parametrize("width", [1200, 500])
def test_in_a_browser(folder, tmp_path, width):
    found = browsed(folder, tmp_path, width)
    assert found["errors"] == [] and found["fetched"] == []
    assert found["broken"] == 0 < found["images"]
    numbers = [float(v) for v in found["up"]]
    assert numbers == sorted(numbers) and len(set(numbers)) > 1
    assert [float(v) for v in found["down"]] == numbers[::-1]
    assert found["state"] == "ascending"
    # Tables scroll inside their frames: the page itself never does, and nothing is tiny.
    assert found["needs"] <= found["width"] <= width and found["small"] == 0


def test_nothing_is_fetched_and_every_link_is_there(folder):
    read = Page((folder / "report.html").read_text(encoding="utf-8"))
    outside = [a for a in read.addresses if not a.startswith("data:image/svg+xml;base64,")]
    assert outside and all((folder / a).is_file() for a in outside)
