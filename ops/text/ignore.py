"""Which entries of a folder are left out: `.gitignore` files and `.git/info/exclude`.

Files are stacked as git does it: deeper folders overrule shallower ones, a repository starts afresh inside another
one, and `.git/info/exclude` comes last (source: https://git-scm.com/docs/gitignore). Whoever walks asks entry by entry
and does not descend into what is ignored: nothing below an ignored folder can be brought back.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from .globs import Globs


@dataclass(frozen=True, slots=True)
class Rules:
    """The patterns of one ignore file, on top of those of the folders above.

    Attributes:
        base: absolute folder that the patterns are relative to, with a closing slash.
        globs: the patterns.
        above: what is asked when none of them is about an entry.
    """

    base: str
    globs: Globs
    above: Rules | None

    def ignores(self, path: str, is_dir: bool) -> bool:
        """Whether the absolute `path` is ignored. Its parents are taken to have been asked before."""
        level: Rules | None = self
        while level is not None:
            verdict = level.globs.verdict(path[len(level.base) :], is_dir)
            if verdict is not None:
                return verdict
            level = level.above
        return False

    def without(self, folder: str) -> Rules:
        """The same rules less every pattern that ignores `folder`."""
        above = self.above.without(folder) if self.above is not None else None
        name = folder[len(self.base) :]
        kept = [glob for glob in self.globs.globs if glob.negated or not glob.matches(name, True)]
        return Rules(self.base, Globs(kept), above)


def rules_above(folder: str) -> Rules | None:
    """Rules that the repository around the absolute `folder` sets for it, from its root down to the folder's parent.

    Someone who names an ignored folder wants what is in it, so patterns that ignore `folder` itself, or a folder on
    the way to it, are left out; the others stay (`__pycache__/` is still skipped in a named `.venv/lib`).

    Raises:
        OSError: an ignore file is there and cannot be read.
    """
    chain = [folder]
    while not os.path.lexists(os.path.join(chain[-1], ".git")):
        parent = os.path.dirname(chain[-1])
        if parent == chain[-1]:
            return None
        chain.append(parent)
    rules: Rules | None = None
    for parent, child in zip(reversed(chain[1:]), reversed(chain[:-1]), strict=True):
        rules = rules_inside(parent, rules, has_git=parent == chain[-1], has_file=True)
        if rules is not None and rules.ignores(child, True):
            rules = rules.without(child)
    return rules


def rules_inside(folder: str, above: Rules | None, *, has_git: bool, has_file: bool) -> Rules | None:
    """Rules for the entries of the absolute `folder`, given those of the folders above.

    Args:
        folder: absolute path.
        above: rules that hold outside; a repository's root leaves them behind.
        has_git: `folder` has an entry `.git`.
        has_file: `folder` has, or may have, an entry `.gitignore`.

    Raises:
        OSError: an ignore file is there and cannot be read.
    """
    rules = above
    if has_git:
        exclude = _read_lines(os.path.join(_common_git_folder(folder), "info", "exclude"))
        rules = _stacked(folder, exclude, None)
    if has_file:
        rules = _stacked(folder, _read_lines(os.path.join(folder, ".gitignore")), rules)
    return rules


def _stacked(folder: str, lines: list[str], above: Rules | None) -> Rules | None:
    patterns = Globs.parse(lines)
    return Rules(folder.rstrip("/") + "/", patterns, above) if patterns.globs else above


def _read_lines(file: str) -> list[str]:
    """Lines of an ignore file, [] where there is none. Git strips a BOM and one carriage return."""
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            return []
        with open(file, "rb") as stream:
            data = stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [os.fsdecode(line.removesuffix(b"\r")) for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")]


def _common_git_folder(root: str) -> str:
    """The folder with `info/` of the repository at `root`, through the files that worktrees and submodules have."""
    git = os.path.join(root, ".git")
    if os.path.isdir(git):
        return git
    lines = _read_lines(git)
    if not lines or not lines[0].startswith("gitdir:"):
        return git
    git = os.path.join(root, lines[0].removeprefix("gitdir:").strip())
    common = _read_lines(os.path.join(git, "commondir"))
    return os.path.join(git, common[0]) if common else git
