"""A small grid of settings, trained, played and ranked."""
