"""What every peer has to do, in this order.  Each one is a command or a method of the peer, so that it can be timed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from benchmarks.peers import HERE, Peer
from benchmarks.processes import run
from benchmarks.source import Source

Action = Callable[[], float | None]
"""Does it; returns the seconds if it measured them itself."""
RANDOM_FILE_MIB: Final = 16


@frozen(slots=True)
class Work:
    """`untimed`: only prepares what follows, and is not shown.  `checks_data`: when it fails, bytes are wrong."""

    name: str
    act: Action
    untimed: bool = False
    checks_data: bool = False


@frozen(slots=True)
class Workloads:
    """All work on one peer."""

    peer: Peer
    source: Source
    fsync_writes: int
    timeout_s: float

    def __iter__(self) -> Iterator[Work]:
        yield from self._tree()
        yield from self._big_file()
        yield from self._random_writes()
        if self.peer.keeps_content:
            yield from self._cold()
        yield from self._verify()
        yield Work("rm -rf", self._command("rm", "-rf", self._place))

    @property
    def _place(self) -> Path:
        return self.peer.mnt / "tree"

    @property
    def _big(self) -> Path:
        return self.peer.mnt / "big"

    def _tree(self) -> Iterator[Work]:
        yield Work("mkdir", self._command("mkdir", self._place), untimed=True)
        yield Work("untar", self._command("tar", "xf", self.source.tarball, "-C", self._place))
        yield Work("untar: sent", self._method(self.peer.send))
        yield Work("find -ls", self._command("find", self._place, "-ls"))
        yield Work("find -ls again", self._command("find", self._place, "-ls"))
        if shutil.which("rsync"):
            folders = (f"{self.source.reference}/", f"{self._place}/")
            yield Work("rsync -an", self._command("rsync", "-an", "--delete", *folders))
        yield Work("re-read tree", self._read_tree())

    def _big_file(self) -> Iterator[Work]:
        yield Work(
            "seq write+fsync",
            self._command("dd", f"if={self.source.blob}", f"of={self._big}", "bs=1M", "conv=fsync"),
        )
        yield Work("seq write: sent", self._method(self.peer.send))
        yield Work("forget pages", self._forget_pages(), untimed=True)
        yield Work("seq read", self._read_big())
        yield Work("seq re-read", self._read_big())

    def _random_writes(self) -> Iterator[Work]:
        target = self.peer.mnt / "random"
        count = f"count={RANDOM_FILE_MIB}"
        yield Work("make file", self._command("dd", "if=/dev/zero", f"of={target}", "bs=1M", count), untimed=True)
        yield Work("send file", self._method(self.peer.send), untimed=True)
        yield Work("4 KiB write+fsync", lambda: self._fsync_random(target))

    def _cold(self) -> Iterator[Work]:
        yield Work("unmount", self._method(self.peer.unmount))
        yield Work("empty cache", self._method(self.peer.empty_cache), untimed=True)
        yield Work("mount", self._method(self.peer.mount))
        yield Work("cold find -ls", self._command("find", self._place, "-ls"))
        yield Work("cold read tree", self._read_tree())
        first = self._command("dd", f"if={self._big}", "of=/dev/null", "bs=4096", "count=1")
        yield Work("cold first block", first)
        yield Work("cold seq read", self._read_big())

    def _verify(self) -> Iterator[Work]:
        same = self._command("diff", "-r", "--no-dereference", self.source.reference, self._place)
        yield Work("verify tree", same, checks_data=True)
        yield Work("verify big", self._command("cmp", self.source.blob, self._big), checks_data=True)

    # -- actions --

    def _command(self, *command: str | Path) -> Action:
        def act() -> None:
            run(command, timeout_s=self.timeout_s, log=self.peer.log)

        return act

    def _method(self, method: Callable[[], None]) -> Action:
        def act() -> None:
            method()

        return act

    def _read_tree(self) -> Action:
        # Not `tar -f /dev/null`: tar knows that file, and reads nothing.
        return self._command("sh", "-c", 'tar cf - -C "$1" . | cat >/dev/null', "sh", self._place)

    def _read_big(self) -> Action:
        return self._command("dd", f"if={self._big}", "of=/dev/null", "bs=1M")

    def _forget_pages(self) -> Action:
        return self._command("dd", f"if={self._big}", "iflag=nocache", "count=0")

    def _fsync_random(self, target: Path) -> float:
        if not shutil.which("fio"):
            program: Sequence[str | Path] = (sys.executable, HERE / "fsyncwrites.py", target, str(self.fsync_writes))
            return float(run(program, timeout_s=self.timeout_s, log=self.peer.log))
        what = ["--name=x", f"--filename={target}", "--rw=randwrite", "--bs=4k", "--fsync=1", "--ioengine=psync"]
        size = [f"--size={RANDOM_FILE_MIB}M", f"--number_ios={self.fsync_writes}", "--fallocate=none"]
        printed = run(["fio", *what, *size, "--output-format=json"], timeout_s=self.timeout_s, log=self.peer.log)
        # It may print warnings first.
        job = json.loads(printed[printed.index("{") :])["jobs"][0]
        return float(job["write"]["runtime"]) / 1e3
