"""The page that people look at: what is served, how fast, whether it is healthy, and whether success is as promised."""
