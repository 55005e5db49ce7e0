"""Kubernetes without Kubernetes: manifests against schemas, commands of the pods run here, an API server made up.

What manifests are held against: DaskCluster and DaskAutoscaler against the ``openAPIV3Schema`` of the custom resource
definitions that dask-kubernetes ships for its operator (pods and services of Kubernetes 1.21 are part of it), made
strict, so that a key it does not know is an error too, as kubeconform does it; the NetworkPolicy, which has no such
definition, against a schema written below after the reference of ``networking.k8s.io/v1``.
"""

from __future__ import annotations

import copy
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from ketanet.clusters import connect, load_cluster
from ketanet.clusters.kubernetes import kubernetes_manifests, kubernetes_yaml, start_kubernetes
from ketanet.clusters.settings import Kubernetes
from ketanet.errors import InputError, KetanetError, KetanetWarning

pytest.importorskip("dask_kubernetes", reason='needs pip install "ketanet[k8s]"')
jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "registry.example.org/ketanet:0.1.0"


def _cluster(**changes: Any) -> Kubernetes:
    given = {"kind": "kubernetes", "workers": 3, "cores": 4, "memory": "16 GB", "image": IMAGE, **changes}
    if "adaptive" in changes:
        del given["workers"]
    return Kubernetes.model_validate(given)


def _by_kind(cluster: Kubernetes) -> dict[str, dict[str, Any]]:
    return {manifest["kind"]: manifest for manifest in kubernetes_manifests(cluster)}


def _pods(cluster: Kubernetes) -> dict[str, dict[str, Any]]:
    spec = _by_kind(cluster)["DaskCluster"]["spec"]
    return {part: spec[part]["spec"] for part in ("scheduler", "worker")}


# manifests against schemas


