"""Wrong, contradictory and hostile input: refused in one sentence, nothing half-written, nothing outside the folder."""

from __future__ import annotations

import json
import shlex
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies import machine_of, model_of

from stowplan.errors import BadFile, InputError, StowplanError
from stowplan.exports import list_engines, load_exporter
from stowplan.exports.base import Names
from stowplan.exports.directory import contents_of, script, write_directory
from stowplan.exports.flat_yaml import Value, read_yaml, write_yaml
from stowplan.exports.llama_cpp import LlamaCppExporter
from stowplan.exports.places import part_bytes
from stowplan.exports.projection import project
from stowplan.exports.reading import Told, read_command, read_file
from stowplan.exports.scripts import script_words
from stowplan.ops import FFN_PARTS
from stowplan.plan import Plan, Workload, run_lengths
from stowplan.planner.predict import make_setup
from stowplan.systems.base import RAM, Setup
from stowplan.systems.flexgen import Flexgen
from stowplan.systems.flexgen_policy import FlexgenSettings
from stowplan.systems.llama_cpp import LlamaCpp
from stowplan.systems.llama_cpp_commands import make_plan, model_file
from stowplan.systems.llama_cpp_settings import LlamaCppSettings
from stowplan.systems.serial import LayerPlaces

SPEC = "rtx-4090 + ryzen-9-7950x + ddr5-5200x2:128GiB + samsung-990-pro"


def told(key: str = "llama-3.1-8b", quant: str = "bf16", engine: str | None = None) -> Told:
    return Told(machine_of(SPEC), key, quant, engine=engine, loaded=model_of(key, quant))


@lru_cache(maxsize=2)
def small_plan() -> tuple[Setup, Plan]:
    model = model_of("qwen2.5-0.5b", "q8_0")
    setup = make_setup(machine_of(SPEC), model, LlamaCpp())
    layers = [
        LayerPlaces("gpu0", "gpu0", tuple((part, RAM if index % 2 else "gpu0") for part in sorted(FFN_PARTS)))
        for index in range(len(model.layers))
    ]
    plan = make_plan(setup.machine, ("qwen2.5-0.5b", "q8_0"), Workload(), LlamaCppSettings(), (layers, "gpu0"))
    return setup, plan


WRONG_COMMANDS = {
    "vllm serve m --cpu-offload-gb much": "--cpu-offload-gb",
    "vllm serve m --cpu-offload-gb -3": "--cpu-offload-gb",
    "vllm serve m --cpu-offload-gb": "--cpu-offload-gb needs a value",
    "vllm serve m --warp-drive 9": "--warp-drive",
    "vllm serve m --swap-space 4": "--swap-space",
    "vllm serve m --cpu-offload-gb 4 --cpu-offload-gb 5": "keep one",
    "vllm serve m --cpu-offload-gb 4 --offload-group-size 4": "exclude each other",
    "vllm serve m --offload-group-size 4 --offload-num-in-group 5": "--offload-num-in-group",
    "vllm serve m --offload-group-size 4 --offload-prefetch-step 0": "--offload-prefetch-step",
    "vllm serve m --cpu-offload-gb 4 --cpu-offload-params experts.w13_weight": "match no parameter",
    "vllm serve m --offload-group-size 99": "match no parameter",
    "vllm serve m --tensor-parallel-size 9": "--tensor-parallel-size 9",
    "vllm serve m n": "one model",
    "vllm serve m --enable-prefix-caching --no-enable-prefix-caching": "contradict",
    "vllm serve m --kv-cache-dtype int3": "--kv-cache-dtype int3",
    "vllm serve m --max-model-len 8q": "--max-model-len",
    "vllm serve m --kv-transfer-config {": "--kv-transfer-config is not JSON",
    "vllm serve m --gpu-memory-utilization 1.5": "--gpu-memory-utilization",
    "vllm bench m": "vllm serve",
    "python -m sglang.launch_server --model-path m --cpu-offload-gb 1.5": "--cpu-offload-gb 1.5",
    "python -m sglang.launch_server --model-path m --cpu-offload-gb 2 --offload-group-size 3": "exclude each other",
    "python -m sglang.launch_server --model-path m --offload-group-size 3": "moves experts of DeepSeek",
    "python -m sglang.launch_server --model-path m --enable-paged-experts": "come together",
    "python -m sglang.launch_server --model-path m --hicache-size 9": "need --enable-hierarchical-cache",
    "python -m sglang.launch_server --model-path m --tp-size 2": "--tp-size 2",
    "python -m sglang.launch_server m": "flags only",
    "python -m sglang.launch_server --model-path m --kt-method AMXINT4": "ktransformers",
    "python -m something.else --model m": "does not start",
    "FOO=1": "python",
}


@pytest.mark.parametrize("command", WRONG_COMMANDS)
def test_wrong_commands_are_refused_with_the_flag(command: str) -> None:
    engine = "vllm" if "vllm" in command else "sglang"
    with pytest.raises(StowplanError) as caught:
        read_command(shlex.split(command), told(engine=engine))
    expected = WRONG_COMMANDS[command]
    assert expected in str(caught.value) or (command == "FOO=1" and "start" in str(caught.value))
    assert "\n" not in str(caught.value)


