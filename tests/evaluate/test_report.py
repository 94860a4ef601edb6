"""The report of small synthetic experiments: its numbers, its sentences, what a browser needs."""

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import trees
import yaml
from PIL import Image

from richkd.base.files import replacing, write_array, write_json
from richkd.base.revision import Commit
from richkd.data.dataset import SHIFTED, Info, Manifest, Split, load_split, save_info, save_split
from richkd.evaluate import plots, report
from richkd.evaluate.examples import picture_uri
from richkd.evaluate.scores import ALEXNET, LARGEST, score
from richkd.evaluate.seeds import Difference, summarize
from richkd.evaluate.summary import (
    CHOICE_METRICS,
    TEACHERS,
    Summary,
    Values,
    best_students,
    differences,
    read_summary,
)
from stages import calibrate
from stages import report as stage

Variants = dict[str, dict[str, Any]]

ROOT = Path(__file__).parents[2]
LOGITS = {"kd": {"weight": 3.0, "temperature": 3.0}}
FEATURES = {
    "crd": {
        "weight": 0.1, "dim": 64, "num_negatives": 128, "negatives": "auto", "temperature": 0.07,
        "momentum": 0.5,
    }
}  # fmt: skip
KD = {"teacher": "teacher", **LOGITS}
L = {"teacher": "fused", **LOGITS}
F = {"teacher": "fused", **FEATURES}
LF = {"teacher": "fused", **LOGITS, **FEATURES}
UNDER_CLIP = {"teacher": "clip", **LOGITS}
FULL: dict[str, Any] = {"variants": {"kd": KD, "L": L, "F": F, "LF": LF}, "seeds": [0, 3]}
SMALL: dict[str, Any] = {"variants": {"kd": KD, "L": L}, "seeds": [2]}
CIFAR: dict[str, Any] = {
    "name": "cifar100", "urls": ["https://example.org/cifar"], "archive": None, "sha256": None,
    "train_per_class": "all", "captioned_images": 1234, "seed": 0,
}  # fmt: skip
READY: dict[str, Any] = {"arch": "resnet32x4", "min_accuracy": 0.5}
MDISTILLER: dict[str, Any] = READY | {
    "source": "mdistiller",
    "urls": ["https://example.org/t"],
    "sha256": None,
}
CHECKPOINT: dict[str, Any] = READY | {
    "source": "checkpoint", "path": "teacher.pth", "sha256": "0" * 64, "mean": [0.5] * 3,
    "std": [0.2] * 3,
}  # fmt: skip
TORCHVISION: dict[str, Any] = {
    "source": "torchvision",
    "arch": "resnet50",
    "weights": "IMAGENET1K_V2",
    "min_accuracy": 0.5,
}
PROMPTING: dict[str, Any] = {"prompts": "imagenet80", "logit_scale": "model"}
PRETRAINED: dict[str, Any] = PROMPTING | {
    "source": "pretrained",
    "model": "ViT-L-14",
    "tag": "openai",
}
LOCAL_CLIP: dict[str, Any] = PROMPTING | {
    "source": "checkpoint", "model": "ViT-B-32", "tag": None, "path": "clip.pt",
    "sha256": "0" * 64,
}  # fmt: skip
NAMES = ['<b>two</b> & "more"', *(f"class {i}" for i in range(9))]


