"""The heads that transformers puts on its encoders, as classes to mix in before a family's own encoder:

    class TokenClassifier(_heads.TokenClassifier, Encoder):
        ORIGINAL = "BertForTokenClassification"
        WEIGHTS = {**ENCODER, "classify": "classifier"}

Each names the submodules that it adds, which the family's weight table fills. Where families differ, a method of
`Encoder` says how, and a family's own encoder, or one head of it, says otherwise.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hft2ane.ane import ACTIVATIONS, Activation, ChannelNorm, Decoder, Linear, additive_mask, to_channels, to_tokens
from hft2ane.families import SIZE, STATES, STATES_MASK, Allowed
from hft2ane.records.package import Part

PROBLEMS = (None, "single_label_classification", "multi_label_classification", "regression")

# Keys that transformers' cache of keys and values asks any config for, with which a text may be written otherwise.
CACHED = (
    "attention_chunk_size",
    "decoder",
    "generator",
    "head_dim",
    "kv_sharing_modes",
    "layer_types",
    "mtp_layer_types",
    "rope_parameters",
    "sliding_window",
    "text_config",
    "text_encoder",
)


class Encoder(nn.Module):
    """What a family's encoder is made from. `absent`: parts that the checkpoint has no weights for.

    A family's own class makes the network, sets `inputs`, and has `encode`: tensors in the order of `inputs`, (B, S)
    each, -> the last hidden state, (B, C, 1, S). That of a decoder takes `memory` too, see `Causal`."""

    ORIGINAL: ClassVar[str]
    WEIGHTS: ClassVar[Mapping[str, str]]
    UNWANTED: tuple[str, ...] = ()
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    CONFIG: ClassVar[Mapping[str, Allowed]] = {}
    OUTPUTS: tuple[str, ...]
    inputs: tuple[str, ...]
    encode: Callable[..., Tensor]

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__()

    @staticmethod
    def limit(config: Any) -> int:
        """The most tokens that the network takes."""
        return int(config.max_position_embeddings)

    @staticmethod
    def first_position(config: Any) -> int:
        """The row of the position table that the first token has: not 0 where the padding's id is not counted."""
        return 0

    @staticmethod
    def width(config: Any) -> int:
        """Channels of the word embeddings."""
        return int(config.hidden_size)

    @staticmethod
    def activation(config: Any) -> Activation:
        """Of the feed-forward, and of heads that have the same."""
        return ACTIVATIONS[config.hidden_act]

    @staticmethod
    def pool_activation(config: Any) -> Activation:
        return torch.tanh

    @staticmethod
    def eps(config: Any) -> float:
        """Of all norms."""
        return float(config.layer_norm_eps)

    @staticmethod
    def has_bias(config: Any, part: str) -> bool:
        """Whether a head's `dense`, its `norm` or its `decoder` has one."""
        return True

    @classmethod
    def weights(cls, config: Any) -> Mapping[str, str]:
        """The rows of WEIGHTS for a network of this config."""
        return cls.WEIGHTS

    @property
    def parts(self) -> Mapping[Part, Any]:
        return {"": self}


class FeatureExtractor(Encoder):
    OUTPUTS = ("last_hidden_state",)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (to_tokens(self.encode(*inputs)),)


class Pooled(Encoder):
    """With a dense layer, `pooler`, and an activation on the first token."""

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config, absent)
        size = config.hidden_size
        self.pooler = None if "pooler" in absent else Linear(size, size, self.has_bias(config, "dense"))
        self.pool_act = self.pool_activation(config)

    def pool(self, x: Tensor) -> Tensor:
        """(B, C, 1, S) -> (B, C, 1, 1)."""
        assert self.pooler is not None
        return self.pool_act(self.pooler(x[:, :, :, :1]))


class PooledFeatureExtractor(Pooled):
    """`pooler_output` too, for checkpoints that have weights for it."""

    OPTIONAL = ("pooler",)

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config, absent)
        self.OUTPUTS = ("last_hidden_state", *(("pooler_output",) if self.pooler else ()))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        x = self.encode(*inputs)
        hidden = to_tokens(x)
        return (hidden, torch.flatten(self.pool(x), 1)) if self.pooler else (hidden,)


