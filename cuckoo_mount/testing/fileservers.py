"""Real servers for WebDAV, SFTP and FTP on loopback, for tests: rclone, wsgidav, OpenSSH, pyftpdlib.

    with file_server("wsgidav", tmp_path) as server:
        cloud = open_cloud(server.settings("first", folder=server.fresh_folder()))

Each serves the folder `data` of its own folder, has a free port and credentials of its own, and listens when
`file_server` gives it; it is ended by its process id.  What is stored can be looked at, and removed, on the disk: a
test that looks there does not trust the driver under test.  Any thread; blocks.  Needs the programs, which the extra
`test` and the packages of ./bootstrap test bring.
"""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.testing.fileserverkinds import KINDS, FileKind, Start
from cuckoo_mount.testing.serverprocess import HOST, POLL_S, ListeningServer, descendants, find_program, is_stopped


class FileServer(ListeningServer):
    """A running server.  `user` may log in with `password`, or as the kind has it, and do everything in `data`."""

    def __init__(self, kind: str, folder: Path) -> None:
        """Start a server of `kind` with its data in `folder`, which may not exist yet; return when it listens.

        Raises: RuntimeError with the end of the server's log; FileNotFoundError for a program that is missing.
        """
        super().__init__(kind, folder)
        self._row: Final[FileKind] = KINDS[kind]
        self.user: Final = self._row.user or f"user{secrets.token_hex(4)}"
        self.password: Final = secrets.token_hex(12)
        self._numbers = itertools.count(1)
        self.data.mkdir(parents=True, exist_ok=True)
        self._start_on_free_ports(2)

    def fresh_folder(self) -> str:
        """Return the name of a new folder in `data`: a storage of its own for a test."""
        name = f"test-{next(self._numbers)}"
        (self.data / name).mkdir()
        self.notice()
        return name

    def url(self, folder: str = "", *, port: int | None = None, **options: str) -> str:
        """Return the URL of `folder`, without a password; `port`: of a proxy in front of it."""
        root = self._row.root(self.data)
        query = urlencode({**self._row.options(self.folder, port or self.port), **options})
        return f"{self._row.scheme}://{HOST}:{port or self.port}{root}/{folder}{'?' if query else ''}{query}"

    def secrets(self) -> tuple[tuple[str, str], ...]:
        """Return the credentials as the `secrets` of CloudSettings."""
        password = (("password", self.password),) if self._row.takes_passwords else ()
        return (*password, ("user", self.user))

    def settings(
        self, name: str = "far", folder: str = "", *, port: int | None = None, timeout_s: float = 30.0, **options: str
    ) -> CloudSettings:
        """Return the settings of a cloud there; for the rest see `url`."""
        url = self.url(folder, port=port, **options)
        return CloudSettings(name=name, url=url, secrets=self.secrets(), timeout_s=timeout_s)

    def start(self) -> None:
        """Start it on its port with its data, and wait until it listens.  Raises: RuntimeError."""
        launch = self._row.launch(
            Start(
                folder=self.folder,
                port=self.port,
                control_port=self._ports[1],
                user=self.user,
                password=self.password,
            )
        )
        for command in launch.before:
            subprocess.run([find_program(command[0]), *command[1:]], check=True, capture_output=True)
        self._start_with(launch.command, launch.environment)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let it answer nothing meanwhile, while the kernel still accepts connections for it."""
        processes = [self.pid, *descendants(self.pid)]
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        while not all(map(is_stopped, processes)):  # a thread that runs just now may still answer
            time.sleep(POLL_S)
        try:
            yield
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGCONT)

    def remove_folder(self, folder: str) -> None:
        """Remove `folder` of `data` and all in it."""
        shutil.rmtree(self.data / folder)
        self.notice()

    def notice(self) -> None:
        """Make it forget what folders on the disk were like: they were changed behind its back."""
        self._row.notice(self._ports[1])

    def __repr__(self) -> str:
        return f"FileServer({self.kind!r}, port {self.port})"


@contextmanager
def file_server(kind: str, folder: Path) -> Iterator[FileServer]:
    """Give a running server of `kind`, and stop it afterwards; see `FileServer`."""
    server = FileServer(kind, folder)
    try:
        yield server
    finally:
        server.stop()
