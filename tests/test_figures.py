import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tidy
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from l0plane.figures import style
from l0plane.figures.claims import draw_claims
from l0plane.figures.combined import draw_combined
from l0plane.figures.comparisons import draw_comparisons
from l0plane.figures.frontier import draw_frontier, frontier
from l0plane.figures.palette import assign_styles, shade
from l0plane.figures.progressive import draw_progressive
from l0plane.figures.refinement import draw_refinement, gap_closed
from l0plane.figures.scaling import draw_scaling, scaling
from l0plane.figures.tuning import draw_tuning
from l0plane.files import UserError
from l0plane.series import at_l0, fit_power_law

N, L0 = tidy.N, tidy.L0


@pytest.fixture
def autoencoders():
    return tidy.autoencoders()


@pytest.fixture
def methods():
    return tidy.methods()


def texts(fig: Figure) -> list[str]:
    legends = [text.get_text() for legend in fig.legends for text in legend.get_texts()]
    return legends + [text.get_text() for ax in fig.axes for text in ax.texts]


def tick_labels(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def lines(ax, color: str) -> list:
    """Drawn lines of a colour that join at least one finite point."""
    return [
        line
        for line in ax.lines
        if to_hex(line.get_color()) == color
        and line.get_linestyle() != "None"
        and np.isfinite(np.asarray(line.get_ydata(), float)).any()
    ]


def color_of(methods, method):
    return methods.set_index("method")["color"][method]


# Numbers under the panels


def test_power_law_is_recovered():
    n = np.array([512.0, 1024, 2048, 4096])
    law = fit_power_law(n, 3.0 * n**-0.21)
    assert (law.scale, law.exponent) == pytest.approx((3.0, 0.21))
    assert law.exponent_se == pytest.approx(0, abs=1e-9)


def test_power_law_error_matches_the_least_squares_formula():
    n, values = np.array([512.0, 1024, 2048, 4096]), np.array([0.4, 0.37, 0.31, 0.30])
    coefficients, covariance = np.polyfit(np.log(n), np.log(values), 1, cov=True)
    law = fit_power_law(n, values)
    assert law.exponent == pytest.approx(-coefficients[0])
    assert law.exponent_se == pytest.approx(np.sqrt(covariance[0, 0]))


@pytest.mark.parametrize("values", [[0.2], [0.2, np.nan], [0.2, -0.1]])
def test_power_law_needs_two_usable_sizes(values):
    assert fit_power_law(np.array([512.0, 1024])[: len(values)], np.array(values)) is None


@pytest.mark.parametrize("level", [8, 8.2, 16, 20, 32, 33])  # outermost: within the knob's 5%
def test_interpolation_is_exact_on_a_power_law_and_just_beyond_its_ends(level):
    l0 = np.array([32.0, 8.2, 16.0])
    assert at_l0(l0, 2 * l0**-0.6, level) == pytest.approx(2 * level**-0.6)


@pytest.mark.parametrize("level", [7.8, 33.7])
def test_nothing_is_said_of_levels_farther_out(level):
    assert np.isnan(at_l0(np.array([8.2, 32.0]), np.array([0.3, 0.1]), level))


def test_one_level_and_levels_that_nearly_coincide_do_not_run_away():
    assert at_l0(np.array([16.0]), np.array([0.2]), 16.5) == pytest.approx(0.2)
    l0, values = np.array([8.0, 16.0, 16.01]), np.array([0.4, 0.2, 0.21])  # chance, not a slope
    assert at_l0(l0, values, 16.8) == pytest.approx(0.21, rel=0.05)


# Styles


def test_given_styles_are_respected_and_blanks_filled_without_a_clash(methods):
    methods.loc[2, ["color", "marker", "label"]] = None
    styles = assign_styles(methods, ["zeta", "alpha", "relu"])
    assert styles["topk"].color == color_of(methods, "topk")
    assert list(styles)[-2:] == ["alpha", "zeta"]
    assert len({look.color for look in styles.values()}) == len(styles) == 11
    assert len({look.marker for look in styles.values()}) == 11
    assert styles["prolu_relu"].label == "prolu_relu"


def test_styles_do_not_depend_on_the_order_of_rows(methods):
    methods.loc[[0, 4], ["color", "marker"]] = None
    assert assign_styles(methods) == assign_styles(methods[::-1])


def test_many_new_methods_stay_apart():
    styles = assign_styles(pd.DataFrame({"method": [f"m{i:02}" for i in range(20)]}))
    assert len({(look.color, look.marker) for look in styles.values()}) == 20


@pytest.mark.parametrize(("column", "value"), [("color", "reddish"), ("marker", "blob")])
def test_bad_style_is_named(methods, column, value):
    methods.loc[0, column] = value
    with pytest.raises(UserError, match=rf"method relu: {column} '{value}'"):
        assign_styles(methods)


# Figures 2 and 5


def test_frontier_draws_every_method_through_its_means_at_one_size(autoencoders, methods):
    fig = draw_frontier(autoencoders, methods, "nmse", N)
    ax = fig.axes[0]
    assert set(methods["label"]) <= set(texts(fig))
    assert tick_labels(ax.xaxis) == ["4", "8", "16", "32", "64"]
    (line,) = lines(ax, color_of(methods, "topk"))
    rows = autoencoders.query("method == 'topk' and n == @N")
    assert line.get_ydata() == pytest.approx(rows.groupby("l0_target")["nmse"].mean().to_numpy())


def test_frontier_bars_span_the_seeds(autoencoders, methods):
    ax = style.new_figure(3).subplots()
    topk = autoencoders[autoencoders["method"] == "topk"]
    frontier(topk, methods, "nmse", N, ax)
    (bars,) = ax.collections
    seeds = topk.query("n == @N and l0_target == @L0")["nmse"]
    assert len(seeds) == 3
    segment = bars.get_segments()[tidy.LEVELS.index(L0)]
    assert segment[:, 1] == pytest.approx([seeds.min(), seeds.max()])


def test_missing_and_nan_rows_leave_the_others(autoencoders, methods):
    autoencoders.loc[autoencoders["method"] == "gated", "nmse"] = np.nan
    autoencoders = autoencoders[autoencoders["method"] != "relu"]
    shown = texts(draw_frontier(autoencoders, methods, "nmse", N))
    assert "TopK" in shown and "Gated" not in shown and "ReLU" not in shown


def test_unknown_method_gets_a_line_of_its_own(autoencoders, methods):
    new = autoencoders[autoencoders["method"] == "topk"].assign(method="fancy")
    fig = draw_frontier(pd.concat([autoencoders, new]), methods, "nmse", N)
    color = assign_styles(methods, ["fancy"])["fancy"].color
    assert color not in set(methods["color"])
    assert "fancy" in texts(fig) and lines(fig.axes[0], color)


def test_delta_ce_at_or_below_zero_is_counted_not_drawn(autoencoders, methods):
    low = (autoencoders["method"] == "topk") & (autoencoders["l0_target"] == 64)
    autoencoders.loc[low, "delta_ce"] = -0.01
    fig = draw_frontier(autoencoders, methods, "delta_ce", N)
    assert "1 point at or below 0 not shown" in texts(fig)
    (line,) = lines(fig.axes[0], color_of(methods, "topk"))
    assert len(line.get_xdata()) == 4
    fig.draw_without_rendering()


def test_published_errors_need_a_variance(autoencoders, methods):
    table = pd.DataFrame(
        {"method": ["topk"] * 2, "l0": [8, 16], "mse": [9.0, 6], "delta_ce": [1, 0.5]}
    )
    with pytest.raises(UserError, match="published_variance"):
        draw_frontier(autoencoders, methods, "nmse", N, published=table)
    fig = draw_frontier(autoencoders, methods, "nmse", N, table, published_variance=30.0)
    dotted = [line for line in fig.axes[0].lines if line.get_linestyle() == ":"]
    assert list(dotted[0].get_ydata()) == pytest.approx([0.3, 0.2])


def test_published_errors_far_off_leave_a_run_s_own_their_room(autoencoders, methods):
    table = pd.DataFrame(
        {"method": ["topk"] * 3, "l0": [8, 16, 32], "mse": [900.0, 600.0, 6.0], "delta_ce": 1.0}
    )
    fig = draw_frontier(autoencoders, methods, "nmse", N, table, published_variance=30.0)
    own = autoencoders.query("n == @N")["nmse"]
    low, high = fig.axes[0].get_ylim()
    assert low < own.min() and own.max() < high < 5 * own.max()
    assert "2 published points beyond the axes" in texts(fig)
    none = draw_frontier(autoencoders, methods, "nmse", N, table[:2], published_variance=30.0)
    assert not any("published (" in text for text in texts(none))
    assert (
        none.axes[0].get_xlim()
        == draw_frontier(autoencoders, methods, "nmse", N).axes[0].get_xlim()
    )
    alone = draw_frontier(autoencoders, methods, "nmse", 7, table, published_variance=30.0)
    assert "published (dotted)" in texts(alone)
    near = draw_frontier(autoencoders, methods, "nmse", N, table[2:], published_variance=30.0)
    assert not any("beyond" in text for text in texts(near))


def test_missing_column_is_named(autoencoders, methods):
    with pytest.raises(UserError, match="autoencoders: no column 'nmse'"):
        draw_frontier(autoencoders.drop(columns="nmse"), methods, "nmse", N)


def test_scaling_shows_exponents_and_leaves_missed_targets_out(autoencoders, methods):
    topk = autoencoders.query("method == 'topk' and l0_target == @L0").copy()
    topk["nmse"] = 2.0 * topk["n"] ** -0.25
    topk.loc[topk["n"] == 512, ["nmse", "l0"]] = [9.0, 1.06 * L0]
    ax = style.new_figure(3).subplots()
    handles = scaling(topk, methods, "nmse", L0, ax)
    assert handles["topk"].get_label() == "TopK, b = 0.250 ± 0.000"
    assert "hollow" in handles
    hollow = [line for line in ax.lines if line.get_markerfacecolor() == "none"]
    assert [list(line.get_xdata()) for line in hollow if line.get_marker() == "s"] == [[512]]


@pytest.mark.parametrize(
    ("errors", "broken"),
    [
        ([9, 8, 3, 2], False),
        ([9, 8, 6, 7], True),
        ([2, 2, 3, 9], False),
        ([9, 8, np.nan, 7], False),
    ],
)
def test_scaling_breaks_the_line_of_an_error_that_rises_and_falls(methods, errors, broken):
    keys = {"method": "topk", "n": tidy.SIZES, "l0_target": L0, "l0": L0}
    table = pd.DataFrame(keys | {"nmse": errors}).sample(frac=1, random_state=0)
    fig = draw_scaling(table, methods, "nmse", L0)
    ax, (legend,) = fig.axes[0], fig.legends
    assert [line.get_linestyle() for line in lines(ax, color_of(methods, "topk"))] == (
        ["--"] if broken else ["-"]
    )
    assert any(text.get_text().startswith("broken") for text in legend.get_texts()) == broken


def test_scaling_does_not_judge_a_line_by_what_it_leaves_out(methods):
    table = pd.DataFrame({"method": "topk", "n": tidy.SIZES, "l0_target": L0, "l0": L0})
    table = table.assign(nmse=[0.4, 0.9, 0.3, 0.2], l0=[L0, 0.5 * L0, L0, L0])
    fig = draw_scaling(table, methods, "nmse", L0)
    (line,) = lines(fig.axes[0], color_of(methods, "topk"))
    assert line.get_linestyle() == "-"


def test_scaling_has_no_hollow_entry_when_all_targets_are_met(autoencoders, methods):
    assert not any(
        "hollow" in text for text in texts(draw_scaling(autoencoders, methods, "nmse", L0))
    )


def test_combined_has_one_entry_a_method(autoencoders, methods):
    only_left = autoencoders[
        (autoencoders["method"] != "gated") | (autoencoders["l0_target"] != L0)
    ]
    shown = texts(draw_combined(only_left, methods, "nmse", N, L0))
    assert [text.split(",")[0] for text in shown].count("TopK") == 1
    assert "Gated" in shown and any(text.startswith("TopK, b = 0.2") for text in shown)


def test_empty_panels_say_so(autoencoders, methods):
    shown = texts(draw_combined(autoencoders, methods, "nmse", 99, 99))
    assert "no autoencoder with n = 99" in shown


# Figures 9 and 10


def test_gap_closed_is_the_share_in_nmse(methods):
    rows = [
        {"method": "relu", "l0": 16.0, "nmse": 0.4, "nmse_refined": 0.2},
        {"method": "topk", "l0": 8.0, "nmse": 0.1, "nmse_refined": 0.1},
        {"method": "topk", "l0": 32.0, "nmse": 0.1, "nmse_refined": 0.1},
    ]
    table = pd.DataFrame(rows).assign(n=N, seed=0, l0_target=lambda t: t["l0"])
    assert gap_closed(table, N)["share"].to_list() == pytest.approx([2 / 3])
    table.loc[table["method"] == "topk", "nmse"] = 0.5  # no gap to close
    assert gap_closed(table, N)["share"].isna().all()


def test_refinement_shows_means_arrows_and_shares(methods):
    fig = draw_refinement(tidy.refinement(), tidy.refinement_histogram(), methods, N, L0)
    shown = " ".join(texts(fig))
    assert "ReLU +0.012" in shown and "%" in shown
    arrows = [text for text in fig.axes[1].texts if getattr(text, "arrow_patch", None)]
    assert len(arrows) == 5  # ReLU's; TopK's are shorter than the markers


def test_refinement_draws_the_levels_histogram(methods):
    histogram = tidy.refinement_histogram()
    histogram.loc[histogram["l0_target"] != L0, "count"] = 0
    fig = draw_refinement(tidy.refinement(), histogram, methods, N, L0)
    assert "ReLU +0.012" in " ".join(texts(fig))
    fig = draw_refinement(tidy.refinement(), histogram, methods, N, 8)
    assert "no refined autoencoder at this level" in texts(fig)


def test_dashes_in_figure_9_mean_refined_and_nothing_else(methods):
    fig = draw_refinement(tidy.refinement(), tidy.refinement_histogram(), methods, N, L0)
    left, right = ({line.get_linestyle() for line in ax.lines} for ax in fig.axes)
    (legend,) = fig.legends
    dashed = [line for line in legend.get_lines() if line.get_linestyle() == "--"]
    assert [line.get_label() for line in dashed] == ["refined (hollow)"]
    assert left == {"-", ":"} and right == {"-", "--"}
    assert any(text.startswith("dotted: mean") for text in texts(fig))


@pytest.mark.parametrize("method", ["relu", "topk", None])
def test_refinement_survives_a_missing_method(methods, method):
    table, histogram = tidy.refinement(), tidy.refinement_histogram()
    keep = table["method"] == method, histogram["method"] == method
    fig = draw_refinement(table[keep[0]], histogram[keep[1]], methods, N, L0)
    assert not any("%" in text for text in texts(fig) if "percent" not in text)


def test_progressive_has_a_column_a_method_with_both_selections(autoencoders, methods):
    curves = tidy.curves()
    fig = draw_progressive(curves, autoencoders, methods, N)
    top, bottom = fig.axes[:3], fig.axes[3:]
    levels = curves.query("method == 'topk' and n == @N and selection == 'topk'")
    seeds = levels.groupby("l0_target")["seed"].nunique()
    thin = seeds[seeds > 1].sum()
    assert thin
    assert [ax.get_title(loc="left") for ax in top] == ["ReLU", "TopK", "Multi-TopK"]
    for ax in (*top, *bottom):
        dashes = [line.get_linestyle() for line in ax.lines]
        assert dashes.count("-") - thin == dashes.count("--") == len(tidy.LEVELS)
        markers = [line for line in ax.lines if line.get_linestyle() == "None"]
        assert len(markers) == len(tidy.LEVELS)
    assert f"trained at $L_0$ = {L0}" in texts(fig)


def test_progressive_puts_the_marker_on_the_training_point(autoencoders, methods):
    fig = draw_progressive(tidy.curves(), autoencoders, methods, N)
    points = [line for line in fig.axes[1].lines if line.get_linestyle() == "None"]
    means = autoencoders.query("method == 'topk' and n == @N").groupby("l0_target")["nmse"].mean()
    assert [line.get_ydata()[0] for line in points] == pytest.approx(means.to_list())


def test_progressive_draws_the_mean_over_seeds_at_equal_l0(autoencoders, methods):
    """Each seed has a grid and an end of its own; errors are power laws, so each is known."""
    grids = {0: [1, 4, 16], 1: [2, 4, 8, 32]}
    laws = {0: (0.9, -0.5), 1: (0.3, 0.1)}
    rows = [
        {
            "seed": seed,
            "selection": selection,
            "l0": l0,
            "nmse": laws[seed][0] * l0 ** laws[seed][1],
        }
        for seed, grid in grids.items()
        for l0 in grid
        for selection in ("topk", "jumprelu")
    ]
    curves = pd.DataFrame(rows)
    keys = {"method": "topk", "n": N, "l0_target": L0, "value": 1.0, "delta_ce": 0.1}
    fig = draw_progressive(curves.assign(**keys), autoencoders, methods, N)
    drawn = [line for line in fig.axes[0].lines if line.get_linestyle() in ("-", "--")]
    first, second, mean, dashed = drawn
    assert list(first.get_xdata()) == grids[0] and list(second.get_xdata()) == grids[1]
    assert mean.get_linewidth() > second.get_linewidth() and dashed.get_linestyle() == "--"
    for line in (mean, dashed):
        assert list(line.get_xdata()) == pytest.approx([2, 4, 8, 16])
        expected = [np.mean([a * l0**b for a, b in laws.values()]) for l0 in (2, 4, 8, 16)]
        assert list(line.get_ydata()) == pytest.approx(expected)


def test_progressive_of_one_seed_is_that_seed(autoencoders, methods):
    curves = tidy.curves().query("method == 'topk' and n == @N and seed == 0 and l0_target == @L0")
    fig = draw_progressive(curves, autoencoders[autoencoders["seed"] == 0], methods, N)
    drawn = [line for line in fig.axes[0].lines if line.get_linestyle() in ("-", "--")]
    for line, selection in zip(drawn, ("topk", "jumprelu"), strict=True):
        rows = curves[curves["selection"] == selection].sort_values("l0")
        assert list(line.get_xdata()) == pytest.approx(rows["l0"].to_list())
        assert list(line.get_ydata()) == pytest.approx(rows["nmse"].to_list())
    assert not any("mean" in text or "seed" in text for text in texts(fig))


def test_progressive_survives_nan_missing_training_points_and_negative_delta_ce(methods):
    curves = tidy.curves()
    curves.loc[::7, "nmse"] = np.nan
    curves["delta_ce"] -= 0.2
    fig = draw_progressive(curves, tidy.autoencoders()[:0], methods, N)
    fig.draw_without_rendering()
    assert any("at or below 0 not shown" in text for text in texts(fig))


# Claims and tuning


def test_claims_show_every_statement_effect_and_verdict():
    fig = draw_claims(tidy.claims())
    shown = texts(fig)
    assert {f"C{i}" for i in range(1, 19)} <= set(shown)
    assert "✗ contradicted" in shown and "– not measured" in shown
    assert "−0.08 log nMSE" in shown


def test_claims_show_the_whole_and_not_its_parts():
    claims = pd.concat([tidy.claims().assign(part=np.nan), tidy.claims().assign(part="a part")])
    assert texts(draw_claims(claims)).count("C1") == 1


@pytest.mark.parametrize(
    ("interval", "region", "inside"),
    [
        ((12.6, 13.5, 14.4), (-10, 10), [False, False, False]),  # C7: beyond its upper bound
        ((-0.4, -0.1, 0.2), (-np.inf, 5), [True, True, True]),  # C11: across zero, and inside
        ((7.6, 11.2, 15.0), (10, np.inf), [False, True, True]),  # C9: across its lower bound
    ],
)
def test_claims_shade_where_the_effect_is_said_to_lie(interval, region, inside):
    keys = ["low", "effect", "high", "claimed_low", "claimed_high"]
    claims = tidy.claims()[:1].assign(**dict(zip(keys, (*interval, *region), strict=True)))
    (ax,) = draw_claims(claims).axes
    (shade,) = ax.collections
    left, _, right, _ = shade.get_datalim(ax.transData).extents
    (low, high), (effect,) = (line.get_xdata() for line in ax.lines[-2:])
    assert [left < x < right for x in (low, effect, high)] == inside


@pytest.mark.parametrize("columns", [["claimed_low", "claimed_high"], []])
def test_claims_without_a_region_have_no_shade(columns):
    claims = tidy.claims().drop(columns=columns)
    if not columns:
        claims = claims.assign(claimed_low=np.nan, claimed_high=np.nan)
    fig = draw_claims(claims)
    assert not fig.axes[0].collections and not any("shade" in text for text in texts(fig))
    assert "−0.08 log nMSE" in texts(fig)


def test_claims_reject_an_unknown_verdict():
    with pytest.raises(UserError, match="verdict 'maybe'"):
        draw_claims(tidy.claims().assign(verdict="maybe"))


def test_tuning_rings_the_chosen_rate_and_labels_further_knobs(methods):
    table = tidy.tuning().drop(columns="off_target").assign(off_target=False)
    extra = table[table["method"] == "jumprelu"].assign(knob="bandwidth", chosen=False)
    table = pd.concat([table, extra.assign(value=0.1), extra.assign(value=0.3)])
    other = table.assign(l0_target=4, learning_rate=2 * table["learning_rate"])
    table = pd.concat([table, other])
    fig = draw_tuning(table, methods)
    panels = {ax.get_title(loc="left"): ax for ax in fig.axes}
    (ring,) = [line for line in panels["TopK"].lines if line.get_markerfacecolor() == "none"]
    assert list(ring.get_xdata()) == [3e-3, 6e-3]
    *lines, _ = [line for line in panels["TopK"].lines if len(line.get_xdata())]
    few, many = (sum(to_rgb(line.get_color())) for line in lines)
    assert many < few  # darker
    named = [text.get_text() for text in fig.legends[0].get_texts()]
    assert named == ["chosen", "$L_0$ = 4", "$L_0$ = 16"]
    labels = [text.get_text() for text in panels["JumpReLU"].get_legend().get_texts()]
    assert labels == ["bandwidth = 0.1", "bandwidth = 0.3"]
    drawn = {line.get_linestyle() for line in panels["JumpReLU"].lines if len(line.get_xdata())}
    assert drawn == {"-", "--", "None"}


def test_tuning_draws_other_sizes_as_the_value_that_was_chosen(methods):
    table = tidy.tuning().assign(off_target=False)
    own = table[table["method"] == "jumprelu"].assign(knob="bandwidth")
    values = [own.assign(value=0.1, chosen=False), own.assign(value=0.3)]
    small = own.assign(n=512, value=np.nan, nmse=0.5)
    fig = draw_tuning(pd.concat([*values, small]), methods, "n")
    (line,) = [one for one in fig.axes[0].lines if list(one.get_ydata()) == 4 * [0.5]]
    assert line.get_linestyle() == "--"


def test_what_missed_its_l0_does_not_stretch_the_axis_of_tuning(methods):
    table = tidy.tuning()
    far = table.assign(nmse=table["nmse"].where(~table["off_target"], 0.99))
    for ax in draw_tuning(far, methods).axes[:9]:
        assert ax.get_ylim()[1] < 0.9


def test_tuning_draws_hollow_what_missed_its_l0(methods):
    fig = draw_tuning(tidy.tuning(), methods)
    topk = next(ax for ax in fig.axes if ax.get_title(loc="left") == "TopK")
    (hollow,) = [line for line in topk.lines if line.get_markerfacecolor() == "white"]
    assert list(hollow.get_xdata()) == [1e-2]
    (legend,) = fig.legends
    assert [text.get_text()[:6] for text in legend.get_texts()] == ["chosen", "hollow"]
    fig = draw_tuning(tidy.tuning().assign(off_target=False), methods)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["chosen"]


def test_tuning_has_levels_at_one_size_and_sizes_at_one_level(methods):
    table = tidy.tuning().assign(off_target=False)
    n = table["n"].iloc[0]
    small = table[table["learning_rate"] < 1e-2].assign(n=n // 4)
    both = pd.concat([table, table.assign(l0_target=4, nmse=0.9), small])
    figures = [draw_tuning(both, methods, over) for over in ("l0_target", "n")]
    others = [4 * [0.9], list(small[small.method == "topk"].nmse)]
    for fig, other, legend in zip(figures, others, ("$L_0$ = ", "n = "), strict=True):
        topk = next(ax for ax in fig.axes if ax.get_title(loc="left") == "TopK")
        drawn = [list(line.get_ydata()) for line in topk.lines if line.get_linestyle() == "-"]
        assert len(drawn) == 2
        assert other in drawn
        assert list(table[table.method == "topk"].nmse) in drawn
        said = [text.get_text() for text in fig.legends[0].get_texts()]
        assert sum(text.startswith(legend) for text in said) == 2


# Common form


def test_axis_labels_are_plain_numbers():
    ax = style.new_figure(3).subplots()
    ax.plot([2048, 131072], [0.04, 0.3])
    style.powers_of_two(ax)
    style.powers_of_ten(ax)
    assert tick_labels(ax.xaxis) == ["2k", "4k", "8k", "16k", "32k", "64k", "128k"]
    assert tick_labels(ax.yaxis) == ["0.04", "0.05", "0.07", "0.1", "0.15", "0.2", "0.3"]


def test_shades_go_from_light_to_dark():
    shades = [int(shade("#d55e00", x)[1:3], 16) for x in (0, 0.25, 0.5, 0.75, 1)]
    assert shades == sorted(shades, reverse=True) and shade("#d55e00", 0.5) == "#d55e00"


def test_saved_files_are_the_same_bytes_each_time(tmp_path, autoencoders, methods):
    for name in ("one", "two"):
        fig = style.new_figure(height=1.5)
        handles = scaling(autoencoders, methods, "nmse", L0, fig.subplots())
        style.legend_below(fig, list(handles.values()), columns=3)
        style.save(fig, tmp_path / name)
    for suffix in ("png", "pdf", "svg"):
        one, two = (tmp_path / f"{name}.{suffix}" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        assert b"matplotlib v" not in one.read_bytes()


def test_figures_and_tables_never_import_torch():
    modules = ["claims", "combined", "comparisons", "frontier", "progressive", "refinement"]
    modules += ["scaling", "timing", "tuning"]
    names = ", ".join(f"l0plane.figures.{module}" for module in modules)
    code = f"import sys, l0plane.tables, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Comparisons


def comparisons(names, effect=-20.0, verdict="better"):
    rows = [
        {"measure": measure, "method": one, "other": other, "n": 64, "effect": effect}
        for measure in ("nmse", "delta_ce")
        for one in names
        for other in names
        if one != other
    ]
    return pd.DataFrame(rows).assign(verdict=verdict, levels="4, 8", fewest_seeds=2, most_seeds=2)


def test_comparisons_are_coloured_where_they_are_decided():
    table = comparisons(["topk", "mine", "relu"])
    table.loc[0, ["effect", "verdict"]] = [25.0, "worse"]
    table.loc[1, ["effect", "verdict"]] = [-0.46, "undecided"]
    table.loc[2, ["effect", "verdict"]] = [np.nan, "not compared"]
    methods = pd.DataFrame({"method": ["relu", "topk"], "label": ["ReLU", "TopK"], "order": [1, 2]})
    left, right = (fig := draw_comparisons(table, methods)).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["ReLU", "TopK", "mine"]
    assert "n = 64" in fig.get_suptitle() and "fewer" not in fig.get_suptitle()
    # Row TopK: +25 against mine, undecided against ReLU; row mine: nothing against TopK.
    places = {(text.get_position()): text.get_text() for text in left.texts}
    assert places == {
        (1, 2): "n/a",
        (2, 1): "+25",
        (0, 1): "\N{MINUS SIGN}0.5",
        (0, 2): "\N{MINUS SIGN}20",
        (1, 0): "\N{MINUS SIGN}20",
        (2, 0): "\N{MINUS SIGN}20",
    }
    colors = [tuple(cell.get_facecolor()[0]) for cell in left.collections]
    assert len(colors) == 5 and len(set(colors)) == 3  # green, orange, and white
    assert len(right.collections) == 6
    assert {"worse", "undecided"} <= {text.get_text() for text in fig.legends[0].get_texts()}


def test_the_two_ways_of_a_comparison_are_as_strong():
    table = comparisons(["a", "b"])
    back = table["method"] == "b"
    table.loc[back, ["effect", "verdict"]] = [25.0, "worse"]  # 1 / 0.8
    ax = draw_comparisons(table, pd.DataFrame({"method": ["a", "b"]})).axes[0]
    green, orange = (np.array(cell.get_facecolor()[0][:3]) for cell in ax.collections)
    share = (1 - green) / (1 - np.array(to_rgb("#00735c")))
    np.testing.assert_allclose(share, (1 - orange) / (1 - np.array(to_rgb("#c44601"))), atol=0.01)


@pytest.mark.parametrize("effect", [-99.95, 113.0, 1e9])
@pytest.mark.parametrize(("count", "letters"), [(2, 3), (4, 60), (12, 9), (20, 40)])
def test_comparisons_have_room_for_many_methods(count, letters, effect):
    names = [f"method_{i}" for i in range(count)]
    methods = pd.DataFrame({"method": names, "label": ["long label " * (letters // 11)] * count})
    table = comparisons(names, effect)
    table.loc[0, "fewest_seeds"] = 1
    fig = draw_comparisons(table, methods)
    fig.canvas.draw()
    ax = fig.axes[0]
    cell = ax.transData.transform((1, 0))[0] - ax.transData.transform((0, 0))[0]
    assert max(text.get_window_extent().width for text in ax.texts) < cell


@pytest.mark.parametrize(
    ("effect", "shown"),
    [
        (0.0, "+0.0"),
        (0.03, "+0.03"),
        (-4.24, "\N{MINUS SIGN}4.2"),
        (99.0, "+99"),
        (112.6, "×2.1"),
        (1650.0, "×18"),
        (1e9, "≫"),
    ],
)
def test_a_comparison_has_five_letters_at_most(effect, shown):
    table = comparisons(["a", "b"], effect, "undecided")
    ax = draw_comparisons(table, pd.DataFrame({"method": ["a", "b"]})).axes[0]
    assert {text.get_text() for text in ax.texts} == {shown}


def test_comparisons_say_what_they_rest_on():
    table = comparisons(["a", "b", "c"])
    methods = pd.DataFrame({"method": ["a", "b", "c"]})
    fewer = table.assign(levels=["4", *["4, 8"] * 11])
    fig = draw_comparisons(fewer, methods)
    assert "* fewer levels or seeds" in fig.get_suptitle()
    assert [text.get_text()[-1] == "*" for text in fig.axes[0].texts] == [True, *[False] * 5]
    assert not any("*" in text.get_text() for text in fig.axes[1].texts)
    one = draw_comparisons(table.assign(fewest_seeds=1, most_seeds=1), methods)
    assert "no seed repeated" in one.get_suptitle() and "*" not in one.get_suptitle()
    some = draw_comparisons(table.assign(fewest_seeds=1, most_seeds=3), methods).get_suptitle()
    assert "borrow the spread" in some and "no seed repeated" not in some
    assert "borrow" not in draw_comparisons(table, methods).get_suptitle()


def test_nothing_to_compare_is_said():
    fig = draw_comparisons(comparisons(["a", "b"])[:0], pd.DataFrame({"method": ["a"]}))
    assert "no two methods to compare" in texts(fig)


# What failed


@pytest.mark.parametrize("metric", ["nmse", "delta_ce"])
def test_what_failed_is_named_and_not_drawn(autoencoders, methods, metric):
    table = tidy.with_failures(autoencoders)
    fig = draw_combined(table, methods, metric, N, L0)
    said = "".join(texts(fig)).replace("\n", " ")
    assert "failed, not shown: 7 of Gated, 1 of TopK" in said  # left: five levels, three seeds
    assert "failed, not shown: 6 of Gated" in said  # right: four sizes, three seeds
    left = fig.axes[0]
    assert not lines(left, color_of(methods, "gated"))
    (topk,) = lines(left, color_of(methods, "topk"))
    assert len(topk.get_xdata()) == len(tidy.LEVELS) - 1


def test_figures_of_nothing_but_failures_say_so(autoencoders, methods):
    table = tidy.with_failures(autoencoders).query("method == 'gated'")
    for draw in (draw_frontier, draw_scaling):
        level = N if draw is draw_frontier else L0
        assert any("no autoencoder" in text for text in texts(draw(table, methods, "nmse", level)))
    empty = {
        name: frame.iloc[:0] for name, frame in (("c", tidy.curves()), ("r", tidy.refinement()))
    }
    draw_progressive(empty["c"], table, methods, N)
    draw_refinement(empty["r"], tidy.refinement_histogram().iloc[:0], methods, N, L0)


def test_a_column_of_figure_10_without_its_training_points(autoencoders, methods):
    curves = tidy.curves().query("not (method == 'topk' and l0_target == 64)")
    draw_progressive(curves, tidy.with_failures(autoencoders), methods, N)
