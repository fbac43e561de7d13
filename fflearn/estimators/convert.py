"""To and from scikit-learn's MLPs."""

from __future__ import annotations

import warnings
from copy import copy
from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.validation import _is_fitted

from fflearn.errors import SettingsWarning, SpecError
from fflearn.layers.dense import Dense
from fflearn.random import Key

MLPS = {"classification": MLPClassifier, "regression": MLPRegressor}
ACTIVATIONS = ("identity", "logistic", "tanh", "relu")
NAMES = {"sigmoid": "logistic"}
# Parameters of the same name and meaning.  Solver and schedule are compared, too: see `_solver`.
SHARED = (
    *("hidden_layer_sizes", "activation", "alpha", "batch_size", "learning_rate_init", "max_iter"),
    *("shuffle", "random_state", "tol", "verbose", "warm_start", "momentum", "early_stopping"),
    *("validation_fraction", "beta_1", "beta_2", "epsilon", "n_iter_no_change"),
)
HISTORY = (
    *("n_iter_", "loss_", "best_loss_", "validation_scores_", "best_validation_score_"),
    "loss_curve_",
)


def is_plain(net: Any) -> bool:
    """Whether a network is what an MLP is: dense layers in a chain."""
    chain = all(node.sources == (i - 1,) for i, node in enumerate(net.nodes))
    return chain and all(
        isinstance(layer, Dense) and layer.norm == "none" and layer.bias and not layer.places
        for layer in net.leaves
    )


def from_sklearn(kind: Any, mlp: Any, params: dict[str, Any]) -> Any:
    """See `LocalEstimator.from_sklearn`."""
    if not isinstance(mlp, MLPS[kind.task]):
        raise SpecError(
            f"{kind.__name__}.from_sklearn needs a {MLPS[kind.task].__name__}; got "
            f"{type(mlp).__name__}."
        )
    if mlp.loss not in ("log_loss", "squared_error"):
        raise SpecError(f"{kind.__name__} has no loss {mlp.loss!r}, only squared_error.")
    given = {n: getattr(mlp, n) for n in SHARED}
    estimator = kind(**{**given, **_solver(mlp), **params})
    if not _is_fitted(mlp, "coefs_"):
        return estimator
    if mlp.out_activation_ == "logistic" and not _binary(mlp):
        raise SpecError("this MLPClassifier gives a sample several labels: fit one for each.")
    coefs, intercepts = list(mlp.coefs_), list(mlp.intercepts_)
    if _binary(mlp):  # one logistic output z is the softmax of (0, z)
        coefs[-1] = np.hstack([np.zeros_like(coefs[-1]), coefs[-1]])
        intercepts[-1] = np.hstack([np.zeros_like(intercepts[-1]), intercepts[-1]])
    estimator.loss_curve_ = []
    for name in (*HISTORY, "n_features_in_", "feature_names_in_", "classes_"):
        if hasattr(mlp, name):
            setattr(estimator, name, copy(getattr(mlp, name)))
    estimator._take(coefs, intercepts)
    return estimator


def _solver(mlp: Any) -> dict[str, Any]:
    """Solver and schedule; what has no counterpart is left to the rule, with a warning."""
    if mlp.solver == "adam" or (
        mlp.solver == "sgd" and mlp.learning_rate == "constant" and not mlp.nesterovs_momentum
    ):
        return {"solver": mlp.solver, "learning_rate": "constant"}
    warnings.warn(
        f"there is no solver={mlp.solver!r} with learning_rate={mlp.learning_rate!r} and "
        f"nesterovs_momentum={mlp.nesterovs_momentum} here: the rule's own is taken.",
        SettingsWarning,
        stacklevel=4,
    )
    return {}


def _binary(mlp: Any) -> bool:
    return mlp.out_activation_ == "logistic" and mlp.n_outputs_ == 1


def to_sklearn(estimator: Any) -> Any:
    """See `LocalEstimator.to_sklearn`."""
    net = estimator.engine_.net
    hidden, last = net.leaves[:-1], net.leaves[-1]
    kinds = {NAMES.get(layer.activation, layer.activation) for layer in hidden}
    known = set(ACTIVATIONS) & kinds == kinds
    if not is_plain(net) or len(kinds) > 1 or not known or last.activation != "identity":
        raise SpecError(
            f"an MLP is a chain of dense layers with one activation ({', '.join(ACTIVATIONS)}), "
            f"and none at its end; here is {net.spec()!r}. fflearn.interop.to_torch converts any network."
        )
    given = {n: getattr(estimator, n) for n in SHARED if getattr(estimator, n) != "auto"}
    given["hidden_layer_sizes"] = tuple(layer.units for layer in hidden)
    given["activation"] = kinds.pop() if kinds else "identity"
    mlp = MLPS[estimator.task](**given)
    for name in HISTORY:
        if hasattr(estimator, name):
            setattr(mlp, name, copy(getattr(estimator, name)))
    coefs = [w.copy() for w in estimator.coefs_]
    intercepts = [b.copy() for b in estimator.intercepts_]
    mlp.out_activation_ = estimator.out_activation_
    if estimator.task == "classification":
        mlp.classes_ = estimator.classes_
        mlp._label_binarizer = LabelBinarizer().fit(estimator.classes_)
        if len(mlp.classes_) == 2:  # their softmax is the logistic function of the difference
            coefs[-1] = coefs[-1][:, 1:] - coefs[-1][:, :1]
            intercepts[-1] = intercepts[-1][1:] - intercepts[-1][:1]
            mlp.out_activation_ = "logistic"
    mlp.coefs_, mlp.intercepts_ = coefs, intercepts
    mlp.n_layers_, mlp.n_outputs_ = estimator.n_layers_, len(intercepts[-1])
    mlp.t_ = mlp._no_improvement_count = 0
    mlp.n_features_in_ = estimator.n_features_in_
    _check_same(estimator, mlp)
    if hasattr(estimator, "feature_names_in_"):
        mlp.feature_names_in_ = estimator.feature_names_in_
    return mlp


def _check_same(estimator: Any, mlp: Any) -> None:
    """SpecError where the rule predicts by more than a sweep to the output."""
    x = Key(0).normal((8, mlp.n_features_in_), np.float64)
    ours = estimator._scores_of(x)
    if estimator.task == "classification":
        theirs, ours = mlp.predict_proba(x), softmax(ours, axis=1)
    else:
        theirs = mlp.predict(x).reshape(ours.shape)
    if not np.allclose(theirs, ours, rtol=1e-3, atol=1e-4):
        raise SpecError(
            f"an MLP predicts by a sweep to the output, and {estimator.rule} in another way. Where "
            f"the rule can, set predict_by='logits'."
        )
