"""Tiny pairs of an encoder and a decoder, loud enough that what is written depends on what is read."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from tests.conftest import WORDS

SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
START, END, PAD = 2, 3, 0


def build(encoder: Any, decoder: Any, seed: int = 0, **more: Any) -> Any:
    """Of two configs of transformers, every parameter drawn anew."""
    torch.manual_seed(seed)
    joined: Any = transformers.EncoderDecoderConfig
    says = {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": PAD, **more}
    config = joined.from_encoder_decoder_configs(encoder, decoder, **says)
    model: Any = transformers.EncoderDecoderModel(config).eval()
    return loud(model)


def loud(model: Any) -> Any:
    """With one deviation for all, or with tied embeddings, a decoder writes the same token over and over."""
    for name, parameter in model.named_parameters():
        louder = {"position_embeddings": 3.0, "embeddings.weight": 1.0, "crossattention.output": 0.1}
        std = 0.1 if parameter.dim() == 1 else next((std for part, std in louder.items() if part in name), 0.3)
        nn.init.normal_(parameter, mean=1.0 if "LayerNorm.weight" in name else 0.0, std=std)
    return model


def bert(**changes: Any) -> Any:
    return transformers.BertConfig(**{**SIZES, **changes})


def decoder(**changes: Any) -> Any:
    odd = {"hidden_act": "tanh", "tie_word_embeddings": False}
    return bert(is_decoder=True, add_cross_attention=True, **{**odd, **changes})


def save(model: Any, folder: Path) -> Path:
    """As on the Hub, with the tokenizer and a licence."""
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tokenizer: Any = transformers.BertTokenizer
    tokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder
