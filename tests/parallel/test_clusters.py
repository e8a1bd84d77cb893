"""Clusters: every figure has a source, and what makes no sense is refused."""

import dataclasses

import pytest

from moe_lab.parallel.clusters import CLUSTERS, LINKS, Bus, Cluster, Link

FAST, SLOW = Link("fast", 100.0, 1.0, "toy"), Link("slow", 10.0, 5.0, "toy")
BUS = Bus(10.0, 1.0, 2.0, 8.0)


def test_every_figure_names_its_source():
    for name, cluster in CLUSTERS.items():
        assert cluster.name == name and len(cluster.source) > 20
        for link in (cluster.inside, cluster.between):
            assert link is None or LINKS[link.name] is link
    for link in LINKS.values():
        assert len(link.source) > 20
        assert link.latency_us > 0 or "latency not known" in link.source


def test_deepseek_v3s_cluster_is_as_published():
    cluster = CLUSTERS["H800"]
    assert (cluster.ranks, cluster.ranks_per_node, cluster.nodes) == (2048, 8, 256)
    assert cluster.inside.gigabytes_per_s / cluster.between.gigabytes_per_s == 3.2  # "roughly 3.2 times"
    assert cluster.tflop_s == pytest.approx(432 / 0.4373, rel=0.01)  # what the makers' own utilisation says


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ranks": 5}, "ranks_per_node must divide ranks=5, got 2"),
        ({"ranks": 0}, "ranks must be at least 1"),
        ({"ranks_per_node": 8}, r"ranks_per_node must be in 1..4"),
        ({"tflop_s": 0.0}, "tflop_s must be a finite number above 0"),
        ({"inside": None}, "inside must be a Link, got None and no bus"),
        ({"between": None}, "between must be a Link where there are 2 nodes"),
        ({"bus": BUS}, "bus is for ranks that share one machine"),
        ({"bus": BUS, "inside": None, "between": None}, "one node"),
    ],
)
def test_refuses_a_cluster_that_makes_no_sense(values, message):
    cluster = Cluster("toy", 4, 2, FAST, SLOW, 1.0, "toy")
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(cluster, **values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Link("toy", 0.0, 1.0, "toy"), "gigabytes_per_s must be"),
        (lambda: Link("toy", 1.0, -1.0, "toy"), "latency_us must be"),
        (lambda: Bus(-1.0, 1.0, 1.0, 1.0), "start_us must be"),
        (lambda: Bus(1.0, -1.0, 1.0, 1.0), "message_us must be"),
        (lambda: Bus(1.0, 1.0, 0.0, 1.0), "carried_gigabytes_per_s must be"),
        (lambda: Bus(1.0, 1.0, 1.0, -1.0), "kept_gigabytes_per_s must be"),
    ],
)
def test_refuses_links_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()
