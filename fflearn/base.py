"""The contract between the engine and a learning rule.

A network is a series-parallel arrangement of layers.  A rule never holds the network: the engine
hands it one `LayerView` at a time, and everything that crosses a layer boundary goes over the
`Bus`, on a channel that the rule declared, and is counted in the `Ledger`.

Shapes: B batch, ``*in``/``*out`` per-sample shapes, C classes.  ``da`` always means
d loss_i / d a per sample; the (weighted) batch mean is taken once, in `LayerView.param_vjp`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from fflearn.errors import LocalityError, SpecError
from fflearn.kernels.reference import Product
from fflearn.random import Key

if TYPE_CHECKING:
    from fflearn.bus import Bus
    from fflearn.networks import Network
    from fflearn.optim import Optimizer

Array = np.ndarray
Shape = tuple[int, ...]
Params = dict[str, Any]


class Channel(StrEnum):
    """What may cross a layer boundary besides activity going up, in order of what it gives away.

    The order is part of the contract: a rule is as local as its last channel.  A new channel
    needs an ADR; a name is never reused for something stronger.
    """

    PHASE = "phase"  # broadcast, (B,)    +1 / -1: positive or negative data
    SCALAR = "scalar"  # broadcast, ()      one number per step
    GOODNESS = "goodness"  # gathered, (B, depth)  one number per sample and layer
    LOSS = "loss"  # broadcast, (B,)    one number per sample
    TARGET = "target"  # broadcast, (B, C)  the label
    ERROR = "error"  # broadcast, (B, C)  d loss_i / d logits_i
    INPUT = "input"  # broadcast, (B, *in)
    TANGENT = "tangent"  # up, (B, *out)      a directional derivative riding on the activity
    FEEDBACK = "feedback"  # down, (B, *out)    through weights that the rule owns
    SIGN = "sign"  # down, (B, *out)    through the signs of the forward weights
    TRANSPOSE = "transpose"  # down, (B, *out)    through the forward weights transposed

    @property
    def transport(self) -> str:
        """How much of the forward weights this channel carries: "no", "sign" or "yes"."""
        return {"sign": "sign", "transpose": "yes"}.get(self.value, "no")


DOWNWARD = (Channel.TRANSPOSE, Channel.SIGN, Channel.FEEDBACK)


class Point(NamedTuple):
    """A pre-activation inside of a layer that a rule may move, and which outputs feel it."""

    name: str  # "a", the layer's own; "1.a", that of leaf 1 of a block of blocks
    shape: Shape  # (*places, channels)
    places: bool  # a place of it moves that place of the layer's output alone
    groups: int  # in as many equal parts as divide this, channels move the like part alone


@dataclass(frozen=True)
class LayerSpec:
    """What a rule may know of where a layer stands."""

    index: int  # position among the layers, bottom first
    depth: int  # how many layers there are
    name: str  # e.g. "0 dense 512 relu"
    in_shape: Shape
    out_shape: Shape
    net_in: Shape  # shape of one sample of the data
    net_out: Shape  # of the network's output: (C,), or (places, C) with an error per place
    n_classes: int
    is_input: bool  # reads the input of the network
    is_output: bool  # its output is (a summand of) the network's output
    activation: str  # the pointwise function that ends it; "identity" without one
    learns: bool  # has parameters; pooling and the like have none
    above: tuple[Shape, ...] = ()  # outputs of the layers that read this one, top first
    points: tuple[Point, ...] = ()  # bottom first

    @property
    def places(self) -> int:
        """Leading axes that this layer's activity has in common with the network's output.

        Each place (a token, a node) has a label and an error of its own.  SpecError where the
        layer has other places than the output.
        """
        n = len(self.net_out) - 1
        if self.out_shape[:n] != self.net_out[:n]:
            raise SpecError(
                f"layer {self.name!r} needs to keep the places {self.net_out[:n]} of the output, "
                f"which have a label and an error each; its output is {self.out_shape}."
            )
        return n


class Env(NamedTuple):
    """What a layer's forward may read besides its input and its parameters."""

    side: Mapping[str, Any] = {}  # not learned, seen by every layer: adjacency, masks
    key: Key | None = None  # this layer's randomness in this step (dropout masks)
    train: bool = True
    keeps: frozenset[str] = frozenset({"x", "a"})  # `Rule.keeps`

    def inside(self, leaf: int) -> Env:
        """The surroundings of one leaf: the same, with randomness of its own."""
        return self if self.key is None else self._replace(key=self.key.fold(leaf))


