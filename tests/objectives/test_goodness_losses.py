"""Losses over goodness: their derivatives by autograd, values by hand, what they have in common."""

from __future__ import annotations

import numpy as np
import pytest

from fflearn import kernels
from fflearn.errors import SpecError
from fflearn.objectives.goodness import LOSSES, loss

BACKENDS = ("reference", "numba")


def drawn(again: int, dtype: str = "float64", size: float = 1.0):
    u = np.random.default_rng(again).normal(scale=2 * size, size=(1 + again, 7)).astype(dtype)
    return u, np.repeat([[1.0], *[[-1.0]] * again], 7, axis=1).astype(dtype)


def as_written(torch, name: str, u, t: float):
    """The losses as their papers write them: means over samples and negatives."""
    right, wrong = u[:1], u[1:]

    def softplus(z):
        return torch.logaddexp(z, 0 * z)  # torch's own is only piecewise so

    return {
        "logistic": lambda: (softplus(-right / t).mean() + softplus(wrong / t).mean()) / 2,
        "symba": lambda: softplus(-(right - wrong) / t).mean(),
        "margin": lambda: torch.relu(t + wrong - right).mean(),
        "softmax": lambda: -torch.log_softmax(u / t, 0)[0].mean(),
    }[name]()


@pytest.mark.torch
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("again", [1, 4])
@pytest.mark.parametrize("temperature", [1.0, 0.25, 3.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_and_their_derivatives_are_autograds(name, again, temperature, backend):
    torch = pytest.importorskip("torch")
    u, phase = drawn(again)
    losses, du = loss(name, temperature)(kernels.load(backend), u, phase)
    theirs = torch.tensor(u, requires_grad=True)
    exact = as_written(torch, name, theirs, temperature)
    exact.backward()
    assert losses.ndim == 1 and losses.mean() == pytest.approx(exact.item(), rel=1e-12)
    assert du.shape == u.shape
    np.testing.assert_allclose(du, u.size * theirs.grad.numpy(), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_float32_is_kept_and_far_goodness_stays_finite(name, backend, size):
    k, (u, phase) = kernels.load(backend), drawn(2, "float32", size)
    losses, du = loss(name, 0.5)(k, u, phase)
    assert losses.dtype == du.dtype == np.float32
    assert np.isfinite(losses).all() and np.isfinite(du).all()
    exact = loss(name, 0.5)(kernels.load("reference"), u.astype(float), phase.astype(float))
    np.testing.assert_allclose(losses, exact[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(du, exact[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_samples_do_not_mix(name):
    k, (u, phase) = kernels.load("reference"), drawn(3)
    whole = loss(name, 0.7)(k, u, phase)[1]
    for i in range(7):
        alone = loss(name, 0.7)(k, u[:, i : i + 1], phase[:, i : i + 1])[1]
        np.testing.assert_allclose(alone[:, 0], whole[:, i], rtol=1e-13)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "logistic"])
def test_differences_alone_count(name):
    k, (u, phase) = kernels.load("reference"), drawn(3)
    shift = np.linspace(-9, 9, 7)  # another one for every sample
    plain, shifted = (loss(name, 0.7)(k, at, phase) for at in (u, u + shift))
    for one, two in zip(plain, shifted, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-14)
    assert np.abs(plain[1].sum(axis=0)).max() < 1e-14  # what the positive gains, negatives lose


def test_with_one_negative_softmax_is_symba():
    k, (u, phase) = kernels.load("reference"), drawn(1)
    (a, da), (b, db) = (loss(name, 0.3)(k, u, phase) for name in ("softmax", "symba"))
    np.testing.assert_allclose(a, b, rtol=1e-12)
    np.testing.assert_allclose(da, db, rtol=1e-12)


def test_values_by_hand():
    k, phase = kernels.load("reference"), np.array([[1.0], [-1.0]])
    u = np.array([[np.log(3)], [0.0]])
    # Two rows, mean taken over both: derivatives by the mean loss are half of these.
    for name, value, slopes in (
        ("logistic", [np.log(4 / 3), np.log(2)], [-1 / 4, 1 / 2]),
        ("symba", [np.log(4 / 3)], [-1 / 2, 1 / 2]),
        ("softmax", [np.log(4 / 3)], [-1 / 2, 1 / 2]),
        ("margin", [0.0], [0.0, 0.0]),  # ln 3 exceeds the margin of 1
    ):
        losses, du = loss(name, 1.0)(k, u, phase)
        np.testing.assert_allclose(losses, value, atol=1e-15)
        np.testing.assert_allclose(du[:, 0], slopes, atol=1e-15)
    losses, du = loss("margin", 2.0)(k, u, phase)
    np.testing.assert_allclose(losses, [2 - np.log(3)])
    np.testing.assert_allclose(du[:, 0], [-2, 2])
    # SymBa is symmetric where the two are alike: alpha / 2 each, of the mean over samples.
    _, du = loss("symba", 0.25)(k, np.zeros((2, 1)), phase)
    np.testing.assert_allclose(du[:, 0] / 2, [-4 / 2, 4 / 2])


def test_wrong_settings_are_told():
    with pytest.raises(
        SpecError, match="unknown loss over goodness 'hinge'; known: logistic, symba"
    ):
        loss("hinge", 1.0)
    for t in (0.0, -1.0, float("nan")):
        with pytest.raises(SpecError, match="the loss margin needs a temperature above 0"):
            loss("margin", t)
