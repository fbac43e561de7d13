"""Layers as features."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from fflearn import LayerTransformer, LocalClassifier, LocalRegressor, rules
from fflearn.errors import SpecError

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::fflearn.errors.SettingsWarning"),
]

RNG = np.random.default_rng(0)
Y = np.arange(30) % 3
X = RNG.normal(size=(30, 4)) + 2 * np.eye(3, 4)[Y]


def local(rule="dfa", **more):
    return LocalClassifier(rule, **{"hidden_layer_sizes": (6, 5), "max_iter": 2, **more})


def test_a_layers_activity_is_what_its_weights_make_of_the_layer_below():
    rows = np.vstack([X] * 40)  # more than are looked at at a time
    fitted = LayerTransformer(local("fa"), layer=1).fit(X, Y)
    (a, b, _), (p, q, _) = fitted.estimator_.coefs_, fitted.estimator_.intercepts_
    first = np.maximum(X @ a + p, 0)
    second = np.maximum(first @ b + q, 0)
    np.testing.assert_allclose(fitted.transform(rows), np.vstack([second] * 40), rtol=1e-12)
    np.testing.assert_allclose(fitted.set_params(layer=-3).transform(X), first, rtol=1e-12)
    out = fitted.set_params(layer=-1).transform(X)
    np.testing.assert_allclose(out, fitted.estimator_.decision_function(X))
    thin = fitted.set_params(layer=0).transform(sparse.csr_array(X))
    np.testing.assert_allclose(thin, first, rtol=1e-12)


@pytest.mark.parametrize("rule", rules.names())
def test_every_rule_has_a_representation_that_predicting_leaves_alone(rule):
    made = LayerTransformer(local(rule, random_state=0), layer=1).fit(X, Y)
    before = made.estimator_.predict_proba(X)
    found = made.transform(X)
    assert found.shape == (30, *made.estimator_.engine_.specs[1].out_shape) and found.std() > 0
    np.testing.assert_array_equal(made.estimator_.predict_proba(X), before)
    np.testing.assert_allclose(made.transform(X[:3]), found[:3], rtol=1e-9, atol=1e-12)


def test_a_layer_that_relaxes_is_taken_where_it_settles():
    made = LayerTransformer(local("ep", random_state=0), layer=-1).fit(X, Y)
    np.testing.assert_array_equal(made.transform(X), made.estimator_.decision_function(X))


def test_without_a_pass_without_labels_each_label_has_its_activities():
    made = LayerTransformer(local("ff[head=false,negatives=wrong]"), layer=0).fit(X, Y)
    found = made.transform(X)
    assert found.shape == (30, 18) and len(made.get_feature_names_out()) == 18
    assert not np.allclose(found[:, :6], found[:, 6:12])


def test_it_feeds_another_estimator():
    pipe = make_pipeline(
        LayerTransformer(local(max_iter=20, learning_rate_init=0.05, random_state=0)),
        LogisticRegression(),
    )
    assert pipe.set_params(layertransformer__estimator__rule="fa").fit(X, Y).score(X, Y) > 0.8
    numbers = LayerTransformer(LocalRegressor("dfa", (6,), max_iter=1)).fit(X, X[:, 0])
    assert numbers.get_feature_names_out()[:2].tolist() == [
        "layertransformer0",
        "layertransformer1",
    ]
    weighted = LayerTransformer(local(random_state=0)).fit(X, Y, sample_weight=Y)
    assert weighted.estimator_.classes_.tolist() == [1, 2]


@pytest.mark.parametrize("layer", [3, -4, 1.0, True])
def test_a_layer_that_is_not_there(layer):
    with pytest.raises(SpecError, match="-3 .. 2"):
        LayerTransformer(local(), layer=layer).fit(X, Y)


def test_what_is_not_fitted_says_so():
    with pytest.raises(NotFittedError):
        LayerTransformer().transform(X)
