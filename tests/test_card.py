"""The card and the release: what stands in them comes from the records, and nothing hostile gets through."""

import ast
import functools
import hashlib
import html
import io
import json
import re
import runpy
import shutil
import sys
import types
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import matplotlib.image
import numpy as np
import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from hft2ane import card, keys, layout, licenses, measurements, pin, records
from hft2ane.card import markdown, plots, tables
from hft2ane.card import release as step
from hft2ane.errors import BadInput, GateFailed, LicenseError
from hft2ane.records.fidelity import Fidelity, Measure
from hft2ane.records.job import Job
from hft2ane.records.lint import Finding, Lint, LintSettings, Placed
from hft2ane.records.package import (
    Audit,
    Conditioned,
    Exported,
    Function,
    Made,
    Mixture,
    Package,
    Raised,
    Range,
    Tensor,
)
from hft2ane.records.recipe import VARIANTS, Recipe, Task, Variant
from hft2ane.records.release import Conversion, Report
from hft2ane.records.source import CardFields, RemoteFile, Source
from hft2ane.release import read_release
from tests.synthetic import MAC, synthetic

COMMIT = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
INPUTS = {
    "input_ids": "Token ids from the model's tokenizer, padded to the fixed length.",
    "attention_mask": "1 for tokens, 0 for padding.",
    "token_type_ids": "0 for the first text, 1 for the second; all 0 for a single text.",
}
KINDS = {
    "sentences, padded": (17, "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunte…"),
    "one token": (1, "all but the first token masked"),
    "full length, random ids": (2, "128 random ids"),
    "padded, random ids": (4, "77 random ids"),
}
# By task: the original's class, its outputs as name -> shape after the batch (L: the length), labels and their kind.
MODELS: Mapping[Task, Any] = {
    "sentence-embedding": ("BertModel", {"token_embeddings": ("L", 384), "sentence_embedding": (384,)}, (), None),
    "feature-extraction": ("BertModel", {"last_hidden_state": ("L", 128), "pooler_output": (128,)}, (), None),
    "fill-mask": ("BertForMaskedLM", {"logits": ("L", 30522)}, (), None),
    "text-classification": (
        "BertForSequenceClassification",
        {"logits": (3,)},
        ("negative", "neutral", "positive"),
        "single_label_classification",
    ),
    "token-classification": (
        "BertForTokenClassification",
        {"logits": ("L", 9)},
        ("O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"),
        None,
    ),
    "question-answering": ("BertForQuestionAnswering", {"start_logits": ("L",), "end_logits": ("L",)}, (), None),
    "next-sentence-prediction": ("BertForNextSentencePrediction", {"logits": (2,)}, (), None),
    "multiple-choice": ("BertForMultipleChoice", {"logits": (4,)}, (), None),
    "replaced-token-detection": ("ElectraForPreTraining", {"logits": ("L",)}, (), None),
}


AUDIT = Audit(
    rows=25,
    tokens=512,
    layers=tuple(
        Range(path, kind, largest, round(float(np.log2(65504 / largest)), 2), 0.0125)
        for path, kind, largest in (
            ("encoder.words", "embedding", 1.049),
            ("", "sum", 2.856),
            ("encoder.norm", "squares", 8.101),
            *(
                (f"encoder.blocks.{i}.{name}", kind, (i + 1) * largest)
                for i in range(3)
                for name, kind, largest in (
                    ("attend.q", "linear", 16.39),
                    ("attend", "scores", 95.76),
                    ("up", "linear", 24.53),
                    ("norm2", "sum", 55.7),
                    ("norm2", "squares", 3077.0),
                )
            ),
            ("pool", "weighted sum", 3.2),
        )
    ),
    conditioned=(
        Conditioned("encoder.blocks.1.norm2", 3, ("encoder.blocks.1.down",), "squares", 393800.0, -2.59, 1.2e-7),
    ),
    failures=(),
)


def measures(function: Function, base: float) -> list[Measure]:
    """Figures that differ from one another, as a real report's do."""
    found = []
    for n, output in enumerate(function.outputs):
        for k, (kind, (rows, worst)) in enumerate(KINDS.items()):
            least = round(base - 7.13 * n - 1.37 * k - function.length / 100, 2)
            agreed = 1.0 if "logits" in output.name else None
            found.append(
                Measure(
                    output.name,
                    function.length,
                    kind,
                    rows,
                    round(least + 6.2, 2),
                    least,
                    round(least + 4.41, 2),
                    0.9999998,
                    agreed,
                    worst,
                )
            )
    return found


def bar(what: str, backend: str, gate: float, functions: tuple[Function, ...], base: float) -> Fidelity:
    found = tuple(m for function in functions for m in measures(function, base))
    least, middle = min(m.psnr_min for m in found), float(np.median([m.psnr_median for m in found]))
    together = min(m.psnr for m in found)
    return Fidelity(what, backend, gate, together, least, round(middle, 2), found[0].top1, found)


def job_folder(
    folder: Path,
    task: Task = "sentence-embedding",
    lengths: tuple[int, ...] = (128,),
    *,
    id: str = "sentence-transformers/all-MiniLM-L6-v2",
    types: bool | None = None,
    legal: Mapping[str, str] | None = None,
    fields: CardFields | None = None,
) -> Path:
    """A job's folder as the steps before the card leave it, with a real tokenizer of a few words."""
    original, shapes, labels, problem = MODELS[task]
    name = id.rpartition("/")[2]
    source = folder / "source"
    small = {
        "config.json": json.dumps({"model_type": "bert", "pad_token_id": 0}),
        "tokenizer.json": json.dumps(tokenizer()),
        "tokenizer_config.json": json.dumps({"mask_token": "[MASK]", "tokenizer_class": "BertTokenizer"}),
        "model.safetensors": "weights",
        "README.md": "# the original's card",
        **({"modules.json": "[]", "1_Pooling/config.json": "{}"} if task == "sentence-embedding" else {}),
        **(legal or {}),
    }
    for path, text in small.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(text)
    files = tuple(RemoteFile(path, len(text), git(text), False) for path, text in sorted(small.items()))
    with_types = task != "sentence-embedding" if types is None else types
    several = len(lengths) > 1
    functions = []
    for length in lengths:
        row = (1, 4, length) if task == "multiple-choice" else (1, length)
        names = list(INPUTS)[: 3 if with_types else 2]
        outputs = {
            output: tuple(length if size == "L" else size for size in (1, *shape)) for output, shape in shapes.items()
        }
        functions.append(
            Function(
                f"tokens_{length}" if several else "main",
                length,
                tuple(Tensor(key, row, "int32", INPUTS[key]) for key in names),
                tuple(Tensor(key, shape, "float16", f"What {key} means.") for key, shape in outputs.items()),
            )
        )
    package = folder / f"{name}.float16.mlpackage"
    for path, data in {"Manifest.json": b"{}", "Data/com.apple.CoreML/weights/weight.bin": b"\0" * 64}.items():
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).write_bytes(data)
    recipe = Recipe(task=task, lengths=lengths)
    records.write(
        folder / "job.json",
        Job("create", "new", id, f"my-org/{name}-ane", COMMIT, files, recipe, license="apache-2.0"),
    )
    card_fields = fields or CardFields(license="apache-2.0", language=("en",), pipeline_tag="sentence-similarity")
    records.write(folder / "source.json", Source(id, COMMIT, files, card_fields))
    records.write(
        folder / "export.json",
        Exported(
            family="bert",
            task=task,
            original=original,
            convert_key="c" * 64,
            packages=(
                Package(
                    variant="float16",
                    file=package.name,
                    digest="d" * 64,
                    size=45_760_113,
                    minimum_os="iOS 18 / macOS 15" if several else "iOS 16 / macOS 13",
                    functions=tuple(functions),
                    default_function=functions[-1].name,
                ),
            ),
            labels=labels,
            problem=problem,
            audit=AUDIT,
            toolchain={"coremltools": "9.0", "numpy": "2.4.6", "torch": "2.13.0", "transformers": "5.23.0"},
            seconds=3.2,
        ),
    )
    records.write(
        folder / "report.json",
        Report(
            protocol="hft2ane-psnr-2",
            verify_key="e" * 64,
            fidelity=(
                bar("rewrite", "torch-float32", 90.0, tuple(functions), 138.0),
                bar("float16", "mil-declared", 50.0, tuple(functions), 82.0),
            ),
            failures=(),
            not_measured=(
                "Core ML on a Mac: its own results, share of operations on the Neural Engine, latency, memory",
            ),
            seconds=21.0,
        ),
    )
    return folder


