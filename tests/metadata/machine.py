"""What both rule machines share: a store in a temporary folder, commit, reopen, kill, checks after each step."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Generic, TypeVar

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cuckoo_mount.errors import CuckooError
from cuckoo_mount.metadata.store import SqliteMetadata, open_store
from tests.metadata.helpers import at_once, copy_as_after_kill, journaled_rows, new_store

Model = TypeVar("Model")
T = TypeVar("T")

SETTINGS = settings(
    max_examples=12,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


class StoreMachine(RuleBasedStateMachine, Generic[Model]):
    """`model` is what the store should be, `committed` what it should be after a kill."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.committed = copy.deepcopy(model)
        self.folder = tempfile.TemporaryDirectory()
        self.copies = 0
        self.path = Path(self.folder.name) / "metadata"
        self.store: SqliteMetadata = trio.run(new_store, self.path)
        at_once(self.store.commit())

    def both(self, real: Coroutine[object, object, T], model_error: type[CuckooError] | None) -> T | None:
        """Run `real` and check that it raises exactly what the model did."""
        if model_error is None:
            return at_once(real)
        with pytest.raises(model_error) as caught:
            at_once(real)
        assert caught.type is model_error
        return None

    @rule(what=st.sampled_from(["commit"] * 5 + ["reopen", "kill", "kill"]))
    def interrupt(self, what: str) -> None:
        """One rule for all three, and mostly a commit: else most steps would be about nothing that happened before."""
        {"commit": self.commit, "reopen": self.reopen, "kill": self.kill}[what]()

    def commit(self) -> None:
        at_once(self.store.commit())
        self.committed = copy.deepcopy(self.model)

    def reopen(self) -> None:
        trio.run(self.store.aclose)
        self.committed = copy.deepcopy(self.model)
        self.store = trio.run(open_store, self.path)

    def kill(self) -> None:
        self.copies += 1
        target = Path(self.folder.name) / f"copy{self.copies}"
        copy_as_after_kill(self.path, target)
        trio.run(self.store.aclose)
        self.path = target
        self.store = trio.run(open_store, self.path)
        self.model = copy.deepcopy(self.committed)

    @invariant()
    def invariants_hold(self) -> None:
        assert at_once(self.store.check_invariants()) == []

    @invariant()
    def store_is_model(self) -> None:
        self.compare()

    def compare(self) -> None:
        """Assert that the store is what `model` says."""
        raise NotImplementedError

    def teardown(self) -> None:
        records = at_once(self.store.journal(1_000_000))
        trio.run(self.store.aclose)
        target = Path(self.folder.name) / "replayed"
        replayed = trio.run(new_store, target)
        at_once(replayed.replay(records))
        trio.run(replayed.aclose)
        assert journaled_rows(target) == journaled_rows(self.path)
        self.folder.cleanup()
