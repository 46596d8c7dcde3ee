"""Bounds beside attacks: in the tables, the summary and the picture of a run."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from bound_maps import drawn, linear_map
from helpers import CPU, config, experiment, observe, payload_of, seeded, sent, spec_of, victim_of
from PIL import Image
from records import run_json, table
from torch import nn

from medpfl.bounds.columns import BOUND_COLUMNS
from medpfl.bounds.expectation import PARTS, Expected, expected
from medpfl.bounds.pixels import PixelMap
from medpfl.bounds.prior import GaussianPrior
from medpfl.bounds.release import Clip, NoBound, Release, release_of
from medpfl.bounds.updates import PublicImages, UpdateBounds
from medpfl.defenses import Clipping, Perturbation, Quantise, TopK
from medpfl.defenses.noise import Gaussian, Laplace, MedPFLLevel
from medpfl.defenses.perturbation import PerturbationFacts
from medpfl.errors import ConfigurationError
from medpfl.federated import Client
from medpfl.image_score import ImageScore
from medpfl.metrics.bounded import beaten, bounds_of
from medpfl.report.bound_plan import BoundPlan, plan_bounds
from medpfl.report.bound_words import in_words
from medpfl.report.jobs import collect
from medpfl.report.record import RunRecord
from medpfl.report.sweep import write_report
from medpfl.report.victim_file import load_victim
from medpfl.runner import run
from medpfl.training import LocalTraining
from medpfl.types import Capture, DefenseFacts

TINY = (
    *("attack=dlg", "n_images=2", "preprocess.size=12", "dataset.kinds=[head]"),
    *("dataset.per_class=16", "attack.optimizer.max_steps=2", "defense=perturbation"),
    *("noise=gaussian", "noise.std=0.02", "bounds.points=4", "attack.trace_points=0"),
)


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two images whose updates have noise."""
    folder = tmp_path_factory.mktemp("sweep") / "0"
    run(config(*TINY), folder)
    return folder


# What bounds are set beside


def test_a_run_has_columns_and_a_summary(bounded: Path) -> None:
    rows = table(bounded / "metrics.csv")
    assert [name for name in rows[0] if name in BOUND_COLUMNS] == list(BOUND_COLUMNS)
    numbers = {name: [float(row[name]) for row in rows] for name in BOUND_COLUMNS}
    assert all(map(math.isfinite, (v for values in numbers.values() for v in values)))
    means = {name: sum(values) / len(rows) for name, values in numbers.items()}
    summary = run_json(bounded)["summary"]
    assert summary["bound_mse"] == pytest.approx(means["bound_mse"])
    assert summary["bound_psnr_db"] == pytest.approx(-10 * math.log10(means["bound_mse"]))
    assert summary["attack_psnr_db"] == pytest.approx(-10 * math.log10(summary["mse_mean"]))
    assert summary["bounds"]["n"] == 2
    assert summary["bounds"]["note"] is None
    assert 0 < means["bound_mse"] < means["prior_mse"]
    assert means["bound_mse"] < means["cramer_rao_mse"]
    assert summary["mse_mean"] > means["bound_mse"]


def test_a_run_has_a_picture_and_what_it_is_drawn_from(bounded: Path) -> None:
    with Image.open(bounded / "figures" / "bounds.png") as picture:
        assert picture.size[0] > 1000
    for path in (bounded / "reconstructions").glob("*.npz"):
        victim = load_victim(path)
        assert victim.left is not None
        assert victim.left.shape == (1, 1, 12, 12)
        kept = victim.scores[0].bounds["posterior_mse"]
        assert float(victim.left.mean()) == pytest.approx(kept, rel=1e-5)


def test_a_run_that_goes_on_keeps_them(bounded: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bounded, tmp_path / "run")
    before = (folder / "metrics.csv").read_text()
    record = RunRecord.reopen(folder)
    record.finish(record.summarise())
    assert (folder / "metrics.csv").read_text() == before
    assert run_json(folder)["summary"]["bound_mse"] == run_json(bounded)["summary"]["bound_mse"]


