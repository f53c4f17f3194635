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

from hft2ane import layout
from hft2ane.ane import POOLING, Linear, Normalize, Pool, to_tokens
from hft2ane.errors import MissingWeights, SourceError, UnknownTask, UnsupportedConfig
from hft2ane.records.package import Part

# torch class names in a Dense module's config.json -> the function
DENSE_ACTIVATIONS = {
    "torch.nn.modules.activation.Tanh": torch.tanh,
    "torch.nn.modules.activation.ReLU": F.relu,
    "torch.nn.modules.activation.GELU": F.gelu,
    "torch.nn.modules.linear.Identity": None,
}
# Pooling's keys until sentence-transformers 5, in the order in which it puts several vectors one after the other.
OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

# The keys of sentence-transformers' files (2.0 to 6.0) -> the values with which a text has the embedding that it has
# here; None: any value, the key is used or does not matter.
Settings = Mapping[str, tuple[Any, ...] | None]
TRANSFORMER: Settings = {
    "max_seq_length": None,
    "do_lower_case": (None, False),
    "unpad_inputs": None,  # how a batch is computed, not what
    "transformer_task": ("feature-extraction",),
    "modality_config": ({"text": {"method": "forward", "method_output_name": "last_hidden_state"}},),
    "module_output_name": ("token_embeddings",),
    **dict.fromkeys(("processing_kwargs", "processor_kwargs", "model_kwargs", "config_kwargs"), ({}, None)),
    **dict.fromkeys(("tokenizer_args", "model_args", "config_args"), ({}, None)),
    **dict.fromkeys(("query_length", "document_length", "query_expansion", "tokenizer_name_or_path"), (None,)),
}
POOL: Settings = dict.fromkeys(
    ("word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt", *OLD_MODES)
)
NORMALIZE: Settings = {
    "module_input_name": ("sentence_embedding",),
    "module_output_name": ("sentence_embedding", None),
}
DENSE: Settings = {
    **NORMALIZE,
    **dict.fromkeys(("in_features", "out_features", "bias", "activation_function")),
    "use_residual": (False,),
}
GENERAL: Settings = {
    **dict.fromkeys(("__version__", "prompts", "default_prompt_name", "similarity_fn_name")),
    "model_type": ("SentenceTransformer",),
    "truncate_dim": (None,),
}


@dataclass(frozen=True)
class Dense:
    """A linear layer on the pooled vector. `tensors`: weight (n_out, n_in) and bias (n_out)."""

    folder: str
    activation: str
    tensors: Mapping[str, Tensor] = field(repr=False)


@dataclass(frozen=True)
class Pipeline:
    """Pooling modes, Dense layers, and perhaps normalisation. `limit`: tokens that sentence-transformers keeps."""

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
        x = torch.cat([pooled[mode]() for mode in self.modes], 1)
        for dense in self.dense:
            x = F.linear(x, dense.tensors["weight"], dense.tensors.get("bias"))
            activation = DENSE_ACTIVATIONS[dense.activation]
            x = activation(x) if activation else x
        return F.normalize(x, dim=1) if self.normalize else x

    def check(self, channels: int) -> None:
        """MissingWeights when a Dense does not fit on what comes before it, from token embeddings of `channels` on."""
        width = channels * len(self.modes)
        for dense in self.dense:
            n_out, n_in = dense.tensors["weight"].shape
            if n_in != width:
                raise MissingWeights(
                    f"{dense.folder}: its weight takes {n_in} values, the vector before it has {width}"
                )
            width = n_out


def read_pipeline(folder: Path) -> Pipeline:
    """What `folder`/modules.json asks for. UnsupportedConfig: a module, order or setting that is not reproduced."""
    modules = read_modules(folder / "modules.json")
    kinds = [kind for kind, _ in modules]
    if kinds != ["Transformer", "Pooling", *["Dense"] * kinds.count("Dense"), *["Normalize"] * ("Normalize" in kinds)]:
        raise UnsupportedConfig(
            f"modules.json asks for {' → '.join(kinds)}; reproduced are Transformer → Pooling [→ Dense …] "
            "[→ Normalize]; for the transformer alone say its `task:` in the manifest, e.g. feature-extraction"
        )
    # sentence_bert_config.json, which old versions named by the model: sentence_roberta_config.json
    transformer = [read_settings(path, TRANSFORMER) for path in sorted(folder.glob("sentence_*_config.json"))]
    pooling = folder / modules[1][1] / layout.CONFIG
    dense = []
    for kind, place in modules[2:]:
        if kind == "Dense":
            dense.append(read_dense(folder, place))
        elif (folder / place / layout.CONFIG).is_file():
            read_settings(folder / place / layout.CONFIG, NORMALIZE)
    check_prompts(folder / "config_sentence_transformers.json", read_settings(pooling, POOL))
    limit = transformer[0].get("max_seq_length") if transformer else None
    return Pipeline(read_modes(pooling), tuple(dense), "Normalize" in kinds, limit)


