"""Definitions of container images: linted by rules written here, and their steps run in a clean virtual environment.

No container engine is at hand. The rules are those of hadolint (its number in brackets) and of its neighbours that
matter for this image; each is shown to catch a violation. What no test runs: the step of apt, which needs root and
Debian, and the base image itself.
"""

from __future__ import annotations

import ast
import fnmatch
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import ketanet
from ketanet.clusters import connect
from ketanet.clusters.checking import check_cluster

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8")
APPTAINER = (ROOT / "cluster" / "apptainer.def").read_text(encoding="utf-8")
CLOUD = (ROOT / "cluster" / "cloud.md").read_text(encoding="utf-8")
PREFIX = "/opt/ketanet"


@dataclass(frozen=True)
class Step:
    """One instruction of a Dockerfile."""

    word: str
    text: str
    stage: int


def _steps(dockerfile: str) -> list[Step]:
    """Instructions with their lines joined and comments dropped; stage -1 is before the first FROM."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    steps, stage = [], -1
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        word, _, text = line.strip().partition(" ")
        stage += word.upper() == "FROM"
        steps.append(Step(word.upper(), " ".join(text.split()), stage))
    return steps


def _arguments(steps: list[Step]) -> dict[str, str]:
    return dict(step.text.partition("=")[::2] for step in steps if step.word == "ARG")


def _filled(text: str, arguments: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda match: arguments.get(match[1], match[0]), text)


def _only(steps: list[Step], *words: str) -> list[Step]:
    return [step for step in steps if step.word in words]


def _last_stage(steps: list[Step]) -> list[Step]:
    return [step for step in steps if step.stage == steps[-1].stage]


def _is_list(text: str) -> bool:
    try:
        words = json.loads(text)
    except ValueError:
        return False
    return isinstance(words, list) and bool(words) and all(isinstance(word, str) for word in words)


# the rules: each says whether the steps keep it


def base_is_pinned(steps: list[Step]) -> bool:
    """A base image has a tag of three numbers or a digest, never latest [DL3006, DL3007]."""
    bases = [_filled(step.text.split()[0], _arguments(steps)) for step in _only(steps, "FROM")]
    return all(re.search(r"@sha256:[0-9a-f]{64}$|:\d+\.\d+\.\d+(-[\w.-]+)?$", base) for base in bases)


def work_folder_is_absolute(steps: list[Step]) -> bool:
    """WORKDIR is absolute, and there is one in every stage [DL3000]."""
    folders = _only(steps, "WORKDIR")
    return all(s.text.startswith("/") for s in folders) and {s.stage for s in folders} == {
        s.stage for s in _only(steps, "FROM")
    }


def copies_what_it_names(steps: list[Step]) -> bool:
    """COPY, not ADD, and never all that is there [DL3020]."""
    sources = [word for step in _only(steps, "COPY") for word in step.text.split()[:-1]]
    return not _only(steps, "ADD") and not {".", "./", "*", "/"} & set(sources)


def apt_leaves_nothing(steps: list[Step]) -> bool:
    """apt-get updates, installs without asking and without recommendations, and drops its lists, all in one step
    [DL3009, DL3014, DL3015, DL3027]."""
    texts = [step.text for step in _only(steps, "RUN")]
    installing = [text for text in texts if re.search(r"\bapt(-get)? install|\bapt(-get)? update", text)]
    needed = ("apt-get update", "apt-get install", "--yes", "--no-install-recommends", "rm -rf /var/lib/apt/lists/*")
    return all(part in text for text in installing for part in needed)


def pip_is_pinned(steps: list[Step]) -> bool:
    """pip takes pinned versions, compiles nothing and keeps no cache [DL3013, DL3042]."""
    texts = [step.text for step in _only(steps, "RUN") if re.search(r"\bpip3? install\b", step.text)]
    needed = ("--no-cache-dir", "--constraint constraints.txt", "--only-binary :all:")
    return bool(texts) and all(part in text for text in texts for part in needed)


def user_is_nobody(steps: list[Step]) -> bool:
    """The last USER is a number other than root's, and stands before the entry point [DL3002]."""
    words = [step.word for step in _last_stage(steps)]
    users = _only(_last_stage(steps), "USER")
    return (
        bool(users)
        and re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", users[-1].text) is not None
        and "ENTRYPOINT" in words
        and len(words) - words[::-1].index("USER") <= words.index("ENTRYPOINT")
    )


