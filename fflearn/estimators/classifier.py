"""Classes, as scikit-learn predicts them."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from scipy.special import log_softmax, softmax
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from fflearn.errors import DataError, SpecError
from fflearn.estimators.base import LocalEstimator
from fflearn.estimators.samples import Samples


class LocalClassifier(ClassifierMixin, LocalEstimator):
    """A neural network classifier that learns by any rule of fflearn.

    Parameters named as those of `sklearn.neural_network.MLPClassifier` mean what they mean there.

    Parameters
    ----------
    rule : str or Rule
        As the command line writes it: "dfa", "dfa[scale=2]", "my_rule.py".
    hidden_layer_sizes : sequence of int, or int
    activation : str
        "relu", "tanh", "logistic", "identity", or another one of `dense`, of the hidden layers.
    net : str or Network, optional
        Another network in the place of these, as "conv 16 relu | max_pool | dense 10" or "lenet".
    in_shape : tuple of int, optional
        Shape of one sample as ``net`` reads it, as (28, 28, 1); X has one row per sample.
    solver : str
        "sgd", "adam", "adamw"; "auto" is the rule's own, with all of its settings.
    alpha : float
        alpha / (2 n) |W|^2 is added to the loss for every matrix W, n the weight of a batch.
    batch_size : int or "auto"
        Distinct samples in a batch; "auto" is 200, or all.
    learning_rate : str
        A schedule over ``max_iter``: "constant", "cosine", or another one of `fflearn.optim`;
        "auto" is the rule's own.  `partial_fit` has no end to go to: there it stands still.
    learning_rate_init : float or "auto"
    max_iter : int
        Most epochs.
    shuffle : bool
        Take the samples in another order in every epoch.  Where False, in the order given.
    random_state : int, RandomState or None
    tol, n_iter_no_change : float, int
        Stop after more than n_iter_no_change epochs in which the loss (with early_stopping: the
        score of what is held out) was not better than its best by tol.
    verbose, warm_start : bool
    momentum, beta_1, beta_2, epsilon : float
        Of a solver that is named.  Momentum is not Nesterov's.
    early_stopping, validation_fraction : bool, float
        Hold that part of the distinct samples out, and keep the weights that were best on it.
    class_weight : dict, "balanced" or None
        Factors on the samples' weights.
    predict_by : str
        One of the rule's `predictors`; "auto" is the first.
    backend : str
    n_jobs : int or None
        Threads.  Results do not depend on it.

    Attributes
    ----------
    classes_ : array, shape (n_classes,)
    n_features_in_, feature_names_in_
    n_iter_ : int
        Epochs of the last `fit`, or of all calls of `partial_fit`.
    loss_curve_ : list of float
        What the rule reports, weighted mean of every epoch, without the penalty of ``alpha``.
    loss_, best_loss_, validation_scores_, best_validation_score_ : as MLPClassifier's
    coefs_, intercepts_ : list of array
        As MLPClassifier's, but for two classes with two outputs; only of chains of dense layers.
    n_layers_, n_outputs_, out_activation_
    state_ : fflearn.State
        Every array that was learned.
    engine_ : fflearn.Engine

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> X, y = load_iris(return_X_y=True)
    >>> local = LocalClassifier("dfa", (16,), tol=1e-3, learning_rate_init=0.05, random_state=0)
    >>> bool(make_pipeline(StandardScaler(), local).fit(X, y).score(X, y) > 0.9)
    True
    """

    task: ClassVar[str] = "classification"

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
        class_weight=None,
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
        self.class_weight = class_weight
        self.predict_by = predict_by
        self.backend = backend
        self.n_jobs = n_jobs

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Any:
        """Learn from samples once more: one epoch, of batches as in `fit`.

        Parameters
        ----------
        X, y, sample_weight
            As of `fit`.
        classes : array, optional
            All classes there will be; needed in the first call.
        """
        first = not hasattr(self, "state_")
        if first and classes is None:
            raise DataError("the first call of partial_fit needs classes: all that will come.")
        if classes is not None:
            classes = np.unique(classes)
            if first:
                self.classes_ = classes
            elif not np.array_equal(classes, self.classes_):
                raise DataError(
                    f"classes={classes} is not the same as on last call to partial_fit, was: "
                    f"{self.classes_}."
                )
        if self.class_weight == "balanced":
            raise SpecError(
                "class_weight='balanced' needs all samples; partial_fit has some. Give a dict."
            )
        return self._partial_fit(X, y, sample_weight, first, known=True)

    def predict(self, X: Any) -> np.ndarray:
        """The most likely class of each sample (n_samples,)."""
        best = self._scores(X).argmax(axis=1)
        return self.classes_[best]

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores (n_samples, n_classes); of two classes, how far the second is ahead (n_samples,)."""
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """softmax of the scores (n_samples, n_classes).

        Where scores are not logits (goodness, sums over layers) these are no calibrated
        probabilities; see `sklearn.calibration.CalibratedClassifierCV`.
        """
        return softmax(self._scores(X), axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of `predict_proba` (n_samples, n_classes)."""
        return log_softmax(self._scores(X), axis=1)

    # -- hooks -----------------------------------------------------------------------------------
    def _targets(self, y: Any, known: bool) -> tuple[np.ndarray, int]:
        check_classification_targets(y)
        y = column_or_1d(y)
        found = np.unique(y)
        if not known:
            self.classes_ = found
        if len(self.classes_) < 2:
            raise DataError(
                f"{type(self).__name__} needs samples of at least 2 classes; the data hold one "
                f"class: {self.classes_[0]!r}."
            )
        if not np.isin(found, self.classes_).all():
            raise DataError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. "
                f"'y' has {found}."
            )
        return np.searchsorted(self.classes_, y), len(self.classes_)

    def _class_weights(self, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
        if self.class_weight is None:
            return weight
        if self.class_weight == "balanced":
            found = np.bincount(y, weights=weight, minlength=len(self.classes_))
            return weight * (weight.sum() / len(self.classes_) / found)[y]
        if not isinstance(self.class_weight, dict):
            raise SpecError(
                f"class_weight needs a dict of class and factor, 'balanced' or None; got "
                f"{self.class_weight!r}."
            )
        unknown = set(self.class_weight) - set(self.classes_)
        factors = np.array([self.class_weight.get(c, 1.0) for c in self.classes_], np.float64)
        if unknown or not (np.isfinite(factors) & (factors > 0)).all():
            raise DataError(
                f"class_weight needs numbers above 0 for classes out of {self.classes_}; got "
                f"{self.class_weight!r}."
            )
        return weight * factors[y]

    def _held_score(self, scores: np.ndarray, held: Samples) -> float:
        return float(np.average(scores.argmax(axis=1) == held.y, weights=held.weight))

    def _names(self) -> tuple[str, ...]:
        return tuple(str(c) for c in self.classes_)
