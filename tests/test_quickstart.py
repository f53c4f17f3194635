"""The Python of the cards, run letter by letter: as it is printed in the card that lies on the Hub, against that Hub.

The first code of a card is run as it is; the second, with coremltools alone, with our evaluator in the place of
`MLModel`. Both get the same packages, so they have to say the same.
"""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from hft2ane import card, export, publish, records, source, verify
from hft2ane.card import release
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from hft2ane.records.job import Job
from hft2ane.records.recipe import UNGATED, Recipe
from hft2ane.records.source import Source
from tests import pairs
from tests.conftest import Checkpoint
from tests.test_card import tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),  # the Hub's client in its LFS upload
]

SEVERAL = ("embed", "pair")  # lengths in one package
LABELS = {0: "negative", 1: "neutral", 2: "positive"}
# By repo: the original's class, and its config; seeds with which it has more than one thing to say.
ORIGINALS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "features": ("BertModel", {}),
    "mask": ("BertForMaskedLM", {}),
    "sentiment": ("BertForSequenceClassification", {"id2label": LABELS}),
    "ner": ("BertForTokenClassification", {"id2label": LABELS, "seed": 59}),
    "squad": ("BertForQuestionAnswering", {}),
    "follows": ("BertForNextSentencePrediction", {}),
    "choice": ("BertForMultipleChoice", {}),
    "replaced": ("ElectraForPreTraining", {"embedding_size": 24, "seed": 50}),
}
# Runs files of Python one after another, and keeps what each prints.
RUN = """
import contextlib, io, json, os, pathlib, runpy, sys
import coremltools.models
from hft2ane.mil import open_package

class MLModel:
    def __init__(self, path, compute_units, function_name=None):
        self.program, self.function = open_package(pathlib.Path(path)), function_name

    def predict(self, inputs):
        return dict(self.program.evaluate(inputs, self.function))

coremltools.models.MLModel = MLModel
for example in map(pathlib.Path, sys.argv[1:]):
    os.chdir(example.parent)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        runpy.run_path(str(example), run_name="__main__")
    example.with_suffix(".txt").write_text(said.getvalue())
"""
Said = Mapping[str, tuple[str, str]]


def spelled(folder: Path) -> Path:
    """With a tokenizer that knows the words of the cards' examples."""
    words = tokenizer()["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer.json").unlink(missing_ok=True)
    fast: Any = transformers.BertTokenizerFast
    fast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def sentence(folder: Path) -> Path:
    """As sentence-transformers saves it."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    stages = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(stages))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    return folder


@pytest.fixture(scope="module")
def said(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Said:
    """What the two codes of each card print, by repo."""
    place = tmp_path_factory.mktemp("quickstart")
    size = len(tokenizer()["model"]["vocab"])
    originals = {
        name: spelled(checkpoint(original, **{"seed": i, "vocab_size": size, **changes}))
        for i, (name, (original, changes)) in enumerate(ORIGINALS.items(), 1)
    }
    originals["embed"] = sentence(spelled(checkpoint(vocab_size=size, seed=0)))
    pair = pairs.build(pairs.bert(vocab_size=size), pairs.decoder(vocab_size=size))
    originals["pair"] = spelled(pairs.save(pair, tmp_path_factory.mktemp("pair")))
    with LocalHub(place / "hub") as local, pytest.MonkeyPatch.context() as patch:
        for name in ("plot_psnr", "plot_headroom"):  # they take longest, and no code is in them
            patch.setattr(release, name, lambda *_: b"")
        hub = Hub(local.url, local.token)
        examples = [
            example
            for name, folder in originals.items()
            for example in written(released(folder, place / "jobs" / name, hub), place / name, local)
        ]
        environment = {**os.environ, "HF_ENDPOINT": local.url, "HF_HOME": str(place / "home"), "HF_TOKEN": ""}
        command = [sys.executable, "-W", "error::UserWarning", "-c", RUN, *map(str, examples)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {
        name: tuple((place / name / f"{tier}.txt").read_text() for tier in ("load", "plain"))  # type: ignore[misc]
        for name in originals
    }


def released(folder: Path, job: Path, hub: Hub) -> str:
    """Published, and a second time with a language in its card; the repo."""
    repo = f"org/{job.name}-ane"
    recipe = Recipe(lengths=(32, 64) if job.name in SEVERAL else (32,))
    wanted = Job("create", "a test", f"tiny/{job.name}", repo, recipe=recipe, gates=UNGATED, license="mit")
    records.write(job / "job.json", wanted)  # random weights are not what is judged here
    source.take(job, folder, f"tiny/{job.name}")
    export.export(job)
    verify.verify(job)
    for language in ((), ("en",)):
        taken = records.read(job / "source.json", Source)
        records.write(job / "source.json", replace(taken, card=replace(taken.card, language=language)))
        card.write(job)
        publish.publish(job, hub)
    return repo


def written(repo: str, place: Path, local: LocalHub) -> list[Path]:
    """The two codes of the card at the repo's last tag, as files."""
    place.mkdir()
    text = local.files(repo, "v2")["README.md"].decode()
    codes = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    assert len(codes) == 2
    examples = [place / "load.py", place / "plain.py"]
    for path, code in zip(examples, codes, strict=True):
        assert 'revision="v2"' in code
        path.write_text(code)
    return examples


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", text)]