class SequenceClassifier(Pooled):
    """Single label, multi label and regression differ in their loss only: all give `logits` (B, num_labels)."""

    CONFIG = {"num_labels": SIZE, "problem_type": PROBLEMS}
    OUTPUTS = ("logits",)

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config, absent)
        self.classify = Linear(config.hidden_size, self.labels(config))

    @staticmethod
    def labels(config: Any) -> int:
        return int(config.num_labels)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (torch.flatten(self.classify(self.pool(self.encode(*inputs))), 1),)


class NextSentencePredictor(SequenceClassifier):
    CONFIG = {}

    @staticmethod
    def labels(config: Any) -> int:
        return 2


class MultipleChoice(SequenceClassifier):
    """Inputs are (B, choices, S), one row a question with a choice; `logits` (B, choices)."""

    CONFIG = {}

    @staticmethod
    def labels(config: Any) -> int:
        return 1

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        batch, choices, tokens = inputs[0].shape
        rows = [torch.reshape(x, (batch * choices, tokens)) for x in inputs]
        return (torch.reshape(self.classify(self.pool(self.encode(*rows))), (batch, choices)),)


class MaskedLM(Encoder):
    """`transform`, an activation, `transform_norm`, and `decoder` over the vocabulary: `logits` (B, S, vocab_size)."""

    OUTPUTS = ("logits",)

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config, absent)
        width = self.width(config)
        self.transform = Linear(config.hidden_size, width, self.has_bias(config, "dense"))
        self.act = self.activation(config)
        self.transform_norm = ChannelNorm(width, self.eps(config), self.has_bias(config, "norm"))
        self.decoder = Decoder(width, config.vocab_size, self.has_bias(config, "decoder"))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.score(self.encode(*inputs))

    def score(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.decoder(self.transform_norm(self.act(self.transform(x)))),)


class GeluMaskedLM(MaskedLM):
    """With gelu whatever the config's activation, as RoBERTa's and ELECTRA's."""

    @staticmethod
    def activation(config: Any) -> Activation:
        return F.gelu


class Causal(Encoder):
    """A language model that writes on, each token looking at those before it: mixed in before a masked one's head.

    With `add_cross_attention` it also looks at the states of an encoder, which are inputs like any other, of `memory`
    channels. Token types are zero. Keys and values are computed anew for all tokens in every call."""

    CONFIG = {
        "is_decoder": (True,),
        "is_causal": (True,),
        "add_cross_attention": (False, True),
        "cross_attention_hidden_size": (None,),
        **dict.fromkeys(CACHED, (None,)),
    }
    score: Callable[[Tensor], tuple[Tensor, ...]]

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config, absent)
        self.memory = int(config.hidden_size)
        self.adapter: Linear | None = None
        self.inputs = ("input_ids", "attention_mask")
        if config.add_cross_attention:
            self.inputs += (STATES, STATES_MASK)

    def adapt(self, channels: int) -> None:
        """For an encoder of another width: a linear layer, `adapter`, comes first."""
        self.memory, self.adapter = channels, Linear(channels, self.memory)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Ids and mask, (B, S); the encoder's states, (B, S', C'), and its mask, (B, S')."""
        ids, mask, *encoder = inputs
        memory: tuple[Tensor, ...] = ()
        if encoder:
            states = to_channels(encoder[0])
            memory = (additive_mask(encoder[1]), self.adapter(states) if self.adapter else states)
        return self.score(self.encode(ids, mask, memory=memory))


class TokenClassifier(Encoder):
    CONFIG = {"num_labels": SIZE}
    OUTPUTS: tuple[str, ...] = ("logits",)

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config, absent)
        self.classify = Linear(config.hidden_size, config.num_labels)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (to_tokens(self.classify(self.encode(*inputs))),)


class QuestionAnswerer(TokenClassifier):
    CONFIG = {"num_labels": (2,)}
    OUTPUTS = ("start_logits", "end_logits")

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        start, end = torch.split(self.classify(self.encode(*inputs)), 1, 1)
        return torch.flatten(start, 1), torch.flatten(end, 1)


class ReplacedTokenDetector(Encoder):
    """`transform`, an activation, and a score a token, above 0 for one that was replaced: `logits` (B, S)."""

    OUTPUTS = ("logits",)

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config, absent)
        self.transform = Linear(config.hidden_size, config.hidden_size)
        self.act = self.activation(config)
        self.classify = Linear(config.hidden_size, 1)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (torch.flatten(self.classify(self.act(self.transform(self.encode(*inputs)))), 1),)
