"""Intervals and tests against published or hand-computed values and simulated truth; comparisons pair, or refuse."""

from __future__ import annotations

import math
import random

import numpy
import pytest
import scipy.stats
from sklearn.metrics import f1_score

from ctxft.statistics import (
    VarianceComponents,
    common_seeds,
    compare,
    compare_f1,
    corrected,
    detectable_before,
    f1_scores,
    holm,
    item_interval,
    mcnemar,
    mcnemar_power,
    minimum_detectable_effect,
    seed_interval,
    variance_over_seeds,
    wilson,
)
from ctxft.storage import InputError
from tests.benchmarks import coverage


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
    with pytest.raises(InputError, match="at least one token or seed"):
        seed_interval([])


def test_item_interval_by_hand():
    # b = 3, c = 1, n = 10: (3 - 1) / 12 +- 1.95996 * sqrt(((3.5 + 1.5) / 12 - (2 / 12)^2) / 12)
    half = 1.95996 * math.sqrt((5 / 12 - (2 / 12) ** 2) / 12)
    assert item_interval([1] * 3 + [-1] + [0] * 6) == pytest.approx((2 / 12 - half, 2 / 12 + half), abs=1e-5)
    low, high = item_interval([0] * 20)
    assert low == -high < -0.05


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    # of 10: twice the tail of 0, plus the chance of 1; of 8: twice the tail of 0 and 1, plus the chance of 2
    [
        (0, 0, 1.0),
        (0, 6, 1 / 64),
        (9, 1, (2 + 10) / 1024),
        (2, 6, (2 * 9 + 28) / 256),
        (5, 5, 1.0),
        (4, 5, 1 - 126 / 512),
    ],
)
def test_mid_p_by_hand(only_a: int, only_b: int, p: float):
    assert mcnemar(only_a, only_b, mid_p=True) == pytest.approx(p, abs=1e-12)


def test_power_by_hand():
    # six items that always differ, each in the arm's favour with chance 0.95: only 6 of 6, either way, is significant
    assert mcnemar_power(6, 1.0, 0.9) == pytest.approx(0.95**6 + 0.05**6)
    # seven items that differ with chance 0.9, all in one direction: six or seven must differ
    assert mcnemar_power(7, 0.9, 0.9) == pytest.approx(0.9**7 + 7 * 0.9**6 * 0.1)
    assert mcnemar_power(5, 1.0, 1.0) == mcnemar_power(100, 0.0, 0.0) == 0


def test_the_minimum_detectable_effect_has_its_power_and_nears_the_normal_formula():
    for n, discordant in ((60, 0.3), (192, 0.05), (192, 0.0), (1000, 0.2)):
        found = minimum_detectable_effect(n, discordant)
        assert mcnemar_power(n, max(found, discordant), found) == pytest.approx(0.8, abs=1e-3)
    connor = (1.95996 + 0.84162) * math.sqrt(0.2 / 20_000)
    assert minimum_detectable_effect(20_000, 0.2) == pytest.approx(connor, rel=0.02)
    assert mcnemar(0, 6) < 0.05 < mcnemar(0, 5)
    assert minimum_detectable_effect(192, 0.0) * 192 == pytest.approx(
        7.9, abs=0.1
    )  # to see 6 of them in 4 of 5 repetitions
    assert minimum_detectable_effect(5, 0.5) == math.inf


def test_detectable_before_a_run():
    assert detectable_before(1089, discordant=0.18) == minimum_detectable_effect(1089, 0.18)
    assert detectable_before(1089, accuracy=0.9) == minimum_detectable_effect(1089, 2 * 0.9 * (1 - 0.9))
    for wrong in ({}, {"accuracy": 0.5, "discordant": 0.1}):
        with pytest.raises(InputError, match="give one"):
            detectable_before(100, **wrong)
    with pytest.raises(InputError, match=r"found n 100 and 50"):
        detectable_before(100, accuracy=50)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.001, 0.9, 0.02]) == pytest.approx([1.0, 0.004, 1.0, 0.06])
    assert holm([0.2]) == [0.2] and holm([]) == []


