"""Azure LLM inference traces of 2023 and 2024: CSV files of code and conversation requests (CC-BY-4.0).

Columns TIMESTAMP (date and time, UTC), ContextTokens, GeneratedTokens; the two years differ in how they write the time.
Patel et al., "Splitwise", ISCA 2024; Stojkovic et al., "DynamoLLM", HPCA 2025.
"""

from __future__ import annotations

from stowplan.traces.csv_rows import Layout

LAYOUT = Layout(
    family="Azure LLM inference",
    arrival="timestamp",
    prompt="contexttokens",
    output="generatedtokens",
    dated=True,
)
