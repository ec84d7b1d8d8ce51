"""Commands that are not stages of a run: bench, doctor, roadmap."""
