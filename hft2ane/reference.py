"""The original model: transformers' class with the checkpoint's weights in fp32, its tensors, and its answers.

The only place that imports transformers. What the checkpoint has no weights for is refused here: transformers itself
fills it with random numbers and warns.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers.utils import logging as transformers_logging

from hft2ane import layout
from hft2ane.errors import MissingWeights, SourceError, UnsupportedConfig, UnsupportedModel
from hft2ane.families import FEATURES, STATES, STATES_MASK, WRITING, Family, TaskModule, family
from hft2ane.records.package import Generation, Part
from hft2ane.sentence import Pipeline, read_json, read_pipeline

SENTENCE = "sentence-embedding"
WRITERS = ("text-generation", "text2text-generation")
LABELLED = ("text-classification", "token-classification")

# What transformers calls a pair's inputs and outputs -> what they are called by the package of a part.
OF_PARTS: Mapping[Part, Mapping[str, str]] = {
    "encoder": {"encoder_last_hidden_state": "last_hidden_state"},
    "decoder": {
        "decoder_input_ids": "input_ids",
        "decoder_attention_mask": "attention_mask",
        "encoder_last_hidden_state": STATES,
        "attention_mask": STATES_MASK,
        "logits": "logits",
    },
}

# How transformers computes and answers, never what: set so that a checkpoint's own wishes do not get in the way.
MANNER = {
    "chunk_size_feed_forward": 0,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
}


@dataclass(frozen=True)
class Described:
    """A checkpoint as its configuration has it."""

    family: Family
    task: str
    config: Any
    pipeline: Pipeline | None

    @property
    def kind(self) -> type[TaskModule]:
        """Our class for it; with a pipeline, for what comes before that."""
        return self.family.tasks[FEATURES if self.pipeline else self.task]

    @property
    def length_limit(self) -> int:
        """The most tokens that the network takes."""
        return self.kind.limit(self.config)


@dataclass(frozen=True)
class Original(Described):
    """A loaded checkpoint. `tensors` are by transformers' names without the base model's prefix."""

    model: Any
    tensors: Mapping[str, Tensor]
    absent: frozenset[str]
    generation: Generation | None

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the entries of `logits`, for the tasks that have them."""
        if self.task not in LABELLED:
            return ()
        return tuple(str(self.config.id2label[i]) for i in range(self.config.num_labels))

    @property
    def name(self) -> str:
        """The family, and those that it is made of: `encoder-decoder/bert/roberta`."""
        return "/".join(
            [self.family.model_type, *(getattr(self.config, part).model_type for part in self.family.parts)]
        )

    @property
    def vocabulary(self) -> int:
        """Ids that the texts of the tokenizer may have."""
        return int((self.config.encoder if self.family.parts else self.config).vocab_size)

    @torch.no_grad()
    def answer(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The original's outputs by name, fp32, for token ids (B, S), or (B, choices, S) for multiple choice."""
        out = self.model(**{key: v if v.is_floating_point() else v.long() for key, v in inputs.items()})
        if self.pipeline is None:
            return {key: value for key, value in out.items() if isinstance(value, Tensor)}
        tokens = out["last_hidden_state"]
        return {
            "token_embeddings": tokens,
            "sentence_embedding": self.pipeline.reference(tokens, inputs["attention_mask"]),
        }

    def ask(self, inputs: Mapping[str, Tensor]) -> dict[Part, tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]:
        """For each part what goes into it and what comes out. A decoder's states are those of the original's encoder,
        so that its errors are its own."""
        answers = self.answer(inputs)
        if not self.family.parts:
            return {"": (inputs, answers)}
        known = {**inputs, **answers}
        of_encoder = {name: tensor for name, tensor in inputs.items() if not name.startswith("decoder_")}
        renamed = {part: {ours: known[theirs] for theirs, ours in names.items()} for part, names in OF_PARTS.items()}
        logits = renamed["decoder"].pop("logits")
        return {
            "encoder": (of_encoder, renamed["encoder"]),
            "decoder": (renamed["decoder"], {"logits": logits}),
        }

    @torch.no_grad()
    def write(self, inputs: Mapping[str, Tensor], most: int) -> list[int]:
        """The ids that transformers writes, always taking the best: for a text to be read, or as the continuation of
        one, (1, S) without padding; `most`: how many it may be."""
        how = self.generation
        assert how is not None
        settings = transformers.GenerationConfig(  # type: ignore[no-untyped-call]
            decoder_start_token_id=how.start,
            eos_token_id=list(how.end) or None,
            pad_token_id=how.pad,
            max_new_tokens=most,
            do_sample=False,
            num_beams=1,
        )
        with quiet():
            ids: list[int] = self.model.generate(**inputs, generation_config=settings)[0].tolist()
        return ids[1 if self.family.parts else inputs["input_ids"].shape[1] :]


def describe(folder: Path, wanted: str | None) -> Described:
    """The checkpoint in `folder` for a task, or for the task that it names itself. Of its weights only the names are
    read, and those of a pipeline's Dense layers."""
    with quiet():
        ours, config = read_config(folder)
        has_pipeline = (folder / "modules.json").is_file()
        pipeline = read_pipeline(folder) if wanted == SENTENCE or (wanted is None and has_pipeline) else None
        where = f"{folder.name}/{layout.CONFIG}"
        task = FEATURES if pipeline else ours.task(wanted, config, stored(folder), where)
        ours.check(config, task, where)
        if task in LABELLED and sorted(config.id2label) != list(range(config.num_labels)):
            raise UnsupportedConfig(f"{where}: id2label names {sorted(config.id2label)}, not all from 0 on")
        if pipeline:
            pipeline.check(config.hidden_size)
    return Described(ours, SENTENCE if pipeline else task, config, pipeline)


def load(folder: Path, wanted: str | None) -> Original:
    """The checkpoint in `folder` (weights in safetensors) for a task, or for the task that it names itself."""
    found = describe(folder, wanted)
    with quiet():
        model, absent = load_model(folder, found)
    tensors = {bare(name, model): tensor for name, tensor in model.state_dict().items()}
    if found.pipeline and "pooler" not in absent:  # the pipeline pools by itself: the pooler is not what is published
        absent = absent | {"pooler"}
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("pooler.")}
    where = f"{folder.name}/{layout.CONFIG}"
    how = generation(model, found.family, where) if found.task in WRITERS else None
    return Original(found.family, found.task, found.config, found.pipeline, model, tensors, absent, how)


