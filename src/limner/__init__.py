"""Limner: identity-preserving image synthesis.

A photo of a person and a sentence in, a portrait of that person in that scene out. Importing this package does no
I/O, loads no framework and chooses no device; the rooms (`limner.faces`, `limner.world`, …) are imported by name.
"""

__version__ = "0.1.0.dev0"
