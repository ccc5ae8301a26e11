"""The table of predicted against measured: ``python -m stowplan.validate.compare [FAMILY ...] [--all]``.

Every case goes through the same door as a user's command. One line per family, kind, figure and split; with ``--all``
one line per figure too. Nothing is tuned here: what the constants were fitted to is marked ``fit``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from stowplan.validate.cases import load_cases
from stowplan.validate.run import Failure, Outcome, Summary, run_case, summarise


def collect(families: Sequence[str]) -> tuple[list[Outcome], list[Failure]]:
    """Outcomes and failures of every case of the families, all when none is named."""
    outcomes: list[Outcome] = []
    failures: list[Failure] = []
    for case in load_cases():
        if families and case.family not in families:
            continue
        result = run_case(case)
        if isinstance(result, Failure):
            failures.append(result)
        else:
            outcomes += result
    return outcomes, failures


def summaries(outcomes: Iterable[Outcome]) -> list[Summary]:
    """One summary per family, kind, figure and split."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        case = outcome.case
        groups.setdefault(f"{case.family} {case.kind} {outcome.figure} {case.split}", []).append(outcome)
    return [summarise(name, groups[name]) for name in sorted(groups)]


def table(found: Sequence[Summary]) -> list[str]:
    """Lines of the summary table."""
    lines = [f"{'group':44} figures records  median signed  median  p90    inside 80 %"]
    for each in found:
        inside = "-" if each.within is None else f"{each.within:.0%}"
        lines.append(
            f"{each.name:44} {each.figures:7} {each.records:7}  {each.median_signed:+13.0%}  {each.median:6.0%}"
            f"  {each.p90:5.0%}  {inside:>11}"
        )
    return lines


def main(arguments: Sequence[str]) -> None:
    """Print the tables."""
    families = [word for word in arguments if word != "--all"]
    outcomes, failures = collect(families)
    if "--all" in arguments:
        for each in sorted(outcomes, key=lambda o: (o.case.family, o.case.kind, o.figure, o.ratio)):
            print(
                f"{each.case.family:12} {each.case.kind:8} {each.figure:10} {each.case.split:4} {each.case.id:36} "
                f"predicted {each.predicted:10.2f}  measured {each.measured:10.2f}  ratio {each.ratio:5.2f}  "
                f"{each.bottleneck}"
            )
        print()
    print("\n".join(table(summaries(outcomes))))
    print(f"\n{len(outcomes)} figures; {len(failures)} cases have no prediction:")
    for failure in failures:
        print(f"  {failure.case.id}: {failure.reason}")


if __name__ == "__main__":
    main(sys.argv[1:])