def read_config(folder: Path) -> tuple[Family, Any]:
    """config.json: the family that it names, and transformers' reading of it."""
    raw, where = read_json(folder / layout.CONFIG), f"{folder.name}/{layout.CONFIG}"
    if not isinstance(raw, dict):
        raise SourceError(f"{where} is no JSON object")
    layout.check_config(raw, where)
    if not isinstance(raw.get("architectures") or [], list):
        raise UnsupportedConfig(f"{where}: architectures = {raw['architectures']!r} is no list")
    ours = family(raw["model_type"])
    for part in ours.parts:
        if not isinstance(raw.get(part), dict):
            raise UnsupportedConfig(f"{where}: {part} = {raw.get(part)!r} is no config")
        layout.check_config(raw[part], f"{where}: {part}")
        ours.check_kind(part, raw[part]["model_type"], where)
    for config in (raw, *(raw[part] for part in ours.parts)):
        for key in ("per_layer_config", "quantization_config"):  # these change a model of any family
            if config.get(key):
                raise UnsupportedConfig(f"{where}: {key} = {config[key]!r} is not reproduced")
    fixed = {key: allowed for key, allowed in ours.config.items() if not callable(allowed)}
    odd = [f"{key} = {raw[key]!r}" for key, allowed in fixed.items() if key in raw and raw[key] not in allowed]
    about = f"{where}: {', '.join(odd)}:" if odd else where  # what does not fit is mostly what went wrong
    try:
        return ours, transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **MANNER)
    except (ValueError, OSError, KeyError, TypeError, AttributeError, ArithmeticError) as err:
        raise UnsupportedConfig(f"{about} is not read by transformers: {one_line(err)}") from err
    except StrictDataclassError as err:
        raise UnsupportedConfig(f"{about} has a value of the wrong kind: {one_line(err)}") from err


def stored(folder: Path) -> list[str]:
    """The names of the checkpoint's tensors. SourceError: there are no weights, or they are not readable."""
    if (folder / layout.INDEX).is_file():
        index = read_json(folder / layout.INDEX)
        names = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(names, dict):
            raise SourceError(f"{folder.name}/{layout.INDEX} has no weight_map")
        return list(names)
    if not (folder / layout.WEIGHTS).is_file():
        raise SourceError(f"{folder.name}: transformers finds no weights: there is no {layout.WEIGHTS}")
    try:
        with safetensors.safe_open(folder / layout.WEIGHTS, "pt") as weights:
            return list(weights.keys())
    except (OSError, safetensors.SafetensorError) as err:
        raise SourceError(f"{folder.name}/{layout.WEIGHTS} is not readable as safetensors: {one_line(err)}") from err


