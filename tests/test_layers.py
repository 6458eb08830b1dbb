"""The folder is the architecture: imports in cuckoo_mount go down, or sideways inside one folder, never up.

Reads the sources, imports nothing.  An import inside a function or under `if TYPE_CHECKING` counts like any other.
The rules are the tables below; `problems_in()` applies them to one source, and the self-tests show that it can fail.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

PACKAGE: Final = "cuckoo_mount"
ROOT: Final = Path(__file__).resolve().parent.parent / PACKAGE
MAX_LINES: Final = 400

# The level of every folder and module directly in cuckoo_mount.  A new one must be given its place here.
LEVELS: Final[dict[str, int]] = {
    "types": 0,
    "errors": 0,
    "format": 0,
    "epochformat": 0,
    "clock": 0,
    "catalogue": 0,
    "locks": 0,
    "durabilities": 0,
    "clouds": 1,
    "workers": 1,  # with processes and workerprocess, its two ends
    "processes": 1,
    "workerprocess": 1,
    "layers": 2,
    "sources": 2,
    "multi": 3,
    "packs": 4,
    "metadata": 4,
    "cache": 5,
    "parted": 6,
    "epochs": 6,  # what takes a cut asks the cache for what is dirty
    "fuse": 7,
    "pyfs": 7,
    "testing": 7,
    "drive": 8,
    "housekeeping": 8,
    "preparing": 8,
    "recovery": 8,
    "roster": 8,
    "insisting": 8,
    "rules": 8,
    "listchecks": 8,
    "slotcopies": 8,
    "trial": 8,
    "draining": 8,
    "rebalancing": 8,
    "cloudsettings": 8,
    "slots": 8,
    "scrubbing": 8,
    "fsck": 8,
    "config": 8,
    "cli": 8,
    "opener": 9,
    "__main__": 9,
}

# Levels whose parts may import one another.  On all others the neighbours do not know each other.
SOCIABLE_LEVELS: Final = frozenset({0, 1, 8})

# Pairs (importer, imported) that the levels would allow, and that are forbidden all the same.
STRANGERS: Final = frozenset({("metadata", "multi")})

# Outside modules and the only parts that may import them.
RESERVED: Final[dict[str, frozenset[str]]] = {
    "apsw": frozenset({"metadata"}),
    "sqlite3": frozenset({"metadata"}),
    # Numbers are for the kernel (fuse) and errors.py; the others tell errors of the local disk or of drivers apart.
    "errno": frozenset({"errors", "fuse", "clouds", "workers", "cache"}),
    "pyfuse3": frozenset({"fuse"}),
    "fs": frozenset({"clouds", "pyfs", "opener"}),
    "fs_s3fs": frozenset({"clouds"}),
    "boto3": frozenset({"clouds"}),
    "botocore": frozenset({"clouds"}),
    "dropbox": frozenset({"clouds"}),
    "urllib3": frozenset({"clouds"}),
    "paramiko": frozenset({"clouds"}),
    "ftplib": frozenset({"clouds"}),
    "pkg_resources": frozenset({"clouds"}),
}


def imported_modules(tree: ast.Module, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yield (line, full dotted name) of everything that `module` imports; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                keep = len(parents) - node.level + is_package
                base = ".".join([*parents[:keep], *([base] if base else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def internal_problem(importer: str, imported: str) -> str | None:
    """Say why part `importer` may not import part `imported` of the package, or None if it may."""
    if imported not in LEVELS:
        return f"{imported} has no level in this test"
    if importer == imported:
        return None
    if imported == "testing":
        return "only testing itself and the tests import testing"
    if (importer, imported) in STRANGERS:
        return f"{importer} and {imported} do not know each other"
    here, there = LEVELS[importer], LEVELS[imported]
    if there > here:
        return f"upwards, from level {here} to {imported} on level {there}"
    if there == here and here not in SOCIABLE_LEVELS:
        return f"sideways into another folder, {imported}, on the same level {here}"
    return None


def problems_in(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Return what is wrong with the source of `module` (full dotted name), one line each, with line numbers."""
    parts = module.split(".")
    importer = parts[1] if len(parts) > 1 else ""
    lines = source.count("\n")
    found = [f"{lines} lines, more than {MAX_LINES}: part the module"] if lines > MAX_LINES else []
    if importer and importer not in LEVELS:
        return [*found, f"{importer} has no level in this test"]
    for line, name in imported_modules(ast.parse(source), module, is_package=is_package):
        top, _, rest = name.partition(".")
        problem = None
        if top == PACKAGE and not importer:
            # What __init__ imports, every import of any part pays for, and it would sit above all levels.
            problem = f"{PACKAGE}/__init__.py imports nothing of the package"
        elif top == PACKAGE and rest:
            problem = internal_problem(importer, rest.partition(".")[0])
        elif top in RESERVED and importer not in RESERVED[top]:
            problem = f"{top} is for {', '.join(sorted(RESERVED[top]))} only"
        if problem is not None:
            found.append(f"line {line}: {problem}")
    return list(dict.fromkeys(found))  # `from a import b, c` would say it twice