def experiment(
    variants: Variants, seeds: list[int], names: Sequence[str] = ("frost", "fog"),
    severities: Sequence[int] = (3,), validation: int = 30,
    shifted: dict[str, Any] | None = None, **sections: Any,
) -> None:  # fmt: skip
    """Everything the report reads, below the working directory; random, the same each time.

    `variants` are those of params.yaml, `names` and `severities` those of the corruptions. With no
    names the experiment is as if the corrupted images were skipped. `shifted` has further test sets
    by name: their classes, or why they were skipped. `sections` replace those of the preset digits.
    """
    rng, shifted = np.random.default_rng(0), shifted or {}
    params = yaml.safe_load((ROOT / "presets/digits.yaml").read_text()) | sections
    params["distill"] = {"seeds": seeds, "variants": variants}
    sets = {"names": list(names) or ["fog"], "severities": list(severities)}
    params["corruptions"] = params["corruptions"] | sets
    params["fusion"]["alpha"] = 0.25  # not on the grid
    # Through JSON, so that sections used twice become two, not an alias, which is refused.
    Path("params.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(params)), sort_keys=False))

    dataset = params["dataset"]["name"]
    save_info("data/info.json", Info(name=dataset, classes=NAMES, mean=[0.5] * 3, std=[0.2] * 3))
    labels = {"validation": rng.integers(10, size=validation), "test": np.arange(40) % 10}
    further_sets(rng, shifted)
    side = 16 if dataset == "digits" else 32
    for name, values in {**labels, "train": np.arange(1050) % 10}.items():
        images = rng.integers(256, size=(len(values), side, side, 3), dtype=np.uint8)
        save_split(f"data/{name}.safetensors", Split(images, values))

    for model in [*TEACHERS, "ce", *variants]:
        runs = [0] if model in TEACHERS else seeds
        shape = len(names), len(severities)
        predictions(rng, model, labels, runs, shape, shifted)
        score(model, labels["test"], names, severities, dataset == "imagenet")
        calibrate.main(model)
        ready_made = model == "teacher" and params["teacher"]["source"] != "train"
        measured = [] if ready_made else ["train_accuracy"]
        measured += ["validation_accuracy"] if validation else []
        if model not in ("clip", "fused"):
            results = {f"seed{seed}": {key: rng.random() for key in measured} for seed in runs}
            write_json(f"metrics/train/{model}.json", summarize(results))
            terms = ["ce", *(name for name in variants.get(model, ()) if name != "teacher")]
            curves(rng, model, [] if ready_made else runs, terms, validation)
        if model != "fused":
            for seed in runs:
                versions = {"python": "3.11.7", "torch": "2.11"}
                record = {"seed": seed, "device": "cpu", "threads": 2, "versions": versions}
                record["saved_together"] = [f"seed{x}" for x in runs]
                write_json(f"models/{model}/seed{seed}.json", record)
                Path(f"models/{model}/seed{seed}.safetensors").touch()
    teachers(rng, validation)


def further_sets(rng: np.random.Generator, shifted: dict[str, Any]) -> None:
    """What `shift` writes: seven images of each class."""
    found: dict[str, dict[str, Any]] = {}
    for name, classes in shifted.items():
        if isinstance(classes, str):
            found[name] = {"skipped": classes}
            continue
        truth = np.repeat(classes, 7)
        found[name] = {"images": len(truth), "classes": classes}
        images = rng.integers(256, size=(len(truth), 8, 8, 3), dtype=np.uint8)
        save_split(SHIFTED / f"{name}.safetensors", Split(images, truth))
    write_json(SHIFTED / "sets.json", found)


def predictions(
    rng: np.random.Generator,
    model: str,
    labels: dict[str, np.ndarray],
    runs: Sequence[int],
    shape: tuple[int, int],
    shifted: dict[str, Any],
) -> None:
    write_json(f"predictions/{model}/seeds.json", [f"seed{i}" for i in runs])

    def logits(truth: np.ndarray, *leading: int) -> np.ndarray:
        noise = rng.normal(size=(len(runs), *leading, len(truth), 10)) * 2
        noisy: np.ndarray = (np.eye(10)[truth] * 3 + noise).astype(np.float32)
        return noisy

    write_array(f"predictions/{model}/validation.npy", logits(labels["validation"]))
    write_array(f"predictions/{model}/test.npy", logits(labels["test"]))
    corrupted = logits(labels["test"], *shape).astype(np.float16)
    write_array(f"predictions/{model}/corrupted.npy", corrupted)
    for name, classes in shifted.items():
        if not isinstance(classes, str):
            write_array(f"predictions/{model}/shifted/{name}.npy", logits(np.repeat(classes, 7)))


def curves(
    rng: np.random.Generator, model: str, runs: Any, terms: list[str], validation: int
) -> None:
    """Four epochs a seed, validation every other one; without a run the header alone."""
    rows = pd.DataFrame({"epoch": [1, 2, 3, 4] * len(runs), "seed": np.repeat(runs, 4)})
    losses = {term: rng.random(len(rows)) for term in ["loss", *terms]}
    measured = (rows.epoch % 2 == 0) & bool(validation)
    accuracy = np.where(measured, rng.random(len(rows)), np.nan)
    table = rows.assign(**losses, validation_accuracy=accuracy)
    if not runs:
        table = table[["epoch", "validation_accuracy", "seed"]]
    with replacing(f"metrics/curves/{model}.csv") as part:
        table.to_csv(part, index=False)


def teachers(rng: np.random.Generator, validation: int) -> None:
    """What `fusion` and `cache` write."""
    keys = "accuracy nll ece semantic_closeness".split() + list(report.QUADRANTS)
    fusion = {model: dict(zip(keys, rng.random(len(keys)), strict=True)) for model in TEACHERS}
    write_json("metrics/fusion.json", fusion if validation else {})
    write_choices(validation)
    single = {"mean": 0.6, "a photo of {}": 0.5, "<i>{}</i>": 0.7}
    found = {"validation_accuracy": 0.65, "single_prompt_accuracy": single}
    write_json("metrics/cache/clip.json", found if validation else {})


def write_choices(validation: int, gain: float = 0.0) -> None:
    """Write the choices as `fusion` does; `auto` has an accuracy that is higher by `gain`."""
    line = {"alpha": [0.0, 0.5, 1.0], "accuracy": [0.6, 0.7, 0.5], "nll": 1.0, "ece": 0.1}
    curve = pd.DataFrame({"align": "none", **line, "nll_tempered": [0.9, 0.8, 1.0]})
    choices = pd.DataFrame({"align": "none", "chosen": ["given", "auto"], "alpha": [0.25, 0.4375]})
    choices = choices.assign(alpha_low=[None, 0.375], alpha_high=[None, 0.5], temperature=1.0)
    for metric in CHOICE_METRICS:
        better = gain if metric == "accuracy" else 0.0
        choices[metric] = [0.65, 0.65 + better]
        choices[f"{metric}_gain"] = [0.0, better]
        choices[f"{metric}_gain_low"] = [0.0, better - 0.02]
        choices[f"{metric}_gain_high"] = [0.0, better + 0.02]
    choices["shipped"] = [True, False]
    for name, table in (("alpha", curve), ("choices", choices)):
        with replacing(f"metrics/fusion/{name}.csv") as part:
            table[: len(table) if validation else 0].to_csv(part, index=False)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a whole experiment: the folder it is in."""
    folder = tmp_path_factory.mktemp("experiment")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experiment(**FULL)
        stage.main()
    return folder


@pytest.fixture
def page(full: Path) -> str:
    return (full / "report/index.html").read_text()


class Page(HTMLParser):
    """Checks that elements close in order; collects attributes and the text to be seen."""

    VOID = {"meta", "img", "br", "link", "input", "hr"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def visible(page: Page) -> str:
    return " ".join(page.text.split())


def summary_of(folder: Path, variants: Variants) -> Summary:
    """What the page was made from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return read_summary([*TEACHERS, "ce", *variants])


# --- files --------------------------------------------------------------------------------------


def test_files_of_all_results(full: Path) -> None:
    summary = summary_of(full, FULL["variants"])
    headline = json.loads((full / "metrics/summary.json").read_text())
    assert list(headline) == list(summary)
    assert headline["LF"]["top1"] == summary["LF"]["top1"].mean
    table = pd.read_csv(full / "metrics/summary.csv").set_index("model")
    assert list(table.index) == list(summary) and table.seeds.LF == 2
    runs = pd.read_csv(full / "metrics/results.csv").query("model == 'LF' and metric == 'top1'")
    assert list(runs.seed) == [0, 3] and runs.value.mean() == summary["LF"]["top1"].mean


def test_same_inputs_same_bytes(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(full)
    files = [Path("report/index.html"), Path("report/results.png"), Path("metrics/summary.csv")]
    before = [path.read_bytes() for path in files]
    for path in files:
        path.unlink()
    stage.main()
    assert [path.read_bytes() for path in files] == before


def test_picture_for_the_readme(full: Path) -> None:
    with Image.open(full / "report/results.png") as picture:
        assert picture.size == (1600, 600)


def test_stage_needs_no_torch() -> None:
    code = "import sys, stages.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# --- the page -----------------------------------------------------------------------------------


def test_page_needs_nothing_but_itself(page: str) -> None:
    parsed = Page(page)
    for tag, attributes in parsed.tags:
        assert tag not in ("script", "link", "iframe", "object")
        assert "srcset" not in attributes
        assert attributes.get("src", "data:").startswith("data:")
        if "href" in attributes:
            assert tag == "a"
        assert attributes.get("xlink:href", "#").startswith("#")
    assert not re.search(r"url\((?!#)|@import", page)


def test_page_is_accessible(page: str) -> None:
    tags = Page(page).tags
    assert ("html", {"lang": "en"}) in tags
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    drawings = [attributes for tag, attributes in tags if attributes.get("role") == "img"]
    assert all(attributes.get("aria-label") for attributes in drawings)
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(set(ids)) == len(ids)


def test_contents_lead_to_every_section(page: str) -> None:
    tags = Page(page).tags
    links = [x["href"][1:] for tag, x in tags if tag == "a" and x["href"].startswith("#")]
    assert links == [x["id"] for tag, x in tags if tag == "h2"] and "fusion" in links


def test_figures_are_legible_on_the_dark_page(page: str) -> None:
    """Colours that the dark page changes are variables, and both pages set each of them."""
    style = page[: page.index("</style>")]
    light, dark = style.split("@media (prefers-color-scheme: dark)")[:2]
    for color, instead in plots.DARK.items():
        assert f"--{color[1:]}: {color};" in light and f"--{color[1:]}: {instead};" in dark
    drawn = "".join(re.findall("<svg.*?</svg>", page, re.DOTALL))
    used = set(re.findall(r"var\(--([0-9a-f]{6})\)", drawn))
    assert {"000000", "dddddd"} <= used <= {color[1:] for color in plots.DARK}
    assert not any(color in drawn for color in plots.DARK)


def test_page_holds_the_numbers(page: str, full: Path) -> None:
    text = Page(page).text
    summary = summary_of(full, FULL["variants"])
    for values in summary.values():
        for metric in report.shown_metrics(summary):
            assert report.mean_and_error(values[metric], metric) in text
    assert "65.0 %" in text and "60.0 %" in text and "+5.0 points" in text  # prompts
    assert (full / "params.yaml").read_text().strip() in text
    assert "python 3.11.7, torch 2.11" in text
    assert "Frost: generated textures" in text


def test_intervals_are_standard_errors() -> None:
    values = Values(0.9, 0.02, dict.fromkeys(("seed0", "seed1", "seed2", "seed3"), 0.9))
    assert report.mean_and_error(values, "top1") == "90.0 ± 1.0"
    assert report.mean_and_error(values, "nll") == "0.900 ± 0.010"
    assert report.mean_and_error(Values(0.9, None, {"seed0": 0.9}), "top1") == "90.0"
    assert report.against(Difference(-0.01, 0.0025, 4), "top1") == "−1.0 ± 0.2"
    assert report.against(Difference(0.01, None, 1), "top1") == "+1.0"


def table(page: str, name: str) -> list[list[tuple[str, bool]]]:
    """The rows of the table called `name`: each cell's text, and whether it is bold."""
    part = page[page.index(f'aria-label="{name}"') :]
    body = part[part.index("<tbody>") : part.index("</tbody>")]
    cells = [re.findall("<td>(.*?)</td>", row) for row in body.split("<tr>")[1:]]
    return [[(re.sub("</?strong>", "", x), "<strong>" in x) for x in row] for row in cells]


def test_bold_is_what_the_summary_says(page: str, full: Path) -> None:
    summary = summary_of(full, FULL["variants"])
    metrics = report.shown_metrics(summary)
    for (model, values), row in zip(summary.items(), table(page, "Results"), strict=True):
        assert row == [
            (report.mean_and_error(values[metric], metric), model in best_students(summary, metric))
            for metric in metrics
        ]
    gains = differences(summary, "kd")
    assert list(gains) == ["ce", "L", "F", "LF"]
    for of_student, row in zip(gains.values(), table(page, "Differences from kd"), strict=True):
        assert row == [(report.against(x, metric), x.shown) for metric, x in of_student.items()]


def test_names_are_escaped(page: str) -> None:
    assert "<b>two" not in page and "&lt;b&gt;two&lt;/b&gt; &amp; " in page
    assert "<i>{}" not in page and "&lt;i&gt;{}" in page


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"variants": {"F": F}},
        {"seeds": [5, 1], "names": ["pixelate"], "severities": [1, 5]},
    ],
    ids=["one seed", "no student under the teacher", "one corruption"],
)
def test_small_experiments(here: Path, change: dict[str, Any]) -> None:
    settings = SMALL | change
    experiment(**settings)
    write_json("metrics/evaluate/LF.json", {"of an": "earlier experiment"})
    stage.main()
    text = Page(Path("report/index.html").read_text()).text
    assert "nan" not in text.lower()
    assert (" ± " in text) == (len(settings["seeds"]) > 1)
    assert ("one seed, so there are no standard errors" in text) == (len(settings["seeds"]) == 1)
    assert ("Frost: generated textures" in text) == ("names" not in change)
    models = [*TEACHERS, "ce", *settings["variants"]]
    assert list(pd.read_csv("metrics/summary.csv").model) == models


