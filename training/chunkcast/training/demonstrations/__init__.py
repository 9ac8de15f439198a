"""Demonstrations: what they are, and the files that they are read from and written to."""
