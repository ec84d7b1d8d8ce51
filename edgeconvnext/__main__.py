"""`python -m edgeconvnext` is the command `edgeconvnext`."""

from edgeconvnext.cli import main

main()
