"""What must change nothing that programs see, done again and again in a thread while they work.

Used by test_fsx.py and test_mmap_stress.py: what was written goes to the cloud and leaves this machine, the kernel's
pages are dropped, so that reads fetch while writes go on.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from types import TracebackType

from tests.mount.mounting import Mount


class Disturber:
    """Disturbs a mount from `__enter__` to `__exit__`, which raises what a disturbance raised.

    `pause_s`: how long nothing is done in between, so that the program gets on; 0 never pauses.
    """

    def __init__(self, mount: Mount, seed: int, *, pause_s: float) -> None:
        self._mount = mount
        self._dice = random.Random(seed)
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="disturber", daemon=True)
        self.counts: Counter[str] = Counter()
        self.evicted_bytes = 0

    def __enter__(self) -> Disturber:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._pause_s):
                self._disturb(self._dice.choices(["sync", "evict", "write_out", "drop_caches"], [2, 6, 2, 1])[0])
        except BaseException as error:  # handed to who waits for the thread
            self._error = error

    def _disturb(self, what: str) -> None:
        self.counts[what] += 1
        if what == "evict":
            if self._dice.random() < 0.5:
                self._mount.sync()  # else most of what is still written to is not clean, and stays
            self.evicted_bytes += self._mount.evict()
        elif what == "sync":
            self._mount.sync()
        elif what == "write_out":
            self._mount.write_out()
        else:
            self._mount.drop_caches()
