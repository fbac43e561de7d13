"""Likelihood ratio: a layer's own noise times the loss is, in the mean, its gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fflearn.base import (
    Array,
    Batch,
    Channel,
    Key,
    LayerSpec,
    LayerView,
    Message,
    Params,
    Rule,
    Signals,
    Update,
)
from fflearn.errors import SpecError
from fflearn.networks import Network

SIGNS = "-+"  # a pass is called by its sign and, layer by layer, the index of the noisy layer


@dataclass(frozen=True)
class LikelihoodRatio(Rule):
    """Noise on every layer; the loss of a noisy pass says which noise was good.

        a_l = x_l W_l + b_l + sigma eps_l,   eps_l ~ N(0, I)          K noisy copies of each sample
        da_l = (loss - baseline) eps_l / sigma                        per sample and copy
        E[mean of x_l^T da_l] = d E[loss] / d W_l

    This is the gradient of the loss of the network with noise, whatever the loss and the layers:
    neither is differentiated, only what a layer computes before its noise is.  As sigma goes to 0
    it becomes the gradient of the loss, where there is one.  Prediction is without noise.

    Parameters
    ----------
    sigma : float
        Standard deviation of the noise, above 0.
    copies : int
        K, noises drawn per sample and step.
    antithetic : bool
        Each noise is run with both signs, on the same sample: 2 K passes.
    baseline : str
        What is subtracted from a sample's loss: "none"; "clean", its loss without noise (one more
        pass); "copies", the mean loss of its other copies.  None of them biases the estimate.
    layerwise : bool
        One layer is noisy at a time.  Layers below it are not run again.
    on : str
        "activity", or "weights": W + sigma E, one E per copy for the whole batch, and
        grad = mean of (loss - baseline) E / sigma.
    noise : str
        "normal", or "sobol": over the copies of a sample the noise is a randomly shifted Sobol
        point set through the inverse normal distribution, another for each sample and layer.
    learn_sigma : bool
        Each layer learns a factor on its sigma: d E[loss] / d log sigma is the mean of
        (loss - baseline) sum(eps^2 - 1).

    Notes
    -----
    Differs from the paper: the baselines are ours.  A recurrent layer with all its states as
    output and credit=step has noise at every time step; any other layer, a block too, has it at
    its output, and exact derivatives before it.

    References
    ----------
    Jiang, Zhang, Xu, Yu, Peng (2024), "One forward is enough for neural network training via
    likelihood ratio method", ICLR 2024, arXiv:2305.08960.  The identity: Glynn (1990), "Likelihood
    ratio gradient estimation for stochastic systems", Comm. ACM 33(10); Williams (1992), "Simple
    statistical gradient-following algorithms", Machine Learning 8.
    """

    sigma: float = 0.1
    copies: int = 8
    antithetic: bool = True
    baseline: str = "clean"
    layerwise: bool = True
    on: str = "activity"
    noise: str = "normal"
    learn_sigma: bool = False

    channels: ClassVar = frozenset({Channel.LOSS})
    needs_slopes: ClassVar = False
    choices: ClassVar = {
        "on": ("activity", "weights"),
        "noise": ("normal", "sobol"),
        "baseline": ("none", "clean", "copies"),
    }
    short: ClassVar = ("ulr", "lr")
    citation: ClassVar = "Jiang et al. (2024), arXiv:2305.08960"
    optimizer: ClassVar = {"name": "adam", "lr": 3e-3, "schedule": "cosine"}
    variants: ClassVar = {
        "all_layers": {"layerwise": False},
        "sobol": {"noise": "sobol"},
        "learned": {"learn_sigma": True, "sigma": 0.3},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma > 0:
            raise SpecError(f"likelihood_ratio needs a sigma above 0; got {self.sigma}.")
        if self.copies < 1:
            raise SpecError(f"likelihood_ratio needs copies to be 1 or more; got {self.copies}.")
        sobol = self.noise == "sobol"
        if self.baseline == "copies" and (self.copies == 1 or sobol):
            raise SpecError(
                "likelihood_ratio's baseline=copies is the mean of a sample's other copies, which "
                "have to be there and to be independent. Take copies=2 or more and noise=normal, "
                "or baseline=clean."
            )
        if sobol and (self.on == "weights" or self.copies & (self.copies - 1)):
            raise SpecError(
                f"likelihood_ratio's noise=sobol is drawn over the copies of each sample, and they "
                f"need to be a power of 2; got copies={self.copies}, on={self.on}. Type "
                f"on=activity,copies=8"
            )

    @property
    def needs_apart(self) -> bool:  # type: ignore[override]
        return self.on == "activity"

    def adapt(self, net: Network) -> Network:
        for layer in net.leaves:
            inside = getattr(layer, "leaves", ())[:-1]
            if self.on == "activity" and not all(inner.slopes for inner in inside):
                raise SpecError(
                    f"likelihood_ratio takes derivatives inside of {layer.spec()!r}, and one of its "
                    f"layers has none but 0. End the block there, where noise is."
                )
        return net

    def init(self, v: LayerView, key: Key, shared: Key) -> Params:
        return {"log_factor": np.zeros(1)} if self.learn_sigma and v.learns else {}

    def plastic(self, v: LayerView, owned: Params) -> tuple[str, ...]:
        return tuple(owned)

    # -- one step --------------------------------------------------------------------------------
    def step(self, bus: Any, batch: Batch) -> dict[str, Any]:
        clean = None
        if self.layerwise or self.baseline == "clean":
            clean = bus.readout(bus.forward(batch.x)).loss
        x = np.concatenate([batch.x] * self.copies)
        noisy = [str(v.index) for v in bus.specs if v.learns] if self.layerwise else [""]
        for where in noisy:
            passes = [bus.forward(x, sign + where) for sign in self.signs]
            loss = np.stack([bus.readout(y).loss for y in passes])
            bus.each(self.credit, where, loss=(loss - self.expected(loss, clean)).reshape(-1))
        bus.update()
        return {"loss": bus.mean(loss.reshape(-1) if clean is None else clean)}

    @property
    def signs(self) -> str:
        return "+-" if self.antithetic else "+"

    def expected(self, loss: Array, clean: Any) -> Any:
        """The baseline of each row of a pass: losses (signs, copies B) -> (copies B,)."""
        if self.baseline == "none":
            return loss.dtype.type(0)
        if self.baseline == "clean":
            return np.concatenate([clean] * self.copies)
        own = loss.mean(0).reshape(self.copies, -1)
        return ((own.sum(0) - own) / (self.copies - 1)).reshape(-1)

    def is_noisy(self, v: LayerSpec, where: str) -> bool:
        return v.learns and where in ("", str(v.index))

    def forward(self, v: LayerView, m: Message, s: Signals) -> Message:
        if m.name == "x":
            return super().forward(v, m, s)
        sign, where = m.name[0], m.name[1:]
        if where and v.index < int(where):  # no noise below: what the clean pass left
            return m._replace(x=np.concatenate([v.trace.y] * self.copies))
        noisy = self.is_noisy(v.spec, where)
        size = turn(sign) * self.deviation(v)
        if self.on == "weights":
            rows = enumerate(np.split(m.x, self.copies))
            own = [v.forward(x, params=self.moved(v, c, size) if noisy else None) for c, x in rows]
            return m._replace(x=np.concatenate([t.y for t in own]))
        if not noisy:
            return m._replace(x=v.forward(m.x).y)
        if "eps" not in v.state:
            v.state["eps"] = self.drawn(v, m.x)
        v.traces[m.name] = t = v.forward(m.x, noise=size * v.state["eps"])
        return m._replace(x=t.y)

    def deviation(self, v: LayerView) -> Any:
        """sigma, as a number or (1,)."""
        return self.sigma * np.exp(v.aux["log_factor"]) if v.aux else self.sigma

    def drawn(self, v: LayerView, x: Any) -> Array:
        """Noise of a layer for all copies of the samples, (copies B, *out)."""
        key, shape = v.key.fold("noise"), (len(x), *v.out_shape)
        if self.noise == "normal":
            return key.normal(shape, x.dtype)
        rows = len(x) // self.copies
        return key.sobol(self.copies, rows, math.prod(v.out_shape), x.dtype).reshape(shape)

    def moved(self, v: LayerView, copy: int, size: Any) -> Params:
        """The parameters with noise; it is drawn again wherever it is needed, and not kept."""
        e = v.noise_like_params(f"noise {copy}")
        return {n: w + size * e[n] if n in e else w for n, w in v.params.items()}

    # -- what a layer learns -----------------------------------------------------------------------
    def credit(self, v: LayerView, s: Signals, where: str) -> None:
        """From the losses of all passes (signs copies B,), baseline subtracted, to an estimate."""
        if self.is_noisy(v.spec, where):
            losses = s.loss.reshape(len(self.signs), -1)
            estimate = self.by_weights if self.on == "weights" else self.by_activity
            v.state["update"] = estimate(v, losses, where)

    def by_activity(self, v: LayerView, losses: Array, where: str) -> Update:
        eps, found = v.state["eps"], []
        for sign, loss in zip(self.signs, losses, strict=True):
            column = loss.reshape(-1, *[1] * (eps.ndim - 1))
            da = turn(sign) / self.deviation(v) * column * eps
            found.append(v.param_vjp(v.traces.pop(sign + where), da))
        grads = found[0]
        if self.antithetic:
            grads = {n: (v.k.formed(g) + v.k.formed(found[1][n])) / 2 for n, g in grads.items()}
        if not v.aux:
            return Update(grads)
        excess = (eps * eps - 1).reshape(len(eps), -1).sum(1, keepdims=True)
        return Update(grads, {"log_factor": v.mean(losses.mean(0)[:, None] * excess)})

    def by_weights(self, v: LayerView, losses: Array, where: str) -> Update:
        grads: Params = {}
        slope, runs = np.zeros_like(losses, shape=1), losses.shape[0] * self.copies
        for copy, rows in enumerate(np.split(losses, self.copies, axis=1)):
            means = [v.mean(loss) for loss in rows]
            along = sum(turn(sign) * m for sign, m in zip(self.signs, means, strict=True))
            for n, e in v.noise_like_params(f"noise {copy}").items():
                grads[n] = grads.get(n, 0) + along / (runs * self.deviation(v)) * e
                slope += sum(means) * (e * e - 1).sum() / runs
        return Update(grads, {"log_factor": slope} if v.aux else {})

    def update(self, v: LayerView, s: Signals) -> Update:
        return v.state["update"] if v.learns else Update()


def turn(sign: str) -> int:
    """1 or -1: how a pass of this sign applies the noise."""
    return 2 * SIGNS.index(sign) - 1