def git(text: str) -> str:
    return hashlib.sha1(f"blob {len(text)}\0{text}".encode()).hexdigest()


def tokenizer() -> dict[str, Any]:
    """WordPiece over the words of the card's own examples, joined as BERT joins pairs. What is code around them changes
    no id: random weights answer otherwise to other ids."""
    code = jinja2.PackageLoader("hft2ane.card").get_source(jinja2.Environment(), "python.j2")[0]
    text = " ".join(re.findall(r'"(\w+,? [^"]*)"', code)).lower()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = special + sorted({*re.findall(r"[a-z]+|\d+|[^\sa-z\d]", text)})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, "special": True, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            for i, token in enumerate(special)
        ],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: i for i, word in enumerate(words)},
        },
    }


DRAWN, DRAWN_HEADROOM = functools.cache(plots.plot_psnr), functools.cache(plots.plot_headroom)


@pytest.fixture(autouse=True)
def _plots_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same plot is not drawn again for every test."""
    monkeypatch.setattr(step, "plot_psnr", DRAWN)
    monkeypatch.setattr(step, "plot_headroom", DRAWN_HEADROOM)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return job_folder(tmp_path)


def text_of(release: Path) -> str:
    return (release / "README.md").read_text(encoding="utf-8")


def front_matter(text: str) -> dict[str, Any]:
    """As the Hub's own client reads it."""
    data: Any = ModelCard(text).data
    return dict(data.to_dict())


def section(text: str, title: str) -> str:
    """From a heading to the next one of its level or above."""
    level = len(title) - len(title.lstrip("#"))
    found = re.search(rf"^{re.escape(title)}$(.*?)(?=^#{{1,{level}}} |\Z)", text, re.M | re.S)
    assert found, f"no {title}"
    return found[1]


def beginning(text: str) -> str:
    """Up to the quick start."""
    return text.split("\n## Quick start\n")[0]


def fence(text: str, language: str) -> str:
    """The last code in this language: of Python that with coremltools alone."""
    return str(re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)[-1])


def rewritten(path: Path, record: type[Any], **changes: Any) -> None:
    records.write(path, replace(records.read(path, record), **changes))


def shown(text: str) -> str:
    """The card as HTML, with raw HTML on, as the Hub has it."""
    return str(MarkdownIt("commonmark", {"html": True}).enable("table").render(text.split("\n---\n", 1)[1]))


# ---- the release


def test_release_holds_what_is_published_and_nothing_else(folder: Path) -> None:
    (folder / "source" / "notes.txt").write_text("not one of the pinned files")
    release = card.write(folder)
    files = {p.relative_to(release).as_posix() for p in release.rglob("*") if p.is_file()}
    package = "all-MiniLM-L6-v2.float16.mlpackage"
    assert files == {
        *("README.md", "conversion.json", "SHA256SUMS", "reports/report.json", "reports/ranges.json"),
        *("assets/psnr.png", "assets/fp16-headroom.png"),
        *("config.json", "tokenizer.json", "tokenizer_config.json", "modules.json", "1_Pooling/config.json"),
        *(f"{package}/Manifest.json", f"{package}/Data/com.apple.CoreML/weights/weight.bin"),
    }
    assert (release / "tokenizer.json").read_bytes() == (folder / "source" / "tokenizer.json").read_bytes()
    assert (release / "reports" / "report.json").read_bytes() == (folder / "report.json").read_bytes()


def test_a_lossy_variant_says_so(folder: Path) -> None:
    one = records.read(folder / "export.json", Exported).packages[0]
    two = replace(one, variant="palettized-4", file=one.file.replace("float16", "palettized-4"), weights="a palette")
    shutil.copytree(folder / one.file, folder / two.file)
    rewritten(folder / "export.json", Exported, packages=(one, two))
    fidelity = records.read(folder / "report.json", Report).fidelity
    rewritten(folder / "report.json", Report, fidelity=(*fidelity, replace(fidelity[1], what=two.variant, gate=25.0)))
    text = (card.write(folder) / "README.md").read_text()
    table = beginning(text)
    assert re.search(
        r"^\| palettized-4, lossy \| 45.8 \| .* \| `all-MiniLM-L6-v2.palettized-4.mlpackage` \|$", table, re.M
    )
    assert table.split("|")[1:4] == [" Variant ", " Size, MB ", " PSNR¹ worst row, dB "]
    assert "| Weights, palettized-4 | a palette |" in section(text, "## Provenance")
    assert "- 4-bit\n" in text.split("---")[1]


