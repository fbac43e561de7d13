"""LocalClassifier and LocalRegressor: learning, weights, stopping, going on, files."""

from __future__ import annotations

import copy
import inspect
import json
import math
import pickle

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_html_repr

import fflearn
from fflearn import LocalClassifier, LocalRegressor, registry, rules
from fflearn.errors import CheckpointError, DataError, DivergenceError, ShapeError, SpecError
from fflearn.optim import Adam
from fflearn.predict import predict_file
from fflearn.random import Key

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::fflearn.errors.SettingsWarning"),
]

LABELS = [*rules.names(), "forward_forward[negatives=all_wrong]"]
NUMBERS = [label for label in LABELS if not registry.rule(label).needs_classes]
RNG = np.random.default_rng(0)
Y = np.arange(40) % 3
X = RNG.normal(size=(40, 4)) + 2 * np.eye(3, 4)[Y]
T = X @ [1.0, -1.0, 0.5, 0.0]
W = RNG.integers(0, 4, 40)


def classifier(rule="dfa", **more):
    given = {"hidden_layer_sizes": (6,), "max_iter": 3, "random_state": 0}
    return LocalClassifier(rule, **{**given, **more})


def regressor(rule="dfa", **more):
    given = {"hidden_layer_sizes": (6,), "max_iter": 3, "random_state": 0}
    return LocalRegressor(rule, **{**given, **more})


def same(a, b):
    """Whether two fitted estimators hold the same bits."""
    ours, theirs = a.state_.arrays(), b.state_.arrays()
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[n], theirs[n]) for n in ours)


# ---- weights are repetitions ----------------------------------------------------------------------


@pytest.mark.parametrize("rule", LABELS)
def test_weight_is_repetition_to_every_rule_in_small_batches_and_in_any_order(rule):
    at = RNG.permutation(np.repeat(np.arange(40), W))
    given = {"batch_size": 8, "early_stopping": True, "validation_fraction": 0.3}
    weighted = classifier(rule, **given).fit(X, Y, sample_weight=W)
    repeated = classifier(rule, **given).fit(X[at], Y[at])
    assert same(weighted, repeated)
    assert weighted.loss_curve_ == repeated.loss_curve_
    assert weighted.validation_scores_ == repeated.validation_scores_
    assert not same(weighted, classifier(rule, **given).fit(X, Y))


@pytest.mark.parametrize("rule", NUMBERS)
def test_weight_is_repetition_where_numbers_are_predicted(rule):
    at = RNG.permutation(np.repeat(np.arange(40), W))
    weighted = regressor(rule, batch_size=8).fit(X, T, sample_weight=W)
    assert same(weighted, regressor(rule, batch_size=8).fit(X[at], T[at]))


def test_only_the_penalty_knows_the_size_of_the_weights():
    free = classifier(alpha=0.0)
    assert same(free.fit(X, Y, W), clone(free).fit(X, Y, 8 * W))
    bound = classifier(alpha=1.0)
    assert not same(bound.fit(X, Y, W), clone(bound).fit(X, Y, 8 * W))
    assert same(clone(bound).fit(X, Y, 8 * W), classifier(alpha=1 / 8).fit(X, Y, W))


def test_weightless_samples_are_not_there():
    with_other = np.append(Y, 7)
    fitted = classifier().fit(np.vstack([X, X[:1]]), with_other, np.append(np.ones(40), 0))
    assert fitted.classes_.tolist() == [0, 1, 2] and same(fitted, classifier().fit(X, Y))


def test_without_shuffling_the_order_given_is_that_of_the_batches():
    fit = {"shuffle": False, "batch_size": 8}
    assert same(classifier(**fit).fit(X, Y), classifier(**fit).fit(X, Y))
    assert not same(classifier(**fit).fit(X, Y), classifier(**fit).fit(X[::-1], Y[::-1]))


def test_balanced_classes_weigh_the_same():
    y = np.repeat([0, 1, 2], [30, 8, 2])
    w = RNG.uniform(0.5, 2, 40)
    balanced = classifier(class_weight="balanced").fit(X, y, w)
    of_class = np.bincount(y, weights=w)
    factors = {c: w.sum() / 3 / of_class[c] for c in range(3)}
    assert same(balanced, classifier(class_weight=factors).fit(X, y, w))
    by_hand = classifier().fit(X, y, w * np.array(list(factors.values()))[y])
    assert same(balanced, by_hand) and not same(balanced, classifier().fit(X, y, w))


