"""`cuckoo-mount` on a machine with another boot id: `python -m tests.mount.booting FILE ARGUMENT…`.

Run by powercut.py: after a cut the machine has been booted again, which the daemon has to notice.  FILE stands for
/proc/sys/kernel/random/boot_id.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cuckoo_mount import clock
from cuckoo_mount.cli.mount import main

if __name__ == "__main__":
    clock.boot_id_file = Path(sys.argv.pop(1))
    main()
