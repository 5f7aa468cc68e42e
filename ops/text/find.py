"""Names become files: folders are walked, ignore rules kept, and every file is found once.

Nothing is opened here. The walk is lazy and sorted, and holds the names of one folder per level.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from ..base.events import Warned
from .ignore import Rules, rules_above, rules_inside
from .inputs import Found, ReadOptions, filters, kind_of, quoted, shown


def find_files(
    paths: Sequence[str], options: ReadOptions, *, nul_list: BinaryIO | None = None
) -> Iterator[Found | Warned]:
    """Files behind the names, in the order of the names and sorted within folders, each once.

    Args:
        paths: files, folders, `-` for standard input.
        options: see ReadOptions.
        nul_list: stream of more names, each closed by a NUL byte (`find -print0`).

    Yields:
        `Found`, or `Warned` for what could not be followed: `missing`, `unreadable`, `vanished` (failed),
        `skipped` (pipes, sockets, devices, dangling links) and `loop` (failed only when named).
    """
    walk = _Walk(options)
    for name in paths:
        yield from walk.stdin() if name == "-" else walk.named(name)
    if nul_list is not None:
        for name in _nul_names(nul_list):
            yield from walk.named(name)


def _nul_names(stream: BinaryIO) -> Iterator[str]:
    rest = b""
    while block := stream.read(1 << 16):
        *names, rest = (rest + block).split(b"\0")
        yield from (os.fsdecode(name) for name in names if name)
    if rest:
        yield os.fsdecode(rest)


def _absolute(name: str) -> str:
    """Absolute path; `..` is followed the way the system does, through links."""
    if ".." in name.split("/"):
        head, tail = os.path.split(name.rstrip("/"))
        return os.path.realpath(name) if tail == ".." else os.path.join(os.path.realpath(head), tail)
    return os.path.abspath(name)


@dataclass(slots=True)
class _Frame:
    """A folder being walked: `names` still to come, last first."""

    folder: str
    inner: str  # path from the walked folder, "" or closed by a slash
    names: list[str]
    rules: Rules | None
    identity: tuple[int, int]


@dataclass(slots=True)
class _Seen:
    """Files met before. Inode numbers keep it at some 70 bytes a file; hard links are told apart by their real path."""

    inodes: dict[int, set[int]] = field(default_factory=dict)
    paths: set[str] = field(default_factory=set)

    def add(self, path: str, info: os.stat_result) -> bool:
        """Whether the file is new."""
        if info.st_nlink == 1 and info.st_ino:
            group: set = self.inodes.setdefault(info.st_dev, set())
            key: int | str = info.st_ino
        else:
            group, key = self.paths, os.path.realpath(path)
        if key in group:
            return False
        group.add(key)
        return True


class _Walk:
    def __init__(self, options: ReadOptions) -> None:
        self.options = options
        self.include = filters(options.include, "--include")
        self.exclude = filters(options.exclude, "--exclude")
        self.below = os.getcwd().rstrip("/") + "/"
        self.seen = _Seen()
        self.entered: set[tuple[int, int]] = set()
        self.stdin_taken = False

    def display(self, path: str) -> str:
        return shown(path.removeprefix(self.below)).replace(os.sep, "/")

    def warned(self, kind: str, path: str, what: str, failed: bool) -> Warned:
        name = self.display(path)
        return Warned(kind, f"{quoted(name)} {what}", name, failed)

    def stdin(self) -> Iterator[Found]:
        if not self.stdin_taken:
            self.stdin_taken = True
            name = self.options.stdin_name
            yield Found(name, "-", None, kind_of(name), named=True, stream=True)

    def named(self, name: str) -> Iterator[Found | Warned]:
        try:
            if not name:
                raise ValueError
            path = _absolute(name)
            info = os.stat(path)
        except ValueError:
            yield Warned("missing", f"{quoted(name)} cannot be the name of a file", shown(name), True)
        except OSError as error:
            yield self.trouble(error, _absolute(name), vanished="missing")
        else:
            if stat.S_ISDIR(info.st_mode):
                yield from self.folder(path, info)
            elif self.exclude is None or not self.exclude.covers(self.display(path).lstrip("/")):
                yield from self.file(path, info, named=True)

    def trouble(self, error: OSError, path: str, vanished: str = "vanished") -> Warned:
        """The line for an entry that the system does not let us look at."""
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            what = "does not exist" if vanished == "missing" else "vanished while its folder was read"
            return self.warned(vanished, path, what, True)
        if error.errno == errno.ELOOP:
            return self.warned("loop", path, "is a link that leads back to itself", vanished == "missing")
        reason = "permission denied" if isinstance(error, PermissionError) else (error.strerror or str(error)).lower()
        return self.warned("unreadable", path, f"cannot be read: {reason}", True)

    def file(self, path: str, info: os.stat_result, named: bool) -> Iterator[Found | Warned]:
        """One entry that is no folder."""
        if stat.S_ISREG(info.st_mode):
            if self.seen.add(path, info):
                yield Found(self.display(path), path, info.st_size, kind_of(path), named)
        elif stat.S_ISFIFO(info.st_mode) and named:
            if self.seen.add(path, info):
                yield Found(self.display(path), path, None, kind_of(path), named, stream=True)
        else:
            yield self.warned("skipped", path, f"is {_special(info.st_mode)} and is passed over", named)

    def folder(self, root: str, info: os.stat_result) -> Iterator[Found | Warned]:
        """Everything below the named folder `root`."""
        rules: Rules | None = None
        if self.options.ignore_files:
            try:
                rules = rules_above(root)
            except OSError as error:
                yield self.unread_rules(error, root)
        lineage = _lineage(root)
        frames: list[_Frame] = []
        yield from self.enter(frames, root, "", rules, (info.st_dev, info.st_ino))
        while frames:
            frame = frames[-1]
            if not frame.names:
                frames.pop()
                continue
            name = frame.names.pop()
            if name == ".git" or (name[0] == "." and not self.options.hidden):
                continue
            path = frame.folder.rstrip("/") + "/" + name
            try:
                entry = os.lstat(path)
                link = stat.S_ISLNK(entry.st_mode)
                target = _followed(path) if link else entry
            except OSError as error:
                if not self.left_out(path, frame.inner + name, False, frame.rules):
                    yield self.trouble(error, path)
                continue
            is_dir = target is not None and stat.S_ISDIR(target.st_mode)
            inner = frame.inner + name
            if self.left_out(path, inner, is_dir, frame.rules):
                continue
            if target is None:
                yield self.warned("skipped", path, "is a link to nothing", False)
            elif not is_dir:
                yield from self.file(path, target, named=False)
            elif (identity := (target.st_dev, target.st_ino)) in lineage or any(
                identity == above.identity for above in frames
            ):
                yield self.warned("loop", path, "leads back to a folder around it and is not followed", False)
            elif not (link and identity in self.entered):
                yield from self.enter(frames, path, inner + "/", frame.rules, identity)

    def left_out(self, path: str, inner: str, is_dir: bool, rules: Rules | None) -> bool:
        if rules is not None and rules.ignores(path, is_dir):
            return True
        if self.exclude is not None and self.exclude.verdict(inner, is_dir):
            return True
        return self.include is not None and not is_dir and not self.include.covers(inner)

    def enter(
        self, frames: list[_Frame], path: str, inner: str, rules: Rules | None, identity: tuple[int, int]
    ) -> Iterator[Warned]:
        """Read the names of a folder and put it on the stack."""
        self.entered.add(identity)
        try:
            names = os.listdir(path)
        except OSError as error:
            yield self.trouble(error, path)
            return
        has_git, has_file = ".git" in names, ".gitignore" in names
        if self.options.ignore_files and (has_git or has_file):
            try:
                rules = rules_inside(path, rules, has_git=has_git, has_file=has_file)
            except OSError as error:
                yield self.unread_rules(error, path)
        names.sort(reverse=True)
        frames.append(_Frame(path, inner, names, rules, identity))

    def unread_rules(self, error: OSError, folder: str) -> Warned:
        path = os.fsdecode(error.filename) if error.filename else folder
        return self.warned("unreadable", path, "cannot be read, so its rules are not kept", False)


def _followed(path: str) -> os.stat_result | None:
    """What a link leads to, None for nothing."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _lineage(root: str) -> set[tuple[int, int]]:
    """The folders above `root`: a link to one of them would contain itself."""
    identities = set()
    folder = os.path.realpath(root)
    while (parent := os.path.dirname(folder)) != folder:
        folder = parent
        info = os.stat(folder)
        identities.add((info.st_dev, info.st_ino))
    return identities


def _special(mode: int) -> str:
    for test, word in ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket")):
        if test(mode):
            return word
    return "a device"
