"""The one parallel loop: a kernel hands it a function, how often to call it, and with what.

Numba compiles a `prange` at great length and in every kernel anew.  Here it is compiled once, on
functions by address.
"""

from __future__ import annotations

import functools

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.ufunc.parallel import _launch_threads

from fflearn.kernels.jit import native

_NAME = "fflearn_team"
_team = np.zeros(1, np.int64)  # the address of the compiled loop; 0 until threads are wanted
llvm.add_symbol(_NAME, _team.ctypes.data)


@intrinsic
def _call(typing, function, given, t):
    """function(given, t) by address."""

    def codegen(context, builder, signature, args):
        i64 = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [i64, i64]).as_pointer()
        builder.call(builder.inttoptr(args[0], kind), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


def _loop(function, given, n):
    for t in prange(n):
        _call(function, given, t)


@functools.cache
def gather() -> None:
    """Start the threads: from here on `spread` uses as many as Numba is told to."""
    _launch_threads()  # a parallel loop looks for them when it is loaded
    signature = types.void(types.int64, types.int64, types.int64)
    _team[0] = native(signature, parallel=True)(_loop).address


@intrinsic
def spread(typing, function, n, small, given):
    """function(t, *given) for t = 0 .. n - 1, shared out to the threads unless ``small``.

    ``function`` is compiled code that returns nothing and raises nothing: what it did raise would
    be lost.  Its calls are the same whoever makes them, so the bits do not depend on the number of
    threads.
    """
    called = function.get_call_type(typing, (types.int64, *map(types.unliteral, given)), {})

    def codegen(context, builder, signature, args):
        result = function.dispatcher.get_compile_result(called)
        context.active_code_library.add_linking_library(result.library)
        i64, void, module = ir.IntType(64), ir.VoidType(), builder.module
        values = cgutils.alloca_once_value(builder, args[3])

        # One call of the function, as the loop makes it: with an address and a number.
        name = module.get_unique_name(f"{function.dispatcher.__name__}.one")
        one = ir.Function(module, ir.FunctionType(void, [i64, i64]), name)
        one.linkage = "internal"
        inside = ir.IRBuilder(one.append_basic_block())
        kept = inside.load(inside.inttoptr(one.args[0], values.type))
        passed = [
            context.cast(inside, inside.extract_value(kept, i), kind, wanted)
            for i, (kind, wanted) in enumerate(zip(given, called.args[1:], strict=True))
        ]
        context.call_conv.call_function(
            inside,
            context.declare_function(module, result.fndesc),
            called.return_type,
            called.args,
            [one.args[1], *passed],
        )
        inside.ret_void()

        place, n = builder.ptrtoint(values, i64), args[1]
        cell = module.globals.get(_NAME) or ir.GlobalVariable(module, i64, _NAME)
        team = builder.load(cell)
        alone = builder.icmp_unsigned("==", team, i64(0))
        alone = builder.or_(builder.or_(alone, args[2]), builder.icmp_signed("<", n, i64(2)))
        with builder.if_else(alone) as (then, otherwise):
            with then, cgutils.for_range(builder, n) as loop:
                builder.call(one, [place, loop.index])
            with otherwise:
                kind = ir.FunctionType(void, [i64, i64, i64]).as_pointer()
                address = builder.ptrtoint(one, i64)
                builder.call(builder.inttoptr(team, kind), [address, place, n])
        return context.get_dummy_value()

    return types.void(function, types.int64, types.boolean, given), codegen
