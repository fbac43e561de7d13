"""The backend "cuda" on a GPU: does it compute the same, and how fast: ``python -m benchmarks.gpu``.

First the numbers: every kernel, layer and rule against the CPU's reference.  Then the times of a
step against PyTorch: eager, compiled, and captured as a CUDA graph.  Without a GPU it says what is
missing and ends with exit code 2.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_cases import CASES, Draw, off
from benchmarks.machine import header, save
from fflearn import kernels, layers, registry, rules
from fflearn.base import Batch, Channel
from fflearn.engine import Engine
from fflearn.errors import BackendUnavailable, FFLearnError
from fflearn.kernels.reference import Kernels
from fflearn.layers.dense import Dense
from fflearn.optim import optimizer
from fflearn.random import Key

RESULT = Path(__file__).parent / "results" / "gpu.json"
LIMIT = 8 * 60  # seconds for all of it: what does not fit any more is left out, and named
ONE_STEP = {"float32": 1e-5, "float64": 1e-10}
ROUNDINGS = 64  # of the largest number, for one kernel
MANY, MANY_STEPS = 1e-8, 100  # in float64
MLP = "dense 2000 relu | dense 2000 relu | dense 2000 relu | dense 2000 relu | dense 10"
SMALL = "dense 128 relu | dense 64 relu | dense 10"
# name, network, samples, batch, rule, backend, TF32 in PyTorch
RACES = (
    ("mlp", MLP, (784,), 512, "dfa", "cuda", False),
    ("mlp tf32", MLP, (784,), 512, "dfa", "cuda:tf32", True),
    ("small", SMALL, (64,), 32, "dfa", "cuda", False),
    ("vgg8", "vgg8", (32, 32, 3), 128, "dfa", "cuda", False),
    ("vgg8 tf32", "vgg8", (32, 32, 3), 128, "dfa", "cuda:tf32", True),
)
GOAL = 1.0  # a rule's step over backpropagation's, in the fastest of PyTorch's three ways
DEPTHS = (4, 16, 64)


# ---- numbers ----------------------------------------------------------------------------------------


def difference(found: np.ndarray, want: np.ndarray) -> float:
    """The largest difference, relative to the largest number where that is above 1.

    Examples
    --------
    >>> difference(np.array([1.0, 4.0]), np.array([2.0, 4.0]))
    0.25
    """
    if found.shape != want.shape or found.dtype != want.dtype:
        return float("inf")
    if not want.size:
        return 0.0
    off = np.abs(found.astype(np.complex128) - want).max()
    return float(off / max(1.0, np.abs(want).max()))


def batch_of(shape: tuple[int, ...], classes: int, rows: int, seed: int = 0) -> Batch:
    """Standard normal samples with random labels."""
    key = Key(seed)
    x, labels = key.fold("x").normal((rows, *shape)), key.fold("y").integers(classes, rows)
    return Batch(x, np.eye(classes, dtype=x.dtype)[labels])


def stepped(
    backend: str, rule: Any, net: Any, batch: Batch, dtype: str, steps: int, mode: str = "tape"
) -> tuple[dict[str, np.ndarray], Engine]:
    """Every array of the state after some steps, on the host."""
    engine = Engine(
        net,
        rule,
        batch.x.shape[1:],
        batch.y.shape[-1],
        optimizer("sgd", lr=0.05),
        backend=backend,
        dtype=dtype,
        horizon=(steps, 1),
        mode=mode,
    )
    state = engine.init(0)
    for _ in range(steps):
        engine.step(state, batch)
    return {n: engine.kernels.host(a) for n, a in state.arrays().items()}, engine


def worst(found: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> float:
    """The largest `difference` of two states."""
    return max((difference(found[n], a) for n, a in want.items()), default=0.0)


def variants() -> dict[str, Callable[[], Any]]:
    """Every rule with every label it may have, as functions that make one."""
    return {
        f"{name}[{label}]" if label else name: partial(registry.rule, name, **settings)
        for name in rules.names()
        for label, settings in {"": {}, **registry.rule_class(name).variants}.items()
    }


def of_kernels(backend: str) -> Iterable[dict[str, Any]]:
    """Every kernel on its cases, in both precisions; differences in roundings."""
    k, r = kernels.load(backend), Kernels()
    before = k.device.small, k.device.direct
    for name, (call, _, options) in CASES.items():
        k.device.small = options.get("small", 0)
        k.device.direct = options.get("direct", False)
        for real in (np.float32, np.float64):
            with k.running(1):
                found = [k.host(a) for a in call(k, Draw(real, k))]
            worst = max(map(off, found, call(r, Draw(real, r))))
            row = {"what": f"kernel {name}", "dtype": np.dtype(real).name, "limit": ROUNDINGS}
            yield row | {"off": worst, "ok": worst <= ROUNDINGS}
    k.device.small, k.device.direct = before


def of_layers(backend: str) -> Iterable[dict[str, Any]]:
    """One step of backpropagation through every layer's examples, in both precisions."""
    for kind in layers.names():
        for i, (layer, shape) in enumerate(layers.load(kind).examples()):
            x, side = layer.example_batch(np.random.default_rng(i), 6, shape)
            batch = Batch(x, np.eye(2)[[0, 1, 1, 0, 1, 0]], side)
            for dtype, limit in ONE_STEP.items():
                yield compared(
                    f"layer {kind} {i}", backend, "backprop", [layer, Dense(2)], batch, dtype, limit
                )