def with_second(folder: Path, variant: Variant, psnr: float, mixture: Mixture | None = None) -> str:
    """The card when there is also a package of this variant, half as large as the first."""
    one = records.read(folder / "export.json", Exported).packages[0]
    file = one.file.replace("float16", variant)
    two = replace(one, variant=variant, file=file, size=one.size // 2, weights="a palette", mixture=mixture)
    shutil.copytree(folder / one.file, folder / two.file)
    rewritten(folder / "export.json", Exported, packages=(one, two))
    first, bar, *_ = records.read(folder / "report.json", Report).fidelity
    rewritten(
        folder / "report.json", Report, fidelity=(first, bar, replace(bar, what=variant, gate=25.0, psnr_min=psnr))
    )
    return (card.write(folder) / "README.md").read_text()


def test_which_package_to_take(folder: Path) -> None:
    text = beginning(with_second(folder, "palettized-4", 26.18))
    assert "Where size does not matter, take **float16**" in text
    assert "- **palettized-4** has 50% of its size, and 26.1 dB in the worst row" in text
    assert "That is lossy: try it" in text


def test_how_to_take_another_package(folder: Path) -> None:
    text = with_second(folder, "int8", 43.0)
    assert 'The code takes float16: for another variant, say `variant="int8"` to `load`' in text
    assert "add `--exclude '*.int8.mlpackage/*'`" in section(text, "### Files alone")
    (patterns,) = re.findall(r"allow_patterns=\[(.*?)\]", text, re.S)
    assert ast.literal_eval(f"[{patterns}]") == ["*.json", "all-MiniLM-L6-v2.float16.mlpackage/*"]


def test_a_package_that_another_outdoes_is_called_so(folder: Path) -> None:
    with_second(folder, "palettized-4", 26.18)
    one, two = records.read(folder / "export.json", Exported).packages
    three = replace(two, variant="int8", file=one.file.replace("float16", "int8"), size=two.size - 1)
    shutil.copytree(folder / one.file, folder / three.file)
    rewritten(folder / "export.json", Exported, packages=(one, two, three))
    *bars, lossy = records.read(folder / "report.json", Report).fidelity
    rewritten(folder / "report.json", Report, fidelity=(*bars, lossy, replace(lossy, what="int8", psnr_min=43.0)))
    text = beginning(text_of(card.write(folder)))
    assert re.search(r"^- \*\*palettized-4\*\* .* 26.1 dB .*\. \*\*int8\*\* is smaller and nearer\.$", text, re.M)
    assert re.search(r"^- \*\*int8\*\* has 50% .* 43.0 dB in the worst row instead of [\d.]+\.$", text, re.M)


def test_a_release_that_is_in_a_folder_only_says_how_to_load_it(folder: Path) -> None:
    assert "on no Hub yet" not in text_of(card.write(folder))
    rewritten(folder / "job.json", Job, repo="your-organization/mine-ane")
    assert "`load` and `hft2ane try` take the folder's path in the place of the repo" in text_of(card.write(folder))
    assert "hf download" not in text_of(card.write(folder))


def test_a_variant_that_is_not_lossy_is_not_called_so(folder: Path) -> None:
    assert "lossy" not in beginning(with_second(folder, "int8", 43.0))


@pytest.mark.parametrize("lengths", [(64,), (64, 128)], ids=str)
def test_which_lengths_to_take(lengths: tuple[int, ...], tmp_path: Path) -> None:
    """What the other kind of package needs, and the command that makes it."""
    text = beginning(text_of(card.write(job_folder(tmp_path, lengths=lengths))))
    assert "size does not matter" not in text
    if len(lengths) == 1:
        assert "on iOS 16, macOS 13 or later" in text
        assert "on iOS 18, macOS 15 or later" in text
        assert "--lengths 16,32,64 --out several" in text
    else:
        assert "Several lengths in one package need iOS 18, macOS 15;" in text
        assert "a package of one length runs from iOS 16, macOS 13" in text
        assert "--lengths 128 --out one" in text


def test_a_mixed_variant_says_which_layers_have_more_bits(folder: Path) -> None:
    raised = (Raised("blocks.0.up", "palettized-6", 0.1234), Raised("blocks.5.down", "float16", 0.05))
    text = with_second(folder, "mixed-4", 26.18, Mixture("palettized-4", 26.0, 21.4, 26.13, raised))
    assert re.search(r"\| mixed-4, lossy \| .*mixed-4.mlpackage` \|", text)
    told = section(text, "### Bits of mixed-4")
    assert "All of them in that form have 21.4 dB in the worst row; what is aimed at is 26.0 dB." in told
    assert "So 2 have more bits" in told
    assert "26.1 dB" in told
    assert "| `blocks.0.up` | palettized-6 | 12.34% |" in told
    assert "| `blocks.5.down` | float16 | 5% |" in told


def test_a_mixed_variant_with_nothing_raised(folder: Path) -> None:
    text = with_second(folder, "mixed-6", 33.0, Mixture("palettized-6", 31.0, 33.11, 33.11, ()))
    assert "what is aimed at is 31.0 dB, so none has more." in section(text, "### Bits of mixed-6")


def test_the_gate_of_publish_takes_the_release(folder: Path) -> None:
    release = card.write(folder)
    conversion = records.read(release / "conversion.json", Conversion)
    assert set(read_release(release, conversion).here) > {"README.md", "SHA256SUMS"}


def test_packages_are_linked_not_copied(folder: Path) -> None:
    release = card.write(folder)
    weights = "all-MiniLM-L6-v2.float16.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    assert (release / weights).samefile(folder / weights)


def test_packages_are_copied_where_linking_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    release = card.write(folder)
    weights = "all-MiniLM-L6-v2.float16.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    assert not (release / weights).samefile(folder / weights)
    assert (release / weights).read_bytes() == (folder / weights).read_bytes()


def test_sums_are_true_sorted_and_complete(folder: Path) -> None:
    release = card.write(folder)
    pairs = [line.split("  ") for line in (release / "SHA256SUMS").read_text().splitlines()]
    names = [name for _, name in pairs]
    assert names == sorted(names)
    assert {*names, "SHA256SUMS"} == {p.relative_to(release).as_posix() for p in release.rglob("*") if p.is_file()}
    for digest, name in pairs:
        assert hashlib.sha256((release / name).read_bytes()).hexdigest() == digest


def test_conversion_record(folder: Path) -> None:
    conversion = records.read(card.write(folder) / "conversion.json", Conversion)
    report, source = records.read(folder / "report.json", Report), records.read(folder / "source.json", Source)
    legal = layout.legal(source.files)
    assert conversion.card_key == keys.card_key(source.card, legal, report.verify_key, keys.presentation_digest())
    assert (conversion.convert_key, conversion.verify_key) == ("c" * 64, "e" * 64)
    assert conversion.psnr == {bar.what: bar.psnr_min for bar in report.fidelity}
    assert (conversion.source, conversion.license) == (source, "apache-2.0")


def test_the_card_says_with_what_it_was_made(folder: Path) -> None:
    assert "Made on" not in text_of(card.write(folder))
    made = Made("0.1.0", "f" * 40, True, None, {}, "macOS 26.1", "arm64", "3.11.7")
    records.write(folder / "export.json", replace(records.read(folder / "export.json", Exported), made=made))
    text = section(text_of(card.write(folder)), "## Provenance")
    assert "| Made on | macOS 26.1, arm64, Python 3.11.7 |" in text
    assert f"| Commit of hft2ane | `{'f' * 40}`, with changes |" in text
    assert records.read(folder / "release" / "conversion.json", Conversion).made == made


def test_same_records_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "plot_psnr", DRAWN.__wrapped__)
    monkeypatch.setattr(step, "plot_headroom", DRAWN_HEADROOM.__wrapped__)
    one, other = (card.write(job_folder(tmp_path / name, lengths=(32, 128))) for name in ("one", "other"))
    for file in (p for p in one.rglob("*") if p.is_file()):
        assert file.read_bytes() == (other / file.relative_to(one)).read_bytes(), file.name


def test_the_user_s_matplotlib_settings_change_nothing(folder: Path) -> None:
    report = records.read(folder / "report.json", Report)
    drawn = plots.plot_psnr(report.fidelity[1:], report.protocol)
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "savefig.dpi": 20, "figure.facecolor": "red"}):
        assert DRAWN.__wrapped__(report.fidelity[1:], report.protocol) == drawn
        assert DRAWN_HEADROOM.__wrapped__(AUDIT) == plots.plot_headroom(AUDIT)


def test_a_second_run_replaces_the_release(folder: Path) -> None:
    (card.write(folder) / "leftover.txt").write_text("from another time")
    release = card.write(folder)
    assert not (release / "leftover.txt").exists()
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []


def test_a_failure_leaves_the_old_release_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = text_of(card.write(folder))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(step, "sums", fail)
    with pytest.raises(OSError, match="No space"):
        card.write(folder)
    assert text_of(folder / "release") == before
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []


# ---- refusals


def test_a_report_with_failures_is_refused(folder: Path) -> None:
    rewritten(folder / "report.json", Report, failures=("float16: logits at 128 tokens: 31.0 dB, the gate is 50 dB",))
    with pytest.raises(GateFailed, match="31.0 dB"):
        card.write(folder)
    assert not (folder / "release").exists()


@pytest.mark.parametrize("what", ["rewrite", "float16"])
def test_a_report_without_a_figure_is_refused(folder: Path, what: str) -> None:
    report = records.read(folder / "report.json", Report)
    rewritten(folder / "report.json", Report, fidelity=tuple(bar for bar in report.fidelity if bar.what != what))
    with pytest.raises(GateFailed, match=f"no figures for {what}"):
        card.write(folder)


@pytest.mark.parametrize(
    ("license", "said"),
    [(None, "names no licence"), ("cc-by-nc-4.0", "licence, `cc-by-nc-4.0`, holds"), ("MIT", "licence, `mit`, holds")],
)
def test_the_card_states_the_licence_and_leaves_judging_to_publish(
    folder: Path, license: str | None, said: str
) -> None:
    rewritten(folder / "source.json", Source, card=CardFields(license=license))
    text = (card.write(folder) / "README.md").read_text()
    assert said in text
    assert f"license: {(license or 'unknown').lower()}" in text
    with pytest.raises(LicenseError):
        licenses.check(license, "apache-2.0")


