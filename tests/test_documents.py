"""What the documents name is there: modules, classes, functions, attributes, and the tests they refer to.

A document that speaks of code which is gone is wrong about more than a name.  Looked at is what stands in backquotes
and looks like code of ours; `names_in` says what that is, and the self-test that it finds something.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
DOCUMENTS: Final = sorted(
    [
        *(ROOT / "docs" / f"{name}.md" for name in ("invariants", "concurrency", "semantics", "format", "operations")),
        *(ROOT / "docs" / f"{name}.md" for name in ("next", "posix", "programs", "clouds", "measurements", "security")),
    ]
)
_QUOTED: Final = re.compile(r"`([^`\n]+)`")
_PATH: Final = re.compile(r"[\w./-]+\.py")
_FOLDER: Final = re.compile(r"(?:tests|tools|benchmarks|cuckoo_mount|docs)/[\w./-]*")
_DOTTED: Final = re.compile(r"_?[A-Z]\w*[a-z]\w*(?:\.\w+)*|[a-z]\w*_\w+")
# Code-like words of others: libraries, servers, the shell, SQL.
FOREIGN: Final = frozenset(
    {"HostName", "IdentityFile", "ProxyJump", "https_proxy", "no_proxy", "ExecStart"}
    | {"Files.ReadWrite.All", "offline_access"}
    | {"integrity_check", "pg_amcheck", "pg_checksums", "test_sqlite3"}
)


def names_in(text: str) -> set[str]:
    """Return what a document quotes that has to be found: paths, `Class.attribute`, `function_name`."""
    found = set()
    for quoted in _QUOTED.findall(text):
        words = quoted.strip().removesuffix("()")
        if _PATH.fullmatch(words) or _FOLDER.fullmatch(words) or _DOTTED.fullmatch(words):
            found.add(words)
    return found - FOREIGN


@cache
def known() -> tuple[frozenset[str], dict[str, frozenset[str]]]:
    """Return every name that our code defines or writes as a text, and the attributes of each class."""
    names: set[str] = set()
    members: dict[str, set[str]] = {}
    bases: dict[str, list[str]] = {}
    for folder in ("cuckoo_mount", "tests", "tools", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            if path == Path(__file__):
                continue
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.ClassDef):
                    names.add(node.name)
                    bases.setdefault(node.name, []).extend(ast.unparse(base).partition("[")[0] for base in node.bases)
                    members.setdefault(node.name, set()).update(_defined(node))
                elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    names.update((node.name, *(arg.arg for arg in node.args.args + node.args.kwonlyargs)))
                elif isinstance(node, ast.Name):
                    names.add(node.id)
                elif isinstance(node, ast.Attribute):
                    names.add(node.attr)
                elif folder == "cuckoo_mount" and isinstance(node, ast.Constant) and isinstance(node.value, str):
                    names.update(re.findall(r"\w+", node.value))

    def inherited(name: str) -> frozenset[str]:
        return frozenset(members.get(name, ())).union(*(inherited(base) for base in bases.get(name, ())))

    return frozenset(names), {name: inherited(name) for name in members}


def _defined(node: ast.ClassDef) -> set[str]:
    found: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(part.name)
        elif isinstance(part, ast.AnnAssign | ast.Assign):
            targets = part.targets if isinstance(part, ast.Assign) else [part.target]
            found.update(target.id for target in targets if isinstance(target, ast.Name))
            found.update(target.attr for target in targets if isinstance(target, ast.Attribute))
    return found


def is_there(name: str) -> bool:
    """Return whether a quoted name is one of ours."""
    names, members = known()
    if "/" in name or name.endswith(".py"):
        folders = (ROOT / "cuckoo_mount", ROOT / "tests")
        places = (
            ROOT / name,
            ROOT / "cuckoo_mount" / name,
            *(found for at in folders for found in at.glob(f"*/{name}")),
        )
        return any(place.exists() for place in places)
    first, *rest = name.split(".")
    if not rest:
        return first in names
    if first in members and len(rest) == 1:
        return rest[0] in members[first]
    return all(part in names for part in (first, *rest))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_names_is_there(document: Path) -> None:
    missing = sorted(name for name in names_in(document.read_text("utf-8")) if not is_there(name))
    assert not missing, f"{document.name} names what is not there (any more): {', '.join(missing)}"


def test_names_are_found_and_missed() -> None:
    assert names_in("`Cutter` and `finish_pack()` in `cache/cutting.py`, not `fsync` or `a b`") == {
        "Cutter",
        "finish_pack",
        "cache/cutting.py",
    }
    assert is_there("Cutter.send")
    assert not is_there("Cutter.fly")
    assert not is_there("cache/flying.py")
    assert not is_there("Nobody_knows_this")
    total = sum(len(names_in(document.read_text("utf-8"))) for document in DOCUMENTS)
    assert total > 100
