"""What coremltools writes for a package of ours: read by its own reader, and written again by its own writer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coremltools
from coremltools.converters.mil.backend.mil.load import load as backend
from coremltools.converters.mil.frontend.milproto.load import load as frontend

from hft2ane import package
from hft2ane.mil.proto import Model

TARGETS = {7: coremltools.target.iOS16, 9: coremltools.target.iOS18}


def spec_of(path: Path) -> Any:
    return Model.FromString((path / package.SPEC).read_bytes())


def reread(path: Path) -> Any:
    """Our package as a program of coremltools. Its reader forgets the order of functions and which constants share a
    blob, so that is said again."""
    spec = spec_of(path)
    program = frontend(spec, spec.specificationVersion, str((path / package.WEIGHTS).parent))
    for name, function in spec.mlProgram.functions.items():
        read = {op.name: op for op in program.functions[name].operations}
        for operation in function.block_specializations[function.opset].operations:
            op = read[operation.attributes["name"].immediateValue.tensor.strings.values[0]]
            for parameter, value in values(operation):
                if value.WhichOneof("value") == "blobFileValue":
                    # A blob that is shared by constants of several shapes is one that coremltools cannot express.
                    shape = [dimension.constant.size for dimension in value.type.tensorType.dimensions]
                    held = op if operation.type == "const" else op.inputs[parameter].op
                    held.weight_id = f"{value.blobFileValue.offset} {shape}"
    program.functions = {each.name: program.functions[each.name] for each in spec.description.functions} or (
        program.functions
    )
    program.default_function_name = spec.description.defaultFunctionName or "main"
    program.export_as_multifunction = bool(spec.description.functions)
    return program


def values(operation: Any) -> Iterator[tuple[str, Any]]:
    """What an operation has in place of variables."""
    yield from operation.attributes.items()
    for parameter, argument in operation.inputs.items():
        yield from ((parameter, each.value) for each in argument.arguments if each.WhichOneof("binding") == "value")


def converted(path: Path, program: Any, version: int) -> Path:
    """The package that `coremltools.convert` makes of a program, without any pass."""
    model = coremltools.convert(
        program,
        convert_to="mlprogram",
        pass_pipeline=coremltools.PassPipeline.EMPTY,
        minimum_deployment_target=TARGETS[version],
        skip_model_load=True,
    )
    model.save(str(path))
    return path


def bare(spec: Any) -> Any:
    """The spec without what only describes: texts, metadata, and the note of which converter made it."""
    for described in (spec.description, *spec.description.functions):
        for feature in (*described.input, *described.output):
            feature.ClearField("shortDescription")
    spec.description.ClearField("metadata")
    spec.mlProgram.attributes.pop("buildInfo", None)
    return spec


def assert_same(mine: Path, theirs: Path) -> None:
    """The same protobuf, and the same weights byte for byte."""
    assert bare(spec_of(mine)) == bare(spec_of(theirs))
    assert weights(mine) == weights(theirs)


def weights(path: Path) -> bytes:
    file = path / package.WEIGHTS
    return file.read_bytes() if file.exists() else b""


def assert_as_coremltools_writes_it(path: Path, folder: Path) -> None:
    """The package is what coremltools' writer makes of what its reader finds in it."""
    spec = spec_of(path)
    again = backend(reread(path), weights_dir=str(folder), specification_version=spec.specificationVersion)
    assert bare(spec) == bare(again)
    file = folder / "weight.bin"
    assert weights(path) == (file.read_bytes() if file.exists() else b"")
