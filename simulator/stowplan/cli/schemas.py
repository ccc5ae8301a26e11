"""`stowplan schema`: the published form of every document."""

from __future__ import annotations

from typing import Annotated

import typer

from stowplan.errors import InputError


def schema(
    document: Annotated[
        str | None, typer.Argument(metavar="DOCUMENT", help="Which one; without it the documents are listed.")
    ] = None,
) -> None:
    """Print the JSON schema of a document, or say which documents there are."""
    from stowplan.cli.documents import as_json
    from stowplan.cli.published import SCHEMAS
    from stowplan.cli.tables import print_lines, print_verbatim, table

    if document is None:
        print_lines(
            table(["document", "what it is"], [[name, _first_line(each.__doc__)] for name, each in SCHEMAS.items()])
        )
        return
    if document not in SCHEMAS:
        raise InputError(f"no document is called '{document[:40]}'; it is one of {', '.join(SCHEMAS)}")
    print_verbatim(as_json(SCHEMAS[document].model_json_schema()))


def _first_line(text: str | None) -> str:
    return (text or "").split("\n")[0].replace("``", "").rstrip(".")