def of_rules(backend: str) -> Iterable[dict[str, Any]]:
    """One step of every rule in both precisions, and many in float64."""
    batch = batch_of((20,), 5, 16)
    net = "dense 24 tanh | dense 12 tanh | dense 5"
    for label, make in variants().items():
        for dtype, limit in ONE_STEP.items():
            yield compared(f"rule {label}", backend, make, net, batch, dtype, limit)
        if not draws_or_signs(make(), net, batch):
            many = f"rule {label}, {MANY_STEPS} steps"
            yield compared(many, backend, make, net, batch, "float64", MANY, MANY_STEPS)


class Draws(Kernels):
    """The reference, which counts how often it draws."""

    draws = 0

    def random_words(self, *args: Any) -> Any:
        self.draws += 1
        return super().random_words(*args)

    def uniform(self, *args: Any) -> Any:
        self.draws += 1
        return super().uniform(*args)

    def normal(self, *args: Any) -> Any:
        self.draws += 1
        return super().normal(*args)


def draws_or_signs(rule: Any, net: Any, batch: Batch) -> bool:
    """Whether a step samples, sends signs or stops on a value: where a rounding may decide."""
    if getattr(rule, "tol", 0) > 0:
        return True
    shape, classes = batch.x.shape[1:], batch.y.shape[-1]
    engine = Engine(net, rule, shape, classes, backend="reference", mode="eager")
    engine.kernels = Draws()
    engine.step(engine.init(0), batch)
    return engine.kernels.draws > 0 or Channel.SIGN in rule.channels


def compared(
    name: str,
    backend: str,
    rule: Any,
    net: Any,
    batch: Batch,
    dtype: str,
    limit: float,
    steps: int = 1,
) -> dict[str, Any]:
    """One comparison with the reference; what a rule or layer refuses is no failure."""
    make = partial(registry.rule, rule) if isinstance(rule, str) else rule
    row: dict[str, Any] = {"what": name, "dtype": dtype, "limit": limit}
    try:
        want, _ = stepped("reference", make(), net, batch, dtype, steps, "eager")
    except FFLearnError as e:
        return row | {"refused": str(e), "ok": True}
    found, engine = stepped(backend, make(), net, batch, dtype, steps)
    far = worst(found, want)
    return row | {"off": far, "ok": far <= limit, "op_by_op": getattr(engine.tapes, "why", "")}


def of_replay(backend: str) -> Iterable[dict[str, Any]]:
    """A replayed graph against the same step op by op, and a run against itself: to the bit."""
    batch, net = batch_of((20,), 5, 16), "dense 24 tanh | dense 12 tanh | dense 5"
    for label, make in variants().items():
        row = {"what": f"replay {label}", "dtype": "float32", "limit": 0.0}
        try:
            first, engine = stepped(backend, make(), net, batch, "float32", 5)
            again, _ = stepped(backend, make(), net, batch, "float32", 5)
            if engine.tapes is not None:
                engine.tapes.why = "to compare"
            state = engine.init(0)
            for _ in range(5):
                engine.step(state, batch)
        except FFLearnError as e:
            yield row | {"refused": str(e), "ok": True}
            continue
        slow = {n: engine.kernels.host(a) for n, a in state.arrays().items()}
        same = all(a.tobytes() == again[n].tobytes() == slow[n].tobytes() for n, a in first.items())
        yield row | {"off": worst(first, slow), "ok": same}


