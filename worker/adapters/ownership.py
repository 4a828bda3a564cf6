"""Who can change a file while it is being loaded."""

import grp
import os
import pwd
import stat
from pathlib import Path


def is_ours(path: Path) -> bool:
    """Whether root and this user alone can change the file, or what lies at its path.

    That holds for the path of every folder above it too, up from the root, so that none can be exchanged. Access
    control lists count: they show as rights of the group. Somebody who opened the file while it was still his to
    write is not found out.

    Args:
        path: resolved, without links.
    """
    return all(_is_ours(each.lstat()) for each in (path, *path.parents))


def _is_ours(state: os.stat_result) -> bool:
    if stat.S_ISLNK(state.st_mode) or state.st_uid not in (0, os.geteuid()):
        return False
    if stat.S_ISDIR(state.st_mode) and state.st_mode & stat.S_ISVTX:
        return True  # as /tmp: others may add to it, and not replace what is ours
    if state.st_mode & stat.S_IWOTH:
        return False
    return not state.st_mode & stat.S_IWGRP or _is_private(state)


def _is_private(state: os.stat_result) -> bool:
    """Whether the file's group is its owner's own, as many systems make one for each user."""
    try:
        group, owner = grp.getgrgid(state.st_gid), pwd.getpwuid(state.st_uid)
    except KeyError:
        return False
    return group.gr_name == owner.pw_name and set(group.gr_mem) <= {owner.pw_name}
