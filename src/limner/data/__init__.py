"""Datasets, shards and transforms."""
