"""Finished runs in, recorded results, tables and figures out. Imports neither torch nor hydra."""