LINT = Lint(
    package="all-MiniLM-L6-v2.float16.mlpackage",
    settings=LintSettings(),
    findings=(
        Finding(
            "axis-limit-copy",
            "warning",
            ("main",),
            "transpose | beyond `16384`",
            "decoder",
            "transpose",
            (1, 8),
            2,
            ("t",),
        ),
        Finding("activation", "info", ("main",), "gelu as one op", "blocks.{i}", "gelu", (1, 8), 6, ("g",)),
    ),
    placed=(Placed("main", 415, 10**9, {"ane": 0.9889, "cpu": 0.0111}, {"ane": 0.99999, "cpu": 0.00001}),),
    verdicts=(),
)


def test_the_lint_is_a_prediction_with_its_warnings(folder: Path) -> None:
    rewritten(folder / "report.json", Report, lint=(LINT,))
    text = (card.write(folder) / "README.md").read_text()
    section = text.split("### Predicted by lint")[1].split("###")[0]
    assert "| float16 | `main` | 415 | 98.89% | 99.99% |" in section
    assert "- `axis-limit-copy`, transpose (2 times): the scores have a last axis longer" in section
    assert "gelu as one op" not in section
    assert "nothing in this table is measured" in section
    assert "Measured with Core ML" not in text


def test_equal_predictions_are_one_row() -> None:
    def package(variant: Any) -> Package:
        return Package(variant, f"x.{variant}", "", 1, "", (), "")

    def lint(variant: str, *shares: float) -> Lint:
        places = tuple(
            Placed(f"tokens_{n}", 9, 100, {"ane": s}, {"ane": s}) for n, s in zip((8, 16, 32), shares, strict=True)
        )
        return replace(LINT, package=f"x.{variant}", placed=places)

    report = Report("p", "k", (), (), (), 1.0, (lint("float16", 0.5, 0.50000001, 1), lint("int8", 0.5, 0.5, 1)))
    rows = tables.placements([package("float16"), package("int8")], report)
    assert [(row.variants, row.functions, row.of_ops) for row in rows] == [
        (["float16", "int8"], ("tokens_8", "tokens_16"), "50%"),
        (["float16", "int8"], ("tokens_32",), "100%"),
    ]


def test_a_warning_counts_what_is_in_one_function(folder: Path) -> None:
    """Two operations in each of two functions of two packages are two to whoever runs one of them."""
    both = replace(LINT.findings[0], functions=("tokens_32", "tokens_64"), count=4)
    one, other = (replace(LINT, package=name, findings=(both,)) for name in ("a.mlpackage", "b.mlpackage"))
    report = replace(records.read(folder / "report.json", Report), lint=(one, other))
    assert [each.count for each in tables.warnings(report)] == [2]


def test_a_warning_without_words_of_its_own_shows_the_finding(folder: Path) -> None:
    other = replace(LINT, findings=(replace(LINT.findings[0], rule="tile"),))
    rewritten(folder / "report.json", Report, lint=(other,))
    assert "- `tile`, transpose (2 times): transpose \\| beyond \\`16384\\`" in text_of(card.write(folder))
    rewritten(folder / "report.json", Report, lint=(replace(LINT, findings=()),))
    assert "No rule warns of anything." in text_of(card.write(folder))


def test_what_a_mac_measured(folder: Path) -> None:
    """From a synthetic measurement."""
    packages = measurements.digests(records.read(folder / "export.json", Exported).packages)
    one, other = (synthetic(replace(MAC, chip=chip), packages, "me/name-ane") for chip in ("Apple M9", "Apple M8"))
    records.write(folder / "measurements" / "one.json", one)
    records.write(folder / "measurements" / "other.json", other)
    records.write(folder / "measurements" / "of-others.json", synthetic(packages={"float16": "0" * 64}))
    release = card.write(folder)
    text = text_of(release)
    assert "| Neural Engine share² | 97.5% |" in text
    for chip in ("M8", "M9"):
        assert re.search(rf"\| Latency², Apple {chip} \(24F74\), CPU\\_AND\\_NE \| 1\.38 ms \(\d+ tokens\) \|", text)
    assert "[Measured with Core ML](#measured-with-core-ml)" in text
    assert "latency | not measured |" not in text
    measured = section(text, "### Measured with Core ML")
    assert "On Apple M8, macOS 15.5 (24F74), Apple M9, macOS 15.5 (24F74)." in measured
    figures = "70.2 | 9.50 | 10.50 | 9.00 | 9.5 | 0.2 | 200"
    assert f"| Apple M9 (24F74) | float16 | `main` | `CPU_ONLY` | {figures} |" in measured
    assert "| Apple M9 (24F74) | float16 | `main` | 400 | 97.5% | 99.9% | 90% |" in measured
    assert "| Apple M9 (24F74) | float16 | `gather` | 1 | cpu | cpu | 10% | Core ML does not support it |" in measured
    missing = section(text, "### Not measured")
    assert "on Apple M8, macOS 15.5 (24F74): plan of float16 main: plan did not finish in 600 s" in missing
    report = records.read(folder / "report.json", Report)
    assert report.macs == (other, one)
    assert (release / "reports" / "report.json").read_bytes() == (folder / "report.json").read_bytes()
    made = records.read(release / "conversion.json", Conversion)
    assert made.macs == measurements.named(report.macs)
    assert made.verify_key == report.verify_key != keys.verify_key(packages, keys.PROTOCOL, keys.BACKEND)


def test_a_mac_without_a_neural_engine(folder: Path) -> None:
    packages = measurements.digests(records.read(folder / "export.json", Exported).packages)
    mac = replace(MAC, chip="Apple M9 (Virtual)", model="VirtualMac2,1")
    lacking = replace(synthetic(mac, packages), units=("CPU_ONLY",), residency=(), not_measured=("the Neural Engine",))
    lacking = replace(lacking, latency=lacking.latency[:1], fidelity=lacking.fidelity[:1], unfinished=())
    records.write(folder / "measurements" / "one.json", lacking)
    text = text_of(card.write(folder))
    assert "| Neural Engine share² | not measured |" in text
    assert "| Latency², Apple M9 (Virtual) (24F74), CPU\\_ONLY | 9.50 ms" in text
    assert "compute plan" not in text
    assert "- on Apple M9 (Virtual), macOS 15.5 (24F74): the Neural Engine" in text


def test_a_new_card_keeps_what_was_measured(refreshed: Path) -> None:
    """The report of before is what is published; a new measurement comes to it, and nothing else of it changes."""
    old = records.read(refreshed / "previous" / "conversion.json", Conversion)
    packages = measurements.digests(old.packages)
    first, second = (synthetic(replace(MAC, chip=chip), packages) for chip in ("Apple M8", "Apple M9"))
    for n, one in enumerate((first, second)):
        rewritten(refreshed / "job.json", Job, macs=(one,))
        release = card.refresh(refreshed)
        report = records.read(release / "reports" / "report.json", Report)
        assert report.macs == (first, second)[: n + 1]
        assert records.read(release / "conversion.json", Conversion).macs == measurements.named(report.macs)
        records.write(refreshed / "previous" / "reports" / "report.json", report)
    assert report.fidelity == records.read(refreshed / "previous" / "reports" / "report.json", Report).fidelity


def test_without_a_lint_there_is_no_section(folder: Path) -> None:
    assert "Predicted" not in (card.write(folder) / "README.md").read_text()


@pytest.mark.parametrize("name", ["job.json", "source.json", "export.json", "report.json"])
def test_a_step_that_was_not_done_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BadInput, match=f"{name} is missing"):
        card.write(folder)


# ---- what the card says


def test_front_matter(folder: Path) -> None:
    text = text_of(card.write(folder))
    data = front_matter(text)
    results = data.pop("model-index")[0]["results"][0]
    assert data == {
        "license": "apache-2.0",
        "language": ["en"],
        "library_name": "coreml",
        "pipeline_tag": "sentence-similarity",
        "base_model": "sentence-transformers/all-MiniLM-L6-v2",
        "base_model_relation": "quantized",
        "tags": ["coreml", "core-ml", "ane", "apple-neural-engine", "mlpackage", "fp16"],
    }
    report = records.read(folder / "report.json", Report)
    assert results["metrics"][0]["value"] == report.fidelity[1].psnr_min
    assert report.protocol in results["metrics"][0]["name"]


