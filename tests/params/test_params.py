"""Every mistake in params.yaml is one line that names the key, its value and what is allowed."""

import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from richkd import models, params
from richkd.base.errors import InputError

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "params.yaml", *sorted((ROOT / "presets").glob("*.yaml"))]
GOOD = yaml.safe_load(FILES[0].read_text())
quick = settings(max_examples=40, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("params") / "params.yaml"


def write(path, changes=(), drop=()):
    """GOOD with `section.key` changed or dropped."""
    raw = copy.deepcopy(GOOD)
    for key, value in [*dict(changes).items(), *((key, None) for key in drop)]:
        *parents, name = key.split(".")
        scope = raw
        for parent in parents:
            scope = scope[parent]
        scope[name] = value
        if key in drop:
            del scope[name]
    path.write_text(yaml.safe_dump(raw))


def refusal(path):
    with pytest.raises(InputError) as caught:
        params.load("runtime", path=path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(path))
    return message.removeprefix(str(path))


PAIRS = [
    dict(override.split("=") for override in line.split(" -S ")[1:])
    for line in (ROOT / "docs/results.md").read_text().splitlines()
    if line.startswith("    dvc exp run -S")
]


@pytest.mark.parametrize("overrides", PAIRS, ids=lambda x: "-".join(x.values()))
def test_the_overrides_for_every_published_pair_fit_the_preset(path, overrides):
    preset = yaml.safe_load((ROOT / "presets/cifar100.yaml").read_text())
    for key, value in overrides.items():
        section, name = key.split(".")
        assert name in preset[section]
        preset[section][name] = yaml.safe_load(value)
    path.write_text(yaml.safe_dump(preset))
    loaded = params.load("student", path=path).student
    slow = loaded.arch.startswith(("mobilenet", "shufflenet"))
    assert loaded.lr == (0.01 if slow else 0.05)


def test_the_ten_other_pairs_are_there():
    pairs = {(x.get("teacher.arch", "resnet32x4"), x["student.arch"]) for x in PAIRS}
    table = (ROOT / "docs/results.md").read_text()
    assert len(pairs) == 10 and all(f"| {a} → {b} |" in table for a, b in pairs)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_committed_files_load(file):
    sections = yaml.safe_load(file.read_text())
    loaded = params.to_dict(params.load(*sections, path=file))
    assert loaded == sections


REFUSED = {
    "data set": ({"dataset.name": "cifar1000"}, ": dataset.name is 'cifar1000': ", "'cifar100'"),
    "source": (
        {"teacher.source": "web"},
        ": teacher.source is 'web': must be one of 'train', 'che",
    ),
    "key of another source": (
        {"clip.tag": "openai"},
        ": clip.tag is not a parameter: allowed are prompts, logit_scale, source, model, training",
    ),
    "value for a section with sources": ({"clip": "openai"}, ": clip is 'openai': ", "an object"),
    "null for a section with sources": ({"dataset": None}, ": dataset is None: ", "an object"),
    "accuracy": ({"teacher.min_accuracy": 95}, ": teacher.min_accuracy is 95: ", "or equal to 1"),
    "alpha above 1": ({"fusion.alpha": 1.5}, ": fusion.alpha is 1.5: ", "or equal to 1"),
    "alpha below 0": ({"fusion.alpha": -0.1}, ": fusion.alpha is -0.1: ", "or equal to 0"),
    "NaN": ({"fusion.lam": float("nan")}, ": fusion.lam is nan: ", "a finite number"),
    "infinity": ({"teacher.lr": float("inf")}, ": teacher.lr is inf: ", "a finite number"),
    "string for a number": ({"fusion.alpha": "0.5"}, ": fusion.alpha is '0.5': ", "valid number"),
    "number for a bool": ({"views.flip": 1}, ": views.flip is 1: ", "valid boolean"),
    "bool for an int": ({"crd.dim": True}, ": crd.dim is True: ", "valid integer"),
    "float for an int": ({"crd.dim": 1.5}, ": crd.dim is 1.5: ", "valid integer"),
    "value for a list": ({"distill.variants": "L"}, ": distill.variants is 'L': ", "valid array"),
    "value for a section": ({"views": 4}, ": views is 4: ", "should be an object"),
    "null for a section": ({"views": None}, ": views is None: ", "should be an object"),
    "negative epochs": ({"student.epochs": -1}, ": student.epochs is -1: ", "or equal to 1"),
    "no epochs": ({"student.epochs": 0}, ": student.epochs is 0: ", "or equal to 1"),
    "negative seed": ({"distill.seeds": [0, -1]}, ": distill.seeds.1 is -1: ", "or equal to 0"),
    "same seed twice": ({"distill.seeds": [0, 0]}, ": distill.seeds is [0, 0]: ", "twice"),
    "no seeds": ({"distill.seeds": []}, ": distill.seeds is []: ", "at least 1 item"),
    "no classes": ({"dataset.classes": []}, ": dataset.classes is []: ", "'all' or", "1 item"),
    "one class's name": ({"dataset.classes": "one"}, ": dataset.classes is 'one': ", "'all' or"),
    "variant": ({"distill.variants": ["LX"]}, ": distill.variants.0 is 'LX': ", "'L', 'F' or 'LF'"),
    "device": ({"runtime.device": "gpu"}, ": runtime.device is 'gpu': ", "'auto', 'cpu' or 'cuda'"),
    "step": ({"runtime.step": "fast"}, ": runtime.step is 'fast': ", "'auto', 'eager', 'graph' or"),
    "compiled side by side": (
        {"runtime.step": "compile", "runtime.seeds_at_once": 2},
        ": runtime.seeds_at_once is 2: must be 1 where runtime.step is 'compile'",
    ),
    "no seeds at once": ({"runtime.seeds_at_once": 0}, ": runtime.seeds_at_once is 0: ", "to 1"),
    "number of negatives": (
        {"crd.negatives": 9},
        ": crd.negatives is 9: ",
        "'per_sample' or 'shared'",
    ),
    "prompt": ({"clip.prompts": ["a photo"]}, ": clip.prompts.0 is 'a photo': ", "hold {} once"),
    "logit scale": ({"clip.logit_scale": -1}, ": clip.logit_scale is -1: ", "'model' or", "than 0"),
    "momentum of 1": ({"crd.momentum": 1.0}, ": crd.momentum is 1.0: ", "less than 1"),
    "image size": ({"clip.model.image_size": 40}, ": clip.model.image_size is 40: ", "of 32"),
    "corruption": ({"corruptions.names": ["mist"]}, ": corruptions.names.0 is 'mist': ", "'fog'"),
    "severity": ({"corruptions.severities": [6]}, ": corruptions.severities.0 is 6: ", "to 5"),
    "misspelt key": (
        {"fusion.alhpa": 0.5},
        ": fusion.alhpa is not a parameter: did you mean alpha? allowed are alpha, lam, grid",
    ),
    "misspelt key inside a section": (
        {"clip.model.text_with": 8},
        ": clip.model.text_with is not a parameter: did you mean text_width? allowed are embed_dim",
    ),
    "misspelt section": ({"fussion": {}}, ": fussion is not a parameter: did you mean fusion?"),
    "key unlike any other": ({"views.zzz": 1}, ": views.zzz is not a parameter: allowed are aug"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(path, name):
    changes, start, *parts = REFUSED[name]
    write(path, changes)
    message = refusal(path)
    assert message.startswith(start)
    assert all(part in message for part in parts)


ACROSS = {
    "arch": (
        {"student.arch": "resnet9"},
        ["student.arch is 'resnet9'", *models.names(), "torchvision/<name>"],
    ),
    "models": (
        {"evaluate.models": ["teacher", "clip"]},
        ["evaluate.models is ['teacher', 'clip']", "'ce', 'kd', 'L'", "distill.variants"],
    ),
    "milestones": (
        {"teacher.schedule": "step", "teacher.epochs": 9, "teacher.milestones": [3, 9, 12]},
        ["teacher.milestones is [9, 12]", "below 9 epochs"],
    ),
}


@pytest.mark.parametrize("name", ACROSS)
def test_refuses_what_does_not_go_together(path, name):
    changes, parts = ACROSS[name]
    write(path, changes)
    message = refusal(path)
    assert all(part in message for part in parts)


CIFAR = yaml.safe_load((ROOT / "presets/cifar100.yaml").read_text())
REFUSED_OF_CIFAR = {
    "sha256": ({"dataset.sha256": "5847"}, ": dataset.sha256 is '5847': "),
    "url": ({"dataset.urls": ["file:///x"]}, ": dataset.urls.0 is 'file:///x': "),
    "no urls": ({"corruptions.urls": []}, ": corruptions.urls is []: "),
    "validation": ({"dataset.validation": -1}, ": dataset.validation is -1: "),
    "images": ({"dataset.train_per_class": "most"}, ": dataset.train_per_class is 'most': should"),
    "prompts by name": (
        {"clip.prompts": "imagenet"},
        ": clip.prompts is 'imagenet': should be 'im",
    ),
    "arch": ({"teacher.arch": "resnet9"}, ": teacher.arch is 'resnet9': must be one of resnet8"),
    "teachers of other data": (
        {"dataset.name": "cifar10"},
        ": teacher.source is 'mdistiller': these teachers know cifar100 alone",
    ),
    "published digits": (
        {"dataset": GOOD["dataset"], "teacher": GOOD["teacher"]},
        ": corruptions.source is 'download': must be 'generate' for digits",
    ),
    "trained CLIP without images": (
        {"clip": GOOD["clip"]},
        ": dataset.captioned_images is 0: clip.source train needs images to train on",
    ),
}


@pytest.mark.parametrize("name", REFUSED_OF_CIFAR)
def test_refuses_in_cifar100(path, name, monkeypatch):
    monkeypatch.setattr(f"{__name__}.GOOD", CIFAR)
    changes, start = REFUSED_OF_CIFAR[name]
    write(path, changes)
    assert refusal(path).startswith(start)


IMAGENET = yaml.safe_load((ROOT / "presets/imagenet-r34-r18.yaml").read_text())
FOLDER = IMAGENET["dataset"] | {"name": "folder", "names": None}
SETS = {"names": ["fog"], "severities": [1]}
DOWNLOADED = {"source": "download", "urls": ["https://example.org/x.tar"], **SETS}
ORDER = "must be two numbers, the smaller first"
END = "there is no end of views of resized_crop"
REFUSED_OF_IMAGENET = {
    "padded crops": (
        {"views": {"augmentation": "padded_crop", "pad": 4, "flip": True}},
        ": views.augmentation is 'padded_crop': must be 'resized_crop' for imagenet",
    ),
    "padded crops of folders": (
        {"views": GOOD["views"], "dataset": FOLDER},
        ": views.augmentation is 'padded_crop': must be 'resized_crop' for folder",
    ),
    "augmentation": (
        {"views.augmentation": "mixup"},
        ": views.augmentation is 'mixup': must be one of 'padded_crop', 'resized_crop'",
    ),
    "key of the other augmentation": (
        {"views.pad": 4},
        ": views.pad is not a parameter: allowed are augmentation, size, resize, scale, ratio, flip",
    ),
    "scale beyond the image": (
        {"views.scale": [0.08, 1.2]},
        f": views.scale is [0.08, 1.2]: {ORDER}, at most 1",
    ),
    "scale the wrong way round": (
        {"views.scale": [1.0, 0.08]},
        f": views.scale is [1.0, 0.08]: {ORDER}, at most 1",
    ),
    "scale of nothing": ({"views.scale": [0.0, 1.0]}, ": views.scale.0 is 0.0: should be greater"),
    "scale of three": (
        {"views.scale": [0.1, 0.5, 1.0]},
        ": views.scale is [0.1, 0.5, 1.0]: should",
    ),
    "ratio the wrong way round": (
        {"views.ratio": [1.333, 0.75]},
        f": views.ratio is [1.333, 0.75]: {ORDER}",
    ),
    "resize below the size": (
        {"views.resize": 200},
        ": views.resize is 200: must be at least views.size, 224",
    ),
    "size": ({"views.size": 8}, ": views.size is 8: should be greater than or equal to 16"),
    "all views of the teacher": ({"cache.teacher": "all"}, f": cache.teacher is 'all': {END}"),
    "all views of CLIP": ({"cache.clip": "all"}, f": cache.clip is 'all': {END}"),
    "CLIP that runs along": ({"cache.clip": "online"}, ": cache.clip is 'online': should be 'cen"),
    "no logits": ({"cache.top_k": 0}, ": cache.top_k is 0: should be greater than or equal to 1"),
    "arrays as a shifted set": (
        {"shifted": {"v2": ["x.npy", "y.npy"]}},
        ": shifted.v2 is ('x.npy', 'y.npy'): must be a folder for imagenet",
    ),
    "three arrays": ({"shifted": {"v2": ["x", "y", "z"]}}, ": shifted.v2 is ['x', 'y', 'z']: "),
    "name of a shifted set": (
        {"shifted": {"../v2": "x"}},
        ": shifted is '../v2': String should match pattern '^[a-z]",
    ),
    "corruptions": (
        {"corruptions": DOWNLOADED},
        ": corruptions.source is 'download': must be 'generate' or 'path' for imagenet",
    ),
    "published corruptions of folders": (
        {"dataset": FOLDER},
        ": corruptions.source is 'path': must be 'generate' for folder",
    ),
    "names of ImageNet's classes": (
        {"dataset.names": "x.json"},
        ": dataset.names is not a parameter: did you mean name?",
    ),
    "no images expected": ({"dataset.expect_train": 0}, ": dataset.expect_train is 0: should"),
}


@pytest.mark.parametrize("name", REFUSED_OF_IMAGENET)
def test_refuses_in_imagenet(path, name, monkeypatch):
    monkeypatch.setattr(f"{__name__}.GOOD", IMAGENET)
    changes, start = REFUSED_OF_IMAGENET[name]
    write(path, changes)
    assert refusal(path).startswith(start)


def test_refuses_what_is_of_files_where_images_are_in_arrays(path):
    write(path, {"views": IMAGENET["views"]})
    assert (
        refusal(path) == ": views.augmentation is 'resized_crop': must be 'padded_crop' for digits"
    )
    write(path, {"shifted": {"v2": "../v2"}})
    assert refusal(path) == (
        ": shifted.v2 is '../v2': must be two .npy files, images and labels for digits"
    )


def test_shifted_sets_are_arrays_or_folders_as_the_data_set_is(path, monkeypatch):
    write(path, {"shifted": {"v2": ["x.npy", "y.npy"]}})
    assert params.load("shifted", path=path).shifted == {"v2": ("x.npy", "y.npy")}
    monkeypatch.setattr(f"{__name__}.GOOD", IMAGENET)
    write(path, {"shifted": {"v2": "../v2"}})
    assert params.load("shifted", path=path).shifted == {"v2": "../v2"}


def test_a_teacher_runs_along_whatever_the_views(path):
    write(path, {"cache.teacher": "online", "cache.top_k": 5})
    cache = params.load("cache", path=path).cache
    assert (cache.teacher, cache.top_k) == ("online", 5)


def test_torchvision_s_models_may_be_student_and_teacher(path):
    names = {"teacher.arch": "torchvision/resnet34", "student.arch": "torchvision/resnet18"}
    write(path, names)
    loaded = params.load("teacher.arch", "student.arch", path=path)
    assert (loaded.teacher.arch, loaded.student.arch) == tuple(names.values())


THERE = {"source": "torchvision", "arch": "resnet180", "weights": "DEFAULT", "min_accuracy": 0}


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("teacher.arch", {"teacher.arch": "torchvision/resnet180"}),
        ("teacher.arch", {"teacher": THERE}),
        ("student.arch", {"student.arch": "torchvision/resnet180"}),
    ],
)
def test_a_mistyped_model_of_torchvision_is_told_before_any_work(path, key, changes):
    write(path, changes)
    with pytest.raises(InputError) as caught:
        params.load(path=path)
    said = f"{key}: model 'torchvision/resnet180' is unknown: torchvision has resnet18, "
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "teacher", "student"),
    [
        ("imagenet-r34-r18", "resnet34", "torchvision/resnet18"),
        ("imagenet-r50-mv1", "resnet50", "mobilenetv1"),
    ],
)
def test_imagenet_is_trained_on_as_the_papers_do(file, teacher, student):
    p = params.load("dataset", "views", "teacher", "student", path=ROOT / f"presets/{file}.yaml")
    assert (p.teacher.arch, p.teacher.weights) == (teacher, "IMAGENET1K_V1")
    assert params.to_dict(p.student) == {
        "arch": student, "epochs": 100, "batch_size": 512, "lr": 0.2, "schedule": "step",
        "milestones": [30, 60, 90], "momentum": 0.9, "weight_decay": 1e-4,
    }  # fmt: skip
    assert params.to_dict(p.views) == {
        "augmentation": "resized_crop", "size": 224, "resize": 256, "scale": [0.08, 1.0],
        "ratio": [3 / 4, 4 / 3], "flip": True,
    }  # fmt: skip
    assert (p.dataset.expect_train, p.dataset.expect_val) == (1_281_167, 50_000)
    assert (p.dataset.train_per_class, p.dataset.validation) == ("all", 0)


