"""Pods of a Kubernetes cluster as workers: described as manifests, started by the operator of dask-kubernetes."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from dask.utils import parse_bytes

from ketanet.clusters.connecting import ALLOWED_FAILURES, patience
from ketanet.clusters.settings import Kubernetes
from ketanet.compute import Connection
from ketanet.errors import InputError, KetanetError, KetanetWarning

LOOK_SECONDS: Final = 5.0
"""How often pods that should start are looked at."""
START_SECONDS: Final = 900
"""How long the scheduler may take to start: a cloud may have to add a node first."""
STUCK_SECONDS: Final = 60
"""How long a pod may say that it cannot start before it is believed."""
USER_ID: Final = 10001
"""The user inside the image, who owns nothing; ``cluster/Dockerfile`` makes it."""

_CLUSTER_LABEL: Final = "dask.org/cluster-name"  # the operator puts it on all pods of a Dask cluster
_COMPONENT_LABEL: Final = "dask.org/component"
_CLIENT_LABEL: Final = "ketanet-client"
_SCHEDULER_SIZE: Final = {"cpu": "1", "memory": "4Gi"}
_SCHEDULER_PORTS: Final = (8786, 8787)  # messages, HTTP
_DEATH_SECONDS: Final = 60
_GRACE_SECONDS: Final = 15  # what is left of the notice that a spot node gives, where it is shortest
_SPOT_LABELS: Final = (
    ("cloud.google.com/gke-spot", "true"),
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("karpenter.sh/capacity-type", "spot"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
)
"""How nodes of the clouds say that they may be taken away."""
_SPOT_TAINTS: Final = (("cloud.google.com/gke-spot", "true"), ("kubernetes.azure.com/scalesetpriority", "spot"))
_HTTP_ROUTES: Final = ("prometheus", "info", "json", "api")
_HOPELESS: Final = (
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
)


def kubernetes_manifests(cluster: Kubernetes) -> list[dict[str, Any]]:
    """What a cluster file asks of Kubernetes.

    A worker is one process with a thread for each core, for the operator retires workers by the names of their pods;
    a task may take the memory of a pod divided by its cores.

    Returns
    -------
    list of dict
        A NetworkPolicy, the DaskCluster, and a DaskAutoscaler where workers come and go.

    Raises
    ------
    InputError
        The package dask-kubernetes is not installed.
    """
    manifests = [_network_policy(cluster), _dask_cluster(cluster)]
    if cluster.adaptive is not None:
        bounds = {"minimum": cluster.adaptive.minimum, "maximum": cluster.adaptive.maximum}
        manifests.append(
            {
                "apiVersion": "kubernetes.dask.org/v1",
                "kind": "DaskAutoscaler",
                "metadata": _metadata(cluster, cluster.name),
                "spec": {"cluster": cluster.name, **bounds},
            }
        )
    return manifests


def kubernetes_yaml(cluster: Kubernetes) -> str:
    """The manifests as one YAML text, for ``kubectl apply -f``; see :func:`kubernetes_manifests`."""
    import yaml  # type: ignore[import-untyped]

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, _data: Any) -> bool:
            return True

    return "---\n".join(
        yaml.dump(manifest, Dumper=Dumper, sort_keys=False, width=120) for manifest in kubernetes_manifests(cluster)
    )


def start_kubernetes(cluster: Kubernetes, source: str) -> Connection:
    """Start the pods of a cluster file; workers join as the cluster finds room for them.

    Raises
    ------
    InputError
        dask-kubernetes is not installed, no Kubernetes cluster answers, it refuses, it lacks the operator of Dask, or
        a Dask cluster of this name runs already.
    KetanetError
        The scheduler does not start; what Kubernetes says about its pod is told.
    """
    policy, spec = kubernetes_manifests(cluster)[:2]
    closing: list[Any] = []
    try:
        with _in_one_line(source):
            _require_new(cluster, source)
            closing.append(_NetworkPolicy(policy))
            closing.append(_started(cluster, spec, source))
            made = closing[-1]
            if cluster.adaptive is not None:
                made.adapt(minimum=cluster.adaptive.minimum, maximum=cluster.adaptive.maximum)
        closing.insert(0, patience())
        _warn_unencrypted(policy["metadata"]["name"], source)
        from distributed import Client

        client = Client(made)
    except BaseException:
        for part in reversed(closing):
            with suppress(Exception):  # the first error is the one to tell
                part.close()
        raise
    return Connection(
        source,
        cluster.most * cluster.cores,
        closing,
        memory=parse_bytes(cluster.memory) // cluster.cores,
        client=client,
        explain=lambda error: _explained(error, cluster, source),
    )


def _warn_unencrypted(policy: str, source: str) -> None:
    warnings.warn(
        f"{source}: scheduler and workers speak without TLS inside Kubernetes, which the operator of Dask knows no "
        f"other way; the network policy {policy} keeps other pods out where the cluster's network enforces policies",
        KetanetWarning,
        stacklevel=4,
    )


def _explained(error: BaseException, cluster: Kubernetes, source: str) -> str | None:
    if type(error).__name__ != "KilledWorker":
        return None
    return (
        f"{source}: a task lost its worker again and again; the usual reason is memory: raise 'memory' (it is "
        f"{cluster.memory} a pod of {cluster.cores} cores), and look at 'kubectl describe pods -n {cluster.namespace} "
        f"-l {_CLUSTER_LABEL}={cluster.name}'"
    )


def _metadata(cluster: Kubernetes, name: str) -> dict[str, Any]:
    return {"name": name, "namespace": cluster.namespace, "labels": {"app.kubernetes.io/name": "ketanet"}}


def _dask_cluster(cluster: Kubernetes) -> dict[str, Any]:
    memory = parse_bytes(cluster.memory)
    made: dict[str, Any] = _library().make_cluster_spec(
        name=cluster.name,
        image=cluster.image,
        n_workers=cluster.workers if cluster.adaptive is None else cluster.adaptive.minimum,
        idle_timeout=cluster.idle_seconds,
        worker_command=[
            *("dask", "worker", "--nthreads", str(cluster.cores), "--memory-limit", str(memory)),
            *("--death-timeout", str(_DEATH_SECONDS), "--local-directory", "/tmp"),
        ],
    )
    made["metadata"] = _metadata(cluster, cluster.name)
    scheduler, worker = (made["spec"][part]["spec"] for part in ("scheduler", "worker"))
    _restrict(scheduler, _SCHEDULER_SIZE)
    _restrict(worker, {"cpu": str(cluster.cores), "memory": str(memory)})
    if cluster.secret is not None:
        worker["containers"][0]["envFrom"] = [{"secretRef": {"name": cluster.secret}}]
    # the library would call a script that newer versions of distributed have no more
    scheduler["containers"][0]["args"] = ["dask", "scheduler", "--host", "0.0.0.0"]
    routes = [f"distributed.http.scheduler.{name}" for name in _HTTP_ROUTES] + ["distributed.http.health"]
    scheduler["containers"][0]["env"] += [
        {"name": "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "value": str(ALLOWED_FAILURES)},
        # through these the operator asks how many workers are wanted, and retires some
        {"name": "DASK_DISTRIBUTED__SCHEDULER__HTTP__ROUTES", "value": str(routes)},
    ]
    worker["terminationGracePeriodSeconds"] = _GRACE_SECONDS
    worker["containers"][0]["livenessProbe"] = {
        "httpGet": {"port": "http-dashboard", "path": "/health"},
        "initialDelaySeconds": 60,
        "periodSeconds": 30,
        "timeoutSeconds": 10,
        "failureThreshold": 10,  # a worker that computes hard may answer late
    }
    if cluster.spot:
        _allow_spot(worker)
        _avoid_spot(scheduler)
    return made


def _restrict(pod: dict[str, Any], size: dict[str, str]) -> None:
    """Give a pod its size, and no right that it does not need; all it can write to is /tmp."""
    pod["automountServiceAccountToken"] = False
    pod["securityContext"] = {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    pod["volumes"] = [{"name": "scratch", "emptyDir": {}}]
    (container,) = pod["containers"]
    container["resources"] = {"requests": dict(size), "limits": dict(size)}
    container["env"] = []
    container["securityContext"] = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    container["volumeMounts"] = [{"name": "scratch", "mountPath": "/tmp"}]


def _allow_spot(pod: dict[str, Any]) -> None:
    """Tolerate the taints of spot nodes, and prefer these."""
    pod["tolerations"] = [
        {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"} for key, value in _SPOT_TAINTS
    ]
    pod["affinity"] = _preferring(
        [[{"key": key, "operator": "In", "values": [value]}] for key, value in _SPOT_LABELS],
    )


def _avoid_spot(pod: dict[str, Any]) -> None:
    """Prefer nodes that stay: a run ends with its scheduler."""
    pod["affinity"] = _preferring([[{"key": key, "operator": "NotIn", "values": [v]} for key, v in _SPOT_LABELS]])


def _preferring(choices: list[list[dict[str, Any]]]) -> dict[str, Any]:
    return {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 100, "preference": {"matchExpressions": expressions}} for expressions in choices
            ]
        }
    }


def _network_policy(cluster: Kubernetes) -> dict[str, Any]:
    """Who may reach scheduler and workers: each other, the client at the scheduler's ports, and the operator there."""
    own = {"podSelector": {"matchLabels": {_CLUSTER_LABEL: cluster.name}}}
    client = {"podSelector": {"matchLabels": {_CLIENT_LABEL: cluster.name}}}
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": cluster.operator_namespace}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "dask-kubernetes-operator"}},
    }
    ports = [{"protocol": "TCP", "port": port} for port in _SCHEDULER_PORTS]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(cluster, f"{cluster.name}-dask"),
        "spec": {
            **own,
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [own]}, {"from": [client, operator], "ports": ports}],
        },
    }


