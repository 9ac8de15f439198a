"""Instructions: how a policy is told its task, and the text encoder that turns a sentence into a vector."""
