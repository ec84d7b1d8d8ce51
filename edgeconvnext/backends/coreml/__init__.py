"""Core ML: ML programs, and a reference evaluator of them."""
