"""`stowplan routing`: how a mixture routes its tokens, and what caches of experts would hit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stowplan.errors import InputError

if TYPE_CHECKING:
    from stowplan.cli.tables import Line
    from stowplan.routing.trace import RoutingTrace

_TOKENS = 1024
_SEGMENT = 16
_CLASSES = 8
_SHARES = (0.25, 0.5, 0.75)


def routing(
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Synthetic routing of this mixture.")
    ] = None,
    trace: Annotated[
        str | None, typer.Option("--trace", metavar="FILE.jsonl", help="Recorded routing: {layer, experts} per line.")
    ] = None,
    experts: Annotated[
        int | None, typer.Option("--experts", min=1, max=4096, help="Routed experts per layer of the recorded model.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the synthetic routing.")] = 0,
) -> None:
    """Show popularity, locality and hit rates of caches."""
    from stowplan.cli.tables import Line, print_lines

    if (model is None) == (trace is None):
        raise InputError("give --model for synthetic routing, or --trace with --experts for a recorded one")
    if trace is not None:
        from pathlib import Path

        from stowplan.routing.reading import read_routing

        if experts is None:
            raise InputError(f"--trace {trace}: how many routed experts has each layer? give --experts")
        lines: list[Line] = []
        for layer, found in read_routing(Path(trace), experts).items():
            lines += [Line(""), Line(f"  layer {layer}", "answer"), *routing_lines(found)]
        print_lines(lines)
        return
    print_lines(_synthetic(model or "", seed))


def _synthetic(name: str, seed: int) -> list[Line]:
    from stowplan.cli.tables import Line, labelled
    from stowplan.models import load_model
    from stowplan.routing.generate import generate, profile_for

    model = load_model(name)
    routed = next((layer.experts for layer in model.layers if layer.experts), None)
    if routed is None:
        raise InputError(f"{model.name} has no routed experts; name a mixture")
    profile = profile_for(model.key)
    found = generate(profile, routed.total, routed.active, _TOKENS, seed)
    shape = f"popularity {profile.popularity:g}, persistence {profile.persistence:g} ({profile.kind}): {profile.source}"
    return [
        Line(""),
        Line(f"  {model.name}: {routed.active} of {routed.total} experts per token", "answer"),
        *labelled("profile", shape),
        *routing_lines(found),
    ]


def routing_lines(trace: RoutingTrace) -> list[Line]:
    """Lines of one layer's routing."""
    from stowplan.cli.tables import Line, labelled, table
    from stowplan.routing.caches import hit_rate
    from stowplan.routing.metrics import segment_cache, segment_coverage, segment_routing
    from stowplan.routing.trace import popularity_classes

    active = max(1, round(trace.active))
    double = min(trace.experts, 2 * active)
    segment = min(_SEGMENT, len(trace.tokens))
    widest = max(double, *map(len, trace.tokens))
    policies = ["static", "lru", "lfu", *(["score"] if trace.scores is not None else []), "belady"]
    sizes = sorted({max(1, round(share * trace.experts)) for share in _SHARES} | {double})
    rows = [[f"{size}", *(f"{hit_rate(trace, size, policy):.0%}" for policy in policies)] for size in sizes]
    served = ", ".join(f"{count} x {mean:.1%}" for count, mean in popularity_classes(trace.popularity(), _CLASSES))
    return [
        *labelled("tokens", f"{len(trace.tokens):,}, {trace.active:.3g} experts each"),
        *labelled("popularity", f"experts by the share of tokens that each serves: {served}"),
        *labelled(
            "locality",
            f"of {segment} tokens in a row the best {active} experts serve "
            f"{segment_coverage(trace, segment, active):.0%}, the best {double} "
            f"{segment_coverage(trace, segment, double):.0%}; segment routing best performance (SRP) "
            f"{segment_routing([trace], segment).f1:.1%}; a cache of {widest} that knows the segment ahead hits "
            f"{segment_cache([trace], segment, widest):.0%} (SCH)",
        ),
        Line(""),
        *table(["experts held", *policies], rows, numbers=range(len(policies) + 1)),
    ]
