"""Classes of requests of like lengths, and their two views: all as short as the shortest, or as long as the longest.

Batches of the shortest view cost no more and hold no less than the requests themselves, so what bounds them bounds
the requests; batches of the longest view can be filled with any members of the classes.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stowplan.planner.batching_costs import Counts, Requests, Seconds


@dataclass(frozen=True, slots=True)
class ClassView:
    """Classes, longest outputs first.

    Attributes:
        members: request indices of each class, longest outputs first.
        output, reserved: tokens that a request of each class makes, and reserves.
    """

    members: tuple[Counts, ...]
    output: Counts
    reserved: Counts

    @property
    def count(self) -> Counts:
        """Requests of each class."""
        return np.asarray([len(members) for members in self.members], np.int64)

    def class_of(self) -> Counts:
        """The class of every request."""
        found = np.zeros(int(self.count.sum()), np.int64)
        for number, members in enumerate(self.members):
            found[members] = number
        return found


def length_classes(requests: Requests, most: int) -> list[Counts]:
    """At most `most` classes, cut where they lose most by taking every request for the shortest of its class.

    A request's share of a batch is about its output times what it reserves, so a class loses
    ``sum of (output - least output) reserved`` in one direction and ``sum of output (reserved - least)`` in the other.
    """
    heap = [_cut(requests, np.arange(len(requests), dtype=np.int64))]
    while len(heap) < most and heap[0][0] < 0:
        _, _, members, axis, value = heapq.heappop(heap)
        along = _axes(requests, members)[axis]
        heapq.heappush(heap, _cut(requests, members[along < value]))
        heapq.heappush(heap, _cut(requests, members[along >= value]))
    return [entry[2] for entry in sorted(heap, key=lambda entry: entry[1])]


def view(classes: Sequence[Counts], requests: Requests, *, longest: bool) -> ClassView:
    """The view in which every request is as long as the longest, or as short as the shortest, of its class."""
    extreme = np.max if longest else np.min
    output = np.asarray([extreme(requests.output[members]) for members in classes], np.int64)
    reserved = np.asarray([extreme(requests.reserved[members]) for members in classes], np.int64)
    order = np.lexsort((-reserved, -output))
    members = tuple(
        classes[k][np.lexsort((classes[k], -requests.reserved[classes[k]], -requests.output[classes[k]]))]
        for k in order
    )
    return ClassView(members, output[order], reserved[order])


def _axes(requests: Requests, members: Counts) -> tuple[Counts, Counts]:
    return requests.output[members], requests.reserved[members]


def _cut(requests: Requests, members: Counts) -> tuple[float, int, Counts, int, int]:
    """What the best cut of a class gains (negative, for the heap), its first member, itself, and that cut."""
    output, reserved = _axes(requests, members)
    best = (0.0, 0, 0)
    for axis, (along, across) in enumerate(((output, reserved), (reserved, output))):
        order = np.argsort(along, kind="stable")
        values = along[order]
        beyond: Seconds = np.cumsum(across[order][::-1].astype(np.float64))[::-1]
        gains = (values - values[0]) * beyond
        at = int(np.argmax(gains))
        if gains[at] > best[0]:
            best = (float(gains[at]), axis, int(values[at]))
    return -best[0], int(members.min()), members, best[1], best[2]
