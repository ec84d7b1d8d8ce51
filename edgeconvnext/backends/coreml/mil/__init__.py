"""A reference evaluator for Core ML packages: what the saved program computes, where Core ML itself does not run."""
