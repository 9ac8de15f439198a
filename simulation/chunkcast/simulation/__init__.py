"""MetaWorld as collecting and evaluating both see it: its tasks, its cameras, and pictures of them.

Both must see the same: a policy is judged on the pictures that it was trained on. Does not know: demonstrations,
policies, servers.
"""
