"""FlexGen's own rounding of percentages: ``python host_flexgen.py MODEL W_GPU W_CPU [W_GPU W_CPU ...]``.

Runs its `init_weight` of every kind of layer with devices that only note what is put on them; prints a line of JSON for
each pair of percentages: homes and elements in FlexGen's order of input embedding, attention, MLP and output.
"""

from __future__ import annotations

import json
import math
import sys
from types import SimpleNamespace
from typing import Any

from flexgen import flex_opt
from flexgen.opt_config import get_opt_config
from flexgen.utils import ValueHolder


class Noted:
    """A device that remembers sizes."""

    def __init__(self, name: str, log: list[tuple[str, int]]) -> None:
        self.name, self.log, self.compressed_device = name, log, self

    def allocate(self, shape: tuple[int, ...], *_: Any, **__: Any) -> Any:
        """Note a tensor."""
        self.log.append((self.name, math.prod(shape)))
        return SimpleNamespace(load_from_np=lambda _: None)


def homes(model: str, gpu: int, cpu: int) -> dict[str, list[tuple[str, int]]]:
    """Where the tensors of each kind of layer go."""
    config = get_opt_config(model)
    policy = flex_opt.Policy(1, 1, gpu, cpu, 100, 0, 100, 0, True, True, True, False, 1.0, False, None, False, None)
    found: dict[str, list[tuple[str, int]]] = {}
    kinds: tuple[tuple[str, Any], ...] = (
        ("input", lambda env: flex_opt.InputEmbed(config, env, policy)),
        ("attention", lambda env: flex_opt.SelfAttention(config, env, policy, 0)),
        ("mlp", lambda env: flex_opt.MLP(config, env, policy, 0)),
        ("output", lambda env: flex_opt.OutputEmbed(config, env, policy)),
    )
    for kind, make in kinds:
        log: list[tuple[str, int]] = []
        env = SimpleNamespace(gpu=Noted("gpu0", log), cpu=Noted("ram", log), disk=Noted("disk", log), mixed=None)
        layer = make(env)
        with_dummies = flex_opt.np.ones
        flex_opt.np.ones = lambda *_: None
        try:
            layer.init_weight(ValueHolder(), flex_opt.DUMMY_WEIGHT)
        finally:
            flex_opt.np.ones = with_dummies
        found[kind] = log
    return found


if __name__ == "__main__":
    for on_gpu, on_cpu in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
        print(json.dumps(homes(sys.argv[1], int(on_gpu), int(on_cpu))))
