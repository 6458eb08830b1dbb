"""FaultyCloud: a cloud that fails, hangs, cuts, corrupts and lies on request, also inside worker processes.

For tests only: registry.py wraps a cloud in it for a URL `faulty+<url>` or the option `fault.plan`, and refuses both
unless CUCKOO_TESTING=1.  The plan is a JSON file that the test may replace at any time; it is read before every call,
and calls are counted across all processes in `<plan>.counts`, so "the 3rd put" means the drive's, not a worker's.

    {"seed": 7, "rules": [
       {"calls": ["put"], "match": "/packs/", "nth": 3, "action": "fail"},
       {"calls": ["get_range"], "probability": 0.5, "action": "corrupt"},
       {"calls": ["put"], "from": 10, "times": 2, "action": "full"}]}

A rule counts the calls it matches (`calls`: all if absent; `match`: part of the name) from 1 and acts on call `nth`, on
`times` calls from call `from` (for ever without `times`), with `probability` (the same for the same seed, rule and
count), or, with none of these, on every one.  The first rule that acts decides.  Actions:

* `fail`, `full`, `refuse`, `timeout`, `missing`, `not_ours`, `busy` (`seconds`: the pause it asks for): the call is not
  made, and raises the matching CloudError;
* `delay` (`seconds`): then the call is made; `hang`: it never returns, only killing the process ends it;
* `cut`: put stores the first half and fails; get and get_range give the first half;
* `corrupt`: put stores, or get gives, bytes of which one is flipped;
* `lie_success`: put and delete do nothing and return as if they had; `lie_failure`: they are made, then fail;
* `kill`: the process ends at once, as by the OOM killer, before the call; `kill_after`: after it.

With `expect.…` options the check of drive.json counts as a get, once per process that opens the cloud.
Threads and processes: any number; the counts file is locked for the moment of counting.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from typing import Final

from attrs import evolve, field, frozen

from cuckoo_mount.clouds.base import Capabilities, Cloud, CloudSettings, ObjectInfo, Space
from cuckoo_mount.errors import (
    CloudBusy,
    CloudError,
    CloudFull,
    CloudMissing,
    CloudNotOurs,
    CloudRefused,
    CloudTimeout,
    CloudUnavailable,
    UsageError,
)

_RAISED: Final[dict[str, type[CloudError]]] = {
    "busy": CloudBusy,
    "fail": CloudUnavailable,
    "full": CloudFull,
    "refuse": CloudRefused,
    "timeout": CloudTimeout,
    "missing": CloudMissing,
    "not_ours": CloudNotOurs,
}
_OTHER_ACTIONS: Final = frozenset(
    {"delay", "hang", "cut", "corrupt", "lie_success", "lie_failure", "kill", "kill_after"}
)
_CALLS: Final = frozenset({"put", "get", "get_range", "delete", "list", "space"})
_HANG_S: Final = 86400.0


@frozen(slots=True, kw_only=True)
class FaultRule:
    """One rule of a plan; see the module's docstring.  `first` is the plan's `from`."""

    action: str = field()
    calls: tuple[str, ...] = ()
    match: str = ""
    nth: int | None = None
    first: int | None = None
    times: int | None = None
    probability: float | None = None
    seconds: float = 0.0

    @action.validator
    def _known(self, _: object, value: str) -> None:
        if value not in _RAISED and value not in _OTHER_ACTIONS:
            raise UsageError(f"fault plan: no action {value!r}")

    def acts(self, count: int, seed: str) -> bool:
        """Return whether the rule acts on the `count`-th (from 1) call it matches.  Pure."""
        if self.nth is not None:
            return count == self.nth
        if self.first is not None:
            return count >= self.first and (self.times is None or count < self.first + self.times)
        if self.probability is not None:
            return random.Random(f"{seed}:{count}").random() < self.probability
        return self.times is None or count <= self.times


@frozen(slots=True)
class FaultPlan:
    """All rules, in order, and the seed of the random ones."""

    rules: tuple[FaultRule, ...] = ()
    seed: int = 0


def read_plan(path: str) -> FaultPlan:
    """Return the plan in file `path`; without such a file nothing fails.  Raises: UsageError for a bad one."""
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
    except FileNotFoundError:
        return FaultPlan()
    rules = []
    for rule in record.get("rules", []):
        values = dict(rule)
        values["calls"] = tuple(values.get("calls", ()))
        if not _CALLS.issuperset(values["calls"]):
            raise UsageError(f"fault plan: no call {values['calls']!r}")
        values["first"] = values.pop("from", None)
        rules.append(FaultRule(**values))
    return FaultPlan(tuple(rules), int(record.get("seed", 0)))


def write_plan(path: str, *rules: dict[str, object], seed: int = 0) -> None:
    """Put a new plan in place at once, and start counting anew.  For tests."""
    fresh = f"{path}.new"
    with open(fresh, "w", encoding="utf-8") as file:
        json.dump({"seed": seed, "rules": list(rules)}, file)
    with _Counts(path) as counts:
        counts.clear()
        os.rename(fresh, path)


def read_counts(path: str) -> dict[str, int]:
    """Return how often each call was made ("put": 3) and each rule acted ("acted 0": 1) since `write_plan`."""
    with _Counts(path) as counts:
        return dict(counts)


class _Counts:
    """The counts beside a plan, locked against other threads and processes while open."""

    def __init__(self, plan: str) -> None:
        self._path = f"{plan}.counts"

    def __enter__(self) -> dict[str, int]:
        # Own file description per use: flock keeps threads apart too.
        self._file = open(self._path, "a+", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.seek(0)
        text = self._file.read()
        self._counts: dict[str, int] = json.loads(text) if text else {}
        return self._counts

    def __exit__(self, *_: object) -> None:
        self._file.seek(0)
        self._file.truncate()
        json.dump(self._counts, self._file)
        self._file.close()


class FaultyCloud:
    """`inner` as the plan in file `plan_path` lets it be; without a path, `inner` as it is."""

    def __init__(self, inner: Cloud, plan_path: str) -> None:
        self._inner = inner
        self._plan_path = plan_path

    @property
    def settings(self) -> CloudSettings:
        return self._inner.settings

    @property
    def capabilities(self) -> Capabilities:
        # Each delete by itself, so that a plan can have one of them fail.
        return evolve(self._inner.capabilities, delete_batch=1)

    def put(self, name: str, data: bytes | memoryview) -> None:
        action = self._before("put", name)
        if action == "lie_success":
            return
        if action == "cut":
            self._inner.put(name, bytes(data[: len(data) // 2]))
            raise self._error(CloudUnavailable, "cut short on purpose", name)
        self._inner.put(name, _flip(bytes(data)) if action == "corrupt" else data)
        self._after(action, name)

    def get(self, name: str) -> bytes:
        action = self._before("get", name)
        data = _damage(action, self._inner.get(name))
        self._after(action, name)
        return data

    def get_range(self, name: str, offset: int, length_bytes: int) -> bytes:
        action = self._before("get_range", name)
        data = _damage(action, self._inner.get_range(name, offset, length_bytes))
        self._after(action, name)
        return data

    def delete(self, name: str) -> None:
        action = self._before("delete", name)
        if action != "lie_success":
            self._inner.delete(name)
        self._after(action, name)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        action = self._before("list", prefix)
        found = [*self._inner.list(prefix)]
        yield from found[: len(found) // 2] if action == "cut" else found
        self._after(action, prefix)

    def space(self) -> Space | None:
        action = self._before("space", "")
        room = self._inner.space()
        self._after(action, "")
        return room

    def close(self) -> None:
        self._inner.close()

    def _before(self, call: str, name: str) -> str:
        """Count the call; do what comes before it.  Returns the action, "" for none.  Raises: what the plan says."""
        rule = self._decide(call, name)
        if rule is None:
            return ""
        if rule.action == "busy":
            raise CloudBusy("busy on purpose", cloud=self.settings.name, name=name, retry_after_s=rule.seconds)
        if rule.action in _RAISED:
            raise self._error(_RAISED[rule.action], f"{rule.action} on purpose", name)
        if rule.action in ("delay", "hang"):
            time.sleep(_HANG_S if rule.action == "hang" else rule.seconds)
        if rule.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return rule.action

    def _after(self, action: str, name: str) -> None:
        if action == "lie_failure":
            raise self._error(CloudUnavailable, "done, but said to have failed on purpose", name)
        if action == "kill_after":
            os.kill(os.getpid(), signal.SIGKILL)

    def _decide(self, call: str, name: str) -> FaultRule | None:
        if not self._plan_path:
            return None
        with _Counts(self._plan_path) as counts:
            plan = read_plan(self._plan_path)
            counts[call] = counts.get(call, 0) + 1
            for number, rule in enumerate(plan.rules):
                if (rule.calls and call not in rule.calls) or rule.match not in name:
                    continue
                key = f"matched {number}"
                counts[key] = counts.get(key, 0) + 1
                if rule.acts(counts[key], f"{plan.seed}:{number}"):
                    counts[f"acted {number}"] = counts.get(f"acted {number}", 0) + 1
                    return rule
        return None

    def _error(self, kind: type[CloudError], message: str, name: str) -> CloudError:
        return kind(message, cloud=self.settings.name, name=name)


def _flip(data: bytes) -> bytes:
    """Return `data` with one bit of the middle byte changed; empty data stays empty."""
    if not data:
        return data
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _damage(action: str, data: bytes) -> bytes:
    if action == "cut":
        return data[: len(data) // 2]
    return _flip(data) if action == "corrupt" else data
