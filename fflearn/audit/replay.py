"""Each layer again, alone, in a process that never saw the others: ``python -m fflearn.audit.replay``.

The process gets a layer's parameters, the rule's arrays in it, and its mail; no file, socket or
program can be opened while the hooks run.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fflearn.audit.transcript import SentSignals, Transcript
from fflearn.base import LayerView, Signals, Update
from fflearn.registry import Variant
from fflearn.training import make_engine

AUTOGRAD = ("torch", "jax", "tensorflow", "autograd", "tinygrad")  # packages that differentiate
REFUSED = ("open", "socket", "subprocess", "os.", "shutil", "ctypes", "mmap", "winreg", "urllib")
MODULES = (".py", ".pyc", ".so", ".pyd")
# What finds programs, and what chooses a product's kernel and so its last bit.
KEPT = ("PATH", "HOME", "SYSTEMROOT", "LD_", "OMP_", "OPENBLAS_", "MKL_", "NPY_", "NUMBA_")


class Mail:
    """All that one layer is given in the replay; it can be pickled."""

    def __init__(self, variant: Variant, engine: Any, transcript: Transcript, layer: int):
        self.variant, self.layer, self.net = variant, layer, engine.given.spec()
        self.in_shape, self.n_classes = engine.in_shape, engine.n_classes
        self.objective, self.dtype, self.task = engine.objective, engine.dtype, engine.task
        self.params, self.aux = transcript.params[layer], transcript.aux[layer]
        self.key, self.env = transcript.keys[layer], transcript.environments[layer]
        self.stage = transcript.variant
        self.calls = [c for c in transcript.calls if c.layer == layer]
        self.expected = formed(engine.kernels, transcript.updates[layer])
        self.imported: list[str] = []

    def difference(self) -> str:
        """What is learned otherwise when the hooks run again; empty if nothing is."""
        engine = make_engine(
            self.net,
            self.variant,
            self.in_shape,
            self.n_classes,
            objective=self.objective,
            backend="reference",
            dtype=self.dtype,
            task=self.task,
        )
        k, spec = engine.kernels, engine.specs[self.layer]
        env = self.env
        if env.key is not None:
            env = env._replace(key=env.key.using(k))
        view = LayerView(
            spec,
            engine.net.leaves[self.layer],
            _read_only(self.params),
            _read_only(self.aux),
            k,
            self.key.using(k),
            engine.rule.channels,
            self.stage,
            env,
        )
        update = Update()
        with k.running(engine.threads):
            _shut(self.imported)
            for call in self.calls:
                args = [
                    Signals(a.named, a.top, None, spec) if isinstance(a, SentSignals) else a
                    for a in call.args
                ]
                out = getattr(engine.rule, call.hook)(view, *args)
                if call.hook == "update":
                    update = out
        found = formed(k, update)
        if found.keys() != self.expected.keys():
            return f"it learns {sorted(found)} where it learned {sorted(self.expected)}"
        differ = [n for n in found if found[n].tobytes() != self.expected[n].tobytes()]
        return f"other bits in {', '.join(differ)}" if differ else ""


def formed(k: Any, u: Update) -> dict[str, np.ndarray]:
    """All arrays of an update, gradients formed, as "part/name"."""
    return {
        f"{part}/{name}": np.asarray(k.formed(g))
        for part, tensors in u._asdict().items()
        for name, g in tensors.items()
    }


class Replay(NamedTuple):
    """What came of one layer's replay.

    Attributes
    ----------
    difference : str
        Empty if it learned the same bits.
    autograd : bool
        Its hooks loaded a package that differentiates.
    """

    difference: str
    autograd: bool


def replayed(mail: Sequence[Mail]) -> list[Replay]:
    """The replay of every layer, each alone."""
    together = hasattr(os, "fork")  # one program that forks before it has seen a layer's mail
    jobs = [mail] if together else [[m] for m in mail]
    env = {n: value for n, value in os.environ.items() if n.startswith(KEPT)}
    env["PYTHONPATH"] = os.pathsep.join(p or os.getcwd() for p in sys.path)
    found: list[Replay] = []
    for job in jobs:
        done = subprocess.run(
            [sys.executable, "-m", "fflearn.audit.replay"],
            input=pickle.dumps([pickle.dumps(m) for m in job]),
            capture_output=True,
            env=env,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the replay ended early: {done.stderr.decode()[-2000:]}")
        found += [Replay(*one) for one in json.loads(done.stdout)]
    return found


def _read_only(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for a in arrays.values():
        a.flags.writeable = False
    return arrays


def _shut(imported: list[str]) -> None:
    """From here on the process can only compute, and read modules and what came with them.

    Packages that differentiate are noted in ``imported``, though their import may well fail.
    """

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        if event == "import" and args[0].partition(".")[0] in AUTOGRAD:
            imported.append(args[0])
        if not event.startswith(REFUSED):
            return
        installed = event == "open" and _installed(str(args[0])) and args[1] in ("r", "rb", None)
        listing = event in ("os.listdir", "os.scandir")  # an import looks for its file
        if not installed and not listing:
            raise PermissionError(
                f"a hook tried {event} {args[:1]}: a layer alone can only compute"
            )

    sys.addaudithook(refuse)


def _installed(path: str) -> bool:
    return path.endswith(MODULES) or path.startswith((sys.prefix, sys.base_prefix))


def _alone(packed: bytes) -> str:
    """The replay of one layer as JSON, its mistakes as words."""
    mail = pickle.loads(packed)
    try:
        found = mail.difference()
    except Exception as e:  # noqa: BLE001 - whatever a hook raises is what was found
        found = f"{type(e).__name__}: {e}"
    return json.dumps(Replay(found[:2000], bool(mail.imported)))


def _forked(packed: bytes) -> str:
    """The replay of one layer in a copy of this process, which has seen none."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        os.write(write, _alone(packed).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return json.dumps(Replay(f"it ended with status {status}", False)) if status else text


def main() -> None:
    """Mail on standard input, differences as a JSON list on standard output."""
    jobs = pickle.load(sys.stdin.buffer)
    run = _forked if hasattr(os, "fork") else _alone
    print(f"[{', '.join(run(packed) for packed in jobs)}]")


if __name__ == "__main__":
    main()
