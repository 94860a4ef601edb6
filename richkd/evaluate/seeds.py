"""Means and standard deviations over seeds, in the shape DVC's metrics like."""

from collections.abc import Mapping
from statistics import mean, stdev


def summarize(results: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """`{seed: {metric: value}}` to `{metric: {mean, sd, seed: value, ...}}`.

    sd is the sample standard deviation; it is left out where there is one seed.
    """
    summary = {}
    for metric in next(iter(results.values())):
        values = {seed: result[metric] for seed, result in results.items()}
        spread = {"sd": stdev(values.values())} if len(values) > 1 else {}
        summary[metric] = {"mean": mean(values.values()), **spread, **values}
    return summary
