"""How a drive's status is shown to people, in any width, and what they should know or do about it.

Used by status.py.  Pure: everything comes from the record that `cuckoo status --json` prints, fields that are missing
or null are left out.  What colour says is also said in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final, cast

from attrs import frozen

from cuckoo_mount.cli.common import drive_argument
from cuckoo_mount.cli.sending import WELL, describe, describe_trouble, human_time, records
from cuckoo_mount.config.paths import shown
from cuckoo_mount.config.sizes import human_size
from cuckoo_mount.errors import UsageError
from cuckoo_mount.multi.redundancy import Policy, describe_policy, parse_policy
from cuckoo_mount.types import CHUNK_SIZE_BYTES

if TYPE_CHECKING:
    from rich.console import RenderableType

Status = Mapping[str, object]
OK: Final = "ok"
UNBOUNDED_WIDTH: Final = 4000
"""For what is no terminal: nothing is cut or wrapped."""
_BAR_WIDTH: Final = 12
_OLD_ERROR_S: Final = 86_400.0
_COLOURS: Final = {
    **dict.fromkeys((OK, "read-only", "draining", "drained"), "green"),
    **dict.fromkeys(("unknown", "full", "degraded", "slow"), "yellow"),
}
_HINTS: Final = {
    "down": "It is asked again by itself; to see more: cuckoo cloud test {name}{option}",
    "slow": "Others are asked first, and get what is new, until it is as fast as usual.",
    "failing": "Others are asked first, and get what is new, until it fails less.",
    "read-only": "What is there is read.  Storing is tried again every 5 minutes; to see more: cuckoo cloud test "
    "{name}{option}",
    "needs-login": "Give it its secrets anew: cuckoo cloud set {name} --secret K=prompt{option}",
    "refused": "When that is mended, or with another secret: cuckoo cloud set {name} --secret K=prompt{option}",
    "full": "Make room there, raise its limit (cuckoo cloud set {name} --capacity SIZE{option}), or add a cloud: "
    "cuckoo cloud add NAME URL{option}",
    "not-ours": "If the storage has moved: cuckoo cloud set {name} --url URL{option}",
}
_LOG_IN: Final = "Log in again: cuckoo cloud login {name}{option}"


@frozen(slots=True)
class _Column:
    """A column of the table of clouds; `from_width`: the terminal has to be so wide for it."""

    title: str
    key: str
    from_width: int = 0
    is_size: bool = True


_COLUMNS: Final = (
    _Column("used", "used_bytes"),
    _Column("of", "capacity_bytes", 50),
    _Column("packs", "packs", 70, is_size=False),
    _Column("sending", "sending_bytes", 88),
    _Column("up", "bytes_up", 100),
    _Column("down", "bytes_down", 100),
    _Column("requests", "requests", 120, is_size=False),
    _Column("errors", "errors", 78, is_size=False),
)


def render(status: Status, *, width: int, rate: float = 0.0) -> RenderableType:
    """Return the status for a terminal of `width` columns.  `rate`: bytes sent per second, 0 for not known."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in lines(status, rate=rate):
        style = _COLOURS.get(value, "red") if name == "state" else ""
        grid.add_row(Text(name, style="bold"), Text(value, style=style))
    parts: list[RenderableType] = [grid]
    if clouds_of(status):
        parts += [Text(), _clouds_table(status, width)]
    for texts, style in ((notes_on(status), "yellow"), (old_errors(status), "dim")):
        parts += [Text(), *(Text(text, style=style) for text in texts)] if texts else []
    return Group(*parts)


def lines(status: Status, *, rate: float = 0.0) -> Iterator[tuple[str, str]]:
    """Yield what stands above the table, as (title, value)."""
    redundancy = status.get("redundancy")
    policy = _policy_of(status)
    copies = f"redundancy {redundancy}" if policy is None else describe_policy(policy)
    yield "drive", f"{status.get('drive')} ({copies}, pid {status.get('pid')})"
    yield "mountpoint", shown(str(status.get("mountpoint")))
    yield "state", str(status.get("state"))
    yield "not yet sent", _queue(status, rate)
    yield "cache", _cache(_table(status, "cache"))
    yield "packs", _packs(_table(status, "packs"))
    if (space := _table(status, "space")) and clouds_of(status):
        free, total = human_size(_number(space, "free_bytes")), human_size(_number(space, "total_bytes"))
        yield "room", f"{free} of {total} left for files"
    epoch = _table(status, "epoch")
    if epoch.get("cloud") is not None:
        age = epoch.get("age_s")
        since = f", the state of {human_time(age)} ago" if isinstance(age, int | float) and age else ""
        here = f"{epoch.get('local')} here, " if epoch.get("local") != epoch["cloud"] else ""
        yield "epoch", f"{here}{epoch['cloud']} on the clouds{since}"


