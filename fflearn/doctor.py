"""What this machine can run, and what to install for the rest."""

from __future__ import annotations

import os
from typing import Any

from fflearn import kernels, registry
from fflearn.data import fetch
from fflearn.errors import FFLearnError
from fflearn.fingerprint import installed, machine, versions

EXTRAS = {  # extra -> (module that shows it is there, what it is for)
    "torch": ("torch", "the reference path, rule 'torch'"),
    "gpu": ("cupy", "the backend 'cuda'"),
    "data": ("pooch", "downloading MNIST, Fashion-MNIST, KMNIST and CIFAR-10"),
    "plot": ("matplotlib", "the report of a comparison"),
    "sweep": ("optuna", "compare --tune by Optuna, and --cluster"),
    "test": ("pytest", "running the tests"),
}


def examine() -> dict[str, Any]:
    """Machine, versions, backends, extras and where data is looked for."""
    found: dict[str, Any] = {"machine": machine(), "versions": versions(), "backends": {}}
    for name in kernels.names():
        try:
            kernels.load(name)
            found["backends"][name] = "ok"
        except FFLearnError as e:
            found["backends"][name] = str(e)
    found["threading_layer"] = _threading_layer()
    found["op_by_op"] = _op_by_op()
    found["extras"] = {
        extra: "installed" if installed(module) else f'pip install "fflearn[{extra}]": {what}'
        for extra, (module, what) in EXTRAS.items()
    }
    found["data"] = {"FFLEARN_DATA": _own_data(), "cache": str(fetch.cache_folder())}
    return found


def _threading_layer() -> str:
    try:
        from fflearn.kernels.cpu import CpuKernels, threading_layer

        CpuKernels().uniform(0, 0, 1 << 16)  # numba chooses the layer at the first parallel loop
        return threading_layer()
    except ImportError as e:
        return f"none: {e}"


def _op_by_op() -> dict[str, str]:
    """Rules whose steps can be neither recorded nor captured, and why."""
    found = {}
    for name in registry.names():
        for label, settings in {"": {}, **registry.rule_class(name).variants}.items():
            if why := registry.rule(name, **settings).op_by_op:
                found[f"{name}[{label}]" if label else name] = why
    return found


def _own_data() -> str:
    try:
        fetch.user_folders("")
        return os.environ.get("FFLEARN_DATA", "")
    except FFLearnError as e:
        return str(e)


def shown(found: dict[str, Any]) -> str:
    """The examination as lines of text."""
    m = found["machine"]
    lines = [
        f"machine    {m['processor']}, {m['cores']} cores, {m['memory_gib']} GiB, {m['system']}"
    ]
    lines.append("versions   " + ", ".join(f"{n} {v}" for n, v in found["versions"].items()))
    lines += [f"backend    {name}: {state}" for name, state in found["backends"].items()]
    lines.append(f"threads    numba's layer: {found['threading_layer']}")
    if found["threading_layer"] == "workqueue":
        lines[-1] += (
            " (right, but loops start more slowly than with OpenMP, and steps on several threads "
            "take turns). Type: pip install tbb"
        )
    lines += [f"op by op   {rule}: {why}" for rule, why in found["op_by_op"].items()]
    lines += [f"extra      {name}: {state}" for name, state in found["extras"].items()]
    lines.append(f"data       FFLEARN_DATA: {found['data']['FFLEARN_DATA'] or 'not set'}")
    lines.append(f"data       cache: {found['data']['cache']}")
    return "\n".join(lines)
