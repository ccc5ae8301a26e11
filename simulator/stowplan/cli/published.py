"""Every document behind ``--json`` by the name under which its schema is published.

Apart from the documents themselves, so that a command loads no other form than its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from stowplan.cli.batching_document import BatchingDocument
from stowplan.cli.calibration_document import (
    EngineFitDocument,
    MeasurementsDocument,
    ProfileDifferencesDocument,
    ProfileDocument,
    ServingFitDocument,
)
from stowplan.cli.comparison_document import ComparisonDocument
from stowplan.cli.documents import Answer
from stowplan.cli.listing_document import ListDocument
from stowplan.cli.replay_document import CapacityDocument, ReplayDocument
from stowplan.cli.trace_document import TraceListDocument, TraceStatisticsDocument
from stowplan.cli.unexpressed_document import UnexpressedDocument
from stowplan.cli.validation_document import AblationDocument, ValidationDocument
from stowplan.cli.whatif_document import BreakEvenDocument, SweepDocument, WhatIfDocument
from stowplan.plan import Plan, Prediction

SCHEMAS: Mapping[str, type[BaseModel]] = {
    "plan": Plan,
    "prediction": Prediction,
    "answer": Answer,
    "comparison": ComparisonDocument,
    "validation": ValidationDocument,
    "ablation": AblationDocument,
    "unexpressed": UnexpressedDocument,
    "batching": BatchingDocument,
    "replay": ReplayDocument,
    "capacity": CapacityDocument,
    "whatif": WhatIfDocument,
    "sweep": SweepDocument,
    "breakeven": BreakEvenDocument,
    "traces": TraceListDocument,
    "trace-statistics": TraceStatisticsDocument,
    "measurements": MeasurementsDocument,
    "profile": ProfileDocument,
    "profile-differences": ProfileDifferencesDocument,
    "engine-fit": EngineFitDocument,
    "serving-fit": ServingFitDocument,
    "list": ListDocument,
}
