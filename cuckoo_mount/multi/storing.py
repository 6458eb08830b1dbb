"""Storing a pack: shares to distinct clouds at the same time, another cloud for every one that fails.

Used by multi/multifs.py.  For one trio loop.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

from cuckoo_mount.errors import CloudError, CloudUnavailable, CuckooError, DataUnavailable
from cuckoo_mount.format import pack_share_name
from cuckoo_mount.multi.health import Health, Request
from cuckoo_mount.multi.jobs import put_share
from cuckoo_mount.multi.placement import CloudState, choose
from cuckoo_mount.multi.records import CloudEntry, transfer_deadline_s
from cuckoo_mount.multi.redundancy import Policy, parse_policy
from cuckoo_mount.multi.requests import CloudRequests, gather
from cuckoo_mount.multi.rooms import Rooms
from cuckoo_mount.types import CloudName, CloudUse, ShareRow


class PackStorer:
    """Puts packs onto clouds; the state of one upload is in `_Upload`."""

    def __init__(
        self,
        clouds: Mapping[CloudName, CloudEntry],
        requests: CloudRequests,
        rooms: Rooms,
        health: Health,
        drive_id: bytes,
    ) -> None:
        self._clouds = clouds
        self._requests = requests
        self._rooms = rooms
        self._health = health
        self._drive_id = drive_id
        self._strays: dict[bytes, set[CloudName]] = {}
        self._halfway: dict[bytes, _Upload] = {}
        self._rounds = 0

    def take_strays(self, pack_id: bytes, shares: Sequence[ShareRow]) -> frozenset[CloudName]:
        """Return, and forget, the clouds where a failed upload of the pack may have left an object; see MultiFS."""
        return frozenset(self._strays.pop(pack_id, set()) - {share.cloud for share in shares})

    def forget(self, pack_id: bytes) -> None:
        """Forget the shares of an upload that was not finished, and the room they take: the pack is withdrawn."""
        self._strays.pop(pack_id, None)
        upload = self._halfway.pop(pack_id, None)
        if upload is not None:
            self._rooms.note_deleted(upload.clouds, upload.share_bytes)

    def check(self, intents: Collection[bytes]) -> list[str]:
        """Return what is wrong with what is remembered of uploads."""
        known = self._halfway.keys() | self._strays.keys()
        problems = [f"I-34: pack {pack_id.hex()} is remembered without an intent" for pack_id in known - set(intents)]
        sending = {name: self._rooms.sending_bytes(name) for name in self._clouds}
        if any(count < 0 or (count and not self._rounds) for count in sending.values()):
            problems.append(f"I-34: the account of shares on their way does not add up: {sending}")
        return problems

    async def put_pack(
        self,
        pack_id: bytes,
        path: str,
        size_bytes: int,
        policy: str,
        share_digest: bytes,
        fragments: Sequence[bytes] = (),
        *,
        rewriting: bool = False,
    ) -> tuple[ShareRow, ...]:
        """See MultiFS.put_pack."""
        upload = _Upload(
            pack_id, path, size_bytes, parse_policy(policy), fragments or share_digest, rewriting=rewriting
        )
        if pack_id in self._halfway:
            upload.stored.update(self._halfway.pop(pack_id).stored)
        try:
            await self._put_all(upload)
        except BaseException:
            if upload.stored:
                self._halfway[pack_id] = upload
            raise
        return tuple(upload.stored[share] for share in sorted(upload.stored))

    async def _put_all(self, upload: _Upload) -> None:
        while upload.missing:
            chosen = self._choose(upload)
            # Clouds that may be back are looked at meanwhile: the shares that can be stored do not wait for them.
            doubtful = self._doubtful(upload) if len(chosen) < len(upload.missing) else []
            if not chosen and not doubtful:
                break
            await self._run_round(upload, chosen, doubtful)
        if len(upload.stored) < upload.policy.data:
            why = "; ".join(str(error) for error in upload.failed.values()) or self._why_nobody(upload)
            few = "no cloud took it"
            if upload.policy.data > 1:
                few = f"{len(upload.stored)} clouds took a share, {upload.policy.data} are needed at least"
            raise CloudUnavailable(f"{few}: {why}", name=f"pack {upload.pack_id.hex()}")

    def _states(self, upload: _Upload) -> list[CloudState]:
        return self._rooms.states(rewriting=upload.rewriting)

    def _choose(self, upload: _Upload) -> list[CloudName]:
        usable = [state for state in self._states(upload) if state.name not in upload.failed]
        return choose(usable, upload.share_bytes, len(upload.missing), taken=upload.clouds)

    def _doubtful(self, upload: _Upload) -> list[CloudName]:
        return [
            name
            for name, entry in self._clouds.items()
            if not entry.read_only
            and entry.use is CloudUse.NORMAL
            and name not in upload.failed
            and not self._health.is_up(name)
            and self._health.may_ask(name)
        ]

    async def _run_round(self, upload: _Upload, chosen: Sequence[CloudName], doubtful: Sequence[CloudName]) -> None:
        shares = dict(zip(upload.missing, chosen, strict=False))
        puts = [partial(self._put_share, upload, share, cloud) for share, cloud in shares.items()]
        probes = [partial(self._requests.probe, cloud) for cloud in doubtful]
        # Counted before the first checkpoint: who chooses at the same time must see it.
        for cloud in shares.values():
            self._rooms.begin(cloud, upload.share_bytes)
        strays = self._strays.setdefault(upload.pack_id, set())
        strays.update(shares.values())
        stored: set[CloudName] = set()
        self._rounds += 1
        try:
            outcomes = await gather([*puts, *probes])
            stored.update(cloud for cloud, error in zip(shares.values(), outcomes, strict=False) if error is None)
        finally:
            self._rounds -= 1
            strays -= stored
            for cloud in shares.values():
                self._rooms.end(cloud, upload.share_bytes, stored=cloud in stored)
        for cloud, error in zip([*shares.values(), *doubtful], outcomes, strict=True):
            if isinstance(error, CloudError):
                upload.failed[cloud] = error
            elif isinstance(error, CuckooError):
                raise error  # about the local file: no other cloud would help
        rows = {
            share: ShareRow(share, cloud, upload.digest(share)) for share, cloud in shares.items() if cloud in stored
        }
        upload.stored.update(rows)

    async def _put_share(self, upload: _Upload, share: int, cloud: CloudName) -> None:
        name = pack_share_name(self._drive_id, upload.pack_id, share)
        size_bytes = upload.share_bytes
        try:
            await self._requests.ask(
                cloud,
                Request.WRITE,
                put_share,
                name,
                upload.path,
                upload.size_bytes,
                upload.policy,
                share,
                deadline_s=transfer_deadline_s(size_bytes),
                bytes_up=size_bytes,
            )
        except OSError as error:
            raise DataUnavailable(f"pack file {upload.path} cannot be read: {error.strerror}; build it again") from None

    def _why_nobody(self, upload: _Upload) -> str:
        if not self._clouds:
            return "the drive has no clouds; add one with `cuckoo cloud add`"
        others = [state for state in self._states(upload) if state.name not in upload.clouds]
        if not others:
            return "there is no other cloud; add some with `cuckoo cloud add`"
        return "; ".join(self._why_not(state, upload.share_bytes) for state in others)

    def _why_not(self, state: CloudState, size_bytes: int) -> str:
        if state.is_read_only:
            return f"cloud {state.name}: is read-only"
        if state.is_no_new:
            return f"cloud {state.name}: takes nothing new"
        known = self._health.state(state.name)
        if not state.is_up or state.is_full:
            return known.last_error or f"cloud {state.name}: is {known.condition.value}"
        return f"cloud {state.name}: has no room for {size_bytes} bytes besides what is kept in reserve"


class _Upload:
    """One pack on its way: what is stored where, which clouds failed, which share numbers are missing."""

    def __init__(
        self,
        pack_id: bytes,
        path: str,
        size_bytes: int,
        policy: Policy,
        digests: bytes | Sequence[bytes],
        *,
        rewriting: bool,
    ) -> None:
        self.pack_id = pack_id
        self.path = path
        self.size_bytes = size_bytes
        self.policy = policy
        self.rewriting = rewriting
        self.share_bytes = policy.share_bytes(size_bytes)
        self._digests = digests
        self.stored: dict[int, ShareRow] = {}
        self.failed: dict[CloudName, CloudError] = {}

    def digest(self, share: int) -> bytes:
        """Return the digest of a share: copies have one for all of them."""
        return self._digests if isinstance(self._digests, bytes) else self._digests[share]

    @property
    def missing(self) -> list[int]:
        return [share for share in range(self.policy.shares) if share not in self.stored]

    @property
    def clouds(self) -> frozenset[CloudName]:
        return frozenset(row.cloud for row in self.stored.values())
