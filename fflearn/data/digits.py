"""The 1797 handwritten digits that scikit-learn carries: no download, trained in seconds."""

import numpy as np

from fflearn.data.dataset import DataSet, stratified

__all__ = ["load"]


def load() -> DataSet:
    """Load the digits: 8 x 8 grey images of ten classes.

    Returns
    -------
    DataSet
        x (N, 8, 8, 1) in [0, 1].  A stratified fifth is the test part, the same for all.

    References
    ----------
    E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository, doi:10.24432/C50P49 (its test part, as scikit-learn ships it).
    """
    from sklearn.datasets import load_digits  # a second to import: only for those who ask

    bunch = load_digits()
    x = np.divide(bunch.images, 16, dtype=np.float32, casting="same_kind")[..., None]
    y = bunch.target.astype(np.int64)
    keep, held = stratified(y, 0.2, "test")
    return DataSet(
        "digits", x[keep], y[keep], x[held], y[held], n_classes=10, classes=tuple("0123456789")
    )
