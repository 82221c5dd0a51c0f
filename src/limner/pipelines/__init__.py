"""Diffusers pipelines that take a Conditioning."""