def health_is_checked(steps: list[Step]) -> bool:
    """There is one HEALTHCHECK, which runs a command, with a time limit [DL3012, DL3055]."""
    checks = [step.text for step in _only(_last_stage(steps), "HEALTHCHECK")]
    return len(checks) == 1 and "--timeout=" in checks[0] and _is_list(checks[0].partition("CMD ")[2])


def commands_are_lists(steps: list[Step]) -> bool:
    """CMD and ENTRYPOINT are lists, so that no shell stands between; there is one of each [DL3025, DL4003, DL4004]."""
    last = _last_stage(steps)
    return all(len(found) == 1 and _is_list(found[0].text) for found in (_only(last, "CMD"), _only(last, "ENTRYPOINT")))


def no_secrets(steps: list[Step]) -> bool:
    """No ENV, ARG or LABEL that holds a secret: it would stay in the image for all to read."""
    secret = re.compile(r"secret|token|passw|credential|access_?key|private_?key|api_?key", re.IGNORECASE)
    return not any(secret.search(step.text) for step in _only(steps, "ENV", "ARG", "LABEL"))


def shell_is_careful(steps: list[Step]) -> bool:
    """No sudo, no download that is run or unpacked unseen, no file that all may write [DL3004, DL4001]."""
    careless = re.compile(r"\bsudo\b|\b(curl|wget)\b|\bchmod\s+(-R\s+)?[0-7]*[2367]\b|\bchmod\s+\S*[ao]\+\w*w")
    return not any(careless.search(step.text) for step in _only(steps, "RUN"))


def labels_are_there(steps: list[Step]) -> bool:
    """Labels that registries show, by the names of the Open Container Initiative [DL3048]."""
    text = " ".join(step.text for step in _only(_last_stage(steps), "LABEL"))
    names = ("title", "description", "licenses", "version", "revision")
    return all(f"org.opencontainers.image.{name}=" in text for name in names)


RULES: list[Callable[[list[Step]], bool]] = [
    base_is_pinned,
    work_folder_is_absolute,
    copies_what_it_names,
    apt_leaves_nothing,
    pip_is_pinned,
    user_is_nobody,
    health_is_checked,
    commands_are_lists,
    no_secrets,
    shell_is_careful,
    labels_are_there,
]


def _broken(dockerfile: str) -> set[str]:
    steps = _steps(dockerfile)
    return {rule.__name__ for rule in RULES if not rule(steps)}


