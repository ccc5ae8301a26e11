"""DeepSpeed itself on the CPU: ``python host_deepspeed.py CONFIG.json PORT``.

A small model of matrices goes through `deepspeed.initialize` with the exported configuration; prints where its
parameters are, by DeepSpeed's own account and by the bytes under the NVMe path, as a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ |= {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": sys.argv[2],
}
os.environ |= {"DS_ACCELERATOR": "cpu"}

import deepspeed
import torch

WIDTH, DEPTH = 1100, 4


class Small(torch.nn.Module):  # type: ignore[misc]
    """Matrices of 1100 x 1100 with norms between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(WIDTH) for _ in range(DEPTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A pass through all layers."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x))
        return x


def main() -> None:
    """Initialise, run, look."""
    config = json.loads(Path(sys.argv[1]).read_text())
    deepspeed.init_distributed("gloo")
    torch.manual_seed(1)
    plain = Small().to(torch.bfloat16)
    model = Small().to(torch.bfloat16)
    model.load_state_dict(plain.state_dict())
    engine = deepspeed.initialize(model=model, config=config)[0]
    x = torch.randn(2, WIDTH, dtype=torch.bfloat16)
    with torch.no_grad():
        difference = (engine(x) - plain(x)).abs().max().item()
    where = {
        name: str(getattr(value, "nvme_swapper", None) is not None) for name, value in engine.module.named_parameters()
    }
    status = {name: str(value.ds_tensor.final_location) for name, value in engine.module.named_parameters()}
    path = config["zero_optimization"]["offload_param"].get("nvme_path")
    stored = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file()) if path else 0
    sizes = {name: value.ds_numel for name, value in engine.module.named_parameters()}
    print(json.dumps({"status": status, "where": where, "stored": stored, "sizes": sizes, "difference": difference}))


if __name__ == "__main__":
    main()
