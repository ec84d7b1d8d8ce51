"""The device kit: written, described, run on a board, its results read."""
