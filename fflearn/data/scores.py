"""How well a network does: scores of classes found, and of numbers predicted."""

from __future__ import annotations

import numpy as np

__all__ = ["of_classes", "of_numbers"]


def of_classes(labels: np.ndarray, found: np.ndarray, n_classes: int) -> dict[str, float]:
    """Accuracy, balanced accuracy and macro F1 of found labels (N,), over the classes that occur.

    A class counts for the recall where it is a true label, and for F1 where it is one or was
    found, as in scikit-learn.
    """
    table = np.bincount(labels * n_classes + found, minlength=n_classes**2)
    table = table.reshape(n_classes, n_classes)  # rows: true class, columns: found class
    right, true, called = np.diag(table), table.sum(axis=1), table.sum(axis=0)
    some, either = true > 0, true + called > 0
    return {
        "accuracy": float(right.sum() / len(labels)),
        "balanced_accuracy": float((right[some] / true[some]).mean()),
        "f1": float((2 * right[either] / (true + called)[either]).mean()),
    }


def of_numbers(targets: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Predictions (N, K) of numbers (N, K): R squared, and the errors in the targets' own units.

    "r2" is 1 - (sum of squared errors) / (sum of squares about the targets' mean), the mean over
    the K targets; 0 is what predicting that mean has.  A target that does not vary has r2 1 where
    it was predicted exactly and 0 otherwise, as in scikit-learn.  "rmse" and "mae", the root of
    the mean squared error and the mean absolute error, are over samples and targets together.
    """
    targets, found = np.asarray(targets, np.float64), np.asarray(found, np.float64)
    wrong = targets - found
    left, whole = (wrong**2).sum(axis=0), ((targets - targets.mean(axis=0)) ** 2).sum(axis=0)
    varies = whole > 0
    r2 = np.where(varies, 1 - left / np.where(varies, whole, 1), left == 0)
    return {
        "r2": float(r2.mean()),
        "rmse": float(np.sqrt((wrong**2).mean())),
        "mae": float(np.abs(wrong).mean()),
    }
