"""Would products that skip silent units pay?  ``python -m benchmarks.sparse --data mnist``.

Two figures: the share of units that are not silent in layers that Forward-Forward has trained, and
the time of a product over active units alone beside the dense one, by that share.  The sparse
product is as fast as we could make it: rows of 128 numbers in registers, one load for each
multiply-add, rounded as the dense one.  It needs AVX-512.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, prange, types
from numba.extending import intrinsic

import fflearn
from benchmarks.cpu import pin
from benchmarks.machine import header, save, sentence
from benchmarks.timing import ratios, round_robin, spread, watched
from fflearn import kernels
from fflearn.emergence import activities
from fflearn.kernels import micro
from fflearn.kernels.micro import F32, I32, I64, LANES, VECTOR, ZERO

SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
ROWS, UNITS = 256, 1024
WIDE = 8 * LANES
NET = "dense 1000 relu | dense 1000 relu | dense 1000 relu | dense 10"


@intrinsic
def _row(typing, units, values, n, b, by_row, out):
    """out (128,) = the sum of n numbers times rows of b, by their index: raw addresses, n above 0."""
    word = types.intp

    def codegen(context, builder, sig, args):
        units, values, n, b, by_row, out = args
        at = VECTOR.as_pointer()
        fma = micro._function(builder, "llvm.fma.v16f32", VECTOR, VECTOR, VECTOR, VECTOR)
        before, block = builder.block, builder.function
        body, after = block.append_basic_block("row.k"), block.append_basic_block("row.end")
        builder.branch(body)
        builder.position_at_end(body)
        step, held = builder.phi(I64), [builder.phi(VECTOR) for _ in range(WIDE // LANES)]

        def number(of, kind):
            here = builder.add(of, builder.mul(step, I64(4)))
            return builder.load(builder.inttoptr(here, kind.as_pointer()))

        row = builder.add(b, builder.mul(builder.sext(number(units, I32), I64), by_row))
        x, new = micro._splat(builder, number(values, F32), VECTOR), []
        for v, was in enumerate(held):
            part = builder.load(builder.inttoptr(builder.add(row, I64(4 * LANES * v)), at))
            part.align = 4
            new.append(builder.call(fma, [x, part, was]))
            was.add_incoming(ZERO, before)
            was.add_incoming(new[-1], body)
        further = builder.add(step, I64(1))
        step.add_incoming(I64(0), before)
        step.add_incoming(further, body)
        builder.cbranch(builder.icmp_signed("<", further, n), body, after)
        builder.position_at_end(after)
        for v, part in enumerate(new):
            to = builder.add(out, I64(4 * LANES * v))
            builder.store(part, builder.inttoptr(to, at)).align = 4
        return context.get_dummy_value()

    return types.void(word, word, word, word, word, word), codegen


@njit(parallel=True, nogil=True)
def sparse_product(a, b, units, values, counts, out):
    """out = a b over the numbers of a that are not 0; units, values, counts are scratch."""
    for i in prange(len(a)):
        n = 0
        for k in range(a.shape[1]):
            if a[i, k] != 0:
                units[i, n], values[i, n] = k, a[i, k]
                n += 1
        counts[i] = n
    for t in prange(out.shape[1] // WIDE):
        for i in range(len(a)):
            if counts[i] > 0:
                _row(
                    units[i].ctypes.data,
                    values[i].ctypes.data,
                    counts[i],
                    b.ctypes.data + 4 * WIDE * t,
                    4 * out.shape[1],
                    out.ctypes.data + 4 * (i * out.shape[1] + WIDE * t),
                )
            else:
                out[i, WIDE * t : WIDE * t + WIDE] = 0


def product(share: float, threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Time of the sparse product over the dense one's, at a share of active units."""
    k, rng = kernels.load("numba"), np.random.default_rng(0)
    a = rng.normal(size=(ROWS, UNITS)) * (rng.random((ROWS, UNITS)) < share)
    a, b = a.astype(np.float32), rng.normal(size=(UNITS, UNITS)).astype(np.float32)
    units, values = np.empty(a.shape, np.int32), np.empty_like(a)
    counts, out = np.empty(ROWS, np.int64), np.empty_like(a)

    def dense(n: int) -> None:
        with k.running(threads):
            for _ in range(n):
                k.matmul(a, b)

    def sparse(n: int) -> None:
        with k.running(threads):
            for _ in range(n):
                sparse_product(a, b, units, values, counts, out)

    sparse(1)
    np.testing.assert_allclose(out, k.matmul(a, b), 1e-4, 1e-3)
    times = round_robin({"dense": dense, "sparse": sparse}, rounds, seconds)
    found = ratios(times["sparse"], times["dense"])
    about = {"share": share, "dense_ms": 1e3 * statistics.median(times["dense"])}
    return about | {"ratio": statistics.median(found), "ratio_spread": spread(found)}


def active(data: str, net: str, epochs: int) -> list[float]:
    """The share of hidden units that are not 0, layer by layer, on samples that were not trained on."""
    run = fflearn.train(net, "forward_forward", data, epochs=epochs)
    x, y = run.data.x_test[:500], np.eye(run.data.n_classes, dtype=np.float32)
    found = activities(run.engine, run.state, x, y[run.data.y_test[:500]])
    return [float((a != 0).mean()) for a in found.values()]


def show(result: Mapping[str, Any]) -> str:
    """The result as text."""
    layers = ", ".join(f"{share:.2f}" for share in result["active"])
    lines = [sentence(result["machine"]), f"active in {result['data']}, layer by layer: {layers}"]
    lines += [
        f"{r['share']:5.2f} {r['ratio']:6.2f} ({r['ratio_spread']:.2f})" for r in result["rows"]
    ]
    return "\n".join([*lines, *result["notes"]])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.sparse", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--data", default="digits", help="(%(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="(all cores)")
    parser.add_argument("--quick", action="store_true", help="small and short: does it run?")
    options = parser.parse_args(argv)
    if not micro.AVAILABLE:
        print("this benchmark needs a processor with AVX-512, and FFLEARN_CPU not to be portable.")
        return 2
    rounds, seconds, net = (
        (2, 0.002, "dense 32 relu | dense 10") if options.quick else (9, 0.2, NET)
    )
    notes: list[str] = []
    found = active(options.data, net, 1 if options.quick else options.epochs)
    pin(options.threads)
    with watched(notes):
        shares = SHARES[:2] if options.quick else SHARES
        rows = [product(share, options.threads, rounds, seconds) for share in shares]
    about = {"data": options.data, "epochs": options.epochs, "net": net, "active": found}
    about |= {"rows_of_product": ROWS, "units": UNITS}
    result = {**header("sparse", options.threads), **about, "rows": rows, "notes": notes}
    print(show(result))
    save(options.json, result)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_PROC_BIND", "true")
    raise SystemExit(main())
