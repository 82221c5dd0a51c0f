"""The synthetic sitters: identities, renderer, captions, ground truth."""
