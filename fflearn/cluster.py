"""Runs on a Dask cluster: joblib sends them there while `working_on` lasts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fflearn.errors import MissingExtra, SpecError
from fflearn.fingerprint import installed

LOCAL = "local"
SECONDS = 20  # to reach a scheduler


@contextmanager
def working_on(cluster: str, jobs: int, files: Iterable[Path], shared: list[Any]) -> Iterator[None]:
    """joblib works on a cluster.

    Parameters
    ----------
    cluster : str
        The address of a Dask scheduler, or "local" for ``jobs`` processes on this machine.
    files : iterable of Path
        What the workers must find under the same path: the folder of results, files of rules.
    shared : list
        Arguments that several runs take, sent to each worker once.

    Raises
    ------
    MissingExtra
        Dask is not installed.
    SpecError
        No scheduler answers, it has no workers, or they do not see the files.
    """
    if not installed("distributed"):
        raise MissingExtra.of("dask[distributed]", "sweep", "a comparison on a cluster")
    if cluster != LOCAL and jobs > 1:
        raise SpecError(f"{cluster} has the workers it has, not {jobs}: leave jobs at 1.")
    from distributed import Client, LocalCluster
    from joblib import parallel_config

    with ExitStack() as stack:
        if cluster == LOCAL:
            made = LocalCluster(
                n_workers=jobs, threads_per_worker=1, dashboard_address="127.0.0.1:0"
            )
            cluster = stack.enter_context(made)
        try:
            client = stack.enter_context(Client(cluster, timeout=SECONDS))
        except (OSError, ValueError) as e:
            raise SpecError(
                f"no Dask scheduler answers at {cluster}: {e}. Start one with: dask scheduler"
            ) from e
        if not client.ncores():
            raise SpecError(f"{cluster} has no workers. Start some with: dask worker {cluster}")
        lacking = client.run(_lacking, [str(path) for path in files])
        for worker, paths in lacking.items():
            if paths:
                raise SpecError(
                    f"the worker {worker} does not see {', '.join(paths)}. Use paths that are the "
                    f"same on all machines, of files that they share."
                )
        stack.enter_context(parallel_config("dask", scatter=shared))
        yield


def _lacking(paths: list[str]) -> list[str]:
    return [path for path in paths if not Path(path).exists()]
