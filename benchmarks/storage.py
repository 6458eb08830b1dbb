"""Where the rivals keep their content: a folder, as cuckoo-mount does, or an S3 server at the end of a slow link."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final, Protocol

from attrs import frozen

from benchmarks.processes import end, free_port, start, wait_for_port

HERE: Final = Path(__file__).resolve().parent
ACCESS_KEY: Final = "benchmark"
SECRET_KEY: Final = "benchmark-secret"


@frozen(slots=True)
class S3Place:
    """A bucket, spoken to at `url`."""

    url: str
    bucket: str


class Storage(Protocol):
    """A place for one peer's content."""

    folder: Path
    """Where the bytes end up on this machine."""
    s3: S3Place | None
    """How it is spoken to; None: as a folder."""

    def counts(self) -> Counter[str]:
        """Return what has gone over the link so far: requests, bytes up, bytes down."""

    def close(self) -> None:
        """End what was started."""


class FolderStorage:
    """A folder of the same disk."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.s3: S3Place | None = None

    def counts(self) -> Counter[str]:
        return Counter()

    def close(self) -> None: ...


class S3Storage:
    """`rclone serve s3` behind slowlink.py.  Raises: Failed, if one of them does not start."""

    def __init__(self, folder: Path, *, rclone: str, rtt_ms: float, mbit: float) -> None:
        bucket = "bench"
        self.folder = folder / bucket
        self.folder.mkdir(parents=True)
        server_port, link_port = free_port(), free_port()
        self.s3: S3Place | None = S3Place(f"http://127.0.0.1:{link_port}", bucket)
        self._log = open(folder / "server.log", "ab")  # noqa: SIM115 - open as long as the server; see close
        serve = [rclone, "serve", "s3", str(folder), "--addr", f"127.0.0.1:{server_port}"]
        keys = ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--vfs-cache-mode", "off"]
        self._server = start([*serve, *keys], log=self._log)
        wait_for_port(server_port, self._server)
        ports = [str(link_port), str(server_port)]
        self._link = subprocess.Popen(
            [sys.executable, str(HERE / "slowlink.py"), *ports, "--rtt-ms", str(rtt_ms), "--mbit", str(mbit)],
            stdout=subprocess.PIPE,
        )
        wait_for_port(link_port, self._link)

    def counts(self) -> Counter[str]:
        assert self._link.stdout is not None
        self._link.send_signal(signal.SIGUSR1)
        return Counter(json.loads(self._link.stdout.readline()))

    def close(self) -> None:
        for process in (self._link, self._server):
            process.terminate()
            end(process)
        self._log.close()
