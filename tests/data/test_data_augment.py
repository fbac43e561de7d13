"""Flips and crops of training images: a function of seed, epoch and sample alone."""

import numpy as np
import pytest

from fflearn.data import Batches, DataSet, load
from fflearn.data.augment import Augment
from fflearn.errors import DataError

N = 30
X = np.random.default_rng(0).uniform(0.1, 1, (N, 6, 5, 2)).astype(np.float32)
Y = np.arange(N) % 3
DATA = DataSet("toy", X, Y, X[:6], Y[:6], 3, augment="flip_crop")


def moved(image, top, left, flip):
    """The definition, in loops: the pixel (i, j) comes from (i + top - 4, j' + left - 4)."""
    h, w, _ = image.shape
    out = np.zeros_like(image)
    for i in range(h):
        for j in range(w):
            r, c = i + top - 4, (w - 1 - j if flip else j) + left - 4
            if 0 <= r < h and 0 <= c < w:
                out[i, j] = image[r, c]
    return out


@pytest.mark.parametrize("how", ["crop", "flip_crop"])
def test_images_are_moved_as_drawn(how):
    augment = Augment(how, 5, N)
    index = np.array([7, 0, 29, 7])
    got, draws = augment(X[index], 3, index), augment.draws(3)
    for image, i in zip(got, index, strict=True):
        np.testing.assert_array_equal(image, moved(X[i], *draws[:, i]))
    assert got.dtype == X.dtype


def test_draws_cover_every_offset_and_both_sides():
    draws = Augment("flip_crop", 0, 2000).draws(0)
    for row, size in zip(draws, (9, 9, 2), strict=True):
        counts = np.bincount(row, minlength=size)
        assert len(counts) == size
        share = 2000 / size
        assert (np.abs(counts - share) < 5 * np.sqrt(share)).all()
    assert abs(np.corrcoef(draws)[np.triu_indices(3, 1)]).max() < 0.1
    assert not Augment("crop", 0, 2000).draws(0)[2].any()


def test_a_sample_is_treated_alike_whatever_comes_with_it():
    index = np.arange(N)
    whole = Augment("flip_crop", 1, N)(X, 2, index)
    alone = Augment("flip_crop", 1, N)(X[9:10], 2, index[9:10])
    np.testing.assert_array_equal(whole[9:10], alone)
    # the draws of a larger training part start with those of a smaller one
    np.testing.assert_array_equal(
        Augment("crop", 1, 9).draws(2), Augment("crop", 1, N).draws(2)[:, :9]
    )
    for other in (Augment("flip_crop", 2, N)(X, 2, index), Augment("flip_crop", 1, N)(X, 3, index)):
        assert (other != whole).any()


def test_one_run_draws_anew_in_every_epoch():
    augment = Augment("flip_crop", 3, N)
    for epoch in (0, 1, 0, 5):
        np.testing.assert_array_equal(augment.draws(epoch), Augment("flip_crop", 3, N).draws(epoch))
    assert len({augment.draws(epoch).tobytes() for epoch in range(5)}) == 5


def test_batches_move_training_images_by_sample_and_epoch():
    batches = Batches(DATA, 8, seed=4)
    plain = Batches(DataSet("toy", X, Y, X[:6], Y[:6], 3), 8, seed=4)
    augment = Augment("flip_crop", 4, N)
    for step in (0, 3, 4, 17, 1):
        epoch, i = divmod(step, 4)
        chosen = batches.order(epoch)[8 * i : 8 * i + 8]
        got = batches.batch(step)
        np.testing.assert_array_equal(got.x, augment(X[chosen], epoch, chosen))
        np.testing.assert_array_equal(got.y, plain.batch(step).y)
        assert (got.x != plain.batch(step).x).any()
    assert (DATA.x_train == X).all()


def test_evaluation_is_left_as_it_is():
    seen = []

    def predict(x, **_):
        seen.append(x)
        return np.eye(3)[np.zeros(len(x), int)]

    DATA.score(predict)
    np.testing.assert_array_equal(seen[0], X[:6])
    split = DATA.split_validation()
    assert split.augment == "flip_crop"
    rows = {image.tobytes() for image in X}
    assert all(image.tobytes() in rows for image in split.x_test)


def test_a_name_may_say_how():
    data = load("digits+crop")
    assert (data.name, data.augment) == ("digits+crop", "crop")
    assert data.sha256 == load("digits").sha256
    for spec in ("digits+blur", "digits+"):
        with pytest.raises(DataError, match="one of crop, flip_crop"):
            load(spec)


def test_what_is_no_image_is_refused():
    with pytest.raises(DataError, match="augment needs images"):
        DataSet("toy", X.reshape(N, -1), Y, X.reshape(N, -1), Y, 3, augment="crop")
    with pytest.raises(DataError, match="one of crop, flip_crop; got 'rotate'"):
        Augment("rotate", 0, N)
