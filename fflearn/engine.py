"""The Engine: runs a rule on a network, one step at a time, and checks everything once."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np

from fflearn import kernels as backends
from fflearn import objectives
from fflearn.base import ALONE, Batch, Channel, Key, LayerSpec, LayerView, Ledger, Rule, Update
from fflearn.bus import Bus
from fflearn.data.kind import checked_task
from fflearn.errors import DataError, SettingsWarning, ShapeError, SpecError
from fflearn.networks import Network, network
from fflearn.optim import Optimizer, optimizer
from fflearn.state import Slots, State
from fflearn.tape import Tapes
from fflearn.topology import leaves_of

DTYPES = ("float32", "float64")
MODES = ("tape", "eager")


class Engine:
    """A network, a rule, an optimizer and a backend, ready to step.

    Parameters
    ----------
    net : Network, str or list of layers
        The network as given; the rule may adapt it (`net` is then the network as trained).
    rule : Rule
    in_shape : tuple of int
        Shape of one sample.
    n_classes : int
        Number of classes (targets) C.
    optimizer : Optimizer, optional
        Default: the rule's own settings.
    objective : Objective or str
        At the network's output.
    backend : str
        "numba" (default), "reference", or another name that `fflearn doctor` lists.
    dtype : str
        "float32" or "float64".
    threads : int
        Threads of the kernels.  Results do not depend on it.
    horizon : tuple of (int, int), optional
        Steps per epoch and epochs, for schedules; without it, settings stay constant.
    task : str
        "classification", or "regression": targets are numbers, and ``n_classes`` says how many.
    mode : str
        "tape": a step is recorded and then repeated without the rule's code, with the same bits;
        "eager": every step runs the rule's code.  Default: "tape", but where FFLEARN_EAGER is set.
    probes : mapping of str to callable, optional
        ``probe(view, update) -> float``, called for each layer's update; it reads only.  Results
        appear in a step's info as "name/layer index".  An attribute ``keeps`` names what a probe
        reads of traces besides activity, as `Rule.keeps`.

    Raises
    ------
    SpecError, ShapeError
        Whatever does not fit together, before any step is made.

    Examples
    --------
    >>> import numpy as np, fflearn
    >>> engine = Engine("dense 16 relu | dense 3", fflearn.rule("dfa"), (4,), 3)
    >>> state = engine.init(seed=0)
    >>> x, y = np.ones((5, 4), np.float32), np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
    >>> info, ledger = engine.step(state, Batch(x, y))
    >>> engine.predict(state, x).shape
    (5, 3)
    """

    def __init__(
        self,
        net: Network | str | list[Any],
        rule: Rule,
        in_shape: tuple[int, ...],
        n_classes: int,
        optimizer: Optimizer | None = None,
        objective: Any = "softmax_cross_entropy",
        backend: str = "numba",
        dtype: str = "float32",
        threads: int = 1,
        horizon: tuple[int, int] | None = None,
        task: str = "classification",
        probes: Mapping[str, Callable[[LayerView, Update], float]] | None = None,
        mode: str = "",
    ):
        self.rule, self.in_shape, self.n_classes = rule, tuple(in_shape), n_classes
        self.given = network(net, n_classes)
        self.net = rule.heads(rule.adapt(self.given), self.in_shape)
        self.kernels, self.backend = backends.load(backend), backend
        self.dtype, self.threads, self.horizon = _checked_dtype(dtype), threads, horizon
        self.optimizer = optimizer or default_optimizer(rule)
        self.objective = objectives.load(objective)() if isinstance(objective, str) else objective
        self.task, self.probes = checked_task(task), dict(probes or {})
        self._counted: dict[Hashable, Ledger] = {}
        self._watched = False
        self.at_once, self.sweep = 0, 1000  # samples per pass of a step (0: all); in prediction
        recorded = _checked_mode(mode) == "tape" and not rule.op_by_op
        self.tapes = (self.kernels.steps(self) or Tapes(self)) if recorded else None
        self._wire()
        self._check()
        self.rates = [rule.rates(spec) for spec in self.specs]
        if advice := rule.advise(self.optimizer):
            warnings.warn(advice, SettingsWarning, stacklevel=2)

    # -- construction ----------------------------------------------------------------------------
    def _wire(self) -> None:
        """Who reads whom: derived once from the network's structure."""
        nodes, leaves = self.net.nodes, self.net.leaves
        tops = leaves_of(nodes, len(nodes) - 1)
        self.source = [n.sources[0] for n in nodes if n.leaf is not None]
        self.last_use: list[list[int]] = [[] for _ in nodes]
        for s in range(-1, len(nodes) - 1):
            readers = [i for i, n in enumerate(nodes) if s in n.sources]
            if readers:
                self.last_use[max(readers)].append(s)
        # Whether the network's input may be a `Shown`: one layer reads it, and can.
        of_input = [leaves[n.leaf] for n in nodes if -1 in n.sources and n.leaf is not None]
        self.shares = len(of_input) == 1 and of_input[0].shares
        shapes: list[tuple[int, ...]] = []  # per node; a rule may feed layers other inputs
        self.specs: tuple[LayerSpec, ...] = ()
        chain = self.net.shapes(self.in_shape)
        for i, (leaf, sources) in enumerate(nodes):
            if leaf is None:
                shapes.append(shapes[sources[0]])
                continue
            layer, below = leaves[leaf], sources[0]
            spec = LayerSpec(
                leaf,
                len(leaves),
                f"{leaf} {layer.spec()}",
                self.in_shape if below < 0 else shapes[below],
                chain[i],
                self.in_shape,
                chain[-1],
                self.n_classes,
                below < 0,
                leaf in tops,
                getattr(layer, "activation", "identity"),
                layer.learns,
            )
            fed = self.rule.in_shape(spec.in_shape, spec)
            spec = replace(spec, in_shape=fed, out_shape=self._fed(layer, spec, fed))
            spec = replace(spec, points=layer.points(fed))
            shapes.append(spec.out_shape)
            self.specs += (spec,)
        self.out_shape = shapes[-1]
        above = self._above()
        self.specs = tuple(
            replace(spec, net_out=self.out_shape, above=above[spec.index]) for spec in self.specs
        )

    def _above(self) -> list[tuple[tuple[int, ...], ...]]:
        """Of each layer, the outputs of its readers, in the order in which the Bus sweeps down."""
        nodes = self.net.nodes
        readers: list[tuple[tuple[int, ...], ...]] = [() for _ in nodes]
        for i in reversed(range(len(nodes))):
            leaf, sources = nodes[i]
            for s in sources:
                if s >= 0:
                    readers[s] += readers[i] if leaf is None else (self.specs[leaf].out_shape,)
        return [readers[i] for i, node in enumerate(nodes) if node.leaf is not None]

    def _fed(self, layer: Any, spec: LayerSpec, fed: tuple[int, ...]) -> tuple[int, ...]:
        """Output shape of a layer for the input that the rule feeds it."""
        name = type(self.rule).__name__
        first = next((s for s in self.specs if s.is_input and spec.is_input), None)
        if first is not None and first.in_shape != fed:
            raise ShapeError(
                f"{name} would feed {first.name!r} samples of shape {first.in_shape} and "
                f"{spec.name!r} such of {fed}, and both read the network's input."
            )
        try:
            return layer.out_shape(fed)
        except ShapeError as e:
            raise ShapeError(f"{name} feeds {spec.name!r} the shape {fed}: {e}") from None

    def _check(self) -> None:
        rule, name, numbers = self.rule, type(self.rule).__name__, self.task == "regression"
        least, what = (1, "1 number to predict") if numbers else (2, "2 classes")
        if isinstance(self.n_classes, bool) or self.n_classes < least:
            raise SpecError(f"learning needs at least {what}; got {self.n_classes}.")
        if numbers and rule.needs_classes:
            raise SpecError(
                f"{name} learns from classes; here are numbers to predict. Take another rule, for "
                f"instance dfa or fa."
            )
        if numbers and self.objective.classes:
            raise SpecError(
                f"the objective {self.objective.kind} compares with classes; here are numbers to "
                f"predict. Type objective=mse"
            )
        if self.threads < 1:
            raise SpecError(f"threads needs 1 or more; got {self.threads}.")
        if rule.ends_in_logits and self.out_shape[-1] != self.n_classes:
            raise ShapeError(
                f"{name} needs a network that ends in one output per "
                f"{'number' if numbers else 'class'}: {self.n_classes}; the last "
                f"layer {self.net.leaves[-1].spec()!r} gives {self.out_shape}. End it with "
                f"dense {self.n_classes}"
            )
        if not self.objective.at_output:
            raise SpecError(f"{self.objective.kind} compares activity with a phase, not labels.")
        layers = zip(self.specs, self.net.leaves, strict=True)
        flat = [repr(spec.name) for spec, layer in layers if not layer.slopes]
        flat += [] if self.objective.slopes else [f"the objective {self.objective.kind}"]
        if rule.needs_slopes and flat:
            raise SpecError(
                f"{name} learns by derivatives, and that of {flat[0]} is 0. Take likelihood_ratio or "
                f"zeroth_order, or something smooth in its place."
            )
        for spec, layer in zip(self.specs, self.net.leaves, strict=True):
            if rule.needs_linear and not layer.linear:
                raise SpecError(f"{name} needs layers linear in their input; not {spec.name!r}")
            if rule.needs_apart and layer.couples_samples:
                raise SpecError(
                    f"{name} estimates each sample's gradient from its own loss, which leaves out "
                    f"what it does to the others where a layer mixes samples, as {spec.name!r} "
                    f"does. Take group_norm or layer_norm in the place of batch_norm, or settings "
                    f"of the rule with one number per batch."
                )

    # -- running ---------------------------------------------------------------------------------
    def init(self, seed: int) -> State:
        """A fresh state; all of it is a function of the seed, whatever the backend."""
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise SpecError(f"a seed needs to be a whole number from 0 on; got {seed!r}.")
        layers = [self.fresh(int(seed), i) for i in range(len(self.specs))]
        params, aux, opt = ([layer[part] for layer in layers] for part in range(3))
        meta = {"depth": len(params), "net": self.net.spec()}
        return self.placed(State(params, aux, opt, 0, int(seed), meta))

    def fresh(self, seed: int, layer: int) -> tuple[Slots, Slots, Slots]:
        """What a fresh state has of one layer: parameters, the rule's arrays, the optimizer's."""
        spec, leaf = self.specs[layer], self.net.leaves[layer]
        dtype, root = np.dtype(self.dtype), Key(seed)
        params = Slots(leaf.init(root.fold("init", layer), spec.in_shape, dtype))
        key = root.fold("rule", layer)
        v = LayerView(spec, leaf, params.readable, {}, self.kernels, key, self.rule.channels)
        owned = self.rule.init(v, key, root.fold("shared"))
        aux = Slots({n: np.asarray(a, dtype) for n, a in owned.items()})
        trained = {n: a for n, a in params.items() if n not in leaf.buffers}
        trained |= {f"aux.{n}": aux[n] for n in self.rule.plastic(v, owned)}
        slots = [self.optimizer.slots(n, w) for n, w in trained.items()]
        return params, aux, Slots({n: a for s in slots for n, a in s.items()})

    def placed(self, state: State) -> State:
        """The state with its arrays where the backend has its own; itself, where they are."""
        k = self.kernels
        return state if k.on_host else state.mapped(k.asarray)

    def settings_at(self, step: int) -> tuple[float, float, float]:
        """Progress in [0, 1], learning rate and weight decay at a step."""
        per_epoch, epochs = self.horizon or (1, 1)
        epoch = step / per_epoch if self.horizon else 0.0
        progress = min(1.0, epoch / epochs)
        return progress, *self.optimizer.settings_at(epoch, epochs)

    def step(self, state: State, batch: Batch) -> tuple[dict[str, Any], Ledger]:
        """Learn from one batch: changes ``state`` in place.

        Returns
        -------
        info : dict of str to 0-d array
            What the rule reports ("loss") and the probes found.
        ledger : Ledger
            What crossed layer boundaries: counted once per shape of batch.
        """
        stepped = self._op_by_op if self.tapes is None else self.tapes.step
        if 0 < self.at_once < len(batch.x):
            stepped = self._in_parts
        info, ledger = stepped(state, batch, self.variant(state))
        state.step += 1
        return info, ledger

    def running(self) -> AbstractContextManager[None]:
        """A context for many steps, in which each begins a little sooner: threads are set once."""
        return self.kernels.running(self.threads)

    def _op_by_op(self, state: State, batch: Batch, variant: Hashable) -> tuple[dict, Ledger]:
        """A step in eager mode."""
        batch, found = self.checked_batch(batch), dict[str, Any]()

        def observe(v: LayerView, u: Update) -> None:
            for name, probe in self.probes.items():
                found[f"{name}/{v.spec.index}"] = probe(v, u)

        info, ledger = self.run(state, batch, variant, True, observe)
        return info | found, ledger

    def needs_whole(self) -> str:
        """Why a step is not the mean of steps over parts of its batch; "" where it is."""
        who = type(self.rule).__name__
        if not self.rule.averages:
            return f"{who} does not learn the mean of what parts of a batch teach"
        for spec, layer in zip(self.specs, self.net.leaves, strict=True):
            if layer.couples_samples:
                return f"{spec.name!r} mixes the samples of a batch"
            if layer.draws:
                return f"{spec.name!r} draws noise for the samples of a batch"
        return ""

    def _in_parts(self, state: State, batch: Batch, variant: Hashable) -> tuple[dict, Ledger]:
        """A step over at most `at_once` samples at a time, after all of which layers learn."""
        batch = self.checked_batch(batch)
        k, n = self.kernels, len(batch.x)
        grads: list[dict[str, Any]] = [{} for _ in self.specs]
        aux_grads: list[dict[str, Any]] = [{} for _ in self.specs]
        total: dict[str, Any] = {}
        for i in range(0, n, self.at_once):
            part = slice(i, i + self.at_once)
            weight = None if batch.weight is None else batch.weight[part]
            some = Batch(batch.x[part], batch.y[part], batch.side, weight)
            share = len(some.x) / n if weight is None else float(weight.sum() / batch.weight.sum())
            if not share:
                continue
            found: dict[str, Any] = {}

            def observe(v: LayerView, u: Update, share=share, found=found) -> None:
                for name, probe in self.probes.items():
                    found[f"{name}/{v.spec.index}"] = probe(v, u)
                for sums, parts in ((grads, u.grads), (aux_grads, u.aux_grads)):
                    for name, g in parts.items():
                        g = k.formed(g)
                        held = sums[v.spec.index].setdefault(name, np.zeros_like(g))
                        held += g.dtype.type(share) * g

            info, ledger = self.run(state, some, variant, False, observe)
            for name, value in (info | found).items():
                total[name] = total.get(name, 0) + share * value
        with self.running():
            bus = self._bus(state, batch, True, variant)
            for i, updates in enumerate(zip(grads, aux_grads, strict=True)):
                bus.learn(i, Update(*updates))
        return total, ledger

    def measure(self, state: State, batch: Batch) -> np.ndarray:
        """The numbers (K,) that a step would learn from, float64; nothing changes.

        With `learn` a step in two places: whoever holds the data sends K numbers, and whoever has
        the state learns from them what `step` would have, to the bit.  For rules that send
        layers nothing else; numbers of several batches may be averaged by their samples.
        Running statistics stay where the data are.
        """
        self._needs_numbers_alone()
        batch = self.checked_batch(batch)
        with self.running():
            bus = self._bus(state, batch, False, self.variant(state))
            return self.rule.measure(bus, batch)[1]

    def learn(self, state: State, numbers: Any) -> None:
        """One step from what `measure` found, here or elsewhere: no data, ``state`` changes."""
        self._needs_numbers_alone()
        numbers = np.asarray(numbers, np.float64)
        if numbers.ndim != 1 or not np.isfinite(numbers).all():
            raise DataError(
                f"learning needs finite numbers (K,), as measure gives them; got an array of shape "
                f"{numbers.shape}. Leave out what came from a batch that overflowed."
            )
        with self.running():
            self.rule.learn(self._bus(state, None, True, self.variant(state)), numbers)
        state.step += 1

    def updates(self, state: State, batch: Batch, wire: type[Bus] = Bus) -> list[Update]:
        """What every layer would learn from a batch, without changing the state.

        ``wire`` lets the locality checks put their own Bus in.
        """
        found: dict[int, Update] = {}
        self.observed(state, batch, lambda v, u: found.update({v.spec.index: u}), wire)
        return [found[i] for i in range(len(self.specs))]

    def observed(
        self,
        state: State,
        batch: Batch,
        observe: Callable[[LayerView, Update], None],
        wire: type[Bus] = Bus,
    ) -> None:
        """Show each layer's view and what it would learn, without changing the state.

        Traces keep everything.
        """
        one = copy.copy(self)
        one._watched, one._counted = True, {}
        one.run(state, one.checked_batch(batch), one.variant(state), False, observe, wire)

    def run(
        self,
        state: State,
        batch: Batch,
        variant: Hashable,
        train: bool = True,
        observe: Callable[[LayerView, Update], None] | None = None,
        wire: Callable[..., Bus] = Bus,
        k: Any = None,
    ) -> tuple[dict[str, Any], Ledger]:
        """The rule's step on a checked batch, op by op: what it reports, and what was counted.

        ``state``, ``batch`` and kernels ``k`` may be those of a recording.
        """
        program = (batch.x.shape, variant, batch.weight is None)
        ledger = None if program in self._counted else self._new_ledger(len(batch.x))
        with self.running():
            bus = self._bus(state, batch, train, variant, observe, ledger, wire, k)
            info = dict(self.rule.step(bus, batch))
        info |= bus.reports()
        # A rule without a loss at the output is as good as its layers' own losses.
        local = [value for name, value in info.items() if name.startswith("loss/")]
        if "loss" not in info and local:
            info["loss"] = sum(local) / len(local)
        if ledger is not None:
            self._counted[program] = ledger
        return info, self._counted[program]

    @property
    def keeps(self) -> frozenset[str]:
        """What traces hold: what the rule reads, or a probe (its attribute ``keeps``)."""
        if self._watched:
            return ALONE.keeps
        return self.rule.keeps.union(*(getattr(p, "keeps", ()) for p in self.probes.values()))

    def _needs_numbers_alone(self) -> None:
        if self.rule.channels != {Channel.SCALAR}:
            sent = ", ".join(sorted(c.value for c in self.rule.channels)) or "what layers see"
            raise SpecError(
                f"{type(self.rule).__name__} learns from the data ({sent}), not from a few numbers "
                f"that could be sent. Take a rule whose only channel is SCALAR: zeroth_order."
            )

    def _bus(
        self,
        state: State,
        batch: Batch | None,
        train: bool,
        variant: Hashable,
        observe: Callable[[LayerView, Update], None] | None = None,
        ledger: Ledger | None = None,
        wire: Callable[..., Bus] = Bus,
        k: Any = None,
    ) -> Bus:
        """The wire of one step."""
        key = Key(state.seed).using(k or self.kernels).at(state.step).fold("step")
        return wire(self, state, batch, key, train, variant, observe, ledger)

    def variant(self, state: State) -> Hashable:
        """What part of the rule's schedule holds in the coming step."""
        if type(self.rule).variant is Rule.variant:  # most: asked for in every step
            return None
        return self.rule.variant(self.settings_at(state.step)[0], self.specs)

    def _new_ledger(self, samples: int) -> Ledger:
        size = sum(math.prod(spec.out_shape) for spec in self.specs)
        return Ledger(batch=samples, one_forward=size)

    def predict(
        self,
        state: State,
        x: Any,
        by: str = "",
        rows: int = 0,
        side: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """Scores (N, *net_out) for samples (N, *in); the best class has the highest score.

        Parameters
        ----------
        by : str
            One of the rule's `predictors`; default the first.
        rows : int
            Samples per sweep, a bound on memory; default `sweep`.
        side : mapping, optional
            What layers read besides their input; the samples then go in one sweep.
        """
        by = by or self.rule.predictors[0]
        if by not in self.rule.predictors:
            raise SpecError(f"{by!r} is no way to predict here; known: {self.rule.predictors}.")
        x = self._checked_x(x)
        key = Key(state.seed).using(self.kernels).fold("predict")
        side = self._placed_side(side)
        rows = len(x) if side else rows or self.sweep
        with self.running():
            parts = [
                self.rule.predict(
                    Bus(self, state, None, key, False, side=side), x[i : i + rows], by
                )
                for i in range(0, len(x), rows)
            ]
        return self.kernels.host(np.concatenate(parts))

    # -- boundary checks -------------------------------------------------------------------------
    def _checked_x(self, x: Any) -> np.ndarray:
        shape = np.shape(x)
        if not shape or shape[1:] != self.in_shape:
            raise ShapeError(
                f"samples need the shape {self.in_shape}; got an array of shape {shape}. Give "
                f"one row per sample, as in training."
            )
        if not shape[0]:
            raise DataError("there are no samples. Give at least one row.")
        return self.kernels.asarray(x, self.dtype)

    @property
    def _target_shape(self) -> tuple[int, ...]:
        """Shape of one label; a network without logits still learns one class per sample."""
        return self.out_shape if self.rule.ends_in_logits else (self.n_classes,)

    def checked_batch(self, batch: Batch) -> Batch:
        """The batch in the engine's dtype, where the backend has its arrays; raises what is wrong."""
        x = self._checked_x(batch.x)
        y = batch.y if hasattr(batch.y, "dtype") else np.asarray(batch.y)
        full = (len(x), *self._target_shape)
        ids = y.shape == full[:-1] and y.ndim > 1 and y.dtype.kind in "iu"
        if y.shape != full and not ids:
            raise ShapeError(
                f"labels need the shape {full}, one-hot, and so do numbers to predict; got "
                f"{y.shape}. Type for instance: np.eye({self.n_classes})[labels]"
            )
        y = self.kernels.asarray(y, y.dtype if ids else self.dtype)
        weight = batch.weight
        if weight is not None:
            weight = np.asarray(weight, np.float64)
            if weight.shape != (len(x),) or not (weight >= 0).all() or not weight.sum() > 0:
                raise DataError(
                    f"sample weights need {len(x)} numbers from 0 on, not all 0; got an array of "
                    f"shape {weight.shape}."
                )
            weight = self.kernels.asarray(weight)
        return Batch(x, y, self._placed_side(batch.side), weight)

    def _placed_side(self, side: Mapping[str, Any] | None) -> Mapping[str, Any]:
        return {name: self.kernels.side(a) for name, a in (side or {}).items()}


def default_optimizer(rule: Rule, **override: Any) -> Optimizer:
    """The rule's default optimizer settings, some of them replaced.

    Choosing another optimizer drops the defaults that belong to the rule's own.
    """
    settings = dict(rule.optimizer)
    if override.get("name", settings["name"]) != settings["name"]:
        settings = {}
    settings |= override
    return optimizer(settings.pop("name"), **settings)


def _checked_mode(mode: str) -> str:
    mode = mode or ("eager" if os.environ.get("FFLEARN_EAGER") else "tape")
    if mode not in MODES:
        raise SpecError(f"mode needs one of {', '.join(MODES)}; got {mode!r}.")
    return mode


def _checked_dtype(dtype: str) -> str:
    if dtype not in DTYPES:
        raise SpecError(f"dtype needs one of {', '.join(DTYPES)}; got {dtype!r}.")
    return dtype
