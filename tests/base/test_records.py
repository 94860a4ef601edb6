"""Damaged records: each reads as something valid, or is refused in one line that names the file."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import FiniteFloat

from richkd import weights
from richkd.base.errors import InputError
from richkd.base.files import write_array, write_json
from richkd.base.records import read_array, read_csv, read_json, read_safetensors
from richkd.classifiers import load_record
from richkd.data.dataset import SHIFTED, Info, Split, load_info, load_split, save_info, save_split
from richkd.evaluate import report, scores, seeds, summary
from richkd.teachers import fusion, lookup

CPU = torch.device("cpu")
LOOK = {"mean": [0.5] * 3, "std": [0.2] * 3}
CUT = {"interpolation": "bicubic", "resize_mode": "shortest", "fill": 0}
CENTER = {"resize": 40, "size": 32, **CUT}
ALONE = {"saved_together": ["seed0"], "seed": 0, **weights.provenance(CPU)}
CLIP = {
    "kind": "clip",
    "model": {
        "embed_dim": 8,
        "image_size": 32,
        "vision_layers": [1, 1, 1, 1],
        "vision_width": 8,
        "text_width": 16,
        "text_layers": 1,
        "text_heads": 2,
        "context_length": 16,
    },
    "quick_gelu": False,
    "embed_dim": 8,
    "input": {"size": 32, **CUT, **LOOK},
    "center": CENTER,
    "classes": ["a", "b"],
    "prompts": ["a {}"],
    "scale": 1.0,
    **ALONE,
}
CLASSIFIER = {
    "kind": "classifier",
    "arch": "resnet8",
    "num_classes": 2,
    "center": None,
    **LOOK,
    **ALONE,
}
TABLE = {
    "data set": "1",
    "set of views": {"pad": 1, "held": "all"},
    "top k": None,
    "shape": {"views": 2, "images": 3, "classes": 4},
    "content": {"logits-000.npy": "1"},
}
RECIPE = {
    "alpha": 0.7,
    "lam": 0.5,
    "scales": {"teacher": 1.0, "clip": 2.0},
    "tables": {"teacher": "1", "clip": "2"},
    "standardize": True,
    "class_alphas": [0.25, 0.5],
}
FIGURES = {"mean": 0.5, "sd": 0.1, "seed0": 0.4, "seed1": 0.6}
CALIBRATED = dict.fromkeys(("ece", "nll", "confident_wrong", "aurc"), FIGURES)
SCORES = dict.fromkeys(("top1", "top5", "balanced_accuracy"), FIGURES)
MIXTURE = {key: 0.25 for key in summary.Mixture.__annotations__}
FUSION = {name: MIXTURE for name in ("teacher", "clip", "fused")}
SETS = {"v2": {"images": 3, "classes": [0, 1]}, "none": {"skipped": "nothing is there"}}
IMAGES = Split(np.arange(192, dtype=np.uint8).reshape(4, 4, 4, 3), np.arange(4))
BINS = {"lo": [0.0, 0.5], "hi": [0.5, 1.0], "confidence": [0.3, 0.8], "accuracy": [0.2, 0.9]} | {
    "count": [3, 5],
    "run": [0, 0],
    "data": ["clean", "corrupted"],
}

# How each kind of file is written, and read by the stages after.
JSON = {
    "models/x/seed0.json": (CLASSIFIER, lambda: load_record("models/x/seed0")),
    "models/clip/seed0.json": (CLIP, lambda: load_record("models/clip/seed0")),
    "models/one/seed0.json": (
        ALONE,
        lambda: read_json("models/one/seed0.json", report.TrainedRecord),
    ),
    "cache/clip/cache.json": (
        TABLE,
        lambda: read_json("cache/clip/cache.json", lookup.TableRecord),
    ),
    "cache/fused/fused.json": (RECIPE, fusion.load_recipe),
    "data/shifted/sets.json": (SETS, scores.shifted_sets),
    "metrics/evaluate/x.json": (
        SCORES | {"corrupted_top1": FIGURES},
        lambda: read_json("metrics/evaluate/x.json", scores.Scores),
    ),
    "metrics/calibrate/x.json": (
        {"clean": CALIBRATED, "corrupted": CALIBRATED},
        lambda: read_json("metrics/calibrate/x.json", summary.Calibration),
    ),
    "metrics/train/x.json": (
        {"validation_accuracy": FIGURES},
        lambda: read_json("metrics/train/x.json", seeds.Metrics),
    ),
    "metrics/fusion.json": (
        FUSION,
        lambda: read_json("metrics/fusion.json", summary.Fusion | summary.Empty),
    ),
    "metrics/cache/clip.json": (
        {"validation_accuracy": 0.5, "single_prompt_accuracy": FIGURES},
        lambda: read_json("metrics/cache/clip.json", summary.Cached | summary.Empty),
    ),
}
CSV = {
    "metrics/curves/x.csv": (
        {"epoch": [1, 2], "validation_accuracy": [None, 0.5], "seed": [0, 0], "ce": [2.0, 1.0]},
        lambda: read_csv("metrics/curves/x.csv", seeds.CURVES | {"ce": float}, ["epoch", "seed"]),
    ),
    "metrics/evaluate/x.csv": (
        {"corruption": ["snow", "fog"], "severity": [1, 2], "accuracy": [0.5, 0.25]},
        lambda: read_csv(
            "metrics/evaluate/x.csv", scores.CORRUPTION_COLUMNS, ["corruption", "severity"]
        ),
    ),
    "metrics/calibrate/x.csv": (
        BINS,
        lambda: read_csv("metrics/calibrate/x.csv", report.BIN_COLUMNS),
    ),
    "metrics/fusion/alpha.csv": (
        {"align": "none", "alpha": [0.0, 1.0]}
        | dict.fromkeys(("accuracy", "nll", "ece"), [0.5, 0.25])
        | {"nll_tempered": [None, 0.5]},
        lambda: read_csv("metrics/fusion/alpha.csv", summary.ALPHA_COLUMNS),
    ),
    "metrics/fusion/choices.csv": (
        {name: [0.5, None] for name in summary.CHOICE_COLUMNS}
        | {"align": "none", "chosen": ["given", "auto"], "shipped": [False, True]},
        lambda: read_csv("metrics/fusion/choices.csv", summary.CHOICE_COLUMNS),
    ),
}
LABELS = np.array([0, 1, 2, 0])
OTHERS = {
    "predictions/x/test.npy": (
        lambda path: write_array(path, np.eye(4, 3, dtype=np.float32)[None]),
        lambda: scores.read_logits("x", "test", (None, 4, 3), LABELS, "r"),
    ),
    "predictions/x/seeds.json": (
        lambda path: write_json(path, ["seed0", "seed1"]),
        lambda: scores.read_seeds("x"),
    ),
    "predictions/x/corrupted.npy": (
        lambda path: write_array(path, np.zeros((1, 0, 5, 4, 3), np.float16)),
        lambda: scores.read_logits("x", "corrupted", (1, 0, 5, 4, 3), LABELS),
    ),
    "data/train.safetensors": (
        lambda path: save_split(path, IMAGES),
        lambda: load_split("data/train.safetensors"),
    ),
    "models/y/seed0.safetensors": (
        lambda path: weights.save(path.with_suffix(""), {"a": torch.ones(5)}, {}),
        lambda: weights.read_tensors("models/y/seed0.safetensors"),
    ),
    "data/info.json": (
        lambda path: save_info(path, Info(name="digits", classes=["a", "b"], **LOOK)),
        lambda: load_info("data/info.json"),
    ),
}


def writer(path, content):
    if path.suffix == ".json":
        write_json(path, content)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(content).to_csv(path, index=False)


RECORDS = {
    name: (lambda path, content=content: writer(path, content), read)
    for name, (content, read) in (JSON | CSV).items()
} | OTHERS


def refused(read, path):
    """The message if it is refused, and None if it reads."""
    try:
        read()
    except InputError as error:
        text = str(error)
        assert str(path) in text and len(text.splitlines()) == 1
        return text
    return None


def damaged(whole, rng):
    """The content of a file, damaged in every way but by meaning."""
    yield b""
    for end in rng.integers(0, len(whole), 12):
        yield whole[:end]
    for position, bit in zip(rng.integers(0, len(whole), 40), rng.integers(0, 8, 40)):
        changed = bytearray(whole)
        changed[position] ^= 1 << bit
        yield bytes(changed)
    for start in rng.integers(0, len(whole), 6):
        yield whole[:start] + rng.bytes(20) + whole[start + 20 :]
    yield rng.bytes(300)
    yield whole + b"\0" * 7
    yield whole * 2
    yield b"PK\3\4" + whole  # an archive's first bytes
    yield b"\x80\4cposix\nsystem\n(S'touch unpickled'\ntR."
    yield b"\xff" * 8 + whole  # the size of a header


@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_file_reads_or_is_refused_in_one_line(here, name):
    path = Path(name)
    write, read = RECORDS[name]
    write(path)
    assert refused(read, path) is None
    whole, found = path.read_bytes(), []
    for content in damaged(whole, np.random.default_rng(0)):
        path.write_bytes(content)
        found.append(refused(read, path))
    assert sum(text is not None for text in found) > 15
    assert not Path("unpickled").exists()
    path.unlink()
    assert refused(read, path)
    path.mkdir()
    assert refused(read, path)


def changed_values(content, value):
    """The record with each of its values, at any depth, replaced by `value` in turn."""
    for key in content if isinstance(content, dict) else range(len(content)):
        yield (
            {**content, key: value}
            if isinstance(content, dict)
            else [value if i == key else x for i, x in enumerate(content)]
        )
        if isinstance(content[key], dict | list):
            for inner in changed_values(content[key], value):
                if isinstance(content, dict):
                    yield {**content, key: inner}
                else:
                    yield [inner if i == key else x for i, x in enumerate(content)]


WRONG = [None, "x", -1, 10**30, 1e300, [], {}, [[]], True, float("nan"), float("inf")]


@pytest.mark.parametrize("name", JSON)
def test_a_json_record_of_wrong_values_reads_or_is_refused_in_one_line(here, name):
    content, read = JSON[name]
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    for value in WRONG:
        for record in changed_values(content, value):
            path.write_text(json.dumps(record))
            count += refused(read, path) is not None
    assert count > 30
    for key in content:
        path.write_text(json.dumps({k: x for k, x in content.items() if k != key}))
        refused(read, path)
    for text in ("[" * 100_000, '{"a":' * 100_000, "9" * 100_000, '"\\ud800"', "null", "3", "[]"):
        path.write_text(text)
        assert refused(read, path)


@pytest.mark.parametrize("name", CSV)
def test_a_table_of_wrong_values_reads_or_is_refused_in_one_line(here, name):
    content, read = CSV[name]
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    for column in content:
        for value in ("x", "", "inf", "1e999", "9" * 400, '"', "nan,1", "\0", "1_0"):
            lines = pd.DataFrame(content).astype(object).assign(**{column: value})
            path.write_text(lines.to_csv(index=False).replace('"""', '"'))
            refused(read, path)
        pd.DataFrame(content).drop(columns=column).to_csv(path, index=False)
        assert f"has no column '{column}'" in refused(read, path)
    pd.DataFrame(content).iloc[[0, 0]].to_csv(path, index=False)
    assert ("two rows of the same" in (refused(read, path) or "")) == (
        name in ("metrics/curves/x.csv", "metrics/evaluate/x.csv")
    )
    first, *rows = pd.DataFrame(content).to_csv(index=False).splitlines()
    path.write_text("\n".join([first, *(f"{row},1" for row in rows)]))  # too long for the header
    assert "is damaged" in refused(read, path)


