"""The Swift of the cards: swift/ is a package with a target for each kind of card, and in it that card's code, letter
by letter; the macOS job compiles it (`make swift`). Here it is parsed, and compared with what cards say today.

To write it anew from the templates: python -m tests.test_swift"""

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tree_sitter
import tree_sitter_swift

from hft2ane import card, records
from hft2ane.card import release
from hft2ane.card.words import SWIFT_TRANSFORMERS
from hft2ane.records.package import Exported, Function, Generation, Tensor, named
from hft2ane.records.recipe import Task
from hft2ane.records.release import Report
from hft2ane.records.source import CardFields
from tests.test_card import INPUTS, bar, fence, job_folder, text_of

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "swift" / "Sources"
TEMPLATES = ROOT / "hft2ane" / "card" / "templates"


def encoder(task: Task, *, changes: Mapping[str, Any] | None = None, **options: Any) -> Callable[[Path], Path]:
    """A card of one package: its job's folder. `changes`: of export.json."""

    def make(folder: Path) -> Path:
        job_folder(folder, task, **options)
        exported = records.read(folder / "export.json", Exported)
        records.write(folder / "export.json", replace(exported, **(changes or {})))
        return folder

    return make


def reranker(folder: Path) -> Path:
    fields = CardFields(license="apache-2.0", pipeline_tag="text-ranking")
    encoder("text-classification", fields=fields, changes={"labels": ("LABEL_0",), "problem": "regression"})(folder)
    exported = records.read(folder / "export.json", Exported)
    (package,) = exported.packages
    functions = tuple(replace(f, outputs=(replace(f.outputs[0], shape=(1, 1)),)) for f in package.functions)
    records.write(folder / "export.json", replace(exported, packages=(replace(package, functions=functions),)))
    return folder


def writer(*parts: str, lengths: tuple[int, ...] = (64,), states: bool = False, own: bool = False) -> Any:
    """A card of what writes texts: an encoder and a decoder, or a decoder alone. `states`: of an encoder, as inputs;
    `own`: a vocabulary that is not the encoder's."""

    def make(folder: Path) -> Path:
        job_folder(folder, "feature-extraction", lengths, types=True)
        exported = records.read(folder / "export.json", Exported)
        (first,) = exported.packages
        packages = []
        for part in parts:
            file = first.file.replace(".float16", f"{part.title()}.float16")
            if part:
                shutil.copytree(folder / first.file, folder / file)
            functions = first.functions if part == "encoder" else tuple(map(decoding, first.functions))
            packages.append(replace(first, file=file, part=part, functions=functions))
        records.write(
            folder / "export.json",
            replace(
                exported,
                task="text2text-generation" if len(parts) > 1 else "text-generation",
                packages=tuple(packages),
                generation=Generation(2 if len(parts) > 1 else None, (3,), 0),
            ),
        )
        report = records.read(folder / "report.json", Report)
        bars = tuple(
            bar(named(what, package.part), backend, gate, package.functions, base)
            for what, backend, gate, base in (
                ("rewrite", "torch-float32", 90.0, 138.0),
                ("float16", "mil-declared", 50.0, 82.0),
            )
            for package in packages
        )
        records.write(folder / "report.json", replace(report, fidelity=bars))
        sizes = {"encoder": {"vocab_size": 9}, "decoder": {"vocab_size": 8}} if own else {}
        (folder / "source" / "config.json").write_text(json.dumps({"model_type": "bert", "pad_token_id": 0, **sizes}))
        return folder

    def decoding(function: Function) -> Function:
        row = (1, function.length)
        ids = tuple(Tensor(name, row, "int32", INPUTS[name]) for name in ("input_ids", "attention_mask"))
        memory = (
            Tensor("encoder_hidden_states", (*row, 24), "float16", "The encoder's."),
            Tensor("encoder_attention_mask", row, "int32", "1 for the encoder's tokens."),
        )
        inputs = (*ids, *(memory if states or len(parts) > 1 else ()))
        return replace(function, inputs=inputs, outputs=(Tensor("logits", (*row, 99), "float16", "Scores."),))

    return make


