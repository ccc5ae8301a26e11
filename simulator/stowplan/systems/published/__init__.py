"""Published offloading systems by name, each one declaration on the shared mechanisms.

How to add one in an afternoon
------------------------------
1. Read the paper for four things: what it moves or computes where (its mechanisms), the numbers that are its own (a
   cache's size, a predictor's accuracy, bits), one setting in which it was measured (machine, model, lengths, batch),
   and what it reports of the answers' quality.
2. Copy a declaration of this folder that does something alike. Write one `Published`: a key, the paper, the idea in
   one sentence, a `Policy` that names only the fields in which the system differs from the neutral one, in ``choices``
   the fields that a plan may vary, in ``fills`` what takes the GPU memory that is left. State each number of its own
   as a `Constant` with its table or section, or with ``assumed``. Numbers of the machine are not yours to state.
3. Add the key to ``_MODULES`` below. ``stowplan show system KEY`` prints it, ``stowplan compare`` runs it.
4. Add a case to ``validate/published_cases/``: setting, published figure or ratio, citation, and under ``assumed`` all
   that the paper does not say. Run ``python -m stowplan.validate.published KEY``. If the figure is off, look for the
   mechanism that is missing; do not tune a constant to the case.
5. A mechanism that no field covers goes into `stowplan.systems.mechanisms` once, with a neutral value that changes
   nothing, and a test that says so.
"""

from __future__ import annotations

from importlib import import_module

from stowplan.errors import UnknownName
from stowplan.systems.published.base import Published

_MODULES = (
    "flexgen",
    "accelerate",
    "zero_inference",
    "llama_cpp",
    "vllm_offload",
    "endor",
    "pipo",
    "hetegen",
    "flexinfer",
    "mixtral_offloading",
    "ktransformers",
    "moe_infinity",
    "fate",
    "hobbit",
    "hybrimoe",
    "moe_lightning",
    "headinfer",
    "instinfer",
    "infinigen",
    "h2o",
    "kivi",
    "kvquant",
    "xquant",
)


def published_keys() -> list[str]:
    """Keys of the published systems: engines that stowplan runs in full detail come under their own names."""
    return [_SHOWN.get(name, name.replace("_", "-")) for name in _MODULES]


def load_published(key: str) -> Published:
    """A declaration by key.

    Raises:
        UnknownName: no such system.
    """
    keys = published_keys()
    if key not in keys:
        raise UnknownName("published system", key[:60], keys)
    found: Published = import_module(f"{__name__}.{_MODULES[keys.index(key)]}").SYSTEM
    return found


_SHOWN = {"llama_cpp": "llama.cpp"}
