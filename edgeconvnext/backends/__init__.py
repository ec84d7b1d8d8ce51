"""Artifacts and the runtimes that execute them, one folder per runtime."""
