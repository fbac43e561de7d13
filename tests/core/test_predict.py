"""Labels and scores for new samples."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from core_runs import blobs, contents

from fflearn import registry
from fflearn.data import load
from fflearn.errors import CheckpointError, DataError, FFLearnError, ShapeError, SpecError
from fflearn.optim import SGD, Adam
from fflearn.predict import predict_file
from fflearn.run_files import FINAL
from fflearn.training import restored, train

NET = "dense 8 relu | dense 3"


def trained(rule="backprop", data="blobs.csv", net=NET, **more):
    """A run whose final file is run/final.safetensors."""
    return train(net, rule, data, epochs=2, batch_size=16, out="run", **more)


def read(text):
    """Labels and scores of predict_file's text."""
    head, *rows = csv.reader(io.StringIO(text))
    return head, [r[0] for r in rows], np.array([[float(s) for s in r[1:]] for r in rows])


@pytest.mark.parametrize("rule", [*registry.names(), "my_rule.py[speed=2]", "backprop@ff"])
def test_the_file_predicts_as_the_run_does(here, rule):
    run = trained(rule)
    x, _ = blobs()
    head, labels, scores = read(predict_file(f"run/{FINAL}", "blobs.csv"))
    expected = run.engine.predict(run.state, np.round(x, 6))
    assert head == ["label", "score_a", "score_b", "score_c"]
    assert np.allclose(scores, expected, rtol=1e-4, atol=1e-5)
    assert labels == ["abc"[i] for i in expected.argmax(axis=1)]


@pytest.mark.torch
def test_what_the_reference_learned_is_predicted_without_it(here):
    run = trained("torch", dtype="float64")
    engine, state = restored(f"run/{FINAL}")
    assert type(engine).__name__ == "Engine"
    x, _ = blobs()
    assert np.allclose(engine.predict(state, x), run.engine.predict(run.state, x), atol=1e-12)


def test_a_table_may_come_without_labels_and_without_a_header(here):
    trained()
    whole = predict_file(f"run/{FINAL}", "blobs.csv")
    lines = [line.rpartition(",")[0] for line in Path("blobs.csv").read_text().splitlines()]
    Path("bare.csv").write_text("\n".join(lines))
    Path("headless.csv").write_text("\n".join(lines[1:]))
    assert predict_file(f"run/{FINAL}", "bare.csv") == whole
    assert predict_file(f"run/{FINAL}", "headless.csv") == whole


def test_one_way_to_predict_or_the_other(here):
    run = trained("ff")
    x, _ = blobs()
    for by in ("goodness", "softmax"):
        _, _, scores = read(predict_file(f"run/{FINAL}", "blobs.csv", by))
        assert np.allclose(scores, run.engine.predict(run.state, np.round(x, 6), by), rtol=1e-4)
    assert predict_file(f"run/{FINAL}", "blobs.csv") == predict_file(
        f"run/{FINAL}", "blobs.csv", "goodness"
    )
    with pytest.raises(SpecError, match="logits"):
        predict_file(f"run/{FINAL}", "blobs.csv", "logits")


def test_images_come_as_an_array_of_their_shape_or_as_rows(here):
    images = load("digits").x_test[:5]
    train("dense 8 relu | dense 10", "dfa", "digits", epochs=1, out="run")
    np.savez("images.npz", x=images)
    np.savez("rows.npz", x=images.reshape(5, 64))
    assert predict_file(f"run/{FINAL}", "images.npz") == predict_file(f"run/{FINAL}", "rows.npz")
    head, labels, _ = read(predict_file(f"run/{FINAL}", "images.npz"))
    assert head[1] == "score_0" and len(labels) == 5


def test_classes_without_names_are_numbered(here):
    x, y = blobs()
    trained(data=(x, y + 10))
    assert read(predict_file(f"run/{FINAL}", "blobs.csv"))[0][1:] == [
        f"score_{c}" for c in (10, 11, 12)
    ]


@pytest.mark.parametrize(
    "optimizer", [SGD(0.1, momentum=0.9), Adam(weight_decay=(0.1, 0.01), schedule="cosine")]
)
def test_every_optimizer_is_restored(here, optimizer):
    run = trained(optimizer=optimizer)
    engine, state = restored(f"run/{FINAL}")
    assert engine.optimizer == optimizer and state.arrays().keys() == run.state.arrays().keys()


# ---- what is refused ----------------------------------------------------------------------------

TABLES = {
    "a column too many": "1,2,3,4,5,6\n1,2,3,4,5,6\n",
    "a column too few": "1,2,3\n1,2,3\n",
    "a row that ends early": "1,2,3,4\n1,2\n",
    "no rows": "p,q,r,s\n",
    "nothing": "",
    "text": "1,2,3,x\n1,2,3,4\n",
    "a gap": "1,2,3,4\n1,,3,4\n",
    "not a number": "1,2,3,4\n1,nan,3,4\n",
    "infinity": "1,2,3,4\n1,inf,3,4\n",
    "beyond float32": "1,2,3,4\n1,1e39,3,4\n",
    "beyond the network": "3e38,3e38,3e38,3e38\n3e38,-3e38,3e38,-3e38\n",
    "bytes": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_does_not_fit_is_refused(here, name):
    trained()
    text = TABLES[name]
    Path("new.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises((DataError, ShapeError)):
        predict_file(f"run/{FINAL}", "new.csv")


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3), (5, 4, 4), (0, 4), (4,)])
def test_an_array_that_does_not_fit_is_refused(here, shape):
    trained()
    np.savez("new.npz", x=np.zeros(shape))
    with pytest.raises((DataError, ShapeError)):
        predict_file(f"run/{FINAL}", "new.npz")


@pytest.mark.parametrize("samples", ["missing.csv", "run", "my_rule.py"])
def test_samples_that_are_no_table_are_refused(here, samples):
    trained()
    with pytest.raises(DataError):
        predict_file(f"run/{FINAL}", samples)


@pytest.mark.parametrize("checkpoint", ["missing", "run", "blobs.csv", "my_rule.py"])
def test_files_that_are_no_checkpoint_are_refused(here, checkpoint):
    trained()
    with pytest.raises(CheckpointError):
        predict_file(checkpoint, "blobs.csv")


def test_a_rule_whose_file_is_gone_is_named(here):
    trained("my_rule.py")
    Path("my_rule.py").unlink()
    with pytest.raises(FFLearnError, match="there is no rule file .*my_rule.py"):
        predict_file(f"run/{FINAL}", "blobs.csv")


def test_predicting_changes_no_file(here):
    trained()
    before = contents(here)
    predict_file(f"run/{FINAL}", "blobs.csv")
    assert contents(here) == before
