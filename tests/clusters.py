"""A Ray cluster for tests: a head without work, and nodes of one CPU each, all on this machine."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cases import ROOT


@contextmanager
def cluster(nodes: int) -> Iterator[Any]:
    """A running cluster; `add_node(num_cpus=1)` and `remove_node(node, allow_graceful=False)` are its own."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))  # workers import what tests import
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        warnings.simplefilter("ignore")  # Ray's own, of its own parts
        from ray.cluster_utils import Cluster

        logging.getLogger("ray").setLevel(logging.ERROR)
        running = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            for _ in range(nodes):
                running.add_node(num_cpus=1)
            yield running
        finally:
            running.shutdown()
