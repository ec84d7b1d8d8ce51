"""Measuring: accuracy, fidelity, latency, and the gates they are judged by."""

from edgeconvnext.command_package import make_callable

make_callable(__name__)
