"""Memory of this process: giving back what is free, or keeping it for what comes next."""

from __future__ import annotations

import contextlib
import ctypes
import gc

WORTH_COLLECTING_MIB = 32.0
# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_LARGEST_INT = 2**31 - 1

_resident_when_given_back = 0.0


def give_back_free_memory() -> None:
    """Return memory that was freed, and that the C library keeps, to the system: it would count in the next stage's peak.

    Nothing is done where this process has grown by less than 32 MiB since the last time: looking through every object of a
    process that holds torch takes longer than a stage of a small network.
    """
    global _resident_when_given_back
    resident = resident_mib()
    if resident - _resident_when_given_back < WORTH_COLLECTING_MIB:
        _resident_when_given_back = min(_resident_when_given_back, resident)
        return
    gc.collect()
    trim_heap()
    _resident_when_given_back = resident_mib()


def trim_heap() -> None:
    """Return what the C library keeps of freed memory to the system, as far as it can."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other C libraries have no such call
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Let this process keep what it frees, from now on, until `trim_heap`; with other C libraries than glibc nothing changes.

    glibc gives large blocks back as soon as they are freed, and each step of a training gets them anew, page by page: a fifth of
    its time at 64 pixels. All threads take from one arena: what one of them freed serves the others.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
        mallopt(_M_ARENA_MAX, 1)


def resident_mib() -> float:
    """Return this process's resident memory now."""
    import psutil  # a machine that only times kernels may have none

    return float(psutil.Process().memory_info().rss) / 2**20
