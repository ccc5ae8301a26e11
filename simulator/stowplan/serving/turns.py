"""Which later prompt of a conversation begins with a request's prompt and its answer.

A log says how long an answer was, not what it said. The prompt of a later turn holds it, though, and where that is so,
the answer's blocks have the hashes of that prompt's. The first later request of the same conversation whose prompt
begins with every whole block of the earlier one's goes on from there; it is taken to hold the answer where it is long
enough for the earlier prompt and its answer together. A prompt that leaves a part of the answer out, such as its
reasoning, and is that long all the same counts as holding all of it.

Where no conversation is told, nothing is taken to hold an answer: prompts that begin alike may as well have the same
instruction, and whole blocks cannot tell, since the last one of a prompt is hardly ever full.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Numbers = NDArray[np.int32]
_LATER_TURNS = 8
"""Requests of the conversation after a request that are looked at."""


def answer_holders(
    session: Integers, prompt_tokens: Integers, output_tokens: Integers, blocks: Numbers, offsets: Integers
) -> Integers:
    """By request, the later one whose prompt holds its answer; -1 for none.

    Args:
        session: int64[n], conversations of requests in order of arrival; negative for none.
        prompt_tokens, output_tokens: int64[n], lengths.
        blocks: numbers of the prompts' whole blocks, equal where the blocks and all before them are.
        offsets: int64[n + 1]; the blocks of request i are ``blocks[offsets[i]:offsets[i + 1]]``.
    """
    told = np.flatnonzero(session >= 0)
    turns = told[np.argsort(session[told], kind="stable")]
    talk, ends, counts = session[turns], (prompt_tokens + output_tokens)[turns], np.diff(offsets)[turns]
    prompts, opens = prompt_tokens[turns], offsets[turns]
    holder = np.full(len(session), -1, dtype=np.int64)
    here = np.arange(len(turns))
    for step in range(1, _LATER_TURNS + 1):
        here = here[: np.searchsorted(here, len(turns) - step)]
        here = here[talk[here] == talk[here + step]]
        if len(here) == 0:
            break
        later = here + step
        alike = counts[later] >= counts[here]
        whole = np.flatnonzero(alike & (counts[here] > 0))
        last = counts[here[whole]] - 1
        alike[whole] = blocks[opens[here[whole]] + last] == blocks[opens[later[whole]] + last]
        holds = alike & (prompts[later] >= ends[here])
        holder[turns[here[holds]]] = turns[later[holds]]
        here = here[~alike]
    return holder
