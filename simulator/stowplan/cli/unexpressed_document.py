"""The document of ``stowplan validate --unexpressed --json``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field, RootModel

from stowplan.cli.document_record import DocumentRecord

if TYPE_CHECKING:
    from stowplan.validate.unexpressed import Unexpressed


class LeftOut(DocumentRecord):
    """Measurements of one system that are left out for one reason."""

    reason: str = Field(description="why they are no case")
    system: str = Field(description="what was measured")
    sources: list[str] = Field(description="where they were published")
    ids: list[str] = Field(description="names of the records")


class UnexpressedDocument(RootModel[list[LeftOut]]):
    """The document of ``stowplan validate --unexpressed --json``, the commonest reasons first."""


def unexpressed_document(groups: Iterable[Unexpressed]) -> UnexpressedDocument:
    """The document of what is left out."""
    return UnexpressedDocument(
        [
            LeftOut(reason=each.reason, system=each.system, sources=list(each.sources), ids=list(each.ids))
            for each in groups
        ]
    )
