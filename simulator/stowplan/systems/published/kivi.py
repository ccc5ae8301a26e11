"""KIVI: a 2-bit cache, keys by channel and values by token, with the newest tokens in fp16."""

from stowplan.systems.mechanisms.policy import Cache, Policy
from stowplan.systems.published.base import Constant, Published, one_of

SYSTEM = Published(
    key="kivi",
    title="KIVI",
    paper="Liu et al., ICML 2024, arXiv:2402.02750",
    idea="cached keys are quantised by channel and values by token to 2 bits in groups of 32; the newest 32 or 128 "
    "tokens stay in fp16; attention reads the packed form",
    kernels="accelerate",
    policy=Policy(cache=Cache(bits=0.1875, residual=128)),
    choices=(one_of("cache.residual", 128, 32),),
    fills=(),
    quality="2-bit cache; the paper reports losses within 2 % of the tasks' scores",
    constants=(
        Constant(
            "stored bytes per fp16 byte", 0.1875, "datasheet", "2 bits and an fp16 scale and zero point per group of 32"
        ),
        Constant(
            "tokens in fp16",
            128,
            "datasheet",
            "residual length of mem_spd_test.py in the repository; the paper's Fig. 4 has 32 too, recalled",
        ),
    ),
)
