"""`stowplan schema`: the published form of every document."""

from __future__ import annotations

from typing import Annotated

import typer

from stowplan.errors import InputError


def schema(
    document: Annotated[
        str, typer.Argument(metavar="DOCUMENT", help="plan, prediction, answer, comparison, validation or ablation.")
    ],
) -> None:
    """Print the JSON schema of a document."""
    from stowplan.cli.documents import SCHEMAS, as_json
    from stowplan.cli.tables import print_verbatim

    if document not in SCHEMAS:
        raise InputError(f"no document is called '{document[:40]}'; it is one of {', '.join(SCHEMAS)}")
    print_verbatim(as_json(SCHEMAS[document].model_json_schema()))
