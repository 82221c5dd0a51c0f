"""One file a method: what it keeps of a person, and how it conditions on that person and a prompt."""
