"""What `stowplan show system` prints of a published system: paper, idea, mechanisms, its own numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stowplan.cli.tables import Line
    from stowplan.systems.published.base import Published


def published_lines(name: str) -> list[Line]:
    """Lines of one declaration.

    Raises:
        UnknownName: no engine and no published system of that name.
    """
    from stowplan.cli.tables import Line, labelled, paragraph, table
    from stowplan.errors import UnknownName
    from stowplan.systems import list_systems
    from stowplan.systems.published import load_published, published_keys

    if name not in published_keys():
        raise UnknownName("system", name[:60], [*list_systems(), *published_keys()])
    found = load_published(name)
    lines = [Line(f"  {found.title}", "answer"), Line("")]
    lines += [*paragraph(found.idea), Line("")]
    lines += labelled("paper", found.paper)
    lines += labelled("answers", "exact" if found.quality is None else f"approximate: {found.quality}")
    lines += labelled("kernels", f"{found.kernels}; see hwprofiles/kernels/{found.kernels}.toml")
    if found.needs:
        lines += labelled("needs", ", ".join("a mixture of experts" if n == "experts" else n for n in found.needs))
    if found.hardware is not None:
        lines += labelled("hardware", found.hardware)
    lines += [Line(""), *table(["mechanism", "value", "what a plan may choose"], _mechanisms(found))]
    constants = [*found.constants, *found.figures.values()]
    if constants:
        rows = [[each.name, f"{each.value:g}", each.kind, each.where] for each in constants]
        lines += [Line(""), *table(["its own number", "value", "known by", "where it was read"], rows)]
    return lines


def _mechanisms(found: Published) -> list[list[str]]:
    """Rows of every field that differs from the neutral one, with the values that a plan tries."""
    from stowplan.systems.mechanisms.policy import Policy
    from stowplan.systems.published.base import differences

    fixed = differences(Policy(), found.policy)
    tried: dict[str, list[str]] = {}
    for policy in found.variants():
        for path, value in differences(Policy(), policy).items():
            shown = tried.setdefault(path, [])
            if str(value) not in shown:
                shown.append(str(value))
    rows = []
    for path in found.mechanisms():
        values = tried.get(path, [])
        open_ = path in {field for group in found.choices for each in group for field in each}
        filled = path.split(".")[0] in found.fills and path.endswith((".gpu", ".ram"))
        choice = "what fits" if filled else ", ".join(values) if open_ else ""
        rows.append([path, str(fixed.get(path, "neutral")), choice])
    return rows
