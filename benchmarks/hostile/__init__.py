"""Malformed and hostile messages against a real server, beside a healthy robot.

``python -m benchmarks.hostile`` (``make hostile``) writes docs/results/hostile.json and ends with exit code 1 where an
answer was wrong, the server fell or grew, or the healthy robot was kept waiting.
"""
