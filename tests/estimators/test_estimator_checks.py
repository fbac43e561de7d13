"""scikit-learn's own checks of estimators, with every rule there is and no expected failure."""

from __future__ import annotations

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from fflearn import LayerTransformer, LocalClassifier, LocalRegressor, registry, rules

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::fflearn.errors.SettingsWarning"),
]

# As small and short as the checks of accuracy on the training data allow; the same for all rules,
# the solver too: a learning rate means other things to each.
SMALL = {
    "hidden_layer_sizes": (50,),
    "solver": "adam",
    "learning_rate_init": 0.05,
    "max_iter": 10,
    "batch_size": 50,
}
LABELS = [*rules.names(), "forward_forward[negatives=all_wrong]"]
NUMBERS = [label for label in LABELS if not registry.rule(label).needs_classes]


@parametrize_with_checks([LocalClassifier(label, **SMALL) for label in LABELS])
def test_classifier(estimator, check):
    check(estimator)


@parametrize_with_checks([LocalRegressor(label, **SMALL) for label in NUMBERS])
def test_regressor(estimator, check):
    check(estimator)


@parametrize_with_checks([LayerTransformer(LocalClassifier(**SMALL, random_state=0))])
def test_transformer(estimator, check):
    check(estimator)


def test_most_rules_predict_numbers():
    assert {"backprop", "dfa", "fa"} <= set(NUMBERS) < set(LABELS)
