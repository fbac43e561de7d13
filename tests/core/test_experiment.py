"""The experiment: its file, what it refuses, and the runs it stands for."""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest

from fflearn import registry
from fflearn.errors import FFLearnError, SpecError
from fflearn.experiment import Experiment, available_rules, source

hypothesis = pytest.importorskip("hypothesis")
given, st = hypothesis.given, hypothesis.strategies

NET = "dense 8 relu | dense 3"

# A value of every field that is not its default.
OTHER = {
    "name": "other",
    "data": "some/file.csv",
    "task": "regression",
    "rules": ("dfa", "forward_forward[negatives=wrong,peer=0.1]"),
    "net": NET,
    "epochs": 3,
    "seeds": (5, 0),
    "batch_size": 7,
    "objective": "mse",
    "lr": 0.25,
    "momentum": 0.5,
    "weight_decay": (0.03, 1e-4),
    "optimizer": "sgd",
    "schedule": "step:20,30:0.5",
    "settings": {"dfa.scale": 2.0, "forward_forward.head": False, "dfa.schedule": 'a "b" \\ c'},
    "tune": 3,
    "search": "grid",
    "adapted": True,
    "patience": 2,
    "evaluate_every": 4,
    "budget_seconds": 2.5,
    "budget_samples": 1000,
    "memory_budget": "200MB",
    "datasets": ("cora", "citeseer"),
    "nets": ("gcn", "sage width=8"),
    "probes": ("dead_units", "path_angle"),
    "backend": "reference",
    "dtype": "float64",
    "threads": 2,
}


def test_the_default_is_every_rule_on_the_digits_with_three_seeds():
    e = Experiment()
    assert (e.name, e.data, e.seeds, e.epochs) == ("digits", "digits", (0, 1, 2), 20)
    resolved = e.resolved(10)
    assert resolved.net == "dense 256 relu | dense 256 relu | dense 10"
    assert resolved.objective == "softmax_cross_entropy"
    assert set(registry.names()) <= set(resolved.rules) <= {*registry.names(), "torch"}
    assert list(resolved.rules) == available_rules()
    assert len(resolved.runs()) == 3 * len(resolved.rules)


def test_other_data_gets_a_network_with_one_output_per_class():
    e = Experiment(data="wide.csv", rules=("dfa",)).resolved(7)
    assert e.net == "dense 256 relu | dense 256 relu | dense 7"
    assert Experiment(data="digits", net=NET).resolved(10).net == NET
    assert (
        Experiment(data="cifar10").resolved(10).net == "dense 1024 relu | dense 512 relu | dense 10"
    )


def test_a_network_by_name_is_spelled_out_for_the_datas_classes():
    e = Experiment(net="gcn width=8", rules=("dfa",)).resolved(7, "mlp")
    assert e.net == "graph_conv 8 relu | graph_conv 7"
    e = Experiment(rules=("dfa",)).resolved(5, "lstm last=false")
    assert e.net == "lstm 64 last=false | dense 5 places=1"
    given = "dropout 0.5 | graph_conv 7"  # as it was typed, or known runs would not be found
    assert Experiment(net=given).resolved(7, "gcn").net == given


def test_the_objective_is_that_of_the_task():
    assert Experiment().resolved(3, task="regression").objective == "mse"
    assert Experiment(objective="mse").resolved(3).objective == "mse"


# ---- the file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [f.name for f in fields(Experiment)])
def test_every_field_goes_through_the_file(tmp_path, name):
    assert set(OTHER) == {f.name for f in fields(Experiment)}
    e = replace(Experiment(), **{name: OTHER[name]})
    assert getattr(e, name) != getattr(Experiment(), name)
    path = tmp_path / "experiment.toml"
    path.write_text(e.dump(), encoding="utf-8")
    assert Experiment.load(path) == e


def test_all_fields_go_through_the_file_together(tmp_path):
    e = Experiment(**OTHER)
    path = tmp_path / "experiment.toml"
    path.write_text(e.dump(), encoding="utf-8")
    assert Experiment.load(path) == e


