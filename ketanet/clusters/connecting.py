"""Starting what computes, or reaching what runs already."""

from __future__ import annotations

import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dask.utils import parse_bytes

from ketanet import compute
from ketanet.clusters.settings import Address, Cluster, Kubernetes, Processes, Slurm, Tls, load_cluster
from ketanet.compute import Connection, Setting, available_cores
from ketanet.errors import InputError, KetanetError, KetanetWarning

_PLACES = (Path("cluster"), Path("~/.config/ketanet"))
"""Folders where a cluster file is looked for by its name alone."""

ALLOWED_FAILURES = 10
"""How often a task may go down with its worker before it is given up: jobs are preempted, and reach their walltime."""


def connect(where: str = "threads", *, workers: int | None = None) -> Connection:
    """Choose where computations run.

    Parameters
    ----------
    where : str
        ``"threads"`` (this process), ``"synchronous"`` (one thread, for debugging), ``"processes"`` (worker processes
        on this machine), the address of a running scheduler such as ``tls://10.0.0.1:8786``, a cluster file
        (``site.toml``), or the name of one in ``cluster/`` or ``~/.config/ketanet/``, such as ``"slurm"``.
    workers : int, optional
        Number of threads, processes or jobs; default: the CPU cores this process may use, or what the file says.

    Returns
    -------
    Connection
        Closing it (or leaving its ``with`` block) ends what was started here; a remote scheduler keeps running.

    Raises
    ------
    InputError
        The name is not known, the cluster file is not usable, or the scheduler does not answer.
    KetanetError
        What the file describes could not be started.

    Examples
    --------
    >>> with connect("threads", workers=2) as connection:
    ...     connection.workers
    2
    """
    if where in compute.PLAIN or "://" in where:
        connection = compute.connect(where, workers=workers)
        if "://" in where:
            warn_unencrypted(where)
        return connection
    path = find_cluster(where)
    cluster = load_cluster(path)
    if workers is not None:
        if workers < 1:
            raise InputError(f"workers is {workers}; at least 1 is needed")
        cluster = cluster.model_copy(update={"workers": workers, "adaptive": None})
    return start(cluster, str(path))


def find_cluster(name: str) -> Path:
    """The cluster file of a path or of a name.

    Raises
    ------
    InputError
        There is none.
    """
    path = Path(name).expanduser()
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise InputError(f"{name}: no such cluster file")
        return path
    found = [folder.expanduser() / f"{name}.toml" for folder in _PLACES]
    for candidate in found:
        if candidate.is_file():
            return candidate
    raise InputError(
        f"cluster {name!r} is not known; use {', '.join(compute.PLAIN)}, the address of a scheduler (tcp://host:port), "
        f"or a cluster file; there is none at {' or '.join(map(str, found))}"
    )


def start(cluster: Cluster, source: str) -> Connection:
    """Start what a cluster file describes; `source` names the file in messages."""
    if isinstance(cluster, Processes):
        return _processes(cluster, source)
    if isinstance(cluster, Address):
        return _address(cluster, source)
    if isinstance(cluster, Slurm):
        from ketanet.clusters.slurm import start_slurm

        return start_slurm(cluster, source)
    assert isinstance(cluster, Kubernetes)
    from ketanet.clusters.kubernetes import start_kubernetes

    return start_kubernetes(cluster, source)


def security_of(tls: Tls | None) -> Any:
    """Certificates as distributed wants them, the same for all three roles; None without.

    Raises
    ------
    InputError
        They cannot be read, or key and certificate are no pair.
    """
    if tls is None:
        return None
    import ssl

    from distributed import Security

    try:
        ssl.create_default_context(cafile=tls.ca).load_cert_chain(tls.cert, tls.key)
    except (OSError, ValueError) as error:  # those of ssl are among the former
        said = " ".join(str(error).split())[:200]
        raise InputError(
            f"[tls]: {tls.ca}, {tls.cert} and {tls.key} are no certificates that go together ({said}); "
            "ketanet cluster certs DIR makes some"
        ) from error
    own = {"cert": tls.cert, "key": tls.key}
    roles = {f"tls_{role}_{what}": path for role in ("client", "scheduler", "worker") for what, path in own.items()}
    return Security(tls_ca_file=tls.ca, require_encryption=True, **roles)


def patience() -> Setting:
    """Dask settings for clusters whose workers come and go."""
    import distributed  # noqa: F401  (its defaults must be there before: what is set is taken back by name)

    return Setting(
        **{
            "distributed.deploy.lost-worker-timeout": f"{compute.LOST_WORKER_SECONDS} s",
            "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
        }
    )


def warn_unencrypted(address: str) -> None:
    """Say so where a scheduler without TLS listens beyond the loopback."""
    parts = urlsplit(address)
    if parts.scheme in ("tcp", "ws", "ucx") and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        warnings.warn(
            f"the scheduler at {address} is open to the network without TLS: whoever reaches it can run code as you; "
            "make certificates (ketanet cluster certs DIR) and name them in a block [tls]",
            KetanetWarning,
            stacklevel=3,
        )


def _processes(cluster: Processes, source: str) -> Connection:
    count = cluster.workers or available_cores()
    memory = None if cluster.memory is None else parse_bytes(cluster.memory)
    if cluster.scratch is not None:
        try:
            Path(cluster.scratch).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{source}: scratch is {cluster.scratch}, which is no folder and cannot be made ({error.strerror}); "
                "name one that can be written"
            ) from error
    extra = {"memory_limit": memory, "local_directory": cluster.scratch, "security": security_of(cluster.tls)}
    return compute.connect_processes(
        count, name=source, memory=memory, options={k: v for k, v in extra.items() if v is not None}
    )


def _address(cluster: Address, source: str) -> Connection:
    from distributed import Client

    tried = cluster.address or f"the address in {cluster.scheduler_file}"
    security = security_of(cluster.tls)
    if cluster.address is not None:
        connection = compute.connect_address(cluster.address, security=security)
    else:
        assert cluster.scheduler_file is not None
        connection = compute.connect_address(_address_in(Path(cluster.scheduler_file), source), security=security)
    client = connection.client
    assert isinstance(client, Client)
    try:
        _wait_for_workers(client, cluster, source, tried)
        connection.refresh()
    except BaseException as error:
        with suppress(Exception):  # the first error is the one to tell
            connection.close()
        if isinstance(error, OSError):
            raise KetanetError(f"{source}: the scheduler at {tried} is gone; start it again, then run again") from error
        raise
    warn_unencrypted(str(connection.client.scheduler.address))
    return connection


def _wait_for_workers(client: Any, cluster: Address, source: str, tried: str) -> None:
    end = time.monotonic() + cluster.wait_seconds
    while (there := len(client.nthreads())) < cluster.workers:
        if time.monotonic() > end:
            raise InputError(
                f"{source}: {there} of {cluster.workers} workers have come to {tried} within {cluster.wait_seconds} s; "
                "start more, or lower 'workers'"
            )
        time.sleep(0.2)


def _address_in(path: Path, source: str) -> str:
    """Address that a scheduler wrote into a file."""
    import json

    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{source}: no scheduler has written its address to {path} ({type(error).__name__}); is it running?"
        ) from error
