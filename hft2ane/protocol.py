"""The inputs of verification protocol `hft2ane-psnr-2`: what every model is measured on, at every length.

Changing anything here changes the figures: then the protocol's number in `keys` changes too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hft2ane.families import STATES, STATES_MASK
from hft2ane.reference import Original, Tokenizer

SEED = 20260101
RANDOM_ROWS = 4
FULL_ROWS = 4

SENTENCES = (
    "The committee approved the new budget after a long and heated debate.",
    "She sells fresh bread at the corner of the market every Saturday morning.",
    "How do I reset the password of my account?",
    "Quarterly revenue rose 12.5% to $3.4 billion, beating analysts' estimates.",
    "Der Zug nach München hat heute leider vierzig Minuten Verspätung.",
    "La bibliothèque ferme plus tôt pendant les vacances d'été.",
    "El gato se sentó en la ventana y miró cómo caía la lluvia.",
    "今日はとても天気がいいので、公園を散歩しました。",
    "这家餐馆的面条又便宜又好吃。",
    "ذهبت إلى السوق واشتريت الخبز والتمر.",
    "Поезд отправляется с третьего пути через десять минут.",
    "def area(r: float) -> float:\n    return 3.14159 * r ** 2  # circle",
    "Visit https://example.org/docs?page=2&lang=en#install or write to help@example.org 😀🚀",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "no",
    "",
    "The old lighthouse keeper climbed the stairs each evening, lit the lamp, wrote the weather into his book, and "
    "waited for the ships that passed in the dark; on some nights there were none, and he listened to the sea instead, "
    "counted the waves, and thought of the years when the harbour had been full of sails, before the railway came.",
)

# For masked language models; {mask} is the model's own mask token.
CLOZE = (
    "The capital of France is {mask}.",
    "She poured herself a cup of {mask} and sat down by the window.",
    "The dog barked at the {mask} all night.",
    "He was born in {mask} and moved to London as a child.",
    "They won the final match by two {mask} to one.",
    "Please {mask} the door when you leave.",
    "Water freezes at zero degrees {mask}.",
    "The patient was given a dose of {mask} for the infection.",
    "Interest rates were raised by the central {mask} on Thursday.",
    "I read the {mask} twice because the ending surprised me.",
    "The train to {mask} leaves from platform nine at noon.",
    "Shakespeare wrote many {mask} during his lifetime.",
    "Die Hauptstadt von Deutschland ist {mask}.",
    "La capital de España es {mask}.",
    "Le chat dort sur le {mask}.",
    "import numpy as {mask}",
)

# Tasks whose texts come in pairs, for some models at least: rerankers, natural language inference.
PAIRED = ("text-classification", "question-answering", "next-sentence-prediction", "multiple-choice")
PAIRS = (
    ("What is the capital of France?", "Paris has been the capital of France since the tenth century."),
    ("How tall is Mount Everest?", "The recipe needs two eggs, a cup of flour and a pinch of salt."),
    ("A man is playing a guitar on stage.", "Someone is making music."),
    ("Wie spät ist es?", "Es ist kurz vor Mitternacht, und die Straßen sind leer."),
)


@dataclass(frozen=True)
class Inputs:
    """Rows of one kind at one length: int64 (rows, length) by input name, and a text or name for each row."""

    kind: str
    length: int
    tensors: dict[str, Tensor]
    names: tuple[str, ...]
    masked: Tensor | None = None  # positions (rows, length) that hold the mask token


def rows(tokenizer: Tokenizer, original: Original, length: int, names: Sequence[str]) -> Iterator[Inputs]:
    """`inputs` for this original, with all that it takes."""
    for kind in inputs(tokenizer, original.vocabulary, length, original.task, names):
        yield complete(kind, original)


def inputs(tokenizer: Tokenizer, vocabulary: int, length: int, task: str, names: Sequence[str]) -> Iterator[Inputs]:
    """Every kind of input at one length, for a network that takes inputs of these names."""
    single = tokenizer([(text,) for text in SENTENCES], length)
    yield Inputs("sentences, padded", length, single, SENTENCES)
    if task in PAIRED or "token_type_ids" in names:
        yield Inputs("pairs, padded", length, tokenizer(PAIRS, length), tuple(" / ".join(pair) for pair in PAIRS))
    if task == "fill-mask" and tokenizer.inner.mask_token is not None:
        yield cloze(tokenizer, length)
    yield one_token(single, length)
    generator, pad = torch.Generator().manual_seed(SEED + length), tokenizer.pad
    yield random_ids("full length, random ids", torch.full((FULL_ROWS,), length), vocabulary, pad, generator, length)
    some = torch.randint(1, length + 1, (RANDOM_ROWS,), generator=generator)
    yield random_ids("padded, random ids", some, vocabulary, pad, generator, length)


def complete(kind: Inputs, original: Original) -> Inputs:
    """With what a decoder takes besides: for a pair the next row's text, which it writes while the row's own is read;
    for a decoder alone, of whose encoder nothing is known, states from a normal distribution."""
    config, kinds = original.config, kind.tensors
    generator = torch.Generator().manual_seed(SEED + kind.length)
    ids, mask = kinds["input_ids"].roll(1, 0), kinds["attention_mask"].roll(1, 0)
    if original.family.parts:
        decoder = config.decoder
        if decoder.vocab_size != original.vocabulary:  # the texts' ids mean nothing to it
            pad = decoder.pad_token_id or 0
            ids = random_ids("", mask.sum(1), decoder.vocab_size, pad, generator, kind.length).tensors["input_ids"]
        more = {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    elif getattr(config, "add_cross_attention", False):
        shape = (*ids.shape, config.hidden_size)
        more = {STATES: torch.randn(shape, generator=generator), STATES_MASK: mask}
    else:
        return kind
    return replace(kind, tensors=kinds | more)


def cloze(tokenizer: Tokenizer, length: int) -> Inputs:
    """Sentences with one word masked."""
    texts = [text.format(mask=tokenizer.inner.mask_token) for text in CLOZE]
    tensors = tokenizer([(text,) for text in texts], length)
    return Inputs("masked sentences", length, tensors, CLOZE, tensors["input_ids"] == tokenizer.inner.mask_token_id)


def one_token(single: dict[str, Tensor], length: int) -> Inputs:
    """The first sentence with all but its first token masked out."""
    rows = {name: tensor[:1].clone() for name, tensor in single.items()}
    rows["attention_mask"][:, 1:] = 0
    return Inputs("one token", length, rows, ("all but the first token masked",))


def random_ids(kind: str, counts: Tensor, vocabulary: int, pad: int, generator: torch.Generator, length: int) -> Inputs:
    """Any ids of the vocabulary but that of padding, `counts` of them a row, and padding after them.

    RoBERTa and its kin skip padding when they count positions: inside a text it would move all that follows."""
    ids = torch.randint(0, vocabulary - 1, (len(counts), length), generator=generator)
    ids += ids >= pad
    mask = (torch.arange(length) < counts[:, None]).long()
    tensors = {
        "input_ids": torch.where(mask.bool(), ids, pad),
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(ids),
    }
    return Inputs(kind, length, tensors, tuple(f"{n} random ids" for n in counts.tolist()))