def test_embedding(said: Said) -> None:
    short, plain = said["embed"]
    assert "(2, 24)" in short
    assert numbers(short) == pytest.approx(numbers(plain), abs=2e-3)
    assert 0.05 < numbers(short)[0] < 0.999


def test_features(said: Said) -> None:
    short, plain = said["features"]
    assert re.search(r"\(\d+, 24\)", short)
    assert "last_hidden_state (1, 32, 24)" in plain


def test_fill_mask(said: Said) -> None:
    short, plain = said["mask"]
    best = [line.split()[0] for line in short.splitlines()]
    assert len(best) == 5
    assert best == [line.split()[0] for line in plain.splitlines()]


def test_classification(said: Said) -> None:
    short, plain = map(ast.literal_eval, said["sentiment"])
    assert {each["label"]: each["score"] for each in short} == pytest.approx(plain, abs=2e-3)
    assert set(plain) == set(LABELS.values())


def test_tokens(said: Said) -> None:
    short, plain = said["ner"]
    labels = [line.split() for line in plain.splitlines()]
    assert [token for token, _ in labels[1:-1]] == ["ada", "lovelace", "was", "born", "in", "london", "."]
    spoken = [line.split() for line in short.splitlines()]
    assert {group for group, *_ in spoken} == {label for _, label in labels[1:-1]}
    assert len({label for _, label in labels}) > 1


def test_answer(said: Said) -> None:
    short, plain = said["squad"]
    assert ast.literal_eval(short)["answer"] in "Ada Lovelace was born in London in 1815."
    assert plain.strip() in "Ada Lovelace was born in London in 1815."


def test_next_sentence(said: Said) -> None:
    short, plain = said["follows"]
    assert (ast.literal_eval(short)[0]["label"] == "follows") == (plain.strip() == "follows: True")


def test_choice(said: Said) -> None:
    short, plain = said["choice"]
    assert ast.literal_eval(short)["text"] == plain.strip()


def test_replaced(said: Said) -> None:
    short, plain = said["replaced"]
    found = [token for token, verdict in map(str.split, plain.splitlines()) if verdict == "replaced"]
    spoken = "".join(line.rpartition(" ")[0] for line in short.splitlines())
    assert spoken.replace(" ", "") == "".join(token for token in found if token not in ("[CLS]", "[SEP]"))
    assert 2 < len(found) < len(plain.splitlines())


def test_writing(said: Said) -> None:
    short, plain = said["pair"]
    assert len(plain.split()) > 2
    assert short == plain
