"""Says of a run that may take long how long, before it starts."""

from __future__ import annotations

from medpfl.attacks.base import AttackContext
from medpfl.attacks.duration import Longest, Timed
from medpfl.experiment import Experiment
from medpfl.report.tables import format_seconds

_LONG = 600.0
# Where rows may end early they mostly do, long before their last step: the papers' attacks after
# one in thirty. The bound itself would frighten whoever starts a run of a minute.
_EARLY = 100
# So few evaluations end before long on any device, and are not worth timing one.
_FEW = 2000


def longest_time(experiment: Experiment) -> str | None:
    """Return a warning where a run may take more than ten minutes, else None.

    Args:
        experiment: its parts; of long attacks, the first update is made to be timed.
    """
    attack, plan = experiment.attack, experiment.source.plan
    if not isinstance(attack, Timed) or attack.evaluations() * len(plan) < _FEW:
        return None
    observation = experiment.source.sample().observation
    context = AttackContext(seed=experiment.seed, device=experiment.device)
    longest = attack.longest(observation, context)
    total = longest.total * len(plan)
    if total < _LONG * (1 if longest.certain else _EARLY):
        return None
    images = sum(planned.images for planned in plan)
    return _warning(longest, total, images, gpu=experiment.device.type == "cuda")


def _warning(longest: Longest, total: float, images: int, *, gpu: bool) -> str:
    starts = "" if longest.restarts == 1 else f" x {longest.restarts} restarts"
    early = "" if longest.certain else "; rows mostly end far earlier"
    steps = f"{longest.steps:,} steps{starts} an update at most"
    step = format_seconds(longest.seconds * longest.evaluations / longest.steps)
    device = "" if gpu else ", or use a GPU"
    return (
        f"at most about {format_seconds(total)} for {images} image{'' if images == 1 else 's'} on "
        f"this device ({steps}, {step} a step{early}). Shorten with n_images, "
        f"attack.optimizer.max_steps, attack.restarts or preprocess.size{device}"
    )