def _library() -> Any:
    try:
        from dask_kubernetes.operator.kubecluster import kubecluster  # type: ignore[import-untyped]
    except ImportError:
        raise InputError('Kubernetes needs the package dask-kubernetes: pip install "ketanet[k8s]"') from None
    return kubecluster


@contextmanager
def _in_one_line(source: str) -> Iterator[None]:
    """Turn what the libraries raise about a Kubernetes cluster into one line."""
    import httpx
    import kr8s

    library = _library()
    try:
        yield
    except KetanetError:
        raise
    except kr8s.ServerError as error:
        said = " ".join(str(error).split())[:300]
        if error.response is not None and error.response.status_code == 404:
            raise InputError(
                f"{source}: the operator of Dask is not installed in the Kubernetes cluster ({said}); install it, or "
                "have it installed: https://kubernetes.dask.org/en/latest/installing.html"
            ) from error
        raise InputError(f"{source}: Kubernetes refuses: {said}") from error
    except (httpx.TransportError, kr8s.APITimeoutError, kr8s.ConnectionClosedError) as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"{source}: the Kubernetes cluster does not answer ({said}); 'kubectl get pods' must work here first"
        ) from error
    except (ValueError, TimeoutError, RuntimeError, kr8s.NotFoundError, library.SchedulerStartupError) as error:
        if "credentials" in str(error):
            raise InputError(
                f"{source}: no Kubernetes cluster is known here; set KUBECONFIG, so that 'kubectl get pods' works"
            ) from error
        said = " ".join(" ".join(map(str, error.args)).split())[-300:]
        raise KetanetError(f"{source}: the Dask cluster does not start: {said}") from error


