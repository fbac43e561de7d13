"""From an estimator's parameters to a network, a rule and an optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
from joblib import effective_n_jobs

from fflearn import registry
from fflearn.base import Rule
from fflearn.engine import Engine, default_optimizer
from fflearn.errors import SpecError
from fflearn.experiment import OBJECTIVES
from fflearn.networks import Network, network
from fflearn.optim import OPTIMIZERS

ACTIVATIONS = {"logistic": "sigmoid"}  # scikit-learn's name and ours, where they differ


def _real(least: float, most: float = math.inf) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, Real) and not isinstance(v, bool) and least <= float(v) <= most


def _whole(v: Any) -> bool:
    return isinstance(v, Integral) and not isinstance(v, bool) and int(v) >= 1


def _or_auto(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: (isinstance(v, str) and v == "auto") or fits(v)


CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "alpha": (_real(0), "a number from 0 on"),
    "batch_size": (_or_auto(_whole), "'auto' or a whole number from 1 on"),
    "learning_rate_init": (_or_auto(_real(0)), "'auto' or a number from 0 on"),
    "max_iter": (_whole, "a whole number from 1 on"),
    "tol": (_real(0), "a number from 0 on"),
    "validation_fraction": (_real(0, 1), "a number between 0 and 1"),
    "n_iter_no_change": (lambda v: _whole(v) or v == math.inf, "a whole number from 1 on"),
    "n_jobs": (lambda v: v is None or isinstance(v, Integral), "None or a whole number"),
}


def check(estimator: Any) -> None:
    """SpecError where a parameter cannot be meant."""
    for name, (fits, what) in CHECKS.items():
        if not fits(value := getattr(estimator, name)):
            raise SpecError(f"{type(estimator).__name__} needs {name} to be {what}; got {value!r}.")


def spec_of(estimator: Any, n_outputs: int) -> Any:
    """The network: `net` where given, else dense layers."""
    if estimator.net is not None:
        return estimator.net
    sizes = estimator.hidden_layer_sizes
    sizes = list(sizes) if np.iterable(sizes) else [sizes]
    if not all(_whole(n) for n in sizes):
        raise SpecError(
            f"{type(estimator).__name__} needs hidden_layer_sizes to be > 0: whole numbers; got "
            f"{estimator.hidden_layer_sizes!r}. Type for instance: hidden_layer_sizes=(100,)"
        )
    activation = ACTIVATIONS.get(estimator.activation, estimator.activation)
    return " | ".join([*(f"dense {n} {activation}" for n in sizes), f"dense {n_outputs}"])


def rule_of(estimator: Any, net: Any, n_outputs: int) -> tuple[Rule, Network]:
    """The rule, and the network as given or as another rule adapts it ("backprop@fa")."""
    net = network(net, n_outputs)
    if isinstance(estimator.rule, Rule):
        return estimator.rule, net
    variant = registry.parse(estimator.rule)
    if variant.name == registry.REFERENCE:
        raise SpecError(
            f"{type(estimator).__name__} trains by rules of fflearn; {variant.name!r} is the "
            f"reference that they are checked with. Type rule='backprop'"
        )
    if variant.network_of:
        net = registry.rule(variant.network_of).adapt(net)
    return registry.build(variant), net


def optimizer_of(estimator: Any, rule: Rule, penalty: float) -> Any:
    """The rule's own optimizer, with what the estimator's parameters say instead.

    ``penalty`` is `alpha` over the weight of a batch.
    """
    given: dict[str, Any] = {}
    if estimator.solver != "auto":
        given["name"] = estimator.solver
    if estimator.solver == "sgd":
        given["momentum"] = estimator.momentum
    elif estimator.solver in OPTIMIZERS:
        given |= {n: getattr(estimator, n.replace("beta", "beta_")) for n in ("beta1", "beta2")}
        given["eps"] = estimator.epsilon
    if estimator.learning_rate_init != "auto":
        given["lr"] = float(estimator.learning_rate_init)
    if estimator.learning_rate != "auto":
        given["schedule"] = estimator.learning_rate
    optimizer = default_optimizer(rule, **given)
    return Penalised(optimizer, penalty) if penalty else optimizer


def engine(
    estimator: Any,
    shape: tuple[int, ...],
    n_outputs: int,
    penalty: float,
    dtype: str,
    horizon: tuple[int, int] | None,
) -> Engine:
    """The engine of an estimator, for samples of this shape."""
    rule, net = rule_of(estimator, spec_of(estimator, n_outputs), n_outputs)
    return Engine(
        net,
        rule,
        shape,
        n_outputs,
        optimizer=optimizer_of(estimator, rule, penalty),
        objective=OBJECTIVES[estimator.task],
        backend=estimator.backend,
        dtype=dtype,
        threads=threads(estimator.n_jobs),
        horizon=horizon,
        task=estimator.task,
    )


def threads(n_jobs: int | None) -> int:
    """Threads of the kernels; scikit-learn's meaning of None and of negative numbers."""
    return effective_n_jobs(1 if n_jobs is None else n_jobs)


class Penalised:
    """An optimizer that also descends penalty |M|^2 / 2 for every matrix M that it trains.

    Biases and scales are left alone, as in scikit-learn's MLPs; the optimizer's own weight decay
    is for all it trains.
    """

    def __init__(self, base: Any, penalty: float):
        self.base, self.penalty = base, penalty

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def apply(
        self,
        k: Any,
        name: str,
        w: Any,
        g: Any,
        opt: Any,
        lr: float,
        weight_decay: float,
        t: int,
    ) -> None:
        """As the optimizer's; matrices with more decay."""
        more = self.penalty if w.ndim > 1 else 0.0
        self.base.apply(k, name, w, g, opt, lr, weight_decay + more, t)
