"""One step with everything that entered every layer written down."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fflearn.base import Signals
from fflearn.bus import Bus
from fflearn.checks import Bench


class Call(NamedTuple):
    """An entry into a layer: which hook, and what came in, as it was then."""

    layer: int
    hook: str
    args: tuple[Any, ...]


class SentSignals(NamedTuple):
    """The broadcasts of a sweep as they can be sent to another process."""

    named: dict[str, Any]
    top: Any


class Transcript:
    """A step of an engine, recorded; the state is left as it was.

    Attributes
    ----------
    calls : list of Call
        In the order of the step.
    updates : list of Update
        By layer.
    keys : list of Key
        Of the views, by layer.
    environments : list of Env
    messages_down : list of int
        How many messages each layer sent down.
    """

    def __init__(self, tried: Bench):
        self.calls: list[Call] = []
        self.keys: list[Any] = []
        self.environments: list[Any] = []
        self.variant: Any = None
        self.messages_down = [0] * len(tried.engine.specs)
        wire: Any = partial(RecordingBus, transcript=self)
        self.params = [{n: a.copy() for n, a in s.items()} for s in tried.state.params]
        self.aux = [{n: a.copy() for n, a in s.items()} for s in tried.state.aux]
        self.updates = tried.engine.updates(tried.state, tried.batch, wire)

    def delay(self, layer: int) -> int:
        """Entries into other layers between a layer's last firing and its last update."""
        at = [i for i, c in enumerate(self.calls) if c.layer == layer and c.hook == "update"]
        fired = [
            i
            for i, c in enumerate(self.calls)
            if c.layer == layer and c.hook in ("forward", "relax") and at and i < at[-1]
        ]
        if not at or not fired:
            return 0
        return sum(c.layer != layer for c in self.calls[fired[-1] : at[-1]])


class RecordingBus(Bus):
    """A bus that writes down every entry into a layer before it happens."""

    def __init__(self, *args: Any, transcript: Transcript, **named: Any):
        super().__init__(*args, **named)
        self._transcript = transcript
        transcript.keys = [v.key.using(None) for v in self._views]
        transcript.environments = [
            v.env._replace(key=v.env.key.using(None) if v.env.key is not None else None)
            for v in self._views
        ]
        transcript.variant = self.variant

    def _call(self, hook: str, v: Any, *args: Any) -> Any:
        sent = tuple(map(copied, args))
        self._transcript.calls.append(Call(v.spec.index, hook, sent))
        out = super()._call(hook, v, *args)
        if hook == "feedback" and out is not None and not v.spec.is_input:
            self._transcript.messages_down[v.spec.index] += 1
        return out


def copied(item: Any) -> Any:
    """What came in, apart from everything that still lives."""
    if isinstance(item, np.ndarray):
        return item.copy(order="K")  # the layout decides how a product sums, and so the last bit
    if isinstance(item, Signals):
        named = {n: copied(a) for n, a in item._named.items()}
        return SentSignals(named, copied(item._top))
    if isinstance(item, tuple):
        parts = map(copied, item)
        return type(item)(*parts) if hasattr(item, "_fields") else tuple(parts)
    return item
