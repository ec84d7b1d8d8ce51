"""Changes of the float network: folds, scaling, pruning, norms, sparsity."""
