"""Operations that choose, place or order elements: gather, scatter, slices, sorting. A part of the table in `ops`.

Formulas: the operations' documentation in coremltools 9.0.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Result = Tensor | tuple[Tensor, ...]


def checked(indices: Tensor, size: int, validate_indices: bool | None) -> Tensor:
    """The indices as torch takes them. Up to iOS 16, without `validate_indices`, one may be negative and counts from
    the end; from iOS 17 on that is out of range, and what happens then is undefined: here it is an error."""
    least = -size if validate_indices is None else 0
    if indices.numel() and not (least <= int(indices.min()) and int(indices.max()) < size):
        raise ValueError(f"indices {int(indices.min())} to {int(indices.max())} are not all in {least}..{size - 1}")
    return indices.long() % size


def gather(
    x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool | None = None
) -> Tensor:
    """Shape: x[:axis] + indices[batch_dims:] + x[axis+1:]."""
    axis %= x.ndim
    at = checked(indices, x.shape[axis], validate_indices)
    taken = x.movedim(axis, batch_dims)[(*batch_grid(at, batch_dims), at)]
    own = indices.ndim - batch_dims
    return taken.movedim(tuple(range(batch_dims, batch_dims + own)), tuple(range(axis, axis + own)))


def batch_grid(indices: Tensor, batch_dims: int) -> list[Tensor]:
    """For each batch axis the index of the batch, broadcastable to `indices`."""
    own = indices.ndim - batch_dims
    grid = torch.meshgrid(*(torch.arange(n) for n in indices.shape[:batch_dims]), indexing="ij") if batch_dims else ()
    return [each.reshape(each.shape + (1,) * own) for each in grid]


def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool | None = None) -> Tensor:
    return x.gather(axis, checked(indices, x.shape[axis], validate_indices))


def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool | None = None) -> Tensor:
    """The last axis of `indices` is a place on the axes of `x` after the batch."""
    sizes = x.shape[batch_dims : batch_dims + indices.shape[-1]]
    places = [checked(at, n, validate_indices) for at, n in zip(indices.unbind(-1), sizes, strict=True)]
    return x[(*batch_grid(places[0], batch_dims), *places)]


def place(data: Tensor, at: Tensor, updates: Tensor, mode: str) -> Tensor:
    """`data` with `updates` at the flat positions `at`; one place may be hit more than once."""
    out, at, new = data.clone().reshape(-1), at.reshape(-1), updates.expand(at.shape).reshape(-1)
    match mode:
        case "update":
            out[at] = new
        case "add":
            out.index_add_(0, at, new)
        case "sub":
            out.index_add_(0, at, new, alpha=-1)
        case "mul":
            out.scatter_reduce_(0, at, new, "prod")
        case "div":
            out = out / torch.ones_like(out).scatter_reduce(0, at, new, "prod")
        case "max" | "min":
            out.scatter_reduce_(0, at, new, f"a{mode}")
        case _:
            raise ValueError(f"mode {mode!r} is not computed")
    return out.reshape(data.shape)


def positions(x: Tensor) -> Tensor:
    """The flat position of each element."""
    return torch.arange(x.numel()).reshape(x.shape)


def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool | None = None,
) -> Tensor:
    at = checked(indices, data.shape[axis], validate_indices)
    return place(data, positions(data).index_select(axis, at), updates, mode)


def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool | None = None,
) -> Tensor:
    at = checked(indices, data.shape[axis], validate_indices)
    return place(data, positions(data).gather(axis, at), updates, mode)


def scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: bool | None = None
) -> Tensor:
    return place(data, gather_nd(positions(data), indices, 0, validate_indices), updates, mode)


def slice_by_index(
    x: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """As numpy slices x[begin:end:stride] on each axis; a mask makes begin or end open, or the axis a plain index."""
    nothing = [False] * x.ndim
    rows = zip(
        range(x.ndim),
        begin,
        end,
        stride or [1] * x.ndim,
        begin_mask or nothing,
        end_mask or nothing,
        squeeze_mask or nothing,
        strict=True,
    )
    for axis, first, last, step, from_start, to_end, squeezed in reversed(list(rows)):
        if squeezed:
            x = x.select(axis, 0 if from_start else first)
            continue
        chosen = range(*slice(None if from_start else first, None if to_end else last, step).indices(x.shape[axis]))
        if len(chosen) < x.shape[axis] or step < 0:
            x = x.index_select(axis, torch.tensor(chosen, dtype=torch.int64))
    return x


def slice_by_size(x: Tensor, begin: list[int], size: list[int]) -> Tensor:
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        start = first + x.shape[axis] if first < 0 else first
        x = x.narrow(axis, start, x.shape[axis] - start if count == -1 else count)
    return x


def slice_update(
    x: Tensor,
    update: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """`x` with `update` in place of the slice that slice_by_index takes."""
    at = slice_by_index(positions(x), begin, end, stride, begin_mask, end_mask, squeeze_mask)
    if at.shape != update.shape:
        raise ValueError(f"an update of shape {tuple(update.shape)} for a slice of shape {tuple(at.shape)}")
    return place(x, at, update, "update")


def pad(x: Tensor, pad: list[int], mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """`pad` is (before, after) for each of the last axes."""
    pairs = list(zip(pad[::2], pad[1::2], strict=True))
    if mode == "constant":
        return F.pad(x, [each for pair in reversed(pairs) for each in pair], value=constant_val)
    if mode not in ("reflect", "replicate"):
        raise ValueError(f"mode {mode!r} is not computed")
    for axis, (before, after) in enumerate(pairs, x.ndim - len(pairs)):
        last = x.shape[axis] - 1
        at = torch.arange(-before, last + after + 1)
        x = x.index_select(axis, at.clamp(0, last) if mode == "replicate" else last - (last - at.abs()).abs())
    return x


def one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: Tensor | int = 1,
    off_value: Tensor | int = 0,
) -> Tensor:
    """An index out of range is off everywhere."""
    rank = indices.ndim + 1
    shape = [-1 if at == axis % rank else 1 for at in range(rank)]
    hot = indices.unsqueeze(axis) == torch.arange(one_hot_vector_size).reshape(shape)
    return torch.where(hot, torch.as_tensor(on_value), torch.as_tensor(off_value))


def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> Result:
    """Values and indices, sorted also where `sort` leaves the order open; equal values in their order. What type the
    indices have, the declaration of the result says too."""
    values, indices = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    count = x.shape[axis] if k == -1 else k
    best = values.narrow(axis, 0, count)
    return (best, indices.narrow(axis, 0, count)) if return_indices else best


def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    x = x.flip(axis) if reverse else x
    total = x.cumsum(axis)
    if exclusive:
        total = torch.cat((torch.zeros_like(total.narrow(axis, 0, 1)), total.narrow(axis, 0, x.shape[axis] - 1)), axis)
    return total.flip(axis) if reverse else total


def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Zero outside the band, infinite values too."""
    below = torch.arange(x.shape[-2])[:, None] - torch.arange(x.shape[-1])
    inside = ((below <= lower) | (lower < 0)) & ((-below <= upper) | (upper < 0))
    return torch.where(inside, x, torch.zeros_like(x))


