"""Files of request lengths without arrivals, such as the ShareGPT and arXiv lengths of Sarathi-Serve and Vidur."""

from __future__ import annotations

from stowplan.traces.csv_rows import Layout

LAYOUT = Layout(family="request lengths", prompt="num_prefill_tokens", output="num_decode_tokens")
"""As Vidur writes them, which reads further columns from them that follow from these two."""

PLAIN_LAYOUT = Layout(family="request lengths", prompt="prompt_tokens", output="output_tokens")
"""Our own names without arrivals."""
