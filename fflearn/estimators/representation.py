"""What a layer of a network makes of samples, as features for another estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.utils.validation import check_is_fitted, validate_data

from fflearn.engine import Engine
from fflearn.errors import SpecError
from fflearn.estimators.base import FLOATS
from fflearn.estimators.classifier import LocalClassifier
from fflearn.estimators.samples import parts
from fflearn.representations import in_use
from fflearn.state import State


class LayerTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """The activity of a layer of a network that was trained by any rule.

    Parameters
    ----------
    estimator : LocalClassifier or LocalRegressor, optional
        What is trained; it is cloned, not changed.  Default: LocalClassifier().
    layer : int
        Which layer of the network as the rule trains it (`engine_.net`); -1 is the last one.

    Attributes
    ----------
    estimator_ : the fitted estimator
    n_features_in_, feature_names_in_

    Notes
    -----
    The activity is that of the rule's last way to predict (`Rule.predictors`), which looks at
    the output: where a rule writes labels into the input, it is the one with no label in it.  Where
    there is none without, the activities with each class's label stand side by side.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> local = LocalClassifier("dfa", (16, 4), tol=1, random_state=0)
    >>> LayerTransformer(local, layer=-2).fit(X, y).transform(X).shape
    (150, 4)
    """

    def __init__(self, estimator=None, layer=-2):
        self.estimator = estimator
        self.layer = layer

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train the estimator on samples; see `LocalClassifier.fit`."""
        made = LocalClassifier() if self.estimator is None else clone(self.estimator)
        self.estimator_ = made.fit(X, y, sample_weight=sample_weight)
        self.n_features_in_ = made.n_features_in_
        if hasattr(made, "feature_names_in_"):
            self.feature_names_in_ = made.feature_names_in_
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        engine = made.engine_
        row = np.zeros((1, self.n_features_in_), engine.dtype)
        self._n_features_out = activity(engine, made.state_, row, self.layer).shape[1]
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Activity of the layer (n_samples, n_units), places of a sample side by side."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=FLOATS, reset=False)
        engine, state = self.estimator_.engine_, self.estimator_.state_
        return np.concatenate([activity(engine, state, x, self.layer) for x in parts(X)])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.required = True
        return tags


def activity(engine: Engine, state: State, x: np.ndarray, layer: int) -> np.ndarray:
    """What a layer sends up (B, n) while the network predicts x (B, n_features)."""
    n = len(engine.specs)
    if isinstance(layer, bool) or not isinstance(layer, (int, np.integer)) or not -n <= layer < n:
        raise SpecError(f"layer needs a whole number in {-n} .. {n - 1}; got {layer!r}.")
    return in_use(engine, state, x.reshape(len(x), *engine.in_shape))[layer % n]
