"""Options, each declared once: the command line, the Python functions and `Request` are made from these dataclasses."""
