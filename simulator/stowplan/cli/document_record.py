"""What the documents behind ``--json`` have in common: no field beyond the published ones, and none changed later."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class DocumentRecord(BaseModel):
    """Part of a document; its validator is built at first use, so that importing many of them costs little."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
