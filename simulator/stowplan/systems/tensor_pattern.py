"""Regular expressions over tensor names, matched in linear time whatever their author meant.

llama.cpp searches tensor names with ``std::regex`` (ECMAScript syntax, not anchored). A pattern comes from a command
line that somebody pasted, so a backtracking matcher could be kept busy for ever. Here a pattern becomes a finite
automaton: its states are walked as sets, each step is remembered, and the number of steps is limited. The syntax is
what patterns of tensor names use: literals, ``.``, classes, ``\\d \\w \\s``, groups, ``|``, ``* + ? {m,n}``, ``^ $``.
Lookaround and back-references are refused.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass, field

from stowplan.errors import InputError

LONGEST = 2_000
_MOST_STATES = 20_000
_MOST_REPEATS = 1_000
_DEEPEST = 50
_MOST_STEPS = 2_000_000

_DIGITS = frozenset(string.digits)
_WORD = frozenset(string.ascii_letters + string.digits + "_")
_SPACE = frozenset(" \t\r\n\f\v")
_CLASSES = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_SPECIAL = frozenset("\\^$.*+?()[]{}|")

_Test = Callable[[str], bool]


@dataclass(slots=True)
class _State:
    """A state: a test of one character and where it leads, or free moves; `gate` holds only at an end of the name."""

    test: _Test | None = None
    target: int = -1
    free: list[int] = field(default_factory=list)
    gate: str = ""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of the automaton with one way in and one way out."""

    first: int
    last: int


