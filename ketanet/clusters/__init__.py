"""Where computations run: threads, processes, or a cluster that a file describes."""

from ketanet.clusters.connecting import connect
from ketanet.clusters.settings import Cluster, load_cluster

__all__ = ["Cluster", "connect", "load_cluster"]