# --- variants -----------------------------------------------------------------------------------


def report_of(variants: Variants, **settings: Any) -> tuple[Page, str]:
    """The page, and the text to be seen in it."""
    experiment(variants, **{"seeds": [0, 1]} | settings)
    stage.main()
    page = Page(Path("report/index.html").read_text())
    assert "nan" not in visible(page).lower()
    return page, visible(page)


def figures(page: Page) -> list[str]:
    """The labels of the figures."""
    return [x["aria-label"] for tag, x in page.tags if tag == "div" and x.get("role") == "img"]


def test_without_variants_there_is_the_student_alone(here: Path) -> None:
    page, text = report_of({})
    assert list(pd.read_csv("metrics/summary.csv").model) == [*TEACHERS, "ce"]
    assert (
        "labelled images, alone. The teachers that it is compared with are a conventional" in text
    )
    # No sentence, table or kind of example compares two students.
    assert "minus ce" not in text and "differs by" not in text
    assert "The best student is ce: of all students it has the highest accuracy" in text
    assert " minus " not in text and "gains or loses" not in text
    assert "By severity: the fused teacher and ce." in text
    assert "ce by severity, %" in text
    assert not re.search(r"ce is (wrong|right), ", text)
    assert "The fused teacher is right, ce wrong" in text
    # What is said of one student stays.
    assert "The fused teacher is " in text and "The spread over seeds says nothing" in text
    drawn = [alt for alt in figures(page) if alt.startswith("Training")]
    assert [alt.split(":")[0].split()[-1] for alt in drawn] == ["teacher", "ce"]


