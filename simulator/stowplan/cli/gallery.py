"""A gallery of worked questions: ``python -m stowplan.cli.gallery -o FOLDER`` answers each of ``gallery.toml``.

Every question is one command, run as it stands there; its page is written beside an index with all answers.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from stowplan.cli.app import app
from stowplan.datafiles import read_toml
from stowplan.errors import InputError
from stowplan.plan import write_atomically
from stowplan.report.markup import Markup, join, tag
from stowplan.report.shell import whole_page

_QUESTIONS = Path(__file__).with_name("gallery.toml")
_WITHOUT_PAGE = "--until"


@dataclass(frozen=True, slots=True)
class Question:
    """A worked question.

    Attributes:
        name: of its page; title: of the question in a few words.
        asked: what somebody wants to know.
        command: the words after ``stowplan``.
        source: where it was asked in public, None where it was not.
    """

    name: str
    title: str
    asked: str
    command: tuple[str, ...]
    source: str | None = None

    @property
    def has_page(self) -> bool:
        """Whether its answer has pictures."""
        return _WITHOUT_PAGE not in self.command


def questions() -> list[Question]:
    """Every question, in order."""
    listed: Sequence[Mapping[str, Any]] = read_toml(_QUESTIONS)["question"]
    return [Question(**{**each, "command": tuple(each["command"])}) for each in listed]


def answer(question: Question, folder: Path) -> str:
    """Run a question's command, with its page into `folder`; what it prints.

    Raises:
        StowplanError: the command is wrong.
    """
    page = ["--html", str(folder / f"{question.name}.html")] if question.has_page else []
    said = StringIO()
    with redirect_stdout(said):
        app([*question.command, *page], prog_name="stowplan", standalone_mode=False)
    return said.getvalue().strip("\n")


def index(answered: Sequence[tuple[Question, str]]) -> str:
    """The page that lists every question with its command and answer."""
    return whole_page("Worked questions", tag("h1", "Worked questions"), *(_entry(*each) for each in answered))


def _entry(question: Question, said: str) -> Markup:
    where = f" Asked at {question.source}." if question.source else ""
    command = f"stowplan {shlex.join(question.command)}"
    parts = [
        tag("h2", question.title),
        tag("p", question.asked + where),
        tag("pre", tag("code", command)),
        tag("pre", tag("code", said)),
    ]
    if question.has_page:
        parts.append(tag("p", tag("a", "the page with its pictures", href=f"{question.name}.html")))
    return tag("section", join(parts), id=question.name)


def main(arguments: Sequence[str]) -> None:
    """Answer every question, or those that are named, into a folder.

    Raises:
        InputError: no folder, or no such question.
    """
    if len(arguments) < 2 or arguments[0] != "-o":
        raise InputError("give a folder: python -m stowplan.cli.gallery -o FOLDER [NAME ...]")
    folder, names = Path(arguments[1]), arguments[2:]
    known = {question.name: question for question in questions()}
    for name in names:
        if name not in known:
            raise InputError(f"no question is called '{name[:60]}'; there are {', '.join(known)}")
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [question for question in known.values() if not names or question.name in names]
    answered = []
    for question in chosen:
        print(f"{question.name}: {question.title}", file=sys.stderr)
        answered.append((question, answer(question, folder)))
    write_atomically(folder / "index.html", index(answered).encode())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"stowplan: {error}")