# ---- times -------------------------------------------------------------------------------------------


def race(case: tuple[Any, ...], rounds: int, seconds: float) -> dict[str, Any]:
    """Seconds per step of a rule and of PyTorch's backpropagation on the same network."""
    name, net, shape, rows, rule, backend, tf32 = case
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    batch = batch_of(shape, 10, rows)
    engine = Engine(net, registry.rule(rule), shape, 10, optimizer("sgd", lr=1e-3), backend=backend)
    k, state = engine.kernels, engine.init(0)
    placed = batch._replace(x=k.asarray(batch.x), y=k.asarray(batch.y))
    turns: dict[str, Callable[[], Any]] = {rule: lambda: engine.step(state, placed)}
    turns |= torch_steps(net, shape, batch)
    row = {"what": name, "rule": rule, "backend": backend, "net": net, "batch": rows}
    times = {n: timed(step, rounds, seconds, torch.cuda.synchronize) for n, step in turns.items()}
    row |= {"name": name, **against(times), "goal": GOAL}
    return row | summary(times) | {"op_by_op": engine.tapes.why if engine.tapes else "eager"}


def torch_steps(net: Any, shape: tuple[int, ...], batch: Batch) -> dict[str, Callable[[], Any]]:
    """A step of backpropagation: eager, compiled, as a CUDA graph."""
    import torch

    from benchmarks.autograd import built

    reference = Engine(net, registry.rule("backprop"), shape, 10, optimizer("sgd", lr=1e-3))
    x = torch.from_numpy(batch.x).cuda()
    labels = torch.from_numpy(batch.y.argmax(axis=1)).cuda()
    if x.ndim == 4:  # channels last, as our memory is
        x = x.permute(0, 3, 1, 2)

    def step_of(change: Callable[[Any], Any] = lambda model: model) -> Callable[[], Any]:
        model = built(reference).cuda().train()
        if x.ndim == 4:
            model = model.to(memory_format=torch.channels_last)
        sgd, called = torch.optim.SGD(model.parameters(), 1e-3, fused=True), change(model)

        def step() -> Any:
            sgd.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(called(x), labels)
            loss.backward()
            sgd.step()
            return loss

        return step

    steps = {"torch eager": step_of(), "torch compile": step_of(torch.compile)}
    return steps | {"torch graph": captured(step_of())}


def captured(step: Callable[[], Any]) -> Callable[[], Any]:
    """A PyTorch step as a CUDA graph, as its documentation says how."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def timed(
    step: Callable[[], Any], rounds: int, seconds: float, wait: Callable[[], Any]
) -> list[float]:
    """Seconds per step of each round; the device has finished at both ends of a round."""
    for _ in range(5):
        step()
    wait()
    start = time.perf_counter()
    step()
    wait()
    n = max(1, min(2000, round(seconds / (time.perf_counter() - start))))
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(n):
            step()
        wait()
        found.append((time.perf_counter() - start) / n)
    return found


def summary(times: Mapping[str, list[float]]) -> dict[str, Any]:
    """Medians in microseconds, and each one's over the first.

    Examples
    --------
    >>> summary({"a": [2e-6, 1e-6, 3e-6], "b": [1e-6]})["over first"]
    {'a': 1.0, 'b': 0.5}
    """
    median = {n: statistics.median(t) * 1e6 for n, t in times.items()}
    first = next(iter(median.values()))
    return {"microseconds": median, "over first": {n: m / first for n, m in median.items()}}


def against(times: Mapping[str, list[float]]) -> dict[str, Any]:
    """The first's median in milliseconds, and over the median of the fastest other.

    Examples
    --------
    >>> against({"a": [0.002], "b": [0.004], "c": [0.001]})
    {'median_ms': 2.0, 'ratio': 2.0, 'against': 'c'}
    """
    mine, *others = times
    median = {n: statistics.median(t) for n, t in times.items()}
    best = min(others, key=lambda n: median[n])
    ratio = median[mine] / median[best]
    return {"median_ms": median[mine] * 1e3, "ratio": ratio, "against": best}


def bandwidth(backend: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Bytes per second of an elementwise kernel, over those of a copy."""
    k, size = kernels.load(backend), 1 << 26
    with k.running(1):
        x = k.asarray(np.ones(size, np.float32))
        y = k.asarray(np.ones(size, np.float32))

        def copy() -> None:
            y[...] = x

        wait = k.device.stream.synchronize
        turns = {"copy": copy, "relu": lambda: k.act(x, "relu")}
        times = {n: timed(step, rounds, seconds, wait) for n, step in turns.items()}
    rate = {n: 2 * x.nbytes / statistics.median(t) / 1e9 for n, t in times.items()}
    return {"what": "bandwidth", "gigabytes per second": rate, "share": rate["relu"] / rate["copy"]}


