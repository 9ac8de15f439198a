"""Scripted MetaWorld experts, played in parallel processes, recorded as demonstrations."""