BEST = "best student is {}: of all students it has the highest accuracy on the validation images."


def validation_accuracies(**accuracies: float) -> None:
    """Give the students these accuracies on validation images, the same for each seed."""
    for model, accuracy in accuracies.items():
        path = Path(f"metrics/train/{model}.json")
        found = json.loads(path.read_text())["validation_accuracy"]
        seeds = {x: {"validation_accuracy": accuracy} for x in found if x.startswith("seed")}
        write_json(path, summarize(seeds))


@pytest.mark.parametrize(
    "accuracies, best, reference",
    [
        ({"ce": 0.1, "kd": 0.2, "L": 0.3}, "L", "kd"),
        ({"ce": 0.1, "kd": 0.3, "L": 0.2}, "kd", "ce"),
        ({"ce": 0.3, "kd": 0.2, "L": 0.1}, "ce", "kd"),
    ],
)
def test_the_best_student_is_chosen_on_validation_images_and_named_once(
    here: Path, accuracies: dict[str, float], best: str, reference: str
) -> None:
    experiment(**SMALL)
    validation_accuracies(**accuracies)
    stage.main()
    text = visible(Page(Path("report/index.html").read_text()))
    assert text.lower().count("best student is") == 1 and BEST.format(best) in text
    assert f"{best} minus {reference} by severity, points" in text
    assert f"The fused teacher is right, {best} wrong" in text
    assert ("from that of ce, trained on labels alone" in text) == (best != "ce")


