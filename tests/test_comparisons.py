"""Every pair of methods at equal L0: better, worse, or not to be told."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from claim_tables import SIZE, World

from l0plane.claims import CLAIMS, Tables, compare_methods
from l0plane.claims.comparisons import COLUMNS, to_page, with_fewer
from l0plane.claims.points import Evidence

METHODS = ["relu", "gated", "topk", "mine"]
LABELS = {"relu": "ReLU", "topk": "Top|K"}


def contexts(mine: float, **world) -> pd.DataFrame:
    """Errors of three methods of the text, and of one that has `mine` times those of Gated."""
    table = World(**world).contexts()
    own = table[table["method"] == "gated"].assign(method="mine")
    return pd.concat([table, own.assign(squared_error=own["squared_error"] * mine)])


def labelled(methods) -> dict[str, str]:
    return {method: LABELS.get(method, method) for method in methods}


def compared(table: pd.DataFrame, methods=METHODS) -> pd.DataFrame:
    found = compare_methods(Tables(contexts=table), labelled(methods), resamples=300)
    return found.set_index(["measure", "method", "other"])


def test_a_method_that_the_text_does_not_know_is_compared_with_all():
    found = compared(contexts(mine=0.9))
    assert set(found.index) == {
        (measure, method, other)
        for measure in ("nmse", "delta_ce")
        for method in METHODS
        for other in METHODS
        if method != other
    }
    assert set(found["n"]) == {SIZE}
    row = found.loc["nmse", "mine", "gated"]
    assert row["effect"] == pytest.approx(-10, abs=1e-6)
    assert row["verdict"] == "better"
    # Downstream the two are the same.
    assert found.loc[("delta_ce", "mine", "gated"), "verdict"] == "undecided"
    over_relu = found.loc[("nmse", "mine", "relu"), "effect"]
    assert over_relu == pytest.approx(100 * (0.9 * 0.8 - 1), abs=1)
    assert found.loc[("nmse", "mine", "topk"), "verdict"] == "worse"  # 0.72 against 0.7


def test_the_two_ways_of_a_pair_say_the_same():
    found = compared(contexts(mine=0.9, seed_noise=0.05))
    swap = {"better": "worse", "worse": "better", "undecided": "undecided"}
    for measure, method, other in found.index:
        one, two = found.loc[measure, method, other], found.loc[measure, other, method]
        assert two["verdict"] == swap[one["verdict"]]
        ends = np.array([one["effect"], one["low"], one["high"]])
        back = np.array([two["effect"], two["high"], two["low"]])
        np.testing.assert_allclose((1 + ends / 100) * (1 + back / 100), 1, rtol=1e-9)


def test_a_pair_of_the_text_has_the_figures_of_its_claim():
    table = World(noise=0.1).contexts()
    found = compared(table, ["relu", "gated"]).loc["nmse", "gated", "relu"]
    evidence = Evidence.of(Tables(contexts=table), resamples=300, random_seed=0)
    part = next(part for part in CLAIMS["C1"][1](evidence) if part.name == "Gated against ReLU")
    assert found["effect"] == part.effect
    assert (found["low"], found["high"]) == pytest.approx((part.low, part.high), rel=0.02)
    assert part.detail.startswith(found["detail"])


def test_the_levels_that_a_verdict_hangs_on_are_named_both_ways():
    table = contexts(mine=0.9, noise=0.0)
    far = (table["method"] == "mine") & (table["l0_target"] == 32)
    found = compared(table.assign(squared_error=table["squared_error"] * np.where(far, 3.0, 1.0)))
    assert found.loc[("nmse", "mine", "gated"), "verdict"] == "worse"
    assert found.loc[("nmse", "mine", "gated"), "otherwise"] == "without 32: better"
    assert found.loc[("nmse", "gated", "mine"), "otherwise"] == "without 32: worse"
    assert found.loc[("nmse", "gated", "relu"), "otherwise"] == ""


def test_what_cannot_be_compared_says_why():
    table = contexts(mine=0.9)
    mine = table["method"] == "mine"
    apart = table[~mine | (table["l0_target"] == 4)]
    apart = apart.assign(l0=apart["l0"] * np.where(apart["method"] == "mine", 100.0, 1.0))
    other_levels = table.assign(l0_target=table["l0_target"] + mine)
    one_size = table[~mine | (table["n"] != SIZE)]
    other_seed = table.assign(seed=table["seed"] + 7 * mine)
    reasons = {
        "the L0s that they reached do not meet: 412 to 412 and 4 to 32": apart,
        "no level of L0 in common": other_levels,
        f"no autoencoder of mine with {SIZE:,} latents": one_size,
        "no seed in common": other_seed,
    }
    for reason, rows in reasons.items():
        row = compared(rows).loc["nmse", "mine", "topk"]
        assert (row["verdict"], row["detail"], row["levels"]) == ("not compared", reason, "")
        assert np.isnan(row["effect"])
    # Splicing lowers the cross-entropy: there is no error to compare.
    lower = table.assign(delta_ce=table["delta_ce"] * np.where(mine, -1.0, 1.0))
    row = compared(lower).loc["delta_ce", "topk", "mine"]
    assert (row["verdict"], row["detail"]) == ("not compared", "mine has no error above 0")
    # What nobody measured is left out.
    assert set(compared(table.assign(delta_ce=np.nan)).index.get_level_values(0)) == {"nmse"}
    assert list(compare_methods(Tables(), labelled(METHODS)).columns) == COLUMNS
    assert compare_methods(Tables(contexts=table), labelled(["topk"])).empty


def test_nothing_else_has_a_say_in_a_pair():
    """Neither the order of methods, nor others, nor what was trained elsewhere."""
    table = contexts(mine=0.9, noise=0.1, seed_noise=0.05)
    # A method that is not compared has more levels, another size, and fewer contexts.
    one = table[(table["method"] == "mine") & (table["l0_target"] == 32) & (table["context"] < 5)]
    elsewhere = [
        one.assign(method="elsewhere", n=99, l0_target=level, l0=level) for level in range(1, 9)
    ]
    plain = compared(table).loc["nmse", "mine", "topk"]
    for other in (
        compared(table, METHODS[::-1]),
        compared(table, ["topk", "mine"]),
        compared(pd.concat([table, *elsewhere])),
    ):
        pd.testing.assert_series_equal(other.loc["nmse", "mine", "topk"], plain)


def test_levels_are_those_of_both_whatever_the_order():
    table = contexts(mine=0.9, noise=0.0)
    failed = table[(table["method"] != "mine") | (table["l0_target"] != 16)]
    for methods in (METHODS, METHODS[::-1]):
        found = compared(failed, methods)
        assert found.loc[("nmse", "mine", "gated"), "levels"] == "4, 8, 32"
        assert found.loc[("nmse", "topk", "gated"), "levels"] == "4, 8, 16, 32"
        assert found.loc[("nmse", "mine", "gated"), "effect"] == pytest.approx(-10, abs=0.1)


def test_what_rests_on_less_than_others_is_marked():
    table = contexts(mine=0.9, noise=0.0)
    table = table[table["l0_target"].isin([8, 16])]  # where World repeats a seed
    found = compared(table[(table["method"] != "mine") | (table["seed"] == 0)])
    assert list(found.loc["nmse", "mine", "topk"][["fewest_seeds", "most_seeds"]]) == [1, 1]
    assert list(found.loc["nmse", "gated", "topk"][["fewest_seeds", "most_seeds"]]) == [2, 2]
    page = to_page(found.reset_index(), LABELS)
    assert "No seed was repeated" not in page and "borrow" not in page
    (mine,) = (section for section in page.split("## ") if section.startswith("mine"))
    (topk,) = (section for section in page.split("## ") if section.startswith("Top"))
    assert mine.count("; one seed") == 6
    assert topk.count("; one seed") == 2
    some = compared(table[(table["method"] != "mine") | (table["seed"] + table["l0_target"] < 17)])
    assert to_page(some.reset_index(), LABELS).count("; one seed at some level") == 12
    # One seed less of several is not worth a mark.
    three = pd.concat([table, table[table["seed"] == 0].assign(seed=2)])
    found = compared(three[(three["method"] != "mine") | (three["seed"] < 2)])
    assert "seed at" not in to_page(found.reset_index(), LABELS)
    missed = compared(table[(table["method"] != "mine") | (table["l0_target"] == 8)])
    page = to_page(missed.reset_index(), LABELS)
    assert page.count("; at 8 only") == 12
    marked = with_fewer(missed.reset_index())
    assert set(marked.loc[marked["fewer"], "levels"]) == {"8"}


def test_the_page_has_a_section_a_method(tmp_path):
    table = contexts(mine=0.9, noise=0.0)
    far = (table["method"] == "mine") & (table["l0_target"] == 32)
    table = table.assign(squared_error=table["squared_error"] * np.where(far, 3.0, 1.0))
    labels = labelled([*METHODS, "failed"])
    compare_methods(Tables(contexts=table), labels, resamples=300).to_csv(
        tmp_path / "comparisons.csv", index=False
    )
    page = to_page(pd.read_csv(tmp_path / "comparisons.csv"), LABELS, ["failed n=8 seed=0: why"])
    sections = page.split("\n## ")
    assert [section.split("\n")[0] for section in sections[1:]] == [
        *("ReLU", "gated", "Top\\|K", "mine", "failed")
    ]
    assert "| against | nMSE | delta cross-entropy |" in sections[1]
    assert "| Top\\|K | **worse**, 42.9% [42.9, 42.9] |" in sections[1]
    assert "| gated | **worse**, 16.1% [16.1, 16.1]; without 32: better |" in sections[4]
    nothing = f"not compared: no autoencoder of failed with {SIZE:,} latents"
    assert f"| ReLU | {nothing} | {nothing} |" in sections[5]
    assert "a geometric mean over L0 = 4, 8, 16, 32, with" in sections[0]
    assert "failed n=8 seed=0: why" in sections[0]
    # Of World's two seeds one was trained at most levels.
    assert "borrow the spread" in sections[0]
    first = Tables(contexts=table[table["seed"] == 0])
    one = compare_methods(first, labelled(METHODS), resamples=300)
    assert "No seed was repeated" in to_page(one, LABELS)
    for nothing in (Tables(), Tables(contexts=table[table["method"] == "topk"])):
        page = to_page(
            compare_methods(nothing, labelled(METHODS)), LABELS, ["topk n=8 seed=0: exploded"]
        )
        assert "No two methods can be compared" in page
        assert "exploded" in page


def test_one_level_is_not_read_back_as_a_number(tmp_path):
    table = contexts(mine=0.9)
    labels = labelled([*METHODS, "failed"])
    one = compare_methods(Tables(contexts=table[table["l0_target"] == 16]), labels)
    one.to_csv(tmp_path / "comparisons.csv", index=False)
    assert "over L0 = 16, with" in to_page(pd.read_csv(tmp_path / "comparisons.csv"), LABELS)


def test_the_same_method_twice_is_undecided():
    found = compare_methods(Tables(contexts=contexts(mine=1.0)), labelled(METHODS))
    page = to_page(found, LABELS)
    assert page.count("undecided, 0% [0, 0]") == 4


def test_an_interval_may_reach_to_the_end_of_what_there_is():
    """A Student's t of two seeds reaches where a ratio is 0 or infinite: no traceback."""
    table = contexts(mine=1.0, seeds=(0, 1))
    lucky = np.where((table["method"] == "mine") & (table["seed"] == 1), 1e9, 1.0)
    found = compared(table.assign(squared_error=table["squared_error"] * lucky))
    row = found.loc["nmse", "gated", "mine"]
    assert row["verdict"] == "undecided"
    assert row["low"] == pytest.approx(-100)
