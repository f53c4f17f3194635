"""Sentence embeddings: our graph against the reference, the reference against the formulas, and what is refused."""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hft2ane.ane import POOLING, Normalize, Pool
from hft2ane.demo import MODELS, obtain
from hft2ane.errors import Hft2aneError, MissingWeights, SourceError, UnsupportedConfig
from hft2ane.psnr import psnr
from hft2ane.reference import Tokenizer, load
from hft2ane.rewrite import rewrite
from hft2ane.sentence import DENSE_ACTIVATIONS, OLD_MODES, Pipeline, read_pipeline
from tests.conftest import Checkpoint

Array = np.ndarray[Any, Any]

C = 24  # channels of the tiny encoder
TANH, RELU, GELU, IDENTITY = DENSE_ACTIVATIONS
IDS = torch.tensor([[2, 7, 9, 30, 3, 11], [2, 5, 3, 0, 0, 0], [2, 0, 0, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])


def dump(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def pipeline(
    folder: Path,
    pooling: Any = "mean",
    dense: Sequence[tuple[int, str, bool]] = (),
    normalize: bool = False,
    package: str = "sentence_transformers.models",
) -> Path:
    """What sentence-transformers adds to an encoder's folder. `dense`: width, activation, whether there is a bias."""
    config = pooling if isinstance(pooling, dict) else {"embedding_dimension": C, "pooling_mode": pooling}
    kinds = ["Transformer", "Pooling", *["Dense"] * len(dense), *["Normalize"] * normalize]
    places = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    stages = [
        {"idx": i, "name": str(i), "path": place, "type": f"{package}.{kind}"}
        for i, (kind, place) in enumerate(zip(kinds, places, strict=True))
    ]
    dump(folder / "modules.json", stages)
    dump(folder / "1_Pooling" / "config.json", config)
    width = C * (len(pooling) if isinstance(pooling, list) else 1)
    generator = torch.Generator().manual_seed(3)
    for place, (n_out, activation, bias) in zip(places[2:], dense, strict=False):
        settings = {"in_features": width, "out_features": n_out, "bias": bias, "activation_function": activation}
        dump(folder / place / "config.json", settings)
        tensors = {"linear.weight": torch.randn(n_out, width, generator=generator) * 0.3}
        tensors |= {"linear.bias": torch.randn(n_out, generator=generator) * 0.3} if bias else {}
        safetensors.torch.save_file(tensors, folder / place / "model.safetensors")
        width = n_out
    return folder


@torch.no_grad()
def embed(folder: Path) -> tuple[Array, Array, Array]:
    """(token embeddings, the reference's sentence embeddings, ours), fp32."""
    original = load(folder, None)
    assert original.task == "sentence-embedding"
    module: Any = rewrite(original)
    assert module.inputs == ("input_ids", "attention_mask")
    assert module.OUTPUTS == ("token_embeddings", "sentence_embedding")
    tokens, ours = module(IDS, MASK)
    answers = original.answer({"input_ids": IDS, "attention_mask": MASK})
    assert set(answers) == set(module.OUTPUTS)
    keep = MASK.bool()
    assert psnr(answers["token_embeddings"][keep].numpy(), tokens[keep].numpy()) > 130
    assert ours.shape == answers["sentence_embedding"].shape
    return answers["token_embeddings"].numpy(), answers["sentence_embedding"].numpy(), ours.numpy()


# The definitions, a row at a time, on the tokens that are not padding.
FORMULAS: dict[str, Callable[[Array], Array]] = {
    "cls": lambda tokens: tokens[0],
    "max": lambda tokens: tokens.max(0),
    "mean": lambda tokens: tokens.mean(0),
    "mean_sqrt_len_tokens": lambda tokens: tokens.sum(0) / np.sqrt(len(tokens)),
}
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    TANH: np.tanh,
    RELU: lambda x: np.maximum(x, 0),
    GELU: lambda x: x / 2 * (1 + np.vectorize(math.erf)(x / np.sqrt(2))),
    IDENTITY: lambda x: x,
}


def by_hand(
    folder: Path, tokens: Array, modes: Sequence[str], dense: Sequence[tuple[int, str, bool]], unit: bool
) -> Array:
    rows = []
    for row, keep in zip(tokens.astype(np.float64), MASK.bool().numpy(), strict=True):
        x = np.concatenate([FORMULAS[mode](row[keep]) for mode in modes])
        for i, (_, activation, bias) in enumerate(dense):
            tensors = safetensors.torch.load_file(folder / f"{i + 2}_Dense" / "model.safetensors")
            x = tensors["linear.weight"].double().numpy() @ x
            x = ACTIVATIONS[activation](x + tensors["linear.bias"].double().numpy() if bias else x)
        rows.append(x / np.sqrt((x**2).sum()) if unit else x)
    return np.stack(rows)


def test_every_choice_is_tried() -> None:
    assert set(FORMULAS) == set(POOLING)
    assert set(ACTIVATIONS) == set(DENSE_ACTIVATIONS)


PIPELINES: list[tuple[Any, Sequence[tuple[int, str, bool]], bool]] = [
    *((mode, (), unit) for mode in POOLING for unit in (False, True)),
    *((list(modes), (), False) for modes in itertools.permutations(POOLING, 2)),
    (list(POOLING), (), True),
    (["mean", "mean"], (), False),
    *(("mean", ((16, activation, bias),), False) for activation in ACTIVATIONS for bias in (True, False)),
    ("cls", ((40, TANH, True), (8, IDENTITY, False)), True),
    (["max", "cls"], ((32, GELU, True),), True),
]


@pytest.mark.parametrize(("pooling", "dense", "unit"), PIPELINES, ids=str)
def test_pipelines(checkpoint: Checkpoint, pooling: Any, dense: Sequence[tuple[int, str, bool]], unit: bool) -> None:
    folder = pipeline(checkpoint(), pooling, dense, unit)
    tokens, reference, ours = embed(folder)
    modes = [pooling] if isinstance(pooling, str) else pooling
    assert psnr(by_hand(folder, tokens, modes, dense, unit), reference) > 130
    assert psnr(reference, ours) > 130


def test_one_token_type_makes_no_difference(checkpoint: Checkpoint) -> None:
    _, reference, ours = embed(pipeline(checkpoint(type_vocab_size=1)))
    assert psnr(reference, ours) > 130


def test_the_pooler_is_left_out(checkpoint: Checkpoint) -> None:
    folder = pipeline(checkpoint())
    assert load(folder, None).absent == {"pooler"}
    assert load(folder, "feature-extraction").absent == frozenset()
    assert load(folder, "feature-extraction").pipeline is None


def swapped_modes(patch: pytest.MonkeyPatch) -> None:
    build = Pool.__init__
    patch.setattr(Pool, "__init__", lambda self, modes: build(self, modes[::-1]))


def unmasked_mean(patch: pytest.MonkeyPatch) -> None:
    mean = Pool.mean
    patch.setattr(Pool, "mean", staticmethod(lambda x, keep: mean(x, torch.ones_like(keep))))


def unmasked_max(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pool, "max", staticmethod(lambda x, keep: torch.amax(x, 3, True)))


def no_unit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Normalize, "forward", lambda self, x: x)


