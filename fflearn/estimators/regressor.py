"""Numbers, as scikit-learn predicts them."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import column_or_1d

from fflearn.errors import ShapeError
from fflearn.estimators.base import LocalEstimator
from fflearn.estimators.samples import Samples


class LocalRegressor(RegressorMixin, LocalEstimator):
    """A neural network regressor that learns by any rule of fflearn that needs no classes.

    The loss is half the squared error, summed over outputs.  Rules that learn from classes
    (`Rule.needs_classes`) are refused by name.

    Parameters
    ----------
    rule, hidden_layer_sizes, ... :
        As of `LocalClassifier`; there is no class_weight.

    Attributes
    ----------
    n_iter_, loss_curve_, coefs_, intercepts_, state_, engine_, ... :
        As of `LocalClassifier`; validation_scores_ are R squared.

    Examples
    --------
    >>> x = np.linspace(-1, 1, 100).reshape(-1, 1)
    >>> local = LocalRegressor("dfa", (50,), "tanh", learning_rate_init=0.05, random_state=0)
    >>> bool(local.fit(x, x[:, 0] ** 3).score(x, x[:, 0] ** 3) > 0.9)
    True
    """

    task: ClassVar[str] = "regression"

    def __init__(
        self,
        rule="dfa",
        hidden_layer_sizes=(100,),
        activation="relu",
        *,
        net=None,
        in_shape=None,
        solver="auto",
        alpha=0.0001,
        batch_size="auto",
        learning_rate="auto",
        learning_rate_init="auto",
        max_iter=200,
        shuffle=True,
        random_state=None,
        tol=1e-4,
        verbose=False,
        warm_start=False,
        momentum=0.9,
        early_stopping=False,
        validation_fraction=0.1,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        n_iter_no_change=10,
        predict_by="auto",
        backend="numba",
        n_jobs=None,
    ):
        self.rule = rule
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.net = net
        self.in_shape = in_shape
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.predict_by = predict_by
        self.backend = backend
        self.n_jobs = n_jobs

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Learn from samples once more: one epoch, of batches as in `fit`."""
        first = not hasattr(self, "state_")
        return self._partial_fit(X, y, sample_weight, first, known=not first)

    def predict(self, X: Any) -> np.ndarray:
        """Numbers (n_samples,), or (n_samples, n_outputs) where there are several."""
        found = self._scores(X)
        return found[:, 0] if found.shape[1] == 1 else found

    # -- hooks -----------------------------------------------------------------------------------
    def _targets(self, y: Any, known: bool) -> tuple[np.ndarray, int]:
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        y = np.asarray(y, np.float64).reshape(len(y), -1)
        if known and y.shape[1] != self.n_outputs_:
            raise ShapeError(f"y needs {self.n_outputs_} numbers per sample; got {y.shape[1]}.")
        return y, y.shape[1]

    def _held_score(self, scores: np.ndarray, held: Samples) -> float:
        return float(r2_score(held.y, scores, sample_weight=held.weight))
