"""kt-kernel's own choice of experts: ``python host_kt.py TENSOR.pt RATIO MOE_LAYERS``; prints the experts by layer."""

from __future__ import annotations

import json
import sys

import torch
from kt_kernel import generate_gpu_experts_masks

frequencies = torch.load(sys.argv[1])[0]
wanted = int(float(sys.argv[2]) * int(sys.argv[3]) * frequencies.shape[1])
mask = generate_gpu_experts_masks(frequencies, wanted)
print(json.dumps([row.nonzero().flatten().tolist() for row in mask]))
