"""Labels and scores for new samples, from a trained network's file."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np

from fflearn.data import load_samples
from fflearn.errors import DataError, ShapeError
from fflearn.training import restored


def predict_file(checkpoint: str | Path, samples: str | Path, by: str = "") -> str:
    """CSV text: one row per sample, with its label and the score of every class.

    Where the network predicts numbers, a row has these.

    Parameters
    ----------
    checkpoint : path
        ``final.safetensors`` of a training run.
    samples : path
        CSV or npz file; see `fflearn.data.load_samples`.
    by : str
        One of the rule's `predictors`.

    Raises
    ------
    CheckpointError, DataError, ShapeError, SpecError
    """
    engine, state = restored(checkpoint)
    x = load_samples(samples, math.prod(engine.in_shape))
    if math.prod(x.shape[1:]) != math.prod(engine.in_shape):
        raise ShapeError(
            f"the network takes samples of shape {engine.in_shape}; {samples} holds samples of "
            f"shape {x.shape[1:]}."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        scores = engine.predict(state, x.reshape(len(x), *engine.in_shape), by)
    if not np.isfinite(scores).all():
        row = int(np.argmin(np.isfinite(scores).all(axis=1)))
        raise DataError(
            f"sample {row} of {samples} overflows the network. Scale it as in training."
        )
    classes = state.meta["run"]["classes"] or [str(c) for c in range(engine.n_classes)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if engine.task == "regression":
        writer.writerow([f"prediction_{c}" for c in classes])
        writer.writerows([f"{number:.9g}" for number in row] for row in scores)
        return out.getvalue()
    writer.writerow(["label", *(f"score_{c}" for c in classes)])
    for best, row in zip(np.argmax(scores, axis=1), scores, strict=True):
        writer.writerow([classes[best], *(f"{s:.6g}" for s in row)])
    return out.getvalue()