@pytest.mark.parametrize(
    ("task", "upstream", "tag"),
    [
        ("sentence-embedding", "feature-extraction", "feature-extraction"),
        ("sentence-embedding", "text-generation", "sentence-similarity"),
        ("text-classification", "text-ranking", "text-ranking"),
        ("text-classification", None, "text-classification"),
        ("next-sentence-prediction", None, "text-classification"),
        ("multiple-choice", None, "multiple-choice"),
        ("fill-mask", "fill-mask", "fill-mask"),
        ("replaced-token-detection", None, "token-classification"),
    ],
)
def test_pipeline_tag(tmp_path: Path, task: Task, upstream: str | None, tag: str) -> None:
    fields = CardFields(license="apache-2.0", pipeline_tag=upstream)
    text = text_of(card.write(job_folder(tmp_path, task, fields=fields)))
    assert front_matter(text)["pipeline_tag"] == tag


def test_languages_are_codes_and_stay_words(tmp_path: Path) -> None:
    fields = CardFields(license="apache-2.0", language=("no", "multilingual", "English", "zh-Hans", "en\nlicense: mit"))
    text = text_of(card.write(job_folder(tmp_path, fields=fields)))
    assert front_matter(text)["language"] == ["no", "multilingual"]


def test_a_local_original_is_no_base_model(folder: Path) -> None:
    rewritten(folder / "source.json", Source, id="local/my model", commit="local")
    text = text_of(card.write(folder))
    data = front_matter(text)
    assert not {"base_model", "base_model_relation"} & data.keys()
    assert "the local folder `my model`" in text
    assert "hft2ane convert" not in text
    assert "huggingface.co/local" not in text


def test_figures_are_the_report_s_rounded_down(folder: Path) -> None:
    text = text_of(card.write(folder))
    report = records.read(folder / "report.json", Report)
    rewrite, artefact = report.fidelity
    assert f"| PSNR¹ worst row, dB | {floor(artefact.psnr_min)} |" in text
    assert f"| PSNR¹ median, dB | {floor(artefact.psnr_median)} |" in text
    assert "| Neural Engine share, latency | not measured |" in text
    fidelity = section(text, "## Fidelity")
    for bar, name in ((rewrite, "The rewrite in fp32, before export"), (artefact, "The package, float16")):
        figures = f"{bar.gate} | {floor(bar.psnr_min)} | {floor(bar.psnr_median)}"
        assert f"| {name} | `{bar.backend}` | {figures} |" in fidelity
        for m in bar.measures:
            figures = f"{m.rows} | {floor(m.psnr_min)} | {floor(m.psnr_median)} | {floor(m.psnr)} | 0.999999"
            assert f"| `{m.output}` | {m.inputs} | {figures} |" in fidelity
    least = min(artefact.measures, key=lambda m: m.psnr_min)
    assert (
        f"| `{least.worst}` | {floor(least.psnr_min)} | `{least.output}` | {least.length} | {least.inputs} |"
        in fidelity
    )
    for line in report.not_measured:
        assert f"- {line}" in section(text, "### Not measured")


def floor(value: float) -> str:
    return f"{int(value * 10) / 10:.1f}"


def test_no_figure_without_its_protocol(folder: Path) -> None:
    """Every figure is under a heading, or in a line of the front matter, that names the protocol."""
    rewritten(folder / "report.json", Report, protocol="some-other-protocol-7")
    text = text_of(card.write(folder))
    front, body = text.split("\n---\n", 1)
    assert "hft2ane-psnr-2" not in text
    parts = [front, *re.split(r"^## ", body, flags=re.M)]
    with_figures = [part for part in parts if "PSNR" in part]
    assert len(with_figures) == 3
    for part in with_figures:
        assert "some-other-protocol-7" in part


def test_rounding_never_flatters() -> None:
    assert [markdown.down(v) for v in (49.96, 50.0, 80.3, 300.0)] == ["49.9", "50.0", "80.3", "equal"]
    assert [markdown.share(v) for v in (1.0, 0.99999, 0.5, 0.9876, None)] == ["100%", "99.99%", "50%", "98.76%", "–"]
    assert [markdown.cosine(v) for v in (1.0, 0.9999999, 0.5)] == ["1.000000", "0.999999", "0.500000"]


def test_lengths_are_functions(tmp_path: Path) -> None:
    text = text_of(card.write(job_folder(tmp_path, lengths=(32, 64, 384))))
    assert "| Length, tokens | 32, 64, 384 |" in text
    assert "| Minimum OS | iOS 18, macOS 15 |" in text
    contract = section(text, "## Inputs and outputs")
    assert "| in | `input_ids` | 1×L | int32 |" in contract
    assert "| out | `token_embeddings` | 1×L×384 | float16 |" in contract
    assert "| out | `sentence_embedding` | 1×384 | float16 |" in contract
    assert "| `tokens_64` | 64 |  |\n| `tokens_384` | 384 | default |" in contract
    assert 'function_name="tokens_384"' in fence(text, "python")
    assert 'configuration.functionName = "tokens_384"' in fence(text, "swift")
    assert "hft2ane rebuild my-org/all-MiniLM-L6-v2-ane --out rebuilt" in section(text, "## Provenance")


def test_one_length_needs_no_function(folder: Path) -> None:
    text = text_of(card.write(folder))
    assert "functionName" not in text
    assert "| in | `input_ids` | 1×128 | int32 |" in text


def test_padding_matters_where_an_output_is_per_token(tmp_path: Path) -> None:
    """The pooler's 128 numbers are not 128 tokens."""
    features = text_of(card.write(job_folder(tmp_path / "features", "feature-extraction")))
    assert re.search(r"`last_hidden_state` \| 1×128×128 \|.*\| ignore \|", features)
    assert re.search(r"`pooler_output` \| 1×128 \|.*\| – \|", features)
    answers = text_of(card.write(job_folder(tmp_path / "answers", "question-answering")))
    assert re.search(r"`start_logits` \| 1×128 \|.*\| ignore \|", answers)
    replaced = text_of(card.write(job_folder(tmp_path / "replaced", "replaced-token-detection")))
    assert re.search(r"`logits` \| 1×128 \|.*\| ignore \|", replaced)


def test_token_types_are_said_when_they_are_an_input(tmp_path: Path) -> None:
    with_types = text_of(card.write(job_folder(tmp_path / "with", "question-answering")))
    without = text_of(card.write(job_folder(tmp_path / "without")))
    assert "token_type_ids" in section(with_types, "### Tokenising")
    assert "token_type_ids" not in without


def test_labels(tmp_path: Path) -> None:
    labels = section(text_of(card.write(job_folder(tmp_path, "text-classification"))), "### Labels")
    assert "| 0 | `negative` |\n| 1 | `neutral` |\n| 2 | `positive` |" in labels
    assert "softmax" in labels


def test_many_labels_are_folded(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, "token-classification")
    rewritten(folder / "export.json", Exported, labels=tuple(f"class {i}" for i in range(40)))
    labels = section(text_of(card.write(folder)), "### Labels")
    assert "<details><summary>All 40 labels</summary>" in labels
    assert "39 `class 39`" in labels


@pytest.mark.parametrize(
    ("problem", "word"), [("multi_label_classification", "sigmoid"), ("regression", "not probabilities")]
)
def test_kinds_of_scores(tmp_path: Path, problem: str, word: str) -> None:
    folder = job_folder(tmp_path, "text-classification")
    rewritten(folder / "export.json", Exported, problem=problem)
    labels = section(text_of(card.write(folder)), "### Labels")
    assert word in labels
    assert "softmax" not in labels


