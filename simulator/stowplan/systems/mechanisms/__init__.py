"""The mechanisms of offloading systems, each written once, over one loop of layers.

`policy` says what a system does: where weights, cache and experts live and how they move. `tasks` turns one layer under
a policy into tasks with work vectors. `loop` runs many layers in the simulator. `residency` counts bytes and fills
tiers. Every mechanism has a neutral value that leaves the loop as it would be without it.
"""
