"""What each flag of llama.cpp sets: values, switches, spellings, environment variables.

The syntax is that of mainline in autumn 2026, older spellings included (``--no-mmap``), and of ik_llama.cpp. How a
command line is read with these tables is in `stowplan.systems.llama_cpp_flags`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from stowplan.errors import InputError
from stowplan.systems.number_pattern import number_pattern
from stowplan.systems.tensor_pattern import TensorPattern

_CPU_MOE = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
_CPU_FFN = r"\.ffn_(up|down|gate)\."


@dataclass(slots=True)
class Flags:
    """Values of the flags that matter to a plan, in the order given where order decides.

    Attributes:
        program: ``llama-server`` and so on.
        model: file or hub reference.
        overrides: (pattern, buffer type) pairs of ``-ot`` and its short forms; the first match wins.
        shorthands: the patterns among them that a short form such as ``--n-cpu-moe`` stands for.
        fit: whether the engine may choose what is not given.
        given: words that set each flag so far, by the flag's usual spelling.
        flash_attention: None where the engine's default holds.
        layers: ``-ngl``: a count, -1 for automatic, -2 for all; None when not given.
        warnings: what was understood only in part.
    """

    program: str = "llama-server"
    model: str | None = None
    layers: int | None = None
    overrides: list[tuple[str, str]] = field(default_factory=list)
    shorthands: list[str] = field(default_factory=list)
    split: list[float] = field(default_factory=list)
    split_mode: str = "layer"
    main_gpu: int = 0
    fit: bool = True
    given: dict[str, str] = field(default_factory=dict)
    context: int | None = None
    parallel: int = 1
    batch: int = 2048
    ubatch: int = 512
    threads: int | None = None
    threads_batch: int | None = None
    cache_k: str = "f16"
    cache_v: str = "f16"
    flash_attention: bool | None = None
    load_mode: str = "mmap"
    kv_offload: bool = True
    op_offload: bool = True
    repacked: bool = False
    used_experts: bool | None = None
    mla: int = 3
    numa: str | None = None
    numactl: str | None = None
    ik: bool = False
    prompt: int | None = None
    generate: int | None = None
    depth: int | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def bench(self) -> bool:
        """Whether the program measures prompt and generation apart."""
        return self.program == "llama-bench"

    @property
    def sweeps(self) -> bool:
        """Whether the program takes several values of a flag and runs them all."""
        return self.program in ("llama-bench", "llama-batched-bench")


IGNORED_SWITCHES = frozenset(
    """
    --jinja --no-warmup --warmup --verbose -v --color -cnv -no-cnv --metrics --slots --no-slots --no-webui
    --log-disable -i --interactive --interactive-first --ignore-eos --no-display-prompt --simple-io -st
    --single-turn --no-context-shift --context-shift --swa-full --cont-batching -cb --no-cont-batching -nocb
    --escape -e --offline --check-tensors --numa-off -kvu --kv-unified --props --embeddings --reranking --no-perf
    --perf -nr --no-repack --repack --warmup-batch --no-host -sp --special -fmoe --fused-moe -ger
    -no-fmoe -mqkv -gr -smgs -muge -khad -vhad --progress -no-fug
    """.split()  # noqa: SIM905
)
IGNORED_VALUES = frozenset(
    """
    --host --port --api-key --alias -a --temp --top-k --top-p --min-p --seed -s --repeat-penalty --presence-penalty
    --frequency-penalty --samplers -f --file --chat-template --chat-template-file --chat-template-kwargs
    --reasoning-format --reasoning-budget --rope-scaling --rope-scale --rope-freq-base --rope-freq-scale
    --yarn-orig-ctx --mmproj -mm --path --timeout -to --threads-http --log-file --log-verbosity -lv --verbosity
    --cache-reuse --cache-ram -cram --slot-save-path --keep --prio --poll --cpu-mask -C
    --cpu-range -Cr -dev --device --override-kv -r --repetitions -o --output -oe --delay
    -amb -ser -sas -cuda-params -lzm -fitt --fit-target -fitc --fit-ctx -hfd -md --draft --spec-type -dt
    --defrag-thold --grp-attn-n -gan -gaw -sys -j --json-schema --grammar -ctkd -ctvd -ctk-first -ctk-last
    --reasoning --image-max-tokens --image-min-tokens -mv --rpc -op --offload-policy --max-gpu -gfm
    --fit-margin
    """.split()  # noqa: SIM905
)


TRUTH = {
    "1": True,
    "0": False,
    "on": True,
    "off": False,
    "auto": True,
    "true": True,
    "false": False,
    "enabled": True,
    "disabled": False,
}


def _whole(flag: str, text: str, low: int = 0, high: int = 2**31) -> int:
    if not re.fullmatch(r"-?\d{1,12}", text) or not low <= int(text) <= high:
        raise InputError(f"{flag} {text}: must be a whole number from {low} to {high}")
    return int(text)


def _number(name: str, flag: str, low: int = 0) -> Callable[[Flags, str], None]:
    def apply(flags: Flags, text: str) -> None:
        setattr(flags, name, _whole(flag, text, low))

    return apply


def _text(name: str) -> Callable[[Flags, str], None]:
    def apply(flags: Flags, text: str) -> None:
        setattr(flags, name, text)

    return apply


def _layers(flags: Flags, text: str) -> None:
    words = {"auto": -1, "all": -2}
    flags.layers = words[text] if text in words else _whole("-ngl", text, -2)


def _truth(flags: Flags, text: str) -> None:
    flags.flash_attention = TRUTH[text.lower()]


def _mmap_bench(flags: Flags, text: str) -> None:
    flags.load_mode = "mmap" if TRUTH.get(text, True) else "none"


def _rtr(flags: Flags, text: str) -> None:
    flags.ik = True
    if text == "1":
        flags.load_mode = "none"
        flags.repacked = True


def _mla(flags: Flags, text: str) -> None:
    flags.ik, flags.mla = True, _whole("-mla", text, 0, 3)


def _numa(flags: Flags, text: str) -> None:
    if text not in {"distribute", "isolate", "numactl"}:
        raise InputError(f"--numa {text[:40]}: must be distribute, isolate or numactl")
    flags.numa = text


def _used_experts(*, only: bool) -> Callable[[Flags], None]:
    def apply(flags: Flags) -> None:
        flags.ik, flags.used_experts = True, only

    return apply


def _overrides(flags: Flags, text: str) -> None:
    for entry in re.split(r"[;,]" if flags.bench else ",", text):
        pattern, equals, place = entry.strip().rpartition("=")
        if not equals or not pattern or not place:
            raise InputError(f"-ot {entry!r}: write PATTERN=BUFFER, such as 'blk\\.1\\.ffn_up=CPU'")
        TensorPattern(pattern)
        flags.overrides.append((pattern, place))


def _shorthand(flags: Flags, pattern: str) -> None:
    flags.overrides.append((pattern, "CPU"))
    flags.shorthands.append(pattern)


def _first_layers(name: str, parts: str) -> Callable[[Flags, str], None]:
    def apply(flags: Flags, text: str) -> None:
        count = _whole(name, text, 0, 10_000)
        if count:
            _shorthand(flags, rf"blk\.{number_pattern(range(count))}{parts}")

    return apply


def _split(flags: Flags, text: str) -> None:
    shares = re.split(r"[,/]", text)
    if not all(re.fullmatch(r"\d+(\.\d+)?", share) for share in shares) or not any(float(share) for share in shares):
        raise InputError(f"-ts {text}: write shares per GPU such as 3,1")
    flags.split = [float(share) for share in shares]


def _split_mode(flags: Flags, text: str) -> None:
    modes = ("none", "layer", "row", "tensor", "graph", "attn")
    if text not in modes:
        raise InputError(f"-sm {text[:40]}: must be one of {', '.join(modes)}")
    flags.split_mode = text
    flags.ik |= text in {"graph", "attn"}


def _fit(flags: Flags, text: str) -> None:
    if text.lower() not in TRUTH:
        raise InputError(f"--fit {text[:40]}: must be on or off")
    flags.fit = TRUTH[text.lower()]


def _cache_type(name: str, flag: str) -> Callable[[Flags, str], None]:
    def apply(flags: Flags, text: str) -> None:
        kind = text.lower()
        if not re.fullmatch(r"[a-z0-9_]{2,12}", kind):
            raise InputError(f"{flag} {text[:40]}: is not a cache type; write one such as f16 or q8_0")
        setattr(flags, name, kind)

    return apply


def _load_mode(flags: Flags, text: str) -> None:
    modes = {"auto": "mmap", "mmap": "mmap", "none": "none", "mlock": "mlock", "mmap+mlock": "mlock", "dio": "none"}
    if text not in modes:
        raise InputError(f"-lm {text}: must be one of {', '.join(modes)}")
    flags.load_mode = modes[text]


def _set(name: str, value: object) -> Callable[[Flags], None]:
    def apply(flags: Flags) -> None:
        setattr(flags, name, value)

    return apply


def _pair(flags: Flags, text: str) -> None:
    prompt, _, generate = text.partition(",")
    flags.prompt, flags.generate = _whole("-pg", prompt), _whole("-pg", generate)


def _mlock(flags: Flags) -> None:
    """Without mapping, locked pages are read pages: the two switches together mean ``none``."""
    if "--no-mmap" not in flags.given.values():
        flags.load_mode = "mlock"


SWITCHES: Mapping[str, Callable[[Flags], None]] = {
    "-nkvo": _set("kv_offload", False),
    "--no-kv-offload": _set("kv_offload", False),
    "-nopo": _set("op_offload", False),
    "--no-op-offload": _set("op_offload", False),
    "--op-offload": _set("op_offload", True),
    "--no-mmap": _set("load_mode", "none"),
    "--mmap": _set("load_mode", "mmap"),
    "--mlock": _mlock,
    "-kvo": _set("kv_offload", True),
    "--kv-offload": _set("kv_offload", True),
    "-dio": _set("load_mode", "none"),
    "--direct-io": _set("load_mode", "none"),
    "-cmoe": lambda flags: _shorthand(flags, _CPU_MOE),
    "--cpu-moe": lambda flags: _shorthand(flags, _CPU_MOE),
    "-rtr": lambda flags: _rtr(flags, "1"),
    "--run-time-repack": lambda flags: _rtr(flags, "1"),
    "-no-fa": _set("flash_attention", False),
    "-ooae": _used_experts(only=True),
    "-no-ooae": _used_experts(only=False),
}


SWITCHED_OFF: Mapping[str, Callable[[Flags], None]] = {
    "-ooae": _used_experts(only=False),
    "-no-ooae": _used_experts(only=True),
}
"""Switches whose 0 in llama-bench says something, too."""


def _bench_count(flags: Flags, name: str, text: str) -> None:
    """Token counts of llama-bench; elsewhere ``-p`` is the prompt's text and ``-n -1`` means no limit."""
    if flags.bench:
        setattr(flags, name, _whole(f"--{name}", text))
    elif name == "generate" and re.fullmatch(r"\d+", text):
        flags.generate = _whole("-n", text)