def test_placeholder_labels_are_no_labels(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, "text-classification")
    rewritten(folder / "export.json", Exported, labels=("LABEL_0", "LABEL_1", "LABEL_2"))
    text = text_of(card.write(folder))
    assert "LABEL_" not in text
    assert "names none" in section(text, "### Labels")


def test_licence_files_go_along(tmp_path: Path) -> None:
    release = card.write(job_folder(tmp_path, legal={"LICENSE": "Apache License", "NOTICE.txt": "made by"}))
    assert (release / "LICENSE").read_text() == "Apache License"
    assert "[`LICENSE`](LICENSE), [`NOTICE.txt`](NOTICE.txt)" in section(text_of(release), "## Licence")


def test_no_licence_file_is_invented(folder: Path) -> None:
    release = card.write(folder)
    assert not [p for p in release.iterdir() if p.name.upper().startswith("LICEN")]
    licence = section(text_of(release), "## Licence")
    assert "has no licence file" in licence
    assert "Not affiliated with Apple" in licence


def test_worst_input_may_be_the_empty_text(folder: Path) -> None:
    report = records.read(folder / "report.json", Report)
    emptied = [replace(bar, measures=tuple(replace(m, worst="") for m in bar.measures)) for bar in report.fidelity]
    rewritten(folder / "report.json", Report, fidelity=tuple(emptied))
    assert "\n| the empty text | " in text_of(card.write(folder))


def test_each_backend_has_its_own_figures(folder: Path) -> None:
    report = records.read(folder / "report.json", Report)
    mac = replace(report.fidelity[1], backend="coreml-CPU_AND_NE", psnr_min=61.23)
    rewritten(folder / "report.json", Report, fidelity=(*report.fidelity, mac))
    release = card.write(folder)
    text = text_of(release)
    assert "| PSNR¹ worst row, dB | 61.2 |" in text
    assert re.search(r"\| The package, float16 \| `coreml-CPU_AND_NE` \| 50.0 \| 61.2 \|", text)
    assert "| float16, coreml-CPU\\_AND\\_NE | `" in text
    assert "evaluated by `mil-declared`, `coreml-CPU_AND_NE`" in text
    assert records.read(release / "conversion.json", Conversion).psnr["float16"] == 61.23


@pytest.mark.parametrize("name", ["psnr", "fp16-headroom"])
def test_plot_is_transparent_and_legible_on_black_and_white(folder: Path, name: str) -> None:
    image = matplotlib.image.imread(card.write(folder) / "assets" / f"{name}.png")
    assert image.shape[1] >= 1200
    assert image[0, 0, 3] == 0
    opaque = image[image[..., 3] == 1][:, :3]
    for page in (1.0, 0.04):
        contrast = (np.maximum(luminance(opaque), page) + 0.05) / (np.minimum(luminance(opaque), page) + 0.05)
        assert np.quantile(contrast, 0.02) > 2.4  # for lines and text of this size; 1 is invisible


def luminance(colours: Any) -> Any:
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def test_nothing_of_a_plot_is_cut_off(folder: Path) -> None:
    """The border of the picture is empty: every label is inside."""
    report = records.read(folder / "report.json", Report)
    long = tuple(replace(m, output="a_very_long_name_of_an_output") for m in report.fidelity[1].measures)
    one, two = report.fidelity[1], replace(report.fidelity[1], what="palettized-4", measures=long)
    for bars in ((one,), (two,), (one, two)):
        image = matplotlib.image.imread(io.BytesIO(plots.plot_psnr(bars, report.protocol)))
        for edge in (image[:3], image[-3:], image[:, :3], image[:, -3:]):
            assert edge[..., 3].max() == 0