def test_values_are_those_of_statsmodels():
    pytest.importorskip("statsmodels", reason="statsmodels is not installed; its values are compared where it is")
    from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.proportion import proportion_confint

    generator = random.Random(0)
    for _ in range(50):
        n = generator.randint(1, 500)
        correct = generator.randint(0, n)
        assert wilson(correct, n) == pytest.approx(proportion_confint(correct, n, method="wilson"), abs=1e-12)
        a, b = generator.randint(0, 60), generator.randint(0, 60)
        assert mcnemar(a, b) == pytest.approx(their_mcnemar([[0, a], [b, 0]], exact=True).pvalue, abs=1e-12)
        p_values = [generator.random() ** 3 for _ in range(generator.randint(1, 12))]
        assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist(), abs=1e-12)


def test_variance_components_by_hand():
    one = VarianceComponents(items=0.0004)
    assert one.half() == pytest.approx(1.95996 * 0.02, abs=1e-6)
    assert one.detectable() == pytest.approx((1.95996 + 0.84162) * 0.02, abs=1e-6)
    three = VarianceComponents(items=0.0004, seeds=0.0001, count=3)
    assert three.half() == pytest.approx(math.sqrt(4.30265**2 * 0.0001 + 1.95996**2 * 0.0004), abs=1e-6)
    close = VarianceComponents(
        items=0.0003, seeds=0.0, count=3, shared=0.0001
    )  # seeds that happen to agree: as over items alone
    assert close.half() == pytest.approx(one.half())
    for spread in (one, three, close):
        assert spread.p_value(spread.half()) == pytest.approx(0.05) == spread.p_value(-spread.half())
    assert one.p_value(0.0) == 1.0 and one.p_value(0.02) == pytest.approx(0.3173, abs=1e-4)
    assert VarianceComponents(items=0.0).p_value(0.1) < 1e-9


def test_variance_components_count_what_lies_between_item_and_seed_once():
    # answers that no two trainings share: the mean over 10 seeds varies by 1 / (10 n), and so do the seeds
    generator = numpy.random.default_rng(0)
    spreads = [variance_over_seeds(generator.choice([-1, 1], (10, 400)).tolist())[1] for _ in range(100)]
    assert numpy.mean([spread.items + spread.seeds for spread in spreads]) == pytest.approx(1 / 4000, rel=0.2)
    assert numpy.mean([spread.items + spread.shared for spread in spreads]) == pytest.approx(1 / 4000, rel=0.05)


def test_the_minimum_detectable_effect_is_found_four_times_in_five():
    n, discordant = 600, 0.25
    gap, generator = minimum_detectable_effect(n, discordant), random.Random(0)
    found = 0
    for _ in range(400):
        draws = [generator.random() for _ in range(n)]
        gains = sum(draw < (discordant + gap) / 2 for draw in draws)
        found += mcnemar(gains, sum(draw < discordant for draw in draws) - gains) < 0.05
    assert 0.74 <= found / 400 <= 0.88


# --- compare ----------------------------------------------------------------------------------------------------------

HALF = [1, 0] * 50


def test_rows_in_the_order_of_the_outcomes_with_one_seed():
    lost = [0] * 20 + HALF[20:]
    found = compare({"base": {0: outcomes(HALF)}, "cpt": {0: outcomes(HALF)}, "neg": {0: outcomes(lost)}})
    assert [row["arm"] for row in found] == ["base", "cpt", "neg"]
    base, cpt, neg = found
    assert (cpt["n"], cpt["seeds"], cpt["accuracy"]) == (100, 1, 0.5)
    assert (cpt["low"], cpt["high"]) == wilson(50, 100)
    assert cpt["verdict"] == "the reference" and math.isnan(cpt["difference"]) and cpt["mcnemar"] == []
    assert neg["difference"] == pytest.approx(-10) and neg["mcnemar"] == [mcnemar(0, 10)]
    low, high = item_interval([-1] * 10 + [0] * 90)
    assert (neg["difference_low"], neg["difference_high"]) == pytest.approx((100 * low, 100 * high))
    assert neg["verdict"] == f"lower than cpt by 10.0 pp (95 % interval {100 * low:+.1f} to {100 * high:+.1f})"
    assert base["difference"] == 0 and base["mcnemar"] == [1.0]
    seen = 100 * minimum_detectable_effect(100, 0.0)
    assert (
        base["verdict"] == f"no difference from cpt shown; minimum detectable effect {seen:.1f} pp (80 % power)"
        and 7.5 < seen < 8
    )
    assert (neg["p"], neg["shown"], base["p"], base["shown"]) == (mcnemar(0, 10), True, 1.0, False)


