"""The settings of a run for the workers of a Ray cluster; see :mod:`flamingo_eval.core.run_settings`."""

from __future__ import annotations

from dataclasses import dataclass, fields

from flamingo_eval.core.settings import CLUSTER, SWITCH, TEXT, declared, integer


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Where a Ray cluster is, and how many of its workers answer; none of these settings changes what is asked."""

    workers: int | None = declared(
        None,
        integer(1, 100_000),
        "With --executor ray: how many workers, each with the model.",
        metavar="N",
        panel=CLUSTER,
        changes_answers=False,
        default_text="as many as the cluster's GPUs allow; without GPUs one on each node",
    )
    gpus_per_worker: int | None = declared(
        None,
        integer(0, 1000),
        "With --executor ray: GPUs of each worker, on one node; more than one for an hf: model with --device-map.",
        metavar="N",
        panel=CLUSTER,
        changes_answers=False,
        default_text="1 if the cluster has any, else 0",
    )
    address: str = declared(
        "auto",
        TEXT,
        "With --executor ray: which cluster. auto: the one that RAY_ADDRESS names or that runs on this machine, else "
        "one is started here; local: one is started here; or HOST:PORT, of which this machine is a node.",
        metavar="auto|local|HOST:PORT",
        panel=CLUSTER,
        changes_answers=False,
    )
    ship_images: bool = declared(
        False,
        SWITCH,
        "With --executor ray: read images here and send them to the workers, which need no data root then.",
        panel=CLUSTER,
        changes_answers=False,
    )


CLUSTER_SETTINGS = tuple(one.name for one in fields(ClusterSettings))
