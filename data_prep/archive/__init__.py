"""The CT collections on disk -> a store: listing, headers, pixels, shards, merge. Used by data_prep/ct.py."""