_SPELLINGS: tuple[tuple[tuple[str, ...], Callable[[Flags, str], None]], ...] = (
    (("-m", "--model"), _text("model")),
    (("-hf", "-hfr", "--hf-repo"), _text("model")),
    (("-ngl", "--gpu-layers", "--n-gpu-layers"), _layers),
    (("-ot", "--override-tensor"), _overrides),
    (("-ncmoe", "--n-cpu-moe"), _first_layers("--n-cpu-moe", _CPU_MOE)),
    (("-ncffn", "--n-cpu-ffn"), _first_layers("--n-cpu-ffn", _CPU_FFN)),
    (("-ts", "--tensor-split"), _split),
    (("-sm", "--split-mode"), _split_mode),
    (("-mg", "--main-gpu"), _number("main_gpu", "-mg")),
    (("-c", "--ctx-size"), _number("context", "-c")),
    (("-np", "--parallel"), _number("parallel", "-np", 1)),
    (("-npl",), _number("parallel", "-npl", 1)),
    (("-npp",), _number("prompt", "-npp")),
    (("-ntg",), _number("generate", "-ntg")),
    (("-b", "--batch-size"), _number("batch", "-b", 1)),
    (("-ub", "--ubatch-size"), _number("ubatch", "-ub", 1)),
    (("-t", "--threads"), _number("threads", "-t", 1)),
    (("-tb", "--threads-batch"), _number("threads_batch", "-tb", 1)),
    (("-ctk", "--cache-type-k"), _cache_type("cache_k", "-ctk")),
    (("-ctv", "--cache-type-v"), _cache_type("cache_v", "-ctv")),
    (("-fa", "--flash-attn"), _truth),
    (("-lm", "--load-mode"), _load_mode),
    (("-mla", "--mla-use"), _mla),
    (("--numa",), _numa),
    (("-mmp",), _mmap_bench),
    (("-fit", "--fit"), _fit),
    (("-p", "--n-prompt", "--prompt"), lambda flags, text: _bench_count(flags, "prompt", text)),
    (("-n", "--predict", "--n-predict", "--n-gen"), lambda flags, text: _bench_count(flags, "generate", text)),
    (("-d", "--n-depth"), _number("depth", "-d")),
    (("-pg",), _pair),
)