WRONG_FILES = {
    ("vllm.yaml", "cpu-offload-gb: 4\ncpu-offload-gb: 4\n"): "line 2: cpu-offload-gb is given twice",
    ("vllm.yaml", "cpu-offload-gb 4\n"): "line 1",
    ("vllm.yaml", "cpu-offload-gb: [1\n"): "not JSON",
    ("vllm.yaml", "cpu-offload-gb: &x 4\n"): "'&'",
    ("vllm.yaml", "warp: 4\n"): "--warp",
    ("vllm.yaml", "enable-prefix-caching: 7\n"): "true or false",
    ("vllm.yaml", "a:\n  b:\n    c: 1\n"): "deeper",
    ("lmcache.yaml", "chunk_size: 256\nmax_local_cpu_sise: 5\n"): "max_local_cpu_sise",
    ("lmcache.yaml", "chunk_size: 256\nmax_local_cpu_size: five\n"): "max_local_cpu_size: five",
    ("lmcache.yaml", "chunk_size: lots\n"): "chunk_size: lots",
    ("lmcache.yaml", "chunk_size: 256\nlocal_disk: /nvme\nmax_local_disk_size: 5\n"): "file://",
    ("lmcache.yaml", "chunk_size: 256\nlocal_disk: file:///nvme/\n"): "come together",
    ("ds.json", '{"zero_optimization": {"stage": 2}}'): "stage 2",
    ("ds.json", '{"zero_optimization": {"stage": 3, "offload_param": {"device": "tape"}}}'): "offload_param.device",
    ("ds.json", '{"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}'): "nvme_path",
    (
        "ds.json",
        '{"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/x"}}}',
    ): "buffer_size",
    ("ds.json", '{"zero_optimization": {"stage": 3, "offload_param": {"devise": "cpu"}}}'): "offload_param.devise",
    ("ds.json", '{"zero_optimization": 3}'): "zero_optimization",
    ("map.json", '{"model.layers.0": "tpu"}'): "tpu",
    ("map.json", '{"model.layers.0": 0}'): "has no device",
    ("map.json", "[]"): "must be an object",
    ("map.json", "{"): "is not JSON",
    ("Modelfile", "FROM x\nPARAMETER num_gpu many\n"): "num_gpu many",
    ("Modelfile", "FROM x\nPARAMETER num_gpu 3\nPARAMETER num_gpu 4\n"): "given twice",
    ("Modelfile", "FROM x\nPARAMETER warp 3\n"): "warp",
    ("Modelfile", "FROM x\nJUMP\n"): "line 2",
    ("preset.ini", "[a]\nmodel = x\n[b]\nmodel = y\n"): "2 models",
    ("preset.ini", "[a]\nngl = 3\nngl = 4\n"): "given twice",
    ("preset.ini", "[a]\nnonsense\n"): "line 2",
    ("preset.ini", "[a]\nwarp = 4\n"): "--warp",
    ("run.sh", "llama-server -m x\nllama-server -m y\n"): "2 commands",
    ("run.sh", "llama-server -m $(cat x)\n"): "needs a shell",
    ("run.sh", "llama-server -m x | tee y\n"): "needs a shell",
    ("run.sh", "llama-server -m 'x\n"): "cannot split",
    ("run.sh", "# nothing\n"): "0 commands",
    ("plan.json", '{"schema_version": "stowplan.plan/1"}'): "stowplan predict",
}


