"""Figures with their uncertainty, for the benches: quantiles, and intervals of shares and of anything else."""
import math

import numpy

CONFIDENCE_Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations
DRAWS = 1000


def wilson(hits, runs):
    """95 % interval of a share of runs (Wilson's): also right where it was none or all of them."""
    if not 0 <= hits <= runs or runs < 1:
        raise ValueError("no share: %s of %s runs" % (hits, runs))
    z2 = CONFIDENCE_Z ** 2
    middle = (hits + z2 / 2) / (runs + z2)
    half = CONFIDENCE_Z / (runs + z2) * math.sqrt(hits * (runs - hits) / runs + z2 / 4)
    # Where it was none or all, the bound is exactly 0 or 1; floating point would leave a speck.
    return [0.0 if hits == 0 else max(0.0, middle - half), 1.0 if hits == runs else min(1.0, middle + half)]


def quantile(values, share):
    """By the nearest rank, so that it is one of the values; None of none."""
    if not len(values):
        return None
    ordered = numpy.sort(numpy.asarray(values, float))
    return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))])


def mean(values):
    return float(numpy.mean(values)) if len(values) else None


def bootstrap_of(things, figure, draws=DRAWS, seed=1):
    """95 % interval of figure(things), a list of anything, by drawing them again; None of fewer than two."""
    if len(things) < 2:
        return None
    generator = numpy.random.default_rng(seed)
    drawn = [figure([things[i] for i in generator.integers(0, len(things), len(things))]) for _ in range(draws)]
    return [float(bound) for bound in numpy.quantile(drawn, (0.025, 0.975))]


def bootstrap(runs, figure, draws=DRAWS, seed=1):
    """95 % interval of figure(values of all runs together), by drawing whole runs again: the values of a run (its
    steps) are not independent of each other. `runs`: one list of values a run. None where there is only one run."""
    runs = [numpy.asarray(run, float) for run in runs if len(run)]
    return bootstrap_of(runs, lambda drawn: figure(numpy.concatenate(drawn)), draws, seed)