def test_several_seeds_use_t_over_seeds_and_do_not_multiply_items():
    # of 200 items, arm cft gains 20, 24 and 28 on arm cpt, which gets 100 right with every seed
    cpt = {seed: outcomes([1] * 100 + [0] * 100) for seed in range(3)}
    cft = {seed: outcomes([1] * (120 + 4 * seed) + [0] * (80 - 4 * seed)) for seed in range(3)}
    rows = by_arm({"base": {0: outcomes([1] * 60 + [0] * 140)}, "cpt": cpt, "cft": cft})
    row = rows["cft"]
    assert (row["n"], row["seeds"]) == (200, 3) and row["accuracy"] == pytest.approx(0.62)
    assert (row["low"], row["high"]) == pytest.approx(wilson(124, 200))
    # 20 items always gained, 4 in two of three seeds, 4 in one; adjusted as if there were two items more
    n, total, squares = 202, 20 + 4 * 2 / 3 + 4 / 3, 20 + 4 * 4 / 9 + 4 / 9
    items = ((squares + 1) / n - (total / n) ** 2) / n
    alone = sum(((gained + 1) / n - (gained / n) ** 2) / n for gained in (20, 24, 28)) / 3
    half = math.sqrt(4.302653**2 * 0.02**2 / 3 + 1.959964**2 * (items - (alone - items) / 2))
    found = row["difference"], row["difference_low"], row["difference_high"]
    assert found == pytest.approx((12.0, 100 * (total / n - half), 100 * (total / n + half)), abs=1e-4)
    assert row["detectable"] > 100 * half and row["p"] == pytest.approx(0.0118, abs=1e-4)
    quantiles = scipy.stats.t.isf(row["p"] / 2, 2), scipy.stats.norm.isf(row["p"] / 2)  # of the interval that ends at 0
    reached = quantiles[0] ** 2 * 0.02**2 / 3 + quantiles[1] ** 2 * (items - (alone - items) / 2)
    assert reached == pytest.approx((total / n) ** 2)
    assert row["mcnemar"] == [mcnemar(20, 0), mcnemar(24, 0), mcnemar(28, 0)]
    assert row["verdict"].startswith("higher than cpt by 12.0 pp")
    base = rows["base"]
    assert base["seeds"] == 1 and len(base["mcnemar"]) == 3 and base["difference"] == pytest.approx(-20)


def test_seeds_that_agree_keep_the_interval_over_items():
    def row(gained: int) -> dict:
        cpt = {seed: outcomes([0] * 16 + HALF) for seed in (0, 1)}
        cft = {seed: outcomes([1] * gained + [0] * (16 - gained) + HALF) for seed in (0, 1)}
        return by_arm({"cpt": cpt, "cft": cft})["cft"]

    for gained in (3, 16):  # Student's t over two equal seeds has no width, so all of it is over items
        low, high = item_interval([1] * gained + [0] * (116 - gained))
        assert (row(gained)["difference_low"], row(gained)["difference_high"]) == (100 * low, 100 * high)
    assert row(3)["verdict"].startswith("no difference from cpt shown; minimum detectable effect 4.7 pp")
    low, high = row(3)["difference_low"], row(3)["difference_high"]  # no longer the floor of one training's test
    assert row(3)["detectable"] == pytest.approx((1.95996 + 0.84162) / (2 * 1.95996) * (high - low), abs=1e-3)
    assert row(16)["verdict"].startswith("higher than cpt by 13.8 pp (95 % interval +")


def test_the_p_value_has_a_say_with_one_seed_only():
    cpt, cft = outcomes([0] * 5 + HALF[:95]), outcomes([1] * 5 + HALF[:95])
    one = by_arm({"cpt": {0: cpt}, "cft": {0: cft}})["cft"]
    two = by_arm({"cpt": {0: cpt, 1: cpt}, "cft": {0: cft, 1: cft}})["cft"]
    assert one["mcnemar"] == [0.0625] and two["mcnemar"] == [0.0625, 0.0625]
    assert 0 < one["difference_low"] == two["difference_low"]
    assert one["verdict"].startswith("no difference") and two["verdict"].startswith("higher than cpt by 5.0 pp")


def test_the_interval_of_several_seeds_is_never_narrower_than_that_over_items():
    generator = numpy.random.default_rng(0)
    for _ in range(100):
        signs = generator.choice([-1, 0, 1], (3, 60), p=[0.2, 0.6, 0.2]).tolist()
        low, high = item_interval([sum(column) / 3 for column in zip(*signs, strict=True)])
        assert 2 * variance_over_seeds(signs)[1].half() >= high - low - 1e-12