def load_model(folder: Path, found: Described) -> tuple[Any, frozenset[str]]:
    """The model and the optional parts that the checkpoint has no weights for, which it is then built without."""
    module = found.kind
    original = getattr(transformers, module.ORIGINAL)
    options = {
        "config": found.config,
        "attn_implementation": "eager",
        "dtype": torch.float32,
        "local_files_only": True,
        "use_safetensors": True,
    }
    try:
        model, info = original.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except OSError as err:
        raise SourceError(f"{folder.name}: transformers finds no weights: {one_line(err)}") from err
    if differ := sorted(info["mismatched_keys"]):
        name, stored, expected = differ[0]
        raise MissingWeights(
            f"{folder.name}: {len(differ)} tensors are not of the shape that config.json gives them: {name} has "
            f"{tuple(stored)} instead of {tuple(expected)}"
        )
    missing = {bare(name, model) for name in info["missing_keys"]}
    absent = frozenset(part for part in module.OPTIONAL if parameters(model, part) <= missing)
    if needed := sorted(missing.difference(*(parameters(model, part) for part in absent))):
        raise MissingWeights(
            f"the checkpoint has no weights for {module.ORIGINAL} ({found.task}): {some(needed)} would be random; "
            "say another `task:` in the manifest"
        )
    if left := sorted(name for key in info["unexpected_keys"] if not found.family.is_head(name := bare(key, model))):
        raise UnsupportedModel(
            f"{folder.name}: {len(left)} tensors of the checkpoint are no part of {module.ORIGINAL}: {some(left)}; so "
            "config.json does not describe it, or it needs code of its own"
        )
    if "pooler" in absent:
        model = original.from_pretrained(folder, add_pooling_layer=False, **options)
    return model.eval(), absent


def generation(model: Any, ours: Family, where: str) -> Generation:
    """How a text begins and ends, as generation_config.json says it, or else config.json."""
    said = model.generation_config
    ends = said.eos_token_id if isinstance(said.eos_token_id, list) else [said.eos_token_id]
    end = tuple(int(token) for token in ends if token is not None)
    if not ours.parts:
        return Generation(None, end, said.pad_token_id or 0)
    start = said.bos_token_id if said.decoder_start_token_id is None else said.decoder_start_token_id
    for key, value in (("decoder_start_token_id", start), ("eos_token_id", end or None)):
        if value is None:
            raise UnsupportedConfig(f"{where} has no {key}, so nothing says how a text that is written begins and ends")
    decoder = model.config.decoder
    kind: Any = family(decoder.model_type).tasks[WRITING]
    if start == decoder.pad_token_id and kind.first_position(decoder):
        raise UnsupportedConfig(
            f"{where}: decoder_start_token_id = {start} is the decoder's padding, which has no position of its own"
        )
    return Generation(int(start), end, said.pad_token_id or 0)


def bare(name: str, model: Any) -> str:
    """A tensor's name without the base model's prefix: `bert.pooler.dense.bias` -> `pooler.dense.bias`, and in a pair
    `decoder.bert.encoder.layer.0…` -> `decoder.encoder.layer.0…`."""
    name = name.removeprefix(f"{model.base_model_prefix}.")
    part, _, rest = name.partition(".")
    is_part = model.base_model_prefix == "encoder_decoder" and part in OF_PARTS
    return f"{part}.{bare(rest, getattr(model, part))}" if is_part else name


def parameters(model: Any, part: str) -> set[str]:
    return {bare(name, model) for name, _ in model.named_parameters() if bare(name, model).startswith(f"{part}.")}


def some(names: list[str]) -> str:
    return f"{', '.join(names[:4])}{' …' if len(names) > 4 else ''}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Loading reports and progress bars off: what they say is checked here and raised."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


class Tokenizer:
    """The checkpoint's own tokenizer. SourceError where transformers would give an almost empty one without a word."""

    def __init__(self, folder: Path, vocabulary: int) -> None:
        options = {"local_files_only": True, "trust_remote_code": False}
        with quiet():
            try:
                self.inner = transformers.AutoTokenizer.from_pretrained(folder, **options)
            except Exception as err:
                # Whatever is wrong lies in the files; of some faults tokenizers says so with a plain Exception.
                raise SourceError(f"{folder.name}: the tokenizer's files are not usable: {one_line(err)}") from err
        if len(self.inner) < vocabulary // 2:
            raise SourceError(
                f"{folder.name}: the tokenizer has {len(self.inner)} entries for a vocabulary of {vocabulary}; "
                "its files are missing or of another kind (tokenizer.json, vocab.txt)"
            )
        if (last := max(self.inner.get_vocab().values())) >= vocabulary:
            raise SourceError(
                f"{folder.name}: the tokenizer gives ids up to {last}, the model has {vocabulary} embeddings"
            )
        if self.inner.pad_token_id is None:
            raise SourceError(f"{folder.name}: the tokenizer has no token to pad with")
        self.pad = int(self.inner.pad_token_id)
        self.inner.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True

    def __call__(self, texts: Sequence[tuple[str, ...]], length: int) -> dict[str, Tensor]:
        """Texts or pairs of texts, cut and padded to `length` tokens: int64 (B, length) by input name."""
        out = self.inner(
            [t[0] for t in texts],
            [t[1] for t in texts] if len(texts[0]) > 1 else None,
            padding="max_length",
            padding_side="right",  # whatever the tokenizer's own: positions then are those of the text alone
            truncation=True,
            max_length=length,
            return_token_type_ids=True,
            return_tensors="pt",
        )
        return {name: out[name] for name in ("input_ids", "attention_mask", "token_type_ids")}


def one_line(err: BaseException) -> str:
    return " ".join(str(err).split()) or type(err).__name__
