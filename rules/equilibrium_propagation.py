"""Equilibrium propagation: one-sided, centred, holomorphic, or with feedback weights of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

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

LAYERS = ("act", "avg_pool", "conv", "dense", "flatten", "max_pool")
UNBOUNDED = ("relu", "gelu")  # states would grow without end
HOLOMORPHIC = ("sigmoid", "tanh", "identity")
BOUNDED = ("hardsigmoid", "sigmoid", "tanh")
LIFTING = ("act hardsigmoid", "act sigmoid")  # states that are never below 0


class Phases(NamedTuple):
    """The phases that are run, stacked as rows; of a pair of conjugate ones, one."""

    nudge: Array  # (R,) beta_k
    weight: Array  # (R,) of a phase in the derivative by beta at 0
    share: Array  # (R,) of a phase in the mean over phases


@dataclass(frozen=True)
class EquilibriumPropagation(Rule):
    """Settle freely; settle again with the output nudged; contrast the two, locally.

        s_l <- act(s_{l-1} W_l + b_l + s_{l+1} W_{l+1}^T)           states of the hidden layers
        top hidden layer: ... - beta dloss/ds                       nudged towards the label
        grad W_l = -sum_k w_k s_{l-1}(beta_k)^T s_l(beta_k)         N nudges beta_k, w_k = 1 / (N beta_k)

    As beta goes to 0 this is the gradient of the loss at the fixed point of the recurrent network,
    not of the feedforward one.  N = 1 is one-sided, beta against 0; N = 2 is centred, +-beta; more
    is holomorphic, beta_k = beta exp(2 pi i k / N) with complex states.  The error is of order
    beta^N.  The nudged phases settle together, as rows of one batch.

    States end at activations: layers without one (pooling, flattening, linear maps) are part of
    the map between two states, and so is the output layer unless ``readout`` is off.  There the
    loss reaches the states through the output layer's weights.

    Parameters
    ----------
    beta : float
        Size of the nudge, above 0; per sample.
    phases : int
        N.
    free_sweeps, nudged_sweeps : int
        Sweeps of the free and the nudged settling, at most; prediction takes all the free ones.
    tol : float
        Settling ends early once no state changes by more.
    activation : str
        What takes the place of relu and gelu, with which states have no bound: hardsigmoid,
        sigmoid or tanh.  The last two are holomorphic.
    readout : bool
        The output layer is a read-out outside the energy (for softmax cross-entropy); otherwise
        it has a state, which the loss nudges (for squared error).
    tied : bool
        Messages go down through the transposed weights.  Otherwise through weights of the rule's
        own, which learn too; then there is no energy, and the gradient is biased by the asymmetry.
    homeostasis : float
        With weights of its own: strength of the penalty on their asymmetry,
        sum |W_l - B_l|^2 / (number of states), B_l (n_in, n_out) the weights down.

    Notes
    -----
    Differs from the papers: settling starts at the feedforward pass and goes layer by layer from
    the top, not all at once from 0 (same fixed points, and the energy falls in every sweep); the
    one-sided form settles the free phase along with the nudged one; weights between hidden layers
    are drawn from U(+-sqrt(1/n_in)), as in the papers' code, unless the layer says otherwise.
    With weights of its own: the read-out's gradient reaches the top hidden layer through the
    rule's own weights too, which learn as the read-out does; the penalty counts every place of a
    convolution, also those that pooling leaves out.

    References
    ----------
    Scellier, Bengio (2017), "Equilibrium propagation: bridging the gap between energy-based models
    and backpropagation", Front. Comput. Neurosci. 11, arXiv:1602.05179, eq. 9.  Centred, pooling,
    softmax read-out: Laborieux, Ernoult, Scellier et al. (2021), "Scaling equilibrium propagation
    to deep ConvNets by drastically reducing its gradient estimator bias", arXiv:2006.03824.
    Holomorphic: Laborieux, Zenke (2022), "Holomorphic equilibrium propagation computes exact
    gradients through finite size oscillations", arXiv:2209.00530.  Weights of its own:
    Laborieux, Zenke (2024), "Improving equilibrium propagation without weight symmetry through
    Jacobian homeostasis", arXiv:2309.02214.
    """

    beta: float = 0.5
    phases: int = 2
    free_sweeps: int = 15
    nudged_sweeps: int = 8
    tol: float = 1e-3
    activation: str = "hardsigmoid"
    readout: bool = True
    tied: bool = True
    homeostasis: float = 0.0

    keeps: ClassVar = frozenset({"x", "a"})
    short: ClassVar = ("ep",)
    citation: ClassVar = "Scellier & Bengio (2017), arXiv:1602.05179"
    optimizer: ClassVar = {"name": "adam", "lr": 2e-3, "schedule": "cosine"}
    variants: ClassVar = {
        "one_sided": {"phases": 1, "beta": 0.1},
        "holomorphic": {"phases": 4, "activation": "tanh"},
        "state_at_output": {"readout": False},
        "generalized": {"tied": False, "homeostasis": 1.0},
    }

    def __post_init__(self) -> None:
        for name, least in (("phases", 1), ("free_sweeps", 1), ("nudged_sweeps", 1)):
            if getattr(self, name) < least:
                raise SpecError(
                    f"equilibrium_propagation needs {name} to be {least} or more; "
                    f"got {getattr(self, name)}."
                )
        if not self.beta > 0:
            raise SpecError(f"equilibrium_propagation needs a beta above 0; got {self.beta}.")
        if self.activation not in BOUNDED:
            raise SpecError(
                f"equilibrium_propagation needs activation to be one of {', '.join(BOUNDED)}; "
                f"got {self.activation!r}."
            )
        if self.homeostasis and self.tied:
            raise SpecError(
                "homeostasis makes weights down alike those up, and tied weights are the same. "
                "Add tied=false, or leave homeostasis out."
            )

    @property
    def channels(self) -> frozenset[Channel]:  # type: ignore[override]
        return frozenset({Channel.TRANSPOSE if self.tied else Channel.FEEDBACK})

    # -- before training -------------------------------------------------------------------------
    def adapt(self, net: Network) -> Network:
        leaves = [self.settling(layer) for layer in net.leaves]
        for i, (leaf, _) in enumerate(net.nodes):
            readers = [node.leaf for node in net.nodes if i in node.sources]
            lifted = all(r is not None and leaves[r].spec() in LIFTING for r in readers)
            if leaf is not None and leaves[leaf].kind == "max_pool" and not lifted:
                # Pulled down, the largest of some states is no longer the largest: no fixed point.
                raise SpecError(
                    f"equilibrium_propagation needs act hardsigmoid or act sigmoid (or act relu, "
                    f"which becomes {self.activation}) to follow {net.leaves[leaf].spec()!r}. Pool "
                    f"first, the activity is the same: conv 32 | max_pool 2 | act relu"
                )
        hidden = [i for i, layer in enumerate(leaves[:-1]) if ends_in(layer) != "identity"]
        for i in range(min(hidden, default=len(leaves)) + 1, len(leaves) - 1):
            if getattr(leaves[i], "draw", "") == "kaiming":
                # Two layers settle well if the matrix between them has a norm of about 1, not 2.
                leaves[i] = replace(leaves[i], draw="uniform")
        drawn = iter(leaves)
        return net.map(lambda _: next(drawn))

    def settling(self, layer: Any) -> Any:
        """The layer with a bounded activation; SpecError where it cannot take part."""
        if layer.kind not in LAYERS or getattr(layer, "norm", "none") != "none":
            raise SpecError(
                f"equilibrium_propagation settles layers of the kinds {', '.join(LAYERS)} with "
                f"norm=none; not {layer.spec()!r}. Replace it or leave it out."
            )
        if ends_in(layer) in UNBOUNDED:
            layer = replace(layer, activation=self.activation)
        if self.phases > 2 and ends_in(layer) not in HOLOMORPHIC:
            raise SpecError(
                f"equilibrium_propagation with phases={self.phases} needs holomorphic activations, "
                f"sigmoid or tanh; not {layer.spec()!r}. Type activation=sigmoid, or phases=2."
            )
        return layer

    def has_state(self, v: LayerSpec) -> bool:
        return not self.readout if v.is_output else v.activation != "identity"

    def init(self, v: LayerView, key: Key, shared: Key) -> Params:
        return {} if self.tied or v.is_input else v.draw_weights(key.fold("B"))

    def plastic(self, v: LayerView, owned: Params) -> tuple[str, ...]:
        return tuple(owned)

    # -- one step --------------------------------------------------------------------------------
    def step(self, bus: Any, batch: Batch) -> dict[str, Any]:
        bus.forward(batch.x)
        free = bus.settle(batch.x, None, self.free_sweeps, self.tol)
        loss = bus.mean(bus.readout(bus.top("s")).loss)
        nudge = self.contrast().nudge

        def pull() -> Any:
            error = bus.readout(bus.top("s")).error
            return -by_row(bus.k, nudge, error) * error

        states = sum(math.prod(v.out_shape) for v in bus.specs if self.has_state(v))
        bus.each(self.branch, len(nudge), states)
        x = np.concatenate([batch.x] * len(nudge))
        nudged = bus.settle(x, pull, self.nudged_sweeps, self.tol)
        bus.forward(x, "settled")
        bus.update()
        return {
            "loss": loss,
            "free_sweeps": free.sweeps,
            "nudged_sweeps": nudged.sweeps,
            "residual": np.maximum(free.change, nudged.change),
        }

    def contrast(self) -> Phases:
        """Nudges, and what makes of states at these nudges their derivative by beta."""
        n = self.phases
        if n == 1:
            return Phases(np.array([self.beta, 0]), np.array([1, -1]) / self.beta, np.array([0, 1]))
        turn = np.exp(2j * np.pi * np.arange(n // 2 + 1) / n)
        turn = turn if n > 2 else turn.real
        twice = np.array([1 if k in (0, n / 2) else 2 for k in range(len(turn))])
        return Phases(self.beta * turn, twice / (n * self.beta * turn), twice / n)

    def forward(self, v: LayerView, m: Message, s: Signals) -> Message:
        """States start at the pass "x"; the pass "settled" notes what the settled ones read."""
        if m.name == "x":
            v.state["t"] = t = v.forward(m.x)
            v.state["s"] = t.y
        elif not v.is_input:
            v.state["t"] = t = v.forward(m.x)
            if not self.has_state(v.spec):
                v.state["s"] = t.y
        return m._replace(x=v.state["s"])

    def branch(self, v: LayerView, s: Signals, phases: int, states: int) -> None:
        """Every phase starts at the free state; the phases are stacked as rows."""

        def stacked(a: Any) -> Any:
            rows = np.concatenate([a] * phases)
            return rows.astype(np.result_type(a, np.complex64)) if self.phases > 2 else rows

        t = v.state["t"]
        v.state.update(states=states, s=stacked(v.state["s"]))
        if v.is_input:  # what the data drive, in every phase; their own rows stay as they are
            v.state["t"] = t._replace(a=stacked(t.a), y=stacked(t.y))

    def relax(self, v: LayerView, below: Any, above: Any) -> None:
        if v.is_input:
            a = v.state["t"].a
            v.state["s"] = v.act(a if above is None else a + above)
        else:
            v.state["t"] = t = v.forward(below, noise=above)
            v.state["s"] = t.y

    def feedback(self, v: LayerView, m: Any) -> Any:
        if self.has_state(v.spec):
            m = v.state["s"]
        elif m is not None:  # a read-out sends nothing down before there is a nudge
            v.state["m"] = m = v.act_vjp(v.state["t"], m)
        if v.is_input or m is None:
            return None
        return v.input_vjp(v.state["t"], m, None if self.tied else v.aux)

    # -- what a layer learns -----------------------------------------------------------------------
    def update(self, v: LayerView, s: Signals) -> Update:
        if not v.params:
            return Update()
        phases, t = self.contrast(), v.state["t"]
        # A layer without a state has, in its place, what it was sent.
        state = v.state["s" if self.has_state(v.spec) else "m"]
        if v.is_input:  # the data are the same in all phases
            return Update(v.param_vjp(t, -over_phases(v.k, phases.weight, state)))
        if not self.tied:
            return self.untied(v, phases, state)
        # The mean is over the rows of all phases, hence the factor.
        g = v.param_vjp(t, -len(phases.weight) * by_row(v.k, phases.weight, state) * state)
        return Update({n: v.k.formed(a).real for n, a in g.items()} if self.phases > 2 else g)

    def untied(self, v: LayerView, phases: Phases, state: Any) -> Update:
        """Each direction by itself: response of the unit it leads to, activity where it starts."""
        x = v.state["t"].x
        response = over_phases(v.k, phases.weight, state)
        g = v.param_vjp(v.forward(over_phases(v.k, phases.share, x)), -response)
        down = g
        if self.has_state(v.spec) or not v.is_output:
            t = v.forward(over_phases(v.k, phases.weight, x))
            down = v.param_vjp(t, -over_phases(v.k, phases.share, state))
        down = {n: v.k.formed(down[n]) for n in v.aux}
        if self.homeostasis:
            places = math.prod(v.out_shape[:-1])
            for n, b in v.aux.items():
                pull = b.dtype.type(2 * self.homeostasis * places / max(1, v.state["states"]))
                gap = pull * (v.params[n] - b)
                g[n], down[n] = v.k.formed(g[n]) + gap, down[n] - gap
        return Update(g, down)

    # -- use -------------------------------------------------------------------------------------
    def predict(self, bus: Any, x: Any, by: str) -> Any:
        bus.forward(x)
        bus.settle(x, None, self.free_sweeps)
        return bus.top("s")


def ends_in(layer: Any) -> str:
    """The activation that a layer ends in."""
    return getattr(layer, "activation", "identity")


def by_row(k: Any, values: Array, rows: Array) -> Array:
    """A number per phase (R,) as one per row, to multiply (R B, ...) by."""
    column = np.repeat(values, len(rows) // len(values)).astype(rows.dtype)
    return k.constant(column.reshape(-1, *[1] * (rows.ndim - 1)))


def over_phases(k: Any, values: Array, rows: Array) -> Array:
    """Real part of the sum over phases of a number (R,) times that phase's rows -> (B, ...)."""
    parts = (by_row(k, values, rows) * rows).reshape(len(values), -1, *rows.shape[1:])
    return parts.sum(0).real
