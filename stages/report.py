"""All results on one page, and in one file for `dvc metrics diff`."""

from pathlib import Path

from richkd import params
from richkd.base.files import replacing, write_json
from richkd.base.records import read_csv, read_json
from richkd.evaluate import plots, report
from richkd.evaluate.summary import (
    ALONE,
    ALPHA_COLUMNS,
    TEACHERS,
    Empty,
    Fusion,
    accuracies_by_run,
    read_summary,
    summary_table,
)
from richkd.teachers.fusion import load_recipe
from stages import run


def main() -> None:
    settings = params.load(
        "dataset.captioned_images", "teacher", "clip", "student.arch", "fusion.align",
        "distill.variants", "distill.seeds", "corruptions", "cache.top_k", "calibration.threshold",
    )  # fmt: skip
    recipe = load_recipe()  # has the numbers where params.yaml says auto
    settings.fusion.alpha, settings.fusion.lam = recipe.alpha, recipe.lam
    models = [*TEACHERS, ALONE, *settings.distill.variants]
    summary, accuracies = read_summary(models), accuracies_by_run(models)
    page = report.render(settings, summary, Path("params.yaml").read_text())
    fusion = read_json("metrics/fusion.json", Fusion | Empty)
    curve = read_csv("metrics/fusion/alpha.csv", ALPHA_COLUMNS)
    curve = curve[curve["align"] == settings.fusion.align]
    validation = {model: fusion[model]["accuracy"] for model in TEACHERS if fusion}
    labels = {model: report.label(model) for model in models}
    picture = plots.overview(curve, settings.fusion.alpha, validation, accuracies, labels)

    write_json("metrics/summary.json", summary)
    with replacing("metrics/summary.csv") as part:
        summary_table(summary, accuracies).to_csv(part, index=False)
    with replacing("report/index.html") as part:
        part.write_text(page)
    with replacing("report/results.png") as part:
        part.write_bytes(picture)
    print("report/index.html, report/results.png, metrics/summary.json, metrics/summary.csv")


if __name__ == "__main__":
    run(main)
