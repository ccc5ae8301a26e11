"""Task-graph simulator of one step: resources are shared max-min fair, memory is limited."""

from stowplan.engine.bounds import lower_bound, serial_bound
from stowplan.engine.graph import MEMORY_WAIT, Graph, GraphBuilder, Task
from stowplan.engine.run import Phase, Run, blame, critical_path
from stowplan.engine.sharing import Demand, Share, demand_of, fair_shares
from stowplan.engine.simulate import simulate
from stowplan.engine.timeline import timeline, write_timeline

__all__ = [
    "MEMORY_WAIT",
    "Demand",
    "Graph",
    "GraphBuilder",
    "Phase",
    "Run",
    "Share",
    "Task",
    "blame",
    "critical_path",
    "demand_of",
    "fair_shares",
    "lower_bound",
    "serial_bound",
    "simulate",
    "timeline",
    "write_timeline",
]
