"""scikit-learn estimators: every rule behind ``fit`` and ``predict``."""

from fflearn.estimators.classifier import LocalClassifier
from fflearn.estimators.regressor import LocalRegressor
from fflearn.estimators.representation import LayerTransformer

__all__ = ["LayerTransformer", "LocalClassifier", "LocalRegressor"]
