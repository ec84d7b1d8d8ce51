from edgeconvnext.cli import main

main()
