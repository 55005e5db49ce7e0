"""Commands about clusters: is it fit for the work, the script of its jobs, certificates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ketanet.cli.app import CLUSTERS, app
from ketanet.cli.connecting import connected
from ketanet.cli.options import AsJson
from ketanet.cli.printing import print_json

group = typer.Typer(
    help="Look at a cluster before using it: check, script, certs.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(group, name="cluster", rich_help_panel=CLUSTERS)

File = Annotated[str, typer.Argument(metavar="FILE", help="Cluster file, its name in cluster/, or an address.")]


@group.command(epilog="Example: ketanet cluster check cluster/slurm.toml healthy.zarr --out results")
def check(
    cluster: File,
    stores: Annotated[
        list[str] | None, typer.Argument(metavar="COHORT...", help="Cohort stores that workers are to read.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="Where workers are to write results.")] = None,
    wait: Annotated[float, typer.Option("--wait", min=1, help="Seconds to wait for the first worker.")] = 600,
    as_json: AsJson = False,
) -> None:
    """Start a cluster, look at it from its workers' side, stop it.

    Versions there and here, whether workers see the stores and can write, how fast they read.
    """
    from ketanet.clusters.checking import check_cluster

    with connected(cluster, None) as connection:
        rows = check_cluster(connection, stores or [], out, wait_seconds=wait)
    if as_json:
        print_json(dict(rows))
        return
    width = max(len(name) for name, _ in rows)
    for name, found in rows:
        print(f"{name:<{width}}  {found}")


@group.command(epilog="Example: ketanet cluster script cluster/slurm.toml")
def script(cluster: File) -> None:
    """Print what a cluster file submits.

    The job script of SLURM, or the manifests of Kubernetes.
    """
    from ketanet.clusters.connecting import find_cluster
    from ketanet.clusters.settings import Kubernetes, Slurm, load_cluster
    from ketanet.errors import InputError

    path = find_cluster(cluster)
    found = load_cluster(path)
    if isinstance(found, Slurm):
        from ketanet.clusters.slurm import slurm_script

        print(slurm_script(found, str(path)).rstrip())
    elif isinstance(found, Kubernetes):
        from ketanet.clusters.kubernetes import kubernetes_yaml

        print(kubernetes_yaml(found).rstrip())
    else:
        raise InputError(f"{path}: a cluster of kind {found.kind!r} submits nothing; slurm and kubernetes do")


@group.command(epilog="Example: ketanet cluster certs tls --days 7")
def certs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make.")],
    days: Annotated[int, typer.Option("--days", help="How long they are valid.")] = 30,
) -> None:
    """Make certificates for a cluster's life.

    A private authority and one certificate by it; client, scheduler and workers share it.
    """
    from ketanet.clusters.certificates import make_certificates

    made = make_certificates(folder, days=days)
    print(f"{made}: ca.pem, cert.pem, key.pem, valid for {days} days; name them in the block [tls] of a cluster file")