@pytest.mark.parametrize(
    "weights, said",
    [(np.ones(39), "40 finite"), (-np.ones(40), "from 0 on"), (np.zeros(40), "not all zero")],
)
def test_weights_that_are_none(weights, said):
    with pytest.raises(DataError, match=said):
        classifier().fit(X, Y, weights)


# ---- what is learned --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_computes_in_the_precision_of_the_data(dtype):
    fitted = classifier().fit(X.astype(dtype), Y)
    assert {a.dtype for a in fitted.state_.arrays().values()} == {np.dtype(dtype)}
    assert fitted.predict_proba(X).dtype == dtype == fitted.coefs_[0].dtype


def test_it_is_the_engine_stepped_through_the_samples():
    """Initial weights are those of `fflearn.train` with the same seed; a batch is all samples."""
    fitted = classifier(max_iter=2, alpha=0.0, learning_rate_init=0.01).fit(X, Y)
    engine = fflearn.Engine(
        "dense 6 relu | dense 3", fflearn.rule("dfa"), (4,), 3, Adam(0.01), dtype="float64"
    )
    state = engine.init(0)
    for _ in range(2):
        engine.step(state, fflearn.Batch(X, np.eye(3)[Y]))
    for name, a in state.arrays().items():  # rows come in another order
        np.testing.assert_allclose(fitted.state_.arrays()[name], a, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weights", [None, W])
def test_the_curve_is_the_mean_over_samples(weights):
    fitted = classifier(learning_rate_init=0.0, batch_size=9, max_iter=1).fit(X, Y, weights)
    p = fitted.predict_proba(X)[np.arange(40), Y]
    assert fitted.loss_curve_ == [pytest.approx(np.average(-np.log(p), weights=weights))]


def test_sparse_samples_are_the_same_samples():
    thin = np.where(np.abs(X) > 1, X, 0.0)
    dense = classifier(batch_size=8).fit(thin, Y, W)
    for kind in (sparse.csr_array, sparse.csc_matrix):
        fitted = classifier(batch_size=8).fit(kind(thin), Y, W)
        assert same(dense, fitted)
        np.testing.assert_array_equal(fitted.predict_proba(kind(thin)), dense.predict_proba(thin))


@pytest.mark.parametrize("names", [["no", "yes"], [3, 1], [True, False], [-1.0, 1.0]])
def test_two_classes(names):
    y = np.array(names)[Y % 2]
    fitted = classifier(max_iter=30, learning_rate_init=0.02).fit(X, y)
    p, ahead, best = fitted.predict_proba(X), fitted.decision_function(X), fitted.predict(X)
    assert fitted.classes_.tolist() == sorted(names) and best.dtype == y.dtype
    assert p.shape == (40, 2) and ahead.shape == (40,)
    np.testing.assert_allclose(p.sum(1), 1)
    np.testing.assert_allclose(p[:, 1], 1 / (1 + np.exp(-ahead)))
    np.testing.assert_allclose(fitted.predict_log_proba(X), np.log(p))
    np.testing.assert_array_equal(best, fitted.classes_[(ahead > 0).astype(int)])


def test_scores_by_another_of_the_rules_predictors():
    fitted = classifier("forward_forward", max_iter=5).fit(X, Y)
    goodness = fitted.decision_function(X)
    softmax = fitted.set_params(predict_by="softmax").decision_function(X)
    assert not np.allclose(goodness, softmax)
    np.testing.assert_array_equal(softmax, fitted.engine_.predict(fitted.state_, X, "softmax"))
    with pytest.raises(SpecError, match="no way to predict"):
        fitted.set_params(predict_by="magic").predict(X)


def test_several_numbers():
    fitted = regressor("backprop", max_iter=300, learning_rate_init=0.02)
    fitted.fit(X, np.stack([T, -2 * T], 1))
    assert fitted.predict(X).shape == (40, 2) and fitted.n_outputs_ == 2
    assert fitted.score(X, np.stack([T, -2 * T], 1)) > 0.9
    with pytest.raises(ShapeError, match="2 numbers"):
        fitted.partial_fit(X, T)


def test_networks_of_layers_read_rows_in_their_shape():
    x = RNG.normal(size=(12, 48))
    net = "conv 2 relu | max_pool | dense 3"
    fitted = classifier(net=net, in_shape=(4, 4, 3), max_iter=1).fit(x, Y[:12])
    assert fitted.engine_.in_shape == (4, 4, 3) and fitted.engine_.net.spec() == net
    assert fitted.predict(x).shape == (12,)
    named = classifier(net="mlp width=5 depth=1", max_iter=1).fit(X, Y)
    assert named.engine_.net.spec() == "dense 5 relu | dense 3"
    with pytest.raises(SpecError, match="48 features; X has 4"):
        classifier(net=net, in_shape=(4, 4, 3)).fit(X, Y)
    with pytest.raises(ShapeError, match="one output per class"):
        classifier(net="dense 7").fit(X, Y)


def test_a_rule_is_text_an_object_or_a_file_and_may_train_anothers_network(tmp_path):
    by_text = classifier("dfa[scale=2]").fit(X, Y)
    assert same(by_text, classifier(fflearn.rule("dfa", scale=2)).fit(X, Y))
    assert not same(by_text, classifier("dfa").fit(X, Y))
    mine = tmp_path / "mine.py"
    mine.write_text(inspect.getsource(inspect.getmodule(registry.rule_class("dfa"))))
    assert same(classifier("dfa").fit(X, Y), classifier(str(mine)).fit(X, Y))
    assert "norm=rms" in classifier("backprop@ff").fit(X, Y).engine_.net.spec()
    with pytest.raises(SpecError, match="Type rule='backprop'"):
        classifier("torch").fit(X, Y)
    with pytest.raises(SpecError, match="learns from classes"):
        regressor("forward_forward").fit(X, T)


def test_solver_and_schedule_are_the_rules_own_where_none_is_named():
    own = classifier("forward_forward", alpha=0.0).fit(X, Y).engine_.optimizer
    assert (own.name, own.lr, own.schedule) == ("adam", 3e-3, "cosine")
    given = classifier("forward_forward", learning_rate_init=0.1, learning_rate="constant")
    kept = given.fit(X, Y).engine_.optimizer
    assert (kept.name, kept.lr, kept.schedule) == ("adam", 0.1, "constant")
    sgd = classifier(solver="sgd", momentum=0.5).fit(X, Y).engine_.optimizer
    assert (sgd.name, sgd.momentum) == ("sgd", 0.5)
    adam = classifier(solver="adamw", beta_1=0.5, beta_2=0.6, epsilon=0.1).fit(X, Y)
    adam = adam.engine_.optimizer
    assert (adam.name, adam.beta1, adam.beta2, adam.eps) == ("adamw", 0.5, 0.6, 0.1)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"max_iter": 0}, "max_iter to be a whole number from 1 on"),
        ({"alpha": -1}, "alpha"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"tol": math.nan}, "tol"),
        ({"hidden_layer_sizes": (5, 0)}, "hidden_layer_sizes"),
        ({"activation": "swish"}, "activation"),
        ({"solver": "lbfgs"}, "unknown optimizer"),
        ({"class_weight": {9: 1.0}}, "classes out of"),
        ({"class_weight": {0: 0.0}}, "above 0"),
        ({"class_weight": "even"}, "class_weight needs a dict"),
        ({"rule": "dfaa"}, "Did you mean"),
    ],
)
def test_parameters_that_cannot_be_meant(given, said):
    with pytest.raises((SpecError, DataError), match=said):
        classifier(**given).fit(X, Y)