@pytest.mark.parametrize("mistake", [swapped_modes, unmasked_mean, unmasked_max, no_unit])
def test_a_mistake_falls_under_the_bar(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, mistake: Callable[[pytest.MonkeyPatch], None]
) -> None:
    folder = pipeline(checkpoint(), ["mean", "max"], normalize=True)
    mistake(monkeypatch)
    _, reference, ours = embed(folder)
    assert psnr(reference, ours) < 100


# Old and new forms of the files

OLD = dict.fromkeys(OLD_MODES, False)


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({"word_embedding_dimension": C, **OLD, "pooling_mode_mean_tokens": True}, ("mean",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True, "pooling_mode_cls_token": True},
         ("cls", "max", "mean")),
        ({**OLD, "pooling_mode_mean_sqrt_len_tokens": True, "include_prompt": True}, ("mean_sqrt_len_tokens",)),
        ({**OLD, "pooling_mode_cls_token": True, "pooling_mode": "max"}, ("max",)),
        ({"embedding_dimension": C, "pooling_mode": "mean", "include_prompt": True}, ("mean",)),
        ({"embedding_dimension": C, "pooling_mode": ["mean", "cls"]}, ("mean", "cls")),
        ({"word_embedding_dimension": C}, ("mean",)),
    ],
)  # fmt: skip
def test_pooling_modes_by_old_and_new_names(tmp_path: Path, config: dict[str, Any], modes: tuple[str, ...]) -> None:
    assert read_pipeline(pipeline(tmp_path, config)).modes == modes


