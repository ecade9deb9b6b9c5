"""One writer at a time for a folder, by the system's locks.

A lock goes with its process, however that ends, and is the file `.d2im-lock` in the
folder, which says who holds it. A folder that takes no lock, as on some network disks
or where one may only read, is used without.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK = ".d2im-lock"
SAYS = "A {} of d2im writes here: {}\n"
_held = {}  # the folders that this process holds, and for what


@contextmanager
def hold(folder: Path, work: str) -> Iterator[bool]:
    """Let one piece of work at a time have a folder.

    Args: folder: it is made; and deleted again, if nothing was put into it.
        work: "training" or "preparation", for the others' message.
    Yields: whether the system keeps others off.
    Raises: ValueError: other work has the folder, or the lock's file is a user's.
        OSError: the folder cannot be made.
    """
    made = not folder.is_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        wrong = f"{folder} cannot be made ({error}): name another folder"
        raise type(error)(wrong) from error
    process, status, mine = os.getpid(), folder.stat(), [work]
    key = process, status.st_dev, status.st_ino
    if (other := _held.setdefault(key, mine)) is not mine:
        raise _busy(folder, *other, f"process {process}, this one")
    file = None
    try:
        file = _locked(folder, work)
        yield file is not None
    finally:
        if os.getpid() == process:  # not in a fork, which leaves by its own way
            del _held[key]
            if file:
                with file, suppress(OSError):  # Windows deletes no open file
                    (folder / LOCK).unlink()
            if made:
                with suppress(OSError):  # something is in it
                    folder.rmdir()


def _locked(folder, work):
    """A lock's file, open and ours; None where it cannot be written or locked."""
    path, pattern = folder / LOCK, SAYS.format(r"(\w+)", "(.*)")
    while True:
        try:
            file = open(path, "ab+", buffering=0)
        except OSError:
            return None
        try:
            locked = _system_lock(file)
            file.seek(0)
            says = file.read(1000).decode("utf-8", "replace")
            if (known := re.fullmatch(pattern, says)) is None and says:
                raise ValueError(f"{path} is no lock of d2im: rename it")
            if not locked:
                raise _busy(folder, *(known.groups() if known else (work, "a process")))
            # Another may have ended, and deleted its file, since we opened it.
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                with suppress(OSError):  # of a full disk
                    file.truncate(0)
                    holder = f"process {os.getpid()} on {socket.gethostname()}"
                    file.write(SAYS.format(work, holder).encode())
                return file
            file.close()
        except FileNotFoundError:
            file.close()
        except OSError:
            file.close()
            return None
        except ValueError:
            file.close()
            raise


def _busy(folder, work, process):
    return ValueError(
        f"another {work} ({process}) writes to {folder}: wait for its end, or name "
        "another folder"
    )


def _system_lock(file):
    """Lock a file for this process, or say False; OSError where there are no locks.

    `lockf`'s is not inherited by what a process forks, as a loader's workers, which may
    outlive a killed one.
    """
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(1 << 20)  # far off: what is locked cannot be read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True
