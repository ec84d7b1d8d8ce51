"""One case of the fuzzer: a loader reads a file, or refuses it with a user's error on one line, in bounded time."""

from __future__ import annotations

import signal
import traceback
from types import FrameType

from loaders import Loader

SECONDS_A_CASE = 10


class TooSlow(BaseException):
    """A case took over SECONDS_A_CASE of processor time, or ten times that in all. No loader may catch a BaseException."""


def run_case(loader: Loader, content: bytes) -> str | None:
    """Run one case; returns None where it was read or refused as it should be, else what was raised."""
    from edgeconvnext.data.images import BrokenImage
    from edgeconvnext.errors import EdgeConvNextError

    loader.place.parent.mkdir(parents=True, exist_ok=True)
    loader.place.write_bytes(content)

    def too_slow(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"over {SECONDS_A_CASE} s")

    # Processor time, so that other programs do not make a case slow; what waits without computing meets the wall clock.
    signal.signal(signal.SIGVTALRM, too_slow)
    signal.signal(signal.SIGALRM, too_slow)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS_A_CASE)
    signal.alarm(10 * SECONDS_A_CASE)
    try:
        loader.load(loader.place)
    except (EdgeConvNextError, BrokenImage) as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            return f"a message of {len(str(error))} characters or several lines: {str(error)[:200]!r}"
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.alarm(0)
    return None