# --- each reader --------------------------------------------------------------------------------


def header(path, shape, descr="<f4", size=128):
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": descr, "fortran_order": False, "shape": shape}
        )
        file.write(bytes(size))


@pytest.mark.parametrize(
    ("shape", "descr"),
    [((10**15,), "<f4"), ((10**30,), "<f4"), ((2**40, 2**40), "<f4"), ((4,), "|O"), ((9,), "<M8")],
)
def test_a_header_that_promises_more_than_the_file_has_takes_no_memory(tmp_path, shape, descr):
    path = tmp_path / "a.npy"
    header(path, shape, descr)
    assert "is damaged" in refused(lambda: read_array(path, "float32", (None,)), path)


def test_a_safetensors_header_beyond_the_file_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    text = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}})
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode())
    assert "is damaged" in refused(lambda: read_safetensors(path), path)
    path.write_bytes((10**9).to_bytes(8, "little") + text.encode())
    assert "is damaged" in refused(lambda: read_safetensors(path), path)


@pytest.mark.parametrize("mode", [None, "r", "c"])
def test_an_array_comes_back(tmp_path, mode):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_array(path := tmp_path / "a.npy", array)
    found = read_array(path, "float16 float32", (None, 3), mode)
    assert np.array_equal(found, array) and found.dtype == np.float32
    assert found.flags.writeable == (mode != "r")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mode", [None, "r"])
