"""Runs an operation again and again and cancels it at its 1st, 2nd, 3rd, … step, until it gets to its end.

Used by test_cancel.py.  A step is what trio lets a task do between two checkpoints; those of tasks that the operation
started count, too.  Source of the idea: trio's own tests and its instruments (trio.abc.Instrument).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

STEPS_MAX: Final = 4000


class _CancelAt(trio.abc.Instrument):
    """Cancels `scope` when `root` and its descendants have made `number` steps."""

    def __init__(self, root: trio.lowlevel.Task, scope: trio.CancelScope, number: int) -> None:
        self.steps = 0
        self._root = root
        self._scope = scope
        self._number = number

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._is_ours(task):
            self.steps += 1
            if self.steps == self._number:
                self._scope.cancel()

    def _is_ours(self, task: trio.lowlevel.Task | None) -> bool:
        while task is not None:
            if task is self._root:
                return True
            nursery = task.parent_nursery
            task = None if nursery is None else nursery.parent_task
        return False


async def cancel_at_each_step(
    operation: Callable[[], Awaitable[object]], after: Callable[[], Awaitable[None]], *, stride: int = 1
) -> int:
    """Return how often `operation` was cancelled before it ran to its end.

    `after` is called after every run.  `stride`: only every so-manieth step is tried.
    """
    for cancelled, number in enumerate(range(1, STEPS_MAX, stride)):
        is_done = await _ran_through(operation, number)
        await after()
        if is_done:
            return cancelled
    raise AssertionError(f"still running after {STEPS_MAX} steps")


async def _ran_through(operation: Callable[[], Awaitable[object]], number: int) -> bool:
    is_done = False

    async def run(scope: trio.CancelScope) -> None:
        nonlocal is_done
        root = trio.lowlevel.current_task()
        instrument = _CancelAt(root, scope, number)
        trio.lowlevel.add_instrument(instrument)
        try:
            await operation()
            is_done = True
        finally:
            trio.lowlevel.remove_instrument(instrument)

    async with trio.open_nursery() as nursery:
        # A task of its own, so that what the test itself does is not counted.
        nursery.start_soon(run, nursery.cancel_scope)
    return is_done