def test_modules_by_old_and_new_names(tmp_path: Path) -> None:
    pipeline(tmp_path, "cls", ((8, RELU, False),), True, "sentence_transformers.base.modules.anything")
    dump(tmp_path / "3_Normalize" / "config.json", {"module_input_name": "sentence_embedding"})
    read = read_pipeline(tmp_path)
    assert (read.modes, read.normalize, read.limit) == (("cls",), True, None)
    assert [(dense.folder, dense.activation, set(dense.tensors)) for dense in read.dense] == [
        ("2_Dense", RELU, {"weight"})
    ]


@pytest.mark.parametrize("name", ["sentence_bert_config.json", "sentence_roberta_config.json"])
def test_limit(tmp_path: Path, name: str) -> None:
    dump(tmp_path / name, {"max_seq_length": 256, "do_lower_case": False})
    assert read_pipeline(pipeline(tmp_path)).limit == 256


def test_settings_that_do_not_matter(tmp_path: Path) -> None:
    """As sentence-transformers 6 saves a plain model, with prompts that are only used on demand."""
    pipeline(tmp_path, {"embedding_dimension": C, "pooling_mode": "mean", "include_prompt": True}, normalize=True)
    dump(
        tmp_path / "sentence_bert_config.json",
        {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
            "processing_kwargs": {},
            "unpad_inputs": None,
        },
    )
    dump(
        tmp_path / "config_sentence_transformers.json",
        {
            "__version__": {"sentence_transformers": "6.0.0"},
            "model_type": "SentenceTransformer",
            "prompts": {"query": "query: ", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
    assert read_pipeline(tmp_path).modes == ("mean",)


# What is refused


def stages(*kinds: str) -> list[dict[str, Any]]:
    return [
        {
            "path": f"{i}_{kind.rpartition('.')[2]}" if i else "",
            "type": kind if "." in kind else f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]


def module(value: Any) -> Callable[[Path], None]:
    return lambda folder: dump(folder / "modules.json", value)


def setting(name: str, **values: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / name
        dump(path, (json.loads(path.read_text()) if path.is_file() else {}) | values)

    return write


def prompts(default: str | None, include: bool) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        values = {"prompts": {"query": "query: "}, "default_prompt_name": default}
        dump(folder / "config_sentence_transformers.json", values)
        setting("1_Pooling/config.json", include_prompt=include)(folder)

    return write


def tensors(**changes: Tensor | None) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "2_Dense" / "model.safetensors"
        old = {name: changes.get(name.rpartition(".")[2], t) for name, t in safetensors.torch.load_file(path).items()}
        safetensors.torch.save_file({name: t for name, t in old.items() if t is not None}, path)

    return write


POOLING_FILE, DENSE_FILE = "1_Pooling/config.json", "2_Dense/config.json"
GENERAL_FILE, TEXT_FILE = "config_sentence_transformers.json", "sentence_bert_config.json"
REFUSED: dict[str, tuple[Callable[[Path], object], type[Hft2aneError], str]] = {
    "unknown module": (
        module(stages("Transformer", "Pooling", "LayerNorm")),
        UnsupportedConfig,
        "asks for Transformer → Pooling → LayerNorm; reproduced are .* say its `task:`",
    ),
    "other order": (
        module(stages("Transformer", "Pooling", "Normalize", "Dense")),
        UnsupportedConfig,
        "Normalize → Dense",
    ),
    "normalised twice": (
        module(stages("Transformer", "Pooling", "Normalize", "Normalize")),
        UnsupportedConfig,
        "Normalize → Normalize",
    ),
    "no pooling": (module(stages("Transformer")), UnsupportedConfig, "asks for Transformer;"),
    "sparse": (module(stages("MLMTransformer", "SpladePooling")), UnsupportedConfig, "MLMTransformer → SpladePooling"),
    "code of its own": (
        module(stages("custom_st.Transformer", "Pooling")),
        UnsupportedConfig,
        "asks for custom_st.Transformer, which is not part of sentence-transformers",
    ),
    "Transformer elsewhere": (
        module([{"type": "sentence_transformers.models.Transformer", "path": "0_Transformer"}]),
        UnsupportedConfig,
        "puts sentence_transformers.models.Transformer into '0_Transformer'",
    ),
    "a path that leaves the folder": (
        module([*stages("Transformer"), {"type": "sentence_transformers.models.Pooling", "path": "../1_Pooling"}]),
        UnsupportedConfig,
        "'../1_Pooling'",
    ),
    "modules of a wrong kind": (module({"0": "Transformer"}), SourceError, "modules.json is no list of modules"),
    "modules that are no objects": (module(["Transformer"]), SourceError, "modules.json is no list of modules"),
    "weighted mean": (
        setting(POOLING_FILE, pooling_mode="weightedmean"),
        UnsupportedConfig,
        "1_Pooling/config.json: pooling weightedmean is not reproduced .only cls, max, mean, mean_sqrt_len_tokens",
    ),
    "last token, old": (
        lambda f: dump(f / POOLING_FILE, {**OLD, "pooling_mode_lasttoken": True}),
        UnsupportedConfig,
        "pooling lasttoken is not reproduced",
    ),
    "no mode": (lambda f: dump(f / POOLING_FILE, OLD), UnsupportedConfig, "names no pooling mode"),
    "a mode by version": (
        lambda f: dump(f / POOLING_FILE, {"pooling_mode_cls_token": True}),
        UnsupportedConfig,
        "says nothing of pooling_mode_mean_tokens",
    ),
    "an unknown key": (setting(POOLING_FILE, power=3), UnsupportedConfig, "1_Pooling/config.json: power = 3"),
    "pooling of a wrong kind": (
        lambda f: dump(f / POOLING_FILE, []),
        SourceError,
        "1_Pooling/config.json is no JSON object",
    ),
    "no pooling config": (lambda f: (f / POOLING_FILE).unlink(), SourceError, "1_Pooling/config.json is not readable"),
    "lower case": (setting(TEXT_FILE, do_lower_case=True), UnsupportedConfig, "do_lower_case = True is not reproduced"),
    "another task": (setting(TEXT_FILE, transformer_task="fill-mask"), UnsupportedConfig, "'fill-mask'"),
    "another output": (
        setting(TEXT_FILE, modality_config={"text": {"method": "forward", "method_output_name": "pooler_output"}}),
        UnsupportedConfig,
        "pooler_output",
    ),
    "another config": (setting(TEXT_FILE, config_args={"hidden_act": "relu"}), UnsupportedConfig, "config_args"),
    "a prompt before every text": (
        prompts("query", include=True),
        UnsupportedConfig,
        "default_prompt_name puts 'query: ' before every text",
    ),
    "prompts out of the pooling": (prompts(None, include=False), UnsupportedConfig, "include_prompt = False"),
    "shortened": (setting(GENERAL_FILE, truncate_dim=8), UnsupportedConfig, "truncate_dim = 8"),
    "another kind of model": (setting(GENERAL_FILE, model_type="SparseEncoder"), UnsupportedConfig, "'SparseEncoder'"),
    "an unknown activation": (
        setting(DENSE_FILE, activation_function="torch.nn.modules.activation.Mish"),
        UnsupportedConfig,
        "2_Dense/config.json: activation_function = 'torch.nn.modules.activation.Mish'",
    ),
    "tokens through Dense": (
        setting(DENSE_FILE, module_input_name="token_embeddings"),
        UnsupportedConfig,
        "token_embeddings",
    ),
    "a residual Dense": (setting(DENSE_FILE, use_residual=True), UnsupportedConfig, "use_residual = True"),
    "normalised tokens": (
        setting("3_Normalize/config.json", module_input_name="token_embeddings"),
        UnsupportedConfig,
        "3_Normalize/config.json: module_input_name = 'token_embeddings'",
    ),
    "Dense in pickle": (
        lambda f: (f / "2_Dense/model.safetensors").rename(f / "2_Dense/pytorch_model.bin"),
        MissingWeights,
        "2_Dense has no model.safetensors",
    ),
    "no bias": (
        tensors(bias=None),
        MissingWeights,
        r"\{'weight': \(16, 24\)\}, its config.json asks for .*'bias': \(16,\)",
    ),
    "a bias too many": (setting(DENSE_FILE, bias=False), MissingWeights, "its config.json asks for"),
    "a weight of another shape": (tensors(weight=torch.ones(16, 23)), MissingWeights, r"\(16, 23\)"),
    "a Dense that does not fit": (
        lambda f: (tensors(weight=torch.ones(16, 30))(f), setting(DENSE_FILE, in_features=30)(f)),
        MissingWeights,
        "2_Dense: its weight takes 30 values, the vector before it has 24",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_reproduced_is_refused(
    checkpoint: Checkpoint, change: Callable[[Path], object], error: type[Hft2aneError], message: str
) -> None:
    folder = pipeline(checkpoint(), dense=[(16, TANH, True)], normalize=True)
    load(folder, None)
    change(folder)
    with pytest.raises(error, match=message) as caught:
        load(folder, None)
    assert "\n" not in str(caught.value)


# Numbers at the edges


def test_rows_of_padding_are_finite() -> None:
    x, mask = torch.randn(2, C, 1, 6), torch.tensor([[0] * 6, [1] * 6])
    pooled = Pool(POOLING)(x, mask)
    assert torch.isfinite(pooled).all()
    assert torch.isfinite(Normalize()(pooled)).all()
    zeros = Pipeline(("mean", "mean_sqrt_len_tokens"), (), True, None).reference(x[:, :, 0].mT, mask)[0]
    assert torch.equal(zeros, torch.zeros(2 * C))
    assert torch.equal(pooled[0, 2 * C :, 0, 0], zeros)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 300.0, 6e4])
def test_normalize_has_no_middle_value_that_leaves_fp16(scale: float) -> None:
    """300 squared is beyond fp16's 65504; 384 entries of 60000 would be too, even without the square."""

    class Half(TorchFunctionMode):
        """The norm as an engine computes it that keeps every step in fp16."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.linalg.vector_norm:
                return (args[0] * args[0]).sum(kwargs["dim"], keepdim=kwargs["keepdim"]).sqrt()
            return function(*args, **(kwargs or {}))

    x = torch.linspace(-1, 1, 384, dtype=torch.float64).reshape(1, -1, 1, 1) * scale
    expected = (x / x.norm()).numpy()
    assert psnr(expected, Normalize()(x).numpy()) > 250
    if scale >= 1:
        with Half():
            got = Normalize()(x.half())
        assert psnr(expected, got.double().numpy()) > 60


def test_normalize_leaves_zero_as_it_is() -> None:
    assert torch.equal(Normalize()(torch.zeros(1, C, 1, 1)), torch.zeros(1, C, 1, 1))


# A real model


@pytest.mark.weights
def test_the_most_used_of_all() -> None:
    """Similarities that the Hub's own inference shows for this model, from sentence-transformers itself."""
    folder = obtain(MODELS[0])
    original = load(folder, None)
    assert original.pipeline == Pipeline(("mean",), (), True, 256)
    texts = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    inputs = Tokenizer(folder, original.config.vocab_size)([(text,) for text in texts], 16)
    module: Any = rewrite(original)
    with torch.no_grad():
        ours = module(*(inputs[name] for name in module.inputs))
    keep = inputs["attention_mask"].bool()
    answers = original.answer(inputs)
    assert psnr(answers["token_embeddings"][keep].numpy(), ours[0][keep].numpy()) > 115
    assert psnr(answers["sentence_embedding"].numpy(), ours[1].numpy()) > 115
    assert (ours[1] @ ours[1][0])[1:].tolist() == pytest.approx([0.69457, 0.94292, 0.25688], abs=1e-4)
