"""What class shares predict, and the reported numbers."""

from __future__ import annotations

import pytest

from medpfl.defenses import MedPFLLevel
from medpfl.paper.expected import predicted_success, saturated_class
from medpfl.paper.noise_table import noise_names
from medpfl.paper.reported import DATASETS, LEVELS, ROWS, TABLE_III


@pytest.mark.parametrize(
    ("saturated", "exposed", "reported"),
    [(500, 500, 0.49), (111, 140, 0.55), (1321, 4105, 0.76)],
)
def test_the_shares_of_the_published_strides_predict_the_published_rates(
    saturated: int, exposed: int, reported: float
) -> None:
    labels = [0] * saturated + [1] * exposed
    probability = [1.0] * saturated + [0.0] * exposed
    assert saturated_class(labels, probability) == 0
    share = predicted_success(labels, probability)
    assert share == pytest.approx(exposed / (saturated + exposed))
    assert share == pytest.approx(reported, abs=0.03)


def test_without_saturation_nothing_is_predicted() -> None:
    assert predicted_success([0, 1, 2], [0.3, 0.4, 0.2]) is None
    assert predicted_success([0, 1], [1.0, 1.0]) is None
    assert predicted_success([0, 0, 1], [1.0, 1.0, 0.5]) is None
    assert predicted_success([0, 1], [0.9999999, 0.0]) is None


def test_a_winner_that_no_attacked_image_belongs_to_leaves_all_exposed() -> None:
    assert saturated_class([0, 1], [0.0, 1e-20]) == -1
    assert predicted_success([0, 1], [0.0, 1e-20]) == 1.0


def test_predictions_need_pairs() -> None:
    with pytest.raises(ValueError, match="need pairs"):
        saturated_class([], [])
    with pytest.raises(ValueError, match="need pairs"):
        saturated_class([0, 1], [1.0])


def test_reported_numbers_are_the_papers() -> None:
    cpl, dlg = ROWS["cpl"].reported, ROWS["dlg"].reported
    assert [cpl[name].asr for name in DATASETS] == [0.49, 0.55, 0.76]
    assert [cpl[name].ssim for name in DATASETS] == [0.50, 0.55, 0.75]
    assert [cpl[name].mse for name in DATASETS] == [0.0762, 0.0641, 0.0586]
    assert (dlg["melanoma"].asr, dlg["melanoma"].seconds) == (0.47, 60.128)
    assert ROWS["gradinv_untrained"].reported["melanoma"].ssim == 0.9029
    assert ROWS["gradinv_trained"].reported["melanoma"].mse == 0.8027
    assert set(dlg) == {"melanoma"}
    for name in ("idlg", "scale_free_cpl", "scale_free_dlg", "gradinv_untrained_small"):
        assert not ROWS[name].reported
    assert [cell.ssim for cell in TABLE_III["covid"]] == [0.55, 0.9815, 0.7410, 0.7000, 0.4605]
    assert [cell.mse for cell in TABLE_III["brain_mri"]] == [0.0586, 0.0207, 0.0686, 0.0300, 0.1705]
    assert all(len(cells) == 1 + len(LEVELS) for cells in TABLE_III.values())
    assert all(cell.ssim == cpl[name].ssim for name, (cell, *_) in TABLE_III.items())


def test_the_two_readings_of_a_level_run_opposite_ways() -> None:
    inverse = [MedPFLLevel(level=level, reading="inverse").scale for level in LEVELS]
    proportional = [MedPFLLevel(level=level, reading="proportional").scale for level in LEVELS]
    assert inverse == pytest.approx([0.01, 0.005, 1 / 300, 0.0025])
    assert proportional == pytest.approx([5e-4, 1e-3, 1.5e-3, 2e-3])
    assert inverse == sorted(inverse, reverse=True)
    assert proportional == sorted(proportional)
    assert noise_names("inverse") == [
        *("none", "inverse_100", "inverse_200", "inverse_300", "inverse_400")
    ]
