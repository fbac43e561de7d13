"""Label embeddings, negatives, hybrids."""

from __future__ import annotations

import numpy as np
import pytest

from fflearn import kernels
from fflearn.base import Key
from fflearn.errors import SpecError
from fflearn.kernels.reference import Kernels
from fflearn.labels import (
    EMBEDDINGS,
    NEGATIVES,
    Append,
    Hybrid,
    LabelChannel,
    Labelled,
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
    n = 1_000_000
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


def test_what_is_shown_are_the_samples_with_their_label_and_then_with_others():
    k, x, y = kernels.load("reference"), np.arange(12.0).reshape(4, 3), np.eye(3)[[0, 2, 1, 0]]
    shown = Labelled(Append(), negatives("all_wrong"))
    pairs = shown.pairs(k, x, y, None, Key(0)).whole
    np.testing.assert_array_equal(pairs[:, :3], np.tile(x, (3, 1)))
    np.testing.assert_array_equal(pairs[:4, 3:], y)
    np.testing.assert_array_equal(pairs[4:8, 3:] + pairs[8:, 3:], 1 - y)
    np.testing.assert_allclose(shown.neutral(x, 3)[:, 3:], 1 / 3)
    assert shown.shape((3,), 3) == (6,)


# ---- hybrids --------------------------------------------------------------------------------------


def fit_of_neighbours(size: int, times: int, lag: int) -> float:
    """Part by which masks of two places ``lag`` apart agree more often than they disagree.

    By the central limit theorem the blurred noise is Gaussian, with the correlation that the
    blur's weights have with themselves shifted; of two such values the signs agree by the law of
    the arcsine: E sign sign' = 2 / pi asin(correlation).
    """
    weights = np.eye(size)[0]
    for _ in range(times):
        weights = (np.roll(weights, 1) + 2 * weights + np.roll(weights, -1)) / 4
    return 2 / np.pi * np.arcsin(weights @ np.roll(weights, lag) / (weights @ weights))


@pytest.mark.parametrize(("size", "times"), [(28, 10), (32, 13), (8, 1)])
def test_masks_are_halves_in_blobs_of_the_size_that_the_blur_gives(size, times):
    n = 4000
    m = Hybrid().masks(Kernels(), (n, size, size, 3), Key(0))
    assert m.shape == (n, size, size) and m.dtype == bool
    signs = 2.0 * m - 1
    halves = signs.mean((1, 2))
    assert abs(halves.mean()) < 5 * halves.std() / np.sqrt(n)
    assert abs(m.mean() - 0.5) < 0.05
    for axis in (1, 2):
        for lag in (1, 2, 3):
            fit = (signs * np.roll(signs, lag, axis)).mean((1, 2))
            far = abs(fit.mean() - fit_of_neighbours(size, times, lag))
            assert far < 5 * fit.std() / np.sqrt(n), (axis, lag)


def test_the_noise_of_an_image_is_alike_among_neighbours_before_it_is_cut():
    assert np.sin(np.pi / 2 * fit_of_neighbours(28, 10, 1)) > 0.9


def test_rows_of_features_have_no_neighbours():
    m = Hybrid().masks(Kernels(), (5000, 40), Key(0))
    assert m.shape == (5000, 40)
    signs = 2.0 * m - 1
    assert abs(signs.mean()) < 0.012
    assert abs((signs * np.roll(signs, 1, 1)).mean()) < 0.012


@pytest.mark.parametrize("shape", [(6, 9, 7, 2), (6, 40)])
def test_hybrids_are_made_of_two_samples_of_the_batch(shape):
    x = np.random.default_rng(0).normal(size=shape)
    before = x.copy()
    pairs = Hybrid().pairs(kernels.load("reference"), x, None, None, Key(3))
    np.testing.assert_array_equal(pairs[:6], x)
    m, other = Hybrid().masks(Kernels(), shape, Key(3)), np.roll(x, 1, axis=0)
    if x.ndim == 4:
        m = np.repeat(m[..., None], 2, axis=3)  # channels stay together
    np.testing.assert_array_equal(pairs[6:][m], x[m])
    np.testing.assert_array_equal(pairs[6:][~m], other[~m])
    assert (pairs[6:] != x).reshape(6, -1).any(1).all() and (x == before).all()
    assert (pairs[6:] != other).reshape(6, -1).any(1).all()
    np.testing.assert_array_equal(Hybrid().neutral(x, 3), x)
    assert Hybrid().shape(shape[1:], 3) == shape[1:]


def test_masks_follow_the_key_and_differ_among_samples():
    shape = (20, 8, 8, 1)
    first, again, other = (Hybrid().masks(Kernels(), shape, Key(s)) for s in (1, 1, 2))
    assert (first == again).all() and (first != other).any((1, 2)).all()
    assert len({m.tobytes() for m in first}) == 20
    assert (Hybrid().masks(Kernels(), shape, Key(1).at(1)) != first).any()