def _queue(status: Status, rate: float) -> str:
    pending = _table(status, "pending")
    if not is_unsent(status):
        return "nothing"
    on_way = [(str(cloud.get("name")), _number(cloud, "sending_bytes")) for cloud in clouds_of(status)]
    to = [f"{human_size(size)} on the way to {name}" for name, size in on_way if size]
    return "; ".join([describe(pending), *to, *([f"{human_size(int(rate))}/s"] if rate else [])])


def _cache(cache: Status) -> str:
    held = f"{human_size(_number(cache, 'bytes'))} of {human_size(_number(cache, 'limit_bytes'))}"
    hits, misses = _number(cache, "hits"), _number(cache, "misses")
    share = f" ({100 * hits // (hits + misses)} %)" if hits + misses else ""
    prefetched = _number(cache, "prefetched")
    ahead = f", {prefetched} read ahead" if prefetched else ""
    return f"{held}; {hits} hits{share}, {misses} misses{ahead}"


def _packs(packs: Status) -> str:
    stored, live, degraded = (_number(packs, key) for key in ("stored_bytes", "live_bytes", "degraded"))
    said = f"{_number(packs, 'count')}, {human_size(stored)} stored for {human_size(live)}"
    said += f", {degraded} degraded{_healing(_table(packs, 'healing'))}" if degraded else ""
    return f"{said}; some are being written anew for another redundancy" if packs.get("repacking") is True else said


def _healing(healing: Status) -> str:
    rate, left_s = healing.get("bytes_per_s"), healing.get("time_left_s")
    if not isinstance(rate, int | float) or not isinstance(left_s, int | float):
        return ""
    return f", healing at {human_size(int(rate))}/s, about {human_time(left_s)} left"


def _clouds_table(status: Status, width: int) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    columns = [column for column in _COLUMNS if width >= column.from_width]
    has_bar = 100 <= width < UNBOUNDED_WIDTH
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("cloud", overflow="fold")
    table.add_column("state", no_wrap=True)
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    table.add_column("fill", justify="right", no_wrap=True)
    if has_bar:
        table.add_column("", width=_BAR_WIDTH)
    for cloud in clouds_of(status):
        state, fill, use = str(cloud.get("state")), _fill(cloud), str(cloud.get("use") or "normal")
        table.add_row(
            Text(str(cloud.get("name"))),
            Text(state if use in ("normal", state) else f"{state}, {use}", style=_COLOURS.get(state, "red")),
            *(Text(_cell(cloud, column)) for column in columns),
            Text("?" if fill is None else f"{100 * fill:.0f} %"),
            *([ProgressBar(1.0, fill, width=_BAR_WIDTH) if fill is not None else Text()] if has_bar else []),
        )
    return table


def _cell(cloud: Status, column: _Column) -> str:
    value = cloud.get(column.key)
    if not isinstance(value, int):
        return "?"
    return human_size(value) if column.is_size else str(value)


def _fill(cloud: Status) -> float | None:
    """Return how much of its capacity we have filled, 0 to 1; None if it has no known one."""
    capacity = _number(cloud, "capacity_bytes")
    return min(1.0, _number(cloud, "used_bytes") / capacity) if capacity else None


def notes_on(status: Status) -> list[str]:
    """Return what the user should know or do, one line each."""
    return list(_notes(status))


