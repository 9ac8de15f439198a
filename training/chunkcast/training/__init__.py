"""Demonstrations to bundle: collect, train, export.

The data's way: ``collect`` (scripted experts) -> ``demonstrations`` (columnar files) -> ``windows`` (batches) ->
``policy`` (normaliser, denoiser, noise scheduler) -> ``trainer`` (checkpoints, history) -> ``export`` (bundle).
This package imports torch; it imports neither the client nor the server.
"""

import os

# ONNX Runtime would tell its makers of each session, and keep a database in the home folder until it can.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
