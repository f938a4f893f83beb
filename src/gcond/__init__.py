"""Gradient conflict in multi-task learning: GCond and its peers."""