def test_one_class_is_none():
    with pytest.raises(DataError, match="at least 2 classes"):
        classifier().fit(X, np.zeros(40))


# ---- when it stops ------------------------------------------------------------------------------------


def test_it_stops_once_the_loss_no_longer_falls():
    with pytest.warns(ConvergenceWarning, match="Maximum iterations .3."):
        classifier().fit(X, Y)
    # With no step at all the loss is the first epoch's for ever: it waits n_iter_no_change more.
    still = classifier(learning_rate_init=0.0, max_iter=50, n_iter_no_change=4).fit(X, Y)
    assert still.n_iter_ == len(still.loss_curve_) == 1 + 4 + 1
    assert still.loss_ == still.loss_curve_[-1]
    assert still.best_loss_ == min(still.loss_curve_)
    assert still.best_validation_score_ is None


def test_early_stopping_keeps_the_best_weights_of_what_it_held_out():
    given = {"max_iter": 60, "learning_rate_init": 0.3, "n_iter_no_change": 5, "alpha": 0.0}
    noisy = np.where(RNG.uniform(size=40) < 0.3, (Y + 1) % 3, Y)
    fitted = classifier(early_stopping=True, validation_fraction=0.4, solver="sgd", **given).fit(
        X, noisy
    )
    curve = fitted.validation_scores_
    assert fitted.n_iter_ == len(curve) < 60
    assert fitted.best_validation_score_ == max(curve) and fitted.best_loss_ is None
    best = curve.index(max(curve))
    assert fitted.n_iter_ == best + 1 + 5 + 1
    until = classifier(
        early_stopping=True,
        validation_fraction=0.4,
        solver="sgd",
        **{**given, "max_iter": best + 1},
    ).fit(X, noisy)
    assert same(fitted, until)


