"""Mooncake: JSON lines with the hashes of every prompt's blocks of 512 tokens (Qin et al., FAST 2025; Apache-2.0).

Fields timestamp (milliseconds), input_length, output_length and hash_ids. An id stands for a block and all blocks
before it, and the last block of a prompt may be shorter.
"""

from __future__ import annotations

from stowplan.traces.json_rows import Fields

FIELDS = Fields(
    family="Mooncake",
    arrival="timestamp",
    prompt="input_length",
    output="output_length",
    session="session_id",
    hashes="hash_ids",
    arrival_s=1e-3,
)
