"""All results on one page, and in one file for `dvc metrics diff`."""

from pathlib import Path

from richkd import params
from richkd.base.files import replacing, write_json
from richkd.base.records import read_csv
from richkd.data.dataset import load_info, load_split
from richkd.evaluate import plots, report
from richkd.evaluate.scores import class_table
from richkd.evaluate.summary import (
    ALONE,
    ALPHA_COLUMNS,
    CHOICE_COLUMNS,
    TEACHERS,
    headline,
    read_summary,
    results_table,
    summary_table,
)
from stages import run


def main() -> None:
    settings = params.load(
        "dataset.captioned_images", "teacher", "clip", "student.arch", "fusion.alpha", "fusion.lam",
        "distill.variants", "distill.seeds", "corruptions", "cache.top_k", "calibration.threshold",
    )  # fmt: skip
    models = [*TEACHERS, ALONE, *settings.distill.variants]
    summary = read_summary(models)
    page = report.render(settings, summary, Path("params.yaml").read_text())
    curve = read_csv("metrics/fusion/alpha.csv", ALPHA_COLUMNS)
    choices = read_csv("metrics/fusion/choices.csv", CHOICE_COLUMNS)
    labels = {model: report.label(model) for model in models}
    accuracies = {model: list(summary[model]["top1"].by_seed.values()) for model in models}
    picture = plots.overview(curve, choices, accuracies, labels)

    test_labels = load_split("data/test.safetensors").labels
    tables = {
        "summary": summary_table(summary),
        "results": results_table(summary),
        "classes": class_table(models, test_labels, load_info("data/info.json").classes),
    }
    write_json("metrics/summary.json", headline(summary))
    for name, table in tables.items():
        with replacing(f"metrics/{name}.csv") as part:
            table.to_csv(part, index=False)
    with replacing("report/index.html") as part:
        part.write_text(page)
    with replacing("report/results.png") as part:
        part.write_bytes(picture)
    print("report/index.html, report/results.png, metrics/{summary,results,classes}.csv")


if __name__ == "__main__":
    run(main)
