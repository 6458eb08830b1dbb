"""What `status` shows of one cloud, put together from those who know it.

Used by multi/multifs.py.  Never waits.
"""

from __future__ import annotations

from cuckoo_mount.clouds.translate import hide_secrets
from cuckoo_mount.multi.health import Health
from cuckoo_mount.multi.records import CloudEntry, CloudStatistics
from cuckoo_mount.multi.requests import CloudRequests
from cuckoo_mount.multi.rooms import Rooms
from cuckoo_mount.types import CloudName


def cloud_statistics(
    name: CloudName, entry: CloudEntry, health: Health, rooms: Rooms, requests: CloudRequests
) -> CloudStatistics:
    """Return a cloud's figures."""
    state, counters = health.state(name), health.counters(name)
    packs, used_bytes = rooms.usage(name)
    return CloudStatistics(
        name=name,
        url=hide_secrets(entry.settings.url, entry.settings),
        state=state.condition.value,
        use=entry.use.value,
        used_bytes=used_bytes,
        capacity_bytes=rooms.capacity_bytes(name),
        packs=packs,
        requests=counters.requests,
        errors=counters.errors,
        bytes_up=counters.bytes_up,
        bytes_down=counters.bytes_down,
        rejected=counters.rejected,
        hedged=counters.hedged,
        requests_per_second=requests.per_second(name),
        sending_bytes=rooms.sending_bytes(name),
        last_error=hide_secrets(state.last_error, entry.settings),
        last_error_age_s=health.error_age_s(name),
    )
