"""Every benchmark runs at a tiny size and writes finite numbers; what is fast equals what is plain.

Nothing here looks at how long anything took, but for the clock itself.
"""

import json
import math
import os
import subprocess
import sys
import time
import tomllib
import venv
from importlib import import_module
from importlib.metadata import requires
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench import accuracy, common, crd, ensemble, losses, overhead, protocol, scaling, step
from bench import input as inputs
from bench.cache import Work
from bench.common import Sizes
from bench.protocol import Networks
from richkd import models, params
from richkd.base.files import write_json
from richkd.data.dataset import Split
from richkd.data.resident import ResidentSet
from richkd.data.views import Views
from richkd.teachers.fusion import Recipe, load_recipe, table_fingerprints

SIZES = Sizes(samples=60, batch_size=4, classes=5, negatives=8, dim=4)
SMALL = Networks("resnet8", "resnet8")
SMALL_CLIP = params.ClipTowers(
    embed_dim=8, image_size=32, vision_layers=(1, 1, 1, 1), vision_width=4, context_length=8,
    text_width=8, text_heads=1, text_layers=1,
)  # fmt: skip
TINY = {
    "input": {"images": 40, "batch_size": 8, "batches": 3, "workers": 2, "repeats": 2},
    "files": {
        "images": 12, "side": 80, "size": 32, "batch_size": 4, "workers": 1, "repeats": 2,
    },
    "crd": {"sizes": SIZES, "repeats": 2},
    "scaling": {
        "sizes": SIZES,
        "ranges": {
            "samples": [30, 60, 90], "batch_size": [2, 4, 8], "classes": [2, 3, 4, 5],
            "negatives": [4, 8, 16],
        },
        "repeats": 2,
    },
    "step": {
        "sizes": SIZES, "networks": SMALL, "steps": 1, "workers": 1, "repeats": 2,
        "changes": ["shared negatives", "deterministic"],
    },
    "epoch": {
        "sizes": SIZES, "networks": SMALL, "beside": (2,),
        "changes": {"eager": {"step": "eager"}}, "repeats": 2,
    },
    "cache": {"work": Work("resnet8", images=6, views=2, batch_size=4), "repeats": 2},
    "towers": {"model": SMALL_CLIP, "images": 4, "batch_size": 2, "repeats": 2},
    "parts": {"sizes": SIZES, "student": "resnet8"},
}  # fmt: skip
CPU = torch.device("cpu")
PROJECT = tomllib.loads((common.ROOT / "pyproject.toml").read_text())["project"]


def numbers(data):
    if isinstance(data, dict):
        return [x for value in data.values() for x in numbers(value)]
    assert isinstance(data, (int, float, str)), f"{data!r} has no place in a metrics file"
    return [] if isinstance(data, str) else [data]


@pytest.mark.parametrize("name", TINY)
def test_it_writes_finite_numbers_and_what_they_were_measured_on(name, here, capsys):
    import_module(f"bench.{name}").main(**TINY[name])
    written = json.loads((here / f"{common.folder()}/{name}.json").read_text())
    assert all(map(math.isfinite, numbers(written)))
    assert {"device", "processor", "threads", "versions", "date", "commit"} <= written.keys()
    printed = capsys.readouterr().out
    assert all(f"\n{row} " in printed for row in written["rows"])


def test_scaling_draws_every_range(here):
    scaling.main(**TINY["scaling"] | {"repeats": 1})
    assert (here / f"{common.folder()}/scaling.png").read_bytes().startswith(b"\x89PNG")


def with_what_they_need(names):
    """The packages, and all that they require here, by their normal names."""
    found, left = set(), {canonicalize_name(name) for name in names}
    while left:
        found.add(name := left.pop())
        wanted = (Requirement(text) for text in requires(name) or [])
        here = (x for x in wanted if not x.marker or x.marker.evaluate({"extra": ""}))
        left |= {canonicalize_name(x.name) for x in here} - found
    return found


