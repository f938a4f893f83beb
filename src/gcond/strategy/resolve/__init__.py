"""Resolvers: one file per paper."""
