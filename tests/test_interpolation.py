"""A curve through measured points: SciPy's, where all is well, and what is not measured."""

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

from l0plane.interpolation import interpolate


@pytest.mark.parametrize("points", [2, 3, 4, 9])
def test_it_is_scipys_monotone_cubic(points):
    random = np.random.default_rng(points)
    for _ in range(30):
        wide = random.uniform(0.9, 1.1, 5)
        x = np.sort(random.uniform(0, 4, points))[:, None] * wide
        y = random.standard_normal((points, 5))
        for at in random.uniform(x[0, 0], x[-1, 0], 8) / wide[0]:
            expected = [PchipInterpolator(x[:, i], y[:, i])(at * wide[i]) for i in range(5)]
            assert interpolate(x, y, at * wide) == pytest.approx(np.array(expected), abs=1e-9)


def test_a_frontier_that_bends_is_not_cut_short_by_a_chord():
    """A method just short of the level asked for is not taken for better than it is."""
    x = np.log([4.0, 8.0, 16.0, 30.9, 64.0])
    error = -0.5 * x - 0.1 * x**2
    for at in np.log([31.5, 32.0, 33.0]):
        truth = -0.5 * at - 0.1 * at**2
        cubic, chord = interpolate(x, error, at), np.interp(at, x, error)
        assert abs(cubic - truth) < 0.3 * abs(chord - truth)


def test_noise_at_a_point_moves_the_curve_to_no_side():
    """Of a method that ends at the level asked for, resamples lie on both sides of it alike."""
    x, y = np.log([4.0, 8.0, 16.0, 32.0]), -0.5 * np.log([4.0, 8.0, 16.0, 32.0])
    moved = np.random.default_rng(0).normal(0, 0.02, 20_000)
    moved[0] = 0
    noisy = x[:, None] + moved  # as L0 is in resamples, the error on the line
    for at in (x[0], x[1], x[-1]):
        found = interpolate(noisy, np.repeat(y[:, None], len(moved), axis=1), at)
        assert found[0] == pytest.approx(-0.5 * at)
        np.testing.assert_allclose(found, -0.5 * (at - moved), atol=1e-12)


def test_between_monotone_points_it_is_monotone():
    x, y = np.array([0.0, 1.0, 1.1, 5.0]), np.array([4.0, 3.9, 1.0, 0.9])
    values = [interpolate(x, y, at) for at in np.linspace(-1, 6, 200)]
    assert (np.diff(values) <= 1e-12).all()
    assert (values[0], values[-1]) == (4.0, 0.9)


def test_a_value_that_is_not_finite_spoils_only_what_lies_beside_it():
    x, y = np.log([4.0, 8.0, 16.0, 32.0, 64.0]), np.array([0.9, 0.7, 0.3, 0.2, np.nan])
    assert [interpolate(x, y, np.log(l0)) for l0 in (16.0, 32.0)] == [0.3, 0.2]
    assert 0.2 < interpolate(x, y, np.log(20.0)) < 0.3
    assert np.isnan([interpolate(x, y, np.log(l0)) for l0 in (40.0, 64.0)]).all()
    # Nor does it spoil resamples in which the point beside it has passed the level.
    moved = np.array([0.0, 0.01, -0.01])
    found = interpolate(x[:, None] + moved, np.repeat(y[:, None], 3, axis=1), np.log(32.0))
    assert found[0] == 0.2 and found[1] > 0.2 > found[2]


def test_points_at_one_place_have_no_slope_between_them():
    x, y = np.array([0.0, 1.0, 1.0, 2.0]), np.array([3.0, 2.0, 1.9, 1.0])
    assert np.isfinite([interpolate(x, y, at) for at in (0.5, 1.0, 1.5)]).all()
    assert interpolate(x[:1], y[:1], 7.0) == 3.0