def read_modules(path: Path) -> list[tuple[str, str]]:
    """(class, folder) of each module, the Transformer's folder being "". UnknownTask: there is no modules.json."""
    if not path.is_file():
        raise UnknownTask(
            f"{path.parent.name} has no {path.name}, which says how to embed a sentence; say another `task:`"
        )
    stages = read_json(path)
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise SourceError(f"{path.name} is no list of modules")
    modules: list[tuple[str, str]] = []
    for stage in stages:
        kind, place = str(stage.get("type")), str(stage.get("path"))
        if not kind.startswith("sentence_transformers."):
            raise UnsupportedConfig(f"{path.name} asks for {kind}, which is not part of sentence-transformers")
        if place and not layout.MODULE.fullmatch(place) or bool(place) is not bool(modules):
            raise UnsupportedConfig(
                f"{path.name} puts {kind} into {place!r}; known are the root for the first module, then 1_Pooling …"
            )
        modules.append((kind.rpartition(".")[2], place))
    return modules


def read_modes(path: Path) -> tuple[str, ...]:
    """Pooling modes: `pooling_mode: "mean"` or a list of them (new), or `pooling_mode_mean_tokens: true` (old)."""
    where, config = f"{path.parent.name}/{path.name}", read_settings(path, POOL)
    old = [key for key in OLD_MODES if key in config]
    if old and "pooling_mode" not in config and "pooling_mode_mean_tokens" not in old:
        raise UnsupportedConfig(
            f"{where} says nothing of pooling_mode_mean_tokens, which is on in old sentence-transformers and off in new"
        )
    named = config.get("pooling_mode", [OLD_MODES[key] for key in old if config[key]] if old else "mean")
    modes = (named,) if isinstance(named, str) else tuple(named or ())
    if unknown := [str(mode) for mode in modes if mode not in POOLING]:
        raise UnsupportedConfig(f"{where}: pooling {', '.join(unknown)} is not reproduced (only {', '.join(POOLING)})")
    if not modes:
        raise UnsupportedConfig(f"{where} names no pooling mode")
    return modes


def check_prompts(path: Path, pooling: Mapping[str, Any]) -> None:
    """UnsupportedConfig: a prompt is put before every text, or prompts are left out of the pooling."""
    general = read_settings(path, GENERAL) if path.is_file() else {}
    prompts = general.get("prompts") or {}
    if prompt := prompts.get(general.get("default_prompt_name")):
        raise UnsupportedConfig(
            f"{path.name}: default_prompt_name puts {prompt!r} before every text, unseen by the graph"
        )
    if not pooling.get("include_prompt", True) and any(prompts.values()):
        raise UnsupportedConfig(
            f"include_prompt = False: leaving the prompts of {path.name} out of the pooling is not reproduced"
        )


def read_dense(folder: Path, place: str) -> Dense:
    """MissingWeights: not exactly the tensors that its config asks for."""
    config = read_settings(folder / place / layout.CONFIG, DENSE)
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in DENSE_ACTIVATIONS:
        raise UnsupportedConfig(f"{place}/config.json: activation_function = {activation!r} is not reproduced")
    path = folder / place / layout.WEIGHTS
    if not path.is_file():
        raise MissingWeights(f"{place} has no {path.name}")
    tensors = {name.removeprefix("linear."): t.float() for name, t in safetensors.torch.load_file(path).items()}
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    n_out, n_in = config.get("out_features"), config.get("in_features")
    expected = {"weight": (n_out, n_in)} | ({"bias": (n_out,)} if config.get("bias", True) else {})
    if shapes != expected:
        raise MissingWeights(f"{place}/{path.name} has {shapes}, its config.json asks for {expected}")
    return Dense(place, activation, tensors)


def read_settings(path: Path, known: Settings) -> dict[str, Any]:
    """A JSON object. UnsupportedConfig: a key or value with which a text may have another embedding."""
    settings, where = read_json(path), f"{path.parent.name}/{path.name}"
    if not isinstance(settings, dict):
        raise SourceError(f"{where} is no JSON object")
    for key, value in settings.items():
        allowed = known.get(key, ())
        if allowed is not None and value not in allowed:
            choices = f" (only {', '.join(map(repr, allowed))})" if allowed else ""
            raise UnsupportedConfig(f"{where}: {key} = {value!r} is not reproduced{choices}")
    return settings


class SentenceEmbedder(nn.Module):
    """An encoder of a family with the pipeline in the graph. Token types are zero: it is for single texts."""

    OUTPUTS = ("token_embeddings", "sentence_embedding")

    def __init__(self, encoder: Any, pipeline: Pipeline) -> None:
        super().__init__()
        self.encoder = encoder
        self.pool = Pool(pipeline.modes)
        self.dense = nn.ModuleList(
            Linear(d.tensors["weight"].shape[1], d.tensors["weight"].shape[0], "bias" in d.tensors)
            for d in pipeline.dense
        )
        self.activations = [DENSE_ACTIVATIONS[d.activation] for d in pipeline.dense]
        self.normalize = Normalize() if pipeline.normalize else None
        self.inputs = ("input_ids", "attention_mask")

    @property
    def parts(self) -> Mapping[Part, Any]:
        return {"": self}

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
        return json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError) as err:
        raise SourceError(f"{path.parent.name}/{path.name} is not readable as JSON: {err}") from err
