"""Sentences as vectors: a text encoder as ONNX with its tokenizer, read by training and by the server alike.

::

    DIR/
      encoder.onnx      input_ids and attention_mask [B, L] int64 -> sentence_embedding [B, E] float32, of unit length
      tokenizer.json    Hugging Face tokenizers' format
      encoder.json      name, sizes, where it comes from, SHA-256 of the two files

An encoder is kept once; the bundles that need it name its SHA-256. No torch here, no pickle.
"""

import os

# ONNX Runtime would tell its makers of each session, and keep a database in the home folder until it can.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