HANDLERS: Mapping[str, Callable[[Flags, str], None]] = {
    spelling: handler for spellings, handler in _SPELLINGS for spelling in spellings
}

_SWITCH_SPELLINGS = (
    ("-nkvo", "--no-kv-offload"),
    ("-kvo", "--kv-offload"),
    ("-nopo", "--no-op-offload"),
    ("-cmoe", "--cpu-moe"),
    ("-rtr", "--run-time-repack"),
    ("-dio", "--direct-io"),
)
USUAL: Mapping[str, str] = {
    spelling: spellings[-1]
    for spellings in (*(each for each, _ in _SPELLINGS), *_SWITCH_SPELLINGS)
    for spelling in spellings
}
"""The spelling of a flag that errors and `Flags.given` use."""

OPPOSITES: Mapping[str, str] = {
    "--no-kv-offload": "--kv-offload",
    "--no-op-offload": "--op-offload",
    "--no-mmap": "--mmap",
    "--n-cpu-moe": "--cpu-moe",
}
"""Flags that contradict another one."""

REPEATABLE = frozenset({"--override-tensor"})
FORK_SWITCHES = frozenset({"-fmoe", "--fused-moe", "-no-fmoe", "-ger", "-muge"})
FORK_VALUES = frozenset({"-amb", "-ser", "-op", "--offload-policy", "-gfm", "--fit-margin"})

