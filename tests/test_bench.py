"""Every benchmark runs at a tiny size and writes finite numbers; what is fast equals what is plain.

Nothing here looks at how long anything took.
"""

import json
import math
import time
from importlib import import_module

import numpy as np
import pytest
import torch

from bench import common, crd, scaling
from bench import input as inputs
from richkd.dataset import Split
from richkd.engine import ResidentSet
from richkd.views import Views

TINY = {
    "input": {"images": 40, "batch_size": 8, "batches": 3, "workers": 2, "repeats": 2},
    "crd": {"samples": 60, "negatives": 8, "batch_size": 4, "dim": 4, "classes": 5, "repeats": 2},
    "scaling": {
        "base": {"samples": 60, "batch_size": 4, "classes": 5, "negatives": 8},
        "ranges": {
            "samples": [30, 60, 90], "batch_size": [2, 4, 8], "classes": [2, 3, 4, 5],
            "negatives": [4, 8, 16],
        },
        "dim": 4,
        "repeats": 2,
    },
    "step": {
        "teacher": "resnet8", "student": "resnet8", "samples": 40, "negatives": 8, "dim": 4,
        "batch_size": 4, "steps": 1, "workers": 1, "repeats": 2,
    },
    "cache": {"arch": "resnet8", "images": 6, "held": 2, "batch_size": 4, "repeats": 2},
}  # fmt: skip
CPU = torch.device("cpu")


def numbers(data):
    if isinstance(data, dict):
        return [x for value in data.values() for x in numbers(value)]
    assert isinstance(data, (int, float, str)), f"{data!r} has no place in a metrics file"
    return [] if isinstance(data, str) else [data]


@pytest.mark.parametrize("name", TINY)
def test_it_writes_finite_numbers_and_what_they_were_measured_on(name, here, capsys):
    import_module(f"bench.{name}").main(**TINY[name])
    written = json.loads((here / f"metrics/bench/{name}.json").read_text())
    assert all(map(math.isfinite, numbers(written)))
    assert {"device", "processor", "threads", "versions", "date", "commit"} <= written.keys()
    printed = capsys.readouterr().out
    assert all(f"\n{row} " in printed for row in written["rows"])


def test_scaling_draws_every_range(here):
    scaling.main(**TINY["scaling"])
    assert (here / "metrics/bench/scaling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("power", [0, 1, 2.5])
def test_the_exponent_is_that_of_the_upper_half(power):
    x = [1, 2, 4, 8]
    assert scaling.exponent(x, [9, 9, 4**power, 8**power]) == pytest.approx(power)


def test_cases_take_turns_after_one_call_each():
    calls = []
    times = common.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "abababab"
    assert {name: len(each) for name, each in times.items()} == {"a": 3, "b": 3}


def test_a_spread_and_a_speedup():
    assert common.spread("s", [3, 1, 7]) == {"s": 3, "s_min": 1, "s_max": 7}
    assert common.speedup([8, 8, 6], [1, 2, 2]) == {"ratio": 4, "ratio_min": 3, "ratio_max": 8}


def test_seconds_are_those_of_the_call():
    assert common.seconds(lambda: time.sleep(0.02)) >= 0.02


def test_peak_memory_counts_what_is_freed_again_and_not_what_was_there():
    there = torch.ones(64, common.MIB, dtype=torch.uint8)

    def case():
        for _ in range(2):  # one after the other: not added up
            torch.ones(32, common.MIB, dtype=torch.uint8)
        return there

    assert common.peak_memory(case) == pytest.approx(32, abs=2)
    assert common.peak_memory(lambda: None) < 2


# --- input --------------------------------------------------------------------------------------


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8), np.array([5, 6, 7]))


def resident(images, pad):
    return ResidentSet(images, inputs.MEAN, inputs.STD, Views(32, 32, pad, flip=True), CPU)


def test_torchvision_gives_one_of_our_views(images):
    inputs.agree(inputs.PlainImages(images), resident(images, 4))


def test_input_stops_where_another_view_or_label_comes(images):
    plain = inputs.PlainImages(images)
    torch.manual_seed(0)  # one crop of 81 is the one without pad
    with pytest.raises(ValueError, match="image 0: no view is within"):
        inputs.agree(plain, resident(images, 0))
    other = images._replace(labels=images.labels + 1)
    with pytest.raises(ValueError, match="image 0"):
        inputs.agree(plain, resident(other, 4))


# --- crd ----------------------------------------------------------------------------------------


@pytest.fixture
def problem():
    return crd.Problem(samples=60, negatives=8, batch_size=4, dim=4, classes=5, device=CPU)


def test_plain_contrast_equals_ours_and_moves_the_same_banks(problem):
    plain = crd.PlainMemory(problem.memory, problem.labels.numpy())
    before = problem.memory.student_bank.clone()
    assert crd.agree(problem, plain) < 1e-5
    assert not torch.equal(problem.memory.student_bank, before)
    for actual, expected in zip(
        plain.banks, (problem.memory.teacher_bank, problem.memory.student_bank)
    ):
        torch.testing.assert_close(actual, expected)


def test_crd_stops_where_they_differ(problem):
    plain = crd.PlainMemory(problem.memory, problem.labels.numpy())
    plain.temperature = 0.08
    with pytest.raises(ValueError, match="ours and the plain way differ by"):
        crd.agree(problem, plain)


def test_plain_negatives_are_of_other_classes(problem):
    drawn = crd.PlainMemory(problem.memory, problem.labels.numpy()).draw(problem.ids)
    assert drawn.shape == (4, 8) and drawn.dtype == torch.int64
    assert (problem.labels[drawn] != problem.labels[problem.ids][:, None]).all()