def module_name(path: Path) -> str:
    """Return the dotted name of the module in the file `path` of the package."""
    parts = [PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=module_name)
def test_module_keeps_to_its_layer(path: Path) -> None:
    problems = problems_in(path.read_text("utf-8"), module_name(path), is_package=path.name == "__init__.py")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        pytest.param("cuckoo_mount.types", "import cuckoo_mount.cache", "upwards", id="up"),
        pytest.param("cuckoo_mount.cache.files", "from cuckoo_mount.fuse import attrs", "upwards", id="from"),
        pytest.param("cuckoo_mount.cache.files", "from ..parted import tree", "upwards", id="relative"),
        pytest.param("cuckoo_mount.cache.files", "from cuckoo_mount import parted", "upwards", id="folder-by-name"),
        pytest.param(
            "cuckoo_mount.multi.repair", "def f() -> None:\n    import cuckoo_mount.drive", "upwards", id="lazy"
        ),
        pytest.param(
            "cuckoo_mount.layers.base",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cuckoo_mount.packs.writer import Writer",
            "line 3: upwards",
            id="type-checking",
        ),
        pytest.param("cuckoo_mount.metadata.store", "import cuckoo_mount.packs", "sideways", id="other-folder"),
        pytest.param("cuckoo_mount.metadata.mirror", "import cuckoo_mount.multi", "do not know", id="metadata-multi"),
        pytest.param("cuckoo_mount.multi.multifs", "import cuckoo_mount.metadata", "upwards", id="multi-metadata"),
        pytest.param("cuckoo_mount.drive", "import cuckoo_mount.testing", "only testing", id="testing"),
        pytest.param("cuckoo_mount.drive", "import cuckoo_mount.misc", "misc has no level", id="unknown-imported"),
        pytest.param("cuckoo_mount.misc.things", "", "misc has no level", id="unknown-importer"),
        pytest.param("cuckoo_mount", "from cuckoo_mount.types import InodeNo", "imports nothing", id="root"),
        pytest.param("cuckoo_mount.cache.state", "import apsw", "apsw is for metadata only", id="apsw"),
        pytest.param("cuckoo_mount.drive", "import sqlite3", "sqlite3 is for metadata only", id="sqlite3"),
        pytest.param("cuckoo_mount.parted.tree", "from errno import ENOENT", "errno is for", id="errno"),
        pytest.param("cuckoo_mount.multi.multifs", "from fs.base import FS", "fs is for clouds, opener, pyfs", id="fs"),
        pytest.param("cuckoo_mount.drive", "import pyfuse3.asyncio", "pyfuse3 is for fuse only", id="pyfuse3"),
        pytest.param("cuckoo_mount.locks", "x = 1\n" * (MAX_LINES + 1), "more than 400", id="size"),
    ],
)
def test_checker_finds(module: str, source: str, expected: str) -> None:
    (problem,) = problems_in(source, module)
    assert expected in problem


@pytest.mark.parametrize(
    ("module", "source", "is_package"),
    [
        pytest.param("cuckoo_mount.cache.files", "from cuckoo_mount.metadata.store import Store", False, id="down"),
        pytest.param(
            "cuckoo_mount.cache.files", "from .state import State\nfrom . import eviction", False, id="inside"
        ),
        pytest.param("cuckoo_mount.cache", "from .files import Files\nfrom ..types import ChunkId", True, id="package"),
        pytest.param("cuckoo_mount.packs.writer", "import cuckoo_mount.multi, cuckoo_mount.layers", False, id="packs"),
        pytest.param(
            "cuckoo_mount.errors", "import errno\nfrom cuckoo_mount.types import InodeNo", False, id="level-0"
        ),
        pytest.param("cuckoo_mount.clouds.registry", "import fs, errno\nimport fs.errors", False, id="clouds"),
        pytest.param("cuckoo_mount.cli.status", "from cuckoo_mount.drive import Drive", False, id="top"),
        pytest.param("cuckoo_mount.locks", "import trio\n" * MAX_LINES, False, id="size"),
    ],
)
def test_checker_allows(module: str, source: str, is_package: bool) -> None:
    assert problems_in(source, module, is_package=is_package) == []


def test_every_part_of_the_package_is_looked_at() -> None:
    # An empty list of files would let everything pass.
    assert {module_name(path) for path in ROOT.rglob("*.py")} >= {"cuckoo_mount.types", "cuckoo_mount.errors"}