def test_seeds_that_disagree_show_nothing():
    cpt = {seed: outcomes([0] * 100) for seed in (0, 1)}
    cft = {0: outcomes([1] * 5 + [0] * 95), 1: outcomes([1] * 35 + [0] * 65)}
    row = by_arm({"cpt": cpt, "cft": cft})["cft"]
    assert row["mcnemar"][1] < 1e-6 and row["detectable"] == math.inf  # two seeds, 30 points apart
    assert row["verdict"] == "no difference from cpt shown; no effect is detectable with these items and seeds"


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
        (lambda rows: rows.pop(3), "arm cft, seed 0 and arm cpt, seed 0 differ: item 'q3' is missing in one of them"),
        (lambda rows: rows[4].update(hash="x"), "differ: item 'q4' is missing .* or has another question"),
        (lambda rows: rows.append({"id": "new", "hash": "n", "correct": True}), "item 'new' is missing in one"),
        (lambda rows: rows.append(rows[5]), "arm cft, seed 0: the item 'q5' occurs twice"),
    ],
)
def test_different_items_are_refused(change, message: str):
    rows = outcomes(HALF)
    change(rows)
    with pytest.raises(InputError, match=message):
        compare({"cpt": {0: outcomes(HALF)}, "cft": {0: rows}})


def test_an_unknown_reference_and_empty_outcomes_are_refused():
    with pytest.raises(InputError, match="unknown reference arm 'cpt'"):
        compare({"cft": {0: outcomes(HALF)}})
    with pytest.raises(InputError, match="arm cpt, seed 0 has no outcomes"):
        compare({"cpt": {0: []}})


# --- Holm over a run, and F1 -----------------------------------------------------------------------------------------


def rows_with(p_of: dict[str, dict[str, float]]) -> dict[str, list[dict]]:
    reference = {"arm": "cpt", "p": math.nan, "shown": False, "difference": math.nan}
    return {
        name: [reference, *({"arm": a, "p": p, "shown": p < 0.05, "difference": -1.0} for a, p in arms.items())]
        for name, arms in p_of.items()
    }


@pytest.mark.parametrize(
    ("family", "found"),
    [
        ("benchmarks", {"cft": [(0.08, 2, "not after Holm"), (0.5, 2, "not shown")], "neg": [(0.002, 2, "lower")] * 2}),
        ("all", {"cft": [(0.08, 4, "not after Holm"), (0.5, 4, "not shown")], "neg": [(0.004, 4, "lower")] * 2}),
    ],
)
def test_holm_corrects_within_the_family_that_is_asked_for(family: str, found: dict):
    tables = corrected(rows_with({"one": {"cft": 0.04, "neg": 0.001}, "two": {"cft": 0.5, "neg": 0.001}}), family)
    for place, rows in enumerate(tables.values()):
        assert math.isnan(rows[0]["holm"]) and rows[0]["word"] == ""
        for row in rows[1:]:
            p, size, word = found[row["arm"]][place]
            assert row["holm"] == pytest.approx(p) and (row["family"], row["word"]) == (size, word)


def test_an_unknown_family_is_refused():
    with pytest.raises(InputError, match="unknown family 'seeds'"):
        corrected({}, "seeds")


def named(answers: list[int], predictions: list[int], classes: int = 3) -> list[dict]:
    return [coverage.item(i, *pair, classes) for i, pair in enumerate(zip(answers, predictions, strict=True))]


@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_f1_is_that_of_scikit_learn(average: str):
    generator = random.Random(0)
    right = [generator.choice([0, 0, 0, 1]) for _ in range(60)]  # class 2 is never right
    ours = [value if generator.random() < 0.6 else generator.randrange(3) for value in right]
    expected = f1_score(right, ours, labels=[0, 1, 2], average=average, zero_division=0)
    rows = {row["arm"]: row for row in compare_f1({"cpt": {0: named(right, ours)}}, average=average, draws=50)}
    assert rows["cpt"]["f1"] == pytest.approx(expected, abs=1e-9) and math.isnan(rows["cpt"]["difference"])
    assert rows["cpt"]["low"] < expected < rows["cpt"]["high"]
    assert f1_scores(numpy.zeros((3, 3)) + numpy.eye(3), average) == 1.0
    silent = [None if i % 4 == 0 else value for i, value in enumerate(ours)]  # no answer is of no class
    said = [-1 if value is None else value for value in silent]
    expected = f1_score(right, said, labels=[0, 1, 2], average=average, zero_division=0)
    (row,) = compare_f1({"cpt": {0: named(right, silent)}}, average=average, draws=50)
    assert row["f1"] == pytest.approx(expected, abs=1e-9) and row["low"] < expected < row["high"]


