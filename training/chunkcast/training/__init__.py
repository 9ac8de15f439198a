"""Demonstrations to bundle: collect, train, export.

The data's way: ``collect`` (scripted experts) -> ``demonstrations`` (columnar files) -> ``windows`` (batches) ->
``policy`` (normaliser, denoiser, noise scheduler) -> ``trainer`` (checkpoints, history) -> ``export`` (bundle).
This package imports torch; it imports neither the client nor the server.
"""
