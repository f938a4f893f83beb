"""Runs in, one self-contained HTML page out: no server, no network."""
