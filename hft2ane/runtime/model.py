"""A published model with the methods of its task: texts in, plain numpy and answers out.

    model = load("org/all-MiniLM-L6-v2-ane")
    vectors = model.embed(["How do I reset my password?", "I cannot log in any more."])

Texts are cut where they are longer than the model takes, with a warning that says by how much.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from hft2ane.errors import BadInput
from hft2ane.runtime import answers, writing
from hft2ane.runtime.answers import Answer, Array
from hft2ane.runtime.contract import Generation
from hft2ane.runtime.engine import Engine, fitting, log
from hft2ane.runtime.fetch import Release
from hft2ane.runtime.running import BATCH, Running, array, listed
from hft2ane.runtime.texts import Row, Text
from hft2ane.runtime.writing import STATES, STATES_MASK

ANSWER = 15  # tokens of an answer, as transformers' pipeline had it

# The method for each task: what an error names.
METHODS = {
    "sentence-embedding": "embed",
    "feature-extraction": "features",
    "fill-mask": "fill_mask",
    "text-classification": "classify",
    "next-sentence-prediction": "classify",
    "token-classification": "tokens",
    "replaced-token-detection": "tokens",
    "question-answering": "answer",
    "multiple-choice": "rank",
    "text-generation": "write",
    "text2text-generation": "write",
}
# Labels of tasks whose releases name none.
LABELS = {
    "next-sentence-prediction": ("follows", "does not follow"),
    "replaced-token-detection": (answers.OUTSIDE, "replaced"),
}


class Model:
    """What `load` gives. `task`, `source` (the original), `variant`, `commit` (None for a folder), `labels`, `lengths`
    (in tokens, of the package's functions) and `limit` (tokens that are kept of a text) say what it is."""

    def __init__(self, release: Release, tokenizer: Path | None = None) -> None:
        contract = release.contract
        self._on = Running(release, tokenizer)
        self.task, self.source, self.commit = contract.task, contract.source.id, release.commit
        self.variant, self.labels = contract.main.variant, contract.labels or LABELS.get(contract.task, ())
        self.lengths, self.limit = tuple(sorted(contract.main.lengths)), self._on.limit
        if contract.retired:
            log.warning("%s gets no new versions: %s", self.source, contract.retired)

    def __repr__(self) -> str:
        at = f" at {self.commit[:12]}" if self.commit else ""
        return f"<hft2ane.Model of {self.source}, {self.task or 'task unknown'}, {self.variant}{at}>"

    # ---- texts as vectors

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        normalize: bool = False,
        progress: bool | None = None,
    ) -> Array:
        """A vector a text, float32: (d) of one text, (n, d) of several. `prompt`, or one of the model's own by
        `prompt_name`, is put before each. `progress`: None shows a bar for many texts in a terminal."""
        self._must("embed", "sentence-embedding")
        return self._embed(texts, self._prompt(prompt_name, prompt), normalize, BATCH, progress)

    def encode(
        self,
        sentences: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = BATCH,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> Array | list[Array]:
        """`embed` with the names, the order and the defaults of `SentenceTransformer.encode`, always as numpy.

        `batch_size`: texts that are tokenised at a time. `device` changes nothing: what runs where is Core ML's.
        Without `convert_to_numpy`, several texts give a list of vectors."""
        self._must("encode", "sentence-embedding")
        if output_value != "sentence_embedding":
            raise BadInput(f"output_value={output_value!r} is not done here: model.features(texts), or model(**inputs)")
        if precision != "float32":
            raise BadInput(f"precision={precision!r} is not done here, vectors are float32: make them smaller yourself")
        if convert_to_tensor:
            raise BadInput("convert_to_tensor: there are no tensors here: torch.from_numpy(model.encode(texts))")
        text = self._prompt(prompt_name, prompt)
        found = self._embed(sentences, text, normalize_embeddings, batch_size, show_progress_bar, truncate_dim)
        return found if convert_to_numpy or found.ndim == 1 else list(found)

    def encode_query(self, sentences: str | Iterable[str], **options: Any) -> Array | list[Array]:
        """`encode` with the model's prompt for queries, if it has one."""
        return self.encode(sentences, **{"prompt_name": self._first_prompt("query"), **options})

    def encode_document(self, sentences: str | Iterable[str], **options: Any) -> Array | list[Array]:
        """`encode` with the model's prompt for documents, if it has one."""
        return self.encode(sentences, **{"prompt_name": self._first_prompt("document", "passage", "corpus"), **options})

    def similarity(self, a: Array, b: Array) -> Array:
        """Of n vectors with m: (n, m), by the model's own measure, which mostly is the cosine."""
        self._must("similarity", "sentence-embedding")
        return answers.similarity(
            np.atleast_2d(array("a in similarity(a, b)", a)),
            np.atleast_2d(array("b in similarity(a, b)", b)),
            self._on.settings.similarity,
        )

    def get_sentence_embedding_dimension(self) -> int:
        """Numbers in a vector."""
        self._must("get_sentence_embedding_dimension", "sentence-embedding")
        return next(p.shape[-1] for p in self._on.main.functions[0].outputs if p.name == "sentence_embedding")

    @property
    def max_seq_length(self) -> int:
        """`limit`, by sentence-transformers' name."""
        return self.limit

    # The overlap: a str is also an iterable of str.
    @overload
    def features(  # type: ignore[overload-overlap]
        self, texts: str, *, progress: bool | None = None
    ) -> Array: ...
    @overload
    def features(self, texts: Iterable[str], *, progress: bool | None = None) -> list[Array]: ...
    def features(self, texts: str | Iterable[str], *, progress: bool | None = None) -> Array | list[Array]:
        """A vector for each token, those that open and close a text among them: (tokens, channels) a text."""
        self._must("features", "feature-extraction", "sentence-embedding")
        output = "token_embeddings" if self.task == "sentence-embedding" else "last_hidden_state"
        found: Array | list[Array] = self._each(texts, lambda row, _, out: out[output][0, : len(row.tokens)], progress)
        return found

    # ---- texts as answers

    @overload
    def classify(  # type: ignore[overload-overlap]
        self,
        texts: Text,
        *,
        top_k: int | None = None,
        function_to_apply: str | None = None,
        progress: bool | None = None,
    ) -> list[Answer]: ...
    @overload
    def classify(
        self,
        texts: Iterable[Text],
        *,
        top_k: int | None = None,
        function_to_apply: str | None = None,
        progress: bool | None = None,
    ) -> list[list[Answer]]: ...
    def classify(
        self,
        texts: Text | Iterable[Text],
        *,
        top_k: int | None = None,
        function_to_apply: str | None = None,
        progress: bool | None = None,
    ) -> list[Answer] | list[list[Answer]]:
        """`[{"label": …, "score": …}, …]` a text, the best first, `top_k` of them. A text may be a pair, as a tuple.

        Scores are probabilities: of one label among all, or of each by itself in a model of several labels or of one;
        of a regression they are its values. `function_to_apply`: `softmax`, `sigmoid` or `none` instead of that."""
        self._must("classify", "text-classification", "next-sentence-prediction")
        positive(top_k)

        def answer(_: Row, __: Text, outputs: Mapping[str, Array]) -> list[Answer]:
            scores = answers.probabilities(outputs["logits"][0], self._on.contract.problem, function_to_apply)
            return answers.labelled(scores, self.labels)[:top_k]

        answered: list[Answer] | list[list[Answer]] = self._each(texts, answer, progress, pairs=True)
        return answered

    @overload
    def tokens(  # type: ignore[overload-overlap]
        self, texts: str, *, aggregation_strategy: Literal["simple", "none"] = "simple", progress: bool | None = None
    ) -> list[Answer]: ...
    @overload
    def tokens(
        self,
        texts: Iterable[str],
        *,
        aggregation_strategy: Literal["simple", "none"] = "simple",
        progress: bool | None = None,
    ) -> list[list[Answer]]: ...
    def tokens(
        self,
        texts: str | Iterable[str],
        *,
        aggregation_strategy: Literal["simple", "none"] = "simple",
        progress: bool | None = None,
    ) -> list[Answer] | list[list[Answer]]:
        """The entities of each text: `entity_group`, `score`, `word`, and where it is, `text[start:end]`.

        `aggregation_strategy="none"`: a row a token instead, with `entity` and `index`."""
        self._must("tokens", "token-classification", "replaced-token-detection")
        if aggregation_strategy not in ("simple", "none"):
            raise BadInput(f"aggregation_strategy={aggregation_strategy!r} is not done here; there are simple and none")

        def answer(row: Row, text: Text, outputs: Mapping[str, Array]) -> list[Answer]:
            logits = outputs["logits"][0, : len(row.tokens)]
            if logits.ndim == 1:  # a token is replaced above 0
                logits = np.stack([np.zeros_like(logits), logits], -1)
            scores, read = answers.softmax(logits), self._on.texts
            found = answers.entities(scores, self.labels, row.tokens, str(text), self._on.settings.unknown)
            if aggregation_strategy == "simple":
                found = answers.grouped(found, read.join)
            return [each for each in found if answers.OUTSIDE not in (each.get("entity"), each.get("entity_group"))]

        answered: list[Answer] | list[list[Answer]] = self._each(texts, answer, progress)
        return answered

    @overload
    def fill_mask(self, texts: str, *, top_k: int = 5, progress: bool | None = None) -> list[Any]: ...
    @overload
    def fill_mask(self, texts: Iterable[str], *, top_k: int = 5, progress: bool | None = None) -> list[list[Any]]: ...
    def fill_mask(self, texts: str | Iterable[str], *, top_k: int = 5, progress: bool | None = None) -> list[Any]:
        """The `top_k` best words for the mask in each text: `score`, `token` (its id), `token_str` and `sequence`. A
        text with several masks gives a list for each of them. What a mask looks like is `model.mask`."""
        self._must("fill_mask", "fill-mask")
        positive(top_k)
        id = self._on.texts.inner.token_to_id(self.mask)

        def answer(row: Row, text: Text, outputs: Mapping[str, Array]) -> list[Any]:
            ids = list(row.tokens.ids)
            places = [i for i, token in enumerate(ids) if token == id]
            if not places:
                lost = f"; the first {self.limit} tokens are kept" if row.cut else ""
                raise BadInput(
                    f"there is no {self.mask} in {str(text)[:60]!r}: put it where a word is to be found{lost}"
                )
            found = []
            for place in places:
                best = answers.masked(answers.softmax(outputs["logits"][0, place]), top_k)
                found.append([self._filled(ids, place, token, score, len(places) == 1) for token, score in best])
            return found[0] if len(found) == 1 else found

        answered: list[Any] = self._each(texts, answer, progress)
        return answered

    @property
    def mask(self) -> str:
        """What stands for a word that is to be found."""
        return self._on.settings.mask

    def _filled(self, ids: list[int], place: int, token: int, score: float, alone: bool) -> Answer:
        whole = [*ids[:place], token, *ids[place + 1 :]]
        return {
            "score": score,
            "token": token,
            "token_str": self._on.texts.decode([token], skip_special_tokens=False),
            "sequence": self._on.texts.decode(whole, skip_special_tokens=alone),  # the other masks stay
        }

    @overload
    def answer(
        self, question: str, context: str, *, top_k: None = None, handle_impossible_answer: bool = False
    ) -> Answer: ...
    @overload
    def answer(
        self, question: str, context: str, *, top_k: int, handle_impossible_answer: bool = False
    ) -> list[Answer]: ...
    def answer(
        self, question: str, context: str, *, top_k: int | None = None, handle_impossible_answer: bool = False
    ) -> Answer | list[Answer]:
        """`{"score": …, "start": …, "end": …, "answer": context[start:end]}`; a list with `top_k`.

        A context that is longer than the model takes is read in pieces that overlap, so nothing is cut.
        `handle_impossible_answer`: that there is none is an answer too, ""."""
        self._must("answer", "question-answering")
        positive(top_k)
        question, context = listed([question, context])
        found: list[Answer] = []
        least = 1.0
        for window in self._on.texts.windows(question, context, self.limit):
            outputs = self._on.run(*self._on.padded(window))
            inside = np.array([sequence == 1 for sequence in window.sequence_ids])
            start, end = (outputs[name][0, : len(window)] for name in ("start_logits", "end_logits"))
            best, none = answers.spans(start, end, inside, ANSWER)
            least = min(least, none)
            for score, first, last in best[: top_k or 1]:
                begin, finish = _words(window, first, last)
                found.append({"score": score, "start": begin, "end": finish, "answer": context[begin:finish]})
        if handle_impossible_answer:
            found.append({"score": least, "start": 0, "end": 0, "answer": ""})
        if not found:
            raise BadInput("the context has no words, so there is no answer in it")
        found.sort(key=lambda each: each["score"], reverse=True)
        return found[0] if top_k is None else found[:top_k]

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_k: int | None = None,
        return_documents: bool = False,
        progress: bool | None = None,
    ) -> list[Answer]:
        """`[{"corpus_id": …, "score": …}, …]`, the best document first, as `CrossEncoder.rank` has it; of a
        multiple-choice model the choices, with probabilities. `return_documents`: with `text`."""
        self._must("rank", "text-classification", "multiple-choice")
        positive(top_k)
        (query,), found = listed([query]), listed(documents)
        if self.task == "multiple-choice":
            scores = self._choose(query, found)
        elif (labels := self._on.main.functions[0].outputs[0].shape[-1]) != 1:
            raise BadInput(f"{self.source} has {labels} labels, so it is no reranker: call model.classify(texts)")
        else:
            activation = self._on.settings.activation
            scores = self._on.each(
                [(query, document) for document in found],
                lambda _, __, outputs: float(answers.relevance(outputs["logits"][0], activation)[0]),
                progress,
            )
        return answers.ranked(scores, found, return_documents)[:top_k]

    def predict(
        self,
        sentences: Any,
        batch_size: int = BATCH,
        show_progress_bar: bool | None = None,
        apply_softmax: bool = False,
    ) -> Array:
        """As `CrossEncoder.predict`: of pairs of texts a score each, (n), or of a model of several labels (n, labels);
        of one pair its own."""
        self._must("predict", "text-classification")
        one = isinstance(sentences, tuple | list) and len(sentences) == 2 and all(isinstance(s, str) for s in sentences)
        asked = [tuple(each) if isinstance(each, list) else each for each in ([sentences] if one else sentences)]

        def answer(_: Row, __: Text, outputs: Mapping[str, Array]) -> Array:
            scores = answers.relevance(outputs["logits"][0], self._on.settings.activation)
            return answers.softmax(scores) if apply_softmax and scores.size > 1 else scores

        found = self._on.each(listed(asked, pairs=True), answer, show_progress_bar, batch_size)
        labels = self._on.main.functions[0].outputs[0].shape[-1]
        scores = np.array(found, np.float32).reshape(len(found), *([labels] if labels > 1 else []))
        return np.asarray(scores[0] if one else scores)

    def _choose(self, question: str, choices: list[str]) -> list[float]:
        wanted = self._on.main.functions[0].inputs[0].shape[1]
        if len(choices) != wanted:
            raise BadInput(f"the model chooses among {wanted} texts, given are {len(choices)}")
        rows = self._on.texts.rows([(question, choice) for choice in choices], self.limit)
        function = self._on.function(max(len(row.tokens) for row in rows))
        each = [self._on.arrays(row.tokens, function) for row in rows]
        inputs = {name: np.stack([arrays[name] for arrays in each], 1) for name in each[0]}
        self._on.warn([row.cut for row in rows])
        return [float(score) for score in answers.softmax(self._on.run(function, inputs)["logits"][0])]

    def write(self, text: str, *, max_new_tokens: int | None = None) -> str:
        """The text that is written, always with the best token next: another one (summary, translation), or the text
        given and how it goes on. At most `max_new_tokens`, and what the packages have room for."""
        self._must("write", "text-generation", "text2text-generation")
        on, how, decoder = self._on, *self._writer()
        longest = max(decoder.package.lengths)
        most = longest if max_new_tokens is None else max_new_tokens
        read: dict[str, Array] = {}
        if on.main.part == "encoder":
            ((row, _),) = on.rows(listed([text]))
            on.warn([row.cut])
            begun = [how.start or 0]
            length = min(n for n in decoder.package.lengths if n >= min(longest, max(len(row.tokens), 1 + most)))
            encoder = next(f for f in on.main.functions if f.length == length)
            inputs = on.arrays(row.tokens, encoder)
            read = {STATES: on.run(encoder, inputs)["last_hidden_state"], STATES_MASK: inputs["attention_mask"]}
        else:
            ids = on.texts.ids(*listed([text]))
            on.warn([max(0, len(ids) - longest)])
            begun = ids[:longest]
            length = min(n for n in decoder.package.lengths if n >= min(longest, len(begun) + most))
        function = next(f for f in decoder.package.functions if f.length == length)

        def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
            return decoder(function.name, fitting(function, inputs) or inputs)

        written = writing.write(run, begun, length, most, how.end, how.pad, read)
        return on.texts.decode(written if read else [*begun, *written])

    def _writer(self) -> tuple[Generation, Engine]:
        """How its texts begin and end, and what writes them. BadInput: it cannot from a text alone."""
        how, decoder = self._on.contract.generation, next(e for e in self._on.engines if e.package.part != "encoder")
        reads = any(port.name == STATES for port in decoder.package.functions[0].inputs)
        if how is None or (reads and self._on.main.part != "encoder"):
            raise BadInput(f"{self.source} writes from an encoder's states, which you must give: call model(**inputs)")
        if reads and self._on.settings.own_vocabulary:
            raise BadInput(
                f"{self.source} writes with a vocabulary of its own, for which the release has no tokenizer: call "
                "model(**inputs)"
            )
        return how, decoder

    # ---- as transformers.pipeline, and underneath

    def __call__(self, texts: Any = None, /, **options: Any) -> Any:
        """With texts: the answers of `transformers.pipeline`, in its form. Without: arrays by the inputs' names, as the
        package takes them, -> its outputs by name."""
        if texts is None and options.keys() >= {"question", "context"}:  # of old the pipeline's own way
            texts = {name: options.pop(name) for name in ("question", "context")}
        if texts is None:
            return self._on.raw(options)
        if isinstance(texts, Mapping) and not texts.keys() & {"text", "question"}:
            raise BadInput("arrays go in by name: model(**inputs)")
        for changes_no_answer in ("batch_size", "padding"):
            options.pop(changes_no_answer, None)
        if options.pop("truncation", True) is False:
            raise BadInput("truncation=False: the packages have fixed lengths, longer texts are cut with a warning")
        many = isinstance(texts, list)
        given: Any = [_pair(each) for each in texts] if many else _pair(texts)
        match METHODS.get(self.task):
            case "classify":
                if "top_k" in options:
                    return self.classify(given, **options)
                best = self.classify(given, top_k=1, **options)
                return [each[0] for each in best] if many else best if isinstance(texts, str) else best[0]
            case "tokens":
                return self.tokens(given, **{"aggregation_strategy": "none", **options})
            case "fill_mask":
                found = self.fill_mask(given, **options)
                return found[0] if many and len(found) == 1 else found
            case "answer":
                asked = texts if many else [texts]
                if not all(isinstance(each, Mapping) and {"question", "context"} <= each.keys() for each in asked):
                    raise BadInput('a question goes in with its context: model({"question": "…", "context": "…"})')
                got = [self.answer(each["question"], each["context"], **options) for each in asked]
                return got if many else got[0]
            case "write":
                written = [{"generated_text": self.write(each, **options)} for each in (given if many else [given])]
                return [[each] for each in written] if many and self.task == "text-generation" else written
            case "embed" | "features" as method:
                return getattr(self, method)(given, **options)
        raise BadInput(f"{self._called()} has no form as a pipeline: {self._instead()}")

    def tokenize(self, text: Text) -> dict[str, Array]:
        """What `model(**inputs)` takes for a text, or a pair: padded to the least length that fits."""
        if self._on.main.part or self.task in ("", "multiple-choice"):
            raise BadInput(f"{self._called()}, not for one text: it takes {self._on.takes()}")
        row = self._on.texts.rows(listed([text], pairs=True), self.limit)[0]
        self._on.warn([row.cut])
        return self._on.padded(row.tokens)[1]

    # ---- inside

    def _must(self, method: str, *tasks: str) -> None:
        if self.task not in tasks:
            raise BadInput(f"{self._called()}, so there is no {method}: {self._instead()}")

    def _called(self) -> str:
        return f"{self.source} is for {self.task}" if self.task else f"{self.source} does not say what it is for"

    def _instead(self) -> str:
        if self.task in METHODS:
            return f"call model.{METHODS[self.task]}(…)"
        newer = "; a newer hft2ane may know it" if self.task else ""
        return f"call model(**inputs), which takes {self._on.takes()}{newer}"

    def _each(
        self,
        texts: Text | Iterable[Text],
        answer: Callable[[Row, Text, Mapping[str, Array]], Any],
        progress: bool | None,
        pairs: bool = False,
    ) -> Any:
        """`answer` of every text, of one text its own. `pairs`: a tuple is one text; else several, like a list."""
        one = isinstance(texts, str) or (pairs and isinstance(texts, tuple))
        found = self._on.each(listed([texts] if one else texts, pairs), answer, progress)
        return found[0] if one else found

    def _prompt(self, name: str | None, prompt: str | None) -> str:
        if prompt is not None or name is None:
            return prompt or ""
        prompts = self._on.settings.prompts
        if name not in prompts:
            raise BadInput(f"{self.source} has no prompt {name!r}; there are {', '.join(prompts) or 'none'}")
        return prompts[name]

    def _first_prompt(self, *names: str) -> str | None:
        return next((name for name in names if name in self._on.settings.prompts), None)

    def _embed(
        self,
        texts: str | Iterable[str],
        prompt: str,
        normalize: bool,
        batch: int,
        progress: bool | None,
        dimensions: int | None = None,
    ) -> Array:
        several = listed([texts] if isinstance(texts, str) else texts)
        asked = [f"{prompt}{each}".strip() for each in several]  # as sentence-transformers reads a text
        found = self._on.each(asked, lambda _, __, outputs: outputs["sentence_embedding"][0], progress, batch)
        vectors = np.stack(found) if found else np.zeros((0, self.get_sentence_embedding_dimension()), np.float32)
        vectors = vectors[:, :dimensions]
        if normalize:
            vectors = answers.normalized(vectors)
        return vectors[0] if isinstance(texts, str) else vectors


def positive(top_k: int | None) -> None:
    """BadInput."""
    if top_k is not None and top_k < 1:
        raise BadInput(f"top_k={top_k}: it must be 1 or more, or None for all")


def _words(window: Any, first: int, last: int) -> tuple[int, int]:
    """Where in the context the whole words of these tokens are."""
    begin, end = window.token_to_word(first), window.token_to_word(last)
    if begin is None or end is None:
        return window.offsets[first][0], window.offsets[last][1]
    return window.word_to_chars(begin, 1)[0], window.word_to_chars(end, 1)[1]


def _pair(text: Any) -> Any:
    """transformers' `{"text": …, "text_pair": …}` as a tuple."""
    if isinstance(text, dict) and text.keys() == {"text", "text_pair"}:
        return text["text"], text["text_pair"]
    return text["text"] if isinstance(text, dict) and text.keys() == {"text"} else text