@given(
    st.floats(0, allow_infinity=False, allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
def test_every_number_and_text_goes_through_the_file(number, text):
    e = Experiment(lr=number, data=text, settings={"dfa.scale": text}, name="x")
    table = tomllib.loads(e.dump())
    assert Experiment.of("here", table) == e


def test_a_recipe_is_named_after_its_file_and_keeps_what_it_does_not_say(tmp_path):
    path = tmp_path / "my own recipe.toml"
    path.write_text('rules = ["dfa"]\n[published]\ntitle = "for benchmarks.replay"\n')
    e = Experiment.load(path)
    assert e == Experiment(name="my_own_recipe", rules=("dfa",))


def test_tables_of_settings_can_be_written_as_toml_nests_them():
    nested = tomllib.loads("[settings]\nff.lr = 0.5\nff.peer = 0.1\n'dfa.lr' = 1")
    assert Experiment.of("here", nested).settings == {"ff.lr": 0.5, "ff.peer": 0.1, "dfa.lr": 1}


def test_the_default_name_is_one_that_folders_can_have():
    assert Experiment(data="a folder/my data (2).csv").name == "my_data_2"
    assert Experiment(data="/").name == "experiment"


def test_a_number_of_seeds_means_the_first_ones():
    assert Experiment(seeds=3).seeds == (0, 1, 2)
    assert Experiment(seeds=[7, 5]).seeds == (7, 5)


# ---- what is refused ----------------------------------------------------------------------------

WRONG = {
    "epochs": [0, -1, 1.5, "3", True, None, math.nan],
    "batch_size": [0, -1, 2.0, "8"],
    "threads": [0, -2, "all"],
    "evaluate_every": [0, False],
    "budget_seconds": [0, -1.0, "long"],
    "budget_samples": [0, 1.5, "many"],
    "memory_budget": ["much", "-1MB", "0", "3 miles"],
    "datasets": ["cora", ("cora", "cora"), (3,), None],
    "nets": ["mlp", ("gcn", "gcn"), (3,), None],
    "probes": ["dead_units", (1,), None],
    "tune": [-1, 1.0],
    "search": ["", "random", 3],
    "patience": [-1, "long"],
    "seeds": [(), 0, -1, (0, 0), (-1,), (True,), (1.5,), ("0",), "0,1", 100_000, True, None],
    "rules": ["dfa", ("dfa", 3), 3, None],
    "settings": [{"lr": 1}, {"dfa.lr": None}, {"dfa.lr": {"a": {"b": 1}}}, 3, {"dfa.lr": [[1]]}],
    "lr": ["fast", (0.1,), True],
    "momentum": ["much", (0.1,)],
    "weight_decay": [(), ("x",), "x", (True,)],
    "optimizer": [3],
    "schedule": [3],
    "objective": [3, None],
    "net": [3, None, ["dense 3"]],
    "data": [3, None, ("x", "y")],
    "task": ["regress", 3, None],
    "adapted": ["yes", 1],
    "name": ["a/b", " ", "a b", 3],
    "dtype": [32, None],
    "backend": ["gpu", "", 3],
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused_with_the_field_named(name):
    for value in WRONG[name]:
        word = "seed" if name == "seeds" else "setting" if name == "settings" else name
        with pytest.raises(SpecError, match=word) as caught:
            Experiment(**{name: value})
        with pytest.raises(SpecError, match="my recipe: "):
            Experiment.of("my recipe", {name: value})
        assert isinstance(caught.value, FFLearnError) and isinstance(caught.value, ValueError)


def test_every_field_has_wrong_values():
    assert set(WRONG) == {f.name for f in fields(Experiment)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epochs = [", "is not TOML"),
        ("epochs = 1\nepochs = 2", "is not TOML"),
        ("epochz = 3", "unknown field 'epochz'. Did you mean epochs"),
        ("colour = 3", "unknown field 'colour'. It may have name, data"),
        ("epochs = '3'", "epochs needs a whole number; got '3'"),
        ("[settings]\n'dfa.scale' = 1979-05-27", "the setting 'dfa.scale' needs"),
    ],
)
def test_a_recipe_with_a_mistake_is_named(tmp_path, text, says):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(SpecError, match=says) as caught:
        Experiment.load(path)
    assert "r.toml" in str(caught.value)


@pytest.mark.parametrize("make", ["missing", "folder", "bytes"])
def test_a_recipe_that_cannot_be_read_is_named(tmp_path, make):
    path = tmp_path / "r.toml"
    if make == "folder":
        path.mkdir()
    if make == "bytes":
        path.write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError, match="r.toml cannot be read"):
        Experiment.load(path)


# ---- the runs -----------------------------------------------------------------------------------


def one(**fields):
    """The only run of an experiment."""
    (run,) = Experiment(seeds=(0,), net=NET, **fields).runs()
    return run


def test_runs_come_by_rule_then_seed_and_under_full_names():
    runs = Experiment(rules=("ff", "bp"), seeds=(2, 0), net=NET).runs()
    found = [(run.label, run.seed) for run in runs]
    names = ["forward_forward", "backprop"]
    assert found == [(name, seed) for name in names for seed in (2, 0)]


@pytest.mark.parametrize(
    "rules",
    [("dfa", "dfa"), ("dfa", "direct_feedback_alignment"), ("dfa[scale=2]", "dfa[scale=2]")],
)
def test_a_rule_named_twice_is_refused(rules):
    with pytest.raises(SpecError, match="hold one twice"):
        Experiment(rules=rules, net=NET).runs()


def test_two_variants_of_a_rule_are_two_rules():
    runs = Experiment(rules=("dfa", "dfa[scale=2]"), net=NET, seeds=(0,)).runs()
    assert [r.label for r in runs] == ["dfa", "dfa[scale=2]"]
    assert len({r.digest("") for r in runs}) == 2


def test_optimizer_settings_default_to_the_rule_and_are_replaced_for_all_or_for_one():
    rule = registry.rule("dfa")
    assert one(rules=("dfa",)).optimizer().lr == rule.optimizer["lr"]
    assert one(rules=("dfa",), lr=0.5).optimizer().lr == 0.5
    assert one(rules=("dfa",), lr=0.5, settings={"dfa.lr": 0.25}).optimizer().lr == 0.25
    sgd = one(rules=("dfa",), optimizer="sgd", momentum=0.5).optimizer()
    assert (sgd.name, sgd.momentum, sgd.lr) == ("sgd", 0.5, type(sgd)().lr)
    decays = one(rules=("dfa",), settings={"dfa.weight_decay": [0.5, 0.25]}).optimizer()
    assert decays.weight_decay == (0.5, 0.25)


def test_a_setting_reaches_a_rule_by_short_name_name_or_label():
    for name in ("ff.peer", "forward_forward.peer", "ff[negatives=wrong].peer"):
        run = one(rules=("ff[negatives=wrong]",), settings={name: 0.5})
        assert run.variant.params == {"peer": 0.5, "negatives": "wrong"}
        assert run.label == "forward_forward[negatives=wrong]"


def test_the_more_special_setting_wins():
    both = {"dfa[scale=2].lr": 0.5, "dfa.lr": 0.25, "dfa.scale": 3.0}
    runs = Experiment(rules=("dfa", "dfa[scale=2]"), settings=both, net=NET, seeds=(0,)).runs()
    assert [run.optimizer().lr for run in runs] == [0.25, 0.5]
    assert [run.variant.params["scale"] for run in runs] == [3.0, 2]


def test_none_is_written_as_a_text():
    run = one(rules=("ff",), settings={"ff.theta": "none", "ff.label": "none"})
    assert run.variant.params == {"theta": None, "label": "none"}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"fa.lr": 0.1}, "belongs to none of the rules dfa"),
        ({"dfaa.lr": 0.1}, "Did you mean dfa"),
        ({"dfa[scale=3].lr": 0.1}, "belongs to none"),
        ({"dfa.scael": 0.1}, "Did you mean 'scale'"),
        ({"dfa.scale": "big"}, "dfa needs scale"),
        ({"dfa.lr": "fast"}, "dfa.lr needs a number"),
        ({"dfa.momentum": "abc", "dfa.optimizer": "sgd"}, "dfa.momentum needs a number"),
        ({"dfa.momentum": 0.5}, "adam has no setting 'momentum'"),
        ({"dfa.optimizer": "sgdd"}, "unknown optimizer"),
        ({"dfa.schedule": 3}, "dfa.schedule needs a text"),
        ({"dfa.lr": [0.1, 0.2]}, "dfa.lr needs a number"),
        ({"dfa.lr": math.nan}, "lr"),
        ({"dfa.weight_decay": math.inf}, "weight_decay"),
    ],
)
def test_a_wrong_setting_is_refused(settings, says):
    with pytest.raises(SpecError, match=says):
        one(rules=("dfa",), settings=settings).optimizer()


