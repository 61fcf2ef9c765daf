"""Intervals and tests against published or hand-computed values; comparisons pair by item and seed, or refuse."""

from __future__ import annotations

import math
import random

import pytest

from ctxft.runtime import InputError
from ctxft.statistics import (
    common_seeds,
    compare,
    item_interval,
    mcnemar,
    seed_interval,
    smallest_difference,
    wilson,
)


def outcomes(correct: list[int]) -> list[dict]:
    return [{"id": f"q{i}", "hash": f"h{i}", "correct": bool(value)} for i, value in enumerate(correct)]


def by_arm(outcomes_of: dict) -> dict:
    return {row["arm"]: row for row in compare(outcomes_of)}


# --- textbook values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_a_published_table(correct: int, n: int, low: float, high: float):
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - correct, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_ends_exactly_at_none_and_all_and_holds_the_share():
    for n in range(1, 400):
        assert wilson(0, n)[0] == 0.0 and wilson(n, n)[1] == 1.0
        assert all(low <= k / n <= high for k in {0, 1, n // 2, n} for low, high in [wilson(k, n)])


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_proportion(correct: int, n: int):
    with pytest.raises(InputError, match=f"found {correct} of {n}"):
        wilson(correct, n)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    # twice the binomial tail by hand: (1 + 10) / 2^10 for 1 of 10, (1 + 8 + 28) / 2^8 for 2 of 8
    [(0, 0, 1.0), (0, 6, 2 / 64), (6, 0, 2 / 64), (1, 9, 2 * 11 / 1024), (2, 6, 2 * 37 / 256), (5, 5, 1.0)],
)
def test_mcnemar_by_hand(only_a: int, only_b: int, p: float):
    assert mcnemar(only_a, only_b) == pytest.approx(p, abs=1e-12)


def test_seed_interval_by_hand():
    # t(0.975, 2) = 4.3027, standard error 1 / sqrt(3); t(0.975, 1) = 12.7062, standard error 1
    assert seed_interval([1.0, 2.0, 3.0]) == pytest.approx((2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert seed_interval([4.0, 6.0]) == pytest.approx((5, 5 - 12.7062, 5 + 12.7062), abs=1e-4)
    mean, low, high = seed_interval([0.7])
    assert mean == 0.7 and math.isnan(low) and math.isnan(high)
    with pytest.raises(InputError, match="at least one seed"):
        seed_interval([])


def test_item_interval_by_hand():
    # b = 3, c = 1, n = 10: (3 - 1) / 12 +- 1.95996 * sqrt(((3.5 + 1.5) / 12 - (2 / 12)^2) / 12)
    half = 1.95996 * math.sqrt((5 / 12 - (2 / 12) ** 2) / 12)
    assert item_interval([1] * 3 + [-1] + [0] * 6) == pytest.approx((2 / 12 - half, 2 / 12 + half), abs=1e-5)
    low, high = item_interval([0] * 20)
    assert low == -high < -0.05


def test_smallest_difference_by_hand():
    assert smallest_difference(1000, 0.2) == pytest.approx((1.95996 + 0.84162) * math.sqrt(0.2 / 1000), abs=1e-6)
    assert smallest_difference(50, 0.0) == 6 / 50
    assert mcnemar(0, 6) < 0.05 < mcnemar(0, 5)
    assert smallest_difference(4, 0.5) == 1.0


def test_smallest_difference_is_found_four_times_in_five():
    n, discordant = 600, 0.25
    gap, generator = smallest_difference(n, discordant), random.Random(0)
    found = 0
    for _ in range(400):
        draws = [generator.random() for _ in range(n)]
        gains = sum(draw < (discordant + gap) / 2 for draw in draws)
        found += mcnemar(gains, sum(draw < discordant for draw in draws) - gains) < 0.05
    assert 0.74 <= found / 400 <= 0.88


# --- compare ----------------------------------------------------------------------------------------------------------

HALF = [1, 0] * 50


def test_rows_in_arm_order_with_one_seed():
    lost = [0] * 20 + HALF[20:]
    found = compare({"neg": {0: outcomes(lost)}, "cpt": {0: outcomes(HALF)}, "base": {0: outcomes(HALF)}})
    assert [row["arm"] for row in found] == ["base", "cpt", "neg"]
    base, cpt, neg = found
    assert (cpt["n"], cpt["seeds"], cpt["accuracy"]) == (100, 1, 0.5)
    assert (cpt["low"], cpt["high"]) == wilson(50, 100)
    assert cpt["verdict"] == "the reference" and math.isnan(cpt["difference"]) and cpt["mcnemar"] == []
    assert neg["difference"] == pytest.approx(-10) and neg["mcnemar"] == [mcnemar(0, 10)]
    low, high = item_interval([-1] * 10 + [0] * 90)
    assert (neg["difference_low"], neg["difference_high"]) == pytest.approx((100 * low, 100 * high))
    assert neg["verdict"] == f"lower than cpt by 10.0 points (95 % interval {100 * low:+.1f} to {100 * high:+.1f})"
    assert base["difference"] == 0 and base["mcnemar"] == [1.0]
    assert base["verdict"] == "no difference to cpt shown; could have seen 6.0 points"


def test_several_seeds_use_t_over_seeds_and_do_not_multiply_items():
    # of 200 items, arm cft gains 20, 24 and 28 on arm cpt, which gets 100 right with every seed
    cpt = {seed: outcomes([1] * 100 + [0] * 100) for seed in range(3)}
    cft = {seed: outcomes([1] * (120 + 4 * seed) + [0] * (80 - 4 * seed)) for seed in range(3)}
    rows = by_arm({"base": {0: outcomes([1] * 60 + [0] * 140)}, "cpt": cpt, "cft": cft})
    row = rows["cft"]
    assert (row["n"], row["seeds"]) == (200, 3) and row["accuracy"] == pytest.approx(0.62)
    assert (row["low"], row["high"]) == pytest.approx(wilson(124, 200))
    interval = row["difference"], row["difference_low"], row["difference_high"]
    assert interval == pytest.approx(seed_interval([10.0, 12.0, 14.0]))  # over items 7.5 to 16.3
    assert row["mcnemar"] == [mcnemar(20, 0), mcnemar(24, 0), mcnemar(28, 0)]
    assert row["verdict"].startswith("higher than cpt by 12.0 points")
    base = rows["base"]
    assert base["seeds"] == 1 and len(base["mcnemar"]) == 3 and base["difference"] == pytest.approx(-20)


def test_the_interval_of_several_seeds_holds_that_over_items_and_that_over_seeds():
    cpt = {seed: outcomes([0] * 100) for seed in range(3)}
    cft = {seed: outcomes([1] * (5 + 2 * seed) + [0] * (95 - 2 * seed)) for seed in range(3)}
    row = by_arm({"cpt": cpt, "cft": cft})["cft"]
    items = item_interval([1] * 5 + [2 / 3] * 2 + [1 / 3] * 2 + [0] * 91)
    seeds = seed_interval([5.0, 7.0, 9.0])
    assert 100 * items[0] < seeds[1] and 100 * items[1] < seeds[2]
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((100 * items[0], seeds[2]))


def test_seeds_that_agree_keep_the_interval_over_items():
    def row(gained: int) -> dict:
        cpt = {seed: outcomes([0] * 16 + HALF) for seed in (0, 1)}
        cft = {seed: outcomes([1] * gained + [0] * (16 - gained) + HALF) for seed in (0, 1)}
        return by_arm({"cpt": cpt, "cft": cft})["cft"]

    for gained in (3, 16):  # Student's t over two equal seeds has no width, so all of it is over items
        low, high = item_interval([1] * gained + [0] * (116 - gained))
        assert (row(gained)["difference_low"], row(gained)["difference_high"]) == (100 * low, 100 * high)
    assert row(3)["verdict"].startswith("no difference to cpt shown; could have seen 5.2 points")
    assert row(16)["verdict"].startswith("higher than cpt by 13.8 points (95 % interval +")


def test_the_p_value_has_a_say_with_one_seed_only():
    cpt, cft = outcomes([0] * 5 + HALF[:95]), outcomes([1] * 5 + HALF[:95])
    one = by_arm({"cpt": {0: cpt}, "cft": {0: cft}})["cft"]
    two = by_arm({"cpt": {0: cpt, 1: cpt}, "cft": {0: cft, 1: cft}})["cft"]
    assert one["mcnemar"] == [0.0625] and two["mcnemar"] == [0.0625, 0.0625]
    assert 0 < one["difference_low"] == two["difference_low"]
    assert one["verdict"].startswith("no difference") and two["verdict"].startswith("higher than cpt by 5.0 points")


def test_seeds_that_disagree_show_nothing():
    cpt = {seed: outcomes([0] * 100) for seed in (0, 1)}
    cft = {0: outcomes([1] * 5 + [0] * 95), 1: outcomes([1] * 35 + [0] * 65)}
    row = by_arm({"cpt": cpt, "cft": cft})["cft"]
    assert row["mcnemar"][1] < 1e-6 and row["detectable"] > 100  # two seeds, 30 points apart
    assert row["verdict"] == "no difference to cpt shown; could not have seen any"


def test_verdicts_keep_the_level_when_nothing_differs():
    generator, shown = random.Random(1), 0
    for _ in range(300):
        arms = {arm: {0: outcomes([generator.random() < 0.4 for _ in range(80)])} for arm in ("cpt", "cft")}
        shown += "no difference" not in by_arm(arms)["cft"]["verdict"]
    assert shown <= 300 * 0.05 + 3 * math.sqrt(300 * 0.05 * 0.95)


def test_items_are_joined_by_id_and_pairs_by_seed():
    shuffled = outcomes(HALF)
    random.Random(0).shuffle(shuffled)
    other = {1: outcomes([0] * 100), 2: shuffled}
    row = by_arm({"cpt": {1: outcomes([0] * 100), 2: outcomes(HALF)}, "cft": other})["cft"]
    assert row["mcnemar"] == [1.0, 1.0] and row["difference"] == 0


def test_only_seeds_that_all_trained_arms_share_count():
    none, half = outcomes([0] * 100), outcomes(HALF)
    arms = {"base": {0: none}, "cpt": {1: none, 2: half}, "cft": {2: none, 3: half, 1: half}, "neg": {2: half, 5: none}}
    assert {arm: list(seeds) for arm, seeds in common_seeds(arms).items()} == {
        "base": [0],
        "cpt": [2],
        "cft": [2],
        "neg": [2],
    }
    rows = by_arm(arms)
    assert [rows[arm]["seeds"] for arm in ("base", "cpt", "cft", "neg")] == [1, 1, 1, 1]
    assert [rows[arm]["accuracy"] for arm in ("base", "cpt", "cft", "neg")] == [0, 0.5, 0, 0.5]
    assert [rows[arm]["difference"] for arm in ("base", "cft", "neg")] == [-50, -50, 0]
    assert common_seeds({"base": {0: none}}) == {"base": {0: none}}
    with pytest.raises(InputError, match=r"trained arms have no seed in common \(cpt: 1, 2; cft: 3\): run all"):
        compare({"base": {3: half}, "cpt": {2: half, 1: half}, "cft": {3: half}})
    with pytest.raises(InputError, match="arm base is not trained and has one seed, found 0, 1"):
        compare({"base": {0: half, 1: half}, "cpt": {1: half}})


def test_the_base_can_be_the_reference():
    arms = {"base": {0: outcomes(HALF)}, "cpt": {1: outcomes(HALF), 2: outcomes(HALF)}}
    assert [row["mcnemar"] for row in compare(arms, reference="base")] == [[], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop(3), "arm cft, seed 0 and arm cpt, seed 0 differ: item 'q3' is only in the second"),
        (lambda rows: rows[4].update(hash="x"), "differ: item 'q4' has another hash"),
        (lambda rows: rows.append({"id": "new", "hash": "n", "correct": True}), "item 'new' is only in the first"),
        (lambda rows: rows.append(rows[5]), "arm cft, seed 0: the item 'q5' stands twice"),
    ],
)
def test_different_items_are_refused(change, message: str):
    rows = outcomes(HALF)
    change(rows)
    with pytest.raises(InputError, match=message):
        compare({"cpt": {0: outcomes(HALF)}, "cft": {0: rows}})


def test_unknown_arms_and_empty_outcomes_are_refused():
    with pytest.raises(InputError, match="unknown arm 'ctf'"):
        compare({"ctf": {0: outcomes(HALF)}})
    with pytest.raises(InputError, match="unknown reference arm 'cpt'"):
        compare({"cft": {0: outcomes(HALF)}})
    with pytest.raises(InputError, match="arm cpt, seed 0 has no outcomes"):
        compare({"cpt": {0: []}})
