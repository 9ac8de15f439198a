"""Breaks a real server, its network, its disk and its certificates while a simulated arm plays against it, and tells
what the arm did at every tick.

``python -m benchmarks.chaos`` (``make chaos``) writes docs/results/chaos.json and ends with exit code 1 where an arm
did what it should not.
"""
