"""The cluster file: what it may say, and what every silence means."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from dask.utils import parse_bytes
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ketanet.errors import InputError
from ketanet.toml_settings import expand_variables, in_words, read_toml

_WALLTIME = re.compile(r"(?:(\d+)-)?(\d{1,3}):(\d{2}):(\d{2})")
_KIND: Final = "kind"
_COUNTS: Final = ("workers", "cores", "minimum", "maximum", "wait_seconds", "idle_seconds")


def walltime_seconds(text: str) -> int:
    """Seconds of ``[days-]hours:minutes:seconds``."""
    match = _WALLTIME.fullmatch(text)
    if match is None:
        raise ValueError("it should be [days-]hours:minutes:seconds, such as 04:00:00")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return 86400 * days + 3600 * hours + 60 * minutes + seconds


def _bytes(text: str) -> str:
    try:
        size = parse_bytes(text)
    except (ValueError, OverflowError):
        size = 0
    if size < 2**20:
        raise ValueError("it should be bytes of memory, such as 16 GB")
    return text


def _walltime(text: str) -> str:
    if walltime_seconds(text) < 60:
        raise ValueError("it should be a minute at least")
    return text


Memory = Annotated[str, AfterValidator(_bytes)]
Walltime = Annotated[str, AfterValidator(_walltime)]


class _Block(BaseModel):
    # what a field means stands below it
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator(*_COUNTS, mode="before", check_fields=False)
    @classmethod
    def _no_truth(cls, given: Any) -> Any:
        if isinstance(given, bool):
            raise ValueError(f"it should be a number, not {str(given).lower()}")
        return given


class Adaptive(_Block):
    """Bounds between which workers come and go with the work."""

    minimum: Annotated[int, Field(ge=0)] = 0
    """Fewest workers."""
    maximum: Annotated[int, Field(ge=1)]
    """Most workers."""

    @model_validator(mode="after")
    def _in_order(self) -> Adaptive:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is more than maximum {self.maximum}")
        return self


class Tls(_Block):
    """Certificates that client, scheduler and workers know each other by; ``ketanet cluster certs DIR`` makes them."""

    ca: str
    """Certificate of the authority (PEM)."""
    cert: str
    """Own certificate (PEM)."""
    key: str
    """Key of the own certificate (PEM)."""


class Processes(_Block):
    """Worker processes on this machine."""

    kind: Literal["processes"]
    """What starts the workers."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Processes; default the CPU cores this process may use."""
    memory: Memory | None = None
    """Memory of one process; default a fair part of the machine's."""
    scratch: str | None = None
    """Folder for what does not fit into memory; default the folder for temporary files."""
    tls: Tls | None = None
    """Certificates; default none, everything stays on the loopback."""


class Address(_Block):
    """A scheduler that runs already."""

    kind: Literal["address"]
    """What starts the workers: nothing, they are there."""
    address: str | None = None
    """Address of the scheduler, such as ``tls://10.0.0.1:8786``."""
    scheduler_file: str | None = None
    """File that the scheduler wrote its address to (``dask scheduler --scheduler-file``)."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Workers to wait for before anything is computed."""
    wait_seconds: Annotated[int, Field(ge=1)] = 300
    """How long to wait for them."""
    tls: Tls | None = None
    """Certificates; needed for a ``tls://`` address."""

    @model_validator(mode="after")
    def _one_place(self) -> Address:
        if (self.address is None) == (self.scheduler_file is None):
            raise ValueError("either 'address' or 'scheduler_file' is needed, not both")
        if (self.address or "").startswith("tls://") and self.tls is None:
            raise ValueError("a tls:// address needs a block [tls] with ca, cert and key")
        return self


class _Jobs(_Block):
    """What clusters of jobs share."""

    workers: Annotated[int, Field(ge=1)] | None = None
    """Jobs, a fixed number of them; or a block [adaptive]."""
    adaptive: Adaptive | None = None
    """Jobs come and go between these bounds."""
    cores: Annotated[int, Field(ge=1)]
    """CPU cores of a job; each core computes one task at a time."""
    memory: Memory
    """Memory of a job."""

    @model_validator(mode="after")
    def _so_many(self) -> _Jobs:
        if (self.workers is None) == (self.adaptive is None):
            raise ValueError("either 'workers' or a block [adaptive] is needed, not both")
        return self

    @property
    def most(self) -> int:
        """Most jobs at a time."""
        return self.workers or (self.adaptive.maximum if self.adaptive else 1)