def test_equal_samples_are_held_out_together(monkeypatch):
    seen = []

    def split(self, samples, seed, whole=LocalClassifier._split):
        seen.append(whole(self, samples, seed))
        return seen[-1]

    monkeypatch.setattr(LocalClassifier, "_split", split)
    classifier(early_stopping=True, validation_fraction=0.3).fit(
        np.tile(X, (5, 1)), np.tile(Y, 5), np.tile(W + 1, 5)
    )
    ((kept, held),) = seen
    rows = {row.tobytes() for row in held.x}
    assert len(rows) == len(held.y) == 12 and len(kept.y) == 28
    assert not rows & {row.tobytes() for row in kept.x}
    assert kept.total + held.total == 5 * (W + 1).sum()
    assert min(np.bincount(held.y)) == 4  # stratified


def test_what_becomes_infinite_is_an_error_and_is_taken_back():
    wild = regressor("backprop", solver="sgd", learning_rate_init=1e3, max_iter=50)
    with pytest.raises(DivergenceError, match="StandardScaler"):
        wild.fit(X, T)
    assert wild.state_.first_bad() is None


def test_it_says_where_it_is(capsys):
    fitted = classifier(verbose=True, max_iter=2, early_stopping=True, validation_fraction=0.3)
    fitted.fit(X, Y)
    first, second = capsys.readouterr().out.splitlines()
    score = fitted.validation_scores_[0]
    assert (
        first == f"Iteration 1, loss = {fitted.loss_curve_[0]:.8f}, validation score = {score:.6f}"
    )
    assert second.startswith("Iteration 2, ")


# ---- going on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make, y", [(classifier, Y), (regressor, T)])
def test_partial_fit_is_an_epoch_of_fit(make, y):
    given = {"batch_size": 8, "learning_rate": "constant"}
    whole = make(**given).fit(X, y, W)
    parts = make(**given)
    for _ in range(3):
        more = {"classes": [2, 1, 0]} if make is classifier else {}
        parts.partial_fit(X, y, sample_weight=W, **more)
    assert same(whole, parts) and parts.n_iter_ == 3 and parts.loss_curve_ == whole.loss_curve_
    assert parts.partial_fit(X[:5], y[:5]).n_iter_ == 4


def test_partial_fit_holds_to_its_classes():
    with pytest.raises(DataError, match="needs classes"):
        classifier().partial_fit(X, Y)
    fitted = classifier().partial_fit(X[:1], Y[:1], classes=[0, 1, 2, 5])
    assert fitted.classes_.tolist() == [0, 1, 2, 5] and fitted.predict_proba(X).shape == (40, 4)
    with pytest.raises(DataError, match="not the same as on last call"):
        fitted.partial_fit(X, Y, classes=[0, 1, 2])
    with pytest.raises(DataError, match=r"classes not in"):
        fitted.partial_fit(X, Y + 1)
    with pytest.raises(SpecError, match="balanced"):
        classifier(class_weight="balanced").partial_fit(X, Y, classes=[0, 1, 2])
    with pytest.raises(SpecError, match="early_stopping=False"):
        classifier(early_stopping=True).partial_fit(X, Y, classes=[0, 1, 2])
    with pytest.raises(SpecError, match="depends on how much of the training is done"):
        greedy = classifier("ff[order=greedy,negatives=wrong]", hidden_layer_sizes=(6, 6))
        greedy.partial_fit(X, Y, classes=[0, 1, 2])
    with pytest.raises(CheckpointError, match="what was learned so far has"):
        fitted.set_params(hidden_layer_sizes=(7,)).partial_fit(X, Y)