def _strict(schema: Any) -> Any:
    """A schema in which objects of known keys have no others."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if isinstance(made.get("properties"), dict) and "type" in made and "additionalProperties" not in made:
        made["additionalProperties"] = False
    return made


def _resource(kind: str, spec: Any) -> dict[str, Any]:
    """Schema of a resource with its envelope, which custom resource definitions leave to the API server."""
    text = {"type": "string"}
    metadata = {
        "type": "object",
        "additionalProperties": False,
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"},
            "namespace": {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"},
            "labels": {"type": "object", "additionalProperties": text},
            "annotations": {"type": "object", "additionalProperties": text},
        },
    }
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": "networking.k8s.io/v1" if kind == "NetworkPolicy" else "kubernetes.dask.org/v1"},
            "kind": {"const": kind},
            "metadata": metadata,
            "spec": spec,
        },
    }


@cache
def _validator(kind: str) -> Any:
    schema = _of_network_policy() if kind == "NetworkPolicy" else _shipped(kind)
    return jsonschema.Draft202012Validator(schema)


def _shipped(kind: str) -> dict[str, Any]:
    """Schema by the custom resource definition that the operator is installed with."""
    folder = files("dask_kubernetes") / "operator" / "deployment" / "helm" / "dask-kubernetes-operator" / "crds"
    definition = yaml.safe_load((folder / f"{kind.lower()}.yaml").read_text())
    assert definition["spec"]["names"]["kind"] == kind
    (version,) = (v for v in definition["spec"]["versions"] if v["name"] == "v1" and v["served"])
    return _resource(kind, _strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"]))


def _of_network_policy() -> dict[str, Any]:
    labels = {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string"}}
    selector = {"type": "object", "additionalProperties": False, "properties": {"matchLabels": labels}}
    peer = {
        "type": "object",
        "additionalProperties": False,
        "minProperties": 1,
        "properties": {"podSelector": selector, "namespaceSelector": selector},
    }
    port = {
        "type": "object",
        "additionalProperties": False,
        "required": ["port"],
        "properties": {
            "protocol": {"enum": ["TCP", "UDP", "SCTP"]},
            "port": {"type": "integer", "minimum": 1, "maximum": 65535},
        },
    }
    rule = {
        "type": "object",
        "additionalProperties": False,
        "properties": {"from": {"type": "array", "items": peer}, "ports": {"type": "array", "items": port}},
    }
    spec = {
        "type": "object",
        "additionalProperties": False,
        "required": ["podSelector"],
        "properties": {
            "podSelector": selector,
            "policyTypes": {"type": "array", "items": {"enum": ["Ingress", "Egress"]}},
            "ingress": {"type": "array", "items": rule},
        },
    }
    return _resource("NetworkPolicy", spec)


def _wrong(manifest: dict[str, Any]) -> list[str]:
    return [error.message for error in _validator(manifest["kind"]).iter_errors(manifest)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spot": True, "secret": "object-store", "namespace": "lab", "operator_namespace": "operators"},
        {"adaptive": {"minimum": 1, "maximum": 20}},
    ],
    ids=["fixed", "spot", "adaptive"],
)
def test_manifests_fit_the_schemas(changes: dict[str, Any]) -> None:
    manifests = kubernetes_manifests(_cluster(**changes))
    expected = ["NetworkPolicy", "DaskCluster"] + ["DaskAutoscaler"] * ("adaptive" in changes)
    assert [manifest["kind"] for manifest in manifests] == expected
    assert [_wrong(manifest) for manifest in manifests] == [[]] * len(manifests)


def test_the_schemas_see_what_is_wrong() -> None:
    manifests = _by_kind(_cluster(adaptive={"maximum": 2}))

    def broken(kind: str, *path: Any, value: Any) -> list[str]:
        manifest = copy.deepcopy(manifests[kind])
        place = manifest
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        return _wrong(manifest)

    pod = ("spec", "worker", "spec")
    assert broken("DaskCluster", *pod, "toleration", value=[])
    assert broken("DaskCluster", *pod, "containers", 0, "env", value=None)
    assert broken("DaskCluster", *pod, "containers", 0, "securityContext", "runAsNonroot", value=True)
    assert broken("DaskCluster", "spec", "worker", "replicas", value="3")
    assert broken("DaskAutoscaler", "spec", "maximum", value=None)
    assert broken("NetworkPolicy", "spec", "ingress", 1, "ports", 0, "port", value="8786/tcp")
    assert broken("NetworkPolicy", "spec", "ingress", 0, "form", value=[])
    assert broken("NetworkPolicy", "metadata", "name", value="Not_a_name")


def test_rendered_manifests_are_those_of_the_cluster_file() -> None:
    rendered = (ROOT / "cluster" / "kubernetes" / "ketanet.yaml").read_text(encoding="utf-8")
    cluster = load_cluster(ROOT / "cluster" / "kubernetes.toml")
    assert isinstance(cluster, Kubernetes)
    body = re.sub(r"\A(#.*\n)+", "", rendered)
    assert body == kubernetes_yaml(cluster), "write it anew: see cluster/kubernetes/README.md"
    assert list(yaml.safe_load_all(rendered)) == kubernetes_manifests(cluster)


# what they say


def test_a_worker_gets_what_the_file_says() -> None:
    cluster = _cluster(secret="object-store")
    spec = _by_kind(cluster)["DaskCluster"]["spec"]
    (container,) = spec["worker"]["spec"]["containers"]
    assert spec["worker"]["replicas"] == 3
    assert container["image"] == IMAGE
    assert container["resources"]["requests"] == {"cpu": "4", "memory": "16000000000"}
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert container["envFrom"] == [{"secretRef": {"name": "object-store"}}]
    assert spec["idleTimeout"] == 3600
    # one process in a pod: the operator retires workers by the names of pods
    arguments = container["args"]
    assert arguments[arguments.index("--name") + 1] == "$(DASK_WORKER_NAME)"
    assert "--nworkers" not in arguments
    assert "envFrom" not in spec["scheduler"]["spec"]["containers"][0]


@pytest.mark.parametrize("part", ["scheduler", "worker"])
def test_pods_have_no_right_they_do_not_need(part: str) -> None:
    """What the level `restricted` of Kubernetes' Pod Security Standards asks for, and a file system to read only."""
    pod = _pods(_cluster())[part]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert all(set(volume) == {"name", "emptyDir"} for volume in pod["volumes"])
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]


