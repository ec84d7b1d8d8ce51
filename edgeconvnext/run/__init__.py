"""Run directories: lock, stage records, manifest, signatures, costs."""
