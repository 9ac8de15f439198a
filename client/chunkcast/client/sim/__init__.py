"""MetaWorld as robots of a policy server: ``chunkcast-sim`` measures success through it."""
