"""Work on a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fflearn.errors import MissingExtra, SpecError
from fflearn.fingerprint import installed

LOCAL = "local"
SECONDS = 20  # to reach a scheduler


def spread(
    cluster: str,
    jobs: int,
    work: Callable[[Any, Any], Any],
    pairs: Sequence[tuple[Any, Any]],
    files: Iterable[Path] = (),
) -> list[Any]:
    """``work(one, other)`` of each pair by the workers of a cluster, in the order of the pairs.

    Parameters
    ----------
    cluster : str
        The address of a Dask scheduler, or "local" for ``jobs`` processes on this machine.
    work : callable
        Importable by the workers.
    pairs : sequence of (object, object)
        The second ones are shared: each is sent to every worker once.
    files : iterable of Path
        What the workers must find under the same path.

    Raises
    ------
    MissingExtra
        Dask is not installed.
    SpecError
        No scheduler answers, it has no workers, or such with several threads, or that do not see
        the files.
    """
    with _client(cluster, jobs) as client:
        for worker, lacking in client.run(_lacking, [str(path) for path in files]).items():
            if lacking:
                raise SpecError(
                    f"the worker {worker} does not see {', '.join(lacking)}. Use paths that are the "
                    f"same on all machines, of files that they share."
                )
        shared = {id(other): other for _, other in pairs}
        sent = {i: client.scatter(other, broadcast=True) for i, other in shared.items()}
        return client.gather([client.submit(work, a, sent[id(b)], pure=False) for a, b in pairs])


@contextmanager
def _client(cluster: str, jobs: int) -> Iterator[Any]:
    if not installed("distributed"):
        raise MissingExtra.of("dask[distributed]", "sweep", "a comparison on a cluster")
    if cluster != LOCAL and jobs > 1:
        raise SpecError(f"{cluster} has the workers it has, not {jobs}: leave jobs at 1.")
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        if cluster == LOCAL:
            made = LocalCluster(
                n_workers=jobs, threads_per_worker=1, dashboard_address="127.0.0.1:0"
            )
            cluster = stack.enter_context(made).scheduler_address
        try:
            client = stack.enter_context(Client(cluster, timeout=SECONDS))
        except (OSError, ValueError) as e:
            raise SpecError(
                f"no Dask scheduler answers at {cluster}: {e}. Start one with: dask scheduler"
            ) from e
        if set(client.ncores().values()) != {1}:  # runs in threads would share what a process sets
            raise SpecError(
                f"{cluster} needs workers, each with one thread; it has {dict(client.ncores())}. "
                f"Start them with: dask worker {cluster} --nworkers auto --nthreads 1"
            )
        yield client


def _lacking(paths: list[str]) -> list[str]:
    return [path for path in paths if not Path(path).exists()]
