"""Every row of the lowering table, through a saved package, against torch; and what is refused, in which words."""

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hft2ane import package
from hft2ane.ane import EPS_LEAST, ChannelNorm, Linear, channel_norm, to_channels
from hft2ane.errors import ExportError
from hft2ane.export import INPUTS, OUTPUTS, SINGLE, build
from hft2ane.lower import LACKED, ROWS, Symbol, Writer
from hft2ane.mil import Program, open_package
from hft2ane.psnr import psnr
from tests.peer import assert_as_coremltools_writes_it

TOKENS, CHANNELS, WORDS = 8, 6, 40
ABOUT = {"author": "a test"}

Compute = Callable[["Small", Tensor], Tensor]


def exact(tensor: Tensor) -> Tensor:
    """What fp16 holds as it is, so that any difference is the lowering's."""
    return tensor.half().float()


class Small(nn.Module):
    """One look-up, whose result (1, channels, 1, tokens) goes through `compute`."""

    OUTPUTS = ("logits",)
    inputs = ("input_ids", "attention_mask")

    def __init__(self, compute: Compute) -> None:
        super().__init__()
        self.compute = compute
        generator = torch.Generator().manual_seed(7)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(exact(torch.randn(shape, generator=generator)), requires_grad=False)

        self.table = parameter(WORDS, CHANNELS)
        self.scale = parameter(1, CHANNELS, 1, 1)
        self.weight, self.bias = parameter(5, CHANNELS, 1, 1), parameter(5)
        self.gamma, self.beta = parameter(CHANNELS), parameter(CHANNELS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        self.ids, self.mask = input_ids, attention_mask
        return (self.compute(self, to_channels(F.embedding(input_ids, self.table))),)


def written(module: Any, folder: Path) -> Program:
    """The module's package, saved and read again."""
    program, _ = build(module, [TOKENS], SINGLE)
    path = folder / "small.mlpackage"
    package.write(path, program, "a test", INPUTS | OUTPUTS, ABOUT)
    return open_package(path)


def ids(seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    mask = (np.arange(TOKENS) < 5).astype(np.int32)[None]
    return {"input_ids": rng.integers(0, WORDS, (1, TOKENS), dtype=np.int32), "attention_mask": mask}


def expected(module: nn.Module) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        (out,) = module(*(torch.from_numpy(each) for each in ids().values()))
    return np.asarray(out)


def square(x: Tensor) -> Tensor:
    """(1, channels, 1, tokens) -> (1, channels, 1, channels), so that it fits the second einsum."""
    return x[:, :, :, :CHANNELS]


# A row of the lowering table, and a use of it. Several uses: other arguments that torch takes.
USES: list[tuple[str, Compute]] = [
    ("add", lambda m, x: x + m.scale),
    ("add", lambda m, x: m.scale + x),
    ("add", lambda m, x: 1.5 + x),
    ("add", lambda m, x: torch.add(input=x, other=x, alpha=1)),
    ("sub", lambda m, x: x - 2),
    ("sub", lambda m, x: m.scale - x),
    ("rsub", lambda m, x: 1 - x),
    ("rsub", lambda m, x: torch.rsub(x, m.scale)),
    ("mul", lambda m, x: x * m.scale),
    ("mul", lambda m, x: -0.25 * x),
    ("mul", lambda m, x: m.scale * x),
    ("div", lambda m, x: x / 3),
    ("div", lambda m, x: m.scale / (torch.abs(x) + 1)),
    ("div", lambda m, x: torch.div(x, m.scale, rounding_mode=None)),
    ("abs", lambda m, x: torch.abs(x)),
    ("sqrt", lambda m, x: torch.sqrt(input=torch.abs(x))),
    ("tanh", lambda m, x: torch.tanh(x)),
    ("tanh", lambda m, x: nn.Tanh()(x)),
    ("relu", lambda m, x: F.relu(x)),
    ("relu", lambda m, x: torch.relu(x)),
    ("silu", lambda m, x: F.silu(x)),
    ("gelu", lambda m, x: F.gelu(x)),
    ("gelu", lambda m, x: F.gelu(x, approximate="tanh")),
    ("gelu", lambda m, x: nn.GELU("tanh")(x)),
    ("clamp", lambda m, x: torch.clamp(x, min=0.5)),
    ("clamp", lambda m, x: torch.clamp(x, 0)),
    ("softmax", lambda m, x: torch.softmax(x, 1)),
    ("softmax", lambda m, x: F.softmax(x, dim=-1)),
    ("softmax", lambda m, x: nn.Softmax(-3)(x)),
    ("amax", lambda m, x: torch.amax(x, 1, True)),
    ("amax", lambda m, x: torch.amax(x, dim=(-1, 1))),
    ("sum", lambda m, x: torch.sum(x, -1, True)),
    ("sum", lambda m, x: torch.sum(x, dim=[1, 3], keepdim=False)),
    ("linalg_vector_norm", lambda m, x: torch.linalg.vector_norm(x, dim=1, keepdim=True)),
    ("linalg_vector_norm", lambda m, x: torch.linalg.vector_norm(x, ord=2, dim=(-1, 1))),
    ("cat", lambda m, x: torch.cat([x, x * 2], 1)),
    ("cat", lambda m, x: torch.cat((x, x), dim=-1)),
    ("cat", lambda m, x: torch.cat([x, m.table.T[None, :, None, :3]], 3)),
    ("cat", lambda m, x: torch.cat(tensors=[x, x])),
    ("reshape", lambda m, x: torch.reshape(x, (1, 2, 3, TOKENS))),
    ("reshape", lambda m, x: torch.reshape(x, shape=(TOKENS, -1))),
    ("unsqueeze", lambda m, x: torch.unsqueeze(x, 1)),
    ("unsqueeze", lambda m, x: torch.unsqueeze(x, dim=-1)),
    ("squeeze", lambda m, x: torch.squeeze(x, 2)),
    ("squeeze", lambda m, x: torch.squeeze(x, dim=-2)),
    ("squeeze", lambda m, x: torch.squeeze(x, (0, -2))),
    ("flatten", lambda m, x: torch.flatten(x, 1)),
    ("flatten", lambda m, x: torch.flatten(x, start_dim=-2)),
    ("flatten", lambda m, x: torch.flatten(x)),
    ("transpose", lambda m, x: torch.transpose(x, 1, 3)),
    ("transpose", lambda m, x: torch.transpose(x, dim0=-1, dim1=-3)),
    ("split", lambda m, x: torch.split(x, 4, 1)[1]),
    ("split", lambda m, x: torch.split(x, split_size_or_sections=3, dim=-1)[2]),
    ("split", lambda m, x: torch.split(x, [1, 3, 2], dim=1)[1]),
    ("split", lambda m, x: torch.split(x, 1)[0] * 2),
    ("getitem", lambda m, x: x[:, :, :, :1]),
    ("getitem", lambda m, x: x[:, 1:-2]),
    ("getitem", lambda m, x: x[:, :, :, -3:]),
    ("getitem", lambda m, x: x[0:1]),
    ("conv2d", lambda m, x: F.conv2d(x, m.weight, m.bias)),
    ("conv2d", lambda m, x: F.conv2d(input=x, weight=m.weight)),
    ("conv2d", lambda m, x: F.conv2d(x, m.weight, bias=None, stride=1, groups=1)),
    ("conv2d", lambda m, x: F.conv2d(x, m.table[:30].reshape(10, CHANNELS, 1, 3), padding=(0, 1))),
    ("embedding", lambda m, x: F.embedding(m.ids, m.table)),
    ("embedding", lambda m, x: F.embedding(m.ids, weight=m.table, padding_idx=3)),
    ("channel_norm", lambda m, x: channel_norm(x, m.gamma, m.beta, 2.0**-10)),
    ("channel_norm", lambda m, x: channel_norm(x, m.gamma, None, 2.0**-10)),
    ("einsum", lambda m, x: torch.einsum("bkhc,bchq->bkhq", torch.transpose(x, 1, 3), x)),
    ("einsum", lambda m, x: torch.einsum("bchk,bkhq->bchq", square(x), x)),
    ("einsum", lambda m, x: torch.einsum("bchk,bkhq->bchq", [m.scale, x[:, :1]])),
]


@pytest.mark.parametrize(("row", "compute"), USES, ids=[f"{at}-{row}" for at, (row, _) in enumerate(USES)])
def test_row(row: str, compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    met = []
    lower = Writer.lower

    def noting(self: Writer, name: str, *rest: Any) -> Any:
        met.append(name)
        return lower(self, name, *rest)

    monkeypatch.setattr(Writer, "lower", noting)
    module = Small(compute)
    program = written(module, tmp_path)
    assert row in met
    assert_as_coremltools_writes_it(tmp_path / "small.mlpackage", tmp_path)
    reference = expected(module)
    (same,) = program.evaluate(ids(), mode="float32").values()
    (got,) = program.evaluate(ids()).values()
    assert got.dtype == np.float16
    assert psnr(reference, same) > 110  # what is written is the same function
    assert psnr(reference, got) > 60  # and fp16 is all that it loses
    assert psnr(reference, program.evaluate(ids(1))["logits"]) < 40  # which depends on what goes in


def test_every_row_of_the_table_has_a_row_here() -> None:
    assert {row for row, _ in USES} == set(ROWS)


def test_integers_become_numbers(tmp_path: Path) -> None:
    module = Small(lambda m, x: x * torch.reshape(m.mask.to(torch.float32), (1, 1, 1, TOKENS)))
    got = written(module, tmp_path).evaluate(ids())["logits"]
    assert np.array_equal(got, expected(module))
    assert not got[..., 5:].any()
    assert got[..., :5].all()


def test_integer_constants(tmp_path: Path) -> None:
    module = Small(lambda m, x: F.embedding(torch.cat([m.ids[:, 2:], torch.tensor([[7, 39]])], 1), m.table))
    assert np.array_equal(written(module, tmp_path).evaluate(ids())["logits"], expected(module))
    with pytest.raises(ExportError, match="beyond int32"):
        written(Small(lambda m, x: torch.cat([m.ids, torch.tensor([[2**40]])], 1)), tmp_path)


def test_two_results_of_one_call(tmp_path: Path) -> None:
    module: Any = Small(lambda m, x: x)
    module.OUTPUTS = ("start_logits", "end_logits")
    module.forward = lambda input_ids, attention_mask: torch.split(F.embedding(input_ids, module.table), 3, 2)
    got = written(module, tmp_path).evaluate(ids())
    for reference, name in zip(module(*map(torch.from_numpy, ids().values())), module.OUTPUTS, strict=True):
        assert np.array_equal(got[name], reference)


# --- names ---


class Nested(nn.Module):
    """Names that would meet: a path that looks like a numbered one, and one like an output."""

    OUTPUTS = ("logits",)
    inputs = ("input_ids", "attention_mask")

    def __init__(self) -> None:
        super().__init__()
        self.words = Small(lambda m, x: x)
        self.blocks = nn.ModuleList(nn.ModuleDict({"up": Linear(CHANNELS, CHANNELS)}) for _ in range(2))
        self.blocks_0_up_1 = Linear(CHANNELS, CHANNELS)
        self.logits = Linear(CHANNELS, CHANNELS)
        self.norm = ChannelNorm(CHANNELS, 1e-12)
        for parameter in self.parameters():
            parameter.requires_grad_(False).copy_(exact(torch.randn(parameter.shape)))

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        (x,) = self.words(*inputs)
        twice = self.blocks[0]["up"](self.blocks[0]["up"](x))  # type: ignore[index]
        x = self.norm(self.blocks_0_up_1(twice) + self.blocks[1]["up"](x))  # type: ignore[index]
        return (torch.tanh(self.logits(x)),)


def test_operations_have_the_names_of_their_modules(tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = Nested()
    program = written(module, tmp_path)
    function = program.functions["main"]
    names = {op.name: op.type for op in function.ops}
    assert len(names) == len(function.ops)
    assert names == {
        "words": "gather",
        "words_transpose": "transpose",
        "words_expand_dims": "expand_dims",
        "blocks_0_up": "conv",
        "blocks_0_up_1": "conv",
        "blocks_0_up_1_1": "conv",
        "blocks_1_up": "conv",
        "model_add": "add",
        "norm": "layer_norm",
        "logits_1": "conv",
        "model_tanh": "tanh",
    }
    results = [out.name for op in function.ops for out in op.outputs]
    assert len({*results, *function.constants}) == len(results) + len(function.constants)
    assert results[-1] == "logits"
    assert psnr(expected(module), program.evaluate(ids(), mode="float32")["logits"]) > 110


def test_a_weight_is_one_constant_however_often_it_is_used(tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = Nested()
    weights = [each for each in written(module, tmp_path).functions["main"].constants.values() if each.shape]
    shapes = [each.shape for each in weights if each.dtype == "float16"]
    assert shapes.count((CHANNELS, CHANNELS, 1, 1)) == 4
    assert shapes.count((WORDS, CHANNELS)) == 1


def test_no_name_begins_with_a_digit(tmp_path: Path) -> None:
    class Listed(nn.Sequential):
        OUTPUTS, inputs = ("logits",), ("input_ids", "attention_mask")

        def forward(self, *inputs: Tensor) -> tuple[Tensor]:
            return (self[1](self[0](*inputs)[0]) * 2,)

    torch.manual_seed(1)
    module = Listed(Small(lambda m, x: x), Linear(CHANNELS, CHANNELS))
    for parameter in module.parameters():
        parameter.requires_grad_(False).copy_(torch.randn(parameter.shape))
    function = written(module, tmp_path).functions["main"]
    named = [*(op.name for op in function.ops), *function.constants]
    assert "_1" in named
    assert all(name[0].isalpha() or name[0] == "_" for name in named)


# --- what is refused ---


class Attend(nn.Module):
    def __init__(self, compute: Callable[[Any], Any]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x)  # type: ignore[no-any-return]


class Deep(nn.Module):
    """Something at blocks.3.attend that has no row."""

    OUTPUTS = ("logits",)
    inputs = ("input_ids", "attention_mask")

    def __init__(self, compute: Callable[[Any], Any]) -> None:
        super().__init__()
        self.words = Small(lambda m, x: x)
        self.blocks = nn.ModuleList(nn.ModuleDict({"attend": Attend(compute)}) for _ in range(4))

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        return (self.blocks[3]["attend"](self.words(*inputs)[0]),)  # type: ignore[index]


NO_ROW = r"^blocks\.3\.attend calls torch\.{}, which has no row in hft2ane/lower\.py; add one, and a test row in tests/"
NOT_TAKEN = r"^blocks\.3\.attend calls torch\..*{} with what its row in hft2ane/lower\.py does not take: .*{}"
LACKS = r"^blocks\.3\.attend uses {} of a tensor, which symbols lack"


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (torch.sigmoid, NO_ROW.format("sigmoid")),
        (F.normalize, NO_ROW.format(r"nn\.functional\.normalize")),
        (lambda x: F.layer_norm(x, (TOKENS,)), NO_ROW.format(r"nn\.functional\.layer_norm")),
        (lambda x: torch.ones(1) @ x, NO_ROW.format(r"Tensor\.matmul")),
        (torch.relu_, NO_ROW.format(r"nn\.functional\.relu_")),
        (lambda x: F.relu(x, inplace=True), NOT_TAKEN.format("relu", "inplace")),
        (lambda x: torch.softmax(x, 1, dtype=torch.float64), NOT_TAKEN.format("softmax", "dtype")),
        (lambda x: torch.add(x, x, alpha=2), NOT_TAKEN.format("add", "alpha")),
        (lambda x: torch.div(x, 2, rounding_mode="floor"), NOT_TAKEN.format("div", "rounding_mode")),
        (lambda x: torch.clamp(x, max=1), NOT_TAKEN.format("clamp", "")),
        (torch.sum, NOT_TAKEN.format("sum", "dim")),
        (torch.squeeze, NOT_TAKEN.format("squeeze", "dim")),
        (lambda x: torch.linalg.vector_norm(x, 1, 1), NOT_TAKEN.format("vector_norm", "positional")),
        (lambda x: torch.linalg.vector_norm(x, ord=1, dim=1), NOT_TAKEN.format("vector_norm", "ord")),
        (lambda x: F.conv2d(x, torch.ones(2, 6, 1, 1), stride=2), NOT_TAKEN.format("conv2d", "stride")),
        (lambda x: F.conv2d(x, torch.ones(2, 6, 1, 1), None, (2, 2)), NOT_TAKEN.format("conv2d", "positional")),
        (
            lambda x: F.conv2d(x, torch.ones(2, 6, 1, 3), padding=1),
            "padding is lowered as a number for each of two axes, not as 1",
        ),
        (lambda x: torch.flatten(x, 1, 2), NOT_TAKEN.format("flatten", "positional")),
        (lambda x: x.softmax(1), LACKS.format(r"\.softmax")),
        (lambda x: x.T, LACKS.format(r"\.T")),
        (lambda x: x.device, LACKS.format(r"\.device")),
        (lambda x: x[0], r"^blocks\.3\.attend: only slices .* not x\[0\]"),
        (lambda x: x[..., :1], "only slices"),
        (lambda x: x[:, None], "only slices"),
        (lambda x: x[:, ::2], "only slices .* without steps"),
        (lambda x: x[:, :, :, :, :1], "only slices"),
        (lambda x: x.to(torch.float64), r"^blocks\.3\.attend asks for torch\.float64, a program has torch\.float32, "),
        (lambda x: torch.einsum("bchk,bkhq->bcq", x, x), r"^blocks\.3\.attend: MIL has no einsum 'bchk,bkhq->bcq'"),
        (lambda x: x * float("inf"), r"blocks_3_attend_mul_y: inf is not a finite fp16 number"),
        (lambda x: x + float("nan"), "nan is not a finite fp16 number"),
        (lambda x: x - 65536, "65536 is not a finite fp16 number"),
        (lambda x: torch.clamp(x, min=1e-12), "1e-12 is zero in fp16, the least is 6e-08"),
        (lambda x: x + torch.full((1, 6, 1, 1), 1e5), "100000 among the weights is not a finite fp16 number"),
        (lambda x: torch.cat([x, torch.transpose(x, 1, 3)], 1), r"^blocks\.3\.attend: MIL refuses concat here: "),
        (lambda x: x + torch.ones(1, 5, 1, 1), r"^blocks\.3\.attend: MIL refuses add here: "),
        (lambda x: x + x.to(torch.int32), "MIL refuses add here"),
    ],
)
def test_refused(compute: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        build(Deep(compute), [TOKENS], SINGLE)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not nn.modules.module._global_forward_hooks  # the next export is not told of this one's modules
    assert not nn.modules.module._global_forward_pre_hooks


@pytest.mark.parametrize(
    ("name", "compute"),
    {
        "abs": abs,
        "and": lambda x: x & x,
        "bool": lambda x: x if x else -x,
        "contains": lambda x: 1 in x,
        "delitem": lambda x: x.__delitem__(0),
        "eq": lambda x: x == 0,
        "float": float,
        "floordiv": lambda x: x // 2,
        "ge": lambda x: x >= 0,
        "gt": lambda x: x > 0,
        "iadd": lambda x: x.__iadd__(1),
        "imul": lambda x: x.__imul__(1),
        "index": lambda x: [1, 2][x],
        "int": int,
        "invert": lambda x: ~x,
        "isub": lambda x: x.__isub__(1),
        "iter": list,
        "itruediv": lambda x: x.__itruediv__(1),
        "le": lambda x: x <= 0,
        "len": len,
        "lshift": lambda x: x << 1,
        "lt": lambda x: x < 0,
        "matmul": lambda x: x @ x,
        "mod": lambda x: x % 2,
        "ne": lambda x: x != 0,
        "neg": lambda x: -x,
        "or": lambda x: x | x,
        "pos": lambda x: +x,
        "pow": lambda x: x**2,
        "rfloordiv": lambda x: 2 // x,
        "rmatmul": lambda x: 2 @ x,
        "rmod": lambda x: 2 % x,
        "rpow": lambda x: 2**x,
        "rshift": lambda x: x >> 1,
        "rtruediv": lambda x: 1 / x,
        "setitem": lambda x: x.__setitem__(0, 1),
        "xor": lambda x: x ^ x,
    }.items(),
)
def test_operators_that_symbols_lack(name: str, compute: Callable[[Any], Any]) -> None:
    """None of them may answer as it does for any Python object."""
    assert name in LACKED
    with pytest.raises(ExportError, match=LACKS.format(f"__{name}__")):
        build(Deep(compute), [TOKENS], SINGLE)  # type: ignore[arg-type]


def test_every_operator_of_tensors_is_lowered_or_refused() -> None:
    """What Symbol left to Python would be an error of another kind, or none at all. `x ^= y` falls back on `x ^ y`."""
    of_tensors = vars(Tensor).keys() | vars(torch._C.TensorBase).keys()
    dunder = {name for name in of_tensors & set(dir(operator)) if name.startswith("__") and name != "__doc__"}
    assert len(dunder) > 30
    assert {name for name in dunder - vars(Symbol).keys() if name.replace("__i", "__") not in vars(Symbol)} == set()


@pytest.mark.parametrize("bad", [65505.0, float("inf"), float("nan")])
def test_a_weight_beyond_fp16_is_named(bad: float, tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = Nested()
    module.blocks[1]["up"].weight[2, 3] = bad  # type: ignore[index]
    with pytest.raises(ExportError, match=r"^blocks\.1\.up\.weight: .* among the weights is not a finite fp16 number$"):
        written(module, tmp_path)
    assert list(tmp_path.iterdir()) == []
    module.blocks[1]["up"].weight[2, 3] = 65504.0  # type: ignore[index]
    written(module, tmp_path)


def test_a_tiny_eps_does_not_become_zero(tmp_path: Path) -> None:
    """Where all channels are equal, 0 / sqrt(0 + eps) must be 0 and not NaN."""
    program = written(Small(lambda m, x: channel_norm(x * 0, m.gamma, m.beta, 1e-12)), tmp_path)
    (op,) = (op for op in program.functions["main"].ops if op.type == "layer_norm")
    assert float(program.functions["main"].constants[str(op.inputs["epsilon"][0])].array) == EPS_LEAST
    got = program.evaluate(ids())["logits"]
    assert np.array_equal(got, np.broadcast_to(Small(lambda m, x: x).beta[None, :, None, None], got.shape))


def test_outputs_must_be_computed() -> None:
    message = "start_logits, end_logits are not all computed, each for itself, from the inputs"
    for answer in (
        lambda m, x: (x, x),
        lambda m, x: (x, m.table),
        lambda m, x: (x, m.ids),
    ):
        module: Any = Small(lambda m, x: x)
        module.OUTPUTS = ("start_logits", "end_logits")
        inner = module.forward
        module.forward = lambda *inputs, answer=answer, m=module, inner=inner: answer(m, inner(*inputs)[0])
        with pytest.raises(ExportError, match=message):
            build(module, [TOKENS], SINGLE)


def test_what_was_computed_before_is_not_computed_again(tmp_path: Path) -> None:
    def compute(m: Small, x: Tensor) -> Tensor:
        one, other = (torch.tanh(x * m.scale) + 1.5 for _ in range(2))
        return one + torch.tanh(x * m.bias[0]) + other + 1.0

    module = Small(compute)
    program = written(module, tmp_path)
    kinds = [op.type for op in program.function("main").ops]
    assert [kinds.count(kind) for kind in ("tanh", "mul", "add")] == [2, 2, 4]
    assert psnr(expected(module), program.evaluate(ids())["logits"]) > 60