UNNAMED = {"labels": ("LABEL_0", "LABEL_1", "LABEL_2"), "problem": "regression"}
CARDS: Mapping[str, Callable[[Path], Path]] = {
    "Answer": encoder("question-answering"),
    "Choose": encoder("multiple-choice"),
    "Classify": encoder("text-classification"),
    "ClassifyManyLabels": encoder("text-classification", changes={"problem": "multi_label_classification"}),
    "ClassifyPairs": encoder(
        "text-classification", fields=CardFields(license="apache-2.0", pipeline_tag="text-ranking")
    ),
    "ClassifyUnnamed": encoder("text-classification", changes=UNNAMED),
    "Embed": encoder("sentence-embedding"),
    "EmbedCutShort": encoder("sentence-embedding", legal={"sentence_bert_config.json": '{"max_seq_length": 20}'}),
    "EmbedSeveralLengths": encoder("sentence-embedding", lengths=(32, 128)),
    "Features": encoder("feature-extraction"),
    "FillMask": encoder("fill-mask"),
    "FindReplaced": encoder("replaced-token-detection"),
    "NextSentence": encoder("next-sentence-prediction"),
    "Rank": reranker,
    "Tag": encoder("token-classification"),
    "TagUnnamed": encoder("token-classification", changes={"labels": ()}),
    "Write": writer(""),
    "WriteFromStates": writer("", states=True),
    "WriteFromText": writer("encoder", "decoder", lengths=(32, 64)),
    "WriteIds": writer("encoder", "decoder", own=True),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The Swift of each card, by target; without plots."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("plot_psnr", "plot_headroom"):
            patch.setattr(release, name, lambda *_: b"")
        yield {name: swift(make(tmp_path_factory.mktemp(name))) for name, make in CARDS.items()}


def swift(folder: Path) -> str:
    return fence(text_of(card.write(folder)), "swift")


def test_the_package_is_what_cards_say(said: dict[str, str]) -> None:
    """Else: python -m tests.test_swift"""
    assert {path.parent.name: path.read_text() for path in SOURCES.glob("*/main.swift")} == said


def test_every_target_is_built_with_the_version_that_cards_name(said: dict[str, str]) -> None:
    manifest = (ROOT / "swift" / "Package.swift").read_text()
    assert re.findall(r'^    "(\w+)",$', manifest, re.M) == sorted(said)
    assert f'exact: "{SWIFT_TRANSFORMERS}"' in manifest


def test_every_line_of_the_templates_is_compiled(said: dict[str, str]) -> None:
    """No branch of a template is without a target."""
    lines = {line for text in said.values() for line in text.splitlines()}
    for name in ("swift.j2", "swift-writer.j2"):
        for line in (TEMPLATES / name).read_text().splitlines():
            literal = re.split(r"\{\{.*?\}\}|\{%.*?%\}", line)
            if any(part.strip() for part in literal):
                pattern = re.compile(".*".join(map(re.escape, literal)))
                assert any(pattern.fullmatch(each) for each in lines), f"{name}: {line}"


def test_it_is_swift(said: dict[str, str]) -> None:
    for name, text in {**said, "Package": (ROOT / "swift" / "Package.swift").read_text()}.items():
        assert list(mistakes(text)) == [], name


def test_a_mistake_would_be_found(said: dict[str, str]) -> None:
    for before, after in (("throws ->", "throws -"), ("[1, length]", "[1, length"), ("let model", "let \\_model")):
        assert before in said["Embed"]
        assert list(mistakes(said["Embed"].replace(before, after, 1)))


def mistakes(text: str) -> Iterator[str]:
    """What is no Swift, with its line."""
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_swift.language()))
    asked = [parser.parse(text.encode()).root_node]
    while asked:
        node = asked.pop()
        if node.is_error or node.is_missing:
            yield f"{node.start_point.row + 1}: {text.splitlines()[node.start_point.row]}"
        asked += node.children


def test_the_code_is_pinned(said: dict[str, str]) -> None:
    for text in said.values():
        assert text.count("revision: revision") == text.count('let revision = "v1"\n') == 1


def main() -> None:
    """swift/ again, from the templates."""
    shutil.rmtree(SOURCES, ignore_errors=True)
    for name, make in CARDS.items():
        (SOURCES / name).mkdir(parents=True)
        with tempfile.TemporaryDirectory() as folder:
            (SOURCES / name / "main.swift").write_text(swift(make(Path(folder))))


if __name__ == "__main__":
    main()