def test_tables_of_sweeps_have_them(bounded: Path) -> None:
    (row,) = collect(bounded.parent)
    assert row["bound_psnr_db"] == run_json(bounded)["summary"]["bound_psnr_db"]
    assert row["attack_psnr_db"] is not None
    told = write_report(bounded.parent).results_md.read_text()
    assert f"| {row['attack_psnr_db']:.1f} | {row['bound_psnr_db']:.1f} |" in told


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("defense=topk", "noise=none"), "no noise is added"),
        (("defense.perturbation.relative_to=norm",), "the noise follows the update"),
        (("bounds.largest=1000",), "(bounds.largest=1,000); bounds=update computes them"),
    ],
)
def test_what_has_no_bound_says_why(overrides: tuple[str, ...], words: str) -> None:
    kept = [o for o in TINY if "noise=none" not in overrides or "noise" not in o]
    built = experiment(*kept, *overrides)
    plan = plan_bounds(built)
    assert words in str(plan.words)
    assert words in str(plan.note)
    assert built.bounds.bound(built.source.sample()) is None
    summary = bounds_of([scored(0.01, bounds={})], plan.note)
    assert words in in_words(summary["bounds"])


def test_of_undefended_updates_it_goes_without_saying() -> None:
    plain = [o for o in TINY if not o.startswith(("defense", "noise"))]
    assert plan_bounds(experiment(*plain)) == BoundPlan()
    assert "no noise" in str(plan_bounds(experiment(*plain, "bounds=update")).words)
    assert experiment("bounds=none").bounds is None
    assert "of one update bounds" not in str(plan_bounds(experiment(*TINY)).words)


def test_too_few_images_of_a_class_and_jumps_leave_van_trees_out() -> None:
    spec = spec_of(1, 4, 4)
    smooth, jumps = (
        nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), act, nn.Flatten(), nn.Linear(32, 3))
        for act in (nn.Sigmoid(), nn.ReLU())
    )
    public = PublicImages(
        inputs=torch.rand((9, 1, 4, 4), generator=seeded()),
        labels=torch.tensor([0] * 6 + [1] * 3),
    )
    bounds = UpdateBounds(points=4).over(spec=spec, public=lambda most: public, seed=0)
    assert bounds is not None
    found = {
        (name, label): bounds.bound(captured(network, label))
        for name, network in (("smooth", smooth), ("jumps", jumps))
        for label in (0, 1)
    }
    assert "bound_mse" in found["smooth", 0].columns[0]
    for key in (("smooth", 1), ("jumps", 0)):
        assert "bound_mse" not in found[key].columns[0]
        assert found[key].columns[0]["cramer_rao_mse"] > 0
        assert found[key].left is None
    tinted = UpdateBounds(points=4).over(
        spec=replace(spec_of(3, 4, 4), greyscale=True), public=lambda most: None, seed=0
    )
    coloured = replace(captured(smooth, 0), truth=victim_of(spec_of(3, 4, 4), [0]))
    assert "a tint" in str(tinted.applies(coloured))
    assert "3 held-out images" in str(bounds.left_out(captured(smooth, 1)))
    assert "ReLU make updates jump" in str(bounds.left_out(captured(jumps, 0)))


def captured(network: nn.Module, label: int) -> Capture:
    """Return an update of Gaussian noise, of which a bound never looks at the tensors."""
    spec = spec_of(1, 4, 4)
    truth = victim_of(spec, [label])
    seen = observe(sent(network), spec, truth)
    noise = PerturbationFacts(
        name="perturbation", law="gaussian", scale=0.05, relative_to=None, percentile=95.0
    )
    return Capture(seen, truth, None, 0, 0, training=LocalTraining(), defense=(noise,))


