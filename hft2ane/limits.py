"""How large the weights of a package will be, and what the target system takes for the Neural Engine.

Known from the shapes alone, so that a model which is too large is refused before its weights are read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hft2ane.ane import Embedding, Linear, TokenConvolution
from hft2ane.compress import MIXED, form, stored_bytes
from hft2ane.errors import TooLarge
from hft2ane.families import STATES
from hft2ane.records.lint import CONSTANT_MOST, WEIGHTS_MOST, LintSettings
from hft2ane.records.recipe import FORMS, Form, Variant


def check_size(module: Any, shape: tuple[int, ...], variants: Sequence[Variant], model: str) -> None:
    """TooLarge: a variant is beyond what the system that the linter asks for compiles.

    `module` is on torch's meta device, `shape` is that of its longest inputs. A mixed variant counts as what it has at
    least; the linter has the last word, on the saved package."""
    parts = [constant_bytes(part, shape) for part in module.parts.values()]
    problems = {form: next(filter(None, (beyond(part[form]) for part in parts)), None) for form in FORMS}
    fitting = [each for each, problem in problems.items() if problem is None]
    advice = f"ask for one of the variants {', '.join(fitting)}, or" if fitting else "no variant is small enough,"
    for variant in variants:
        if problem := problems[MIXED.get(variant, variant)]:  # type: ignore[arg-type]
            raise TooLarge(f"{model} as {variant}: {problem}; {advice} take a smaller model")


def beyond(sizes: Mapping[str, int]) -> str | None:
    """What is too large for the system, in words."""
    system = LintSettings().system
    total, most = sum(sizes.values()), WEIGHTS_MOST[system]
    largest = max(sizes, key=lambda path: sizes[path])
    if total > most:
        return f"{total / 2**30:.2f} GiB of weights in one function, {system} takes {most / 2**30:.0f} GiB"
    if sizes[largest] >= CONSTANT_MOST:
        return f"{largest} is one constant of {sizes[largest] / 2**30:.2f} GiB, it must be below 2 GiB"
    return None


def constant_bytes(module: Any, shape: tuple[int, ...]) -> dict[Form, dict[str, int]]:
    """For each form of the linear layers: by parameter, what it takes in a function for inputs of this shape.

    Of a table in which nothing is looked up, as that of positions, a function has the rows of its length."""
    tables = looked_up(module, (*shape[:-1], 1))
    found: dict[Form, dict[str, int]] = {linear: {} for linear in FORMS}
    for path, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            rows, *rest = parameter.shape
            compressible = part in tables or (isinstance(part, Linear | TokenConvolution) and name == "weight")
            if isinstance(part, Embedding) and part not in tables:
                rows = min(rows, shape[-1])
            for linear, sizes in found.items():
                stored = form(parameter.numel(), linear, part in tables) if compressible else "float16"
                sizes[f"{path}.{name}"] = stored_bytes((rows, *rest), stored)
    return found


def looked_up(module: Any, shape: tuple[int, ...]) -> set[nn.Module]:
    """The tables that are called."""
    found: set[nn.Module] = set()
    hooks = [
        part.register_forward_pre_hook(lambda part, _: found.add(part))
        for part in module.modules()
        if isinstance(part, Embedding)
    ]
    with torch.no_grad(), torch.device("meta"):
        module(
            *(
                torch.zeros(*shape, module.memory) if name == STATES else torch.zeros(shape, dtype=torch.int32)
                for name in module.inputs
            )
        )
    for hook in hooks:
        hook.remove()
    return found
