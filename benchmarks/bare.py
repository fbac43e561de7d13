"""Steps of four rules as loops over kernels, with no views, no bus, no checks.

The same kernels on the same arrays in the same order as through the Engine, so the same bits;
the difference in time is what the Engine costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fflearn.base import ALONE, Batch, Key, Product
from fflearn.engine import Engine
from fflearn.labels import embedding
from fflearn.objectives.goodness import threshold
from fflearn.state import State

Step = Callable[[], Any]


def _layers(engine: Engine, state: State) -> list[tuple[Any, Any, str]]:
    pairs = zip(engine.net.leaves, state.params, strict=True)
    return [(p["W"], p["b"], layer.activation) for layer, p in pairs]


def _learner(engine: Engine, state: State) -> Callable[[int, Product, Any], None]:
    """Adam on both parameters of a layer, from its weights' gradient and da."""
    k, o = engine.kernels, engine.optimizer
    slots = [(dict(p), dict(m)) for p, m in zip(state.params, state.opt, strict=True)]
    numbers = o.lr, o.beta1, o.beta2, o.eps, o.weight_decay, o.decoupled

    def learn(i: int, product: Product, da: Any) -> None:
        p, opt = slots[i]
        t, g = state.step + 1, k.colmean(da, len(da))
        k.adam(p["W"], product, opt["m.W"], opt["v.W"], *numbers, t)
        k.adam(p["b"], g, opt["m.b"], opt["v.b"], *numbers, t)

    return learn


def backprop(engine: Engine, state: State, batch: Batch) -> Step:
    """As `fflearn.rules.backprop`."""
    k, layers, learn = engine.kernels, _layers(engine, state), _learner(engine, state)

    def step() -> Any:
        x, kept = batch.x, []
        for W, b, act in layers:
            _, y = k.dense(x, W, b, act, None, False)
            kept.append((x, y))
            x = y
        loss, dy = k.softmax_ce(x, batch.y)
        for i in reversed(range(len(layers))):
            W, _, act = layers[i]
            x, y = kept.pop()
            da = k.act_vjp(dy, None, y, act)
            if i:
                dy = k.matmul_nt(da, W)
            learn(i, Product(x, da, len(da)), da)
        state.step += 1
        return loss.mean(dtype=np.float64).astype(loss.dtype)

    return step


def dfa(engine: Engine, state: State, batch: Batch) -> Step:
    """As `fflearn.rules.dfa`."""
    k, layers, learn = engine.kernels, _layers(engine, state), _learner(engine, state)
    feedback = [aux["B"] for aux in state.aux[:-1]]

    def step() -> Any:
        x, kept = batch.x, []
        for W, b, act in layers:
            _, y = k.dense(x, W, b, act, None, False)
            kept.append((x, y))
            x = y
        loss, error = k.softmax_ce(x, batch.y)
        for i, (_, _, act) in enumerate(layers):
            x, y = kept[i]
            dy = k.matmul(error, feedback[i]) if i < len(feedback) else error
            da = k.act_vjp(dy, None, y, act, dy) if i < len(feedback) else error
            learn(i, Product(x, da, len(da)), da)
        state.step += 1
        return loss.mean(dtype=np.float64).astype(loss.dtype)

    return step


def forward_forward(engine: Engine, state: State, batch: Batch) -> Step:
    """As `fflearn.rules.forward_forward`, without head, negatives drawn from the wrong labels."""
    k, layers, learn = engine.kernels, _layers(engine, state), _learner(engine, state)
    rule, n, dtype = engine.rule, len(batch.x), batch.x.dtype
    embed = embedding(rule.label, engine.in_shape, engine.n_classes, rule.strength)
    negatives = Key(state.seed).fold("step", "negatives").static()
    phase = np.repeat(np.asarray([1, -1], dtype), n)
    means = [aux["mean_activity"] for aux in state.aux]
    first = engine.net.leaves[0]  # its rows share the samples
    thetas = [threshold(rule.norm, rule.goodness, math.prod(s.out_shape)) for s in engine.specs]

    def step() -> Any:
        u = k.uniform(negatives, state.step, (n,), np.float64)
        labels = np.concatenate([batch.y, k.sample_wrong(batch.y, u)])
        x, losses = embed.shown(batch.x, labels), []
        for i, (W, b, act) in enumerate(layers):
            if i == 0:
                t = first.forward(k, {"W": W, "b": b}, x, ALONE._replace(keeps=rule.keeps))
                y = t.y
            else:
                normal = k.normalize(x, rule.norm)
                _, y = k.dense(normal, W, b, act, None, False)
            loss, dg = k.logistic(k.goodness(y, rule.goodness), phase, thetas[i], rule.temperature)
            losses.append(loss.mean())
            dy = k.goodness_vjp(dg, y, rule.goodness)
            da = k.act_vjp(dy, None, y, act, dy)
            mean = 0.9 * means[i] + 0.1 * y[:n].mean(0)
            pull = (2 * rule.peer) * (mean - mean.mean())
            da[:n] += pull
            learn(i, first.param_vjp(k, t, da)["W"] if i == 0 else Product(normal, da, 2 * n), da)
            means[i][...] = mean
            x = y
        state.step += 1
        return sum(losses) / len(losses)

    return step


def dual_propagation(engine: Engine, state: State, batch: Batch) -> Step:
    """As `fflearn.rules.dual_propagation` in its fast form."""
    k, layers, learn = engine.kernels, _layers(engine, state), _learner(engine, state)
    beta, up = engine.rule.beta, 1 - engine.rule.alpha

    def step() -> Any:
        x, kept = batch.x, []
        for W, b, act in layers:
            a, y = k.dense(x, W, b, act)
            kept.append((x, a))
            x = y
        loss, dy = k.softmax_ce(x, batch.y)
        das = [dy] * len(layers)
        for i in reversed(range(len(layers))):
            (W, _, act), (_, a) = layers[i], kept[i]
            hi, lo = k.act(a - beta * up * dy, act), k.act(a + beta * (1 - up) * dy, act)
            das[i] = (lo - hi) / beta
            if i:
                dy = k.matmul_nt(das[i], W)
        for i, da in enumerate(das):
            learn(i, Product(kept[i][0], da, len(da)), da)
        state.step += 1
        return loss.mean(dtype=np.float64).astype(loss.dtype)

    return step


STEPS: dict[str, Callable[[Engine, State, Batch], Step]] = {
    "backprop": backprop,
    "dfa": dfa,
    "dual_propagation": dual_propagation,
    "forward_forward[head=false,negatives=wrong]": forward_forward,
}