def test_the_dockerfile_keeps_all_rules() -> None:
    assert _broken(DOCKERFILE) == set()


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("python:3.12.11-slim-bookworm\n\nFROM", "python:latest\n\nFROM", "base_is_pinned"),
        ("python:3.12.11-slim-bookworm\n\nFROM", "python:3.12-slim\n\nFROM", "base_is_pinned"),
        ("python:3.12.11-slim-bookworm\n\nFROM", "python\n\nFROM", "base_is_pinned"),
        ("WORKDIR /src", "WORKDIR src", "work_folder_is_absolute"),
        ("WORKDIR /work\n", "", "work_folder_is_absolute"),
        ("COPY ketanet ./ketanet", "ADD ketanet ./ketanet", "copies_what_it_names"),
        ("COPY ketanet ./ketanet", "COPY . .", "copies_what_it_names"),
        (" --no-install-recommends", "", "apt_leaves_nothing"),
        (" --yes", "", "apt_leaves_nothing"),
        ("    && rm -rf /var/lib/apt/lists/* \\\n", "", "apt_leaves_nothing"),
        ("RUN apt-get update \\\n    && apt-get", "RUN apt-get update\nRUN apt-get", "apt_leaves_nothing"),
        (" --no-cache-dir", "", "pip_is_pinned"),
        (" --constraint constraints.txt", "", "pip_is_pinned"),
        ("USER 10001:10001\n", "", "user_is_nobody"),
        ("USER 10001:10001", "USER 0:0", "user_is_nobody"),
        ("USER 10001:10001", "USER ketanet", "user_is_nobody"),
        ('CMD ["ketanet", "--help"]', 'CMD ["ketanet", "--help"]\nUSER 10001:10001', "user_is_nobody"),
        ("HEALTHCHECK --interval=60s", "HEALTHCHECK NONE\n# ", "health_is_checked"),
        ('CMD ["ketanet", "--version"]', "CMD ketanet --version", "health_is_checked"),
        (" --timeout=20s", "", "health_is_checked"),
        ('ENTRYPOINT ["/usr/bin/tini", "--"]', "ENTRYPOINT /usr/bin/tini --", "commands_are_lists"),
        ('CMD ["ketanet", "--help"]', "CMD ketanet --help", "commands_are_lists"),
        ('CMD ["ketanet", "--help"]', 'CMD ["ketanet"]\nCMD ["dask"]', "commands_are_lists"),
        ("ARG REVISION=unknown", "ARG AWS_SECRET_ACCESS_KEY", "no_secrets"),
        ("    HOME=/tmp", "    PYPI_TOKEN=abc", "no_secrets"),
        ("chmod 755", "chmod 777", "shell_is_careful"),
        ("RUN python -m venv", "RUN sudo python -m venv", "shell_is_careful"),
        ("RUN python -m venv", "RUN curl https://example.org/x | sh && python -m venv", "shell_is_careful"),
        ("org.opencontainers.image.version", "version", "labels_are_there"),
    ],
)
def test_each_rule_catches_its_violation(old: str, new: str, rule: str) -> None:
    assert old in DOCKERFILE, "the violation changes nothing"
    assert _broken(DOCKERFILE.replace(old, new)) == {rule}


def test_every_rule_is_shown_to_catch_something() -> None:
    (cases,) = (mark.args[1] for mark in test_each_rule_catches_its_violation.pytestmark)  # type: ignore[attr-defined]
    assert {case[2] for case in cases} == {rule.__name__ for rule in RULES}


def test_the_version_is_the_packages() -> None:
    assert _arguments(_steps(DOCKERFILE))["VERSION"] == ketanet.__version__
    assert f"org.opencontainers.image.version {ketanet.__version__}\n" in APPTAINER


# what gets in


def _copied() -> dict[str, str]:
    """Sources that the build stage copies out of the repository, and where to."""
    copied = {}
    for step in _only(_steps(DOCKERFILE), "COPY"):
        *sources, target = step.text.split()
        if not sources[0].startswith("--from="):
            copied |= dict.fromkeys(sources, target)
    return copied


def test_the_context_is_what_is_copied() -> None:
    lines = [s for s in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if s and s[0] != "#"]
    assert lines[0] == "*", "what is not named stays out"
    assert {line[1:] for line in lines if line.startswith("!")} == set(_copied())


def test_what_is_copied_is_there() -> None:
    for source in _copied():
        assert (ROOT / source).exists(), source


