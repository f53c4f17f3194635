"""Any encoder and any decoder of the families here, joined by cross-attention: EncoderDecoderModel, as BERT2BERT.

Each part has the config, the weight table and the module of its own family. They become two packages: the encoder's
gives `last_hidden_state`, which the decoder's takes as `encoder_hidden_states`, once for each token that is written.
"""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from hft2ane.families import FEATURES, WRITING, Allowed, _heads, family
from hft2ane.records.package import Part

PARTS: Mapping[Part, str] = {"encoder": FEATURES, "decoder": WRITING}
CONFIG: Mapping[str, Allowed] = {
    # Gone from transformers 5, which would ignore it.
    "tie_encoder_decoder": (False, None),
    **{key: (None,) for key in _heads.CACHED if key not in PARTS},
}
HEADS = (r"encoder\.(pooler|cls|lm_head)\..*", r"decoder\.(pooler|cls\.seq_relationship)\..*")

# What transformers calls the decoder's ids and mask beside the encoder's.
DECODER_INPUTS = ("decoder_input_ids", "decoder_attention_mask")


def kinds(config: Any) -> dict[Part, Any]:
    """The class of each part, as its own family has it."""
    return {part: family(getattr(config, part).model_type).tasks[task] for part, task in PARTS.items()}


class EncoderDecoder(nn.Module):
    """Both parts in one call, as transformers answers: inputs of the encoder's, then ids and mask of the decoder's."""

    ORIGINAL = "EncoderDecoderModel"
    WEIGHTS: ClassVar[Mapping[str, str]] = {}  # those of the parts
    UNWANTED: tuple[str, ...] = ()
    OPTIONAL = ("encoder.pooler",)  # which the decoder does not see
    CONFIG: ClassVar[Mapping[str, Allowed]] = {}
    OUTPUTS = ("logits", "encoder_last_hidden_state")

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__()
        of = kinds(config)
        self.encoder = of["encoder"](config.encoder, of["encoder"].OPTIONAL)
        self.decoder = of["decoder"](config.decoder)
        self.inputs = (*self.encoder.inputs, *DECODER_INPUTS)
        if config.encoder.hidden_size != config.decoder.hidden_size:
            self.decoder.adapt(config.encoder.hidden_size)
        unwanted = {"encoder": [*self.encoder.UNWANTED, r"pooler\..*"], "decoder": self.decoder.UNWANTED}
        self.UNWANTED = tuple(rf"{part}\.(?:{name})" for part, names in unwanted.items() for name in names)

    @classmethod
    def weights(cls, config: Any) -> Mapping[str, str]:
        tables = {part: kind.weights(getattr(config, part)) for part, kind in kinds(config).items()}
        rows = {f"{part}.{ours}": f"{part}.{row}" for part, table in tables.items() for ours, row in table.items()}
        is_wider = config.encoder.hidden_size != config.decoder.hidden_size
        return {**rows, **({"decoder.adapter": "enc_to_dec_proj"} if is_wider else {})}

    @staticmethod
    def limit(config: Any) -> int:
        return min(int(kind.limit(getattr(config, part))) for part, kind in kinds(config).items())

    @property
    def parts(self) -> Mapping[Part, Any]:
        return {"encoder": self.encoder, "decoder": self.decoder}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        *of_encoder, ids, mask = inputs
        (states,) = self.encoder(*of_encoder)
        (logits,) = self.decoder(ids, mask, states, of_encoder[self.encoder.inputs.index("attention_mask")])
        return logits, states


TASKS = {"text2text-generation": EncoderDecoder}
