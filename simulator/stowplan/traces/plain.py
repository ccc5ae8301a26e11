"""The format of our own: arrival_s, prompt_tokens, output_tokens, and where known session and prefix_hashes.

As CSV with a header (hashes with spaces between them) or as JSON lines (hashes as a list). It is also what is written.
"""

from __future__ import annotations

from stowplan.traces.csv_rows import Layout
from stowplan.traces.json_rows import Fields

SYNTHETIC = "synthetic"
"""Column or field of files that we write from synthetic traces, in any format."""

LAYOUT = Layout(
    family="plain",
    arrival="arrival_s",
    prompt="prompt_tokens",
    output="output_tokens",
    session="session",
    hashes="prefix_hashes",
)

FIELDS = Fields(
    family="plain",
    arrival="arrival_s",
    prompt="prompt_tokens",
    output="output_tokens",
    session="session",
    hashes="prefix_hashes",
)
