"""From a path to a node: the walk along the names, symbolic links included.

Used by actions.py.  Loop only; never waits for a cloud.
A relative link is followed as on a mount, while it stays inside the drive.  An absolute one, or one that climbs out,
leads into the folders of the machine where the drive is mounted, which are not here: it leads to nothing.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from typing import Final

from attrs import frozen

from cuckoo_mount.errors import NameTooLong, NotADirectory, NotFound
from cuckoo_mount.parted.tree import Tree
from cuckoo_mount.types import ROOT_INODE, Inode, InodeNo

Names = Sequence[bytes]

LINKS_MAX: Final = 40
"""As many links as Linux follows for one path."""


@frozen(slots=True)
class Spot:
    """Where a path leads: `name` in directory `parent`, and the node there, None where there is none (yet).

    `name` is empty for the root, and for a directory that a link's `..` led to.
    """

    parent: InodeNo
    name: bytes
    inode: Inode | None


async def resolve(tree: Tree, names: Names, *, follow: bool) -> Spot:
    """Return where a path leads.  `follow`: go on if its last name is a symbolic link.

    Raises: NotFound when there is no directory that the last name could be in.
    """
    path = [await tree.inode(ROOT_INODE)]
    left = list(reversed(names))
    links = 0
    while left:
        name = left.pop()
        if name == b"..":
            path.pop()
            if not path:
                raise NotFound("a symbolic link leads out of the drive")
            continue
        parent = path[-1].ino
        inode = await _look_up(tree, parent, name, last=not left)
        if inode is None:
            return Spot(parent, name, None)
        if stat.S_ISLNK(inode.mode) and (follow or left):
            links += 1
            if links > LINKS_MAX:
                raise NotFound("symbolic links lead in a circle")
            left.extend(reversed(await _target(tree, inode.ino)))
        elif not left:
            return Spot(parent, name, inode)
        else:
            path.append(inode)
    return Spot(path[-1].ino, b"", path[-1])


def there(spot: Spot) -> Inode:
    """Return the node at `spot`.  Raises: NotFound."""
    if spot.inode is None:
        raise NotFound("it does not exist")
    return spot.inode


async def _look_up(tree: Tree, parent: InodeNo, name: bytes, *, last: bool) -> Inode | None:
    try:
        return await tree.lookup(parent, name)
    except NotADirectory as error:
        raise NotFound("what should be a directory is none") from error
    except (NotFound, NameTooLong) as error:
        if last:
            return None
        raise NotFound("a directory is missing") from error


async def _target(tree: Tree, ino: InodeNo) -> list[bytes]:
    target = await tree.readlink(ino)
    if target.startswith(b"/"):
        raise NotFound("a symbolic link leads out of the drive")
    return [name for name in target.split(b"/") if name not in (b"", b".")]