def test_a_warm_start_goes_on_with_weights_and_a_fresh_optimizer():
    cold = classifier(max_iter=2, alpha=0.0).fit(X, Y)
    warm = copy.deepcopy(cold).set_params(warm_start=True, rule="dfa").fit(X, Y)
    assert len(warm.loss_curve_) == 4 and warm.n_iter_ == 2 and warm.state_.step == 2
    by_hand = copy.deepcopy(cold)
    engine, state = by_hand.engine_, by_hand.engine_.init(0)
    for part in ("params", "aux"):
        for mine, theirs in zip(getattr(state, part), getattr(cold.state_, part), strict=True):
            for name, value in theirs.items():
                mine[name] = value
    for b, _ in cold._samples(X, Y, None, False, True).batches(200, Key(0).fold("order").at(0)):
        engine.step(state, b)
    one = copy.deepcopy(cold).set_params(warm_start=True, max_iter=1).fit(X, Y)
    np.testing.assert_allclose(one.coefs_[0], state.params[0]["W"], rtol=1e-12)
    other = copy.deepcopy(cold).set_params(warm_start=True, rule="fa").fit(X, Y)
    assert not same(other, warm)
    reseeded = copy.deepcopy(cold).set_params(warm_start=True, random_state=9).fit(X, Y)
    kept, then = reseeded.state_.arrays(), cold.state_.arrays()
    assert np.array_equal(kept["aux/0/B"], then["aux/0/B"])  # the feedback it has aligned with
    with pytest.raises(SpecError, match="warm_start=False"):
        cold.set_params(warm_start=True, hidden_layer_sizes=(7,)).fit(X, Y)
    assert not same(warm, classifier(max_iter=2, alpha=0.0).fit(X, Y))


def test_random_states():
    assert same(classifier(random_state=3).fit(X, Y), classifier(random_state=3).fit(X, Y))
    a = classifier(random_state=np.random.RandomState(3)).fit(X, Y)
    assert same(a, classifier(random_state=np.random.RandomState(3)).fit(X, Y))
    assert not same(
        classifier(random_state=None).fit(X, Y), classifier(random_state=None).fit(X, Y)
    )
    assert same(classifier(n_jobs=2).fit(X, Y), classifier().fit(X, Y))


# ---- keeping it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", LABELS)
def test_pickle_and_file_keep_the_estimator_of_every_rule(rule, tmp_path):
    fitted = classifier(rule, max_iter=1, class_weight={"b": 2.0}).fit(X, np.array(list("abc"))[Y])
    fitted.save(tmp_path / "one.safetensors")
    loaded = LocalClassifier.load(tmp_path / "one.safetensors")
    for again in (pickle.loads(pickle.dumps(fitted)), loaded):
        np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))
        assert again.get_params() == fitted.get_params() and same(again, fitted)
        np.testing.assert_array_equal(again.classes_, fitted.classes_)
        assert again.loss_curve_ == fitted.loss_curve_ and again.classes_.dtype == "U1"
        more = [
            e.set_params(warm_start=True).fit(X, fitted.classes_[Y])
            for e in (again, copy.deepcopy(fitted))
        ]
        assert same(*more)


def test_a_file_keeps_numbers_and_goes_on(tmp_path):
    fitted = regressor(early_stopping=True, validation_fraction=0.3).fit(X, np.stack([T, T], 1))
    fitted.save(tmp_path / "r.safetensors")
    loaded = LocalRegressor.load(tmp_path / "r.safetensors")
    np.testing.assert_array_equal(loaded.predict(X), fitted.predict(X))
    assert loaded.validation_scores_ == list(fitted.validation_scores_)
    again = LocalRegressor.load(tmp_path / "r.safetensors")
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "r.safetensors"
    ).read_bytes()


