"""The Bus: the only wire between layers.  It sweeps, checks channels, and counts.

It lives for one step.  Every entry into a layer goes through `Bus._call`, which is where the
locality checks listen.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fflearn.base import (
    DOWNWARD,
    Batch,
    Channel,
    Env,
    Key,
    LayerView,
    Ledger,
    Message,
    NotKept,
    Readout,
    Settled,
    Shown,
    Signals,
    Trace,
    Update,
)
from fflearn.errors import LocalityError
from fflearn.topology import plus

if TYPE_CHECKING:
    from fflearn.engine import Engine
    from fflearn.state import State


class Bus:
    """Moves messages between layers, on declared channels only.

    Attributes
    ----------
    k : Kernels
        The backend's kernels, for the schedule's own array work.
    key : Key
        The schedule's randomness in this step.
    n_classes : int
    specs : tuple of LayerSpec
        Where each layer stands; what it holds stays behind its view.
    progress : float
        Part of the training done, 0 to 1.
    lr : float
        Learning rate of this step.
    variant : hashable
        What `Rule.variant` gave for this step.
    tangent : array or None
        The tangent that left the output layer in the last forward sweep.
    """

    def __init__(
        self,
        engine: Engine,
        state: State,
        batch: Batch | None,
        key: Key,
        train: bool,
        variant: Hashable = None,
        observe: Callable[[LayerView, Update], None] | None = None,
        count: Ledger | None = None,
        side: Mapping[str, Any] | None = None,
    ):
        self._engine, self._state, self._batch, self._train = engine, state, batch, train
        self._observe, self._t = observe, state.step + 1
        self.rule, self.k, self.key = engine.rule, key.k, key
        self.n_classes, self.variant, self.ledger = engine.n_classes, variant, count
        self.specs = engine.specs
        self.progress, self.lr, self.weight_decay = self._settings()
        self.tangent: Any = None
        self._error: Any = None
        self._goodness: Any = None
        weight = None if batch is None else batch.weight
        if batch is not None:
            side = batch.side
        env = Env(side or {}, key.fold("env"), batch is not None, engine.keeps)
        self._views = [
            LayerView(
                spec,
                layer,
                params.readable,
                aux.readable,
                self.k,
                key.fold("layer", spec.index),
                self.rule.channels,
                variant,
                env.inside(spec.index),
                weight,
                count,
            )
            for spec, layer, params, aux in zip(
                engine.specs, engine.net.leaves, state.params, state.aux, strict=True
            )
        ]

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many numbers each layer learns, bottom first; not what they are."""
        layers = zip(self._engine.net.leaves, self._state.params, strict=True)
        return tuple(
            sum(a.size for n, a in p.items() if n not in layer.buffers) for layer, p in layers
        )

    # -- sweeps ----------------------------------------------------------------------------------
    def forward(
        self,
        x: Any,
        name: str = "x",
        *,
        update: bool | Literal["hidden"] = False,
        tangent: Any = None,
        top: Any = None,
        keep: bool = True,
        **signals: Any,
    ) -> Any:
        """Bottom-up sweep of the pass ``name`` -> output of the network (rows, *out).

        With ``update`` each layer learns as soon as it has fired and its traces are dropped, so
        one layer's activity is alive at a time; the layer above gets the activity from before
        the update.  With "hidden" output layers wait: they keep their traces, and learn once their
        error is known, by ``update(only="output", top=error)``.  ``top`` reaches the output layer
        alone (see `Signals`).  Without ``keep`` no layer's traces outlast its turn.
        """
        self._check(signals)
        if isinstance(x, Shown) and not self._engine.shares:
            x = x.whole
        value: dict[int, Message] = {-1: Message(x, name, tangent)}
        del x  # here and below: what no layer reads any more is free before the next one learns
        for i, (leaf, sources) in enumerate(self._engine.net.nodes):
            if leaf is None:
                value[i] = _sum(*(value[s] for s in sources))
            else:
                v = self._views[leaf]
                s = Signals(signals, top, self.ledger, v.spec)
                value[i] = self._call("forward", v, value[sources[0]], s)
                self._count_up(v, value[i])
            for done in self._engine.last_use[i]:
                del value[done]
            self._hold(*value.values())
            if leaf is None:
                continue
            learns = update and not (update == "hidden" and v.spec.is_output)
            if learns:
                self._apply(v, s, *value.values())
            if learns or not keep:
                v.traces.clear()
                v.state.clear()
        end = value[len(self._engine.net.nodes) - 1]
        self.tangent = end.tangent
        return end.x

    def readout(self, output: Any) -> Readout:
        """The network's objective at its output: loss (rows,) and error (rows, C) per row.

        A pass that sent r rows per sample, stacked, repeats the labels r times.
        """
        if self._batch is None:
            raise LocalityError("there is no label to read out while predicting")
        y = self._batch.y
        if len(output) != len(y):
            y = np.concatenate([y] * (len(output) // len(y)))
        r = self._engine.objective(self.k, output, y)
        self._error = r.error
        return r

    def feedback(self, message: Any, *, update: bool = False, **signals: Any) -> Any:
        """Top-down sweep: each layer turns the message from above into one for below.

        At a sum the message is copied, at a fork the branches' messages are added.  Returns what
        would go below the first layer (None where rules send nothing there).  With ``update`` each
        layer learns as soon as it has sent its message, from before the update, and its traces are
        dropped.
        """
        self._check(signals)
        if any(layer.couples_samples for layer in self._engine.net.leaves):
            # Below a layer that mixes samples a row belongs to no sample any more: the sample
            # weights act once, on the rows of the loss, and not on each layer's own rows.
            message = self._views[0]._weighted(message)
            for v in self._views:
                v._weight = None

        def learn(v: LayerView, *in_flight: Any) -> None:
            self._apply(v, Signals(signals, None, self.ledger, v.spec), *in_flight)
            v.traces.clear()
            v.state.clear()

        def visit(v: LayerView, m: Any) -> Any:
            return self._call("feedback", v, m)

        return self._descend(message, visit, learn if update else None)

    def relax(self, bottom: Any, top: Callable[[], Any] | None = None) -> Any:
        """One settling sweep; returns the largest change of a ``v.state["s"]``.

        Activity first rises through the layers without a state (`Rule.has_state`).  Then, top
        first, each layer with a state relaxes, and every layer sends its message down: a nudge
        at the output reaches the lowest layer within the sweep.  At the output layer ``top()``
        stands in for the messages from above.
        """
        self._rise(bottom)
        largest = np.zeros_like(bottom.real, shape=())

        def visit(v: LayerView, above: Any) -> Any:
            nonlocal largest
            if self.rule.has_state(v.spec):
                old, below = v.state["s"], self._below(self._engine.source[v.spec.index], bottom)
                self._call("relax", v, below, above)
                largest = np.maximum(largest, np.abs(v.state["s"] - old).max())
            return self._call("feedback", v, above)

        self._descend(top() if top else None, visit)
        return largest

    def settle(
        self,
        bottom: Any,
        top: Callable[[], Any] | None = None,
        steps: int = 50,
        tol: float = 0.0,
    ) -> Settled:
        """Relax until the largest change is below ``tol``, at most ``steps`` sweeps.

        Afterwards layers without a state hold what the settled ones send them.
        """
        sweeps, change = 0, np.inf
        while sweeps < steps and change >= tol:
            sweeps, change = sweeps + 1, float(self.relax(bottom, top))
        self._rise(bottom)
        return Settled(sweeps, change)

    def mean(self, per_sample: Any) -> Any:
        """The (weighted) batch mean of (rows,) numbers, as `LayerView.param_vjp` takes it: 0-d."""
        weight = None if self._batch is None else self._batch.weight
        if weight is None:
            return per_sample.mean(dtype=np.float64).astype(per_sample.dtype)
        w = np.tile(weight, len(per_sample) // len(weight))
        return (per_sample * w / w.sum()).sum(dtype=np.float64).astype(per_sample.dtype)

    def each(self, method: Callable[..., Any], *args: str | int, **signals: Any) -> None:
        """Run a method ``(view, signals, *args)`` of the rule in every layer.

        ``args`` may name things (a pass, a phase); arrays go as declared ``signals``.
        """
        if not all(isinstance(a, (str, int)) for a in args):
            raise LocalityError(
                "bus.each hands layers plain words and whole numbers alone. Send arrays as a "
                "declared signal: bus.each(self.method, scalar=...)."
            )
        self._check(signals)
        for v in self._views:
            self._call(method.__name__, v, Signals(signals, None, self.ledger, v.spec), *args)
            self._hold()

    def gather(self, method: Callable[..., Any]) -> Any:
        """One number per sample from every layer: ``method(view)`` (rows,) -> (rows, depth).

        The result may be broadcast as ``goodness``; it is counted where a layer reads it.
        """
        self._declared("goodness", "gathered a number per sample from every layer")
        columns = [self._call(method.__name__, v) for v in self._views]
        for v, c in zip(self._views, columns, strict=True):
            if np.ndim(c) != 1:
                raise LocalityError(
                    f"layer {v.spec.name!r} gave bus.gather an array of shape {np.shape(c)}; the "
                    f"channel goodness carries one number per sample, shape (rows,)."
                )
        self._goodness = np.stack(columns, axis=1)
        return self._goodness

    def update(
        self, *, top: Any = None, only: Literal["all", "output"] = "all", **signals: Any
    ) -> None:
        """Layers learn from their own views and the broadcast signals: all, or output alone."""
        self._check(signals)
        for v in self._views:
            if only == "all" or v.spec.is_output:
                self._apply(v, Signals(signals, top, self.ledger, v.spec))

    # -- reading out -----------------------------------------------------------------------------
    def top(self, name: str) -> Any:
        """The output layer's ``v.state[name]``: the sum, where several layers are the output."""
        total = None
        for v in self._views:
            if v.spec.is_output:
                total = plus(total, v.state[name])
        return total

    def collect(self, local: Callable[[LayerView], Any]) -> list[Any]:
        """A local read-out of every layer: for prediction only, where nothing learns."""
        if self._train:
            raise LocalityError("bus.collect reads many layers at once: for prediction only")
        return [local(v) for v in self._views]

    def reports(self) -> dict[str, Any]:
        """What the layers reported, as "name/layer index"."""
        return {
            f"{name}/{v.spec.index}": value
            for v in self._views
            for name, value in v.reports.items()
        }

    # -- inside ----------------------------------------------------------------------------------
    def _settings(self) -> tuple[Any, Any, Any]:
        """Progress, learning rate and weight decay now."""
        return self._engine.settings_at(self._state.step)

    def _call(self, hook: str, v: LayerView, *args: Any) -> Any:
        return getattr(self.rule, hook)(v, *args)

    def _apply(self, v: LayerView, s: Signals, *in_flight: Any) -> None:
        u = self._call("update", v, s)
        self._hold(*in_flight, u.grads, u.aux_grads, u.assign, u.aux_assign)
        if self._observe is not None:
            self._observe(v, u)
        if self._train:
            self.learn(v.spec.index, u)

    def learn(self, layer: int, u: Update) -> None:
        """Write what a layer learns to the state: the optimizer's part, then what is assigned."""
        v, i, t, optimizer = self._views[layer], layer, self._t, self._engine.optimizer
        rates = self._engine.rates[i]
        lr, decay = self.lr * rates.lr, self.weight_decay * rates.weight_decay
        params, aux, opt = self._state.params[i], self._state.aux[i], self._state.opt[i]
        for name, g in u.grads.items():
            optimizer.apply(self.k, name, params[name], g, opt, lr, decay, t)
        for name, g in u.aux_grads.items():
            optimizer.apply(self.k, f"aux.{name}", aux[name], g, opt, lr, decay, t)
        for name, value in u.assign.items():
            params[name] = value
        for name, value in u.aux_assign.items():
            aux[name] = value
        leaf = self._engine.net.leaves[i]
        if leaf.buffers and "x" in v.traces:
            for name, value in leaf.running(self.k, v.traces["x"]).items():
                params[name] = value

    def _descend(
        self,
        message: Any,
        visit: Callable[[LayerView, Any], Any],
        learn: Callable[..., None] | None = None,
    ) -> Any:
        """``visit(view, message)`` of every layer, top first, gives the message for below.

        Then ``learn(view, *messages in flight)``.  Returns what would go below the first layer.
        """
        nodes = self._engine.net.nodes
        down: dict[int, Any] = {len(nodes) - 1: message}
        for i in reversed(range(len(nodes))):
            leaf, sources = nodes[i]
            m = down.pop(i, None)
            if leaf is None:
                for s in sources:
                    down[s] = plus(down.get(s), m)
            else:
                v = self._views[leaf]
                out = visit(v, m)
                del m
                if sources[0] >= 0:
                    self._count_down(v, out)
                if out is not None:
                    down[sources[0]] = plus(down.get(sources[0]), out)
                del out
                if learn:
                    learn(v, *down.values())
            self._hold(*down.values())
        return down.get(-1)

    def _rise(self, bottom: Any) -> None:
        """What layers without a state pass up now, bottom first."""
        for v in self._views:
            if not self.rule.has_state(v.spec):
                below = self._below(self._engine.source[v.spec.index], bottom)
                self._call("relax", v, below, None)

    def _below(self, node: int, bottom: Any) -> Any:
        if node < 0:
            return bottom
        leaf, sources = self._engine.net.nodes[node]
        if leaf is not None:
            return self._views[leaf].state["s"]
        return self._below(sources[0], bottom) + self._below(sources[1], bottom)

    def _check(self, signals: Mapping[str, Any]) -> None:
        issued = {"error": self._error, "goodness": self._goodness}
        if self._batch is not None:
            issued |= {"target": self._batch.y, "input": self._batch.x}
        for name, value in signals.items():
            self._declared(name, f"broadcast {name!r}")
            rank = {"scalar": 0, "phase": 1, "loss": 1}.get(name)
            if rank is not None and getattr(value, "ndim", None) != rank:
                raise LocalityError(
                    f"the broadcast {name!r} must be an array with {rank} axes; got "
                    f"{type(value).__name__} of shape {np.shape(value)}."
                )
            if name in issued and value is not issued[name]:
                raise LocalityError(
                    f"the broadcast {name!r} must be the array that the bus or the batch holds "
                    f"(readout's error, gather's goodness, batch.y, batch.x), unchanged: a channel carries what its "
                    f"name says. Transform it inside the layer."
                )

    def _declared(self, name: str, did: str) -> None:
        if name not in {c.value for c in Channel}:
            raise LocalityError(
                f"{type(self.rule).__name__} {did}, but there is no such channel; there are: "
                f"{', '.join(c.value for c in Channel)}."
            )
        if name not in {c.value for c in self.rule.channels}:
            declared = sorted(c.value for c in self.rule.channels) or "no channel"
            raise LocalityError(
                f"{type(self.rule).__name__} {did}, but declares {declared}. Add "
                f"Channel.{name.upper()} to its channels."
            )

    def _count_up(self, v: LayerView, out: Message) -> None:
        if out.tangent is not None:
            self._declared("tangent", "sent a tangent up")
        if out.tangent is not None and self.ledger is not None:
            self.ledger.record("tangent", v.spec.index, out.tangent.size)

    def _count_down(self, v: LayerView, message: Any) -> None:
        if message is None:
            return
        used = next((c for c in DOWNWARD if c in self.rule.channels), None)
        if used is None:
            self._declared("feedback", f"sent a message down from {v.spec.name!r}")
        elif self.ledger is not None:
            parts = message if isinstance(message, tuple) else (message,)
            self.ledger.record(used, v.spec.index, sum(part.size for part in parts))

    def _hold(self, *in_flight: Any) -> None:
        """Note how many bytes are alive now; only in the step that counts."""
        if self.ledger is not None:
            kept = [(v.traces, v.state) for v in self._views]
            own = {id(_base(a)) for a in self._state.arrays().values()}
            alive = self._alive([*kept, *in_flight], own)
            self.ledger.peak_bytes = max(self.ledger.peak_bytes, alive)

    def _alive(self, tree: Any, own: set[int]) -> int:
        return live_bytes(tree, own)


def _sum(a: Message, b: Message) -> Message:
    """What leaves a sum of two branches."""
    return a._replace(x=a.x + b.x, tangent=plus(a.tangent, b.tangent))


def live_bytes(tree: Any, own: set[int]) -> int:
    """Bytes of all arrays in a nest of containers, shared memory once, ``own`` left out."""
    seen: dict[int, int] = {}

    def visit(item: Any) -> None:
        if isinstance(item, NotKept):
            return
        if hasattr(item, "nbytes") and not isinstance(item, np.generic):
            base = _base(item)
            if id(base) not in own:
                seen[id(base)] = base.nbytes
        elif isinstance(item, Mapping):
            for value in item.values():
                visit(value)
        elif isinstance(item, (tuple, list, Trace)):
            for value in item:
                visit(value)

    visit(tree)
    return sum(seen.values())


def _base(a: np.ndarray) -> np.ndarray:
    while isinstance(a.base, type(a)):
        a = a.base
    return a