# ---- backprop on the networks that rules adapted ------------------------------------------------


def labels(*rules, **more):
    e = Experiment(rules=rules, net=NET, seeds=(0,), adapted=True, **more)
    return [run.label for run in e.runs()]


def test_adapted_adds_backprop_on_each_adapted_network_once():
    assert labels("backprop", "dfa") == ["backprop", "dfa"]
    assert labels("ff") == ["forward_forward", "backprop@forward_forward"]
    two = labels("ff", "ff[negatives=wrong]", "ff[norm=unit]")
    assert two[3:] == ["backprop@forward_forward", "backprop@forward_forward[norm=unit]"]
    assert labels("ff", "bp@ff") == ["forward_forward", "backprop@forward_forward"]
    # without a softmax head the network has no outputs that backprop could train
    headless = "forward_forward[head=false,negatives=wrong]"
    assert labels(headless) == [headless]


def test_adapted_sees_parameters_that_come_as_settings():
    assert labels("ff", settings={"ff.norm": "unit"})[1] == ("backprop@forward_forward[norm=unit]")


# ---- the record's name --------------------------------------------------------------------------


def test_the_digest_depends_on_everything_that_the_result_depends_on():
    def digest(data="", **changes):
        plain = {"rules": ("dfa",), "net": NET, "seeds": (0,), **changes}
        return Experiment(**plain).runs()[0].digest(data)

    free = {"name": "x", "threads": 2, "adapted": True, "rules": ("dfa", "fa"), "seeds": (0, 1)}
    free["task"] = "regression"  # the data's own digest differs
    free |= {"datasets": ("cora",), "nets": ("gcn",)}  # a run belongs to one of them
    free["search"] = "grid"  # where nothing is tuned
    same = {digest(**{n: v}) for n, v in free.items()}
    assert same == {digest()}
    deciding = [{n: v} for n, v in OTHER.items() if n not in {*free, "momentum", "net", "settings"}]
    deciding += [{"momentum": 0.5, "optimizer": "sgd"}, {"net": "dense 3"}, {"seeds": (1,)}]
    deciding += [{"tune": 3, "search": "grid"}]
    deciding += [{"settings": {"dfa.scale": 2.0}}, {"rules": ("dfa[scale=2]",)}, {"data": "y.csv"}]
    found = [digest(), digest("other"), *(digest(**change) for change in deciding)]
    assert len(set(found)) == len(found)


