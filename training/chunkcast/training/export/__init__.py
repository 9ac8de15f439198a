"""A checkpoint becomes a bundle: one ONNX graph with the sampler inside, its specification, and their hashes."""
