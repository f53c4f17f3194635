"""Our module for an original: built on the bricks, filled from the original's tensors, ready to run or to export."""

from collections.abc import Mapping
from typing import Any, cast

import torch

from hft2ane.ane import fill
from hft2ane.families import TaskModule
from hft2ane.reference import SENTENCE, Original
from hft2ane.sentence import SentenceEmbedder, weights


def rewrite(original: Original) -> TaskModule:
    """The family's module for the original's task. Its parameters are views of the original's tensors, not copies."""
    tasks = original.family.tasks
    module: Any
    table: Mapping[str, str]
    if original.task == SENTENCE:
        assert original.pipeline is not None
        kind = tasks["feature-extraction"]
        table, unwanted = weights(kind.weights(original.config), original.pipeline), kind.UNWANTED
        tensors = dict(original.tensors)
        for dense in original.pipeline.dense:
            tensors |= {f"{dense.folder}.{name}": tensor for name, tensor in dense.tensors.items()}
        with torch.device("meta"):
            module = SentenceEmbedder(kind(original.config, original.absent), original.pipeline)
    else:
        with torch.device("meta"):
            module = tasks[original.task](original.config, original.absent)
        table = module.weights(original.config)
        tensors, unwanted = dict(original.tensors), module.UNWANTED
    fill(module, table, tensors, unwanted)
    return cast(TaskModule, module.eval())