def test_numbers_that_are_not_finite_are_refused(tmp_path, value, mode, monkeypatch):
    monkeypatch.setattr("richkd.base.records.CHUNK", 4)
    array = np.zeros((2, 5), np.float16)
    write_array(path := tmp_path / "a.npy", array)
    read_array(path, "float16", (None, 5), mode)
    array[1, 4] = value
    write_array(path, array)
    with pytest.raises(InputError, match="a.npy holds NaN or infinity"):
        read_array(path, "float16", (None, 5), mode)
    assert read_array(path, "float16", (None, 5), mode, finite=False).shape == (2, 5)


def test_another_array_is_refused_with_what_it_must_be(tmp_path):
    write_array(path := tmp_path / "a.npy", np.zeros((2, 3), np.int64))
    with pytest.raises(InputError) as caught:
        read_array(path, "float16 float32", (None, 4))
    assert str(caught.value) == f"{path} holds int64 (2, 3): must be float16 or float32 (any, 4)"


def test_the_first_wrong_value_is_named(tmp_path):
    write_json(path := tmp_path / "a.json", {"x": {"mean": 1.0}, "y": {"mean": "much"}})
    with pytest.raises(InputError) as caught:
        read_json(path, seeds.Metrics)
    assert str(caught.value) == (
        f"{path} is damaged or of another version of this code (y.mean: Input should be a valid "
        "number): run `dvc repro`"
    )
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3,x\n")
    with pytest.raises(InputError, match="a.csv: column 'b' is damaged .*0: Input should be a"):
        read_csv(tmp_path / "a.csv", {"a": int, "b": FiniteFloat})