ENVIRONMENT: Mapping[str, str] = {
    f"LLAMA_ARG_{name}": flag
    for name, flag in (
        ("MODEL", "--model"),
        ("HF_REPO", "--hf-repo"),
        ("N_GPU_LAYERS", "--n-gpu-layers"),
        ("OVERRIDE_TENSOR", "--override-tensor"),
        ("CPU_MOE", "--cpu-moe"),
        ("N_CPU_MOE", "--n-cpu-moe"),
        ("N_CPU_FFN", "--n-cpu-ffn"),
        ("TENSOR_SPLIT", "--tensor-split"),
        ("SPLIT_MODE", "--split-mode"),
        ("MAIN_GPU", "--main-gpu"),
        ("CTX_SIZE", "--ctx-size"),
        ("N_PARALLEL", "--parallel"),
        ("BATCH", "--batch-size"),
        ("UBATCH", "--ubatch-size"),
        ("THREADS", "--threads"),
        ("CACHE_TYPE_K", "--cache-type-k"),
        ("CACHE_TYPE_V", "--cache-type-v"),
        ("FLASH_ATTN", "--flash-attn"),
        ("NO_KV_OFFLOAD", "--no-kv-offload"),
        ("KV_OFFLOAD", "--kv-offload"),
        ("NO_OP_OFFLOAD", "--no-op-offload"),
        ("LOAD_MODE", "--load-mode"),
        ("FIT", "--fit"),
        ("N_PREDICT", "--n-predict"),
        ("NUMA", "--numa"),
    )
}
"""Variables that move bytes; others of llama.cpp that do not are in `QUIET`."""

QUIET = frozenset(
    f"LLAMA_ARG_{name}"
    for name in """
    ALIAS API_KEY_FILE API_PREFIX CACHE_IDLE_SLOTS CACHE_PROMPT CACHE_RAM CACHE_REUSE CHAT_TEMPLATE CHAT_TEMPLATE_FILE
    CHAT_TEMPLATE_KWARGS CONTEXT_SHIFT CONT_BATCHING DEVICE EMBEDDINGS ENDPOINT_METRICS ENDPOINT_PROPS ENDPOINT_SLOTS
    FIT_CTX FIT_TARGET FREQUENCY_PENALTY HOST JINJA KV_UNIFIED LAZY_MODE LOG_FILE LOG_PREFIX LOG_TIMESTAMPS
    LOG_VERBOSITY MIN_P OFFLINE PORT PRESENCE_PENALTY REASONING REPACK REPEAT_PENALTY SSL_CERT_FILE SSL_KEY_FILE
    STATIC_PATH TEMPERATURE THINK THINK_BUDGET THREADS_HTTP TIMEOUT TOP_K TOP_P UI
    """.split()  # noqa: SIM905
)
