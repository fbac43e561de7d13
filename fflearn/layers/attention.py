"""Multi-head self-attention: the one layer in which the places of a sequence see each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fflearn.base import Env, Trace
from fflearn.errors import ShapeError, SpecError
from fflearn.kernels.reference import Product
from fflearn.layers import Layer


class Seen(NamedTuple):
    """What a forward leaves for the derivatives; h heads of d = D / h units."""

    q: Any  # (B, h, T, d)  queries over sqrt(d)
    k: Any  # (B, h, T, d)  keys
    v: Any  # (B, h, T, d)  values
    P: Any  # (B, h, T, T)  who looks (rows) at whom (columns); rows sum to 1
    c: Any  # (B, h, T, d)  P v


@dataclass(frozen=True)
class Attention(Layer):
    """``y = c Wo + bo``, ``c = softmax(q k^T / sqrt(d)) v`` per head: (B, T, D) -> (B, T, D).

    q = x Wq + bq, k = x Wk, v = x Wv + bv; all W (D, D), all b (D,).  The key has no bias: it
    would add the same number to a whole row of q k^T, which the softmax takes away again.

    Backwards, with dP = dc v^T:  dz = P (dP - rowsum(dP P)),  dq = dz k,  dk = dz^T q,  dv = P^T dc.

    Parameters
    ----------
    heads : int
        Number of heads h; it divides D.
    causal : bool
        Whether a place sees only itself and the places before it.
    bias : bool
        Whether there are bq, bv and bo, starting at 0.

    References
    ----------
    Vaswani et al. (2017), "Attention is all you need", arXiv:1706.03762, eq. 1 and section 3.2.2.
    rowsum(dP P) is taken as rowsum(dc c): Dao et al. (2022), arXiv:2205.14135, appendix B.2.
    """

    heads: int
    causal: bool = True
    bias: bool = True

    kind: ClassVar[str] = "attention"
    weights: ClassVar[tuple[str, ...]] = ("Wq", "Wk", "Wv", "Wo")
    words: ClassVar[tuple[str, ...]] = ("heads",)

    def __post_init__(self) -> None:
        if isinstance(self.heads, bool) or not isinstance(self.heads, int) or self.heads < 1:
            raise SpecError(
                f"attention needs a positive number of heads; got {self.heads!r}. Type attention 4"
            )

    @classmethod
    def examples(cls) -> list[tuple[Layer, tuple[int, ...]]]:
        free = cls(3, causal=False, bias=False)
        return [(cls(2), (5, 4)), (cls(1), (3, 5)), (free, (4, 6)), (cls(2), (1, 4))]

    @property
    def linear(self) -> bool:
        return False

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(in_shape) != 2 or in_shape[1] % self.heads:
            raise ShapeError(
                f"{self.spec()!r} needs a sequence (T, D) whose D is a multiple of {self.heads}; "
                f"its input has the shape {in_shape}. Put it after embed, or change the heads."
            )
        return in_shape

    def init(self, key: Any, in_shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        n, std = in_shape[-1], self.weight_std(in_shape)
        drawn = {w: key.fold(w).normal((n, n), dtype) * std[w] for w in self.weights}
        p = {w: a.astype(dtype, copy=False) for w, a in drawn.items()}
        return p | {b: np.zeros(n, dtype) for b in ("bq", "bv", "bo") if self.bias}

    def weight_std(self, in_shape: tuple[int, ...]) -> dict[str, float]:
        return dict.fromkeys(self.weights, 1 / math.sqrt(in_shape[-1]))

    def _split(self, rows: Any, like: Any) -> Any:
        """(B T, D) -> (B, h, T, d)."""
        return rows.reshape(*like.shape[:2], self.heads, -1).swapaxes(1, 2)

    def forward(self, k: Any, p: Mapping[str, Any], x: Any, env: Env, noise: Any = None) -> Trace:
        rows = _rows(x)

        def part(of: str) -> Any:
            return self._split(_affine(k, rows, p, of), x)

        q = part("q") * _scale(self.heads, x)
        key, v = part("k"), part("v")
        z = k.matmul_nt(q, key)
        if self.causal:
            z = np.where(k.constant(np.tri(x.shape[1], dtype=bool)), z, -np.inf)
        P = k.softmax(z)
        c = k.matmul(P, v)
        a = _affine(k, _joined(c), p, "o").reshape(x.shape)
        if noise is not None:
            a = a + noise
        return Trace(x, a, a, p, Seen(q, key, v, P, c))

    def _down(self, k: Any, t: Trace, da: Any) -> dict[str, Any]:
        """d loss / d a -> d loss / d (x Wq), d (x Wk), d (x Wv), each (B T, D)."""
        s = t.inner
        dc = self._split(k.matmul_nt(_rows(da), t.params["Wo"]), da)
        dz = s.P * (k.matmul_nt(dc, s.v) - (dc * s.c).sum(-1, keepdims=True))
        dq = k.matmul(dz, s.k) * _scale(self.heads, da)
        parts = {"q": dq, "k": k.matmul_tn(dz, s.q), "v": k.matmul_tn(s.P, dc)}
        return {of: _joined(d) for of, d in parts.items()}

    def param_vjp(self, k: Any, t: Trace, da: Any) -> dict[str, Any]:
        n, x = len(da), _rows(t.x)
        parts = self._down(k, t, da)
        g = {f"W{of}": Product(x, d, n) for of, d in parts.items()}
        g["Wo"] = Product(_joined(t.inner.c), _rows(da), n)
        parts["o"] = _rows(da)
        return g | {b: k.colmean(parts[b[1]], n) for b in ("bq", "bv", "bo") if self.bias}

    def input_vjp(self, k: Any, t: Trace, da: Any) -> Any:
        parts = self._down(k, t, da)
        dx = sum(k.matmul_nt(d, t.params[f"W{of}"]) for of, d in parts.items())
        return dx.reshape(t.x.shape)

    def jvp(self, k: Any, t: Trace, dx: Any, dp: Mapping[str, Any]) -> Any:
        s, x = t.inner, _rows(t.x)

        def part(of: str, rows: Any, drows: Any) -> Any:
            """Tangent of ``rows W + b``."""
            moved = np.zeros_like(rows)
            if f"W{of}" in dp:
                moved = moved + k.matmul(rows, dp[f"W{of}"])
            if f"b{of}" in dp:
                moved = moved + dp[f"b{of}"]
            if drows is not None:
                moved = moved + k.matmul(drows, t.params[f"W{of}"])
            return moved

        down = None if dx is None else _rows(dx)
        dq, dk, dv = (self._split(part(of, x, down), t.x) for of in "qkv")
        dz = k.matmul_nt(dq * _scale(self.heads, x), s.k) + k.matmul_nt(s.q, dk)
        dP = s.P * (dz - (s.P * dz).sum(-1, keepdims=True))
        dc = k.matmul(dP, s.v) + k.matmul(s.P, dv)
        return part("o", _joined(s.c), _joined(dc)).reshape(t.y.shape)


def _scale(heads: int, x: Any) -> float:
    """1 / sqrt(d)."""
    return math.sqrt(heads / x.shape[-1])


def _rows(x: Any) -> Any:
    """(B, T, D) -> (B T, D)."""
    return x.reshape(-1, x.shape[-1])


def _joined(heads: Any) -> Any:
    """(B, h, T, d) -> (B T, D)."""
    b, h, t, d = heads.shape
    return heads.swapaxes(1, 2).reshape(b * t, h * d)


def _affine(k: Any, rows: Any, p: Mapping[str, Any], of: str) -> Any:
    a, _ = k.dense(rows, p[f"W{of}"], p.get(f"b{of}"), "identity")
    return a
