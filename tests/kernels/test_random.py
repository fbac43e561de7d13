"""Philox against its published vectors, draws against their definitions and distributions."""

import math

import numpy as np
import pytest

from fflearn.kernels import scalars
from fflearn.random import Key

DTYPES = (np.float32, np.float64)
Z = 5  # standard errors allowed: one false alarm in two million; the draws are fixed anyway


# Random123 1.14, tests/kat_vectors, philox4x32 with 10 rounds: counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def hexed(text):
    return [np.uint64(int(word, 16)) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_known_answers(counter, key, result):
    assert list(scalars.philox(*hexed(counter), *hexed(key))) == hexed(result)


def test_first_block_is_the_known_answer(k):
    np.testing.assert_array_equal(k.random_words(0, 0, 4), hexed(KNOWN[0][2]))


def test_counter_layout(k):
    """Word i is word i % 4 of counter (block, step) under key (static), low words first."""
    static, step, i = 0x299F31D0A4093822, 0x0370734413198A2E, 4 * 9 + 2
    block = scalars.philox(*hexed("9 0 13198a2e 03707344"), *hexed("a4093822 299f31d0"))
    assert k.random_words(static, step, i + 1)[i] == block[2]


DRAWS = {
    "words": lambda key, n, dtype: key.words(n),
    "uniform": lambda key, n, dtype: key.uniform(n, dtype),
    "normal": lambda key, n, dtype: key.normal(n, dtype),
    "rademacher": lambda key, n, dtype: key.rademacher(n, dtype),
    "integers": lambda key, n, dtype: key.integers(1000, n),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("draw", DRAWS)
def test_a_longer_draw_starts_with_the_shorter(k, draw, dtype):
    # 40009 goes through the parallel loop, and is no whole number of blocks.
    key = Key(1).fold("prefix").at(3).using(k)
    whole = DRAWS[draw](key, 40009, dtype)
    assert len(whole) == 40009
    for n in (0, 1, 2, 3, 5, 31, 33, 1000):
        np.testing.assert_array_equal(DRAWS[draw](key, n, dtype), whole[:n])


@pytest.mark.parametrize("dtype", DTYPES)
def test_backends_draw_the_same_bits(k, dtype):
    for step in (0, 1, 2**40):
        key = Key(2).fold("bits", 1).at(step)
        assert np.array_equal(key.using(k).words(100_003), key.words(100_003))
        assert np.array_equal(
            key.using(k).uniform((17, 4001), dtype), key.uniform((17, 4001), dtype)
        )
        assert np.array_equal(key.using(k).permutation(999), key.permutation(999))


@pytest.mark.parametrize("dtype", DTYPES)
def test_normals_agree_within_two_ulp(k, dtype):
    """log, sin and cos of two maths libraries: at most 2 ulp apart over a million draws."""
    key = Key(3)
    got, want = key.using(k).normal(1_000_000, dtype), key.normal(1_000_000, dtype)
    assert (np.abs(got - want) <= 2 * np.spacing(np.abs(want))).all()


def test_normals_are_box_muller_and_float32_is_the_rounded_float64(k):
    key = Key(4).using(k)
    w = [int(word) for word in key.words(4)]
    radius = math.sqrt(-2 * math.log((w[2] + 1) / 2**32))
    angle = 2 * math.pi * w[3] / 2**32
    want = radius * math.cos(angle), radius * math.sin(angle)
    assert key.normal(4, np.float64)[2:] == pytest.approx(want, rel=1e-15)
    wide = key.normal((100, 7), np.float64)
    np.testing.assert_array_equal(key.normal((100, 7)), wide.astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_uniforms_are_uniform(dtype):
    u, n = Key(5).uniform(200_000, dtype), 200_000
    assert u.min() >= 0
    assert u.max() < 1
    assert u.dtype == dtype
    assert chi_square_z(np.histogram(u, 100, (0, 1))[0], n / 100) < Z
    # Neighbours must not be correlated either.
    assert abs(((u[1:] - 0.5) * (u[:-1] - 0.5)).mean()) * 12 * math.sqrt(n) < Z


def test_uniforms_by_hand():
    key = Key(6)
    w = key.words(4).astype(object)
    assert key.uniform(4).tolist() == [int(x >> 8) / 2**24 for x in w]
    want = [((w[i] >> 5) * 2**26 + (w[i + 1] >> 6)) / 2**53 for i in (0, 2)]
    assert key.uniform(2, np.float64).tolist() == want


def chi_square_z(counts, expected):
    """How many standard errors chi^2 lies from its mean (normal for many classes)."""
    chi2, free = ((counts - expected) ** 2 / expected).sum(), len(counts) - 1
    return abs(chi2 - free) / math.sqrt(2 * free)


@pytest.mark.parametrize("dtype", DTYPES)
def test_normals_are_normal(dtype):
    n = 400_000
    x = Key(7).normal(n, dtype).astype(np.float64)
    # Standard errors of mean, variance, skewness and kurtosis of n normal numbers.
    for moment, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**moment).mean() - mean) / math.sqrt(variance / n) < Z
    assert abs((x[1:] * x[:-1]).mean()) * math.sqrt(n) < Z


def test_integers_cover_their_range_evenly():
    draw = Key(8).integers(7, (100, 1400))
    assert draw.dtype == np.int64
    assert chi_square_z(np.bincount(draw.ravel(), minlength=7), 20_000) < Z
    assert Key(8).integers(1, 5).tolist() == [0] * 5
    assert Key(8).integers(2**32, 50).max() < 2**32


def test_rademacher_is_balanced():
    draw = Key(9).rademacher((400, 500))
    assert draw.dtype == np.float32
    assert set(np.unique(draw)) == {-1, 1}
    assert abs(draw.mean()) * math.sqrt(draw.size) < Z


def test_permutation_is_one_and_every_order_occurs():
    assert sorted(Key(10).permutation(1001)) == list(range(1001))
    assert Key(10).permutation(0).shape == (0,)
    orders = {tuple(Key(10).at(step).permutation(3)) for step in range(100)}
    assert len(orders) == 6


def test_a_permutation_sorts_the_draws_of_its_own_key():
    for key in (Key(10), Key(11), Key(10).fold("a"), Key(10).at(1)):
        w = key.words(100).astype(object)
        draws = [int(w[i]) + (int(w[i + 1]) << 32) for i in range(0, 100, 2)]
        assert key.permutation(50).tolist() == sorted(range(50), key=draws.__getitem__)


def test_streams_are_independent():
    keys = [Key(0), Key(1), Key(0).fold("a"), Key(0).fold("a", 1), Key(0).at(1), Key(0).fold("1")]
    draws = np.stack([key.normal(20_000) for key in keys])
    off = np.corrcoef(draws)[~np.eye(len(keys), dtype=bool)]
    assert np.abs(off).max() * math.sqrt(20_000) < Z


def test_key_is_a_pure_path():
    key = Key(0).fold("layer", 2)
    assert key == Key(0).fold("layer").fold(2)
    assert hash(key) == hash(Key(0, ("layer", 2)))
    assert key.fold(np.int64(2)) == key.fold(2)
    assert key.static() != Key(0).fold("layer", "2").static()
    assert key.at(9).static() == key.static()
    assert key.at(9).step == 9
    assert key.at(9).fold("b").step == 9
    with pytest.raises(AttributeError):
        key.step = 3


def test_static_is_stable():
    """The numbers of every recorded run hang on this: b2sum -l 64 of (0, 'layer', 2)."""
    assert Key(0).fold("layer", 2).static() == 14962543605723429188


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Key(0).at(-1),
        lambda: Key(0).at(2**64),
        lambda: Key(0).normal(3, np.float16),
        lambda: Key(0).uniform(3, int),
        lambda: Key(0).integers(0, 3),
        lambda: Key(0).integers(2**32 + 1, 3),
    ],
)
def test_wrong_use_raises(wrong):
    with pytest.raises(ValueError, match="needs"):
        wrong()
    with pytest.raises(TypeError):
        Key(0).fold(1.5)
