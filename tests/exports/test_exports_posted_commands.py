"""Commands and files that people posted: read as plans, or refused in a sentence that names what is not understood."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.strategies import machine_of, model_of

from stowplan.errors import StowplanError
from stowplan.exports.reading import Imported, Told, read_command, read_file
from stowplan.plan import expand

DATA = tomllib.loads(Path(__file__).with_name("posted_commands.toml").read_text())
POSTS: list[dict[str, Any]] = DATA["post"]


def read(post: dict[str, Any], folder: Path) -> Imported:
    key, quant = post["model"]
    engine = post["engine"] if post["engine"] in ("ktransformers", "ik_llama.cpp") else None
    told = Told(machine_of(DATA["defaults"][post["on"]]), key, quant, engine=engine, loaded=model_of(key, quant))
    if "file" in post:
        path = folder / post["file"]
        path.write_text(post["text"])
        return read_file(path, told)
    return read_command(shlex.split(post["text"]) if post.get("shell", True) else post["text"].split(), told)


@pytest.mark.parametrize("post", POSTS, ids=[f"{each['engine']}-{number}" for number, each in enumerate(POSTS)])
def test_posts_are_read_or_what_is_unknown_is_named(post: dict[str, Any], tmp_path: Path) -> None:
    if "names" not in post:
        found = read(post, tmp_path)
        layers = expand(found.plan.layers, len(found.setup.model.layers), where="plan")
        assert all(parts.keys() >= {"attention", "kv"} for parts in layers)
        return
    with pytest.raises(StowplanError) as caught:
        read(post, tmp_path)
    assert post["names"] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_post_has_a_source_and_every_engine_its_posts() -> None:
    assert len(POSTS) >= 25
    assert all(post["source"].startswith("https://") for post in POSTS)
    engines = [post["engine"] for post in POSTS]
    for engine in ("llama.cpp", "ik_llama.cpp", "vllm", "sglang", "ollama"):
        assert engines.count(engine) >= 2
    assert sum("names" not in post for post in POSTS) >= 25


@pytest.mark.parametrize(
    ("number", "part", "counts"),
    [(0, "ffn_up_exps", (58, 0)), (3, "ffn_up_exps", (56, 2)), (13, "ffn_up_exps", (44, 50))],
)
def test_places_of_some_posts(number: int, part: str, counts: tuple[int, int], tmp_path: Path) -> None:
    """Experts of all layers but the dense ones in RAM; those of two kept on a GPU; the first 44 in RAM."""
    found = read(POSTS[number], tmp_path)
    layers = expand(found.plan.layers, len(found.setup.model.layers), where="plan")
    places = [parts[part] for parts in layers if part in parts]
    assert (places.count("ram"), len(places) - places.count("ram")) == counts
