"""Where scenarios are planned: machines, models and prices are read or worked out once and used again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from stowplan.datafiles import data_folder
from stowplan.errors import StowplanError
from stowplan.machines import load_machine
from stowplan.machines.machine import Machine
from stowplan.machines.overrides import apply_overrides
from stowplan.models import load_model
from stowplan.models.model import Model
from stowplan.plan import Prediction
from stowplan.planner.bench import Bench
from stowplan.planner.dispatch import plan_for
from stowplan.planner.predict import make_setup, model_sd
from stowplan.planner.result import Planned, Request
from stowplan.systems import load_system
from stowplan.systems.base import Setup
from stowplan.whatif.outcome import Outcome, outcome_of
from stowplan.whatif.scenario import BATCHES, IK, Scenario

_MOST_MODELS = 8


class Workshop:
    """Plans scenarios one after another and remembers what they have in common; for one thread of one process."""

    def __init__(self) -> None:
        self._bench = Bench()
        self._machine = lru_cache(maxsize=256)(load_machine)
        self._model = lru_cache(maxsize=_MOST_MODELS)(load_model)

    def machine(self, scenario: Scenario) -> Machine:
        """The machine of a scenario; raises as `stowplan.machines.load_machine`."""
        return apply_overrides(self._machine(scenario.machine), scenario.changes)

    def model(self, scenario: Scenario) -> Model:
        """The model of a scenario; raises as `stowplan.models.load_model`."""
        return self._model(scenario.model, scenario.quant)

    def request(
        self, scenario: Scenario, *, machine: Machine | None = None, alternatives: bool = False
    ) -> tuple[str, Request]:
        """System and request of a scenario, on another machine where one is given.

        Raises:
            StowplanError: a name that does not exist or a value that cannot be.
        """
        variant = IK if scenario.system == IK else None
        system = load_system(scenario.engine)
        setup = make_setup(machine or self.machine(scenario), self.model(scenario), system, variant)
        return scenario.engine, Request(
            setup=setup,
            model_reference=(scenario.model, scenario.quant),
            workload=scenario.asked,
            objective=scenario.objective,
            settings=scenario.knobs,
            batches=BATCHES if scenario.any_batch else (),
            bench=self._bench,
            alternatives=alternatives,
        )

    def plan(self, scenario: Scenario, *, machine: Machine | None = None, alternatives: bool = False) -> Planned:
        """The best plan of a scenario; raises as `stowplan.planner.dispatch.plan_for`."""
        system, request = self.request(scenario, machine=machine, alternatives=alternatives)
        return plan_for(system, request)

    def outcome(self, scenario: Scenario, *, machine: Machine | None = None) -> Outcome:
        """What a scenario comes to; where nothing fits or the system cannot say it, the sentence why."""
        try:
            system, request = self.request(scenario, machine=machine)
            planned = plan_for(system, request)
        except StowplanError as error:
            return Outcome(error=str(error))
        return outcome_of(planned, request.setup.machine, spread_of(system, request.setup, planned.prediction))


@lru_cache(maxsize=1)
def workshop() -> Workshop:
    """The workshop of this process."""
    return Workshop()


def spread_of(system: str, setup: Setup, found: Prediction) -> tuple[float, float]:
    """Spread that the model itself leaves of predicted times, of decode and prefill."""
    kernels = load_system(system).kernels
    decode = model_sd(setup.figures, kernels, "decode", found.time_shares)
    return decode, model_sd(setup.figures, kernels, "prefill", found.prefill_shares)


class Fingerprints:
    """Keys of outcomes by content: the scenario, the machine's and the model's data, the constants and the program."""

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        self._program = _program_digest()
        self._machine: Callable[[str], str] = lru_cache(maxsize=None)(self._machine_digest)
        self._model: Callable[[str, str | None], str] = lru_cache(maxsize=None)(self._model_digest)

    def key(self, scenario: Scenario) -> str:
        """Hexadecimal key: equal keys mean equal outcomes, in whatever process or on whatever day."""
        parts = (
            self._program,
            scenario.text,
            self._machine(scenario.machine),
            self._model(scenario.model, scenario.quant),
        )
        return _digest("\n".join(parts))

    def _machine_digest(self, spec: str) -> str:
        try:
            return _digest(repr(load_machine(spec)))
        except StowplanError as error:
            return str(error)

    def _model_digest(self, name: str, quant: str | None) -> str:
        try:
            model = self._shop.model(Scenario(model=name, machine="", quant=quant))
        except StowplanError as error:
            return str(error)
        return _digest(repr((model.key, model.quant, model.tensors, [layer.mixer for layer in model.layers])))


def _program_digest() -> str:
    """Digest of the program and of its constants: a result of another version is another result."""
    package = Path(__file__).resolve().parents[1]
    files = [*sorted(package.rglob("*.py")), *sorted(data_folder("hwprofiles").rglob("*.toml"))]
    found = hashlib.sha256()
    for path in files:
        found.update(path.name.encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
