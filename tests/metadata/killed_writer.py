"""Run by test_kill.py: changes a store and promises on standard output, line by line, what is durable; never ends."""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from cuckoo_mount.metadata.store import StoreOptions, open_store
from tests.metadata.helpers import ROOT, make_file, pack_all, write


async def main(path: str, start: int) -> None:
    store = await open_store(Path(path), StoreOptions(log_soft_bytes=64 << 10, log_hard_bytes=256 << 10))
    number = start
    while True:
        name = b"%d" % number
        ino = await make_file(store, name)
        await write(store, ino, 0, number)
        if number % 3 == 0:
            await pack_all(store, number + 1)
        if number % 5 == 0:
            await store.rename(ROOT, name, ROOT, b"renamed-" + name, now_ns=number)
        if number % 7 == 0 and number > start:
            await store.commit()
        if number % 2:
            await store.make_durable()
            print(number, flush=True)
        number += 1


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]))