class TensorPattern:
    """One pattern, compiled.

    Raises:
        InputError: longer than 2,000 characters, not a pattern, or beyond the syntax above; names the pattern.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._states: list[_State] = []
        self._steps = 0
        self._known: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        if len(text) > LONGEST:
            raise InputError(f"-ot '{text[:60]}...': a pattern has at most {LONGEST:,} characters")
        reader = _Reader(text, self._states)
        whole = reader.whole()
        self._accept = whole.last
        self._start = self._closed({whole.first}, at_start=True, at_end=False)
        self._again = self._closed({whole.first}, at_start=False, at_end=False)

    def search(self, name: str) -> bool:
        """Whether the pattern matches anywhere in a name.

        Raises:
            InputError: the pattern needs more steps than any pattern of tensor names does.
        """
        current = self._start
        if self._accept in current:
            return True
        for character in name:
            current = self._after(current, character)
            if self._accept in current:
                return True
        return self._accept in self._closed(set(current), at_start=not name, at_end=True)

    def _after(self, current: frozenset[int], character: str) -> frozenset[int]:
        known = self._known.get((current, character))
        if known is not None:
            return known
        reached = set[int]()
        for index in current:
            state = self._states[index]
            if state.test is not None and state.test(character):
                reached.add(state.target)
        self._spend(len(current))
        found = self._closed(reached, at_start=False, at_end=False) | self._again
        self._known[current, character] = found
        return found

    def _closed(self, reached: set[int], *, at_start: bool, at_end: bool) -> frozenset[int]:
        """All states that free moves lead to; gates stay shut unless the name starts or ends here."""
        waiting, found = list(reached), set(reached)
        while waiting:
            state = self._states[waiting.pop()]
            if (state.gate == "^" and not at_start) or (state.gate == "$" and not at_end):
                continue
            for target in state.free:
                if target not in found:
                    found.add(target)
                    waiting.append(target)
        self._spend(len(found))
        return frozenset(found)

    def _spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MOST_STEPS:
            raise InputError(
                f"-ot '{self.text[:60]}': takes more than {_MOST_STEPS:,} steps to match; write it plainly"
            )


class _Reader:
    """Recursive descent over a pattern; builds Thompson's automaton."""

    def __init__(self, text: str, states: list[_State]) -> None:
        self._text, self._position, self._states, self._depth = text, 0, states, 0

    def whole(self) -> _Piece:
        found = self._choice()
        if self._position < len(self._text):
            raise self._wrong("a ')' without its '('")
        return found

    def _wrong(self, reason: str) -> InputError:
        return InputError(f"-ot '{self._text[:60]}': is not a regular expression that stowplan reads ({reason})")

    def _new(self, test: _Test | None = None, gate: str = "") -> int:
        if len(self._states) >= _MOST_STATES:
            raise self._wrong("too many repetitions")
        self._states.append(_State(test=test, gate=gate))
        return len(self._states) - 1

    def _peek(self) -> str:
        return self._text[self._position] if self._position < len(self._text) else ""

    def _next(self) -> str:
        character = self._peek()
        if not character:
            raise self._wrong("it ends too early")
        self._position += 1
        return character

    def _choice(self) -> _Piece:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._wrong("groups are nested too deeply")
        branches = [self._sequence()]
        while self._peek() == "|":
            self._next()
            branches.append(self._sequence())
        self._depth -= 1
        if len(branches) == 1:
            return branches[0]
        first, last = self._new(), self._new()
        for branch in branches:
            self._states[first].free.append(branch.first)
            self._states[branch.last].free.append(last)
        return _Piece(first, last)

    def _sequence(self) -> _Piece:
        first = last = self._new()
        while self._peek() not in ("", "|", ")"):
            item = self._repeated()
            self._states[last].free.append(item.first)
            last = item.last
        return _Piece(first, last)

    def _repeated(self) -> _Piece:
        start = self._position
        item = self._atom()
        low, high = self._times()
        if (low, high) == (1, 1):
            return item
        end = self._position
        first = last = self._new()
        for number in range(high if high is not None else low + 1):
            self._position = start
            copy = item if number == 0 else self._atom()
            self._states[last].free.append(copy.first)
            if number >= low:
                after = self._new()
                self._states[last].free.append(after)
                self._states[copy.last].free.append(after)
                if high is None:
                    self._states[copy.last].free.append(copy.first)
                last = after
            else:
                last = copy.last
        self._position = end
        return _Piece(first, last)

    def _times(self) -> tuple[int, int | None]:
        """How often the item before is wanted: (1, 1) where nothing says so, no end where there is none."""
        sign = self._peek()
        if sign not in ("*", "+", "?", "{"):
            return 1, 1
        self._next()
        found: tuple[int, int | None] = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(sign, (0, 0))
        if sign == "{":
            found = self._counted()
        if self._peek() == "?":  # the shortest match is a match as well
            self._next()
        if self._peek() in ("*", "+", "?", "{") and self._peek():
            raise self._wrong("a repetition is repeated")
        return found

    def _counted(self) -> tuple[int, int | None]:
        closing = self._text.find("}", self._position)
        low, comma, high = self._text[self._position : max(closing, 0)].partition(",")
        if closing < 0 or not low.isascii() or not low.isdigit() or not (high == "" or high.isdigit()):
            raise self._wrong("after '{' comes a count such as {2} or {1,3}")
        self._position = closing + 1
        least = int(low[:9])
        most = (int(high[:9]) if high else None) if comma else least
        if least > _MOST_REPEATS or (most is not None and (most > _MOST_REPEATS or most < least)):
            raise self._wrong(f"counts go from 0 to {_MOST_REPEATS} and not backwards")
        return least, most

    def _atom(self) -> _Piece:
        character = self._next()
        if character == "(":
            return self._group()
        if character in ("^", "$"):
            first, last = self._new(gate=character), self._new()
            self._states[first].free.append(last)
            return _Piece(first, last)
        if character in ("*", "+", "?", "{"):
            raise self._wrong(f"'{character}' repeats nothing")
        test: _Test
        if character == "[":
            test = self._class()
        elif character == ".":
            test = _not_newline
        elif character == "\\":
            test = self._escape().__contains__
        else:
            test = character.__eq__
        first, last = self._new(test), self._new()
        self._states[first].target = last
        return _Piece(first, last)

    def _group(self) -> _Piece:
        if self._peek() == "?":
            self._next()
            kind = self._next()
            if kind != ":":
                raise self._wrong("looking ahead or behind is not supported; list what should match")
        inside = self._choice()
        if self._peek() != ")":
            raise self._wrong("a '(' without its ')'")
        self._next()
        return inside

    def _escape(self) -> frozenset[str]:
        character = self._next()
        if character in _CLASSES:
            return _CLASSES[character]
        if character.lower() in _CLASSES:
            return frozenset(map(chr, range(256))) - _CLASSES[character.lower()]
        if character in _CONTROLS:
            return frozenset(_CONTROLS[character])
        if character.isalnum():
            raise self._wrong(f"'\\{character}' is not supported")
        return frozenset(character)

    def _class(self) -> _Test:
        """A test for ``[...]``."""
        negated = self._peek() == "^"
        if negated:
            self._next()
        members = set[str]()
        while (character := self._next()) != "]":
            chosen = self._escape() if character == "\\" else frozenset(character)
            ranged = self._peek() == "-" and self._text[self._position + 1 : self._position + 2] not in ("]", "")
            if not ranged or len(chosen) != 1:
                members |= chosen
                continue
            self._next()
            character = self._next()
            high = self._escape() if character == "\\" else frozenset(character)
            low, top = ord(min(chosen)), ord(min(high))
            if len(high) != 1 or low > top or top > 0xFFFF:
                raise self._wrong("a range in [] goes from a lower to a higher character")
            members |= set(map(chr, range(low, top + 1)))
        fixed = frozenset(members)
        return (lambda each: each not in fixed) if negated else fixed.__contains__


def _not_newline(character: str) -> bool:
    return character not in "\n\r"


def escaped(text: str) -> str:
    """A pattern that matches a text and nothing else."""
    return "".join(f"\\{each}" if each in _SPECIAL else each for each in text)