@pytest.mark.parametrize(
    ("parts", "std", "clips"),
    [
        ([Perturbation(noise=Gaussian(std=0.3))], 0.3, 0),
        ([Perturbation(noise=Laplace(scale=0.2))], 0.2, 0),
        ([Perturbation(noise=MedPFLLevel(level=100))], 0.01, 0),
        ([Clipping(max_norm=2.0), Perturbation(noise=Gaussian(std=0.3))], 0.3, 1),
        ([Perturbation(noise=Gaussian(std=0.3)), Clipping(max_norm=2.0)], 0.3, 0),
        ([Perturbation(noise=Gaussian(std=0.3)), TopK(fraction=0.1)], 0.3, 0),
    ],
)
def test_what_a_defense_releases(parts, std, clips) -> None:
    found = release_of([part.facts() for part in parts])
    assert isinstance(found, Release)
    assert (found.std, len(found.before)) == (std, clips)
    assert found.remembers == any(isinstance(part, TopK) for part in parts)


@dataclass(frozen=True, kw_only=True)
class Sgd(DefenseFacts):
    """What DP-SGD tells of itself."""

    name: str = "dp_sgd"
    max_grad_norm: float = 0.5
    norm: str = "l2"
    law: str = "gaussian"
    noise_scale: float = 1.5


def test_of_dp_sgd_one_image_is_bounded() -> None:
    found = release_of([Sgd()])
    assert isinstance(found, Release)
    assert (found.std, found.before) == (1.5, (Clip(max_norm=0.5, per="update"),))
    assert found.alone
    assert isinstance(release_of([Sgd(norm="l1")]), NoBound)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (None, "nobody knows"),
        ((), "no noise"),
        ((Quantise().facts(),), "no noise"),
        ((TopK(fraction=0.1).facts(), Perturbation(noise=Gaussian(std=1)).facts()), "topk in fr"),
        ((Perturbation(noise=Gaussian(std=1), relative_to="norm").facts(),), "follows the update"),
    ],
)
def test_what_no_bound_is_known_of(facts, words) -> None:
    found = release_of(facts)
    assert isinstance(found, NoBound)
    assert words in found.reason


@pytest.mark.parametrize("per", ["update", "layer"])
def test_clipping_is_part_of_the_map(per) -> None:
    spec = spec_of(1, 4, 4)
    payload, truth = payload_of("dlg_cnn", spec), victim_of(spec, [1])
    release = Release(std=1.0, law="", before=(Clip(max_norm=0.05, per=per),))
    pixel_map = PixelMap.of(
        payload,
        truth.labels,
        training=LocalTraining(),
        spec=spec,
        tied=False,
        before=release.clipped,
    )
    update, _ = Client(spec=spec, device=CPU).update(truth, payload)
    clipped, report = Clipping(max_norm=0.05, per=per).on_update(update, seeded())
    assert report.clip_factor < 0.99
    sent_by_client = torch.cat([t.flatten() for t in clipped.tensors.values()]).double()
    pixels = truth.inputs.double().flatten()
    assert torch.allclose(pixel_map.update(pixels), sent_by_client, rtol=1e-4, atol=1e-7)
    steps = 1e-5 * torch.eye(16).double()
    updates = [(pixel_map.update(pixels + h), pixel_map.update(pixels - h)) for h in steps]
    jacobian = torch.stack([(up - down) / 2e-5 for up, down in updates], 1)
    gram = pixel_map.gram_matrix(truth.inputs)
    assert float((gram - jacobian.T @ jacobian).norm() / gram.norm()) < 1e-7
    if per == "update":  # its length stays C, so that nothing of it changes along the update
        assert float((pixel_map.update(pixels) @ jacobian).norm()) < 1e-9


# Bounds of few images


def test_equal_images_are_bounded_as_one() -> None:
    matrix = drawn(9, 6)
    images = torch.rand((12, 1, 2, 3), dtype=torch.float64, generator=seeded(1))
    prior = GaussianPrior.from_images(images, tied=False)
    found = expected(linear_map(matrix, spec_of(1, 2, 3)), list(images[:4].unsqueeze(1)))
    bound = found.van_trees(0.4, prior)
    known = (matrix.T @ matrix / 0.4**2 + prior.covariance().inverse()).inverse()
    assert bound.mse == pytest.approx(float(known.trace()) / 6, rel=1e-9)
    assert torch.allclose(bound.per_pixel.flatten(), known.diagonal(), rtol=1e-8)
    assert bound.standard_error < 1e-12


