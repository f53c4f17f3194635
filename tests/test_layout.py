"""Which files of a repo are taken, which shape the release, and which repos are refused."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hft2ane import layout
from hft2ane.errors import CorruptFile, SourceError, UnsafeFormat, UnsupportedModel
from hft2ane.records.source import RemoteFile

BERT = ["config.json", "model.safetensors"]


def files(*paths: str) -> list[RemoteFile]:
    return [RemoteFile(path, 1, "0" * 40, False) for path in paths]


def chosen(*paths: str) -> list[str]:
    return [file.path for file in layout.select(files(*paths))]


def test_a_sentence_transformers_repo() -> None:
    """The listing of sentence-transformers/all-MiniLM-L6-v2, with a Dense module and a notice added."""
    needed = [
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "LICENSE",
        "NOTICE.txt",
        "README.md",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "sentence_roberta_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    others = [
        ".gitattributes",
        "2_Dense/pytorch_model.bin",
        "chat_template.jinja",
        "data_config.json",
        "onnx/config.json",
        "onnx/model.onnx",
        "openvino/openvino_model.bin",
        "pytorch_model.bin",
        "rust_model.ot",
        "tf_model.h5",
        "train_script.py",
        "training_args.bin",
    ]
    assert chosen(*others, *reversed(needed)) == needed


@pytest.mark.parametrize(
    "name", ["spiece.model", "spm.model", "sentencepiece.bpe.model", "source.spm", "merges.txt", "vocab.json"]
)
def test_tokenizer_files(name: str) -> None:
    assert name in chosen(*BERT, name)


@pytest.mark.parametrize(
    "name", ["arbitrary.model", "sub/vocab.txt", "sub/LICENSE", "model.fp16.safetensors", "sub/1_Pooling/config.json"]
)
def test_other_files_stay(name: str) -> None:
    assert chosen(*BERT, name) == BERT


SHARDS = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
INDEX = "model.safetensors.index.json"


def test_shards() -> None:
    assert chosen("config.json", INDEX, *SHARDS) == ["config.json", *SHARDS, INDEX]


def test_one_file_is_preferred_to_shards() -> None:
    assert chosen(*BERT, INDEX, *SHARDS) == BERT


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ([INDEX, *SHARDS[:2]], "2 of 3 shards"),
        ([INDEX], "no shards"),
        (SHARDS, f"no {INDEX}"),
        ([INDEX, *SHARDS, "model-00001-of-00002.safetensors"], "different sets"),
        ([INDEX, *SHARDS[:2], "model-00007-of-00003.safetensors"], "3 of 3 shards"),
        ([INDEX, "model-00000-of-00001.safetensors"], "1 of 1 shards"),
        ([INDEX, "model-00001-of-99999.safetensors"], "1 of 99999 shards"),
    ],
)
def test_incomplete_shards(paths: list[str], words: str) -> None:
    with pytest.raises(CorruptFile, match=words):
        chosen("config.json", *paths)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pth", "m.ckpt", "tf_model.h5", "flax_model.msgpack", "MODEL.BIN"]
)
def test_pickle_only_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsafeFormat) as caught:
        chosen("config.json", name, "vocab.txt")
    for words in (name, "pickle can run code", "safetensors"):
        assert words in str(caught.value)


def test_many_pickles_are_counted() -> None:
    with pytest.raises(UnsafeFormat, match=r"in a\.bin, b\.bin, c\.bin and 2 more"):
        chosen("config.json", *(f"{letter}.bin" for letter in "abcde"))


def test_a_module_with_pickle_only_is_refused() -> None:
    with pytest.raises(UnsafeFormat, match=r"only in 2_Dense/pytorch_model\.bin"):
        chosen(*BERT, "2_Dense/config.json", "2_Dense/pytorch_model.bin")


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["model.safetensors"], r"no config\.json"),
        ([], r"no config\.json"),
        (["sub/config.json", "model.safetensors"], r"no config\.json"),
        (["config.json", "README.md"], "no weights"),
        (["config.json", "onnx/model.onnx", "onnx/data.bin"], "no weights"),
        (["config.json", "adapter_model.safetensors"], "no weights"),
    ],
)
def test_not_a_model(paths: list[str], words: str) -> None:
    with pytest.raises(SourceError, match=words):
        chosen(*paths)


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../x", "a/../b", "a/./b", "a//b", "", "a\\b", "a\0b", "C:/x", "c:x", "a/", "..", "a\nb", "a\x7fb"],
)
def test_hostile_paths(path: str) -> None:
    with pytest.raises(CorruptFile, match="could leave the folder"):
        chosen(*BERT, path)


@pytest.mark.parametrize(
    "paths",
    [["Config.json"], ["config.json"], ["LICENSE", "license"], ["1_Pooling/config.json", "1_pooling/config.json"]],
)
def test_names_that_are_one_file_on_a_mac(paths: list[str]) -> None:
    with pytest.raises(CorruptFile, match="one file on most disks"):
        chosen(*BERT, *paths)


def test_case_does_not_matter_where_nothing_is_taken() -> None:
    assert chosen(*BERT, "docs/a.md", "docs/A.md") == BERT


def test_shaping_and_legal_part_the_selected_files() -> None:
    selected = layout.select(
        files(*BERT, "README.md", "LICENSE", "LICENSE-MIT.txt", "Licence.md", "NOTICE", "vocab.txt")
    )
    assert [file.path for file in layout.shaping(selected)] == ["config.json", "model.safetensors", "vocab.txt"]
    assert [file.path for file in layout.legal(selected)] == ["LICENSE", "LICENSE-MIT.txt", "Licence.md", "NOTICE"]


NAMES = st.lists(
    st.one_of(
        st.sampled_from([*BERT, INDEX, *SHARDS, "README.md", "1_Pooling/config.json", "2_Dense/pytorch_model.bin"]),
        st.text(max_size=12),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(NAMES, st.randoms())
def test_any_listing_is_taken_in_order_or_refused(names: list[str], random: Any) -> None:
    try:
        selected = chosen(*names)
    except SourceError:
        return
    assert selected == sorted(selected)
    assert set(selected) <= set(names)
    assert not [path for path in selected if path.endswith(layout.OTHER_WEIGHTS)]
    random.shuffle(names)
    assert chosen(*names) == selected


def test_config_that_needs_the_authors_code() -> None:
    with pytest.raises(UnsafeFormat, match="owner/name: .*auto_map.*never run"):
        layout.check_config({"model_type": "x", "auto_map": {"AutoModel": "modeling_x.X"}}, "owner/name")


@pytest.mark.parametrize("config", [{}, {"model_type": None}, {"model_type": ""}, {"model_type": 3}])
def test_config_without_model_type(config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match="owner/name: .*model_type"):
        layout.check_config(config, "owner/name")


def test_good_config() -> None:
    layout.check_config({"model_type": "bert", "auto_map": {}}, "owner/name")
