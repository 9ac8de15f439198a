"""The policy server: a bundle in, action chunks out.

The data's way: ``bundle`` (verified files) -> ``engine`` (a warm ONNX session) <- ``session`` (a robot's episode:
checked observations and their history) <- ``service`` (gRPC); each reply passes ``guard``, each stage is counted in
``statistics``, which ``prometheus_page`` publishes. This package never imports torch.
"""
