"""Nodes of a Ray cluster on this machine, run by themselves: `python -m tests.support.ray_nodes`.

Prints the cluster's address. Then, a line on its stdin each: `add CPUS`, `remove NUMBER`; each is answered by `done`.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Holds the nodes until stdin ends."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    first, *others = map(int, sys.argv[1:] or ["1", "1"])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": first, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=count) for count in others]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        what, number = line.split()
        if what == "add":
            nodes.append(cluster.add_node(num_cpus=int(number)))
        else:
            cluster.remove_node(nodes.pop(int(number)), allow_graceful=False)
        print("done", flush=True)
    cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
