"""A compared measurement and the run that it came from, for tests to vary."""

from __future__ import annotations

from stowplan.validate.rows import Row
from stowplan.validate.sources import Unit

UNIT = Unit("a", "a", "llama.cpp", "held-out", ("partial",), "gpu + cpu", "gpu + cpu + ram", ("decode",))
ROW = Row(
    id="a",
    record="a",
    system="llama.cpp",
    kind="partial",
    figure="decode",
    part="held-out",
    hardware="gpu + cpu",
    machine="gpu + cpu + ram",
    model="model q4",
    run="-ngl 10",
    question="decode",
    predicted=11.0,
    measured=10.0,
)