def _dask_cluster_of(cluster: Kubernetes) -> Any:
    from kr8s.objects import new_class

    kind = new_class("DaskCluster", "kubernetes.dask.org/v1", asyncio=False)
    return kind({"metadata": {"name": cluster.name, "namespace": cluster.namespace}})


def _require_new(cluster: Kubernetes, source: str) -> None:
    """Refuse to share the Dask cluster of another run."""
    if _dask_cluster_of(cluster).exists():
        raise InputError(
            f"{source}: a Dask cluster {cluster.name!r} is in namespace {cluster.namespace!r} already; choose another "
            f"'name', or end it: kubectl delete daskcluster {cluster.name} -n {cluster.namespace}"
        )


class _NetworkPolicy:
    """The policy of a run; one that a run which died left behind is replaced."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        from kr8s.objects import NetworkPolicy

        self._policy = NetworkPolicy(manifest)
        if self._policy.exists():
            self._policy.delete()
        self._policy.create()

    def close(self) -> None:
        _delete(self._policy)


def _delete(resource: Any) -> None:
    import kr8s

    with suppress(kr8s.NotFoundError):
        resource.delete()


def _started(cluster: Kubernetes, spec: dict[str, Any], source: str) -> Any:
    """Start the Dask cluster. The library would wait for ever for a pod that cannot start, so it waits on the side."""
    library = _library()
    made = library.KubeCluster.__new__(library.KubeCluster)
    failed: list[BaseException] = []

    def start() -> None:
        try:
            made.__init__(
                custom_cluster_spec=spec,
                namespace=cluster.namespace,
                create_mode=library.CreateMode.CREATE_ONLY,
                shutdown_on_close=True,
                quiet=True,
                # told so, the library does not look for the scheduler by name first, for 10 s each time
                port_forward_cluster_ip="KUBERNETES_SERVICE_HOST" not in os.environ,
            )
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=start, name="ketanet-kubernetes", daemon=True)
    thread.start()
    try:
        _wait(thread, cluster, source)
        if failed:
            raise failed[0]
    except BaseException as error:
        made.shutdown_on_close = False  # or the library would try once more when the process ends
        if "already exists" not in str(error):  # another run's
            with suppress(Exception):
                _delete(_dask_cluster_of(cluster))
        raise
    return made


def _wait(thread: threading.Thread, cluster: Kubernetes, source: str) -> None:
    """Wait until the thread has ended; raise a KetanetError when a pod cannot start."""
    began = time.monotonic()
    hopeless_since: float | None = None
    while thread.is_alive():
        thread.join(LOOK_SECONDS)
        if not thread.is_alive():
            return
        said, hopeless = _state(cluster)
        now = time.monotonic()
        hopeless_since = (hopeless_since or now) if hopeless else None
        stuck = hopeless_since is not None and now - hopeless_since >= STUCK_SECONDS
        if stuck or now - began >= START_SECONDS:
            raise KetanetError(
                f"{source}: the scheduler has not started within {now - began:.0f} s: {said}; check 'image' "
                f"({cluster.image}) and 'namespace', and look at 'kubectl describe pods -n {cluster.namespace}'"
            )


def _state(cluster: Kubernetes) -> tuple[str, bool]:
    """What Kubernetes says about the scheduler's pod, and whether that is hopeless."""
    from kr8s.objects import Pod

    labels = {_CLUSTER_LABEL: cluster.name, _COMPONENT_LABEL: "scheduler"}
    said = "its pod is not there yet"
    pods: Any = Pod.list(namespace=cluster.namespace, label_selector=labels)
    for pod in pods:
        status = pod.raw.get("status", {})
        said = f"its pod is {status.get('phase', 'new')}"
        for condition in status.get("conditions", []):
            if condition.get("reason") == "Unschedulable":
                said = f"no node has room for its pod ({condition.get('message', '')})"
        for container in status.get("containerStatuses", []):
            waiting = container.get("state", {}).get("waiting", {})
            if waiting.get("reason") in _HOPELESS:
                return f"{waiting['reason']} ({' '.join(waiting.get('message', '').split())[:200]})", True
    return said, False
