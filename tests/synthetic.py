"""A measurement in its form, whose figures are made up: no Mac measured anything of it."""

from hft2ane import keys
from hft2ane.records.fidelity import Fidelity, Measure
from hft2ane.records.lint import Calibrated, Measured, Placed
from hft2ane.records.mac import Latency, Mac, Measurement, Off, Residency, Unfinished, Unit

MAC = Mac("Apple M9 Pro", "Mac99,1", 16 * 2**30, "15.5", "24F74")
PACKAGES = {"float16": "a" * 64}


def synthetic(mac: Mac = MAC, packages: dict[str, str] = PACKAGES, repo: str = "org/name-ane") -> Measurement:
    """As a Mac with an engine would have made it, in form; its figures are made up."""
    units: tuple[Unit, ...] = ("CPU_ONLY", "CPU_AND_NE")
    measure = Measure("logits", 64, "one token", 1, 71.0, 70.25, 71.5, 0.99999, None, "a text")
    known = Measured(400, {"ane": 0.975, "cpu": 0.025}, {"ane": 0.999, "cpu": 0.001}, {"ane": 0.9, "cpu": 0.1})
    off = Off("main", "gather", "embed", 1, "cpu", ("cpu", "gpu"), "cpu", 0.1, "Core ML does not support it")
    placed = Placed("main", 410, 10**9, {"ane": 0.99, "cpu": 0.01}, {"ane": 1.0}, known)
    return Measurement(
        repo=repo,
        mac=mac,
        protocol=keys.PROTOCOL,
        units=units,
        packages=packages,
        fidelity=tuple(
            Fidelity("float16", f"coreml {unit}", 50.0, 71.0, 70.25, 71.5, None, (measure,)) for unit in units
        ),
        latency=tuple(
            Latency("float16", "main", unit, 3, 30, ms, ms + 1, ms - 0.5, 1.0, 9.5, 0.25, 3 * 10**8, 10**8, 2 * 10**8)
            for unit, ms in zip(units, (9.5, 1.375), strict=True)
        ),
        residency=(Residency("float16", (placed,), (off,), (Calibrated("gather-entry", "gather", "cpu", "cpu", 1),)),),
        greedy=(),
        failures=(),
        unfinished=(Unfinished("float16", "main", "CPU_AND_NE", "plan", "plan did not finish in 600 s on CPU_AND_NE"),),
        not_measured=(),
        hft2ane="0.1.0",
        coremltools="9.0",
        python="3.12.1",
        seconds=9.0,
    )