@pytest.mark.parametrize("kind", ["one", "several", "many"])
def test_plots_are_small(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a model of many layers, lengths and variants, whose lines cross."""
    audit = replace(
        AUDIT, layers=tuple(replace(r, path=f"encoder.blocks.{i}.{r.kind}") for i in range(36) for r in AUDIT.layers)
    )
    lengths = {"one": (128,), "several": (32, 128), "many": (32, 64, 128, 256, 512)}[kind]
    report = records.read(job_folder(tmp_path, lengths=lengths) / "report.json", Report)
    bars = [replace(report.fidelity[1], what=variant) for variant in VARIANTS]
    sized = [plots.Sized(v, 10**7 * (n + 1), 30.0 + n, 60.0) for n, v in enumerate(VARIANTS)]
    assert len(plots.FORMS) == len(plots.COLOURS) >= len(VARIANTS)
    for picture in (
        DRAWN.__wrapped__(report.fidelity[1:], "p"),
        DRAWN.__wrapped__(bars if kind == "many" else bars[:2], "p"),
        plots.plot_sizes(sized, "p"),
        DRAWN_HEADROOM.__wrapped__(audit),
    ):
        assert 5_000 < len(picture) < 60_000


def test_sizes_are_shown_where_there_is_a_choice(folder: Path) -> None:
    assert "sizes.png" not in text_of(card.write(folder))
    text = section(with_second(folder, "palettized-4", 26.18), "## Fidelity")
    assert text.count("](assets/psnr.png)") == text.count("](assets/sizes.png)") == 1
    assert (folder / "release/assets/sizes.png").is_file()
    report = records.read(folder / "report.json", Report)
    conversion = records.read(folder / "release/conversion.json", Conversion)
    sizes = [(each.variant, each.size, each.least) for each in tables.sized(conversion, report)]
    assert sizes == [("float16", 45_760_113, report.fidelity[1].psnr_min), ("palettized-4", 22_880_056, 26.18)]


def test_ranges_of_inputs_and_outputs(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, "fill-mask")
    config = {"model_type": "bert", "pad_token_id": 0, "vocab_size": 30522, "type_vocab_size": 2}
    (folder / "source" / "config.json").write_text(json.dumps(config))
    report = records.read(folder / "report.json", Report)
    bars = tuple(
        replace(bar, measures=tuple(replace(m, peak=12.3 + n) for n, m in enumerate(bar.measures)))
        for bar in report.fidelity
    )
    rewritten(folder / "report.json", Report, fidelity=bars)
    text = section(text_of(card.write(folder)), "## Inputs and outputs")
    assert "| in | `input_ids` | 1×128 | int32 | 0 … 30521 | 0 |" in text
    assert "| in | `attention_mask` | 1×128 | int32 | 0, 1 | 0 |" in text
    assert "| in | `token_type_ids` | 1×128 | int32 | 0 … 1 | 0 |" in text
    assert "| out | `logits` | 1×128×30522 | float16 | ±15.3 | ignore |" in text
    assert "over the inputs of protocol `hft2ane-psnr-2`" in text
    rewritten(folder / "report.json", Report, fidelity=report.fidelity)  # as a report of before there were peaks
    assert "| float16 | – | ignore |" in section(text_of(card.write(folder)), "## Inputs and outputs")


@pytest.mark.parametrize(
    ("task", "file", "key"),
    [
        ("sentence-embedding", "sentence_bert_config.json", "max_seq_length"),
        ("text-classification", "tokenizer_config.json", "model_max_length"),
    ],
)
def test_what_the_original_cuts_is_cut_by_the_code_too(tmp_path: Path, task: Task, file: str, key: str) -> None:
    """As `hft2ane.load` cuts it: the package would take 128."""
    folder = job_folder(tmp_path, task, legal={file: json.dumps({key: 20})})
    text = text_of(card.write(folder))
    assert "The original keeps 20 tokens of a text: cut there, as the code above does," in text
    assert "tokenizer.enable_truncation(20)\ntokenizer.enable_padding(length=128, pad_id=0)" in text
    assert "let limit = 20" in text
    assert "if tokens.count <= limit { return tokens }\n        return Array(tokens.prefix(limit - 1))" in text
    plain = text_of(card.write(job_folder(tmp_path / "plain", task, legal={file: json.dumps({key: 128})})))
    assert "The original keeps" not in plain
    assert "limit" not in section(plain, "### Swift")


def test_the_worst_inputs_stand_in_the_card(folder: Path) -> None:
    """Each once, the worst first: three of one package."""
    text = section(text_of(card.write(folder)), "## Fidelity")
    measures = sorted(records.read(folder / "report.json", Report).fidelity[1].measures, key=lambda m: m.psnr_min)
    expected = list(dict.fromkeys(m.worst for m in measures))[:3]
    assert re.findall(r"^\| `([^`]*)` \| [\d.]+ \| `\w+` \| 128 \|", text, re.M) == expected


# ---- the tag that the code names


@pytest.mark.parametrize("task", list(MODELS))
def test_every_code_names_the_tag_that_publishing_puts_in(tmp_path: Path, task: Task) -> None:
    written = text_of(card.write(job_folder(tmp_path, task)))
    assert pin.pinned(written) == 1
    third = pin.pin(written, 3)
    changed = [line for line in third.splitlines() if line not in written.splitlines()]
    assert len(changed) == 4  # Swift, both of Python, the download
    assert all(line.count("v3") == 1 for line in changed)
    assert "v1" not in third
    assert (pin.pinned(third), pin.pin(third, 1)) == (3, written)


def test_no_value_of_a_card_passes_for_a_tag_of_its_code(tmp_path: Path) -> None:
    lines = ('let revision = "v1"', '    revision="v1",', "hf download x/y --revision v1 --local-dir z")
    folder = job_folder(tmp_path, "text-classification", legal={'x\nlet revision = "v1"': "text"})
    report = records.read(folder / "report.json", Report)
    bars = tuple(
        replace(
            b,
            measures=tuple(
                replace(m, worst="\n" + line, inputs=line) for m, line in zip(b.measures, lines * 9, strict=False)
            ),
        )
        for b in report.fidelity
    )
    rewritten(folder / "report.json", Report, fidelity=bars, not_measured=lines)
    rewritten(folder / "export.json", Exported, labels=lines)
    (folder / "source" / "tokenizer_config.json").write_text(json.dumps({"mask_token": "\n" + lines[0]}))
    written = text_of(card.write(folder))
    changed = zip(written.splitlines(), pin.pin(written, 3).splitlines(), strict=True)
    assert len([before for before, after in changed if before != after]) == 4


def test_the_headroom_that_is_least_and_what_was_conditioned(folder: Path) -> None:
    text = card.write(folder).joinpath("README.md").read_text()
    section = text.split("### Headroom in fp16", 1)[1].split("\n### ")[0]
    assert "| `encoder.blocks.2.norm2` | squares | 9231 | 2.8 |" in section
    assert "| `encoder.blocks.1.norm2` | 2^-3 | squares | 3.938e+05 |" in section
    assert records.read(folder / "release/reports/ranges.json", Audit) == AUDIT
    exported = records.read(folder / "export.json", Exported)
    records.write(folder / "export.json", replace(exported, audit=replace(AUDIT, conditioned=())))
    assert "2^-" not in card.write(folder).joinpath("README.md").read_text()


# ---- hostile text

HOSTILE = (
    "a|b",
    "`code` ``",
    "</code><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "[click](https://evil.example)",
    "![x](https://evil.example/x.png)",
    "line\nbreak\n\n# heading\n```\nrm -rf\n```",
    "---\nlicense: mit\n---",
    "\\|\\`",
    "\u202egnp.exe\x00\x1b[31m",
    "<!-- gone",
    "https://evil.example",
    "*x*_y_~z~",
    "| | |",
    "",
)


def test_hostile_labels_stay_text(tmp_path: Path) -> None:
    folder = job_folder(tmp_path, "text-classification")
    for labels in (HOSTILE[:12], HOSTILE + ("some", "more")):
        rewritten(folder / "export.json", Exported, labels=labels)
        page = shown(text_of(card.write(folder)))
        check_harmless(page)
        found = re.findall(r"<code>(.*?)</code>", re.split(r"<h[23]>(?=Labels|Fidelity)", page)[1], re.S)
        assert [html.unescape(text) for text in found[-len(labels) :]] == [markdown.clean(label) for label in labels]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_inputs_and_remarks_stay_text(folder: Path, text: str) -> None:
    report = records.read(folder / "report.json", Report)
    bars = [
        replace(bar, measures=tuple(replace(m, worst=text, inputs=text) for m in bar.measures))
        for bar in report.fidelity
    ]
    rewritten(folder / "report.json", Report, fidelity=tuple(bars), not_measured=(text,))
    page = shown(text_of(card.write(folder)))
    check_harmless(page)
    assert len(re.findall(r"<td[^>]*><code>sentence_embedding</code></td>", page)) == 10


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_source_stays_text(folder: Path, text: str) -> None:
    rewritten(folder / "source.json", Source, id=f"{text}/x{text}")
    fields = CardFields("apache-2.0", text, text, (text,), text)
    rewritten(folder / "source.json", Source, card=fields)
    (folder / "source" / "config.json").write_text(json.dumps({"pad_token_id": text}))
    (folder / "source" / "tokenizer_config.json").write_text(json.dumps({"mask_token": {"content": text}}))
    written = text_of(card.write(folder))
    front = front_matter(written)
    assert front["license"] == "apache-2.0"
    assert not front.keys() & {"license_name", "license_link", "language", "base_model"}
    check_harmless(shown(written))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_mask_token_stays_a_string(tmp_path: Path, text: str) -> None:
    folder = job_folder(tmp_path, "fill-mask")
    (folder / "source" / "tokenizer_config.json").write_text(json.dumps({"mask_token": text}))
    written = text_of(card.write(folder))
    check_harmless(shown(written))
    strings = [node.value for node in ast.walk(ast.parse(fence(written, "python"))) if isinstance(node, ast.Constant)]
    assert markdown.clean(f"Paris is the capital of {text or '[MASK]'}.") in strings


def test_hostile_licence_file_name(tmp_path: Path) -> None:
    name = "LICENSE](javascript:alert(1)) `|<b>"
    check_harmless(shown(text_of(card.write(job_folder(tmp_path, legal={name: "text"})))))


TAGS = {"h1", "h2", "h3", "p", "a", "code", "em", "pre", "ul", "li", "img", "details", "summary"}
TAGS |= {"table", "thead", "tbody", "tr", "th", "td"}


def check_harmless(page: str) -> None:
    """Of HTML only what our own template writes, and links only to where it links."""
    tags = set(re.findall(r"</?([a-zA-Z!][\w-]*)", page))
    assert tags <= TAGS, tags - TAGS
    targets = re.findall(r'(?:href|src)="([^"]*)"', page)
    ours = r"#fidelity|https://huggingface\.co/[\w./-]+|https://github\.com/huggingface/swift-transformers"
    for target in targets:
        assert re.fullmatch(ours + r"|assets/[\w-]+\.png|reports/(report|ranges)\.json|LICENSE[\w%()]*", target), target
    assert "49" not in re.findall(r"<code>(.*?)</code>", page)
    assert page.count("<h2>") == 6


# ---- the examples


@pytest.mark.parametrize("task", list(MODELS))
def test_python_example_runs(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example as it stands, with the real tokenizers; only Core ML and the download are stood in for."""
    release = card.write(job_folder(tmp_path, task, lengths=(32, 64)))
    seen = run_example(release, task, monkeypatch)
    function = records.read(release / "conversion.json", Conversion).packages[0].functions[-1]
    for inputs in seen:
        assert {name: (a.shape, str(a.dtype)) for name, a in inputs.items()} == {
            t.name: (t.shape, t.dtype) for t in function.inputs
        }
        rows = [inputs[name].reshape(-1, 64) for name in ("input_ids", "attention_mask")]
        assert ((rows[0] != 0) == (rows[1] == 1)).all()
        assert (rows[0][:, 0] == 2).all()  # [CLS]
        assert 1 not in rows[0][rows[1] == 1]  # every word of the examples is in the test's vocabulary
        if task in ("question-answering", "next-sentence-prediction", "multiple-choice"):
            assert set(inputs["token_type_ids"].ravel().tolist()) == {0, 1}
    assert capsys.readouterr().out.strip()


def test_python_example_without_tokenizer_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = job_folder(tmp_path, "fill-mask")
    vocabulary = json.loads((folder / "source" / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "source" / "vocab.txt").write_text("\n".join(vocabulary))
    source = records.read(folder / "source.json", Source)
    files = [replace(f, path="vocab.txt") if f.path == "tokenizer.json" else f for f in source.files]
    rewritten(folder / "source.json", Source, files=tuple(files))
    release = card.write(folder)
    assert not (release / "tokenizer.json").exists()
    (inputs,) = run_example(release, "fill-mask", monkeypatch)
    assert inputs["input_ids"].shape == (1, 128)
    assert (inputs["input_ids"] == 4).sum() == 1  # [MASK]
    assert "needs a `tokenizer.json`" in section(text_of(release), "### Swift")


def run_example(release: Path, task: Task, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the model is given while the Python example runs."""
    seen: list[dict[str, Any]] = []
    functions = records.read(release / "conversion.json", Conversion).packages[0].functions

    class MLModel:
        def __init__(self, path: str, compute_units: object, function_name: str | None = None) -> None:
            assert (Path(path) / "Manifest.json").is_file()
            self.function = next(f for f in functions if len(functions) == 1 or f.name == function_name)

        def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
            seen.append(inputs)
            draw = np.random.default_rng(len(seen))
            return {t.name: draw.normal(size=t.shape).astype(np.float16) for t in self.function.outputs}

    coremltools, models = types.ModuleType("coremltools"), types.ModuleType("coremltools.models")
    vars(coremltools)["ComputeUnit"] = types.SimpleNamespace(CPU_AND_NE="CPU_AND_NE")
    vars(models)["MLModel"] = MLModel
    monkeypatch.setitem(sys.modules, "coremltools", coremltools)
    monkeypatch.setitem(sys.modules, "coremltools.models", models)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(release))
    example = release.parent / "example.py"
    example.write_text(fence(text_of(release), "python"))
    runpy.run_path(str(example))
    return seen


@pytest.mark.parametrize("task", list(MODELS))
def test_swift_example_is_whole(tmp_path: Path, task: Task) -> None:
    """No compiler here: brackets close, the contract's names are there, and nothing of Markdown's escapes is."""
    folder = job_folder(tmp_path, task)
    swift = fence(text_of(card.write(folder)), "swift")
    for opening, closing in ("()", "[]", "{}"):
        assert swift.count(opening) == swift.count(closing)
    assert not re.search(r"\\[\[\]_*]|&\w+;", swift)
    function = records.read(folder / "export.json", Exported).packages[0].functions[0]
    for name in (t.name for t in function.inputs):
        assert f'"{name}": tensor(' in swift
    assert max(map(len, swift.splitlines())) <= 90


def test_swift_has_no_pairs_without_token_types(tmp_path: Path) -> None:
    text = text_of(card.write(job_folder(tmp_path, "question-answering", types=False)))
    assert "```swift" not in text
    assert "post_processor" in section(text, "### Swift")


TEMPLATE = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 1}}]  # fmt: skip


@pytest.mark.parametrize(
    ("processor", "swift"),
    [
        ({"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}, True),
        ({"type": "TemplateProcessing", "pair": TEMPLATE}, True),
        ({"type": "TemplateProcessing", "pair": [*TEMPLATE[:3], *TEMPLATE[2:]]}, False),
        ({"type": "TemplateProcessing", "pair": [*TEMPLATE[:3], TEMPLATE[1], TEMPLATE[2]]}, False),
        ({"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]}, False),
        (None, False),
    ],
)
def test_swift_joins_pairs_as_bert_or_not_at_all(tmp_path: Path, processor: Any, swift: bool) -> None:
    folder = job_folder(tmp_path, "question-answering")
    path = folder / "source" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": processor}))
    text = text_of(card.write(folder))
    assert ("```swift" in text) == ("1 for a second" in text) == swift
    assert ("`post_processor`" in text) == ("what the tokenizer gives" in text) == (not swift)


# ---- a card alone


@pytest.fixture
def refreshed(folder: Path) -> Path:
    """A job's folder for a card-only update: upstream has a new card and a licence file."""
    shutil.copytree(card.write(folder), folder / "previous", ignore=shutil.ignore_patterns("*.mlpackage"))
    for name in ("release", "all-MiniLM-L6-v2.float16.mlpackage"):
        shutil.rmtree(folder / name)
    for name in ("export.json", "report.json"):
        (folder / name).unlink()
    (folder / "source" / "LICENSE").write_text("Apache License")
    source = records.read(folder / "source.json", Source)
    new = RemoteFile("LICENSE", 14, git("Apache License"), False)
    rewritten(
        folder / "source.json",
        Source,
        commit="f" * 40,
        files=(*source.files, new),
        card=replace(source.card, language=("en", "de")),
    )
    return folder


def test_refresh(refreshed: Path) -> None:
    previous = records.read(refreshed / "previous" / "conversion.json", Conversion)
    release = card.refresh(refreshed)
    conversion = records.read(release / "conversion.json", Conversion)
    fresh = records.read(refreshed / "source.json", Source)
    assert front_matter(text_of(release))["language"] == ["en", "de"]
    assert (release / "LICENSE").read_text() == "Apache License"
    assert conversion.source.card == fresh.card
    legal = layout.legal(fresh.files)
    digest = keys.presentation_digest()
    assert conversion.card_key == keys.card_key(fresh.card, legal, previous.verify_key, digest) != previous.card_key
    assert layout.legal(conversion.source.files) == legal
    # What the packages are made of, and from which commit, is as it was.
    assert conversion.source.commit == COMMIT
    assert conversion.packages == previous.packages
    assert (refreshed / "report.json").read_bytes() == (refreshed / "previous" / "reports" / "report.json").read_bytes()


def test_refresh_carries_the_sums_of_the_packages(refreshed: Path) -> None:
    release = card.refresh(refreshed)
    old, new = (
        dict(line.split("  ")[::-1] for line in (f / "SHA256SUMS").read_text().splitlines())
        for f in (refreshed / "previous", release)
    )
    packaged = {name: digest for name, digest in old.items() if ".mlpackage/" in name}
    assert len(packaged) == 2
    assert packaged.items() <= new.items()
    assert not list(release.glob("*.mlpackage"))
    assert new.keys() - old.keys() == {"LICENSE"}
    read_release(release, records.read(release / "conversion.json", Conversion))


def test_refresh_of_the_same_card_is_the_same_card(folder: Path) -> None:
    release = card.write(folder)
    shutil.copytree(release, folder / "previous", ignore=shutil.ignore_patterns("*.mlpackage"))
    before = {p.name: p.read_bytes() for p in release.iterdir() if p.is_file()}
    assert {p.name: p.read_bytes() for p in card.refresh(folder).iterdir() if p.is_file()} == before


def test_refresh_needs_the_sums_of_every_package(refreshed: Path) -> None:
    sums = refreshed / "previous" / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(True) if ".mlpackage/" not in line))
    with pytest.raises(BadInput, match="no line for all-MiniLM-L6-v2.float16.mlpackage"):
        card.refresh(refreshed)
    sums.write_text("x")
    with pytest.raises(BadInput, match="SHA256SUMS is not a list of .* line 1 .* publish this model in full again"):
        card.refresh(refreshed)
    assert not (refreshed / "release").exists()
