"""BurstGPT: ten million requests to ChatGPT and GPT-4 in CSV files (Wang et al., KDD 2025; CC-BY-4.0).

Parts 1 and 2 have the columns Timestamp (seconds, whole), Model, Request tokens, Response tokens, Total tokens and Log
Type; part 3 adds Session ID and Elapsed time. Failed requests have no response tokens, and mostly no request tokens.
"""

from __future__ import annotations

from stowplan.traces.csv_rows import Layout

LAYOUT = Layout(
    family="BurstGPT",
    arrival="timestamp",
    prompt="request tokens",
    output="response tokens",
    session="session id",
)
