"""What a loaded model answers, beside transformers on the same checkpoint: labels, order, places and numbers."""

import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from hft2ane import Model, Truncated, load
from hft2ane.demo import MODELS, obtain
from hft2ane.errors import BadInput
from hft2ane.protocol import SENTENCES
from hft2ane.runtime import answers, engine
from hft2ane.runtime.settings import read_settings
from hft2ane.runtime.texts import Text, Texts
from tests import pairs
from tests.conftest import Checkpoint
from tests.exported import release

pytestmark = pytest.mark.slow  # its models take a while to make

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
LETTERS = "the a b c d aei ouo x y zebra , i"
LONG = " ".join("abcdefghijklmnopqrstuvwxyz" * 2)  # 52 tokens, which is more than any package here takes

Models = dict[str, tuple[Path, Path]]


def configure(folder: Path, file: str = "config.json", **changes: Any) -> Path:
    """The checkpoint with other entries in one of its JSON files."""
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | changes))
    return folder


def sentence(folder: Path) -> Path:
    """As sentence-transformers saves it: mean pooling, at most 20 tokens, and a prompt for queries."""
    stages = [("", "models.Transformer"), ("1_Pooling", "models.Pooling"), ("2_Normalize", "models.Normalize")]
    found = [
        {"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.{k}"} for i, (p, k) in enumerate(stages)
    ]
    (folder / "modules.json").write_text(json.dumps(found))
    configure(folder, "1_Pooling/config.json", word_embedding_dimension=24, pooling_mode_mean_tokens=True)
    configure(folder, "sentence_bert_config.json", max_seq_length=20, do_lower_case=False)
    return configure(folder, "config_sentence_transformers.json", prompts={"query": "q u ", "document": ""})


def spelled(folder: Path, kind: str) -> Path:
    """With a tokenizer of another kind than BERT's: byte-level BPE as RoBERTa's, or Unigram as XLM-RoBERTa's."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    if kind == "bpe":
        inner = tokenizers.Tokenizer(tokenizers.models.BPE())
        inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = tokenizers.decoders.ByteLevel()
        trainer: Any = tokenizers.trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
        )
    else:
        inner = tokenizers.Tokenizer(tokenizers.models.Unigram())
        inner.pre_tokenizer, inner.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
        trainer = tokenizers.trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>")
    inner.train_from_iterator(SENTENCES, trainer)
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    mask = tokenizers.AddedToken("<mask>", lstrip=True)
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), special, strict=False))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, mask_token=mask, cls_token="<s>", **names)
    fast.save_pretrained(folder)
    (folder / "vocab.txt").unlink()
    return folder


@pytest.fixture(scope="module")
def models(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Checkpoint and release by name."""

    def made(kind: str, seed: int, **changes: Any) -> Path:
        """With weights by which the answers depend on the text, and not on biases alone."""
        folder = checkpoint(kind, seed=seed, **changes)
        model = getattr(transformers, kind).from_pretrained(folder)
        torch.manual_seed(seed)
        pairs.loud(model).save_pretrained(folder)
        return folder

    entities = dict(enumerate(LABELS))
    roberta = {"vocab_size": 300, "max_position_embeddings": 66}
    several = {"num_labels": 4, "problem_type": "multi_label_classification"}
    of = {
        "embed": sentence(made("BertModel", 1)),
        "features": made("BertModel", 2),
        "sentiment": made("BertForSequenceClassification", 3, id2label={0: "NEGATIVE", 1: "POSITIVE"}),
        "topics": made("BertForSequenceClassification", 4, **several),
        "rerank": made("BertForSequenceClassification", 5, num_labels=1),
        "ner": made("BertForTokenClassification", 6, id2label=entities),
        "squad": made("BertForQuestionAnswering", 7),
        "mask": made("BertForMaskedLM", 8),
        "choice": made("BertForMultipleChoice", 9),
        "goes-on": made("BertLMHeadModel", 10, is_decoder=True, eos_token_id=3, pad_token_id=0),
        "follows": made("BertForNextSentencePrediction", 11),
        "replaced": made("ElectraForPreTraining", 12, embedding_size=24),
        "bpe": spelled(made("RobertaForMaskedLM", 13, **roberta), "bpe"),
        "unigram": spelled(made("XLMRobertaForTokenClassification", 14, id2label=entities, **roberta), "unigram"),
        "pair": pairs.save(pairs.build(pairs.bert(), pairs.decoder()), tmp_path_factory.mktemp("pair")),
        "foreign": pairs.save(
            pairs.build(pairs.bert(), pairs.decoder(vocab_size=50)), tmp_path_factory.mktemp("foreign")
        ),
    }
    out = tmp_path_factory.mktemp("released")
    return {name: (folder, release(folder, out / name)) for name, folder in of.items()}


