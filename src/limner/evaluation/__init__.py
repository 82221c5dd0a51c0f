"""Metrics, protocols, tables, plots."""