def test_a_bare_machine_lacks_all_that_is_needed_but_torch_and_dvc(tmp_path):
    """In a Python of its own that has nothing installed."""
    venv.create(tmp_path, with_pip=False)
    done = subprocess.run(
        ["bash", common.ROOT / "bench/gpu.sh", "--wheels"],
        env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}, capture_output=True, text=True,
    )  # fmt: skip
    direct = {Requirement(text).name for text in PROJECT["dependencies"]}
    there = {"torch", "torchvision"}
    expected = with_what_they_need(
        {"pytest", "hypothesis", *direct} - there - {"dvc"}
    ) - with_what_they_need(there)
    lines = done.stdout.split()
    assert done.returncode == 0 and all("==" in line for line in lines)
    assert {canonicalize_name(line.partition("==")[0]) for line in lines} == expected


@pytest.mark.parametrize("power", [0, 1, 2.5])
def test_the_exponent_is_that_of_the_upper_half(power):
    x = [1, 2, 4, 8]
    assert scaling.exponent(x, [9, 9, 4**power, 8**power]) == pytest.approx(power)


def test_milliseconds_have_an_exponent_like_seconds(here, monkeypatch):
    times = {f"negatives {n}{way}": [n / 1e6] for n in (4, 8, 16) for way in ("", ", shared")}
    monkeypatch.setattr(scaling, "alternate", lambda cases, repeats: times)
    rows = scaling.vary("negatives", [4, 8, 16], SIZES, 1, CPU)
    assert rows["negatives 16"]["step_s_exponent"] == pytest.approx(1)


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


# --- step, epoch --------------------------------------------------------------------------------


def made(images=16):
    return protocol.Protocol(SIZES._replace(batch_size=8), images, 6, CPU)


def test_a_stepper_takes_as_many_steps_of_each_run_as_it_says():
    shared = made()
    runs = [shared.run("resnet8", "LF", seed=seed) for seed in (0, 1)]
    case = protocol.stepper(runs, 3)  # two are an epoch
    before = [run.model.fc.weight.detach().clone() for run in runs]
    case()
    assert [sum(run.seen.values()) for run in runs] == [3, 3]
    assert [len(run.history) for run in runs] == [1, 1]
    assert list(runs[0].history[0]) == ["epoch", "loss", "ce", "kd", "crd", "train_accuracy"]
    assert not any(torch.equal(run.model.fc.weight, w) for run, w in zip(runs, before))


@pytest.mark.parametrize("variant", ["ce", "kd", "L", "F", "LF"])
def test_the_protocol_has_every_variants_terms(variant):
    terms = {"ce": [], "kd": ["kd"], "L": ["kd"], "F": ["crd"], "LF": ["kd", "crd"]}
    assert list(made().run("resnet8", variant).objective.terms) == terms[variant]


@pytest.fixture
def steps():
    """Our LF step, the plain one of the same weights, and what both run on."""
    data, online = made(), models.create("resnet8", SIZES.classes).eval()
    data.teacher.parts["features"] = torch.zeros(162, 16, 64, dtype=torch.float16)
    ours = data.run("resnet8", "LF")
    return ours, step.PlainStep(ours, online, data), data


def test_the_plain_step_has_the_loss_of_ours(steps):
    assert step.agree(*steps) < step.TOLERANCE


def test_step_stops_where_the_losses_differ(steps):
    ours, plain, data = steps
    plain.crd_weight = 0.9
    with pytest.raises(ValueError, match="on the same inputs our loss is"):
        step.agree(ours, plain, data)


# --- accuracy, overhead -------------------------------------------------------------------------