def test_the_command_line_predicts_from_an_estimators_file(tmp_path):
    fitted = classifier().fit(X, np.array(["a", "b", "c"])[Y])
    fitted.save(tmp_path / "c.safetensors")
    np.savez(tmp_path / "x.npz", x=X)
    head, *lines = predict_file(tmp_path / "c.safetensors", tmp_path / "x.npz").splitlines()
    assert head == "label,score_a,score_b,score_c"
    assert [line.split(",")[0] for line in lines] == fitted.predict(X.astype(np.float32)).tolist()


def test_files_that_are_not_written_or_not_read(tmp_path):
    with pytest.raises(NotFittedError):
        classifier().save(tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="random_state"):
        classifier(random_state=np.random.RandomState(0)).fit(X, Y).save(tmp_path / "c.safetensors")
    assert not list(tmp_path.iterdir())
    fitted = classifier().fit(X, Y)
    fitted.save(tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="holds LocalClassifier, no LocalRegressor"):
        LocalRegressor.load(tmp_path / "c.safetensors")
    fflearn.train(
        "dense 3 relu | dense 3", "dfa", (X, Y), epochs=1, batch_size=8, out=tmp_path / "run"
    )
    with pytest.raises(CheckpointError, match="holds a training run"):
        LocalClassifier.load(tmp_path / "run" / "final.safetensors")
    state = fitted.state_.copy()
    for damage in ({"params": {"nope": 1}, "fitted": {}}, {"params": {}, "fitted": {"_x_": 1}}, {}):
        state.meta["estimator"] = {"kind": "LocalClassifier", **damage}
        state.save(tmp_path / "bad.safetensors")
        with pytest.raises(CheckpointError, match="damaged"):
            LocalClassifier.load(tmp_path / "bad.safetensors")


def test_the_fitted_network_does_not_change_with_the_parameters():
    fitted = classifier().fit(X, Y)
    before = fitted.predict_proba(X)
    changed = pickle.loads(pickle.dumps(fitted.set_params(rule="fa", hidden_layer_sizes=(9,))))
    np.testing.assert_array_equal(changed.predict_proba(X), before)


# ---- among other estimators ------------------------------------------------------------------------------


def test_it_is_one_estimator_among_others():
    local = classifier(max_iter=30, learning_rate_init=0.02)
    pipe = make_pipeline(StandardScaler(), local)
    assert cross_val_score(pipe, X, Y, cv=2).mean() > 0.5
    name = "localclassifier__rule"
    search = GridSearchCV(pipe, {name: ["dfa", "ff[negatives=all_wrong]"]}, cv=2).fit(X, Y)
    assert search.best_params_[name] in ("dfa", "ff[negatives=all_wrong]")
    for made in (
        CalibratedClassifierCV(local, cv=2),
        StackingClassifier([("a", local), ("b", clone(local))], LogisticRegression(), cv=2),
    ):
        p = made.fit(X, Y).predict_proba(X)
        assert p.shape == (40, 3) and made.score(X, Y) > 0.6


def test_weights_are_routed_through_a_pipeline():
    import sklearn

    with sklearn.config_context(enable_metadata_routing=True):
        local = classifier().set_fit_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipe = make_pipeline(scaler, local).fit(X, Y, sample_weight=W)
    scaled = StandardScaler().fit_transform(X)
    assert same(pipe[-1], classifier().fit(scaled, Y, W))


def test_names_of_features():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(X, columns=list("abcd"))
    fitted = classifier().fit(frame, Y)
    assert fitted.feature_names_in_.tolist() == list("abcd") and same(
        fitted, classifier().fit(X, Y)
    )
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(frame[list("dcba")])


def test_the_notebook_shows_the_layers():
    fitted = classifier("fa")
    assert "<table style" not in fitted._repr_html_()
    shown = fitted.fit(X, Y)._repr_html_()
    assert shown.startswith(estimator_html_repr(fitted)[:20])
    for text in ("Trained by fa", "feedback", "dense 6 relu", "dense 3", ">30<", ">21<", ">18<"):
        assert text in shown
    assert "text/html" in fitted._repr_mimebundle_()


def test_the_description_of_a_run_is_plain_json():
    meta = classifier().fit(X, Y).state_.meta["run"]
    assert json.loads(json.dumps(meta)) == meta and meta["rule"] == "dfa"
