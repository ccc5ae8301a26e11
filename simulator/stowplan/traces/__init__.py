"""Requests over time: readers of public traces, a generator, downloads and statistics.

This package loads nothing by itself; import what is needed from its modules:

- `stowplan.traces.trace`: `Trace` and `Blocks`, slices, scalings and resampling.
- `stowplan.traces.reading`: `read_trace` for files, `load_trace` for names and files.
- `stowplan.traces.synthesis`: a full-size trace that looks like BurstGPT.
- `stowplan.traces.conversations`: sessions and prefix blocks for a trace that has none.
- `stowplan.traces.stats`: lengths, rates, burstiness, prefix reuse.
- `stowplan.traces.fetching`: verified downloads, only when the user asks.
"""
