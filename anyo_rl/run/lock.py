"""One program at a time in a run folder: two would write the same checkpoints, and pay for the same answers."""

import errno
import fcntl
import logging
import os
import platform
import time
from functools import partial
from pathlib import Path

logger = logging.getLogger(__name__)

LOCK = "lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def hold(folder: Path, patience_s: float = 0.0) -> str | None:
    """Holds a folder until this process ends, however it ends; one that it holds already is fine.

    One process of a launch calls this for all of them.

    Args:
        folder: the run folder; made where it is not there.
        patience_s: how long another program may take to end: what was killed may still be saving.

    Returns:
        What is wrong, in a line: another program holds it, or it cannot be written. `None` where it is held.
    """
    me = f"process {os.getpid()} on {platform.node()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        return f"{folder} cannot be written ({error}): name another --output_dir"
    end = time.monotonic() + patience_s
    try:
        while not _locked(descriptor):
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace")
            if holder == me or time.monotonic() >= end:
                os.close(descriptor)
                in_use = f"{folder} is in use by {holder or 'another program'}"
                return None if holder == me else f"{in_use}: wait until it ends, or name another --output_dir"
            time.sleep(0.2)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logger.warning("%s lies on a file system without locks: see that no other program uses it", folder)
        return None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, me.encode())
    os.register_at_fork(after_in_child=partial(os.close, descriptor))  # else workers would hold it after our end
    return None


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