def test_differences_of_f1_are_paired_and_repeat():
    generator = random.Random(1)
    right = [i % 3 for i in range(150)]
    theirs = [value if generator.random() < 0.5 else generator.randrange(3) for value in right]
    ours = [a if i % 10 == 0 else b for i, (a, b) in enumerate(zip(right, theirs, strict=True))]  # never worse
    arms = {"cpt": {0: named(right, theirs)}, "cft": {0: named(right, ours)}, "neg": {0: named(right, theirs)}}
    found = {row["arm"]: row for row in compare_f1(arms)}
    width = found["cft"]["difference_high"] - found["cft"]["difference_low"]
    assert found["cft"]["difference_low"] > 0 and width < 50 * (found["cft"]["high"] - found["cft"]["low"])
    assert found["neg"]["difference"] == 0 and math.isnan(found["neg"]["difference_low"])  # no draw can differ
    assert compare_f1(arms)[1] == found["cft"] and compare_f1(arms, seed=1)[1] != found["cft"]


def test_seeds_widen_a_difference_of_f1_by_students_t():
    right = [i % 2 for i in range(100)]

    def arm(wrong: int) -> list[dict]:
        return named(right, [1 - v if i < wrong else v for i, v in enumerate(right)], 2)

    arms = {"cpt": {0: arm(40), 1: arm(40)}, "cft": {0: arm(30), 1: arm(20)}}  # 10 and 20 points, classes alike
    row = compare_f1(arms)[1]
    assert row["difference"] == pytest.approx(15.0, abs=1e-6) and row["seeds"] == 2
    assert row["difference_high"] - row["difference"] > 12.7 * 5 - 1e-6  # t over the two differences, plus items


def test_outcomes_without_predictions_have_no_f1():
    rows = named([0, 1, 2], [0, 1, 2])
    del rows[1]["prediction"]
    with pytest.raises(InputError, match="item 'q1' has no prediction"):
        compare_f1({"cpt": {0: rows}})
    with pytest.raises(InputError, match="share their classes"):
        compare_f1({"cpt": {0: outcomes([1, 0])}})


# --- simulated truth: does 95 % mean 95 %? ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [235, 500, 1089, 1273])
@pytest.mark.parametrize("share", [0.25, 0.4, 0.5, 0.6, 0.75, 0.9])
def test_wilson_covers_what_it_says(n: int, share: float):
    assert abs(coverage.wilson_coverage(n, share) - 0.95) <= 0.015


@pytest.mark.parametrize(("n", "share"), [(240, 0.5), (240, 0.8), (1000, 0.6)])
def test_mcnemar_keeps_its_level(n: int, share: float):
    discordant, exact, mid = coverage.mcnemar_rejections(2000, n, share)
    assert discordant >= 60 and exact <= 0.05 and abs(mid - 0.05) <= 0.015


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("between", [0.0, 0.25])
def test_the_interval_of_several_seeds_covers_other_items_and_other_seeds(seeds: int, between: float):
    found = coverage.seeds_result(seeds, between, repetitions=500)
    assert found["rejected"] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 500)
    assert found["covered"] >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 500)


def test_seeds_alone_and_items_alone_would_not_cover():
    found = coverage.seeds_result(seeds=10, between=0.15, repetitions=1000)
    assert max(found["t_covered"], found["items_covered"]) < 0.93 < found["covered"]


def test_the_detectable_effect_of_several_seeds_is_found_four_times_in_five():
    generator = numpy.random.default_rng(0)
    spread = VarianceComponents(items=0.0004, seeds=0.0001, count=5)
    truth, seen = spread.detectable(), []
    for _ in range(2000):
        scatter = 0.0001 * generator.chisquare(4) / 4
        mean = generator.normal(truth, 0.0005**0.5)
        seen.append(abs(mean) > VarianceComponents(0.0004, scatter, 5).half())
    assert 0.75 <= numpy.mean(seen) <= 0.88


def test_the_bootstrap_of_f1_covers_nearly_what_it_says():
    found = coverage.f1_coverage("3 classes, 235 items", repetitions=200, draws=300)
    assert all(0.90 <= share <= 0.99 for share in found.values())  # the full table: tests/benchmarks/coverage.py
