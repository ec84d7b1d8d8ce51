"""Runs: what is asked, the stages, and their order."""