def test_accuracy_changes_one_param_and_puts_it_back(here, monkeypatch):
    trained = []

    def distill(folder, *words):
        params = yaml.safe_load((here / "params.yaml").read_text())
        crd = params["distill"]["variants"]["F"]["crd"]
        trained.append((words[-1], params["distill"]["seeds"], params["runtime"], crd))
        values = {f"seed{seed}": 0.9 + 0.01 * seed for seed in (0, 1)}
        (here / "metrics/train").mkdir(parents=True, exist_ok=True)
        (here / "metrics/train/F.json").write_text(json.dumps({"validation_accuracy": values}))

    text = (common.ROOT / "params.yaml").read_text()
    (here / "params.yaml").write_text(text)
    monkeypatch.setattr(accuracy, "command", distill)
    tricks = [{key.format("F"): value} for key, value in accuracy.TRICKS.values()]
    for changes in (None, *tricks):
        found = accuracy.train(here, "F", (0, 1), changes)
        assert found == pytest.approx({"seed0": 90, "seed1": 91})
        assert (here / "params.yaml").read_text() == text
    assert all((name, seeds) == ("F", [0, 1]) for name, seeds, *_ in trained)
    told = [(runtime["precision"], crd["negatives"]) for *_, runtime, crd in trained]
    assert told == [("fp32", "auto"), ("bf16", "auto"), ("fp32", "shared")]


def test_a_second_teacher_takes_clips_place(here, monkeypatch):
    for place, name in product(("models", "cache"), ("teacher", "clip")):
        write_json(f"{place}/{name}/cache.json", {"of": f"the {name}"})
    text = (common.ROOT / "params.yaml").read_text()
    (here / "params.yaml").write_text(text)

    def train_or_cache(folder, *words):
        params = yaml.safe_load((here / "params.yaml").read_text())
        place = {"stages.teacher": "models", "stages.cache": "cache"}[words[2]]
        write_json(f"{place}/teacher/cache.json", {"of": f"seed {params['teacher']['seed']}"})

    monkeypatch.setattr(ensemble, "command", train_or_cache)
    ensemble.replace_clip(here, 7)
    assert (here / "params.yaml").read_text() == text
    for place in ("models", "cache"):
        for name, maker in {"clip": "seed 7", "teacher": "the teacher"}.items():
            assert json.loads((here / place / name / "cache.json").read_text()) == {"of": maker}
    assert load_recipe() == Recipe(0.5, 0.5, {"teacher": 1.0, "clip": 1.0}, table_fingerprints())


def test_losses_are_compared_with_kd_seed_by_seed():
    def results(**top1):
        rows = [
            (model, seed, metric, value if metric == "top1" else 0.5)
            for model, values in top1.items()
            for seed, value in enumerate(values)
            for metric in losses.HEADLINE
        ]
        return pd.DataFrame(rows, columns=["model", "seed", "metric", "value"])

    raw = results(ce=(0.5, 0.6), kd=(0.7, 0.8), C=(0.8, 0.9), L=(0.71, 0.79))
    aligned = results(ce=(0.5, 0.6), kd=(0.7, 0.8), C=(0.8, 0.9), L=(0.6, 0.9))
    teachers = {"kd": "teacher", "C": "clip", "L": "fused"}
    same = {"raw": teachers, "aligned": teachers}
    _, _, ce, kd, clip, first, second = losses.table({"raw": raw, "aligned": aligned}, same)
    assert ce.startswith("| `ce` | none | 55.0 (**−20.0 ± 0.0**) | 50.0 (+0.0 ± 0.0) |")
    assert kd.startswith("| `kd` | teacher | 75.0 | 50.0 |")
    assert clip.startswith("| `C` | clip | 85.0 (**+10.0 ± 0.0**) |")
    # Differences of +1 and −1 points, then of −10 and +10: means 0, errors 1 and 10.
    assert first.startswith("| `L` | fused, raw | 75.0 (+0.0 ± 1.0) |")
    assert second.startswith("| `L` | fused, aligned | 75.0 (+0.0 ± 10.0) |")