def test_the_user_is_that_of_the_image() -> None:
    users = re.findall(r"^USER (\S+)$", (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    context = _pods(_cluster())["worker"]["securityContext"]
    assert users[-1] == f"{context['runAsUser']}:{context['runAsGroup']}"


def _may_reach(policy: dict[str, Any], labels: dict[str, str], namespace: str, port: int) -> bool:
    """Whether a policy lets a pod in, by the rules of Kubernetes: peers and rules add up, selectors of a peer both
    apply, and a peer without a namespace selector is of the policy's own namespace."""

    def selected(selector: dict[str, Any], there: dict[str, str]) -> bool:
        return selector.get("matchLabels", {}).items() <= there.items()

    def let_in(peer: dict[str, Any]) -> bool:
        if "namespaceSelector" in peer:
            place = selected(peer["namespaceSelector"], {"kubernetes.io/metadata.name": namespace})
        else:
            place = namespace == policy["metadata"]["namespace"]
        return place and selected(peer.get("podSelector", {}), labels)

    return any(
        any(map(let_in, rule["from"])) and port in ([p["port"] for p in rule["ports"]] if "ports" in rule else [port])
        for rule in policy["spec"]["ingress"]
    )


def test_the_network_policy_keeps_others_out() -> None:
    policy = _by_kind(_cluster(name="mine", namespace="lab"))["NetworkPolicy"]
    own, client = {"dask.org/cluster-name": "mine", "dask.org/component": "worker"}, {"ketanet-client": "mine"}
    operator = {"app.kubernetes.io/name": "dask-kubernetes-operator"}
    assert policy["spec"]["podSelector"] == {"matchLabels": {"dask.org/cluster-name": "mine"}}
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    reached = {
        (who, port): _may_reach(policy, labels, namespace, port)
        for who, labels, namespace in [
            ("own", own, "lab"),
            ("client", client, "lab"),
            ("operator", operator, "dask-operator"),
            ("other cluster", {"dask.org/cluster-name": "theirs"}, "lab"),
            ("other client", {"ketanet-client": "theirs"}, "lab"),
            ("same labels elsewhere", own, "elsewhere"),
            ("client elsewhere", client, "elsewhere"),
            ("false operator", operator, "lab"),
            ("stranger", {}, "lab"),
        ]
        for port in (8786, 8787, 40000)
    }
    assert {key for key, open_ in reached.items() if open_} == {
        *(("own", port) for port in (8786, 8787, 40000)),
        *((who, port) for who in ("client", "operator") for port in (8786, 8787)),
    }


def test_spot_is_for_workers() -> None:
    pods = _pods(_cluster(spot=True))
    assert {t["key"] for t in pods["worker"]["tolerations"]} == {
        "cloud.google.com/gke-spot",
        "kubernetes.azure.com/scalesetpriority",
    }
    assert "tolerations" not in pods["scheduler"]

    def operators(pod: dict[str, Any]) -> set[str]:
        terms = pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        return {expression["operator"] for term in terms for expression in term["preference"]["matchExpressions"]}

    assert operators(pods["worker"]) == {"In"}
    assert operators(pods["scheduler"]) == {"NotIn"}
    plain = _pods(_cluster())
    assert not any({"tolerations", "affinity"} & pod.keys() for pod in plain.values())


# the pods' own commands


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _answer(url: str) -> str:
    end = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return str(response.read().decode())
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


@pytest.fixture(scope="module")
def pods_run_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """Scheduler and worker as the containers would start them, but on the loopback and free ports; their addresses."""
    cluster = _cluster(cores=2, memory="1 GB")
    containers = {part: pod["containers"][0] for part, pod in _pods(cluster).items()}
    comm, http, worker_http = (_free_port() for _ in range(3))
    extra = {
        "scheduler": ["--host", "127.0.0.1", "--port", str(comm), "--dashboard-address", f"127.0.0.1:{http}"],
        "worker": ["--host", "127.0.0.1", "--dashboard-address", f"127.0.0.1:{worker_http}"],
    }
    given = {"DASK_WORKER_NAME": "pod-1", "DASK_SCHEDULER_ADDRESS": f"tcp://127.0.0.1:{comm}"}
    binaries = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    scratch = str(tmp_path_factory.mktemp("scratch"))
    running = []
    try:
        for part, container in containers.items():
            words = [given.get(word[2:-1], word) if word.startswith("$(") else word for word in container["args"]]
            words = [scratch if word == "/tmp" else word for word in words]
            environment = {**os.environ, **binaries, **given, **{e["name"]: e["value"] for e in container["env"]}}
            process = subprocess.Popen(
                [*words, *extra[part]], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            running.append(process)
        yield f"tcp://127.0.0.1:{comm}", f"http://127.0.0.1:{http}", f"http://127.0.0.1:{worker_http}"
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(30)


def test_the_commands_of_the_pods_work(pods_run_here: tuple[str, str, str]) -> None:
    comm, http, worker_http = pods_run_here
    assert _answer(f"{http}/health") == "ok"
    assert _answer(f"{worker_http}/health") == "ok"
    with connect(comm) as connection:
        connection.client.wait_for_workers(1, timeout=30)
        connection.refresh()
        (worker,) = connection.client.scheduler_info()["workers"].values()
        assert worker["name"] == "pod-1"
        assert connection.workers == 2
        assert connection.memory == 500_000_000
        assert connection.client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.allowed_failures) == 10
        # what the operator asks for when workers come and go
        assert json.loads(_answer(f"{http}/api/v1/adaptive_target")) == {"workers": 0}


# starting, with an API server that is made up


_ABOUT: dict[str, Any] = {
    "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
    "/api": {"versions": ["v1"]},
    "/api/v1": {"resources": [{"name": "pods", "singularName": "pod", "kind": "Pod", "namespaced": True}]},
    "/apis": {"groups": []},
}
"""What an API server says about itself."""


class _Api:
    """As much of the API of Kubernetes, and of the operator of Dask behind it, as starting a Dask cluster touches."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.told: list[tuple[str, str]] = []
        self.refusals: dict[tuple[str, str], tuple[int, str]] = {}
        self.pod_state: dict[str, Any] = {}
        api = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None: ...

            def _do(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                status, answer = api.answer(self.command, self.path, body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = do_PATCH = _do

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def kinds(self) -> set[str]:
        return {path.rsplit("/", 2)[-2] for path in self.objects}

    def answer(self, method: str, target: str, body: Any) -> tuple[int, Any]:
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
        if path.rstrip("/") in _ABOUT:
            return 200, _ABOUT[path.rstrip("/")]
        parts = path.split("/")
        named = parts[-2] != "namespaces" and len(parts) - parts.index("namespaces") == 4
        kind = parts[-2] if named else parts[-1]
        self.told.append((method, kind))
        if (method, kind) in self.refusals:
            status, message = self.refusals[method, kind]
            return status, {"kind": "Status", "message": message, "code": status}
        if method == "POST":
            place = f"{path}/{body['metadata']['name']}"
            if place in self.objects:
                return 409, {"kind": "Status", "message": "already exists", "code": 409}
            self.objects[place] = body
            if kind == "daskclusters":
                self._operate(path, body)
            return 201, body
        if not named:
            return 200, {"kind": "List", "items": self._selected(path, query)}
        if path not in self.objects:
            return 404, {"kind": "Status", "message": f"{path} not found", "code": 404}
        if method == "DELETE":
            gone = self.objects.pop(path)
            if kind == "daskclusters":
                self.objects = {k: v for k, v in self.objects.items() if "networkpolicies" in k}
            return 200, gone
        if method == "PATCH":
            for key, value in body.items():
                self.objects[path].setdefault(key, {}).update(value)
        return 200, self.objects[path]

    def _selected(self, path: str, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        """Objects of a kind with the name and the labels asked for."""
        found = [v for k, v in self.objects.items() if k.rpartition("/")[0] == path]
        labels, fields = (
            dict(part.split("=") for text in query.get(key, []) for part in text.split(","))
            for key in ("labelSelector", "fieldSelector")
        )
        for field, value in fields.items():
            block, key = field.split(".")
            found = [v for v in found if v[block][key] == value]
        return [v for v in found if labels.items() <= v["metadata"].get("labels", {}).items()]

    def _operate(self, path: str, body: dict[str, Any]) -> None:
        """What the operator makes of a DaskCluster: a pod and a service of the scheduler, a group of workers."""
        body["status"] = {"phase": "Running"}
        name, namespace = body["metadata"]["name"], path.split("/")[-2]
        labels = {"dask.org/cluster-name": name, "dask.org/component": "scheduler"}
        metadata = {"name": f"{name}-scheduler", "namespace": namespace, "labels": labels}
        service = copy.deepcopy(body["spec"]["scheduler"]["service"])
        core = f"/api/v1/namespaces/{namespace}"
        self.objects[f"{core}/pods/{name}-scheduler"] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": {},
            "status": self.pod_state,
        }
        self.objects[f"{core}/services/{name}-scheduler"] = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": service,
            "status": {"loadBalancer": {}},
        }
        group = {"name": f"{name}-default", "namespace": namespace, "labels": labels}
        self.objects[path.replace("daskclusters", "daskworkergroups") + f"/{name}-default"] = {
            "apiVersion": "kubernetes.dask.org/v1",
            "kind": "DaskWorkerGroup",
            "metadata": group,
            "spec": {"cluster": name, "worker": {"replicas": body["spec"]["worker"]["replicas"]}},
        }


RUNNING = {
    "phase": "Running",
    "conditions": [{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}],
}


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Api]:
    made = _Api()
    made.pod_state = RUNNING
    _use(made.url, tmp_path, monkeypatch)
    yield made
    made.close()


def _use(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name a Kubernetes cluster the way users do, and make sure that no other is found."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "made-up", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {"token": "none"}}],
        "contexts": [{"name": "made-up", "context": {"cluster": "made-up", "user": "me"}}],
        "current-context": "made-up",
    }
    path = folder / f"kubeconfig-{urlsplit(url).port}"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    _only(path, monkeypatch)


def _only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this one file say where Kubernetes is, and nothing that was read before."""
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    from kr8s._api import Api

    monkeypatch.setattr(Api, "_instances", {})


@pytest.fixture
def forwarding_api(api: _Api, pods_run_here: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch) -> _Api:
    """The API, where the forwarding of ports leads to the scheduler that runs here."""
    from dask_kubernetes.operator import networking

    async def to_it(*_: Any, **__: Any) -> int:
        return int(pods_run_here[0].rpartition(":")[2])

    monkeypatch.setattr(networking, "port_forward_service", to_it)
    return api


def test_start_compute_stop(forwarding_api: _Api, tmp_path: Path) -> None:
    api = forwarding_api
    path = tmp_path / "lab.toml"
    path.write_text(
        f'kind = "kubernetes"\nworkers = 3\ncores = 4\nmemory = "16 GB"\nimage = "{IMAGE}"\n', encoding="utf-8"
    )
    with pytest.warns(KetanetWarning, match="without TLS inside Kubernetes"):
        connection = connect(str(path))
    with connection:
        assert (connection.workers, connection.memory) == (12, 4_000_000_000)
        assert connection.client.submit(sum, [1, 2, 3]).result(timeout=30) == 6
        posted = [kind for method, kind in api.told if method == "POST"]
        assert posted == ["networkpolicies", "daskclusters"], "pods without a policy would be open"
        made = api.objects["/apis/kubernetes.dask.org/v1/namespaces/default/daskclusters/ketanet"]
        assert made["spec"] == _by_kind(_cluster())["DaskCluster"]["spec"]
    assert api.objects == {}


def test_adaptive_bounds_reach_the_operator(forwarding_api: _Api) -> None:
    api = forwarding_api
    with pytest.warns(KetanetWarning, match="TLS"):
        connection = start_kubernetes(_cluster(adaptive={"minimum": 2, "maximum": 9}), "lab.toml")
    with connection:
        (scaler,) = (v for v in api.objects.values() if v["kind"] == "DaskAutoscaler")
        assert scaler["spec"] == {"cluster": "ketanet", "minimum": 2, "maximum": 9}
        assert connection.workers == 36
    assert api.objects == {}


@pytest.mark.usefixtures("forwarding_api")
def test_a_lost_worker_is_explained() -> None:
    from distributed.scheduler import KilledWorker

    with pytest.warns(KetanetWarning, match="TLS"):
        connection = start_kubernetes(_cluster(), "lab.toml")
    with pytest.raises(KetanetError, match=r"raise 'memory' \(it is 16 GB a pod of 4 cores"), connection:
        raise KilledWorker("task", None, 3)


# what can be wrong


def test_a_cluster_of_that_name_is_left_alone(api: _Api) -> None:
    path = "/apis/kubernetes.dask.org/v1/namespaces/default/daskclusters/ketanet"
    api.objects[path] = copy.deepcopy(_by_kind(_cluster())["DaskCluster"])
    before = copy.deepcopy(api.objects)
    with pytest.raises(InputError, match=r"lab\.toml: a Dask cluster 'ketanet' is in namespace 'default' already"):
        start_kubernetes(_cluster(), "lab.toml")
    assert api.objects == before


def test_no_operator(api: _Api) -> None:
    api.refusals["POST", "daskclusters"] = (404, "the server could not find the requested resource")
    with pytest.raises(InputError, match=r"lab\.toml: the operator of Dask is not installed"):
        start_kubernetes(_cluster(), "lab.toml")
    assert api.objects == {}


def test_no_permission(api: _Api) -> None:
    said = 'networkpolicies.networking.k8s.io is forbidden: User "me" cannot create it'
    api.refusals["POST", "networkpolicies"] = (403, said)
    with pytest.raises(InputError, match=rf"lab\.toml: Kubernetes refuses: {re.escape(said)}"):
        start_kubernetes(_cluster(), "lab.toml")
    assert api.objects == {}


def test_an_image_that_is_not_there(api: _Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ketanet.clusters.kubernetes.LOOK_SECONDS", 0.2)
    monkeypatch.setattr("ketanet.clusters.kubernetes.STUCK_SECONDS", 0.5)
    waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
    api.pod_state = {"phase": "Pending", "containerStatuses": [{"name": "scheduler", "state": {"waiting": waiting}}]}
    with pytest.raises(KetanetError, match=r"lab\.toml: the scheduler has not started .*ImagePullBackOff") as caught:
        start_kubernetes(_cluster(), "lab.toml")
    assert IMAGE in str(caught.value)
    assert "\n" not in str(caught.value)
    assert api.objects == {}


def test_no_room(api: _Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ketanet.clusters.kubernetes.LOOK_SECONDS", 0.2)
    monkeypatch.setattr("ketanet.clusters.kubernetes.START_SECONDS", 6.0)
    said = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}
    api.pod_state = {"phase": "Pending", "conditions": [said]}
    with pytest.raises(KetanetError, match=r"no node has room for its pod \(0/3 nodes are available\)"):
        start_kubernetes(_cluster(), "lab.toml")
    assert api.objects == {}


def test_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(f"http://127.0.0.1:{_free_port()}", tmp_path, monkeypatch)
    with pytest.raises(InputError, match=r"lab\.toml: the Kubernetes cluster does not answer") as caught:
        start_kubernetes(_cluster(), "lab.toml")
    assert "\n" not in str(caught.value)


def test_no_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _only(tmp_path / "none", monkeypatch)
    with pytest.raises(InputError, match=r"lab\.toml: no Kubernetes cluster is known here; set KUBECONFIG"):
        start_kubernetes(_cluster(), "lab.toml")


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dask_kubernetes", "dask_kubernetes.operator.kubecluster"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (lambda: kubernetes_manifests(_cluster()), lambda: start_kubernetes(_cluster(), "lab.toml")):
        with pytest.raises(InputError, match=r'pip install "ketanet\[k8s\]"'):
            call()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("image = 'ketanet'", "image 'ketanet' may be another one tomorrow"),
        ("image = 'registry.example.org:5000/ketanet:latest'", "may be another one tomorrow"),
        ("image = 'k:1'\nname = 'Mine'", "name is 'Mine'"),
        ("image = 'k:1'\nnamespace = 'a b'", "namespace is 'a b'"),
        ("image = 'k:1'\nsecret = 'a_b'", "secret is 'a_b'"),
        ("image = 'k:1'\nidle_seconds = 1", "idle_seconds is 1"),
        ("image = 'k:1'\nspots = true", "unknown key 'spots'; did you mean 'spot'?"),
        ("spot = true", "'image' is missing"),
    ],
)
def test_a_bad_cluster_file_is_refused(tmp_path: Path, changes: str, message: str) -> None:
    path = tmp_path / "lab.toml"
    path.write_text(f'kind = "kubernetes"\nworkers = 1\ncores = 1\nmemory = "4 GB"\n{changes}\n', encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(message)):
        load_cluster(path)


def test_an_image_is_named_by_tag_or_digest() -> None:
    for image in ("ketanet:0.1.0", "registry.example.org:5000/lab/ketanet:0.1.0", f"ketanet@sha256:{'0' * 64}"):
        assert _cluster(image=image).image == image
