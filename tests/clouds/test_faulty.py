"""FaultyCloud does to the n-th call what its plan says, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.clouds.osfs import FolderCloud
from cuckoo_mount.errors import (
    CloudError,
    CloudFull,
    CloudMissing,
    CloudNotOurs,
    CloudRefused,
    CloudTimeout,
    CloudUnavailable,
    UsageError,
)
from cuckoo_mount.testing.faulty import FaultyCloud, read_counts, write_plan


@pytest.fixture
def plan(tmp_path: Path) -> str:
    return str(tmp_path / "plan")


@pytest.fixture
def open_cloud(tmp_path: Path, plan: str) -> Callable[[], FaultyCloud]:
    root = tmp_path / "root"
    root.mkdir()
    return lambda: FaultyCloud(FolderCloud(CloudSettings(name="faulty", url=""), str(root)), plan)


Open = Callable[[], FaultyCloud]


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        ("fail", CloudUnavailable),
        ("full", CloudFull),
        ("refuse", CloudRefused),
        ("timeout", CloudTimeout),
        ("missing", CloudMissing),
        ("not_ours", CloudNotOurs),
    ],
)
def test_the_third_put_fails_in_all_openings(open_cloud: Open, plan: str, action: str, kind: type[CloudError]) -> None:
    write_plan(plan, {"calls": ["put"], "nth": 3, "action": action})
    open_cloud().put("a/1", b"1")
    open_cloud().get("a/1")
    open_cloud().put("a/2", b"2")
    with pytest.raises(kind):
        open_cloud().put("a/3", b"3")
    open_cloud().put("a/4", b"4")
    assert {info.name for info in open_cloud().list("")} == {"a/1", "a/2", "a/4"}
    assert read_counts(plan) == {"put": 4, "get": 1, "list": 1, "matched 0": 4, "acted 0": 1}


def test_a_new_plan_holds_from_the_next_call(open_cloud: Open, plan: str) -> None:
    cloud = open_cloud()
    cloud.put("a/x", b"1")
    write_plan(plan, {"action": "fail"})
    with pytest.raises(CloudUnavailable):
        cloud.get("a/x")
    write_plan(plan)
    assert cloud.get("a/x") == b"1"
    assert read_counts(plan) == {"get": 1}


def test_from_times_and_match(open_cloud: Open, plan: str) -> None:
    cloud = open_cloud()
    write_plan(plan, {"match": "/packs/", "from": 2, "times": 2, "action": "fail"})
    outcomes = []
    for number in range(5):
        cloud.put(f"a/other/{number}", b"x")
        try:
            cloud.put(f"a/packs/{number}", b"x")
            outcomes.append("done")
        except CloudUnavailable:
            outcomes.append("failed")
    assert outcomes == ["done", "failed", "failed", "done", "done"]


def test_probability_is_the_same_for_the_same_seed(open_cloud: Open, plan: str) -> None:
    def run(seed: int) -> list[bool]:
        write_plan(plan, {"probability": 0.5, "action": "lie_success"}, seed=seed)
        cloud = open_cloud()
        for number in range(40):
            cloud.put(f"s{seed}/{number}", b"x")
        write_plan(plan)
        stored = {info.name for info in cloud.list("")}
        outcome = [f"s{seed}/{number}" in stored for number in range(40)]
        for name in stored:
            cloud.delete(name)
        return outcome

    first = run(1)
    assert first == run(1)
    assert first != run(2)
    assert 5 < sum(first) < 35


def test_cut_and_corrupt(open_cloud: Open, plan: str) -> None:
    cloud = open_cloud()
    cloud.put("a/x", b"0123456789")
    write_plan(plan, {"calls": ["get"], "action": "cut"}, {"calls": ["get_range"], "action": "corrupt"})
    assert cloud.get("a/x") == b"01234"
    damaged = cloud.get_range("a/x", 0, 10)
    assert len(damaged) == 10
    assert damaged != b"0123456789"
    write_plan(plan, {"calls": ["put"], "action": "cut"})
    with pytest.raises(CloudUnavailable):
        cloud.put("a/y", b"0123456789")
    assert cloud.get("a/y") == b"01234"


def test_lies(open_cloud: Open, plan: str) -> None:
    cloud = open_cloud()
    write_plan(plan, {"calls": ["put", "delete"], "action": "lie_failure"})
    with pytest.raises(CloudUnavailable):
        cloud.put("a/x", b"1")
    assert cloud.get("a/x") == b"1"
    with pytest.raises(CloudUnavailable):
        cloud.delete("a/x")
    write_plan(plan, {"calls": ["put"], "action": "lie_success"})
    cloud.put("a/x", b"1")
    with pytest.raises(CloudMissing):
        cloud.get("a/x")


@pytest.mark.parametrize("rule", [{"action": "explode"}, {"action": "fail", "calls": ["post"]}])
def test_a_plan_with_a_mistake_is_refused(open_cloud: Open, plan: str, rule: dict[str, object]) -> None:
    write_plan(plan, rule)
    with pytest.raises(UsageError, match="fault plan"):
        open_cloud().get("a/x")
