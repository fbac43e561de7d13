"""To and from scikit-learn's MLPs: the same predictions, and with backprop the same learning."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor

from fflearn import LocalClassifier, LocalRegressor
from fflearn.errors import SettingsWarning, SpecError

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4))
Y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
T = np.stack([X[:, 0] * X[:, 1], X[:, 2]], axis=1)
# Adam's epsilon stands before the bias correction there and after it here: too small to tell.
SETTINGS = {"hidden_layer_sizes": (7, 5), "activation": "tanh", "epsilon": 1e-15, "random_state": 0}


def mlp_for(kind, **more):
    return kind(**{**SETTINGS, "max_iter": 1, **more})


def assert_same_weights(mlp, local):
    ours = [*local.coefs_, *local.intercepts_]
    for a, b in zip([*mlp.coefs_, *mlp.intercepts_], ours, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


SOLVERS = [
    {"solver": "adam", "learning_rate_init": 0.01},
    {"solver": "sgd", "learning_rate_init": 0.1, "momentum": 0.8, "nesterovs_momentum": False},
]
LEARNING = [(MLPClassifier, LocalClassifier, Y), (MLPRegressor, LocalRegressor, T)]


@pytest.mark.parametrize("more", SOLVERS, ids=lambda s: s["solver"])
@pytest.mark.parametrize("theirs, ours, y", LEARNING, ids=["classes", "numbers"])
@pytest.mark.parametrize("batch", [60, 20], ids=["all", "batches"])
def test_backprop_learns_what_an_mlp_learns(theirs, ours, y, more, batch):
    """From the same weights: alpha, batches, optimizer and curve mean what they mean there."""
    alpha = 2.0
    mlp = mlp_for(theirs, **more, alpha=alpha, batch_size=batch, shuffle=False, warm_start=True)
    mlp.fit(X, y)
    local = ours.from_sklearn(mlp, rule="backprop", max_iter=4)
    before = mlp.coefs_[0].copy()
    mlp.set_params(max_iter=4).fit(X, y)
    local.fit(X, y)
    assert_same_weights(mlp, local)
    assert np.abs(mlp.coefs_[0] - before).max() > 0.01
    assert len(local.loss_curve_) == len(mlp.loss_curve_) == 5


@pytest.mark.parametrize("theirs, ours, y", LEARNING, ids=["classes", "numbers"])
def test_weighted_samples_are_learned_from_as_an_mlp_does(theirs, ours, y):
    w = RNG.integers(0, 4, 60).astype(float)
    mlp = mlp_for(theirs, learning_rate_init=0.01, alpha=0.0, warm_start=True)
    mlp.fit(X, y)
    local = ours.from_sklearn(mlp, rule="backprop", max_iter=4, tol=0)
    mlp.set_params(max_iter=4, tol=0).fit(X, y, sample_weight=w)
    local.fit(X, y, sample_weight=w)
    assert_same_weights(mlp, local)
    n_outputs = 1 if theirs is MLPClassifier else 2  # there the mean over numbers, here the sum
    np.testing.assert_allclose(
        np.array(local.loss_curve_[1:]), n_outputs * np.array(mlp.loss_curve_[1:]), rtol=1e-7
    )


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("y", [Y, Y > 0, np.array(["a", "b"])[Y // 2]], ids=["3", "bool", "text"])
def test_a_classifier_there_and_back(activation, y):
    mlp = mlp_for(MLPClassifier, activation=activation, max_iter=5).fit(X, y)
    local = LocalClassifier.from_sklearn(mlp)
    np.testing.assert_allclose(local.predict_proba(X), mlp.predict_proba(X), rtol=1e-10)
    np.testing.assert_array_equal(local.predict(X), mlp.predict(X))
    assert local.loss_curve_ == mlp.loss_curve_ is not local.loss_curve_
    again = local.to_sklearn()
    np.testing.assert_allclose(again.predict_proba(X), mlp.predict_proba(X), rtol=1e-10)
    assert again.get_params() == mlp.get_params()
    assert (again.n_outputs_, again.n_layers_) == (mlp.n_outputs_, mlp.n_layers_)
    for a, b in zip(mlp.coefs_, again.coefs_, strict=True):
        np.testing.assert_allclose(a, b)
        assert a is not b
    assert len(again.set_params(warm_start=True).fit(X, y).loss_curve_) == 10  # it goes on there
    assert len(again.partial_fit(X, y).loss_curve_) == 11


@pytest.mark.parametrize("y", [T, T[:, 0]], ids=["two", "one"])
def test_a_regressor_there_and_back(y):
    local = LocalRegressor("dfa", (6,), random_state=0, max_iter=3).fit(X, y)
    mlp = local.to_sklearn()
    np.testing.assert_allclose(mlp.predict(X), local.predict(X), rtol=1e-10)
    again = LocalRegressor.from_sklearn(mlp, rule="fa")
    np.testing.assert_allclose(again.predict(X), local.predict(X), rtol=1e-10)
    assert again.rule == "fa" and again.hidden_layer_sizes == (6,)


def test_an_mlp_goes_on_under_another_rule():
    mlp = mlp_for(MLPClassifier, max_iter=3).fit(X, Y)
    local = LocalClassifier.from_sklearn(mlp, rule="dfa", warm_start=True, max_iter=200)
    start = local.predict_proba(X)
    local.fit(X, Y)
    assert local.score(X, Y) > mlp.score(X, Y) and not np.allclose(local.predict_proba(X), start)
    more = LocalClassifier.from_sklearn(mlp, rule="dfa").partial_fit(X, Y)
    assert more.loss_curve_[:3] == mlp.loss_curve_ and len(more.loss_curve_) == 4


def test_parameters_of_an_mlp_that_is_not_fitted():
    mlp = MLPClassifier((3, 2), "logistic", alpha=0.5, tol=0.1, early_stopping=True)
    local = LocalClassifier.from_sklearn(mlp, rule="fa")
    assert not hasattr(local, "state_") and not hasattr(local, "coefs_")
    assert (local.rule, local.hidden_layer_sizes, local.activation) == ("fa", (3, 2), "logistic")
    assert (local.alpha, local.tol, local.early_stopping) == (0.5, 0.1, True)
    assert (local.solver, local.learning_rate, local.learning_rate_init) == (
        "adam",
        "constant",
        1e-3,
    )
    with pytest.warns(SettingsWarning, match="solver='lbfgs'"):
        assert LocalClassifier.from_sklearn(MLPClassifier(solver="lbfgs")).solver == "auto"
    with pytest.warns(SettingsWarning, match="nesterovs_momentum=True"):
        LocalClassifier.from_sklearn(MLPClassifier(solver="sgd"))


def test_what_has_no_counterpart():
    fitted = LocalClassifier("dfa", (6,), max_iter=1, random_state=0).fit(X, Y)
    for rule in ("forward_forward", "single_forward"):
        other = LocalClassifier(rule, (6,), max_iter=1).fit(X, Y)
        assert not hasattr(other, "coefs_")
        with pytest.raises(SpecError, match="an MLP is a chain of dense layers"):
            other.to_sklearn()
    clipped = LocalClassifier("equilibrium_propagation", (6,), max_iter=1).fit(X, Y)
    with pytest.raises(SpecError, match="hardsigmoid"):
        clipped.to_sklearn()
    settled = clipped.set_params(activation="tanh", hidden_layer_sizes=(6, 6)).fit(X, Y)
    with pytest.raises(SpecError, match="predicts by a sweep to the output"):
        settled.to_sklearn()
    net = "dense 4 relu | dense 4 tanh | dense 3"
    with pytest.raises(SpecError, match="one activation"):
        LocalClassifier(net=net, max_iter=1).fit(X, Y).to_sklearn()
    with pytest.raises(SpecError, match="needs a MLPRegressor"):
        LocalRegressor.from_sklearn(fitted.to_sklearn())
    with pytest.raises(SpecError, match="needs a MLPClassifier; got LogisticRegression"):
        LocalClassifier.from_sklearn(LogisticRegression())
    with pytest.raises(SpecError, match="cannot have the weights"):
        LocalClassifier.from_sklearn(fitted.to_sklearn(), rule="forward_forward")
    with pytest.raises(SpecError, match="cannot have the weights"):
        LocalClassifier.from_sklearn(fitted.to_sklearn(), hidden_layer_sizes=(5,))
    many = mlp_for(MLPClassifier).fit(X, np.stack([Y > 0, Y > 1], 1).astype(int))
    with pytest.raises(SpecError, match="several labels"):
        LocalClassifier.from_sklearn(many)
    counts = mlp_for(MLPRegressor, loss="poisson").fit(X, Y)
    with pytest.raises(SpecError, match="poisson"):
        LocalRegressor.from_sklearn(counts)