def test_every_source_loads(path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.GOOD", CIFAR)
    numbers = {"min_accuracy": 0.7, "mean": [0.5] * 3, "std": [0.2] * 3}
    prompts = {"prompts": "imagenet80", "logit_scale": 100}
    sha = {"sha256": "0" * 64}
    sets = {"names": ["fog"], "severities": [1]}
    sections = [
        {"teacher": {"source": "checkpoint", "arch": "vgg8", "path": "x", **sha, **numbers}},
        {
            "teacher": {
                "source": "torchvision",
                "arch": "vit_b_16",
                "weights": "DEFAULT",
                "min_accuracy": 0,
            }
        },
        {
            "clip": {
                "source": "checkpoint",
                "model": "RN50",
                "tag": None,
                "path": "x",
                **sha,
                **prompts,
            }
        },
        {"corruptions": {"source": "path", "path": "x", **sets}},
        {"corruptions": {"source": "generate", "seed": 0, **sets}},
        {"cache": {"teacher": "online", "clip": "all", "top_k": 3, "batch_size": 1}},
    ]
    for section in sections:
        write(path, section)
        (name,) = section
        assert params.to_dict(params.load(name, path=path)) == section


def test_milestones_count_for_the_step_schedule_only(path):
    write(path, {"teacher.schedule": "onecycle", "teacher.epochs": 9, "teacher.milestones": [12]})
    assert params.load("teacher.milestones", path=path).teacher.milestones == (12,)


def test_the_models_to_evaluate_follow_the_variants(path):
    models_ = ["teacher", "clip", "kd", "LF"]
    changes = {"baseline.variants": ["kd"], "distill.variants": ["LF"], "evaluate.models": models_}
    write(path, changes)
    assert params.load("evaluate", path=path).evaluate.models == tuple(models_)


@pytest.mark.parametrize(
    "key", ["views", "fusion.alpha", "clip.model.embed_dim", "teacher.source", "corruptions.names"]
)
def test_names_what_is_missing(path, key):
    write(path, drop=[key])
    assert refusal(path) == f": {key} is missing"


def test_a_misspelt_key_is_named_before_the_one_it_leaves_missing(path):
    write(path, {"fusion.alhpa": 0.5}, drop=["fusion.alpha"])
    assert refusal(path).startswith(": fusion.alhpa is not a parameter: did you mean alpha?")


UNREADABLE = {
    "unclosed": b"a: [",
    "tagged": b"a: !!python/object:os.system {}",
    "date": b"a: 2020-01-01",
    "binary": b"\xff\xfe\xfa",
    "two documents": b"a: 1\n---\nb: 2\n",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_refuses_what_is_no_yaml(path, name):
    path.write_bytes(UNREADABLE[name])
    assert refusal(path).startswith(" is not readable as YAML: ")


def test_an_empty_file_lacks_the_first_section(path):
    path.write_text("")
    assert refusal(path) == ": dataset is missing"


@pytest.mark.parametrize("text", ["3", "[fusion, crd]"])
def test_refuses_yaml_that_holds_no_sections(path, text):
    path.write_text(text)
    assert "should be an object" in refusal(path)


def test_the_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        params.load("runtime", path=tmp_path / "nowhere.yaml")


# --- not yet as it should be ---------------------------------------------------------------------

WRONG = {
    "key that is no Python name": ({"my-key": 1}, ": my-key is not a parameter: allowed are data"),
    "the same in a section": ({"crd.my-key": 1}, ": crd.my-key is not a parameter: allowed are di"),
    "number for a class name": ({"dataset.classes": [1]}, ": dataset.classes.0 is 1: "),
    "heads that do not divide the width": (
        {"clip.model.text_width": 64, "clip.model.text_heads": 3},
        ": clip.model.text_heads is 3: ",
    ),
    "prompt with another field": ({"clip.prompts": ["{} {x}"]}, ": clip.prompts.0 is '{} {x}': "),
    "prompt with a lone brace": ({"clip.prompts": ["{} {"]}, ": clip.prompts.0 is '{} {': "),
    "scale beyond 16 bits": ({"clip.logit_scale": 1e6}, ": clip.logit_scale is 1000000.0: "),
    "temperature beyond 32 bits": ({"crd.temperature": 0.001}, ": crd.temperature is 0.001: "),
    "seed beyond 64 bits": ({"distill.seeds": [2**60]}, f": distill.seeds.0 is {2**60}: "),
}


@pytest.mark.parametrize("name", WRONG)
def test_should_refuse(path, name):
    changes, start = WRONG[name]
    write(path, changes)
    assert refusal(path).startswith(start)


def test_numbers_as_dvc_writes_them(path):
    """`dvc exp run -S teacher.weight_decay=0.00001` writes 1e-05."""
    text = FILES[0].read_text()
    path.write_text(text.replace("weight_decay: 0.0005", "weight_decay: 1e-05"))
    assert params.load("teacher", path=path).teacher.weight_decay == 1e-05


def test_a_key_given_twice_is_refused(path):
    path.write_text(FILES[0].read_text() + "\nviews: {pad: 2, flip: true}\n")
    assert "views" in refusal(path)


# --- what load gives ----------------------------------------------------------------------------


def test_load_gives_what_was_asked_for_and_nothing_else():
    chosen = params.load("runtime", "fusion.alpha", "fusion.lam", "clip.model", path=FILES[0])
    assert set(vars(chosen)) == {"runtime", "fusion", "clip"}
    assert set(vars(chosen.fusion)) == {"alpha", "lam"}
    assert chosen.runtime.device == GOOD["runtime"]["device"]
    assert not hasattr(chosen.clip, "prompts") and not hasattr(chosen, "teacher")


def test_load_checks_what_was_not_asked_for(path):
    write(path, {"crd.dim": 0})
    with pytest.raises(InputError, match="crd.dim is 0"):
        params.load("runtime", path=path)


def test_what_is_loaded_cannot_change():
    runtime = params.load("runtime", path=FILES[0]).runtime
    with pytest.raises(AttributeError):
        runtime.device = "cuda"


def test_to_dict_gives_back_what_the_file_says():
    chosen = params.load("fusion.alpha", "clip", "distill.seeds", path=FILES[0])
    assert params.to_dict(chosen) == {
        "fusion": {"alpha": GOOD["fusion"]["alpha"]},
        "clip": GOOD["clip"],
        "distill": {"seeds": GOOD["distill"]["seeds"]},
    }


@quick
@given(st.floats(0, 1))
def test_every_alpha_from_0_to_1_is_accepted(path, alpha):
    write(path, {"fusion.alpha": alpha})
    assert params.load("fusion.alpha", path=path).fusion.alpha == alpha


@quick
@given(st.floats(max_value=0, exclude_max=True) | st.floats(min_value=1, exclude_min=True))
def test_every_other_alpha_is_refused(path, alpha):
    write(path, {"fusion.alpha": alpha})
    assert refusal(path).startswith(f": fusion.alpha is {alpha}: should be")


@quick
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_any_value_for_a_list_gives_one_line_or_loads(path, value):
    write(path, {"corruptions.severities": value})
    try:
        params.load("runtime", path=path)
    except InputError as error:
        assert len(str(error).splitlines()) == 1 and "corruptions.severities" in str(error)
    else:
        assert set(value) <= {1, 2, 3, 4, 5}
