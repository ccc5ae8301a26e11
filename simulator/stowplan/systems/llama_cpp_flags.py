"""llama.cpp's command line as people write it: flags of llama-server, llama-cli and llama-bench, read and checked.

The syntax is that of mainline in autumn 2026, older spellings included (``--no-mmap``), and of ik_llama.cpp. What a
flag means for placement is decided in `stowplan.systems.llama_cpp_commands`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from stowplan.errors import InputError, NotExpressible

PROGRAMS = ("llama-server", "llama-cli", "llama-bench", "llama-completion", "llama-sweep-bench", "llama-batched-bench")
_CPU_MOE = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
_LONGEST_PATTERN = 2_000
_NESTED_REPEAT = re.compile(r"[*+}|][^()]*\)+\s*[*+{]")
_REPEAT = re.compile(r"[*+{]")
_MOST_REPEATS = 4  # matching takes time to the power of the repetitions


@dataclass(slots=True)
class Flags:
    """Values of the flags that matter to a plan, in the order given where order decides.

    Attributes:
        program: ``llama-server`` and so on.
        model: file or hub reference.
        overrides: (pattern, buffer type) pairs of ``-ot`` and its short forms; the first match wins.
        layers: ``-ngl``: a count, -1 for automatic, -2 for all; None when not given.
        warnings: what was understood only in part.
    """

    program: str = "llama-server"
    model: str | None = None
    layers: int | None = None
    overrides: list[tuple[str, str]] = field(default_factory=list)
    split: list[float] = field(default_factory=list)
    split_mode: str = "layer"
    context: int | None = None
    parallel: int = 1
    batch: int = 2048
    ubatch: int = 512
    threads: int | None = None
    cache_k: str = "f16"
    cache_v: str = "f16"
    flash_attention: bool = True
    load_mode: str = "mmap"
    kv_offload: bool = True
    op_offload: bool = True
    ik: bool = False
    prompt: int | None = None
    generate: int | None = None
    depth: int | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def bench(self) -> bool:
        """Whether the program measures prompt and generation apart."""
        return self.program == "llama-bench"


_IGNORED_SWITCHES = frozenset(
    """
    --jinja --no-warmup --warmup --verbose -v --color -cnv -no-cnv --metrics --slots --no-slots --no-webui
    --log-disable -i --interactive --interactive-first --ignore-eos --no-display-prompt --simple-io -st
    --single-turn --no-context-shift --context-shift --swa-full --cont-batching -cb --no-cont-batching -nocb
    --escape -e --offline --check-tensors --numa-off -kvu --kv-unified --props --embeddings --reranking --no-perf
    --perf -nr --no-repack --repack --warmup-batch --no-host -sp --special -fmoe --fused-moe -ger -ooae -no-ooae
    -no-fmoe -mqkv -gr -smgs -muge -khad -vhad --progress -no-fug
    """.split()  # noqa: SIM905
)
_IGNORED_VALUES = frozenset(
    """
    --host --port --api-key --alias -a --temp --top-k --top-p --min-p --seed -s --repeat-penalty --presence-penalty
    --frequency-penalty --samplers -f --file --chat-template --chat-template-file --chat-template-kwargs
    --reasoning-format --reasoning-budget --rope-scaling --rope-scale --rope-freq-base --rope-freq-scale
    --yarn-orig-ctx --mmproj -mm --path --timeout -to --threads-http --log-file --log-verbosity -lv --verbosity
    --cache-reuse --cache-ram -cram --slot-save-path --keep -tb --threads-batch --prio --poll --cpu-mask -C
    --cpu-range -Cr --numa -mg --main-gpu -dev --device --override-kv -r --repetitions -o --output -oe --delay -mla
    --mla-use -amb -ser -sas -cuda-params -lzm -fitt --fit-target -fitc --fit-ctx -hfd -md --draft --spec-type -dt
    --defrag-thold --grp-attn-n -gan -gaw -sys -j --json-schema --grammar -ctkd -ctvd -ctk-first -ctk-last
    --reasoning --image-max-tokens --image-min-tokens -mv --rpc -npp -ntg -npl -op --offload-policy --max-gpu -gfm
    --fit-margin
    """.split()  # noqa: SIM905
)


def read_flags(words: Sequence[str]) -> Flags:
    """Flags of a llama.cpp command line, program name included.

    Raises:
        NotExpressible: a flag that is unknown, or whose meaning stowplan does not model; names the flag.
        InputError: a missing or malformed value, contradictory flags.
    """
    words = [word for word in words if word not in {"\\", "\n"}]  # continuation marks, as a shell or shlex leaves them
    while words and re.fullmatch(r"[A-Z_][A-Z0-9_]*=.*", words[0]):
        words = words[1:]
    if not words:
        raise InputError(
            "the command after -- is empty; write it as you run it, such as: llama-server -m model.gguf -ngl 30"
        )
    program = PurePath(words[0].replace("\\", "/")).name.removesuffix(".exe")
    aliases = {"main": "llama-cli", "server": "llama-server"}
    flags = Flags(program=aliases.get(program, program))
    if flags.program not in PROGRAMS:
        raise NotExpressible(
            f"'{words[0]}' is not a llama.cpp program that stowplan reads; it reads {', '.join(PROGRAMS)}"
        )
    position = 1
    while position < len(words):
        word = words[position]
        name, equals, attached = word.partition("=")
        if word.startswith("--") and equals and name in _HANDLERS | dict.fromkeys(_IGNORED_VALUES):
            words = [*words[:position], name, attached, *words[position + 1 :]]
            word = name
        position += _consume(flags, word, words[position + 1] if position + 1 < len(words) else None)
    if flags.batch < flags.ubatch:
        flags.warnings.append(f"-b {flags.batch} is smaller than -ub {flags.ubatch}; a pass holds {flags.batch} tokens")
    return flags


def _consume(flags: Flags, word: str, value: str | None) -> int:
    """Apply one flag; the number of words it took."""
    if word in _IGNORED_SWITCHES:
        flags.ik |= word in {"-fmoe", "-ger", "-ooae", "-no-ooae", "-muge"}
        return 2 if flags.bench and value in {"0", "1"} else 1
    if word in _SWITCHES and not (flags.bench and value is not None and value.split(",")[0] in {"0", "1"}):
        _SWITCHES[word](flags)
        return 1
    if word in {"-fa", "--flash-attn"} and (value is None or value.split(",")[0].lower() not in _TRUTH):
        return 1  # older builds: a switch without value
    known = word in _HANDLERS or word in _IGNORED_VALUES or word in _SWITCHES
    if not known:
        raise NotExpressible(
            f"stowplan does not know the flag '{word}' of {flags.program}; leave it out if it moves no bytes"
        )
    if value is None:
        raise InputError(f"{word} needs a value")
    if word in _IGNORED_VALUES:
        flags.ik |= word in {"-mla", "--mla-use", "-amb", "-ser"}
        return 2
    if (
        flags.bench
        and word not in {"-ot", "--override-tensor", "-ts", "--tensor-split", "-m", "--model"}
        and "," in value
    ):
        flags.warnings.append(f"{word} {value} is a sweep; the first value is used")
        value = value.split(",")[0]
    if word in _SWITCHES:  # llama-bench writes switches with 0 or 1
        if value == "1":
            _SWITCHES[word](flags)
        return 2
    _HANDLERS[word](flags, value)
    return 2


_TRUTH = {
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
    flags.flash_attention = _TRUTH[text.lower()]


def _mmap_bench(flags: Flags, text: str) -> None:
    flags.load_mode = "mmap" if _TRUTH.get(text, True) else "none"


def _rtr(flags: Flags, text: str) -> None:
    flags.ik = True
    if text == "1":  # repacked rows have no GPU kernels, so nothing is streamed
        flags.load_mode = "none"
        flags.op_offload = False


def _overrides(flags: Flags, text: str) -> None:
    for entry in re.split(r"[;,]" if flags.bench else ",", text):
        pattern, equals, place = entry.strip().rpartition("=")
        if not equals or not pattern or not place:
            raise InputError(f"-ot {entry!r}: write PATTERN=BUFFER, such as 'blk\\.1\\.ffn_up=CPU'")
        check_pattern(pattern)
        flags.overrides.append((pattern, place))


def check_pattern(pattern: str) -> re.Pattern[str]:
    """A tensor-name pattern, compiled.

    Raises:
        InputError: longer than 2,000 characters, invalid, or with so much repetition that matching can take forever.
    """
    if (
        len(pattern) > _LONGEST_PATTERN
        or _NESTED_REPEAT.search(pattern)
        or len(_REPEAT.findall(pattern)) > _MOST_REPEATS
    ):
        raise InputError(
            f"-ot '{pattern[:60]}': repeated choices, nested or many repetitions can take forever; write it plainly, "
            f"with at most {_MOST_REPEATS} repetitions"
        )
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"-ot '{pattern[:60]}': is not a regular expression ({error})") from error


def _cpu_moe(flags: Flags, text: str) -> None:
    for layer in range(_whole("--n-cpu-moe", text, 0, 10_000)):
        flags.overrides.append((rf"blk\.{layer}{_CPU_MOE}", "CPU"))


def _cpu_ffn(flags: Flags, text: str) -> None:
    for layer in range(_whole("--n-cpu-ffn", text, 0, 10_000)):
        flags.overrides.append((rf"blk\.{layer}\.ffn_(up|down|gate)\.", "CPU"))


def _split(flags: Flags, text: str) -> None:
    shares = re.split(r"[,/]", text)
    if not all(re.fullmatch(r"\d+(\.\d+)?", share) for share in shares) or not any(float(share) for share in shares):
        raise InputError(f"-ts {text}: write shares per GPU such as 3,1")
    flags.split = [float(share) for share in shares]


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


def _ignore(_: Flags, __: str) -> None: ...


_SWITCHES: dict[str, Callable[[Flags], None]] = {
    "-nkvo": _set("kv_offload", False),
    "--no-kv-offload": _set("kv_offload", False),
    "-nopo": _set("op_offload", False),
    "--no-op-offload": _set("op_offload", False),
    "--op-offload": _set("op_offload", True),
    "--no-mmap": _set("load_mode", "none"),
    "--mmap": _set("load_mode", "mmap"),
    "--mlock": _set("load_mode", "mlock"),
    "-cmoe": lambda flags: flags.overrides.append((_CPU_MOE, "CPU")),
    "--cpu-moe": lambda flags: flags.overrides.append((_CPU_MOE, "CPU")),
    "-rtr": lambda flags: _rtr(flags, "1"),
    "--run-time-repack": lambda flags: _rtr(flags, "1"),
    "-no-fa": _set("flash_attention", False),
}

_HANDLERS: dict[str, Callable[[Flags, str], None]] = {
    spelling: handler
    for spellings, handler in (
        (("-m", "--model", "-hf", "-hfr", "--hf-repo"), _text("model")),
        (("-ngl", "--gpu-layers", "--n-gpu-layers"), _layers),
        (("-ot", "--override-tensor"), _overrides),
        (("-ncmoe", "--n-cpu-moe"), _cpu_moe),
        (("-ncffn", "--n-cpu-ffn"), _cpu_ffn),
        (("-ts", "--tensor-split"), _split),
        (("-sm", "--split-mode"), _text("split_mode")),
        (("-c", "--ctx-size"), _number("context", "-c")),
        (("-np", "--parallel"), _number("parallel", "-np", 1)),
        (("-b", "--batch-size"), _number("batch", "-b", 1)),
        (("-ub", "--ubatch-size"), _number("ubatch", "-ub", 1)),
        (("-t", "--threads"), _number("threads", "-t", 1)),
        (("-ctk", "--cache-type-k"), _text("cache_k")),
        (("-ctv", "--cache-type-v"), _text("cache_v")),
        (("-fa", "--flash-attn"), _truth),
        (("-lm", "--load-mode"), _load_mode),
        (("-mmp",), _mmap_bench),
        (("--fit", "-fit"), _ignore),
        (("-p", "--n-prompt", "--prompt"), lambda flags, text: _bench_count(flags, "prompt", text)),
        (("-n", "--predict", "--n-predict", "--n-gen"), lambda flags, text: _bench_count(flags, "generate", text)),
        (("-d", "--n-depth"), _number("depth", "-d")),
        (("-pg",), _pair),
    )
    for spelling in spellings
}


def _bench_count(flags: Flags, name: str, text: str) -> None:
    """Token counts of llama-bench; elsewhere ``-p`` is the prompt's text and ``-n -1`` means no limit."""
    if flags.bench:
        setattr(flags, name, _whole(f"--{name}", text))
    elif name == "generate" and re.fullmatch(r"\d+", text):
        flags.generate = _whole("-n", text)