@pytest.mark.parametrize(("name", "text"), WRONG_FILES)
def test_wrong_files_are_refused_with_the_place(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(StowplanError) as caught:
        read_file(path, told())
    assert WRONG_FILES[name, text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_text_or_too_large(tmp_path: Path) -> None:
    binary = tmp_path / "x.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    large = tmp_path / "y.yaml"
    with large.open("wb") as stream:
        stream.truncate(5 * 2**20)
    for path in (binary, large, tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(BadFile):
            read_file(path, told())


EXPERT_SETS = {
    '{"layers": 27, "experts": 64, "gpu": {"1": "0-64"}}': "experts go from 0 to 63",
    '{"layers": 27, "experts": 64, "gpu": {"0": "0-3"}}': "layer 0",
    '{"layers": 27, "experts": 64, "gpu": {"99": "0-3"}}': "layer 99",
    '{"layers": 27, "experts": 64, "gpu": {"1": "3-1"}}': "3-1",
    '{"layers": 27, "experts": 64, "gpu": {"1": "a"}}': "no list of experts",
    '{"layers": 3, "experts": 64, "gpu": {}}': "for 3 layers",
    '{"layers": 27}': "must hold",
    "{": "not JSON",
}


@pytest.mark.parametrize("text", EXPERT_SETS)
def test_wrong_sets_of_experts(text: str, tmp_path: Path) -> None:
    path = tmp_path / "experts.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_file(path, told("deepseek-v2-lite", "fp8", "ktransformers"))
    assert EXPERT_SETS[text] in str(caught.value)


HOSTILE = [
    "../../etc/passwd.gguf",
    "-rf.gguf",
    "a b'c\"d$(touch pwned)`touch pwned`;touch pwned.gguf",
    "новая модель.gguf",
    "--help.gguf",
    "#comment.gguf",
    "*.gguf",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_names_stay_one_word(name: str, tmp_path: Path) -> None:
    setup, plan = small_plan()
    named = plan.model_copy(update={"model": name})
    exporter = LlamaCppExporter()
    projection = project(exporter, setup, named)
    folder = tmp_path / "out"
    write_directory(folder, contents_of(exporter, setup, projection))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    words = script_words((folder / "run.sh").read_text())
    assert words[words.index("-m") + 1] == model_file(setup.model, named)
    shown = (folder / "run.sh").read_text().replace("exec llama-server", "printf '%s\\n'")
    done = subprocess.run(["sh", "-c", shown, "run.sh"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines() == words[1:]
    assert not list(tmp_path.rglob("pwned"))
    assert exporter.read((folder / "run.sh").read_text(), setup, Names.of(projection.plan)) == projection.plan


@pytest.mark.parametrize("name", ["a\nb.gguf", "a\x00b.gguf", "a\x1b[2Jb.gguf"])
def test_names_with_control_characters_are_refused(name: str) -> None:
    setup, plan = small_plan()
    with pytest.raises(InputError, match="control characters"):
        LlamaCppExporter().nearest(setup, plan.model_copy(update={"model": name}))


def test_a_folder_is_written_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    for name in ("../x", "a/b", ".hidden", "", "x" * 200, "a\nb", "/etc/x"):
        with pytest.raises(InputError):
            write_directory(tmp_path / "out", {"good": "1", name: "2"})
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for target in (tmp_path / "there", tmp_path / "link", tmp_path / "no" / "parent"):
        with pytest.raises(InputError):
            write_directory(target, {"good": "1"})
    with pytest.raises(BadFile):
        write_directory(tmp_path / ("x" * 300), {"good": "1"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]
    write_directory(tmp_path / "out", {"good": "1", "run.sh": script(["true"], {})})
    assert (tmp_path / "out" / "run.sh").stat().st_mode & 0o111


@pytest.mark.parametrize("engine", list_engines())
def test_every_engine_writes_a_folder_that_can_be_followed(engine: str, tmp_path: Path) -> None:
    setup, plan = small_plan()
    quant = (
        "q8_0"
        if "llama" in engine
        else "f16"
        if engine == "flexgen"
        else "fp8"
        if engine == "ktransformers"
        else "bf16"
    )
    key = {"flexgen": "opt-6.7b", "ktransformers": "deepseek-v2-lite"}.get(engine, "qwen2.5-0.5b")
    if (key, quant) != ("qwen2.5-0.5b", "q8_0"):
        model = model_of(key, quant)
        setup = make_setup(machine_of(SPEC), model, LlamaCpp())
        layers = [dict.fromkeys((*part_bytes(layer), "kv"), "gpu0") for layer in model.layers]
        plan = plan.model_copy(
            update={"model": key, "quant": quant, "system": "any", "settings": {}, "layers": run_lengths(layers)}
        )
    if engine == "flexgen":
        plan = Flexgen().plan(
            setup, Workload(prompt=128, generate=32), FlexgenSettings(percent=(20, 80, 100, 0, 100, 0))
        )
    exporter = load_exporter(engine)
    contents = contents_of(exporter, setup, project(exporter, setup, plan))
    write_directory(tmp_path / "out", contents)
    text = contents["README.md"]
    for heading in ("## Run", "## Expected", "## Undo", "## Files", "## Read back"):
        assert heading in text
    assert exporter.target in text
    assert json.loads(contents["plan.json"])["schema_version"] == "stowplan.plan/1"
    for name in contents:
        assert name == "README.md" or f"`{name}`" in text
        if name.endswith(".sh"):
            subprocess.run(["sh", "-n", str(tmp_path / "out" / name)], check=True)
        if name.endswith(".py"):
            compile(contents[name], name, "exec")


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.text(max_size=20)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=40)
@given(st.dictionaries(st.from_regex(r"[a-z][a-z_-]{0,9}", fullmatch=True), values, max_size=4))
def test_yaml_comes_back_as_it_was(table: dict[str, Value]) -> None:
    assert read_yaml(write_yaml(table), "x") == table


@settings(max_examples=60)
@given(st.text(max_size=80))
def test_any_text_is_yaml_or_refused(text: str) -> None:
    try:
        read_yaml(text, "x")
    except InputError as error:
        assert "line" in str(error)


def test_yaml_that_people_write() -> None:
    text = (
        "# comment\n---\na: 1  # one\nb: 'it''s # here'\nc:\n  - x\n  - 2\nd:\n  e: true\n"
        'f: "q\\"#"\ng: 1.5\nh: ~\ni: /x#y\nj: 1e3\nk:\n'
    )
    assert read_yaml(text, "x") == {
        "a": 1,
        "b": "it's # here",
        "c": ["x", 2],
        "d": {"e": True},
        "f": 'q"#',
        "g": 1.5,
        "h": None,
        "i": "/x#y",
        "j": 1000.0,
        "k": None,
    }
