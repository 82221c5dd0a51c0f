"""Photo → Face: detect, choose, align, judge, embed."""
