"""PostgreSQL with its data on the mount, run by an ordinary user: pgbench, then an empty cache; pgbench, then a crash.

Each transaction of pgbench adds the same number to an account, a teller, a branch, and to a row of the history: the
four sums are equal, whatever happened, if no transaction was torn.
"""

from __future__ import annotations

import os
import pwd
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.mount.mounting import Mount
from tests.programs.running import OPEN, PROGRAM_S, without_cache

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(240)]

SUMS: Final = """
SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
       (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(delta) FROM pgbench_history),
       (SELECT count(*) FROM pgbench_history), (SELECT count(*) FROM pgbench_accounts)
"""
SETTINGS: Final = """
listen_addresses = ''
unix_socket_directories = '{socket}'
log_checkpoints = off
max_connections = 20
shared_buffers = 16MB
"""
LOAD: Final = ("-c", "4", "-j", "2")
START_S: Final = 100.0
ACCOUNTS: Final = 100_000
"""Of scale 1."""


def find_programs() -> Path:
    """Return the folder with the newest version's programs; Debian has them on nobody's PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if not found:
        pytest.skip("not installed: postgresql")
    return found[-1].parent


class Server:
    """PostgreSQL's programs, run by its user (or by whoever runs the tests, who is not root then)."""

    def __init__(self, mount: Mount) -> None:
        self.programs: Final = find_programs()
        self.mount: Final = mount
        self.data: Final = mount.path / "pg" / "data"
        self.local: Final = mount.folder / "pg"
        """The socket and pgbench's logs, on the local disk."""
        account = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        self.user: Final = account and account.pw_uid
        self.group: Final = account and account.pw_gid
        self.groups: Final[list[int] | None] = [] if account else None
        self.environment: Final = mount.environment | {"PGHOST": str(self.local), "PGUSER": "test", "TZ": "UTC"}

    def run(
        self, program: str, *arguments: str | Path, check: bool = True, timeout_s: float = PROGRAM_S
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [self.programs / program, *arguments],
            cwd=self.local,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.environment,
            timeout=timeout_s,
            check=False,
            text=True,
            user=self.user,
            group=self.group,
            extra_groups=self.groups,
        )
        if check:
            assert done.returncode == 0, f"{program}: {done.stdout}\n{self.log()}"
        return done

    def log(self) -> str:
        file = self.mount.folder / "postgres.log"
        return file.read_text("utf-8", "replace") if file.exists() else ""

    def make(self) -> None:
        """Make the database's folder, and pgbench's tables in it."""
        for folder in (self.local, self.data.parent):
            folder.mkdir(mode=0o700)
            if self.user is not None and self.group is not None:
                os.chown(folder, self.user, self.group)
        self.run(
            "initdb", "-D", self.data, "-U", "test", "--auth=trust", "--data-checksums", "--locale=C", "--encoding=UTF8"
        )
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(SETTINGS.format(socket=self.local))

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start the server, and stop it as an orderly shutdown does unless it was ended before.

        As a child of ours: pg_ctl would leave one whose end only process 1 sees.
        """
        with self.started("postgres", "-D", self.data) as server:
            end = time.monotonic() + START_S
            while self.run("pg_isready", "-q", check=False).returncode != 0:
                assert server.poll() is None, self.log()
                assert time.monotonic() < end, self.log()
            yield server
            if server.returncode is None:
                server.send_signal(signal.SIGINT)
                assert server.wait(PROGRAM_S) == 0, self.log()

    @contextmanager
    def started(self, program: str, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
        """Start a program that goes on meanwhile, and kill it at the end."""
        command: list[str | Path] = [self.programs / program, *arguments]
        with (
            (self.mount.folder / f"{program}.log").open("ab") as output,
            subprocess.Popen(
                command,
                cwd=self.local,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.environment,
                user=self.user,
                group=self.group,
                extra_groups=self.groups,
            ) as process,
        ):
            try:
                yield process
            finally:
                process.kill()

    def bench(self, *arguments: str) -> None:
        print(self.run("pgbench", "-n", *arguments, "postgres").stdout)

    def transactions(self) -> int:
        """Return how many there are in the history.  Fails if one of them is not whole."""
        said = self.run("psql", "-X", "-A", "-t", "-c", SUMS, "postgres").stdout
        accounts, tellers, branches, history, count, rows = (int(number) for number in said.split("|"))
        assert accounts == tellers == branches == history
        assert rows == ACCOUNTS
        return count


def kill_under(server: subprocess.Popen[bytes], mount: Mount) -> None:
    """Kill the daemon while the server is at work, then all of the server's processes; return when they are gone."""
    # Stopped, it starts no others, and cannot end by itself at what it finds then.
    server.send_signal(signal.SIGSTOP)
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    fds = [os.pidfd_open(int(word)) for word in children]
    mount.kill()
    for fd in fds:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    server.kill()
    server.wait(60)
    for fd in fds:
        assert select.select([fd], [], [], 60)[0], "a process of PostgreSQL does not end"
        os.close(fd)


def confirmed(server: Server) -> int:
    """Return how many transactions pgbench was told are committed: a line each in its logs."""
    return sum(len(file.read_bytes().splitlines()) for file in server.local.glob("confirmed.*"))


def crash(server: Server, before: int) -> None:
    """Start the server, kill the daemon under pgbench, then what is left of the server.

    `before`: how many transactions there have to be at first.
    """
    log = server.local / "confirmed"
    with server.running() as postgres:
        assert server.transactions() == before
        with server.started("pgbench", "-n", *LOAD, "-T", "100", "-l", f"--log-prefix={log}", "postgres") as bench:
            while server.transactions() < before + 100:
                assert bench.poll() is None
            kill_under(postgres, server.mount)
            # It notices that the server is gone, writes its logs out, and ends.
            assert bench.wait(60) != 0


def recover(server: Server, before: int, *, amcheck: bool = False) -> int:
    """Mount and start after a crash; return how many transactions are there: those that were confirmed at least."""
    server.mount.start(*OPEN)
    with server.running():
        after = server.transactions()
        print(f"{confirmed(server)} transactions were confirmed, {after - before} are there")
        assert confirmed(server) > 50
        assert after >= before + confirmed(server)
        if amcheck:
            server.run("pg_amcheck", "--heapallindexed", "--install-missing", "postgres")
    return after


@pytest.mark.long
def test_pgbench_then_an_empty_cache_then_a_crash(open_mount: Mount) -> None:
    server = Server(open_mount)
    open_mount.start(*OPEN)
    server.make()
    with server.running():
        server.bench("-i", "-q", "-s", "1")
        server.bench(*LOAD, "-T", "2")
        count = server.transactions()
        assert count > 0
    without_cache(open_mount, *OPEN)
    crash(server, count)
    assert recover(server, count) > count


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_pgbench_over_many_crashes(open_mount: Mount) -> None:
    open_mount.deadline_s = 1200
    server = Server(open_mount)
    open_mount.start(*OPEN)
    server.make()
    with server.running():
        server.bench("-i", "-q", "-s", "1")
        server.bench(*LOAD, "-T", "60")
        count = server.transactions()
    server.run("pg_checksums", "--check", "-D", server.data)
    without_cache(open_mount, *OPEN)
    with server.running():
        assert server.transactions() == count
    for _ in range(10):
        crash(server, count)
        count = recover(server, count, amcheck=True)
        for file in server.local.glob("confirmed.*"):
            file.unlink()
    server.run("pg_checksums", "--check", "-D", server.data)
