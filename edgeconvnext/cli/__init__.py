"""The command line: one typed function per command, in a module per group; what a command needs is imported inside it."""

from __future__ import annotations

from edgeconvnext.cli import artifacts, environment, measuring, networks, predicting, roadmap, searching, training  # noqa: F401 - each adds its commands
from edgeconvnext.cli.application import app
from edgeconvnext.cli.ending import run_to_its_end


def main() -> None:
    """Run the command line; ends the process with the command's exit code (see `edgeconvnext.cli.ending`)."""
    run_to_its_end(app)