def test_the_digest_of_a_known_run_stays():
    """Records of earlier versions are found again; a change here needs a line in CHANGELOG."""
    e = Experiment(seeds=(0,), net=NET, rules=("dfa[scale=2]",), lr=0.125, optimizer="sgd")
    (run,) = e.resolved(3).runs()
    assert json.dumps(run.spec(), sort_keys=True) == (
        '{"backend": "numba", "batch_size": 32, "data": "digits", "dtype": "float32", '
        '"epochs": 20, "evaluate_every": 1, "net": "dense 8 relu | dense 3", '
        '"objective": "softmax_cross_entropy", "optimizer": {"lr": 0.125, "momentum": 0.0, '
        '"name": "sgd", "schedule": "constant", "weight_decay": 0.0}, "patience": 0, '
        '"rule": "dfa[scale=2]", "seed": 0, "tune": 0}'
    )
    assert run.slug("sha") == "dfa_scale=2-seed0-" + run.digest("sha")


def test_file_names_are_plain_and_short():
    run = one(rules=("ff[goodness=ssq,label=append,negatives=wrong,norm=rms,strength=1.5]",))
    slug = run.slug("")
    assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789_=.-") and len(slug) < 100


def test_a_rule_from_a_file_is_known_by_its_text(here):
    run = one(rules=("my_rule.py",))
    before = run.digest("")
    assert run.spec()["rule_sha256"] == source("my_rule.py")["rule_sha256"]
    Path("my_rule.py").write_text(Path("my_rule.py").read_text() + "\n# changed\n")
    assert run.digest("") != before
    assert source("dfa") == source("missing.py") == {}


# ---- several data sets and networks --------------------------------------------------------------


def test_a_cell_for_each_data_set_with_each_network():
    e = Experiment(datasets=("digits", "x.csv"), nets=("mlp", NET), rules=("dfa",))
    assert [(c.data, c.net) for c in e.cells()] == [
        ("digits", "mlp"),
        ("digits", NET),
        ("x.csv", "mlp"),
        ("x.csv", NET),
    ]
    assert e.name == "digits-x" and {c.name for c in e.cells()} == {"digits-x"}
    assert all(c.cells() == [c] for c in e.cells())
    one = Experiment(data="cora", net="gcn")
    assert one.cells() == [one]
