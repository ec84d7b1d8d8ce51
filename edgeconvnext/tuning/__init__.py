"""Sensitivity of layers, budgets, norms that may go, placements: quantises, exports and measures in a loop."""