ALONE = Env()


class NotKept:
    """Stands in a trace for an array that the rule does not declare; whatever uses it is told."""

    def __init__(self, name: str, declared: str):
        self._name, self._declared = name, declared

    def _told(self, *_: Any, **__: Any) -> Any:
        raise LocalityError(
            f"a rule read {self._name!r} of a trace, which it does not keep. Declare in its class: "
            f"keeps: ClassVar = frozenset({{{self._declared}}}); or of a probe, as its attribute keeps."
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._told()


for _name in ("array", "len", "getitem", "abs", "neg", "lt", "le", "gt", "ge"):
    setattr(NotKept, f"__{_name}__", NotKept._told)
for _name in ("add", "sub", "mul", "truediv", "pow", "matmul"):
    setattr(NotKept, f"__{_name}__", NotKept._told)
    setattr(NotKept, f"__r{_name}__", NotKept._told)

NO_X, NO_A = NotKept("x", '"x"'), NotKept("a", '"x", "a"')


class Trace(NamedTuple):
    """What one forward through one layer leaves behind.

    Of x and a what `Rule.keeps` names, and what the layer's own derivatives need.
    """

    x: Any  # (B, *in)   input
    a: Any  # (B, *out)  pre-activation
    y: Any  # (B, *out)  output act(a)
    params: Mapping[str, Any]  # the parameters it was made with
    inner: Any = None  # what else the layer's own derivatives need


class Shown(NamedTuple):
    """Samples shown r times each, with other values in some columns: r blocks of B rows.

    Layers that say so (`Layer.shares`) compute once per sample what its rows share; for others
    the Bus lays the rows out.
    """

    x: Any  # (B, *in)  samples, 0 in these columns
    values: Any  # (r B, c)  what each row has in them
    first: int  # the first of the c columns, of a sample as one row

    @property
    def whole(self) -> Any:
        """The rows laid out: (r B, *in)."""
        n, (rows, c) = len(self.x), self.values.shape
        flat = np.concatenate([self.x.reshape(n, -1)] * (rows // n))
        parts = [flat[:, : self.first], self.values, flat[:, self.first + c :]]
        laid = np.concatenate([part for part in parts if part.shape[1]], axis=1)
        return laid.reshape(rows, *self.x.shape[1:])


class Message(NamedTuple):
    """What travels up, in the pass called `name`."""

    x: Any
    name: str = "x"
    tangent: Any = None


class Readout(NamedTuple):
    """The objective at the network's output."""

    loss: Any  # (B,)   of a sample with several places, their mean
    error: Any  # (B, *net_out)  d loss_i / d logits_i, per sample (no 1/B)


class Batch(NamedTuple):
    """What one step learns from."""

    x: Any  # (B, *in)
    y: Any  # (B, *net_out)  one-hot label or regression target; or ids (B, *net_out[:-1])
    side: Mapping[str, Any] = {}
    weight: Any = None  # (B,)     sample weights; None means one each


class Settled(NamedTuple):
    """How a relaxation ended."""

    sweeps: int
    change: float  # the largest change of a state in the last sweep


class Update(NamedTuple):
    """What a layer's local rule returns; the engine applies it, nothing else writes."""

    grads: Mapping[str, Any] = {}  # to the optimizer, for the layer's own parameters
    aux_grads: Mapping[str, Any] = {}  # to the optimizer, for the rule's own arrays here
    assign: Mapping[str, Any] = {}  # closed form: new values of parameters
    aux_assign: Mapping[str, Any] = {}  # closed form: new values of the rule's own arrays


class Rates(NamedTuple):
    """Multipliers of the optimizer's settings for one layer."""

    lr: float = 1.0
    weight_decay: float = 1.0


@dataclass
class Ledger:
    """What crossed layer boundaries in one step, and what was kept for learning.

    Counts follow from shapes alone, so they are taken once per network and batch size.

    Attributes
    ----------
    floats : dict of (channel, layer index) to int
    batch : int
        Samples in the counted step.
    computed : int
        Floats of activity that layers computed, all passes together.
    one_forward : int
        Floats of activity of the whole network for one sample.
    transposes : int
        Calls that transposed a layer's own forward weights.
    peak_bytes : int
        Largest sum of arrays kept alive between the first forward and the last update.
    """

    batch: int = 1
    floats: dict[tuple[str, int], int] = field(default_factory=dict)
    computed: int = 0
    one_forward: int = 1
    transposes: int = 0
    peak_bytes: int = 0

    def record(self, channel: str, layer: int, n: int) -> None:
        """Count ``n`` floats that entered (or, going down, left) a layer."""
        at = (str(getattr(channel, "value", channel)), layer)
        self.floats[at] = self.floats.get(at, 0) + int(n)

    def per_sample(self) -> dict[str, float]:
        """Floats that crossed layer boundaries, per training sample, by channel."""
        total: dict[str, float] = {}
        for (channel, _), n in self.floats.items():
            total[channel] = total.get(channel, 0.0) + n / self.batch
        return total

    @property
    def forward_passes(self) -> float:
        """Activity computed per sample, in units of one pass through the whole network."""
        return self.computed / (self.batch * self.one_forward)


class Signals:
    """The broadcasts of one sweep as one layer reads them; the first read of each is counted.

    ``top`` is the output layer's own error: it crosses no boundary, so it needs no channel,
    and no other layer can read it.
    """

    __slots__ = ("_layer", "_ledger", "_named", "_read", "_top")

    def __init__(self, named: Mapping[str, Any], top: Any, ledger: Ledger | None, layer: LayerSpec):
        self._named, self._top, self._ledger, self._layer = dict(named), top, ledger, layer
        self._read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "top" and self._layer.is_output and self._top is not None:
            return self._top
        if name not in self._named:
            raise LocalityError(
                f"layer {self._layer.name!r} read the signal {name!r}, which it was not sent; "
                f"sent: {sorted(self._named) or 'none'}. Pass it to bus.update or bus.forward and "
                f"declare its channel ('top' reaches the output layer alone)."
            )
        if self._ledger is not None and name not in self._read:
            self._read.add(name)
            self._ledger.record(name, self._layer.index, np.size(self._named[name]))
        return self._named[name]


class LayerView:
    """One layer as a rule sees it: its own parameters and arrays, and its local calculus.

    Attributes
    ----------
    params, aux : mapping of str to read-only array
        The layer's parameters and the rule's own arrays in this layer.
    key : Key
        This layer's randomness in this step.
    traces : dict of str to Trace
        What the forward passes left, by name of the pass; gone when the step ends.
    state : dict
        Transient arrays of the rule; gone when the step ends.
    """

    def __init__(
        self,
        spec: LayerSpec,
        layer: Any,
        params: Mapping[str, Any],
        aux: Mapping[str, Any],
        k: Any,
        key: Key,
        channels: frozenset[Channel],
        variant: Hashable = None,
        env: Env = ALONE,
        weight: Any = None,
        ledger: Ledger | None = None,
    ):
        self.spec, self.params, self.aux, self.k, self.key = spec, params, aux, k, key
        self.variant, self.env = variant, env
        self.traces: dict[str, Trace] = {}
        self.state: dict[str, Any] = {}
        self.reports: dict[str, Any] = {}
        self._layer, self._channels, self._weight, self._ledger = layer, channels, weight, ledger

    def __getattr__(self, name: str) -> Any:
        if name in LayerSpec.__dataclass_fields__:
            return getattr(self.spec, name)
        raise AttributeError(f"a LayerView has no {name!r}")

    @property
    def trace(self) -> Trace:
        """The trace of the pass called "x"."""
        return self.traces["x"]

    @property
    def learned(self) -> Params:
        """The parameters that gradients move: all but running statistics."""
        return {n: p for n, p in self.params.items() if n not in self._layer.buffers}

    # -- the local calculus (no autograd) ------------------------------------------------------
    def forward(self, x: Any, *, noise: Any = None, params: Mapping[str, Any] | None = None):
        """(B, *in) -> Trace, with the own or the given parameters, noise (B, *out) on ``a``."""
        p = self.params if params is None else params
        t = self._layer.forward(self.k, p, x, self.env, noise)
        if self._ledger is not None:
            self._ledger.computed += t.y.size
            if not self.spec.is_input:
                self._ledger.record("activity", self.spec.index, x.size)
        return t

    def head(self, t: Trace) -> Trace:
        """A trace that went on through the layer's head: ``y`` is the head's output.

        ``act_vjp`` and ``param_vjp`` of it reach the parameters of the layer and of its head.
        Without a head, and where nothing is learned, it is ``t`` itself.
        """
        if not self.env.train:
            return t
        t, floats = self._layer.headed(self.k, t, self.env)
        if self._ledger is not None:
            self._ledger.computed += floats
        return t

    def act(self, a: Any) -> Any:
        """(B, *out) pre-activation -> (B, *out) activity."""
        return self._layer.act(self.k, a)

    def act_vjp(self, t: Trace, dy: Any, into: Any = None) -> Any:
        """(B, *out) d loss/d y -> (B, *out) d loss/d a.  Pointwise.

        ``into`` is an array of the hook's own that may be written to instead of a new one: dy
        itself, where the hook has made it and needs it no more.
        """
        return self._layer.act_vjp(self.k, t, dy, into)

    def param_vjp(self, t: Trace, da: Any, weighted: bool = False) -> Params:
        """(B, *out) per-sample d loss/d a -> gradient of the own parameters.

        The (weighted) batch mean is taken here and nowhere else.  A pass that sends r rows per
        sample, stacked, repeats the sample weights r times.  ``weighted``: the rows have their
        weights already, as where ``da`` is B times what `Bus.mean` of the losses does to a.
        """
        return self._layer.param_vjp(self.k, t, da if weighted else self._weighted(da))

    def points_vjp(self, t: Trace, da: Mapping[str, Any], weighted: bool = False) -> Params:
        """Per-sample d loss/d (pre-activation of each point) -> gradient of the own parameters.

        Each point's da (B, *shape) goes as far down as to the point below it.  Units that pass
        nothing on count as having 0.  Otherwise as `param_vjp`.
        """
        rows = {n: d if weighted else self._weighted(d) for n, d in da.items()}
        return self._layer.points_vjp(self.k, t, rows)

    def product(self, x: Any, da: Any) -> Product:
        """Gradient of a matrix M of the rule's own, for x (B, *places, n) and x M's per-sample da.

        The (weighted) batch mean is taken here, as in `param_vjp`; places add up.
        """
        rows = self._weighted(da).reshape(-1, da.shape[-1])
        return Product(x.reshape(-1, x.shape[-1]), rows, len(da))

    def mean(self, rows: Any) -> Any:
        """(Weighted) batch mean of (rows, ...), for what a rule averages besides gradients."""
        return self._weighted(rows).mean(axis=0)

    def _weighted(self, rows: Any) -> Any:
        """Rows times their weights, so that the plain mean becomes the weighted one."""
        if self._weight is None:
            return rows
        w = np.tile(self._weight, len(rows) // len(self._weight))
        w *= len(w) / w.sum()
        return rows * w.reshape(-1, *[1] * (rows.ndim - 1)).astype(rows.dtype)

    def jvp(self, t: Trace, dx: Any, dparams: Mapping[str, Any]) -> Any:
        """Tangents of the input (or None), parameters and points, by name -> (B, *out) of the output.

        None where there are none.
        """
        return self._layer.push(self.k, t, dx, dparams)

    def input_vjp(self, t: Trace, da: Any, weights: Mapping[str, Any] | None = None) -> Any:
        """(B, *out) d loss/d a -> (B, *in) message for the layer below.

        Without ``weights`` it transposes the layer's own forward weights and needs the channel
        TRANSPOSE.  With ``weights`` of the rule's own in place of all of the layer's weight
        matrices (same names; columns match ``da``) the channel of the message suffices.
        """
        if weights is None:
            self._need(Channel.TRANSPOSE, "sent the transposed forward weights' message down")
            if self._ledger is not None:
                self._ledger.transposes += 1
            return self._layer.input_vjp(self.k, t, da)
        own = any(np.may_share_memory(weights[n], self.params[n]) for n in weights)
        if own or set(weights) != set(self._layer.weights):
            self._need(Channel.TRANSPOSE, "left its own forward weights in input_vjp")
        return self._layer.input_vjp(self.k, t._replace(params={**t.params, **weights}), da)

    def signs(self) -> Params:
        """Signs (-1, 0, 1) of the own weight matrices, by name; needs the channel SIGN."""
        self._need(Channel.SIGN, "read the signs of the forward weights")
        return {n: np.sign(self.params[n]) for n in self._layer.weights}

    # -- drawing ---------------------------------------------------------------------------------
    def draw_weights(self, key: Key) -> Params:
        """Weight matrices drawn as the layer draws its own at the start (no biases)."""
        if not self._layer.weights:
            return {}
        dtype = self.params[self._layer.weights[0]].dtype
        drawn = self._layer.init(key, self.spec.in_shape, dtype)
        return {n: drawn[n] for n in self._layer.weights}

    def weight_std(self) -> dict[str, float]:
        """Standard deviation of that draw, by name of the weight matrix."""
        return self._layer.weight_std(self.spec.in_shape)

    def noise_like_params(self, tag: str, draw: str = "normal") -> Params:
        """Noise shaped as what the layer learns, "normal" or "rademacher": made anew, not stored."""
        return {
            n: getattr(self.key.fold(tag, n), draw)(p.shape, p.dtype)
            for n, p in self.learned.items()
        }

    def report(self, name: str, value: Any) -> None:
        """A scalar of this layer for the log; no rule can read it back."""
        self.reports[name] = value

    def _need(self, channel: Channel, did: str) -> None:
        if channel not in self._channels:
            raise LocalityError(
                f"layer {self.spec.name!r} {did}, but the rule declares only "
                f"{sorted(c.value for c in self._channels) or 'no channel'}. Declare "
                f"Channel.{channel.name}, or use what the declared channels carry."
            )


@dataclass(frozen=True)
class Rule:
    """Base of every learning rule: hyper-parameters, per-layer functions, and a schedule.

    Subclass it as a frozen dataclass, declare `channels`, and write `step` and `update`.
    Hooks are array expressions without branches on values, so that a step can be recorded once
    and replayed; structure that changes over training is `variant`.
    """

    channels: ClassVar[frozenset[Channel]] = frozenset()
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # parameter -> the words it may be
    short: ClassVar[tuple[str, ...]] = ()  # other names the command line accepts
    citation: ClassVar[str] = ""
    needs_slopes: ClassVar[bool] = True  # it learns by derivatives of the loss, or of layers
    needs_linear: ClassVar[bool] = False  # the layer's core must be linear in its input
    needs_apart: ClassVar[bool] = False  # no layer may mix the samples of a batch
    needs_classes: ClassVar[bool] = False  # it learns from labels, right or wrong: no regression
    averages: ClassVar[bool] = False  # of a batch it learns the mean of what its parts teach
    # What its traces keep besides what act_vjp and param_vjp need: "x" (for input_vjp and jvp of a
    # layer with a norm, too) and "a".  What is not named is memory saved.
    keeps: ClassVar[frozenset[str]] = frozenset({"x"})
    ends_in_logits: ClassVar[bool] = True  # the network must end in one output per class
    op_by_op: ClassVar[str] = ""  # why no step can be recorded and repeated; "" where it can
    optimizer: ClassVar[Mapping[str, Any]] = {"name": "adam", "lr": 1e-3}  # default settings
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # label -> parameters, for `compare`
    predictors: ClassVar[tuple[str, ...]] = ("logits",)  # ways to predict; the first is default
    probes: ClassVar[tuple[str, ...]] = ()  # own methods (view, update) -> float: fflearn.probes

    def __post_init__(self) -> None:
        for name, known in self.choices.items():
            if (given := getattr(self, name)) not in known:
                raise SpecError(
                    f"{type(self).__module__.rpartition('.')[2]} needs {name} to be one of "
                    f"{', '.join(known)}; got {given!r}."
                )

    # -- before training -------------------------------------------------------------------------
    def adapt(self, net: Network) -> Network:
        """The given network as this rule trains it; shown wherever results are."""
        return net

    def heads(self, net: Network, in_shape: Shape) -> Network:
        """The adapted network with heads on its blocks, for samples of this shape.

        A head is run in training alone (`LayerView.head`): it is no part of what was learned.
        """
        return net

    def in_shape(self, chain: Shape, spec: LayerSpec) -> Shape:
        """Input shape of a layer; ``chain`` is what the network's structure gives it."""
        return chain

    def init(self, v: LayerView, key: Key, shared: Key) -> Params:
        """Rule-owned arrays of a layer.

        ``key`` is the layer's own; ``shared`` is the same in every layer, for arrays that layers
        share (a draw of fewer elements is a prefix of a longer one).
        """
        return {}

    def plastic(self, v: LayerView, owned: Params) -> tuple[str, ...]:
        """Which of the rule-owned arrays the optimizer trains (by `Update.aux_grads`)."""
        return ()

    def rates(self, v: LayerSpec) -> Rates:
        """Multipliers of learning rate and weight decay in this layer."""
        return Rates()

    def advise(self, optimizer: Optimizer) -> str:
        """What a user should know of this rule with that optimizer: the Engine warns of it."""
        return ""

    def variant(self, progress: float, layers: tuple[LayerSpec, ...]) -> Hashable:
        """What part of the step's structure holds at ``progress`` in [0, 1]; hooks see it."""
        return None

    # -- one step --------------------------------------------------------------------------------
    def step(self, bus: Bus, batch: Batch) -> dict[str, Any]:
        """The schedule: which sweeps, in what order.  Returns scalars to report, "loss" first."""
        raise NotImplementedError(f"{type(self).__name__} needs a step(bus, batch)")

    def measure(self, bus: Bus, batch: Batch) -> tuple[Any, Array]:
        """Half of a step that learns from numbers alone: the loss, and these (K,) in float64."""
        raise NotImplementedError(f"{type(self).__name__} needs a measure(bus, batch)")

    def learn(self, bus: Bus, numbers: Array) -> None:
        """The other half: what `measure` found, here or elsewhere, goes to the layers."""
        raise NotImplementedError(f"{type(self).__name__} needs a learn(bus, numbers)")

    def forward(self, v: LayerView, m: Message, s: Signals) -> Message:
        """What a layer does with the message from below; default: fire and keep the trace."""
        v.traces[m.name] = t = v.forward(m.x)
        return m._replace(x=t.y)

    def feedback(self, v: LayerView, m: Any) -> Any:
        """The message for the layer below, from the message (B, *out) from above.

        Where several layers read one, their messages add up; tuples of arrays are joined, top first.
        """
        raise NotImplementedError(f"{type(self).__name__} sweeps down, so it needs feedback(v, m)")

    def has_state(self, v: LayerSpec) -> bool:
        """Whether a layer relaxes; one without a state passes on what it gets, up and down."""
        return True

    def relax(self, v: LayerView, below: Any, above: Any) -> None:
        """Set ``v.state["s"]``: one settling step, or what a layer without a state passes up.

        ``below`` (B, *in) is what the layers below are at, ``above`` (B, *out) the sum of the
        messages of the layers that read this one; None for a layer without a state.
        """
        raise NotImplementedError(f"{type(self).__name__} settles, so it needs relax(v, ...)")

    def update(self, v: LayerView, s: Signals) -> Update:
        """LOCAL: what this layer learns from its own view and the declared signals."""
        raise NotImplementedError(f"{type(self).__name__} needs an update(v, s)")

    # -- use -------------------------------------------------------------------------------------
    def predict(self, bus: Bus, x: Any, by: str) -> Any:
        """Scores (B, C) of each class, by one of `predictors`; default: one forward sweep."""
        return bus.forward(x, keep=False)

    def settings(self) -> dict[str, Any]:
        """Hyper-parameters by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


__all__ = [
    "Array",
    "Batch",
    "Channel",
    "Env",
    "Key",
    "LayerSpec",
    "LayerView",
    "Ledger",
    "Message",
    "Params",
    "Point",
    "Product",
    "Rates",
    "Readout",
    "Rule",
    "Settled",
    "Shape",
    "Shown",
    "Signals",
    "Trace",
    "Update",
]
