"""Our module for an original: built on the bricks, filled from the original's tensors, ready to run or to export."""

from collections.abc import Collection
from typing import Any, cast

import torch

from hft2ane.ane import fill
from hft2ane.families import TaskModule
from hft2ane.reference import Described, Original
from hft2ane.sentence import SentenceEmbedder, weights


def rewrite(original: Original) -> TaskModule:
    """The family's module for the original's task. Its parameters are views of the original's tensors, not copies."""
    module = blank(original, original.absent)
    kind = original.kind
    table = kind.weights(original.config)
    tensors, unwanted = dict(original.tensors), kind.UNWANTED
    if original.pipeline is not None:
        table = weights(table, original.pipeline)
        for dense in original.pipeline.dense:
            tensors |= {f"{dense.folder}.{name}": tensor for name, tensor in dense.tensors.items()}
    else:
        unwanted = module.UNWANTED  # of a pair, those of both parts
    fill(module, table, tensors, unwanted)
    return cast(TaskModule, module.eval())


def blank(original: Original | Described, absent: Collection[str] | None = None) -> Any:
    """The same without weights, on torch's meta device. `absent`: parts that there are no weights for; by default all
    that may be absent."""
    with torch.device("meta"):
        module = original.kind(original.config, original.kind.OPTIONAL if absent is None else absent)
        return SentenceEmbedder(module, original.pipeline) if original.pipeline else module
