"""Sentence embeddings: what a sentence-transformers folder puts behind its Transformer, read, redone and checked.

`modules.json` lists Transformer, Pooling, and any of Dense and Normalize. `Pipeline.reference` computes them as
sentence-transformers defines them; `SentenceEmbedder` is the same in the graph, on the bricks.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hft2ane.ane import POOLING, Linear, Normalize, Pool, to_tokens
from hft2ane.errors import MissingWeights, SourceError, UnsupportedConfig

# torch class names in a Dense module's config.json -> the function
DENSE_ACTIVATIONS = {
    "torch.nn.modules.activation.Tanh": torch.tanh,
    "torch.nn.modules.activation.ReLU": F.relu,
    "torch.nn.modules.activation.GELU": F.gelu,
    "torch.nn.modules.linear.Identity": None,
}


@dataclass(frozen=True)
class Dense:
    """A linear layer on the pooled vector. `tensors`: weight (n_out, n_in) and bias (n_out)."""

    folder: str
    activation: str
    tensors: Mapping[str, Tensor] = field(repr=False)


@dataclass(frozen=True)
class Pipeline:
    """Pooling modes, then Dense layers, then perhaps normalisation. `limit`: tokens that sentence-transformers keeps."""

    modes: tuple[str, ...]
    dense: tuple[Dense, ...]
    normalize: bool
    limit: int | None

    def reference(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, S, C) and (B, S) -> (B, D) in fp32, as sentence_transformers.models.Pooling, Dense, Normalize do it."""
        keep = attention_mask.unsqueeze(-1).to(tokens.dtype)
        total, count = (tokens * keep).sum(1), keep.sum(1).clamp(min=1e-9)
        pooled = {
            "cls": lambda: tokens[:, 0],
            "max": lambda: tokens.masked_fill(keep == 0, -1e9).amax(1),
            "mean": lambda: total / count,
            "mean_sqrt_len_tokens": lambda: total / count.sqrt(),
        }
        x = torch.cat([pooled[mode]() for mode in POOLING if mode in self.modes], 1)
        for dense in self.dense:
            x = F.linear(x, dense.tensors["weight"], dense.tensors.get("bias"))
            activation = DENSE_ACTIVATIONS[dense.activation]
            x = activation(x) if activation else x
        return F.normalize(x, dim=1) if self.normalize else x


def read_pipeline(folder: Path) -> Pipeline:
    """What `folder`/modules.json asks for. UnsupportedConfig: a module, a mode or an order that is not reproduced."""
    stages = read_json(folder / "modules.json")
    kinds = [str(stage.get("type", "")).rpartition(".")[2] for stage in stages]
    expected = ["Transformer", "Pooling", *["Dense"] * kinds.count("Dense"), *["Normalize"] * kinds.count("Normalize")]
    if kinds != expected or kinds.count("Normalize") > 1:
        raise UnsupportedConfig(
            f"modules.json asks for {' → '.join(kinds)}; reproduced are Transformer → Pooling [→ Dense …] [→ Normalize]"
        )
    if stages[0].get("path"):
        raise UnsupportedConfig(f"modules.json puts the Transformer into {stages[0]['path']!r}; only the root is read")
    dense = tuple(read_dense(folder, stage["path"]) for stage, kind in zip(stages, kinds, strict=True) if kind == "Dense")
    settings = folder / "sentence_bert_config.json"
    options = read_json(settings) if settings.is_file() else {}
    if options.get("do_lower_case"):
        raise UnsupportedConfig("sentence_bert_config.json: do_lower_case changes the text before the tokenizer sees it")
    return Pipeline(read_modes(folder / stages[1]["path"]), dense, "Normalize" in kinds, options.get("max_seq_length"))


def read_modes(folder: Path) -> tuple[str, ...]:
    """Pooling modes: `pooling_mode: "mean"` (new) or `pooling_mode_mean_tokens: true` (old, several at once)."""
    config = read_json(folder / "config.json")
    named = config.get("pooling_mode")
    modes = [named] if isinstance(named, str) else list(named or ())
    for key, on in config.items():
        if key.startswith("pooling_mode_") and on:
            mode = key.removeprefix("pooling_mode_")
            modes.append({"cls_token": "cls", "max_tokens": "max", "mean_tokens": "mean"}.get(mode, mode))
    if unknown := sorted(set(modes) - set(POOLING)):
        raise UnsupportedConfig(f"{folder.name}/config.json: pooling {', '.join(unknown)} is not reproduced (only {', '.join(POOLING)})")
    if not modes:
        raise UnsupportedConfig(f"{folder.name}/config.json names no pooling mode")
    return tuple(mode for mode in POOLING if mode in modes)


def read_dense(folder: Path, path: str) -> Dense:
    config = read_json(folder / path / "config.json")
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in DENSE_ACTIVATIONS:
        raise UnsupportedConfig(f"{path}/config.json: activation_function {activation!r} is not reproduced")
    weights = folder / path / "model.safetensors"
    if not weights.is_file():
        raise MissingWeights(f"{path} has no model.safetensors")
    tensors = {name.removeprefix("linear."): t.float() for name, t in safetensors.torch.load_file(weights).items()}
    wanted = {"weight", "bias"} if config.get("bias", True) else {"weight"}
    if set(tensors) != wanted:
        raise MissingWeights(f"{path}/model.safetensors has {sorted(tensors)}, expected {sorted(wanted)}")
    return Dense(path, activation, tensors)


class SentenceEmbedder(nn.Module):
    """An encoder of a family with the pipeline in the graph. Token types are zero, as for the single texts it is for."""

    OUTPUTS = ("token_embeddings", "sentence_embedding")

    def __init__(self, encoder: Any, pipeline: Pipeline) -> None:
        super().__init__()
        self.encoder = encoder
        self.pool = Pool(pipeline.modes)
        self.dense = nn.ModuleList(
            Linear(d.tensors["weight"].shape[1], d.tensors["weight"].shape[0], "bias" in d.tensors) for d in pipeline.dense
        )
        self.activations = [DENSE_ACTIVATIONS[d.activation] for d in pipeline.dense]
        self.normalize = Normalize() if pipeline.normalize else None
        self.inputs = ("input_ids", "attention_mask")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        x = self.encoder.encode(input_ids, attention_mask)
        pooled = self.pool(x, attention_mask)
        for dense, activation in zip(self.dense, self.activations, strict=True):
            pooled = dense(pooled)
            pooled = activation(pooled) if activation else pooled
        if self.normalize:
            pooled = self.normalize(pooled)
        return to_tokens(x), torch.flatten(pooled, 1)


def weights(encoder: Mapping[str, str], pipeline: Pipeline) -> dict[str, str]:
    """The encoder's weight table, one level down, and a row for each Dense."""
    return {f"encoder.{ours}": theirs for ours, theirs in encoder.items()} | {
        f"dense.{i}": dense.folder for i, dense in enumerate(pipeline.dense)
    }


def read_json(path: Path) -> Any:
    """SourceError: missing or not JSON."""
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError) as err:
        raise SourceError(f"{path.name} is not readable as JSON: {err}") from err
