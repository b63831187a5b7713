"""Intervals, power and verdicts: against SciPy's own tests, textbook values and simulation."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from transfer.statistics import Interval, holm, power, runs_needed, seed_difference, verdict


def runs(*values, first=0):
    return {first + seed: value for seed, value in enumerate(values)}


def test_other_seeds_give_welchs_interval():
    ours, theirs = runs(0.72, 0.75, 0.74), runs(0.70, 0.71, 0.69, 0.705, first=10)
    found = seed_difference(ours, theirs)
    reference = stats.ttest_ind(list(ours.values()), list(theirs.values()), equal_var=False)
    interval = reference.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(interval))
    assert found.p == pytest.approx(reference.pvalue)
    assert not found.paired and found.runs == (3, 4)


def test_the_same_seeds_are_paired():
    ours, theirs = runs(0.72, 0.75, 0.74), runs(0.70, 0.74, 0.71)
    found = seed_difference(ours, theirs)
    reference = stats.ttest_rel(list(ours.values()), list(theirs.values()))
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval(0.95)))
    assert found.p == pytest.approx(reference.pvalue)
    assert found.paired
    shuffled = {seed: theirs[seed] for seed in (2, 0, 1)}
    assert seed_difference(ours, shuffled) == found, 'seeds belong together, whatever their order'


def test_a_single_run_has_no_interval():
    assert seed_difference(runs(0.7), runs(0.6, 0.7)) is None


def test_images_widen_the_interval_by_their_own():
    seeds = seed_difference(runs(0.72, 0.75, 0.74), runs(0.70, 0.74, 0.71))
    both = replace(seeds, image_error=0.02)
    assert both.reach == pytest.approx(math.hypot(seeds.reach, 1.959964 * 0.02))
    images = Interval(0.03, 0.0, math.inf, (1, 1), image_error=0.02)
    assert images.p == pytest.approx(2 * stats.norm.sf(1.5))


def test_runs_that_agree_by_chance_are_no_surer_than_the_images_let_them_be():
    seeds = replace(seed_difference(runs(0.742, 0.75, 0.744), runs(0.70, 0.709, 0.703)), images=50)
    lucky = replace(seeds, image_error=0.003, luck=0.02)
    assert lucky.reach == pytest.approx(stats.t.ppf(0.975, 49) * math.hypot(0.003, 0.02))
    usual = replace(lucky, luck=0.5 * seeds.error)
    assert usual.reach == replace(usual, luck=0.0).reach, (
        'where they scatter as they should it changes nothing'
    )
    assert runs_needed(0.02, lucky) > 10 > runs_needed(0.02, usual) == runs_needed(0.02, seeds) == 2


@pytest.mark.parametrize(
    'image_error, luck', [(0.0, 0.0), (0.004, 0.0), (0.02, 0.0), (0.0, 0.02), (0.004, 0.01)]
)
def test_p_is_below_5_percent_where_the_interval_excludes_zero(image_error, luck):
    for value in (0.001, 0.01, 0.03, 0.2):
        one = Interval(value, 0.005, 4, (5, 5), True, image_error, luck)
        assert (one.p < 0.05) == (one.low > 0)
        just = replace(one, level=1 - one.p)
        assert just.low == pytest.approx(0, abs=1e-6)


def test_few_images_widen_the_interval_as_few_runs_do():
    difference = np.random.default_rng(0).normal(0.01, 0.03, 4)
    error = difference.std(ddof=1) / 2
    few = Interval(difference.mean(), 0.0, math.inf, (1, 1), image_error=error, images=4)
    known = stats.ttest_1samp(difference, 0)
    assert (few.low, few.high) == pytest.approx(tuple(known.confidence_interval()))
    assert few.p == pytest.approx(known.pvalue)


def test_runs_without_any_scatter():
    same = seed_difference(runs(0.5, 0.5), runs(0.5, 0.5))
    assert (same.p, same.low, same.high) == (1.0, 0.5 - 0.5, 0.0)
    apart = seed_difference(runs(0.6, 0.6), runs(0.5, 0.5))
    assert apart.p == 0.0 and power(0.1, apart, 2) == 1.0
    assert runs_needed(0.1, apart) == 2


@pytest.mark.parametrize('paired', [False, True])
def test_power_is_how_often_simulated_runs_find_the_difference(paired):
    rng = np.random.default_rng(0)
    number, scatter, true = 6, 0.005, 0.008
    pilot = Interval(true, scatter * math.sqrt(2 / number), 2 * (number - 1), (number, number), paired)
    df = (1 if paired else 2) * (number - 1)
    shift = true / pilot.error
    exact = stats.nct.sf(stats.t.ppf(0.975, df), df, shift) + stats.nct.cdf(
        -stats.t.ppf(0.975, df), df, shift
    )
    assert power(true, pilot, number) == pytest.approx(exact, abs=1e-3)
    ours, theirs = rng.normal(true, scatter, (4000, number)), rng.normal(0, scatter, (4000, number))
    test = stats.ttest_rel if paired else stats.ttest_ind
    rate = (test(ours, theirs, axis=1).pvalue < 0.05).mean()
    assert power(true, pilot, number) == pytest.approx(rate, abs=3 * math.sqrt(rate * (1 - rate) / 4000))


def test_runs_needed_is_the_least_number_with_that_power():
    pilot = seed_difference(runs(0.720, 0.731, 0.725), runs(0.721, 0.724, 0.728, first=5))
    needed = runs_needed(0.003, pilot)
    assert power(0.003, pilot, needed) >= 0.8 > power(0.003, pilot, needed - 1)
    assert runs_needed(0.0, pilot) is None
    assert runs_needed(1e-9, pilot) is None
    assert runs_needed(0.5, pilot) == 2


def test_textbook_sample_size():
    """Two groups of s.d. 1 and a difference of 1: 17 each for 80% power at 5% (Cohen 1988, d = 1)."""
    pilot = Interval(0.0, math.sqrt(2 / 10), 18, (10, 10))
    assert runs_needed(1.0, pilot) == 17


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def interval(value, error, df=8.0, counts=(5, 5), image_error=0.0):
    return Interval(value, error, df, counts, image_error=image_error)


def test_verdicts_in_words():
    better = verdict('SD', 'mAP', interval(0.013, 0.003))
    assert better.text == 'SD better: +1.3 mAP, 95% CI [0.6, 2.0], 5+5 runs'
    assert verdict('SD', 'mAP', interval(-0.013, 0.003)).kind == 'worse'
    pilot = interval(0.003, 0.0035)
    said, needed = verdict('SD', 'mAP', pilot), runs_needed(0.003, pilot)
    assert said.kind == 'not resolved' and needed > 5
    assert said.text.endswith(f'5+5 runs; about {needed} runs each would resolve a true +0.3')


def test_a_verdict_shows_on_which_side_of_no_difference_its_numbers_lie():
    images = {'error': 0.0, 'df': math.inf, 'counts': (1, 1)}
    at_the_edge = verdict('SD', 'mAP', interval(0.0051, image_error=0.0025, **images))
    assert at_the_edge.text.startswith('SD better: +0.51 mAP, 95% CI [0.02, 1.00] over')
    beyond = verdict('SD', 'mAP', interval(0.0049, image_error=0.00251, **images))
    assert beyond.text.startswith('SD not resolved: +0.490 mAP, 95% CI [-0.002, 0.982] over')
    small = verdict('SD', 'mIoU', interval(-0.0002, 0.001))
    assert small.text.startswith('SD not resolved: -0.02 mIoU, 95% CI [-0.25, 0.21]')
    assert 'would resolve a true -0.02' in small.text
    assert verdict('SD', 'mIoU', interval(0.0, 0.001)).text.startswith(
        'SD not resolved: +0.0 mIoU, 95% CI [-0.2,'
    )


def test_a_verdict_says_where_more_test_images_would_save_runs():
    pilot = interval(0.01, 0.008, df=4.0, counts=(3, 3))
    some_images = replace(pilot, image_error=0.00355)
    needed, few = runs_needed(0.01, some_images, some_images.image_error), runs_needed(0.01, pilot)
    assert needed > 10 * few
    assert verdict('SD', 'mAP', some_images).text.endswith(
        f'about {needed} runs each would resolve a true +1.0, with many more test images about {few}'
    )
    assert 'more test images' not in verdict('SD', 'mAP', replace(pilot, image_error=0.0001)).text


def test_verdicts_that_more_runs_would_not_change():
    few_images = interval(0.003, 0.0001, image_error=0.01)
    for one in (few_images, interval(0.0, 0.001)):
        said = verdict('SD', 'mAP', one)
        assert said.text.endswith('cannot be resolved on these test images, by any number of runs')


def test_verdicts_with_one_run_each():
    images = Interval(0.013, 0.0, math.inf, (1, 1), image_error=0.003)
    said = verdict('SD', 'mAP', images)
    assert said.kind == 'better' and 'over test images only; a single run' in said.text
    assert verdict('SD', 'mAP', None).kind == 'unknown'
