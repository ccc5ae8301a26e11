"""DeepSpeed's own reading of configurations: ``python host_deepspeed.py FILE [FILE ...]``; a line of JSON for each."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

from deepspeed.runtime.swap_tensor.aio_config import get_aio_config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

for path in sys.argv[1:]:
    data = json.loads(Path(path).read_text())
    zero = DeepSpeedZeroConfig(**data["zero_optimization"])
    param = zero.offload_param
    print(
        json.dumps(
            {
                "stage": int(zero.stage),
                "threshold": zero.param_persistence_threshold,
                "offload_param": json.loads(param.model_dump_json()) if param is not None else None,
                "aio": get_aio_config(data),
            }
        )
    )