def test_without_validation_images_the_best_student_is_the_last(here: Path) -> None:
    case = CASES["ready-made, no validation"]
    experiment({"F": F, "seen": UNDER_CLIP}, [0], **case)
    stage.main()
    text = visible(Page(Path("report/index.html").read_text()))
    assert "The best student is seen: there are no validation images to choose on, so the" in text
    assert "seen kd under CLIP" in text and "seen minus ce by severity, points" in text
    assert "minus ce top‑1, points" in text
    assert list(pd.read_csv("metrics/summary.csv").columns[:3]) == ["model", "seeds", "top1"]


def test_names_are_those_of_the_experiment(here: Path) -> None:
    """A variant of a name that nothing knows, with losses in its explanation."""
    variants = {
        "my_Student2": KD,
        "other": {"teacher": "clip", **FEATURES, **LOGITS},
        "Z": LF | {"control": "shuffled"},
    }
    page, text = report_of(variants)
    assert "my_Student2 kd under the teacher" in text
    assert "other kd, crd under CLIP" in text and "Z kd, crd under the fused teacher" in text
    assert "minus my_Student2 top‑1, points" in text
    assert "the fused teacher with CLIP's logits shuffled among the other classes" in text
    for name in variants:
        assert any(f"Training curves of {name}:" in alt for alt in figures(page))
        assert f"Reliability diagram of {name}, clean and corrupted." in figures(page)


def drawings(page: str, kind: str) -> dict[str, str]:
    """The SVGs of the figures of a kind, by model."""
    return dict(re.findall(rf'aria-label="{kind} of (\w+).*?(<svg.*?</svg>)', page, re.DOTALL))


def test_twelve_variants_have_colours_of_their_own(here: Path) -> None:
    variants = {f"v{i}": (KD, L, F, LF)[i % 4] for i in range(12)}
    report_of(variants, seeds=[0], names=["fog"])
    color = plots.colors(variants)
    assert len(set(color.values())) == 16
    drawn = drawings(Path("report/index.html").read_text(), "Training curves")
    assert list(drawn) == ["teacher", "ce", *variants]
    for name in variants:  # the mean of the validation accuracy is a thick line
        assert f"stroke: {as_drawn(color[name])}; stroke-width: 1.8" in drawn[name]
    with Image.open("report/results.png") as picture:
        assert picture.size == (1600, 960)


def as_drawn(color: str) -> str:
    return f"var(--{color[1:]})" if color in plots.DARK else color


def test_a_loss_has_one_colour_in_all_figures(page: str) -> None:
    drawn = drawings(page, "Training curves")
    term_color = plots.colors(["ce", "kd", "crd"])
    model_color = plots.colors(["kd", "L", "F", "LF"])
    terms = {"ce": ["ce"], "kd": ["ce", "kd"], "L": ["ce", "kd"], "F": ["ce", "crd"]}
    for model, own in {**terms, "LF": ["ce", "kd", "crd"], "teacher": ["ce"]}.items():
        expected = {as_drawn(term_color[term]) for term in own} | {as_drawn(model_color[model])}
        assert set(re.findall("stroke: ([^;]+); stroke-width: 1.8", drawn[model])) == expected


def test_nothing_of_an_experiment_becomes_markup(here: Path) -> None:
    """Names and texts with characters of HTML, in every place that shows one."""
    experiment(**SMALL, shifted={"v2": "nothing is at <u>a</u>"})
    with open("params.yaml", "a") as file:
        file.write("# <script>alert('params')</script>\n")
    stage.main()
    markup = Path("report/index.html").read_text()
    page = Page(markup)
    assert not {tag for tag, _ in page.tags} & {"script", "u", "b", "i"}
    for said in (
        "<script>alert('params')</script>",
        "<u>a</u>",
        '<b>two</b> & "more"',
        "<i>{}</i>",
    ):
        assert said in page.text


# --- the fused teacher --------------------------------------------------------------------------


def test_each_choice_of_the_fused_teacher_has_a_row(page: str) -> None:
    (given, *_), (auto, *gains) = table(page, "Choices of the fused teacher")
    assert given == ("0.25, given<small></small>", False)
    assert auto == ("0.44, auto<small>[0.38, 0.50]</small>", False)
    assert [text for text, _ in gains][:2] == [
        "65.0<small>+0.0 [−2.0, +2.0]</small>", "0.650<small>+0.000 [−0.020, +0.020]</small>"
    ]  # fmt: skip
    assert figures(Page(page))[0].startswith("Validation accuracy and NLL of the fused teacher")


def test_alpha_and_lambda_say_how_they_were_chosen(here: Path) -> None:
    alphas = {"alpha": [0.25, 0.4375], "chosen": ["given", "per class"]}
    chosen = pd.DataFrame({"align": ["none", "temperature"], **alphas})
    of = SimpleNamespace(alpha=0.25, lam=0.5)
    assert report.mixture(of, chosen.assign(shipped=[True, False])) == {
        "alpha": "0.25", "how": "as given in params.yaml", "align": "none",
        "lam": "0.5", "lam_how": "as given in params.yaml",
    }  # fmt: skip
    of = SimpleNamespace(alpha="auto", lam="auto")
    assert report.mixture(of, chosen.assign(shipped=[False, True])) == {
        "alpha": "0.4375", "align": "temperature",
        "how": "chosen on the validation images, where each class has an α of its own near it",
        "lam": "0.4375", "lam_how": "which follows α",
    }  # fmt: skip
    assert report.mixture(SimpleNamespace(alpha=0.7, lam=0.7), chosen[:0])["alpha"] == "0.7"


