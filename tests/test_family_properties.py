"""Any config that a family's CONFIG takes is reproduced, and any value that it does not take is refused by its name."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hft2ane.errors import UnsupportedConfig
from hft2ane.families import EPSILON, LAYERS, SIZE, family, reproduced
from hft2ane.reference import load
from tests.families import ROWS
from tests.test_families import EXACT, batches, build, edit, exact

pytestmark = pytest.mark.slow

CHANNELS = st.integers(4, 24)
SMALL = {
    "vocab_size": st.integers(20, 70),
    "max_position_embeddings": st.integers(16, 24),
    "type_vocab_size": st.integers(1, 3),
    "num_labels": st.integers(1, 5),
}
QUICK = settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])


def values(key: str, allowed: Any) -> st.SearchStrategy[Any]:
    """Small values among those that CONFIG has for the key."""
    if allowed is SIZE:
        return SMALL.get(key, CHANNELS)
    if allowed is LAYERS:
        return st.integers(1, 3)
    if allowed is EPSILON:
        return st.sampled_from([1e-12, 1e-7, 1e-5, 1e-3])
    if isinstance(allowed, tuple):
        return st.sampled_from([value for value in allowed if value is not None])
    raise AssertionError(f"{key}: its row has to say what to draw among {allowed}")


@st.composite
def configs(draw: st.DrawFn, name: str, task: str) -> dict[str, Any]:
    row, ours = ROWS[name], family(name)
    if ours.parts:
        of = {part: draw(configs("bert", its_task)) for part, its_task in ours.parts.items()}
        of["decoder"]["add_cross_attention"] = True
        return {**row.tiny, **{part: {"model_type": "bert", **config} for part, config in of.items()}}
    kind = transformers.AutoConfig.for_model(name)
    keys = {
        key: allowed
        for key, allowed in {**ours.config, **ours.tasks[task].CONFIG}.items()
        if hasattr(kind, key) or key in row.drawn
    }
    config = {key: draw(row.drawn[key] if key in row.drawn else values(key, allowed)) for key, allowed in keys.items()}
    names = {key: kind.attribute_map.get(key, key) for key in ("hidden_size", "num_attention_heads")}
    heads = draw(st.integers(1, 4))
    config[names["num_attention_heads"]] = heads
    config[names["hidden_size"]] = heads * draw(st.integers(2, 9)) * (2 if heads == 1 else 1)
    if config.get("num_labels") == 1:  # transformers takes not every problem with one label
        config.pop("problem_type", None)
    row.settle(config)
    return {**row.tiny, **config}


@contextlib.contextmanager
def saved(model: Any) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        yield Path(folder)


@pytest.mark.parametrize("name", ROWS)
@QUICK
@given(data=st.data())
def test_any_config_that_is_taken_is_reproduced(name: str, data: st.DataObject) -> None:
    task = data.draw(st.sampled_from(sorted(family(name).tasks)))
    config = data.draw(configs(name, task))
    model = build(name, task, transformers.AutoConfig.for_model(name, **config))
    with saved(model) as folder:
        assert exact(model, load(folder, None), batches(model, task)) >= EXACT


ODD = st.one_of(
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=12),
    st.lists(st.integers(0, 3), max_size=2),
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny encoder of each family."""
    made = {}
    for name, row in ROWS.items():
        made[name] = tmp_path_factory.mktemp(name)
        task = next(iter(family(name).tasks))
        build(name, task, transformers.AutoConfig.for_model(name, **row.tiny)).save_pretrained(made[name])
    return made


@pytest.mark.parametrize("name", ROWS)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_value_that_is_not_taken_is_refused_by_its_name(
    name: str, checkpoints: dict[str, Path], data: st.DataObject
) -> None:
    ours = family(name)
    key = data.draw(st.sampled_from(sorted(ours.config)))
    allowed = reproduced(ours.config[key], transformers.AutoConfig.for_model(name, **ROWS[name].tiny))
    value = data.draw(ODD.filter(lambda value: value not in allowed))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.safetensors").hardlink_to(checkpoints[name] / "model.safetensors")
        (Path(folder) / "config.json").write_bytes((checkpoints[name] / "config.json").read_bytes())
        with pytest.raises(UnsupportedConfig) as caught:
            load(edit(Path(folder), **{key: value}), None)
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)
