"""Load on a policy server: many simulated robots, and what their chunks take beside the bare network's run."""