def test_few_images_never_overstate_the_bound_on_average() -> None:
    """Of J'J that differ from image to image, where the mean over all of them is known."""
    prior = GaussianPrior.isotropic(torch.zeros(6), 1.0)
    truth = 1 / (1 + 1)  # J'J = diag of chi-squares of mean 1, and s = 1
    checked, plugged = [], []
    for seed in range(200):
        some = drawn(8, 6, 6, seed=seed)
        grams = torch.stack([(g.mT @ g / 6).mean(0) for g in some.split(2)])
        assert len(grams) == PARTS
        checked.append(Expected(grams=grams, shape=(1, 1, 2, 3)).van_trees(1.0, prior).mse)
        mean = grams.mean(0) + torch.eye(6).double()
        plugged.append(float(mean.inverse().trace()) / 6)
    checked, plugged = torch.tensor(checked), torch.tensor(plugged)
    error = float(checked.std()) / len(checked) ** 0.5
    assert float(checked.mean()) < truth + 2 * error
    assert float(checked.mean()) > 0.9 * truth
    assert float(plugged.mean()) > truth + 4 * float(plugged.std()) / len(plugged) ** 0.5


def test_few_images_make_the_prior_no_wider_than_it_is() -> None:
    """Bounds of images from a known covariance, smooth as images are, for low and high noise."""
    side = torch.arange(7).double()
    near = torch.exp(-((side[:, None] - side[None]) ** 2) / 6)
    covariance = 0.05 * torch.kron(near, near) + 1e-9 * torch.eye(49).double()
    gram = torch.eye(49).double()
    root = torch.linalg.cholesky(covariance)
    for count in (12, 40):
        for std in (0.01, 0.1):
            bounds = []
            for seed in range(6):
                images = (drawn(count, 49, seed=seed) @ root.T).reshape(count, 1, 7, 7) + 0.5
                labels = torch.arange(count) % 2
                prior = GaussianPrior.from_classes(images, labels, tied=False)
                shape = (1, 1, 7, 7)
                found = Expected(grams=gram.expand(PARTS, -1, -1), shape=shape)
                bounds.append(found.van_trees(std, prior).mse)
            true = float((covariance.inverse() + gram / std**2).inverse().trace()) / 49
            assert sum(bounds) / len(bounds) < true


def test_a_prior_within_classes_knows_their_means() -> None:
    near, far = torch.rand((2, 9, 1, 3, 3), generator=seeded()).double() * 0.1
    images = torch.cat([near, far + 0.8])
    labels = torch.tensor([0] * 9 + [1] * 9)
    within = GaussianPrior.from_classes(images, labels, tied=False)
    assert within.variance < 0.01 < GaussianPrior.from_images(images, tied=False).variance
    for labels, words in ((torch.arange(18), "within a class"), (torch.zeros(18), "all the same")):
        with pytest.raises(ConfigurationError, match=words):
            GaussianPrior.from_classes(torch.zeros_like(images), labels, tied=False)


def test_an_attack_that_beats_its_bound_is_said_to() -> None:
    assert beaten([scored(0.01), scored(0.02)]) is None
    assert "nearer to these images" in str(beaten([scored(0.001), scored(0.0011)]))
    assert beaten([scored(0.001)]) is None


BOUND = {"bound_mse": 0.005, "bound_mse_error": 1e-4}


def scored(mse: float, bounds: dict[str, float] = BOUND) -> ImageScore:
    required = dict.fromkeys(ImageScore.fixed_columns(), 0.0) | {"mse": mse, "ssim": 0.5}
    return ImageScore(**required, bounds=bounds)