def reverse_sequence(x: Tensor, lengths: Tensor, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """The first `lengths[i]` elements of batch i on `seq_axis` in reverse."""
    rows = x.movedim((batch_axis, seq_axis), (0, 1))
    at = torch.arange(rows.shape[1])
    count = lengths.long()[:, None]
    turned = torch.where(at < count, count - 1 - at, at)
    return rows[torch.arange(rows.shape[0])[:, None], turned].movedim((0, 1), (batch_axis, seq_axis))


INDEXING: dict[str, Callable[..., Result]] = {
    "argsort": lambda x, axis=-1, ascending=False: torch.argsort(x, dim=axis, descending=not ascending, stable=True),
    "band_part": band_part,
    "cumsum": cumsum,
    "gather": gather,
    "gather_along_axis": gather_along_axis,
    "gather_nd": gather_nd,
    "non_zero": lambda x: x.nonzero(),
    "one_hot": one_hot,
    "pad": pad,
    "reverse": lambda x, axes=None: x.flip(list(range(x.ndim)) if axes is None else axes),
    "reverse_sequence": reverse_sequence,
    "scatter": scatter,
    "scatter_along_axis": scatter_along_axis,
    "scatter_nd": scatter_nd,
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "slice_update": slice_update,
    "sliding_windows": lambda x, axis, size, stride=1: x.unfold(axis, size, stride).movedim(-1, axis % x.ndim + 1),
    "topk": topk,
}