def _notes(status: Status) -> Iterator[str]:
    clouds, option = clouds_of(status), drive_argument(str(status.get("drive", "default")))
    for cloud in clouds:
        state = str(cloud.get("state"))
        name = cloud.get("name")
        if cloud.get("use") == "draining":
            yield f"Cloud {name} is being drained, {_number(cloud, 'packs')} packs are left there."
        if state == "drained":
            yield f"Cloud {name} is drained; to take it off the list: cuckoo cloud remove {name}{option}"
        elif state not in WELL:
            has_login = state == "needs-login" and _has_login(str(cloud.get("url")))
            hint = (_LOG_IN if has_login else _HINTS.get(state, "")).format(name=name, option=option)
            yield "  ".join(filter(None, (f"{describe_trouble(cloud)}{_age(cloud)}.", hint)))
    if is_unsent(status):
        if status.get("state") == "offline":
            yield "Nothing can be sent now.  What is written stays safe on the local disk until a cloud is back."
        if error := _table(status, "cache").get("last_error"):
            yield f"Last trouble with sending: {error}"
    space = _table(status, "space")
    if clouds and "free_bytes" in space and _number(space, "free_bytes") < CHUNK_SIZE_BYTES:
        yield f"The clouds are full: delete something, raise a limit, or add a cloud: cuckoo cloud add NAME URL{option}"
    yield from _redundancy_notes(status, option)
    if len(clouds) == 1 and _is_folder(str(clouds[0].get("url", ""))):
        yield "One folder on the same disk is no backup: when this disk dies, the drive dies with it."
    if status.get("recovery_key_shown") is False:
        yield f"Keep the recovery key somewhere else than on this machine: cuckoo key show-recovery{option}"
    if reason := status.get("read_only_reason"):
        yield f"Read-only: {reason}."
    if _table(status, "epoch").get("cloud") is None and clouds:
        yield "Names and attributes are on this machine only, until the first epoch is on the clouds: cuckoo sync"


def _has_login(url: str) -> bool:
    # Not above: the table of drivers costs 10 ms, which only a cloud without a login is worth.
    from cuckoo_mount.clouds.logins import driver_with_login

    return driver_with_login(url) is not None


def _policy_of(status: Status) -> Policy | None:
    """Return the drive's redundancy, or None if the daemon, of another version, says something unknown."""
    try:
        return parse_policy(str(status.get("redundancy")))
    except UsageError:
        return None


def _redundancy_notes(status: Status, option: str) -> Iterator[str]:
    policy = _policy_of(status)
    clouds = sum(cloud.get("use") in (None, "normal", "no-new") for cloud in clouds_of(status))
    degraded = _number(_table(status, "packs"), "degraded")
    if policy is not None and clouds < policy.shares:
        wanted = describe_policy(policy)
        yield f"{wanted} need {policy.shares} clouds, there are {clouds}: cuckoo cloud add NAME URL{option}"
    if degraded:
        what = "1 pack has" if degraded == 1 else f"{degraded} packs have"
        yield f"{what} fewer copies than asked for: lose none of the clouds that have them."
    if lost := _number(_table(status, "scrub"), "lost"):
        what = "1 pack that" if lost == 1 else f"{lost} packs that"
        yield f"The last scrub found {what} no cloud has whole; it names the files: cuckoo scrub{option}"


def old_errors(status: Status) -> list[str]:
    """Return what went wrong lately with clouds that are well again, one line each."""
    return [
        f"cloud {cloud.get('name')} is well again after: {_bare_error(cloud)}{_age(cloud)}"
        for cloud in clouds_of(status)
        if cloud.get("state") == OK and cloud.get("last_error") and _error_age_s(cloud) < _OLD_ERROR_S
    ]


def _bare_error(cloud: Status) -> str:
    return str(cloud.get("last_error")).removeprefix(f"cloud {cloud.get('name')}: ")


def _error_age_s(cloud: Status) -> float:
    age = cloud.get("last_error_age_s")
    return float(age) if isinstance(age, int | float) else 0.0


def _age(cloud: Status) -> str:
    has_age = isinstance(cloud.get("last_error_age_s"), int | float)
    return f" ({human_time(_error_age_s(cloud))} ago)" if has_age else ""


def _is_folder(url: str) -> bool:
    scheme, separator, _ = url.partition("://")
    return not separator or scheme in ("osfs", "file")


def is_unsent(status: Status) -> bool:
    """Return whether something is not on the clouds."""
    pending = _table(status, "pending")
    return any(_number(pending, key) for key in ("bytes", "chunks", "changes"))


def clouds_of(status: Status) -> list[Status]:
    """Return the clouds of a status."""
    return records(status.get("clouds"))


def _table(status: Status, key: str) -> Status:
    found = status.get(key)
    return cast(Status, found) if isinstance(found, dict) else {}


def _number(table: Status, key: str) -> int:
    value = table.get(key)
    return value if isinstance(value, int) else 0
