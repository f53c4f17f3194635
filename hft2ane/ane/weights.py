"""Filling a module of ours from a checkpoint's tensors by a weight table, with nothing left over on either side."""

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn

from hft2ane.errors import MissingWeights, UnsupportedModel


def fill(
    module: nn.Module,
    table: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    unwanted: Iterable[str] = (),
) -> None:
    """Give every parameter of `module` its tensor. `table`: module paths, ours to theirs, `{i}` meaning every layer, as
    any other letter does; or the path of one parameter, where those of a module are in different places.

    `unwanted` are regular expressions for tensors that the task does not use. MissingWeights: a parameter without a row
    or without a tensor, or of another shape; UnsupportedModel: a row or a tensor that nothing uses, but for the rows of
    parts that the module was built without."""
    rows = {row: pattern(row) for row in table}
    used_rows, used = set(), set()
    for path, parameter in list(module.named_parameters(remove_duplicate=False)):
        ours, _, leaf = path.rpartition(".")
        match, row = next(
            ((m, row) for name in (path, ours) for row, each in rows.items() if (m := each.fullmatch(name))),
            (None, None),
        )
        if match is None or row is None:
            raise MissingWeights(f"{path}: no row of the weight table fills it; add one for {ours!r}")
        name = table[row].format(**match.groupdict())
        if match.string == ours:
            name = f"{name}.{leaf}"
        if name not in tensors:
            raise MissingWeights(f"{path}: the checkpoint has no tensor {name!r}")
        owner = module.get_submodule(ours)
        fit: Callable[[str, Tensor], Tensor] | None = getattr(owner, "fit", None)
        tensor = fit(leaf, tensors[name]) if fit else tensors[name]
        if tensor.shape != parameter.shape:
            raise MissingWeights(f"{path}: {name!r} has shape {tuple(tensor.shape)}, not {tuple(parameter.shape)}")
        setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False))
        used_rows.add(row)
        used.add(name)
    if idle := [theirs for row, theirs in table.items() if row not in used_rows and not left_out(module, row)]:
        raise UnsupportedModel(f"rows of the weight table that fill nothing: {', '.join(idle)}")
    ignored = re.compile("|".join(unwanted) or r"(?!)")
    if left := [name for name in tensors if name not in used and not ignored.fullmatch(name)]:
        raise UnsupportedModel(
            f"{len(left)} tensors of the checkpoint are used by nothing: {', '.join(left[:4])}"
            f"{' …' if len(left) > 4 else ''}; add rows to the weight table, or name them as unwanted"
        )


def pattern(row: str) -> re.Pattern[str]:
    """`blocks.{i}.up` -> the expression that `blocks.3.up` matches, with i = 3."""
    return re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(row)))


def left_out(module: nn.Module, row: str) -> bool:
    """Whether the module has None where the part of this row would be, or what it would be in, in every layer."""
    parts: list[object] = [module]
    for name in row.split("."):
        parts = [each for part in parts for each in (within(part) if name == "{i}" else [inside(part, name)])]
    return all(part is None for part in parts)


def within(part: object) -> Iterable[object]:
    return part if isinstance(part, nn.ModuleList) else [...]


def inside(part: object, name: str) -> object:
    return None if part is None else getattr(part, name, ...)
