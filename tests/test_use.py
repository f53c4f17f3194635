"""docs/use.md for app developers: each of its examples runs as it stands there, on tiny models under the same names."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, snapshot_download

import hft2ane
from hft2ane.cli import main
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from tests.conftest import Checkpoint
from tests.exported import release
from tests.test_runtime import LABELS, sentence

pytestmark = pytest.mark.slow  # its models take a while to make

PAGE = (Path(__file__).parent.parent / "docs" / "use.md").read_text()
EXAMPLES = re.findall(r"^```(python|diff)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
# The models that the page speaks of, by what they are.
NAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "all-MiniLM-L6-v2": ("BertModel", {}),
    "ms-marco-MiniLM-L6-v2": ("BertForSequenceClassification", {"num_labels": 1}),
    "distilbert-base-uncased-finetuned-sst-2-english": (
        "BertForSequenceClassification",
        {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}},
    ),
    "bert-base-NER": ("BertForTokenClassification", {"id2label": dict(enumerate(LABELS))}),
    "bert-base-uncased": ("BertForMaskedLM", {}),
    "roberta-base-squad2": ("BertForQuestionAnswering", {}),
}


@pytest.fixture(scope="module")
def published(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A Hub with these models, and the environment as an app has it."""
    folder = tmp_path_factory.mktemp("use")
    with LocalHub(folder / "hub") as local, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        patch.setenv("HF_ENDPOINT", local.url)
        for name, (kind, changes) in NAMED.items():
            source = checkpoint(kind, **changes)
            made = release(sentence(source) if kind == "BertModel" else source, folder / name, lengths=(32,))
            commit = local.add(f"org/{name}-ane", made)
            Hub(local.url, local.token).tag(f"org/{name}-ane", "v1", commit)
        yield local


def test_there_are_examples() -> None:
    assert [kind for kind, _ in EXAMPLES].count("diff") >= 5
    assert len(EXAMPLES) >= 8


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(published: LocalHub, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    kind, text = EXAMPLES[number]
    if kind == "diff":
        assert "-from " in text
        text = "".join(f"{line[1:]}\n" for line in text.splitlines() if not line.startswith("-"))
    exec(compile(text, f"docs/use.md, example {number + 1}", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_every_method_is_on_the_page() -> None:
    """And every one that the page names is there."""
    table = PAGE.split("## What can be asked")[1].split("\n\n")[1]
    named = set(re.findall(r"`(\w+)\(", table)) - {"model"}
    assert named <= set(dir(hft2ane.Model))
    public = {name for name in dir(hft2ane.Model) if not name.startswith("_")}
    assert all(f"`{name}" in PAGE or f"model.{name}" in PAGE for name in public)


ANSWERS = [
    (["all-MiniLM-L6-v2", "a b", "c"], "similarity to the first"),
    (["distilbert-base-uncased-finetuned-sst-2-english", "a b"], r"0\.\d{4}  (POSITIVE|NEGATIVE)"),
    (["distilbert-base-uncased-finetuned-sst-2-english", "--pair", "a b", "c"], r"a b / c\n.*\n *0\.\d{4}"),
    (["ms-marco-MiniLM-L6-v2", "a", "b c", "d"], r"0\.\d{4}  (b c|d)"),
    (["bert-base-NER", "a b c d e f g"], r"(PER|LOC).* \d+–\d+|nothing found"),
    (["bert-base-uncased", "a [MASK] b"], r"0\.\d{4}  \S+ +a ?\w? ?b"),
    (["roberta-base-squad2", "a", "b c d"], r"0\.\d{4}.*\d–\d"),
]


@pytest.mark.parametrize(("arguments", "expected"), ANSWERS)
def test_try_prints_the_answer(
    published: LocalHub, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *rest = arguments
    assert main(["try", f"org/{name}-ane@v1", *rest]) == 0
    assert re.search(expected, capsys.readouterr().out)


def test_try_takes_a_package_alone_and_several_masks(
    published: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(snapshot_download("org/bert-base-uncased-ane", endpoint=published.url, local_dir=tmp_path / "all"))
    (package,) = folder.glob("*.mlpackage")
    alone = str(shutil.copytree(package, tmp_path / "alone.mlpackage"))
    assert main(["try", alone, "a [MASK]"]) != 0
    assert "--tokenizer at the shell" in capsys.readouterr().err
    assert main(["try", alone, "a [MASK] [MASK]", "--tokenizer", str(folder / "tokenizer.json")]) == 0
    assert re.findall(r"^mask \d$", capsys.readouterr().out, re.M) == ["mask 1", "mask 2"]
    assert main(["try", str(folder), f"[MASK] {'a' * 300}"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines()[2:])) < 300


def test_try_says_what_was_cut_and_what_is_wrong(published: LocalHub, capsys: pytest.CaptureFixture[str]) -> None:
    repo = "org/distilbert-base-uncased-finetuned-sst-2-english-ane"
    assert main(["try", repo, "a " * 40, "--json"]) == 0
    said = capsys.readouterr()
    assert '"label": "' in said.out
    assert "hft2ane: the text is longer than the 32 tokens" in said.err
    for arguments, line in {
        ("org/roberta-base-squad2-ane", "a"): "a question and its context are two texts, given are 1",
        (repo, "a", "--pair"): "--pair is for two texts and a model that classifies",
        ("org/none-ane", "a"): "the Hub has no such repo",
        (repo, "a", "--variant", "int8"): "has no variant 'int8'; there are float16",
    }.items():
        assert main(["try", *arguments]) != 0
        assert line in capsys.readouterr().err