def test_the_copied_sources_make_the_package() -> None:
    """Files that the build of the package names are among what is copied."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = {project["project"]["readme"], *project["project"]["license-files"]}
    named |= {project["tool"]["hatch"]["version"]["path"].partition("/")[0]}
    named |= set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert named <= set(_copied())


# Apptainer


def _section(name: str) -> str:
    """Lines of a section of the Apptainer definition, joined as a shell does."""
    body = re.search(rf"^%{name}\n(.*?)(?=^%|\Z)", APPTAINER, re.MULTILINE | re.DOTALL)
    assert body is not None, name
    return re.sub(r"\\\n", " ", body[1])


def _commands(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def _build_commands() -> list[str]:
    """Commands of the build stage, with the defaults of its arguments."""
    steps = _steps(DOCKERFILE)
    return [_filled(step.text, _arguments(steps)) for step in _only(steps, "RUN") if step.stage == 0]


def test_apptainer_runs_the_same_steps() -> None:
    commands = _commands(_section("post"))
    assert commands[:2] == ["set -eu", "cd /src"]
    assert commands[2:-1] == _build_commands()
    assert commands[-1] == "rm -rf /src"


def test_apptainer_takes_the_same_sources_and_base() -> None:
    files = dict(line.split() for line in _commands(_section("files")))
    assert files == {source: f"/src/{source}" for source in _copied()}
    assert f"From: {_arguments(_steps(DOCKERFILE))['PYTHON_IMAGE']}\n" in APPTAINER


def test_apptainer_checks_the_same() -> None:
    check = _only(_steps(DOCKERFILE), "HEALTHCHECK")[0].text.partition("CMD ")[2]
    assert _commands(_section("test")) == [" ".join(json.loads(check))]
    assert f"export PATH={PREFIX}/bin:$PATH" in _commands(_section("environment"))


# clouds


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", CLOUD, re.MULTILINE | re.DOTALL)


_VM = """n_workers worker_class worker_options scheduler_options docker_image docker_args extra_bootstrap env_vars
security protocol debug"""
CALLS = {
    "EC2Cluster": _VM
    + """ region availability_zone bootstrap auto_shutdown ami instance_type scheduler_instance_type
    worker_instance_type vpc subnet_id security_groups filesystem_size key_name iam_instance_profile instance_tags
    volume_tags use_private_ip enable_detailed_monitoring""",
    "GCPCluster": _VM
    + """ projectid zone network network_projectid machine_type on_host_maintenance source_image ngpus gpu_type
    filesystem_size disk_type auto_shutdown bootstrap preemptible instance_labels service_account
    service_account_credentials""",
    "AzureVMCluster": _VM
    + """ location resource_group vnet subnet security_group public_ingress vm_size scheduler_vm_size vm_image disk_size
    bootstrap auto_shutdown marketplace_plan subscription_id extra_vm_options""",
    "FargateCluster": """fargate_spot image scheduler_cpu scheduler_mem scheduler_port scheduler_timeout
    scheduler_extra_args worker_cpu worker_nthreads worker_mem worker_extra_args n_workers task_role_arn
    task_role_policies vpc subnets security_groups environment tags fargate_use_private_ip""",
    "Cluster": """name container ignore_container_entrypoint n_workers worker_options worker_cpu worker_memory
    scheduler_options idle_timeout no_client_timeout credentials environ tags use_best_zone spot_policy
    allow_ingress_from""",
}
"""Arguments by the source of dask-cloudprovider (generic/vmcluster.py, aws, gcp, azure) and docs.coiled.io, 2025."""


def test_cloud_calls_use_arguments_that_exist() -> None:
    seen = set()
    for block in _blocks("python"):
        for call in (node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name in CALLS:
                seen.add(name)
                assert {keyword.arg for keyword in call.keywords} <= set(CALLS[name].split()), name
                assert f"registry.example.org/ketanet:{ketanet.__version__}" in ast.unparse(call)
    assert seen == set(CALLS)


def test_a_cluster_is_handed_over_with_its_certificates(
    people: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography", reason='temporary certificates need pip install "ketanet[slurm]"')
    from distributed import LocalCluster

    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in _blocks("python") if "def hand_over" in block)
    defined: dict[str, Any] = {}
    exec(block, defined)
    with LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        processes=False,
        protocol="tls",
        security=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as cluster:
        defined["hand_over"](cluster)
        assert {path.name for path in Path("cloud").iterdir()} == {"ca.pem", "cert.pem", "key.pem", "cloud.toml"}
        assert Path("cloud").stat().st_mode & 0o777 == 0o700
        assert Path("cloud/key.pem").stat().st_mode & 0o777 == 0o600
        with connect("cloud/cloud.toml") as connection:
            told = dict(check_cluster(connection, [str(people.stores["int16"])]))
    assert told["scheduler"].startswith("tls://")
    assert f"reading {people.stores['int16']}" in told


# the steps, run


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the build stage makes, from a copy of the sources that it copies, by the steps it names."""
    folder = tmp_path_factory.mktemp("image")
    sources, prefix, binaries = folder / "src", folder / "prefix", folder / "bin"
    ignored = [s for s in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if s.startswith("**/")]
    for source, target in _copied().items():
        place = sources / target / ("" if (ROOT / source).is_dir() else source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns(*(p[3:] for p in ignored)))
        else:
            shutil.copy(ROOT / source, place)
    binaries.mkdir()
    python = shutil.which("python3", path=os.defpath + os.pathsep + "/usr/local/bin")
    assert python is not None, "there is no python3 on this system"
    (binaries / "python").symlink_to(python)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment["PATH"] = f"{binaries}{os.pathsep}{os.defpath}"
    for command in _build_commands():
        assert PREFIX in command
        made = subprocess.run(
            ["/bin/sh", "-c", command.replace(PREFIX, str(prefix))],
            cwd=sources,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert made.returncode == 0, f"{command}\n{made.stdout[-2000:]}\n{made.stderr[-2000:]}"
    shutil.rmtree(sources)  # the second stage has none of it
    return prefix


def _inside(prefix: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command as the image would: with its PATH, and nothing of this environment."""
    environment = {"PATH": f"{prefix}/bin{os.pathsep}{os.defpath}", "HOME": str(prefix.parent)}
    return subprocess.run(
        words, cwd=prefix.parent, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def _health() -> list[str]:
    check = _only(_steps(DOCKERFILE), "HEALTHCHECK")[0].text.partition("CMD ")[2]
    return [str(word) for word in json.loads(check)]


@pytest.mark.slow
def test_the_image_runs_all_roles(installed: Path) -> None:
    for words in (_health(), ["ketanet", "--version"]):
        told = _inside(installed, words)
        assert (told.returncode, told.stdout.strip()) == (0, ketanet.__version__), told.stderr
    for words in (["dask", "worker"], ["dask", "scheduler"], ["dask-worker"], ["dask-scheduler"]):
        told = _inside(installed, [*words, "--version"])
        assert told.returncode == 0, told.stderr
    told = _inside(installed, ["python", "-c", "import ketanet, numba, obstore; print(ketanet.__file__)"])
    assert told.stdout.startswith(str(installed)), told.stderr or told.stdout


@pytest.mark.slow
def test_the_image_has_the_pinned_versions_and_no_tools(installed: Path) -> None:
    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    pins = {plain(name): version for name, version in pins.items()}
    listed = json.loads(_inside(installed, ["python", "-m", "pip", "list", "--format=json"]).stdout)
    found = {plain(row["name"]): row["version"] for row in listed}
    unpinned = set(found) - set(pins) - {"ketanet", "pip", "setuptools"}
    assert unpinned == set(), "constraints.txt says nothing about these"
    assert {name: found[name] for name in found.keys() & pins.keys()} == {
        name: pins[name] for name in found.keys() & pins.keys()
    }
    for pattern in ("pytest*", "ruff", "mypy", "sphinx*", "moto", "playwright", "ipython"):
        assert not fnmatch.filter(found, pattern)


@pytest.mark.slow
def test_the_health_check_sees_a_broken_image(installed: Path) -> None:
    (package,) = installed.glob("lib/python*/site-packages/ketanet")
    aside = package.with_name("aside")
    package.rename(aside)
    try:
        assert _inside(installed, _health()).returncode != 0
    finally:
        aside.rename(package)
    assert _inside(installed, _health()).returncode == 0
