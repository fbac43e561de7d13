"""Label embeddings and negatives."""

from __future__ import annotations

import numpy as np
import pytest

from fflearn import kernels
from fflearn.base import Key
from fflearn.errors import SpecError
from fflearn.labels import (
    EMBEDDINGS,
    NEGATIVES,
    Append,
    LabelChannel,
    Overlay,
    embedding,
    negatives,
)

IMAGES = np.arange(2 * 3 * 4 * 2, dtype=np.float32).reshape(2, 3, 4, 2) + 100
LABELS = np.array([[0, 1, 0], [1, 0, 0]], np.float32)


def test_overlay_writes_over_the_first_pixels_in_all_channels():
    out = Overlay(5.0)(IMAGES, LABELS)
    assert out.shape == IMAGES.shape and out.dtype == np.float32
    expected = IMAGES.reshape(2, 12, 2).copy()
    expected[0, :3], expected[1, :3] = [[0, 0], [5, 5], [0, 0]], [[5, 5], [0, 0], [0, 0]]
    np.testing.assert_array_equal(out.reshape(2, 12, 2), expected)
    flat = Overlay()(np.full((2, 5), 7.0), LABELS)
    np.testing.assert_array_equal(flat, [[0, 1, 0, 7, 7], [1, 0, 0, 7, 7]])


def test_append_adds_features():
    out = Append(2.0)(IMAGES, LABELS)
    assert out.shape == (2, 27) and out.dtype == np.float32
    np.testing.assert_array_equal(out[:, :24], IMAGES.reshape(2, 24))
    np.testing.assert_array_equal(out[:, 24:], 2 * LABELS)


def test_a_label_channel_lights_one_band_of_rows():
    out = LabelChannel(3.0)(IMAGES, LABELS)
    assert out.shape == (2, 3, 4, 3) and out.dtype == np.float32
    np.testing.assert_array_equal(out[..., :2], IMAGES)
    np.testing.assert_array_equal(out[0, :, :, 2], [[0] * 4, [3] * 4, [0] * 4])
    np.testing.assert_array_equal(out[1, :, :, 2], [[3] * 4, [0] * 4, [0] * 4])


def test_labels_are_as_strong_as_white_pixels_unless_told():
    assert {kind().strength for kind in EMBEDDINGS.values()} == {1.0}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embeddings_tell_labels_apart_and_leave_the_input_alone(name):
    embed, before = embedding(name, (3, 4, 2), 3, 1.0), IMAGES.copy()
    found = [embed(IMAGES[:1], np.eye(3, dtype=np.float32)[[c]]) for c in range(3)]
    assert all(f.shape[1:] == embed.shape((3, 4, 2), 3) for f in found)
    assert len({f.tobytes() for f in found}) == 3
    assert (IMAGES == before).all()
    assert len({float(f.sum()) for f in found}) == 1  # no label is brighter than another


@pytest.mark.parametrize(
    ("shape", "n_classes", "name"),
    [
        ((28, 28, 1), 10, "overlay"),
        ((8, 8, 1), 4, "overlay"),  # 16 pixels per class
        ((8, 8, 1), 5, "append"),
        ((784,), 10, "append"),
        ((4,), 3, "append"),
        ((32, 32, 3), 10, "overlay"),
    ],
)
def test_auto_overlays_images_that_can_spare_the_pixels(shape, n_classes, name):
    assert embedding("auto", shape, n_classes, 1.0).name == name


def test_inputs_without_room_are_told():
    with pytest.raises(SpecError, match="writes 10 values .* only 4 places. Use label=append"):
        Overlay().shape((2, 2, 8), 10)
    with pytest.raises(SpecError, match="at least 10 pixels"):
        LabelChannel().shape((3, 3, 1), 10)
    with pytest.raises(SpecError, match=r"needs images .* of shape \(9,\)"):
        LabelChannel().shape((9,), 2)
    with pytest.raises(SpecError, match="unknown label embedding 'top'; known: auto, overlay"):
        embedding("top", (4,), 2, 1.0)
    with pytest.raises(SpecError, match="unknown negatives 'easy'; known: wrong"):
        negatives("easy")


# ---- negatives ------------------------------------------------------------------------------------


def draw(name: str, labels: np.ndarray, n_classes: int, logits=None, seed=0, backend="reference"):
    k, y = kernels.load(backend), np.eye(n_classes, dtype=np.float32)[labels]
    key = Key(seed).fold("negatives").using(k)
    found = negatives(name)(k, y, logits, key)
    assert found.dtype == np.float32 and found.shape == (
        len(y) * negatives(name).per_sample(n_classes),
        n_classes,
    )
    assert (found.sum(1) == 1).all() and set(np.unique(found)) <= {0, 1}
    return y, found


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_wrong_labels_are_never_true_and_uniform(n_classes, backend):
    n = 100_000
    labels = np.arange(n) % n_classes
    y, found = draw("wrong", labels, n_classes, backend=backend)
    assert (y * found).sum() == 0
    counts = np.zeros((n_classes, n_classes))
    np.add.at(counts, (labels, found.argmax(1)), 1)
    expected = n / n_classes / (n_classes - 1)
    off = counts[~np.eye(n_classes, dtype=bool)]
    chi2 = ((off - expected) ** 2 / expected).sum()
    freedom = n_classes * (n_classes - 2)
    # Mean freedom, variance twice that: six deviations.
    assert chi2 <= freedom + 6 * np.sqrt(2 * freedom) + 1e-9


def test_draws_follow_the_key():
    labels = np.arange(50) % 5
    first, again, other = (draw("wrong", labels, 5, seed=s)[1] for s in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize("n_classes", [2, 5])
def test_all_wrong_is_every_wrong_label_once(n_classes):
    labels = np.array([0, 1, 1])
    y, found = draw("all_wrong", labels, n_classes)
    blocks = found.reshape(n_classes - 1, 3, n_classes)
    np.testing.assert_array_equal(blocks.sum(0), 1 - y)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_hard_labels_are_never_true_and_follow_the_head(backend):
    n, logits = 100_000, np.log(np.array([1.0, 2.0, 3.0, 14.0], np.float32))
    labels = np.full(n, 3)  # the head's favourite is the truth, and must not be drawn
    y, found = draw("hard", labels, 4, np.tile(logits, (n, 1)), backend=backend)
    assert (y * found).sum() == 0
    np.testing.assert_allclose(found.mean(0), [1 / 6, 2 / 6, 3 / 6, 0], atol=0.006)


def test_hard_labels_survive_a_certain_head():
    logits = np.array([[0.0, 500.0, -500.0], [-500.0, 0.0, -500.0]], np.float32)
    y, found = draw("hard", np.array([1, 1]), 3, logits)
    assert (y * found).sum() == 0 and (found[0] == [1, 0, 0]).all()


def test_only_hard_negatives_need_a_head():
    assert {name for name, kind in NEGATIVES.items() if kind.needs_head} == {"hard"}