class Slurm(_Jobs):
    """Jobs of a SLURM site, each with one worker process a core."""

    kind: Literal["slurm"]
    """What starts the workers."""
    walltime: Walltime = "01:00:00"
    """Time limit of a job; workers end somewhat earlier by themselves, and hand over what they hold."""
    queue: str | None = None
    """Partition; default the site's."""
    account: str | None = None
    """Account that is charged; default the user's."""
    prologue: list[str] = []
    """Lines of shell that a job runs first, such as ``module load python``."""
    directives: list[str] = []
    """Further options of sbatch, such as ``--constraint=skylake``."""
    python: str | None = None
    """Python of the workers; default the one that runs ketanet. It must be there on the nodes."""
    scratch: str | None = None
    """Folder on the node for what does not fit into memory; variables of the node expand there."""
    interface: str | None = None
    """Network interface that scheduler and workers meet on, such as ``ib0``; default the one that routes outwards."""
    logs: str = "slurm-logs"
    """Folder for what jobs print."""
    tls: Tls | None = None
    """Certificates; default some made for this run alone, in the folder of the logs, readable by its owner only."""
    encrypt: bool = True
    """Whether scheduler and workers speak TLS at all."""


class Kubernetes(_Jobs):
    """Pods of a Kubernetes cluster, by the operator of dask-kubernetes."""

    kind: Literal["kubernetes"]
    """What starts the workers."""
    name: Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$")] = "ketanet"
    """Name of the Dask cluster."""
    namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")] = "default"
    """Namespace of its pods."""
    operator_namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")] = "dask-operator"
    """Namespace of the Dask operator, which the network policy lets in: it adds and removes workers."""
    image: str
    """Container image with its tag or digest; ``cluster/Dockerfile`` makes one."""
    spot: bool = False
    """Whether workers may run on nodes that are taken away at any time."""
    secret: Annotated[str, Field(pattern=r"^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$")] | None = None
    """Secret with the credentials of the object store, as environment variables."""
    idle_seconds: Annotated[int, Field(ge=60)] = 3600
    """The cluster is deleted once it had nothing to do for so long: what a run that died leaves costs no more."""

    @model_validator(mode="after")
    def _one_version(self) -> Kubernetes:
        tag = self.image.rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in self.image and tag in ("", "latest"):
            raise ValueError(
                f"image {self.image!r} may be another one tomorrow; add its tag (not latest) or its @sha256: digest"
            )
        return self


Cluster = Processes | Address | Slurm | Kubernetes

KINDS: Final[dict[str, type[BaseModel]]] = {
    "processes": Processes,
    "address": Address,
    "slurm": Slurm,
    "kubernetes": Kubernetes,
}


def load_cluster(path: str | os.PathLike[str]) -> Cluster:
    """Read a cluster file.

    Parameters
    ----------
    path : path
        TOML. ``${NAME}`` stands for the environment variable, but in `prologue`, `directives` and the `scratch` of
        nodes, which these expand; paths of certificates are relative to the file.

    Raises
    ------
    InputError
        The file is missing or no TOML, or holds an unknown key (the nearest known one is named) or a bad value.
    """
    path = Path(path)
    given = read_toml(path, "cluster file")
    kind = given.get(_KIND)
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"{path}: kind is {kind!r}; known: {', '.join(KINDS)}")
    model = KINDS[kind]
    try:
        found = model.model_validate(_expanded(given, str(path)))
    except ValidationError as error:
        raise InputError(f"{path}: {in_words(error, model)}") from error
    return _with_paths(found, path.parent.absolute())  # type: ignore[arg-type]


def _expanded(given: dict[str, Any], source: str) -> dict[str, Any]:
    # nodes expand these themselves
    kept = ("prologue", "directives", "scratch") if given[_KIND] != "processes" else ()

    def expanded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: expanded(inner) for key, inner in value.items()}
        return expand_variables(value, source) if isinstance(value, str) else value

    return {key: value if key in kept else expanded(value) for key, value in given.items()}


def _with_paths(cluster: Cluster, folder: Path) -> Cluster:
    """The cluster with absolute paths; a missing certificate is refused."""
    changes: dict[str, Any] = {}
    tls = getattr(cluster, "tls", None)
    if tls is not None:
        files = {name: str(folder / Path(getattr(tls, name)).expanduser()) for name in ("ca", "cert", "key")}
        for name, file in files.items():
            if not Path(file).is_file():
                raise InputError(f"tls.{name}: there is no file {file}; ketanet cluster certs DIR makes certificates")
        changes["tls"] = Tls(**files)
    if isinstance(cluster, Address) and cluster.scheduler_file:
        changes["scheduler_file"] = str(folder / Path(cluster.scheduler_file).expanduser())
    if isinstance(cluster, Processes) and cluster.scratch:
        changes["scratch"] = str(Path(cluster.scratch).expanduser().absolute())
    if isinstance(cluster, Slurm):
        changes["logs"] = str(Path(cluster.logs).expanduser().absolute())
    return cluster.model_copy(update=changes)
