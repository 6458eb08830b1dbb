"""The one wrapper around every handler: counts the call, and lets nothing but FUSEError out.

Used by operations.py.  pyfuse3 ends the mount on any other exception, so an error of ours becomes EIO and a logged
traceback.
A cancellation from outside (the mount is ending) passes through; one that only hits the handler becomes EIO.
Faults can be injected for tests by `Upcalls.faults`: the next call of that handler raises ValueError or
MemoryError, or is cancelled.
"""

from __future__ import annotations

import errno
import functools
import logging
import math
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Concatenate, Final, Literal, ParamSpec, Protocol, TypeVar

import pyfuse3
import trio
from attrs import define, field

from cuckoo_mount.errors import FileSystemError

log = logging.getLogger(__name__)
FULL_S: Final = 30.0
P = ParamSpec("P")
R = TypeVar("R")
Fault = Literal["ValueError", "MemoryError", "Cancelled"]


@define(slots=True, eq=False)
class Upcalls:
    """How often the kernel asked, by operation, what it was given unasked, and the faults waiting to be injected."""

    counts: Counter[str] = field(factory=Counter)
    pushes: int = 0
    pushed_bytes: int = 0
    faults: dict[str, Fault] = field(factory=dict)
    full_until_s: float = -math.inf

    def note_disk(self, operation: str, error: OSError, *, is_full: bool) -> None:
        """Log what the local disk answered; that it is full once in `FULL_S`, as every WRITE finds that out."""
        now_s = trio.current_time()
        if is_full and now_s < self.full_until_s:
            return
        if is_full:
            self.full_until_s = now_s + FULL_S
        log.error("%s: the local disk answered: %s", operation, error)


class HasUpcalls(Protocol):
    """What the wrapper needs of the class whose methods it wraps."""

    upcalls: Upcalls


S = TypeVar("S", bound=HasUpcalls)
Handler = Callable[Concatenate[S, P], Coroutine[object, object, R]]


def guarded(handler: Handler[S, P, R]) -> Callable[Concatenate[S, P], Coroutine[object, object, R]]:
    """Wrap a handler that answers the kernel."""
    name = getattr(handler, "__name__", "handler")

    @functools.wraps(handler)
    async def wrapper(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        upcalls = self.upcalls
        upcalls.counts[name] += 1
        try:
            if upcalls.faults and name in upcalls.faults:
                await _inject(upcalls.faults.pop(name))
            return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except FileSystemError as error:
            if error.errno in (errno.EIO, errno.ETIMEDOUT):
                log.error("%s: %s", name, error)
            raise pyfuse3.FUSEError(error.errno) from error
        except OSError as error:
            code = _disk_errno(error)
            upcalls.note_disk(name, error, is_full=code == errno.ENOSPC)
            raise pyfuse3.FUSEError(code) from error
        except Exception as error:
            log.exception("%s failed; this is a bug in cuckoo-mount, please report it", name)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return wrapper


def guarded_silent(
    handler: Callable[Concatenate[S, P], Coroutine[object, object, None]],
) -> Callable[Concatenate[S, P], Coroutine[object, object, None]]:
    """Wrap a handler whose outcome the kernel does not wait for (forget): errors are logged only."""
    loud = guarded(handler)

    @functools.wraps(handler)
    async def wrapper(self: S, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            await loud(self, *args, **kwargs)
        except pyfuse3.FUSEError as error:
            log.debug("%s ended with %s", getattr(handler, "__name__", "handler"), error)

    return wrapper


def _disk_errno(error: OSError) -> int:
    """Return what a program is told when our local disk refused: lack of room and size are its business, else EIO."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errno.ENOSPC
    return errno.EFBIG if error.errno == errno.EFBIG else errno.EIO


async def _inject(fault: Fault) -> None:
    if fault == "Cancelled":
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio.lowlevel.checkpoint()
        if scope.cancelled_caught:
            raise RuntimeError("the handler was cancelled")
    raise ValueError("injected") if fault == "ValueError" else MemoryError("injected")
