"""Networks are timed for a moment only, in this process and in commands of their own: no test asserts a time."""

import sys

from edgeconvnext.evaluation import timing

DURATIONS_S = {
    "WARM_UP_S": 0.01,
    "MIN_SECONDS": 0.05,
    "SCREENING_SECONDS": 0.05,
    "BLOCK_S": 0.005,
    "QUIET_SECONDS": 0.0,
}

EDGECONVNEXT = (sys.executable, __file__)
"""The toolkit's command line, with these durations; arguments follow."""

if __name__ == "__main__":
    from edgeconvnext.cli import main

    del sys.path[0]  # the tests' folder, which a script of it starts with
    for name, seconds in DURATIONS_S.items():
        setattr(timing, name, seconds)
    main()
