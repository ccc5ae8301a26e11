"""Column generation over length classes: the master programme, its pricing, and a bound that holds for the requests.

A column is a batch by counts: a[k] requests of class k. The master programme covers every class at least cost,

    minimise  sum over S of c[S] x[S]   subject to   sum over S of a[S,k] x[S] >= N[k],   x >= 0,

and new columns are those with ``sum over k of pi[k] a[k] > c``, found by dynamic programming over the classes from the
longest output to the shortest: the j-th request costs ``(h(j) - h(j - 1)) output``, so a state is a number of requests
and the cache that they reserve.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from stowplan.planner.batching_classes import ClassView
from stowplan.planner.batching_costs import Counts, Limits, Requests, Seconds
from stowplan.planner.batching_methods import Batches

_CACHE_UNITS = 1500
"""Steps that the cache is divided into while pricing; what a request reserves is rounded to them."""

_ROUNDS = 60
_COLUMNS_PER_ROUND = 10
_TOLERANCE = 1e-7
_ROUNDING_GAP = 2e-3
_ROUNDING_NODES = 50  # nodes, not seconds, end the search: the answer must not depend on the machine


@dataclass(slots=True)
class Master:
    """The master programme of one view and what has been learnt of it.

    Attributes:
        view: classes.
        rank_s: seconds per step of the j-th running request.
        units, capacity: what a request of each class reserves, and the cache, in whole steps.
        most: requests of a batch.
        columns: counts by class, without repetition.
        value: least seconds over the columns so far, fractions of batches allowed.
        bound: seconds that no grouping of the view's requests can beat.
    """

    view: ClassView
    rank_s: Seconds
    units: Counts
    capacity: int
    most: int
    columns: dict[tuple[int, ...], float] = field(default_factory=dict)
    value: float = np.inf
    bound: float = 0.0

    @staticmethod
    def of(view: ClassView, step_s: Seconds, limits: Limits, *, longest: bool) -> Master:
        """The programme of a view; sizes are rounded up for the longest view, and down for the shortest."""
        step = max(1, limits.cache_tokens // _CACHE_UNITS)
        units = -(-view.reserved // step) if longest else view.reserved // step
        capacity = limits.cache_tokens // step
        most = min(limits.max_batch, len(step_s), int(view.count.sum()))
        if units.min() > 0:
            most = min(most, capacity // int(units.min()))
        return Master(view, np.diff(np.concatenate(([0.0], step_s))), units, capacity, max(1, most))

    def add(self, counts: Iterable[int]) -> bool:
        """Add a column; False when it is known or does not keep the limits."""
        column = tuple(counts)
        held = sum(int(units) * count for units, count in zip(self.units, column, strict=True))
        if column in self.columns or held > self.capacity or not 0 < sum(column) <= self.most:
            return False
        outputs = np.repeat(self.view.output, column)
        self.columns[column] = float(self.rank_s[: len(outputs)] @ outputs)
        return True

    def start(self, batches: Sequence[Sequence[int]]) -> None:
        """Batches of one class each, so that there is a solution, and given batches where the view can hold them."""
        classes = len(self.view.members)
        for k in range(classes):
            full = self.most if self.units[k] == 0 else min(self.most, self.capacity // int(self.units[k]))
            for copies in {1, full}:
                self.add(copies if other == k else 0 for other in range(classes))
        class_of = self.view.class_of()
        for members in batches:
            self.add(int(n) for n in np.bincount(class_of[np.asarray(members)], minlength=classes))

    def generate(self, *, useless_below: float = 0.0) -> None:
        """Add columns until none is missing or the rounds are over.

        Args:
            useless_below: stop as soon as the programme's value, which no bound of it can exceed, is not above this.
        """
        total = int(self.view.count.sum())
        for _ in range(_ROUNDS):
            duals = self._relaxation()
            if self.value <= useless_below:
                return
            gains, found = self._price(duals)
            each = float(np.max(gains / np.arange(1, len(gains) + 1), initial=0.0))
            self.bound = max(self.bound, self.value - total * each)
            missing = [column for column in found if self.add(column)]
            if not missing or self.bound >= self.value * (1 - _TOLERANCE):
                return

    def _relaxation(self) -> Seconds:
        """Solve the master programme; the worth of one more request of each class."""
        matrix = np.asarray(list(self.columns), np.float64).T
        costs = np.asarray(list(self.columns.values()))
        scale = float(costs.max()) or 1.0
        solved = linprog(costs / scale, A_ub=-matrix, b_ub=-self.view.count.astype(np.float64), method="highs")
        self.value = float(solved.fun) * scale
        duals: Seconds = np.maximum(0.0, -np.asarray(solved.ineqlin.marginals, np.float64)) * scale
        return duals

    def _price(self, duals: Seconds) -> tuple[Seconds, list[tuple[int, ...]]]:
        """The largest ``pi a - c`` over batches of 1, 2 ... requests, and the best batches.

        ``gain[n, u]`` is the most that n requests of the classes so far, which reserve at most u steps, are worth
        beyond their cost; `taken` remembers, for every class, whether its last update of a state took one request.
        """
        classes = len(duals)
        gain = np.full((self.most + 1, self.capacity + 1), -np.inf)
        gain[0] = 0.0
        taken: NDArray[np.bool_] = np.zeros((classes, self.most + 1, self.capacity + 1), np.bool_)
        for k in range(classes):
            size = int(self.units[k])
            worth = duals[k] - self.rank_s * float(self.view.output[k])
            for n in range(1, self.most + 1):
                with_it = gain[n - 1, : self.capacity + 1 - size] + worth[n - 1]
                if with_it[-1] == -np.inf:
                    break
                target = gain[n, size:]
                np.greater(with_it, target, out=taken[k, n, size:])
                np.maximum(with_it, target, out=target)
        gains = gain[1:, -1]
        best = [int(n) for n in np.argsort(-gains, kind="stable")[:_COLUMNS_PER_ROUND] if gains[n] > 0]
        return gains, [self._trace(taken, n + 1) for n in best]

    def _trace(self, taken: NDArray[np.bool_], requests: int) -> tuple[int, ...]:
        counts = [0] * len(taken)
        k, n, held = len(taken) - 1, requests, self.capacity
        while n:
            if taken[k, n, held]:
                counts[k] += 1
                n, held = n - 1, held - int(self.units[k])
            else:
                k -= 1
        return tuple(counts)

    def rounded(self) -> list[tuple[int, ...]]:
        """Whole batches that cover every class: the master programme over the columns so far, in integers.

        Empty when the solver finds none within its nodes.
        """
        columns, costs = list(self.columns), np.asarray(list(self.columns.values()))
        solved = milp(
            costs / (float(costs.max()) or 1.0),
            constraints=LinearConstraint(np.asarray(columns, np.float64).T, lb=self.view.count.astype(np.float64)),
            integrality=np.ones(len(columns)),
            bounds=Bounds(0.0, float(self.view.count.max())),
            options={"mip_rel_gap": _ROUNDING_GAP, "node_limit": _ROUNDING_NODES},
        )
        if solved.x is None:
            return []
        return [column for column, times in zip(columns, solved.x, strict=True) for _ in range(round(float(times)))]


def filled(patterns: Sequence[tuple[int, ...]], view: ClassView, requests: Requests, limits: Limits) -> Batches:
    """Requests for patterns: each takes members of its classes, then whatever of no longer output still fits.

    Patterns go from the longest output to the shortest, so a request that fills a gap lengthens no batch.
    """
    waiting = [list(members[::-1]) for members in view.members]  # the longest output is popped first
    gone = np.zeros(len(requests), np.bool_)
    order = np.concatenate(view.members)
    order = order[np.argsort(-requests.output[order], kind="stable")]
    batches: Batches = []
    for pattern in sorted(patterns, key=lambda counts: tuple(-count for count in counts)):
        members: list[int] = []
        for k, count in enumerate(pattern):
            while count and waiting[k]:
                request = int(waiting[k].pop())
                if not gone[request]:
                    members.append(request)
                    count -= 1
        if not members:
            continue
        gone[members] = True
        members += _gap_fillers(members, order[~gone[order]], requests, limits)
        gone[members] = True
        batches.append(members)
    return batches


def _gap_fillers(members: Sequence[int], order: Counts, requests: Requests, limits: Limits) -> list[int]:
    """Requests of the order, in turn, that fit beside the members and outlast none of them."""
    room = limits.cache_tokens - int(requests.reserved[list(members)].sum())
    longest = int(requests.output[list(members)].max())
    free = limits.max_batch - len(members)
    found: list[int] = []
    candidates = order[(requests.output[order] <= longest) & (requests.reserved[order] <= room)]
    while free and len(candidates):
        request = int(candidates[0])
        found.append(request)
        free, room = free - 1, room - int(requests.reserved[request])
        candidates = candidates[1:][requests.reserved[candidates[1:]] <= room]
    return found
