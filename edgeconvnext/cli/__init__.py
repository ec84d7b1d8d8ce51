"""The command line: one typed function per command, in a module per group; what a command needs is imported inside it."""

from __future__ import annotations

import errno
import sys

from edgeconvnext.cli import artifacts, measuring, networks, roadmap, searching, surroundings, training  # noqa: F401 - each adds its commands, in this order
from edgeconvnext.cli.application import app
from edgeconvnext.errors import EdgeConvNextError

INTERRUPTED_EXIT_CODE = 130
# What a path or disk of the user's can be refused for wherever it is touched; any other system error is a bug.
_USERS_TO_FIX = frozenset(
    {errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EIO}
)


def main() -> None:
    """Run the command line; user errors end with one paragraph on standard error and their exit code."""
    try:
        app()
    except EdgeConvNextError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED_EXIT_CODE:  # typer turns Ctrl-C into this exit, without a word
            sys.stderr.write("interrupted; run the same command again to go on where it stopped\n")
        raise
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        if error.errno not in _USERS_TO_FIX:
            raise
        sys.stderr.write(f"error: {error.filename or 'The output'} cannot be used: {error.strerror}.\n")
        sys.exit(1)