# --- warnings and provenance --------------------------------------------------------------------


def test_a_sound_experiment_has_no_warning(page: str) -> None:
    assert "Warning" not in Page(page).text


def test_warnings_stand_above_the_results(here: Path) -> None:
    experiment(**SMALL)
    logits = np.load("predictions/kd/test.npy")
    logits[0, 3, :2] = LARGEST, -LARGEST
    write_array("predictions/kd/test.npy", logits)
    path = Path("metrics/evaluate/ce.json")
    write_json(path, json.loads(path.read_text()) | {"top1": {"mean": 0.1, "seed2": 0.1}})
    write_choices(30, gain=0.05)
    stage.main()
    text = visible(Page(Path("report/index.html").read_text()))
    warnings = text[text.index("Warning") : text.index("The best student is")]
    assert "ce is at chance: its accuracy is 10.0 % (seed2)." in warnings
    assert "kd diverged: 2 of its logits on test images are clipped" in warnings
    assert "with α = 0.44 and the alignment none its accuracy is 70.0 %" in warnings


def test_the_page_names_its_commit(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment({}, [0], ["fog"])
    stage.main()
    page = Path("report/index.html")
    assert "not made in a git checkout" in visible(Page(page.read_text()))
    monkeypatch.setattr(report, "commit", lambda paths: Commit("1a2b", "2026-01-02", True))
    stage.main()
    text = visible(Page(page.read_text()))
    assert "made at the commit 1a2b of 2026-01-02, with changes of the code or" in text
    assert "1 corruption and 1 severity" in text and "1 seed (0)" in text


# --- kinds of experiments -----------------------------------------------------------------------

TEACHER = {
    "train": "(resnet8x2) trained on the same images,",
    "checkpoint": "(resnet32x4) from a checkpoint,",
    "mdistiller": "(resnet32x4), mdistiller’s published checkpoint,",
    "torchvision": "(resnet50) with torchvision’s weights IMAGENET1K_V2,",
}
CLIP = {
    "train": "a CLIP trained on",
    "pretrained": "a CLIP, open_clip’s ViT-L-14 with its weights openai.",
    "checkpoint": "a CLIP, ViT-B-32 with weights from a local file.",
}
CORRUPTED = {
    "generate": "The corrupted images are generated here from the test images.",
    "download": "The corrupted images are the published CIFAR-100-C.",
    "path": "The corrupted images are the published CIFAR-10-C, a local copy.",
}
VALIDATED = [
    "images unless they are said to be of the 30 validation images.",
    "The fused teacher, before any training",
    "One prompt or several",
    "before → after",
    "has the highest accuracy on the validation images.",
    "on test against validation images. Differences",
]
NOT_VALIDATED = [
    "test images. There were no validation images, so nothing was chosen: α is what",
    "The best student is LF: there are no validation images to choose on, so the last student in "
    "distill.variants is taken; the test images choose nothing.",
]
PUBLISHED: dict[str, Any] = {"source": "download", "urls": ["https://example.org/c"]}
CASES: dict[str, dict[str, Any]] = {
    "digits": {},
    "ready-made, no validation": {
        "validation": 0,
        "dataset": CIFAR | {"validation": 0},
        "teacher": MDISTILLER,
        "clip": PRETRAINED,
        "corruptions": PUBLISHED,
    },
    "teacher from a checkpoint": {
        "dataset": CIFAR | {"validation": 30}, "teacher": CHECKPOINT, "seeds": [0, 3],
    },
    "teacher trained, no validation": {
        "validation": 0,
        "dataset": CIFAR | {"name": "cifar10", "validation": 0},
        "clip": LOCAL_CLIP,
        "corruptions": {"source": "path", "path": "CIFAR-10-C"},
    },
    "photographs of ice": {
        "dataset": CIFAR | {"validation": 30},
        "corruptions": {"source": "generate", "seed": 0, "frost": "download"},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_page_says_what_is_true(here: Path, name: str) -> None:
    case = SMALL | {"variants": {"kd": KD, "L": L, "LF": LF}, **CASES[name]}
    experiment(**case)
    stage.main()
    parsed = Page(Path("report/index.html").read_text())
    text = visible(parsed)
    source = {key: case.get(key, {}).get("source", "train") for key in ("teacher", "clip")}
    source["corrupted"] = case.get("corruptions", {}).get("source", "generate")
    for key, phrases in {"teacher": TEACHER, "clip": CLIP, "corrupted": CORRUPTED}.items():
        assert [x for x in phrases if phrases[x] in text] == [source[key]]
    assert "from 1,050 labelled images" in text
    captioned = "10,000" if "dataset" not in case else "1,234"
    assert (f"trained on {captioned} captioned images." in text) == (source["clip"] == "train")
    assert ("Frost: generated textures" in text) == (
        source["corrupted"] == "generate" and name != "photographs of ice"
    )
    assert ("Frost: the benchmark’s photographs." in text) == (name == "photographs of ice")
    assert ("which share scans within a split" in text) == (name == "digits")

    summary = read_summary([*TEACHERS, "ce", *case["variants"]])
    validated = case.get("validation", 30) > 0
    for values in summary.values():
        for key in ("validation_accuracy", "ece_tempered", "corrupted_ece_tempered"):
            assert (key in values) == validated
    teacher = {key: values.mean for key, values in summary["teacher"].items()}
    flattered = (
        "A ready-made teacher may have been trained on these very images: its validation accuracy, "
        f"{100 * teacher.get('validation_accuracy', 0):.1f} % beside {100 * teacher['top1']:.1f} % "
    )
    assert (flattered in text) == (validated and source["teacher"] != "train")
    assert [phrase in text for phrase in VALIDATED] == [validated] * len(VALIDATED)
    assert [phrase in text for phrase in NOT_VALIDATED] == [not validated] * len(NOT_VALIDATED)

    results = text[: text.rindex("How to repeat it")]
    assert validated or results.count("alidation") == 2
    assert "nan" not in results.lower()
    alts = figures(parsed)
    drawn = [alt.split()[3] for alt in alts if alt.startswith("Training")]
    assert drawn == ["teacher:"] * (source["teacher"] == "train") + ["ce:", "kd:", "L:", "LF:"]
    assert all("alidation" not in alt for alt in alts) == (not validated)
    for key in ("teacher", "clip"):
        assert (f"{report.label(key)}0cpu, 2 threads" in text) == (source[key] == "train")
    with Image.open("report/results.png") as picture:
        assert picture.size == (1600 if validated else 800, 600)


def test_a_model_without_a_best_temperature_has_no_tempered_figures(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CLIP and the second seed of L are right on every validation image."""
    experiment({"kd": KD, "L": L}, [0, 1])
    labels = load_split("data/validation.safetensors").labels
    for model in ("clip", "L"):
        validation = np.load(f"predictions/{model}/validation.npy")
        validation[-1] = 9 * np.eye(10)[labels]
        write_array(f"predictions/{model}/validation.npy", validation)
        capsys.readouterr()
        calibrate.main(model)
        said, run = capsys.readouterr().out.splitlines(), len(validation) - 1
        assert said[0] == (
            f"{model} seed{run}: no tempered figures, since there is no best temperature: on the "
            "validation images all answers are right, or the labels have no larger logits than "
            "other classes"
        )
    stage.main()
    text = visible(Page(Path("report/index.html").read_text()))
    for path in Path("metrics").rglob("*.json"):
        assert "NaN" not in path.read_text()
    assert "nan" not in text.lower()
    summary = read_summary([*TEACHERS, "ce", "kd", "L"])
    for model, values in summary.items():
        missing = model in ("clip", "L")
        for metric in ("ece", "ece_tempered", "corrupted_ece_tempered"):
            assert (metric in values) == (metric == "ece" or not missing)
        numbers = json.loads(Path(f"metrics/calibrate/{model}.json").read_text())
        for data, figures in numbers.items():
            fitted = ["temperature"] if data == "clean" else []
            for metric in (*fitted, "ece_tempered", "nll_tempered"):
                runs = ["seed0", *(["seed1"] if model in ("ce", "kd") else [])]
                means = ["mean", "sd"][: len(runs)]
                expected = {"clip": None, "L": ["seed0"]}.get(model, [*means, *runs])
                assert (list(figures[metric]) if metric in figures else None) == expected
    assert text.count("no best temperature") == 2
    assert f"clean {100 * summary['clip']['ece'].mean:.1f} corrupted" in text


# --- images in files, further test sets, no corrupted ones --------------------------------------

IMAGENET: dict[str, Any] = {
    "name": "imagenet", "root": "tree", "classes": "all", "expect_train": None,
    "expect_val": None, "unreadable": 20, "train_per_class": "all", "validation": 30,
    "captioned_images": 0, "seed": 0,
}  # fmt: skip
IN_FILES: dict[str, Any] = {
    "dataset": IMAGENET,
    "views": {
        "augmentation": "resized_crop", "size": 32, "resize": 40, "scale": [0.1, 1.0],
        "ratio": [0.75, 1.5], "flip": True,
    },
    "cache": {"teacher": "online", "clip": "center", "top_k": 5, "batch_size": 50},
    "teacher": TORCHVISION,
    "clip": PRETRAINED,
    "corruptions": {"source": "path", "path": "../imagenet-c"},
}  # fmt: skip


def in_files(count: int, unreadable: int) -> None:
    """The test images as files, the second lying on its side; as many others cannot be read."""
    rng, test = np.random.default_rng(0), load_split("data/test.safetensors")
    Path("tree/val").mkdir(parents=True)
    lying = Image.Exif()
    lying[0x0112] = 6
    for i in range(count):
        image = trees.photograph(i % 10, rng, 300, 400) if i else Image.new("CMYK", (30, 20))
        image.save(f"tree/val/{i}.JPEG", exif=lying if i == 1 else Image.Exif())
    manifest = Manifest(
        "tree", [f"val/{i}.JPEG" for i in range(count)], test.labels,
        np.zeros((count, 2), np.int32), np.zeros(count, np.int64), np.zeros(count, bool),
    )  # fmt: skip
    save_split("data/test.safetensors", manifest)
    info = Info(
        name="imagenet", classes=NAMES, mean=[0.5] * 3, std=[0.2] * 3, folders=trees.WNIDS[:10],
        unreadable=[f"train/<i>{i}</i>.JPEG" for i in range(unreadable)],
    )  # fmt: skip
    save_info("data/info.json", info)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet in files, the whole of ImageNet-C, further test sets: the folder."""
    folder = tmp_path_factory.mktemp("imagenet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experiment(
            {"kd": KD, "L": L, "LF": LF}, [0, 1], list(ALEXNET), [1, 2, 3, 4, 5],
            shifted={
                "imagenet_v2": list(range(10)), "imagenet_r": [2, 5, 7],
                "imagenet_a": "nothing is at <x>",
            },
            **IN_FILES,
        )  # fmt: skip
        in_files(40, 12)
        stage.main()
    return folder


def test_mean_corruption_error_has_a_column(imagenet: Path) -> None:
    page = Page((imagenet / "report/index.html").read_text())
    assert TEACHER["torchvision"] in visible(page)
    summary = summary_of(imagenet, {"kd": KD, "L": L, "LF": LF})
    grid = pd.read_csv(imagenet / "metrics/evaluate/kd.csv").groupby("corruption").accuracy.mean()
    expected = np.mean([(1 - grid[name]) / error for name, error in ALEXNET.items()])
    assert summary["kd"]["mce"].mean == pytest.approx(expected)
    assert "mCE, % ↓" in visible(page)
    assert "each corruption’s divided by AlexNet’s published one" in visible(page)
    assert "published ImageNet-C, a local copy." in visible(page)
    assert "Students under a teacher learned from the 5 largest logits" in visible(page)
    assert list(pd.read_csv(imagenet / "metrics/summary.csv").mce) == [
        x["mce"].mean for x in summary.values()
    ]


def test_further_test_sets_have_a_table(imagenet: Path) -> None:
    page = Page((imagenet / "report/index.html").read_text())
    summary = summary_of(imagenet, {"kd": KD, "L": L, "LF": LF})
    text = visible(page)
    assert (
        "Shifted test sets" in text
        and "where a set has only some of the classes, among these" in text
    )
    table = text[text.index("setimagesclasses") :].replace(" ", "")
    for name, counts in (("imagenet_v2", "7010"), ("imagenet_r", "213")):
        cells = [
            report.mean_and_error(values[f"shifted_{name}"], "top1") for values in summary.values()
        ]
        assert f"{name}{counts}{''.join(cells)}".replace(" ", "") in table
    assert "imagenet_a was not run: nothing is at <x>." in text
    assert not any("imagenet_a" in key for values in summary.values() for key in values)


def test_files_that_cannot_be_read_are_named_up_to_ten(imagenet: Path) -> None:
    page = (imagenet / "report/index.html").read_text()
    assert "<i>0" not in page
    text = visible(Page(page))
    assert "12 files that cannot be read were left out: train/<i>0</i>.JPEG, " in text
    assert "train/<i>9</i>.JPEG, …." in text and "train/<i>10</i>.JPEG" not in text


def test_examples_are_pictures_of_the_files(
    imagenet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(imagenet)
    test = load_split("data/test.safetensors")
    assert isinstance(test, Manifest)
    page = Page(Path("report/index.html").read_text())
    shown = [x for tag, x in page.tags if tag == "img" and x["alt"].startswith("Test image")]
    assert shown and all(x["src"].startswith("data:image/png;base64,") for x in shown)
    for attributes in shown:
        index = int(re.findall(r"\d+", attributes["alt"])[0])
        assert attributes["src"] == picture_uri(test, index)
    sizes = []
    for index in (0, 1, 2):
        picture = Image.open(io.BytesIO(base64.b64decode(picture_uri(test, index).split(",")[1])))
        assert picture.mode == "RGB"
        sizes.append(picture.size)
        with Image.open(test.root + "/" + test.paths[index]) as image:
            ratio = image.size[0] / image.size[1]
        ratio = 1 / ratio if index == 1 else ratio  # upright
        assert picture.size[0] / picture.size[1] == pytest.approx(ratio, abs=0.02)
    assert sizes[0] == (30, 20) and max(sizes[1]) == max(sizes[2]) == 192


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_without_corrupted_images_nothing_is_said_of_them(here: Path, seeds: list[int]) -> None:
    experiment({"kd": KD, "L": L, "LF": LF}, seeds, (), **IN_FILES)
    stage.main()
    page = Page(Path("report/index.html").read_text())
    text = visible(page)
    assert "There are no corrupted images: nothing is at ../imagenet-c." in text
    assert text[: text.rindex("How to repeat it")].lower().count("corrupt") == 1
    assert "nan" not in text.lower() and "mCE" not in text
    assert "Shifted test sets" not in text and "cannot be read" not in text
    assert not any("corrupted" in label for label in figures(page))
    summary = json.loads(Path("metrics/summary.json").read_text())
    assert set(summary["LF"]) == {"top1", "ece", "nll", "confident_wrong"}
    assert "minus kd" in text


def test_sets_that_were_all_skipped_are_named_without_a_table(here: Path) -> None:
    experiment(**SMALL, shifted={"cifar10_1": "nothing is at a.npy, b.npy"})
    stage.main()
    text = visible(Page(Path("report/index.html").read_text()))
    assert "cifar10_1 was not run: nothing is at a.npy, b.npy." in text
    assert "setimagesclasses" not in text and "where a set has only some" not in text
