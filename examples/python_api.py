"""Attack a few drawn images from Python and print what came out; nothing is written to disk.

Takes the same settings as the command line:  python examples/python_api.py attack=cpl n_images=6
"""

from __future__ import annotations

import sys

from hydra import compose, initialize_config_dir

from medpfl.attacks import AttackContext
from medpfl.cli import conf_dir
from medpfl.experiment import build
from medpfl.metrics import summarise


def main(settings: list[str]) -> None:
    """Compose a configuration, build its parts, attack every update, score every image."""
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("config", overrides=["attack=scale_free", "n_images=3", *settings])
    experiment = build(config)  # every check is in here: what is wrong is said before any work
    context = AttackContext(seed=experiment.seed, device=experiment.device)
    mean_image = experiment.data.mean_image()

    scores = []
    captures = {c.capture_id: c for c in experiment.source.captures()}
    # The attack gets observations alone; the images behind them are for scoring.
    observations = (capture.observation for capture in captures.values())
    for found in experiment.attack.reconstruct(observations, context):
        scores += experiment.scorer.judge(captures[found.capture_id], found, mean_image).scores
        print(f"{scores[-1].image_id:24s} SSIM {scores[-1].ssim:.3f}, {found.status}")

    s = summarise(scores)
    print(f"ASR {s.asr:.1%} [{s.asr_low:.1%}, {s.asr_high:.1%}] of {s.n} images")


if __name__ == "__main__":
    main(sys.argv[1:])