def memory(backend: str) -> Iterable[dict[str, Any]]:
    """Bytes of a step over depth, parameters left out: forward-forward's, backpropagation's."""
    for rule in ("forward_forward[head=false,negatives=wrong]", "backprop"):
        held = {}
        for depth in DEPTHS:
            net = " | ".join(["dense 256 relu"] * depth + ["dense 10"])
            built = registry.build(registry.parse(rule))
            engine = Engine(net, built, (256,), 10, optimizer("sgd", lr=1e-3), backend=backend)
            state = engine.init(0)
            batch = batch_of((256,), 10, 4096)
            with engine.kernels.running(1):
                held[depth] = engine.kernels.device.peak(partial(engine.step, state, batch))
        yield {"what": f"memory {rule}", "bytes by depth": held}


# ---- the whole -----------------------------------------------------------------------------------------


def measured(backend: str, rounds: int, seconds: float, limit: float) -> dict[str, Any]:
    """All of it, as JSON."""
    start, left_out = time.perf_counter(), []
    out: dict[str, Any] = {**header("gpu", 1), "goal": GOAL, "rows": []}
    out["machine"] |= {"gpu": kernels.load(backend).device.title()}
    out |= {"numbers": [], "times": [], "left_out": left_out}

    def gather(to: list[Any], name: str, rows: Iterable[Any]) -> None:
        for row in rows:
            to.append(row)
            if time.perf_counter() - start > limit:
                left_out.append(f"{name} after {row['what']}")
                return

    gather(out["numbers"], "kernels", of_kernels(backend))
    gather(out["numbers"], "layers", of_layers(backend))
    gather(out["numbers"], "rules", of_rules(backend))
    gather(out["numbers"], "replay", of_replay(backend))
    gather(out["times"], "bandwidth", iter([bandwidth(backend, rounds, seconds)]))
    gather(out["times"], "memory", memory(backend))
    gather(out["rows"], "steps", (race(case, rounds, seconds) for case in RACES))
    return out


def told(result: Mapping[str, Any]) -> str:
    """What failed, and the times, as text."""
    rows = result["numbers"]
    bad = [r for r in rows if not r["ok"]]
    lines = [f"{len(rows)} comparisons with the CPU, {len(bad)} beyond their limit"]
    lines += [f"  {r['what']} {r['dtype']}: {r['off']:.2g} > {r['limit']:g}" for r in bad]
    for r in [*result["times"], *result["rows"]]:
        numbers = {n: v for n, v in r.items() if isinstance(v, (dict, float))}
        lines.append(f"{r['what']}: {numbers}")
    lines += [f"left out: {what}" for what in result["left_out"]]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; the exit code: 1 where a number is off, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a round")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for all of it")
    parser.add_argument("--json", type=Path, default=RESULT)
    given = parser.parse_args(arguments)
    try:
        kernels.load(given.backend)
    except BackendUnavailable as e:
        print(f"benchmarks.gpu: {e}", file=sys.stderr)
        return 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = measured(given.backend, given.rounds, given.seconds, 0.8 * given.limit)
    save(given.json, result)
    print(told(result))
    return int(any(not row["ok"] for row in result["numbers"]))


if __name__ == "__main__":
    raise SystemExit(main())