def test_losses_are_read_from_the_commit_of_an_experiment(here, monkeypatch, capsys):
    rows = [f"{model},0,{metric},0.5" for model in ("ce", "kd") for metric in losses.HEADLINE]
    (here / "metrics").mkdir()
    (here / "metrics/results.csv").write_text("\n".join(["model,seed,metric,value", *rows]))
    (here / "params.yaml").write_text("distill: {variants: {kd: {teacher: teacher}}}")
    who = ["-c", "user.name=x", "-c", "user.email=x@x"]
    for words in (
        ["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"], ["git", "add", "-A"],
        ["git", *who, "commit", "-qm", "x"], ["git", "tag", "raw"],
    ):  # fmt: skip
        subprocess.run(words, check=True)
    (here / "metrics/results.csv").write_text("changed since")
    monkeypatch.setattr(sys, "argv", ["losses", "raw"])
    losses.main()
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| `ce` | none | 50.0 (+0.0) | 50.0 (+0.0) | 50.0 (+0.0) | 0.500 (+0.000) | 50.0 (+0.0) |",
        "| `kd` | teacher | 50.0 | 50.0 | 50.0 | 0.500 | 50.0 |",
    ]


def test_overhead_tells_stages_from_what_dvc_does_besides(monkeypatch):
    lines = [
        (1.0, "start"), (3.0, "Running stage 'a':"), (7.0, "Updating lock file 'dvc.lock'"),
        (8.0, "Running stage 'b@L':"), (13.0, "Updating lock file 'dvc.lock'"),
        (14.0, "Stage 'c' didn't change, skipping"), (20.0, ""),
    ]  # fmt: skip
    monkeypatch.setattr(overhead, "timed", lambda *_: lines)
    seconds = overhead.by_stage("folder")
    assert seconds == {overhead.START: 3.0, "a": 4.0, overhead.CHECKS: 8.0, "b@L": 5.0}
    assert sum(seconds.values()) == 20.0


@pytest.mark.parametrize(
    ("preset", "alpha", "line"),
    [
        ("cifar100", 0.5, "params.yaml has cifar100: this measures digits"),
        ("digits", "auto", "fusion.alpha is auto already"),
        ("digits", 0.5, "no data, cache, models, .*: run `dvc repro` first"),
    ],
)
def test_overhead_stops_before_any_work(here, monkeypatch, preset, alpha, line):
    monkeypatch.setattr(overhead, "ROOT", here)
    (here / "params.yaml").write_text((common.ROOT / f"presets/{preset}.yaml").read_text())
    with pytest.raises(SystemExit, match=line):
        overhead.main(alpha=alpha)


def test_overhead_stops_where_a_stage_is_not_up_to_date(here, monkeypatch):
    monkeypatch.setattr(overhead, "ROOT", here)
    (here / "params.yaml").write_text((common.ROOT / "presets/digits.yaml").read_text())
    monkeypatch.setattr(overhead, "clone", lambda folder: None)
    monkeypatch.setattr(overhead, "command", lambda *_: "Running stage 'fusion':\n")
    with pytest.raises(SystemExit, match="fusion not up to date"):
        overhead.main()


def test_overhead_stops_where_a_command_fails():
    with pytest.raises(SystemExit, match="exit 3 failed:\nsaid"):
        overhead.timed(".", "sh", "-c", "echo said; exit 3")


# --- input --------------------------------------------------------------------------------------


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8), np.array([5, 6, 7]))


def resident(images, pad):
    return ResidentSet(images, inputs.PREPROCESSING, Views(32, 32, pad, flip=True), CPU)


def test_torchvision_gives_one_of_our_views(images):
    inputs.agree(inputs.PlainImages(images), resident(images, 4))


def test_input_stops_where_another_view_or_label_comes(images):
    plain = inputs.PlainImages(images)
    torch.manual_seed(0)  # one crop of 81 is the one without pad
    with pytest.raises(ValueError, match="image 0: no view is within"):
        inputs.agree(plain, resident(images, 0))
    other = images._replace(labels=images.labels + 1)
    with pytest.raises(ValueError, match="image 0 has label 5, in the set 6"):
        inputs.agree(plain, resident(other, 4))


# --- crd ----------------------------------------------------------------------------------------


@pytest.fixture
def problem():
    return crd.Problem(SIZES, CPU)


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