def test_a_table_comes_back_as_pandas_reads_it(tmp_path):
    table = pd.DataFrame({"a": [1, 2], "b": [0.1 + 0.2, None], "c": ["x", "y"]})
    table.to_csv(path := tmp_path / "a.csv", index=False)
    pd.testing.assert_frame_equal(read_csv(path, {"a": int, "b": float}), pd.read_csv(path))


def test_the_image_counts_of_a_split_agree(here):
    for name, changed in {
        "must be uint8 (3, any, any, 3)": IMAGES._replace(labels=IMAGES.labels[:3]),
        "must be 0 or more": IMAGES._replace(labels=IMAGES.labels - 1),
        "images holds int16": IMAGES._replace(images=IMAGES.images.astype(np.int16)),
    }.items():
        save_split("data/x.safetensors", changed)
        assert name in refused(lambda: load_split("data/x.safetensors"), "data/x.safetensors")


def test_a_label_of_no_class_is_refused(here):
    save_split("data/x.safetensors", IMAGES)
    assert len(load_split("data/x.safetensors", 4).labels) == 4
    with pytest.raises(InputError, match="x.safetensors has the label 3: must be below 3"):
        load_split("data/x.safetensors", 3)


def test_logits_of_other_classes_are_refused(here):
    write_array("predictions/x/test.npy", np.zeros((1, 4, 2), np.float32))
    with pytest.raises(InputError, match="test.npy has 2 classes, there is a label 2"):
        scores.read_logits("x", "test", (None, 4, None), LABELS)
    write_array("predictions/x/test.npy", np.zeros((0, 4, 3), np.float32))
    with pytest.raises(InputError, match="must be of at least one seed and class"):
        scores.read_logits("x", "test", (None, 4, None), LABELS)


def test_a_class_beyond_those_of_the_logits_is_refused(here):
    write_json(SHIFTED / "sets.json", {"v2": {"images": 1, "classes": [3]}})
    write_json("predictions/x/seeds.json", ["seed0"])
    write_array("predictions/x/test.npy", np.zeros((1, 4, 3), np.float32))
    write_array("predictions/x/corrupted.npy", np.zeros((1, 0, 5, 4, 3), np.float16))
    with pytest.raises(InputError, match="sets.json: v2 has the class 3, of 3"):
        scores.score("x", LABELS, [], range(1, 6))


def test_metrics_that_one_model_lacks_are_named(here):
    models = ["teacher", "ce", "clip", "fused"]
    write_json("metrics/fusion.json", {})
    write_json("metrics/cache/clip.json", {})
    for model in models:
        write_json(f"metrics/train/{model}.json", {})
        write_json(f"metrics/calibrate/{model}.json", {"clean": CALIBRATED})
        more = {"mce": FIGURES} if model == "teacher" else {}
        write_json(f"metrics/evaluate/{model}.json", SCORES | more)
        write_json(f"predictions/{model}/seeds.json", ["seed0"])
        write_array(f"predictions/{model}/test.npy", np.zeros((1, 4, 3), np.float32))
    with pytest.raises(InputError, match="the metrics of ce have no mce"):
        summary.read_summary(models)
