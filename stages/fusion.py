"""Choose the fused teacher on the validation images, before training, and write its recipe.

Measures what the paper argues with: the accuracy, likelihood and calibration of the fused teacher
over alpha; how often each teacher is confident and wrong; how close in meaning to the true class
its remaining probability lies. Also measures what each way to choose the fused teacher gains.
Without validation images nothing can be measured, and all metrics are empty.
"""

from typing import Any

import numpy as np
import pandas as pd

from richkd import params
from richkd.base.files import replacing, write_json
from richkd.base.records import check_array, read_array, read_safetensors
from richkd.data.dataset import load_split
from richkd.evaluate.summary import ALPHA_COLUMNS, CHOICE_COLUMNS
from richkd.teachers.align import Validation
from richkd.teachers.diagnose import diagnose
from richkd.teachers.fusion import Recipe, table_fingerprints
from stages import run

# More logits or images than this would take minutes. With more, only every 2nd image is looked at,
# or every 3rd, and so on.
MAX_LOGITS, MAX_IMAGES = 2_000_000, 20_000
SEEN = (
    "the ready-made teacher may have been trained on the validation images: all that is measured "
    "on them takes the teacher for better than it is"
)
COLUMNS = {
    "alpha": list(ALPHA_COLUMNS),
    "choices": list(CHOICE_COLUMNS),
    "answers": ["model", "answer", "share"],
    "closeness": ["model", "semantic_closeness"],
}


def main() -> None:
    settings = params.load("fusion", "calibration", "teacher.source")
    labels = load_split("data/validation.safetensors").labels
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in COLUMNS}
    summary: dict[str, Any] = {}
    if len(labels):
        if settings.teacher.source != "train":
            print(SEEN)
        found = diagnose(settings, table_fingerprints(), *read_validation(labels))
        recipe, summary, tables, lines = found
        print(*lines, sep="\n")
    else:
        alpha, lam = settings.fusion.alpha, settings.fusion.lam
        lam = alpha if lam == "auto" else lam
        recipe = Recipe(alpha, lam, {"teacher": 1.0, "clip": 1.0}, table_fingerprints())
    recipe.save()
    for name, columns in COLUMNS.items():
        with replacing(f"metrics/fusion/{name}.csv") as part:
            pd.DataFrame(tables[name], columns=columns).to_csv(part, index=False)
    write_json("metrics/fusion.json", summary)
    print(f"cache/fused, metrics/fusion.json, metrics/fusion/{{{','.join(COLUMNS)}}}.csv")


def read_validation(labels: np.ndarray) -> tuple[Validation, np.ndarray]:
    """Both teachers' logits on the validation images, and the embeddings of the class names."""
    path = "models/clip/seed0.safetensors"
    classes = read_safetensors(path).get("classifier", np.empty(0))
    check_array(f"{path}: classifier", classes, "float32", (None, None))
    shape = len(labels), len(classes)
    teacher, clip = (
        read_array(f"cache/{name}/validation.npy", "float32", shape) for name in ("teacher", "clip")
    )
    step = max(1, -(-teacher.size // MAX_LOGITS), -(-len(labels) // MAX_IMAGES))
    if step > 1:
        print(f"of {len(labels)} validation images 1 in {step} is looked at, for the time it takes")
    return Validation(teacher[::step], clip[::step], labels[::step]), classes


if __name__ == "__main__":
    run(main)
