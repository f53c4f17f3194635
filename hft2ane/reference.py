"""The original model: transformers' class with the checkpoint's weights in fp32, its tensors, and its answers.

The only place that imports transformers. What the checkpoint has no weights for is refused here: transformers itself
fills it with random numbers and warns.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.utils import logging as transformers_logging

from hft2ane.errors import MissingWeights, SourceError, UnsupportedConfig
from hft2ane.families import Family, family
from hft2ane.sentence import Pipeline, read_pipeline

SENTENCE = "sentence-embedding"


@dataclass(frozen=True)
class Original:
    """A loaded checkpoint. `tensors` are by transformers' names without the base model's prefix."""

    family: Family
    task: str
    config: Any
    model: Any
    tensors: Mapping[str, Tensor]
    absent: frozenset[str]
    pipeline: Pipeline | None

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the entries of `logits`, for the tasks that have them."""
        if self.task not in ("text-classification", "token-classification"):
            return ()
        return tuple(str(self.config.id2label[i]) for i in range(self.config.num_labels))

    @property
    def length_limit(self) -> int:
        """Most tokens that the position table holds."""
        return int(self.config.max_position_embeddings)

    @torch.no_grad()
    def answer(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The original's outputs by name, fp32, for token ids (B, S), or (B, choices, S) for multiple choice."""
        out = self.model(**{key: value.long() for key, value in inputs.items()})
        if self.pipeline is None:
            return {key: value for key, value in out.items() if isinstance(value, Tensor)}
        tokens = out["last_hidden_state"]
        return {
            "token_embeddings": tokens,
            "sentence_embedding": self.pipeline.reference(tokens, inputs["attention_mask"]),
        }


def load(folder: Path, wanted: str | None) -> Original:
    """The checkpoint in `folder` (files in safetensors) for a task, or for the task that the checkpoint itself names."""
    config = read_config(folder)
    ours = family(config.model_type)
    ours.check(config, f"{folder.name}/config.json")
    pipeline = read_pipeline(folder) if wanted == SENTENCE or (wanted is None and has_pipeline(folder)) else None
    task = "feature-extraction" if pipeline else ours.task(wanted, config.architectures, f"{folder.name}/config.json")
    module = ours.tasks[task]
    with quiet():
        model, absent = load_model(folder, module, task)
    prefix = f"{model.base_model_prefix}."
    tensors = {name.removeprefix(prefix): tensor for name, tensor in model.state_dict().items()}
    if pipeline and "pooler" not in absent:  # the pipeline pools by itself: the pooler is not part of what is published
        absent = absent | {"pooler"}
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("pooler.")}
    return Original(ours, SENTENCE if pipeline else task, config, model, tensors, absent, pipeline)


def read_config(folder: Path) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError, TypeError) as err:
        raise UnsupportedConfig(f"{folder}/config.json is not read by transformers: {first_line(err)}") from err
    except Exception as err:  # noqa: BLE001 - huggingface_hub's strict dataclasses raise a class of their own
        if type(err).__name__.startswith("StrictDataclass"):
            raise UnsupportedConfig(f"{folder}/config.json has a value of the wrong kind: {first_line(err)}") from err
        raise


def has_pipeline(folder: Path) -> bool:
    return (folder / "modules.json").is_file()


def load_model(folder: Path, module: Any, task: str) -> tuple[Any, frozenset[str]]:
    """The model and the optional parts that the checkpoint has no weights for, which it is then built without."""
    original = getattr(transformers, module.ORIGINAL)
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
    model, info = original.from_pretrained(folder, output_loading_info=True, **options)
    if info["mismatched_keys"]:
        raise MissingWeights(f"{folder.name}: shapes disagree with config.json: {sorted(map(str, info['mismatched_keys']))[:3]}")
    missing = sorted(map(str, info["missing_keys"]))
    absent = frozenset(
        part for part in getattr(module, "OPTIONAL", ()) if any(f"{part}." in f"{name}." for name in missing)
    )
    needed = [name for name in missing if not any(f"{part}." in name for part in absent)]
    if needed:
        raise MissingWeights(
            f"the checkpoint has no weights for {module.ORIGINAL} ({task}): {', '.join(needed[:4])}"
            f"{' …' if len(needed) > 4 else ''} would be random; say another `task:` in the manifest"
        )
    if absent:
        model = original.from_pretrained(folder, add_pooling_layer=False, **options)
    return model.eval(), absent


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Loading reports and progress bars off: what they say is checked here and raised."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


class Tokenizer:
    """The checkpoint's own tokenizer. SourceError where transformers would give an almost empty one without a word."""

    def __init__(self, folder: Path, vocabulary: int) -> None:
        with quiet():
            self.inner = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if len(self.inner) < vocabulary // 2:
            raise SourceError(
                f"{folder.name}: the tokenizer has {len(self.inner)} entries for a vocabulary of {vocabulary}; its files "
                "are missing or of another kind (tokenizer.json, vocab.txt)"
            )
        self.inner.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True

    def __call__(self, texts: Sequence[tuple[str, ...]], length: int) -> dict[str, Tensor]:
        """Texts or pairs of texts, cut and padded to `length` tokens: int64 (B, length) by input name."""
        out = self.inner(
            [t[0] for t in texts],
            [t[1] for t in texts] if len(texts[0]) > 1 else None,
            padding="max_length",
            truncation=True,
            max_length=length,
            return_token_type_ids=True,
            return_tensors="pt",
        )
        return {name: out[name] for name in ("input_ids", "attention_mask", "token_type_ids")}


def first_line(err: BaseException) -> str:
    return next(iter(str(err).strip().splitlines()), type(err).__name__)
