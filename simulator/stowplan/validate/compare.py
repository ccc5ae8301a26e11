"""A plain table of errors for those who fit constants: ``python -m stowplan.validate.compare [SYSTEM ...] [--all]``.

``stowplan validate`` is the same with filters, processes and pages; this shows both parts side by side, line by line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from stowplan.validate.parallel import run_all
from stowplan.validate.sources import jobs
from stowplan.validate.statistics import Errors
from stowplan.validate.validation import Validation, summarise


def lines(found: Validation, *, every: bool) -> Iterator[str]:
    """The table; with `every` a line for each figure before it."""
    if every:
        for row in sorted(found.rows, key=lambda row: (row.family, row.ratio)):
            yield (
                f"{row.family:32} {row.part:8} {row.id:36} predicted {row.predicted:10.2f}  measured "
                f"{row.measured:10.2f}  ratio {row.ratio:5.2f}  {row.shares[0][0] if row.shares else ''}"
            )
    yield f"{'family':44} figures records  median signed  median  p90    inside 80 %"
    for part, families in (("fit", found.fitted), ("held-out", found.held_out)):
        yield from (_line(f"{each.name} {part}", each) for each in families)
    for refused in found.refused:
        yield f"{refused.unit.name}: {refused.reason}"


def _line(name: str, found: Errors) -> str:
    inside = "-" if found.interval_coverage is None else f"{found.interval_coverage:.0%}"
    return (
        f"{name:44} {found.n:7} {found.records:7}  {found.median_signed_error:+13.0%}  {found.median_abs_error:6.0%}"
        f"  {found.p90_abs_error:5.0%}  {inside:>11}"
    )


def main(arguments: Sequence[str]) -> None:
    """Print the tables."""
    systems = [word for word in arguments if word != "--all"]
    chosen = [job for job in jobs() if not systems or job.unit.system in systems]
    found = summarise([job.unit for job in chosen], run_all(chosen, workers=1))
    print("\n".join(lines(found, every="--all" in arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
