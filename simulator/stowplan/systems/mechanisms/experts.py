"""What an expert cache makes of one pass through a layer: how much is loaded when, and what the CPU computes."""

from __future__ import annotations

from dataclasses import dataclass

from stowplan.models.model import Layer, Model
from stowplan.ops import Step
from stowplan.routing.caches import expected_hit_rate
from stowplan.routing.generate import RoutingProfile
from stowplan.systems.mechanisms.policy import Policy
from stowplan.systems.mechanisms.pricing import DRAM, Pricing, expert_bytes, layer_parts


@dataclass(frozen=True, slots=True)
class ExpertPlan:
    """Bytes and shares of one GPU batch's pass through one layer.

    Attributes:
        ahead: bytes copied before the router has run, wrongly predicted ones included.
        late: bytes copied after the router.
        cpu_share: share of the experts' arithmetic that the CPU does.
        disk_share: share of what is copied that is read from disk first.
        cpu_from_disk: bytes that the CPU needs from disk.
        disk_loaded: bytes read from disk by a system without GPU.
        used_bytes: bytes of the model's format that the GPU uses.
    """

    ahead: float = 0.0
    late: float = 0.0
    cpu_share: float = 0.0
    disk_share: float = 0.0
    cpu_from_disk: float = 0.0
    disk_loaded: float = 0.0
    used_bytes: float = 0.0


NO_EXPERTS = ExpertPlan()
_GAIN = 0.02  # a smaller gain is lost to sharing host memory


def plan_experts(pricing: Pricing, policy: Policy, layer: Layer, step: Step, hits: float) -> ExpertPlan:
    """What is loaded and computed where for the experts that a pass touches.

    Args:
        pricing, policy: costs, and what is done.
        layer, step: what passes where.
        hits: share of the touched experts that are on the GPU.
    """
    if layer.experts is None:
        return NO_EXPERTS
    own, parts = policy.experts, layer_parts(layer, step)
    each = expert_bytes(layer) / layer.experts.total
    away = own.ram + own.disk
    from_disk = own.disk / away if away else 0.0
    if policy.device == "cpu":
        return ExpertPlan(disk_loaded=parts.touched * each * own.stored * own.disk)
    if not own.selective:
        return ExpertPlan(used_bytes=expert_bytes(layer))
    missed = parts.touched * (1.0 - hits)
    on_cpu = 0.0
    if own.miss == "cpu":
        on_cpu = 1.0
    elif own.miss == "both" and missed:
        on_cpu = _balanced(pricing, policy, layer, step, each)
    size = each * own.stored * (1.0 - own.low + own.low * own.low_stored * (1.0 - own.low_gpu))
    copied = missed * (1.0 - on_cpu) * size
    computed = missed * on_cpu
    return ExpertPlan(
        # A predictor names as many experts as will miss; the wrong ones come in vain and the right ones come late.
        ahead=copied if own.accuracy else 0.0,
        late=copied * (1.0 - own.accuracy),
        cpu_share=computed / parts.touched if parts.touched else 0.0,
        disk_share=from_disk,
        cpu_from_disk=computed * each * own.stored * from_disk,
        used_bytes=(parts.touched - computed) * each,
    )


def _balanced(pricing: Pricing, policy: Policy, layer: Layer, step: Step, each: float) -> float:
    """Share of the misses that the CPU takes so that it ends together with the link, both busy from the router on.

    Copies read host memory too, so where that limits the CPU, dividing gains nothing: then one side takes all.
    """
    parts = layer_parts(layer, step)
    computed = pricing.on_cpu(parts.experts)
    copied = pricing.copy(each * policy.experts.stored * parts.touched, pinned=policy.experts.pinned)
    on_cpu = computed.alone_s(pricing.rates)
    on_gpu = copied.alone_s(pricing.rates) + pricing.on_gpu(parts.experts).alone_s(pricing.rates)

    def seconds(share: float) -> float:
        dram = share * computed.amounts[DRAM] + (1.0 - share) * copied.amounts[DRAM]
        return max(share * on_cpu, (1.0 - share) * on_gpu, dram / pricing.rates[DRAM])

    balanced = on_gpu / (on_gpu + on_cpu)
    return balanced if seconds(balanced) < (1.0 - _GAIN) * min(seconds(0.0), seconds(1.0)) else float(on_cpu <= on_gpu)


def resident_hits(policy: Policy, model: Model, layer: Layer, step: Step, profile: RoutingProfile) -> tuple[float, int]:
    """Share of the touched experts that the cache holds, and the number of first layers that hold all of theirs.

    With one token the hit rate is that of the cache's policy on the model's routing. A pass that touches nearly all
    experts finds the share that the cache holds, whatever the policy; between, by the share of touched experts that one
    token alone would ask for.
    """
    if layer.experts is None:
        return 1.0, 0
    own, total, active = policy.experts, layer.experts.total, layer.experts.active
    if own.gpu >= 1.0:
        return 1.0, 0
    routed = sum(each.experts is not None for each in model.layers)
    shallow = min(own.shallow, int(own.gpu * routed))
    share = (own.gpu * routed - shallow) / (routed - shallow) if routed > shallow else 1.0
    if own.policy == "uniform":
        return share, shallow
    single = expected_hit_rate(profile, total, active, share * total, own.policy)
    touched = layer_parts(layer, step).touched
    return share + (single - share) * active / max(float(active), touched), shallow