@pytest.fixture(autouse=True)
def said() -> None:
    """Each test hears anew that there is no Core ML."""
    engine.say_evaluated.cache_clear()


def loaded(models: Models, name: str) -> Model:
    return load(models[name][1])


def original(models: Models, name: str, kind: str) -> tuple[Any, Any]:
    folder = models[name][0]
    return getattr(transformers, kind).from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(
        folder
    )


def pipe(models: Models, name: str, task: str) -> Any:
    return transformers.pipeline(task, model=str(models[name][0]), device="cpu")


def cosine(a: Any, b: Any) -> float:
    a, b = np.ravel(a).astype(float), np.ravel(b).astype(float)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def alike(got: Any, expected: Any, within: float = 5e-3) -> None:
    """The same structure, words, ids and places in the same order; scores near."""
    assert type(got) is type(expected), (got, expected)
    if isinstance(expected, list):
        assert len(got) == len(expected), (got, expected)
        for one, other in zip(got, expected, strict=True):
            alike(one, other, within)
    else:
        assert got.keys() == expected.keys()
        assert got["score"] == pytest.approx(float(expected["score"]), abs=within)
        assert {**got, "score": 0} == {**expected, "score": 0}


# ---- vectors


@torch.no_grad()
def reference(models: Models, texts: list[str]) -> Any:
    """As sentence-transformers: cut, mean over the tokens, length 1."""
    model, tokenizer = original(models, "embed", "BertModel")
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=20, return_tensors="pt")
    hidden, keep = model(**inputs).last_hidden_state, inputs["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * keep).sum(1) / keep.sum(1), dim=1).numpy()


def test_embeddings_are_the_original_s(models: Models) -> None:
    model, texts = loaded(models, "embed"), ["a", "the zebra , x", LETTERS, "", " ".join("abcdefghijklmnopq")]
    got, expected = model.embed(texts), reference(models, texts)
    assert (got.shape, got.dtype) == ((5, 24), np.float32)
    assert min(cosine(a, b) for a, b in zip(got, expected, strict=True)) >= 0.9999
    assert (expected[:-1] @ expected[1:].T).min() < 0.9  # so that it means something
    assert np.array_equal(model.embed(texts[1]), got[1])
    assert model.embed([]).shape == (0, 24)
    assert repr(model) == "<hft2ane.Model of tiny/embed, sentence-embedding, float16>"


def test_a_long_text_is_cut_where_sentence_transformers_cuts_it(models: Models) -> None:
    """The package would take 32 tokens, the original keeps 20."""
    model = loaded(models, "embed")
    assert (model.lengths, model.limit, model.max_seq_length) == ((16, 32), 20, 20)
    with pytest.warns(
        Truncated, match=r"2 of 3 texts .* 20 tokens that tiny/embed .*: 37 tokens were cut, 34 of one"
    ) as seen:
        got = model.embed([LONG, "a b", LONG[:41]])
    assert seen[0].filename == __file__
    assert min(cosine(a, b) for a, b in zip(got, reference(models, [LONG, "a b", LONG[:41]]), strict=True)) >= 0.9999


def test_encode_is_sentence_transformers_encode(models: Models) -> None:
    model, texts = loaded(models, "embed"), ["a b", "c", "x y z"]
    vectors = model.encode(
        texts, batch_size=2, show_progress_bar=True, normalize_embeddings=True, convert_to_numpy=True
    )
    assert isinstance(vectors, np.ndarray)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert min(cosine(a, b) for a, b in zip(vectors, reference(models, texts), strict=True)) >= 0.9999
    assert model.encode("a b").shape == (24,)
    assert [v.shape for v in model.encode(texts, convert_to_numpy=False)] == [(24,)] * 3
    assert np.allclose(model.similarity(vectors, vectors[0]), vectors @ vectors[:1].T, atol=1e-6)
    assert model.get_sentence_embedding_dimension() == 24
    by_place = model.encode(texts, None, None, 2, False, "sentence_embedding", "float32", True, False, "cpu", True)
    assert np.array_equal(by_place, vectors)
    short = model.encode(texts, truncate_dim=8, normalize_embeddings=True)
    assert np.allclose(short, answers.normalized(vectors[:, :8]), atol=1e-6)
    for option in ({"convert_to_tensor": True}, {"precision": "int8"}, {"output_value": "token_embeddings"}):
        with pytest.raises(BadInput, match=next(iter(option))):
            model.encode("a", **option)  # type: ignore[arg-type]


def test_vectors_that_cannot_be_compared_are_named(models: Models) -> None:
    model = loaded(models, "embed")
    with pytest.raises(BadInput, match=r"given are \(1, 24\) of float32 and \(2, 5\) of float64"):
        model.similarity(model.embed("a"), np.ones((2, 5)))
    with pytest.raises(BadInput, match="a in similarity.* is 'a', no array of numbers"):
        model.similarity("a", "b")  # type: ignore[arg-type]


def test_prompts_are_put_before_the_text(models: Models) -> None:
    model = loaded(models, "embed")
    by_hand = reference(models, ["q u a b"])[0]
    for got in (
        model.embed("a b", prompt_name="query"),
        model.encode("a b", prompt="q u "),
        model.encode_query("a b"),
    ):
        assert cosine(got, by_hand) >= 0.9999
    assert np.array_equal(model.encode_document("a b"), model.embed("a b"))
    with pytest.raises(BadInput, match="no prompt 'passage'; there are query, document"):
        model.embed("a", prompt_name="passage")


def test_features_are_the_last_hidden_state(models: Models) -> None:
    model = loaded(models, "features")
    got = model.features([LETTERS, "a"])
    expected = pipe(models, "features", "feature-extraction")([LETTERS, "a"])
    assert [each.shape[0] for each in got] == [len(each[0]) for each in expected]
    assert min(cosine(a, b) for a, b in zip(got, expected, strict=True)) >= 0.9999
    assert np.array_equal(model("a"), got[1])


# ---- tokens by other tokenizers than BERT's


@pytest.mark.parametrize(
    "text", ["The quick brown fox<mask> over the dog.", "Wie <mask> ist es?", "<mask><mask>", "日本 <mask>"]
)
def test_a_byte_level_tokenizer(models: Models, text: str) -> None:
    model, other = loaded(models, "bpe"), pipe(models, "bpe", "fill-mask")
    alike(model(text, top_k=2), other(text, top_k=2))
    assert model.mask == "<mask>"


@pytest.mark.parametrize("strategy", ["none", "simple"])
def test_a_unigram_tokenizer(models: Models, strategy: str) -> None:
    texts = ["The quick fox", "Grüße aus Köln", " a  b", "東京"]
    expected = pipe(models, "unigram", "token-classification")(texts, aggregation_strategy=strategy)
    assert len({each.get("entity", each.get("entity_group")) for text in expected for each in text}) > 1
    alike(loaded(models, "unigram")(texts, aggregation_strategy=strategy), expected)


@pytest.mark.parametrize("name", ["features", "bpe", "unigram"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_are_those_of_transformers(models: Models, name: str, side: str, tmp_path: Path) -> None:
    """Cut at either end, one text or two, as `AutoTokenizer` cuts them."""
    folder = configure(
        shutil.copytree(models[name][1], tmp_path / "copy"), "tokenizer_config.json", truncation_side=side
    )
    ours = Texts(folder / "tokenizer.json", read_settings(folder, False))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    texts: list[Text] = [LONG, "a", "", (LONG, "a b"), ("a b", LONG), (LONG, LONG), ("a", "b"), "Ä<mask>,"]
    for text, row in zip(texts, ours.rows(texts, 16), strict=True):
        several = (text,) if isinstance(text, str) else text
        expected = theirs(*several, truncation=True, max_length=16, return_token_type_ids=True)
        assert row.tokens.ids == expected["input_ids"]
        assert row.tokens.type_ids == expected["token_type_ids"]
        assert row.cut == len(theirs(*several)["input_ids"]) - len(row.tokens)


@pytest.mark.parametrize("name", ["features", "bpe", "unigram"])
@pytest.mark.parametrize("tidy", [True, False])
def test_ids_become_the_text_that_transformers_makes_of_them(
    models: Models, name: str, tidy: bool, tmp_path: Path
) -> None:
    folder = shutil.copytree(models[name][1], tmp_path / "copy")
    configure(folder, "tokenizer_config.json", clean_up_tokenization_spaces=tidy)
    ours = Texts(folder / "tokenizer.json", read_settings(folder, False))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("a , b .", "it 's a ? b !", "Grüße , 's"):
        ids = theirs(text)["input_ids"]
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


# ---- classification


@pytest.mark.parametrize("name", ["sentiment", "topics", "rerank"])
def test_classification_is_the_pipeline_s(models: Models, name: str) -> None:
    """Of one label among two, of each by itself, and of a single one."""
    model, other = loaded(models, name), pipe(models, name, "text-classification")
    texts = ["a b c", "zebra", LETTERS]
    alike(model("a b c"), other("a b c"))
    alike(model(texts), other(texts))
    alike(model(texts, top_k=None), other(texts, top_k=None))
    alike(model(texts, top_k=2), other(texts, top_k=2))
    alike(model({"text": "a b", "text_pair": "c d"}), other({"text": "a b", "text_pair": "c d"}))
    alike(model.classify(texts), other(texts, top_k=None))
    for function in ("softmax", "sigmoid", "none"):
        alike(
            model(texts, top_k=None, function_to_apply=function), other(texts, top_k=None, function_to_apply=function)
        )
    with pytest.raises(BadInput, match="function_to_apply='tanh' is not done here; there are softmax, sigmoid, none"):
        model.classify("a", function_to_apply="tanh")
    alike(model.classify(("a b", "c d"), top_k=1), [other({"text": "a b", "text_pair": "c d"})])
    assert model("a b c", truncation=True, padding=True, batch_size=8) == model("a b c")


def test_a_regression_keeps_its_values() -> None:
    logits = np.array([-3.0, 0.5], np.float32)
    assert np.array_equal(answers.probabilities(logits, "regression"), logits)


# ---- tokens


@pytest.mark.parametrize("strategy", ["none", "simple"])
def test_entities_are_the_pipeline_s(models: Models, strategy: str) -> None:
    model, other = loaded(models, "ner"), pipe(models, "ner", "token-classification")
    texts = [LETTERS, "aei", "zebra zebra", "a b c d e f g"]
    expected = other(texts, aggregation_strategy=strategy)
    assert len({each.get("entity", each.get("entity_group")) for text in expected for each in text}) > 1
    alike(model(texts, aggregation_strategy=strategy), expected)
    alike(model(texts[0], aggregation_strategy=strategy), expected[0])
    alike(model(texts), other(texts))


def test_entities_have_their_places_in_the_text(models: Models) -> None:
    text = "the a b c d x y zebra o i"
    found = loaded(models, "ner").tokens(text)
    assert found
    for entity in found:
        assert entity["entity_group"] in ("PER", "LOC")
        assert text[entity["start"] : entity["end"]] == entity["word"]
    with pytest.raises(BadInput, match="aggregation_strategy='first' is not done here; there are simple and none"):
        loaded(models, "ner").tokens("a", aggregation_strategy="first")  # type: ignore[call-overload]


# ---- answers


def pieces(tokenizer: Any, question: str, context: str) -> Any:
    """Windows of 32 tokens that overlap by as much as our own do, from transformers' tokenizer."""
    least = len(tokenizer(question)["input_ids"]) + 2
    return tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=32,
        stride=max(0, min(16, 32 - least - 2)),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding="max_length",
        return_tensors="pt",
    )


@torch.no_grad()
def spans(models: Models, question: str, context: str) -> list[tuple[float, int, int]]:
    """(score, first letter, last letter) of every answer of at most 15 tokens, of all windows, by plain loops."""
    model, tokenizer = original(models, "squad", "BertForQuestionAnswering")
    found, windows = [], pieces(tokenizer, question, context)
    for n in range(len(windows["input_ids"])):
        row = {key: windows[key][n : n + 1] for key in ("input_ids", "attention_mask", "token_type_ids")}
        out, inside = model(**row), [sequence == 1 for sequence in windows.sequence_ids(n)]
        shut = torch.tensor([not (each or i == 0) for i, each in enumerate(inside)])
        start, end = (out[key][0].masked_fill(shut, -1e4).softmax(0) for key in ("start_logits", "end_logits"))
        for i in range(32):
            for j in range(i, min(i + 15, 32)):
                if inside[i] and inside[j]:
                    places = windows["offset_mapping"][n]
                    found.append((float(start[i] * end[j]), int(places[i][0]), int(places[j][1])))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("context", ["a b c d e f g", LONG, LETTERS + ", " + LONG])
def test_the_answer_is_that_of_the_whole_context(models: Models, context: str) -> None:
    model = loaded(models, "squad")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is cut
        got = model.answer("x y", context)
    score, start, end = spans(models, "x y", context)[0]
    assert got["score"] == pytest.approx(score, abs=5e-3)
    assert got["answer"] == context[got["start"] : got["end"]]
    assert got["start"] <= start < end <= got["end"]
    assert " " not in context[got["start"] : start] + context[end : got["end"]]  # only made whole words of
    assert model({"question": "x y", "context": context}) == got
    assert model.answer("x y", context, top_k=3)[0] == got


def test_there_may_be_no_answer(models: Models) -> None:
    model = loaded(models, "squad")
    found = model.answer("x", "a b", top_k=9, handle_impossible_answer=True)
    assert [each["answer"] for each in found].count("") == 1
    assert found == sorted(found, key=lambda each: -each["score"])
    with pytest.raises(BadInput, match="the question has 54 tokens, the model takes 32 with the context"):
        model.answer(LONG, "a b")
    with pytest.raises(BadInput, match="the context has no words"):
        model.answer("x", " ")


# ---- masks


def test_words_for_a_mask_are_the_pipeline_s(models: Models) -> None:
    model, other = loaded(models, "mask"), pipe(models, "mask", "fill-mask")
    for text in ("a [MASK] c", "zebra , [MASK]", "[MASK] b [MASK]", ["a [MASK]", "b [MASK]"], ["a [MASK]"]):
        alike(model(text, top_k=3), other(text, top_k=3))
    alike(model.fill_mask("a [MASK] c"), other("a [MASK] c"))
    assert model.mask == "[MASK]"
    with pytest.raises(BadInput, match=r"no \[MASK\] in 'a b'"):
        model.fill_mask("a b")


# ---- rerankers and choices


@torch.no_grad()
def scores(models: Models, query: str, documents: list[str]) -> Any:
    model, tokenizer = original(models, "rerank", "BertForSequenceClassification")
    inputs = tokenizer(
        [query] * len(documents), documents, padding=True, truncation=True, max_length=32, return_tensors="pt"
    )
    return model(**inputs).logits[:, 0].numpy()


def test_documents_are_ranked_as_by_a_cross_encoder(models: Models, tmp_path: Path) -> None:
    model, documents = loaded(models, "rerank"), ["a", "b c d", "zebra", "x y", LETTERS, LONG]
    logits = scores(models, "e f", documents)
    with pytest.warns(Truncated, match="1 of 6 texts is longer"):
        found = model.rank("e f", documents)
    assert [each["corpus_id"] for each in found] == np.argsort(-logits).tolist()
    assert [each["score"] for each in found] == pytest.approx(answers.sigmoid(np.sort(logits)[::-1]).tolist(), abs=5e-3)
    best = model.rank("e f", documents[:5], top_k=1, return_documents=True)
    first = next(each for each in found if each["corpus_id"] < 5)
    assert best == [{**first, "text": documents[first["corpus_id"]]}]


def test_a_cross_encoder_may_ask_for_plain_scores(models: Models, tmp_path: Path) -> None:
    folder = shutil.copytree(models["rerank"][0], tmp_path / "checkpoint")
    configure(folder, sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"})
    got = load(release(folder, tmp_path / "plain", lengths=(16,))).rank("e f", ["a b", "c"])
    assert [each["score"] for each in got] == pytest.approx(
        sorted(scores(models, "e f", ["a b", "c"]), reverse=True), rel=1e-2
    )


def test_scores_of_pairs_are_those_of_a_cross_encoder(models: Models) -> None:
    """One score a pair; of several labels the plain values, or a softmax of them."""
    model = loaded(models, "rerank")
    expected = answers.sigmoid(scores(models, "e f", ["a b", "c"]))
    got = model.predict([("e f", "a b"), ["e f", "c"]], batch_size=1, show_progress_bar=False)
    assert (got.shape, got.dtype) == ((2,), np.float32)
    assert got == pytest.approx(expected, abs=5e-3)
    assert model.predict(("e f", "c")) == got[1] == model.predict(["e f", "c"])
    assert model.predict([]).shape == (0,)
    network, tokenizer = original(models, "topics", "BertForSequenceClassification")
    with torch.no_grad():
        logits = network(**tokenizer("e f", "a b", return_tensors="pt")).logits.numpy()
    several = loaded(models, "topics")
    assert several.predict([("e f", "a b")]) == pytest.approx(logits, abs=2e-2)
    assert several.predict([("e f", "a b")], apply_softmax=True) == pytest.approx(answers.softmax(logits), abs=5e-3)


@torch.no_grad()
def test_choices_are_ranked(models: Models) -> None:
    network, tokenizer = original(models, "choice", "BertForMultipleChoice")
    choices = ["a", "b c", "d", "zebra x"]
    inputs = tokenizer(["e f"] * 4, choices, padding=True, return_tensors="pt")
    expected = network(**{key: value[None] for key, value in inputs.items()}).logits[0].softmax(0).numpy()
    found = loaded(models, "choice").rank("e f", choices)
    assert [each["corpus_id"] for each in found] == np.argsort(-expected).tolist()
    assert [each["score"] for each in found] == pytest.approx(np.sort(expected)[::-1].tolist(), abs=5e-3)
    with pytest.raises(BadInput, match="chooses among 4 texts, given are 2"):
        loaded(models, "choice").rank("e", ["a", "b"])


# ---- texts that are written


@torch.no_grad()
@pytest.mark.parametrize("most", [None, 6])
def test_a_pair_writes_what_transformers_writes(models: Models, most: int | None) -> None:
    network, tokenizer = original(models, "pair", "EncoderDecoderModel")
    model = loaded(models, "pair")
    for text in ("a b c", "zebra x y"):
        inputs = tokenizer(text, return_tensors="pt")
        ids = network.generate(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=most or 31, do_sample=False
        )[0]
        expected = tokenizer.decode(ids, skip_special_tokens=True)
        assert model.write(text, max_new_tokens=most) == expected
        assert model(text, max_new_tokens=most) == [{"generated_text": expected}]


@torch.no_grad()
def test_a_text_is_continued(models: Models) -> None:
    network, tokenizer = original(models, "goes-on", "BertLMHeadModel")
    ids = tokenizer("a b c", add_special_tokens=False, return_tensors="pt")["input_ids"]
    expected = network.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)[0]
    assert loaded(models, "goes-on").write("a b c", max_new_tokens=5) == tokenizer.decode(
        expected, skip_special_tokens=True
    )


# ---- what is underneath, and what is said


def test_arrays_go_in_by_name_and_come_out_by_name(models: Models) -> None:
    model = loaded(models, "sentiment")
    inputs = model.tokenize("a b c")
    assert inputs.keys() == {"input_ids", "attention_mask", "token_type_ids"}
    assert {(array.shape, array.dtype) for array in inputs.values()} == {((1, 16), np.dtype("int32"))}
    (logits,) = model(**inputs).values()
    assert (logits.shape, logits.dtype) == ((1, 2), np.float32)
    longer = {name: np.pad(array, ((0, 0), (0, 16))).tolist() for name, array in inputs.items()}
    assert np.allclose(model(**longer)["logits"], logits, atol=2e-2)
    with pytest.raises(
        BadInput, match=r"takes input_ids \(1, 16\), .* or input_ids \(1, 32\).*given is input_ids \(1, 5\)"
    ):
        model(input_ids=np.zeros((1, 5), int))
    with pytest.raises(BadInput, match="input_ids is float64, must be int32"):
        model(**{name: array.astype(float) for name, array in inputs.items()})


def test_the_least_length_that_fits_is_taken(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    model, called = loaded(models, "sentiment"), []
    run = engine.Engine.__call__
    monkeypatch.setattr(engine.Engine, "__call__", lambda self, f, inputs: (called.append(f), run(self, f, inputs))[1])
    model.classify([" ".join("a" * n) for n in (14, 15, 1, 30)])
    assert called == ["tokens_16", "tokens_32", "tokens_16", "tokens_32"]


@pytest.mark.parametrize(
    ("name", "method", "instead"),
    [
        ("sentiment", "embed", "so there is no embed: call model.classify"),
        ("ner", "classify", "tiny/ner is for token-classification, so there is no classify: call model.tokens"),
        ("embed", "tokens", "call model.embed"),
        ("mask", "embed", "call model.fill_mask"),
        ("squad", "fill_mask", "call model.answer"),
        ("features", "embed", "call model.features"),
        ("choice", "classify", "call model.rank"),
        ("pair", "classify", "call model.write"),
    ],
)
def test_an_error_names_the_method_that_fits(models: Models, name: str, method: str, instead: str) -> None:
    with pytest.raises(BadInput, match=instead):
        getattr(loaded(models, name), method)("a")


@torch.no_grad()
def test_whether_a_sentence_follows(models: Models) -> None:
    network, tokenizer = original(models, "follows", "BertForNextSentencePrediction")
    expected = network(**tokenizer("a b", "c d", return_tensors="pt")).logits[0].softmax(0).tolist()
    found = {each["label"]: each["score"] for each in loaded(models, "follows").classify(("a b", "c d"))}
    assert found == {
        "follows": pytest.approx(expected[0], abs=5e-3),
        "does not follow": pytest.approx(expected[1], abs=5e-3),
    }


@torch.no_grad()
def test_words_that_were_replaced(models: Models) -> None:
    network, tokenizer = original(models, "replaced", "ElectraForPreTraining")
    text = "a b c d e f g h"
    logits = network(**tokenizer(text, return_tensors="pt")).logits[0, 1:-1]
    found = loaded(models, "replaced").tokens(text, aggregation_strategy="none")
    assert [each["word"] for each in found] == [word for word, n in zip(text.split(), logits, strict=True) if n > 0]
    assert found
    assert [each["score"] for each in found] == pytest.approx(logits[logits > 0].sigmoid().tolist(), abs=5e-3)


def test_a_pair_with_two_vocabularies_writes_no_text(models: Models) -> None:
    with pytest.raises(BadInput, match="writes with a vocabulary of its own, for which the release has no tokenizer"):
        loaded(models, "foreign").write("a b")


def test_several_labels_are_no_reranker(models: Models) -> None:
    with pytest.raises(BadInput, match="has 2 labels, so it is no reranker: call model.classify"):
        loaded(models, "sentiment").rank("a", ["b"])


@pytest.mark.parametrize("texts", [["a", None], ["a", 1.5], [("a", "b", "c")], ["a", ("b", None)]])
def test_what_is_no_text_is_named(models: Models, texts: Any) -> None:
    with pytest.raises(BadInput, match="^text [01] is .*: it must be a str, or a tuple of two"):
        loaded(models, "sentiment").classify(texts)


@pytest.mark.parametrize(
    ("name", "ask", "says"),
    [
        ("embed", lambda m: m.embed(None), "^None is no text: give a str, or a list"),
        ("embed", lambda m: m.embed(b"a"), "^b'a' is no text"),
        ("embed", lambda m: m.embed(m.tokenize("a")), r"arrays go in by name, as model\(\*\*inputs\)"),
        ("embed", lambda m: m(m.tokenize("a")), r"arrays go in by name: model\(\*\*inputs\)"),
        ("embed", lambda m: m.embed(["a", "b\ud800"]), "^text 1 has half a character"),
        ("embed", lambda m: m.tokenize(["a", "b"]), r"^text 0 is \['a', 'b'\]: it must be a str, or a tuple of two"),
        ("rerank", lambda m: m.rank("a", "b c"), "^'b c' is no text: .* a list"),
        ("rerank", lambda m: m.rank(None, ["b"]), "^text 0 is None"),
        ("rerank", lambda m: m.rank("a", ["b"], top_k=0), "top_k=0: it must be 1 or more"),
        ("sentiment", lambda m: m.classify("a", top_k=-1), "top_k=-1"),
        ("mask", lambda m: m.fill_mask(f"a {m.mask}", top_k=0), "top_k=0"),
        ("choice", lambda m: m.rank("a", ["b", None, "c", "d"]), "^text 1 is None"),
        ("squad", lambda m: m.answer("a", None), "^text 1 is None"),
        ("squad", lambda m: m("a"), "a question goes in with its context"),
        ("squad", lambda m: m({"question": "a"}), "a question goes in with its context"),
        ("goes-on", lambda m: m.write(None), "^text 0 is None"),
    ],
)
def test_what_would_be_taken_for_something_else_is_refused(models: Models, name: str, ask: Any, says: str) -> None:
    """A str has letters, a dict has keys: neither is a list of texts."""
    with pytest.raises(BadInput, match=says):
        ask(loaded(models, name))


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (np.full((1, 16), 70, np.int32), "input_ids has 70, and tiny/sentiment knows 0 … 35"),
        (np.full((1, 16), -1, np.int32), "input_ids has -1, and"),
        (np.full((1, 16), 2**32), "input_ids has numbers that int32 does not hold"),
        ([[1, 2], [3]], "input input_ids is no array, its rows have different lengths"),
        (None, "input input_ids is None, no array of numbers"),
        ("a b", "input input_ids is 'a b', no array of numbers"),
    ],
)
def test_ids_that_there_are_not_are_refused(models: Models, ids: Any, says: str) -> None:
    """A program takes −1 for the last of a table, and int32 would make 0 of 2³²."""
    model = loaded(models, "sentiment")
    with pytest.raises(BadInput, match=says):
        model(**{**model.tokenize("a"), "input_ids": ids})


def test_a_question_may_go_in_by_name(models: Models) -> None:
    """As the pipeline took it."""
    model = loaded(models, "squad")
    assert model(question="e f", context="a b c d") == model({"question": "e f", "context": "a b c d"})
    assert model(question="e f", context="a b c d", top_k=2) == model.answer("e f", "a b c d", top_k=2)


def test_a_tuple_is_a_pair_where_there_are_pairs(models: Models) -> None:
    assert loaded(models, "embed").embed(("a", "b")).shape == (2, 24)
    with pytest.raises(BadInput, match="^text 0 is .*: it must be a str$"):
        loaded(models, "embed").embed([("a", "b")])
    with pytest.raises(BadInput, match="text 1 is .*must be a str"):
        loaded(models, "rerank").rank("a", ["b", None])  # type: ignore[list-item]


def test_it_is_said_once_that_there_is_no_core_ml(models: Models, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hft2ane"):
        loaded(models, "sentiment")
        loaded(models, "ner")
    assert len([line for line in caplog.messages if "There is no Core ML on this machine" in line]) == 1


def test_without_tokenizer_json_there_are_only_arrays(models: Models, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(models["sentiment"][1], folder)
    inputs = loaded(models, "sentiment").tokenize("a b")
    (folder / "tokenizer.json").unlink()
    model = load(folder)
    assert model(**inputs)["logits"].shape == (1, 2)
    with pytest.raises(BadInput, match="/bare/tokenizer.json is not there: make one with .*save_pretrained"):
        model.classify("a b")
    given = load(folder, tokenizer=models["sentiment"][1] / "tokenizer.json")
    assert given.classify("a b") == loaded(models, "sentiment").classify("a b")
    with pytest.raises(BadInput, match="no such file"):
        load(folder, tokenizer=tmp_path / "none.json")


# ---- a trained model


@pytest.mark.weights
@torch.no_grad()
def test_the_real_minilm(tmp_path: Path) -> None:
    """Texts in several languages, of both lengths, beside transformers with mean pooling and length 1."""
    source = obtain(MODELS[0])
    model = load(release(source, tmp_path / "minilm", lengths=(64, 128)))
    texts = [*SENTENCES, " ".join(SENTENCES), "How do I reset my password?", "  spaces around  "]
    with pytest.warns(Truncated, match=r"1 of .* longer than the 128 tokens that tiny/minilm takes here"):
        got = model.encode(texts, normalize_embeddings=True)
    network, tokenizer = (
        getattr(transformers, kind).from_pretrained(source) for kind in ("AutoModel", "AutoTokenizer")
    )
    for text, vector in zip(texts, got, strict=True):
        inputs = tokenizer(text, truncation=True, max_length=128, return_tensors="pt")
        expected = network.eval()(**inputs).last_hidden_state[0].mean(0).numpy()
        assert cosine(vector, expected) >= 0.9999
    near = model.similarity(*model.embed(["I cannot log in any more.", "How do I reset my password?"])[:, None])
    far = model.similarity(*model.embed(["The soup needs salt.", "How do I reset my password?"])[:, None])
    assert near[0, 0] > 0.3 > far[0, 0]
