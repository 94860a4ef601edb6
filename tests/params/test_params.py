"""Every mistake in params.yaml is one line that names the key, its value and what is allowed."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from richkd import params
from richkd.base.errors import InputError
from richkd.params.reading import read_yaml

PRESETS = Path(__file__).parents[2] / "presets"
GOOD, IMAGENET = (
    yaml.safe_load((PRESETS / name).read_text())
    for name in ("digits.yaml", "imagenet-r34-r18.yaml")
)
quick = settings(max_examples=40, deadline=None, derandomize=True)

CRD = "distill.variants.F.crd."
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
    "bool for an int": ({CRD + "dim": True}, f": {CRD}dim is True: ", "valid integer"),
    "float for an int": ({CRD + "dim": 1.5}, f": {CRD}dim is 1.5: ", "valid integer"),
    "value for a list": ({"distill.seeds": 1}, ": distill.seeds is 1: ", "valid array"),
    "value for a section": ({"views": 4}, ": views is 4: ", "should be an object"),
    "null for a section": ({"views": None}, ": views is None: ", "should be an object"),
    "negative epochs": ({"student.epochs": -1}, ": student.epochs is -1: ", "or equal to 1"),
    "no epochs": ({"student.epochs": 0}, ": student.epochs is 0: ", "or equal to 1"),
    "negative seed": ({"distill.seeds": [0, -1]}, ": distill.seeds.1 is -1: ", "or equal to 0"),
    "same seed twice": ({"distill.seeds": [0, 0]}, ": distill.seeds is [0, 0]: ", "twice"),
    "no seeds": ({"distill.seeds": []}, ": distill.seeds is []: ", "at least 1 item"),
    "no classes": ({"dataset.classes": []}, ": dataset.classes is []: ", "'all' or", "1 item"),
    "one class's name": ({"dataset.classes": "one"}, ": dataset.classes is 'one': ", "'all' or"),
    "device": ({"runtime.device": "gpu"}, ": runtime.device is 'gpu': ", "'auto', 'cpu' or 'cuda'"),
    "step": ({"runtime.step": "fast"}, ": runtime.step is 'fast': ", "'auto', 'eager', 'graph' or"),
    "compiled side by side": (
        {"runtime.step": "compile", "runtime.seeds_at_once": 2},
        ": runtime.seeds_at_once is 2: must be 1 where runtime.step is 'compile'",
    ),
    "no seeds at once": ({"runtime.seeds_at_once": 0}, ": runtime.seeds_at_once is 0: ", "to 1"),
    "number of negatives": (
        {CRD + "negatives": 9},
        f": {CRD}negatives is 9: ",
        "'per_sample' or 'shared'",
    ),
    "prompt": ({"clip.prompts": ["a photo"]}, ": clip.prompts.0 is 'a photo': ", "hold {} once"),
    "logit scale": ({"clip.logit_scale": -1}, ": clip.logit_scale is -1: ", "'model' or", "than 0"),
    "momentum of 1": ({CRD + "momentum": 1.0}, f": {CRD}momentum is 1.0: ", "less than 1"),
    "image size": ({"clip.model.image_size": 40}, ": clip.model.image_size is 40: ", "of 32"),
    "corruption": ({"corruptions.names": ["mist"]}, ": corruptions.names.0 is 'mist': ", "'fog'"),
    "severity": ({"corruptions.severities": [6]}, ": corruptions.severities.0 is 6: ", "to 5"),
    "misspelt key": (
        {"fusion.alhpa": 0.5},
        ": fusion.alhpa is not a parameter: did you mean alpha? allowed are align, alpha, lam, "
        "per_class, seen_validation, grid",
    ),
    "misspelt key inside a section": (
        {"clip.model.text_with": 8},
        ": clip.model.text_with is not a parameter: did you mean text_width? allowed are embed_dim",
    ),
    "misspelt section": ({"fussion": {}}, ": fussion is not a parameter: did you mean fusion?"),
    "key that is no Python name": ({"my-key": 1}, ": my-key is not a parameter: allowed are data"),
    "the same in a section": (
        {"fusion.my-key": 1},
        ": fusion.my-key is not a parameter: allowed are al",
    ),
    "number for a class name": ({"dataset.classes": [1]}, ": dataset.classes.0 is 1: "),
    "heads that do not divide the width": (
        {"clip.model.text_width": 64, "clip.model.text_heads": 3},
        ": clip.model.text_heads is 3: ",
    ),
    "prompt with another field": ({"clip.prompts": ["{} {x}"]}, ": clip.prompts.0 is '{} {x}': "),
    "prompt with a lone brace": ({"clip.prompts": ["{} {"]}, ": clip.prompts.0 is '{} {': "),
    "scale beyond 16 bits": ({"clip.logit_scale": 1e6}, ": clip.logit_scale is 1000000.0: "),
    "temperature beyond 32 bits": ({CRD + "temperature": 0.001}, f": {CRD}temperature is 0.001: "),
    "seed beyond 64 bits": ({"distill.seeds": [2**60]}, f": distill.seeds.0 is {2**60}: "),
    "key that cannot be printed": (
        {"views.a\nb": 1},
        ": views.'a\\nb' is not a parameter: allowed are augmentation, pad, flip",
    ),
    "kind that is missing": ({"teacher": {"arch": "vgg8"}}, ": teacher.source is missing"),
    "key unlike any other": ({"views.zzz": 1}, ": views.zzz is not a parameter: allowed are aug"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(file, name):
    changes, start, *parts = REFUSED[name]
    file.write(changes)
    message = file.refusal()
    assert message.startswith(start)
    assert all(part in message for part in parts)


ENDLESS = 10**30
BOUNDS = {  # a value that is far too large for each kind of number, by preset and key
    "digits": {
        "dataset.train_per_class": 10**9,
        "dataset.test_images": ENDLESS,
        "dataset.captioned_images": 10**9,
        "views.pad": 33,
        "runtime.seeds_at_once": ENDLESS,
        "teacher.epochs": ENDLESS,
        "teacher.lr": 1e38,
        "teacher.weight_decay": 1e300,
        "student.batch_size": ENDLESS,
        "clip.model.embed_dim": 10**9,
        "clip.model.image_size": 32 * 10**6,
        "clip.model.vision_layers": [1, 1, 1, 10**6],
        "clip.model.vision_width": 10**6,
        "clip.model.text_width": 10**9,
        "clip.model.text_layers": 10**6,
        "clip.model.context_length": 10**6,
        "clip.training.steps": ENDLESS,
        "clip.training.batch_size": ENDLESS,
        "clip.training.lr": 1e300,
        "cache.top_k": ENDLESS,
        "cache.batch_size": ENDLESS,
        "evaluate.batch_size": ENDLESS,
        "calibration.bins": 10**9,
        "distill.variants.kd.kd.temperature": 1e200,
        "distill.variants.kd.kd.weight": 1e300,
        CRD + "dim": 10**9,
        CRD + "num_negatives": 10**9,
        CRD + "temperature": 1e200,
    },
    "imagenet-r34-r18": {
        "dataset.validation": ENDLESS,
        "dataset.unreadable": ENDLESS,
        "views.size": 10**6,
        "views.resize": ENDLESS,
        "views.ratio": [0.5, 1e308],
    },
}


@pytest.mark.parametrize(
    ("preset", "key", "value"),
    [(preset, key, value) for preset, cases in BOUNDS.items() for key, value in cases.items()],
)
def test_every_number_has_a_bound(file, preset, key, value):
    file.write({key: value}, preset=preset)
    message = file.refusal()
    assert message.startswith(f": {key}") and "should be less than or equal to " in message


@pytest.mark.parametrize(
    "prompt",
    ["{:d} x", "{!z}", "{:{}}", "{:x>3000000000}", "{0}", "{{}}", "{} {{x}}", "{} {}", "}{"],
)
def test_a_prompt_holds_bare_braces_once(file, prompt):
    file.write({"clip.prompts": ["a {}", prompt]})
    said = (
        "must hold {} once, where the class name goes, and no other brace but {kind}, where the "
        "name of its superclass goes"
    )
    assert file.refusal().endswith(f": {said}")
    file.write({"clip.training.captions": [prompt]})
    assert file.refusal() == f": clip.training.captions.0 is {prompt!r}: {said}"


THERE = {"source": "torchvision", "arch": "resnet180", "weights": "DEFAULT", "min_accuracy": 0}
NEEDS_ALL = "must be at least 100, one for each class"
ACROSS = {
    "unknown class": (
        {"dataset.classes": ["one", "hundred"]},
        [": dataset.classes has 'hundred': must be numbers, zero to ninety-nine"],
    ),
    "superclass in a prompt": (
        {"clip.prompts": ["a {}", "a {}, one of the {kind}"]},
        [": clip.prompts has 'a {}, one of the {kind}': ", "cifar100 alone has superclasses"],
    ),
    "superclass in a caption": (
        {"clip.training.captions": ["{kind} {}"]},
        [": clip.training.captions has '{kind} {}': {kind} is the name of a superclass"],
    ),
    "one class": ({"dataset.classes": ["one"]}, [": dataset.classes is ['one']: must name at le"]),
    "validation": ({"dataset.validation_images": 99}, [f"validation_images is 99: {NEEDS_ALL}"]),
    "test": ({"dataset.test_images": 99}, [f": dataset.test_images is 99: {NEEDS_ALL}"]),
    "captioned": ({"dataset.captioned_images": 99}, [f"captioned_images is 99: {NEEDS_ALL}"]),
    "top k": (
        {"cache.top_k": 100},
        [": cache.top_k is 100: must be below the number of classes, 100, or null"],
    ),
    "top k of few classes": (
        {"cache.top_k": 2, "dataset.classes": ["one", "two"]},
        [": cache.top_k is 2: must be below the number of classes, 2, or null"],
    ),
    "graphs on a CPU": (
        {"runtime.step": "graph", "runtime.device": "cpu"},
        [": runtime.step is 'graph': runtime.device cpu has no graphs, use auto"],
    ),
    "student for larger images": (
        {"student.arch": "torchvision/alexnet"},
        [": student.arch: model 'torchvision/alexnet' does not take images of 16 x 16 pixels ("],
    ),
    "student for images of one size": (
        {"student.arch": "torchvision/vit_b_16"},
        [": student.arch: model 'torchvision/vit_b_16' does not take images of 16 x 16 pixels ("],
    ),
    "teacher of another kind": (
        {"teacher.arch": "torchvision/squeezenet1_0"},
        [": teacher.arch: model 'torchvision/squeezenet1_0' is not supported: its logits must"],
    ),
    "weights of other classes": (
        {"teacher": THERE | {"arch": "resnet18"}, "fusion.alpha": 0.5},
        [": teacher.weights is 'DEFAULT': resnet18 with them knows 1000 classes, the data set has"],
    ),
    "arch": (
        {"student.arch": "resnet9"},
        ["student.arch: model 'resnet9' is unknown: must be one of", "torchvision/<name>"],
    ),
    "milestones": (
        {"teacher.schedule": "step", "teacher.epochs": 9, "teacher.milestones": [3, 9, 12]},
        ["teacher.milestones is [9, 12]", "below 9 epochs"],
    ),
}


@pytest.mark.parametrize("name", ACROSS)
def test_refuses_what_does_not_go_together(file, name):
    changes, parts = ACROSS[name]
    file.write(changes)
    message = file.refusal()
    assert all(part in message for part in parts)


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
    "arch": (
        {"teacher.arch": "resnet9"},
        ": teacher.arch: model 'resnet9' is unknown: must be one of resnet8",
    ),
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
        ": dataset.captioned_images is 0: clip.source train needs images to train on, at least two",
    ),
    "validation of all": (
        {"dataset.validation": 49_901},
        ": dataset.validation is 49901: must leave an image a class, so at most 49900",
    ),
    "training images that are not there": (
        {"dataset.validation": 1001, "dataset.train_per_class": 490},
        ": dataset.train_per_class is 490: must be all or at most 489, what dataset.validation le",
    ),
    "captioned images that are not there": (
        {"dataset.validation": 1000, "dataset.captioned_images": 49_001},
        ": dataset.captioned_images is 49001: must be at most 49000, what dataset.validation leav",
    ),
}


@pytest.mark.parametrize("name", REFUSED_OF_CIFAR)
def test_refuses_in_cifar100(file, name):
    changes, start = REFUSED_OF_CIFAR[name]
    file.write(changes, preset="cifar100")
    assert file.refusal().startswith(start)


FOLDER = IMAGENET["dataset"] | {"name": "folder", "names": None}
SETS = {"names": ["fog"], "severities": [1]}
GENERATED = {"source": "generate", "seed": 0, **SETS}
DOWNLOADED = {"source": "download", "urls": ["https://example.org/x.tar"], **SETS}
ORDER = "must be two numbers, the smaller first"
END = "the number of views of resized_crop is not finite"
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
        ": views.pad is not a parameter: allowed are augmentation, size, resize, scale, ratio, ",
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
    "validation of all, as a share": (
        {"dataset.validation": 1.0},
        ": dataset.validation is 1.0: should be a valid integer or should be less than 1",
    ),
    "one captioned image": (
        {"dataset.captioned_images": 1, "clip": GOOD["clip"]},
        ": dataset.captioned_images is 1: clip.source train needs images to train on, at least two",
    ),
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
        ": shifted has the name '../v2': a name is a small letter, then small letters, digits or _",
    ),
    "corruptions": (
        {"corruptions": DOWNLOADED},
        ": corruptions.source is 'download': must be 'generate' or 'path' for imagenet",
    ),
    "images larger than the photographs of ice": (
        {
            "corruptions": {
                "source": "generate",
                "names": ["frost"],
                "severities": [1],
                "seed": 0,
                "frost": "ice",
            },
            "views.size": 315,
            "views.resize": 350,
        },
        ": corruptions.frost is 'ice': must be 'generated' where views.size, 315, is not below 315",
    ),
    "published corruptions of folders": (
        {"dataset": FOLDER},
        ": corruptions.source is 'path': must be 'generate' for folder",
    ),
    "graphs of files": (
        {"runtime.step": "graph"},
        ": runtime.step is 'graph': the images of imagenet are in files, which graphs cannot read",
    ),
    "one class": ({"dataset.classes": ["n1"]}, ": dataset.classes is ['n1']: must name at least"),
    "weights without classes": (
        {"teacher": THERE | {"arch": "vgg16", "weights": "IMAGENET1K_FEATURES"}},
        ": teacher.weights is 'IMAGENET1K_FEATURES': vgg16 with them knows no classes",
    ),
    "weights for other images": (
        {"teacher": THERE | {"arch": "vit_b_16", "weights": "IMAGENET1K_SWAG_E2E_V1"}},
        ": teacher.weights is 'IMAGENET1K_SWAG_E2E_V1': model 'torchvision/vit_b_16' does not "
        "take images of 384 x 384 pixels (",
    ),
    "weights of other classes": (
        {"dataset.classes": ["n1", "n2"], "cache.top_k": None},
        ": teacher.weights is 'IMAGENET1K_V1': resnet34 with them knows 1000 classes, the data s",
    ),
    "names of ImageNet's classes": (
        {"dataset.names": "x.json"},
        ": dataset.names is not a parameter: did you mean name?",
    ),
    "no images expected": ({"dataset.expect_train": 0}, ": dataset.expect_train is 0: should"),
}


@pytest.mark.parametrize("wanted", [0, 30, 0.2])
def test_validation_of_folders_is_a_count_or_a_share(file, wanted):
    file.write({"dataset.validation": wanted}, preset="folder-cpu")
    dataset = file.load("dataset").dataset
    assert (dataset.validation, type(dataset.validation)) == (wanted, type(wanted))
    assert dataset.captioned_images == "all"


@pytest.mark.parametrize("name", REFUSED_OF_IMAGENET)
def test_refuses_in_imagenet(file, name):
    changes, start = REFUSED_OF_IMAGENET[name]
    file.write(changes, preset="imagenet-r34-r18")
    assert file.refusal().startswith(start)


def test_classes_that_prepare_counts_are_held_against_the_file(file):
    kept = {"dataset": FOLDER, "corruptions": GENERATED, "teacher": GOOD["teacher"]}
    file.write(kept | {"cache.top_k": 5}, preset="imagenet-r34-r18")
    params.check_classes(6, path=file.path)
    with pytest.raises(InputError, match="cache.top_k is 5: must be below the number of cl.*, 5,"):
        params.check_classes(5, path=file.path)


def test_refuses_what_is_of_files_where_images_are_in_arrays(file):
    file.write({"views": IMAGENET["views"]})
    assert (
        file.refusal() == ": views.augmentation is 'resized_crop': must be 'padded_crop' for digits"
    )
    file.write({"shifted": {"v2": "../v2"}})
    assert file.refusal() == (
        ": shifted.v2 is '../v2': must be two .npy files, images and labels for digits"
    )


def test_shifted_sets_are_arrays_or_folders_as_the_data_set_is(file):
    file.write({"shifted": {"v2": ["x.npy", "y.npy"]}})
    assert file.load("shifted").shifted == {"v2": ("x.npy", "y.npy")}
    file.write({"shifted": {"v2": "../v2"}}, preset="imagenet-r34-r18")
    assert file.load("shifted").shifted == {"v2": "../v2"}


def test_a_teacher_runs_along_whatever_the_views(file):
    file.write({"cache.teacher": "online", "cache.top_k": 5})
    cache = file.load("cache").cache
    assert (cache.teacher, cache.top_k) == ("online", 5)


def test_torchvision_s_models_may_be_student_and_teacher(file):
    names = {"teacher.arch": "torchvision/resnet34", "student.arch": "torchvision/resnet18"}
    file.write(names)
    loaded = file.load("teacher.arch", "student.arch")
    assert (loaded.teacher.arch, loaded.student.arch) == tuple(names.values())


TIMM = {
    "source": "checkpoint",
    "arch": "timm/test_resnet",
    "path": "x.pt",
    "sha256": "0" * 64,
    "min_accuracy": 0.0,
}
NETWORKS_OF_TIMM = {
    "unknown": (
        {"student.arch": "timm/resnet19"},
        ": student.arch: model 'timm/resnet19' is unknown: timm has resnet18, ",
    ),
    "tag": (
        {"teacher": TIMM | {"arch": "timm/test_resnet.r9"}, "fusion.alpha": 0.5},
        ": teacher.arch: model 'timm/test_resnet.r9' is unknown: the tags of test_resnet are r160_",
    ),
    "images of one size": (
        {"student.arch": "timm/vit_tiny_patch16_224"},
        ": student.arch: model 'timm/vit_tiny_patch16_224' does not take images of 16 x 16 pixels",
    ),
    "made for another size": (
        {"student.arch": "timm/vit_tiny_patch16_224", "student.img_size": 32},
        ": student.arch: model 'timm/vit_tiny_patch16_224' does not take images of 16 x 16 pixels",
    ),
    "size of a network without one": (
        {"student.img_size": 32},
        ": student.arch: model 'resnet8' has no img_size: only some networks of timm have one",
    ),
    "size that is none": ({"student.img_size": 0}, ": student.img_size is 0: "),
    "normalisation of another network": (
        {"teacher": TIMM | {"arch": "resnet8"}},
        ": teacher.mean is missing: only networks of timm/<name> bring their own",
    ),
    "half a normalisation": (
        {"teacher": TIMM | {"std": [0.5, 0.5, 0.5]}},
        ": teacher.mean is missing: must stand beside the other of mean, std",
    ),
}


@pytest.mark.parametrize("name", NETWORKS_OF_TIMM)
def test_refuses_of_timm(file, name):
    changes, start = NETWORKS_OF_TIMM[name]
    file.write(changes)
    assert file.refusal().startswith(start)


def test_timms_networks_may_be_student_and_teacher(file):
    student = {"student.arch": "timm/vit_tiny_patch16_224", "student.img_size": 16}
    file.write({"teacher": TIMM, "fusion.alpha": 0.5} | student)
    loaded = file.load("teacher", "student")
    assert loaded.teacher.as_published and loaded.student.img_size == 16
    recorded = params.to_dict(loaded)
    assert recorded["teacher"] == TIMM and recorded["student"]["img_size"] == 16


def test_a_teacher_of_timm_sees_images_of_its_own_size_and_online_those_of_the_student(file):
    of_one_size = TIMM | {"arch": "timm/vit_tiny_patch16_384"}
    file.write({"teacher": of_one_size, "cache.teacher": "center"}, preset="imagenet-r34-r18")
    file.load()
    file.write({"teacher": of_one_size, "cache.teacher": "online"}, preset="imagenet-r34-r18")
    assert file.refusal().startswith(
        ": teacher.arch: model 'timm/vit_tiny_patch16_384' does not take images of 224 x 224 pix"
    )


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("teacher.arch", {"teacher.arch": "torchvision/resnet180"}),
        ("teacher.arch", {"teacher": THERE, "fusion.alpha": 0.5}),
        ("student.arch", {"student.arch": "torchvision/resnet180"}),
    ],
)
def test_a_mistyped_model_of_torchvision_is_told_before_any_work(file, key, changes):
    file.write(changes)
    with pytest.raises(InputError) as caught:
        file.load()
    said = f"{key}: model 'torchvision/resnet180' is unknown: torchvision has resnet18, "
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_each_number_in_words_is_a_class_of_digits(file):
    from richkd.data.digits import CLASSES

    file.write({"dataset.classes": CLASSES})
    assert list(file.load("dataset").dataset.classes) == CLASSES


def test_every_source_loads(file):
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
        of_imagenet = section.get("teacher", {}).get("source") == "torchvision"
        file.write(section, preset="imagenet-r34-r18" if of_imagenet else "cifar100")
        (name,) = section
        assert params.to_dict(file.load(name)) == section


def test_milestones_count_for_the_step_schedule_only(file):
    file.write({"teacher.schedule": "onecycle", "teacher.epochs": 9, "teacher.milestones": [12]})
    assert file.load("teacher.milestones").teacher.milestones == (12,)


@pytest.mark.parametrize(
    "key", ["views", "fusion.alpha", "clip.model.embed_dim", "teacher.source", "corruptions.names"]
)
def test_names_what_is_missing(file, key):
    file.write(drop=[key])
    assert file.refusal() == f": {key} is missing"


def test_a_misspelt_key_is_named_before_the_one_it_leaves_missing(file):
    file.write({"fusion.alhpa": 0.5}, drop=["fusion.alpha"])
    assert file.refusal().startswith(": fusion.alhpa is not a parameter: did you mean alpha?")


UNREADABLE = {
    "unclosed": (b"a: [", " is not readable as YAML: line 1: "),
    "binary": (b"\xff\xfe\xfa", " is not readable as YAML: it is not UTF-8, "),
    "two documents": (b"a: 1\n---\nb: 2\n", " is not readable as YAML: line 2: "),
    "month": (b"a: 2020-13-45", " is not readable as YAML: month must be in 1..12"),
    "hour": (b"a: 2020-01-01 25:61:61", " is not readable as YAML: hour must be in 0..23"),
    "tag of code": (
        b"a: !!python/object:os.system {}",
        ": line 1 has the tag tag:yaml.org,2002:py",
    ),
    "number of a word": (b"a: !!int word", ": line 1 has the tag tag:yaml.org,2002:int: write the"),
    "number of nothing": (b"\na: !!int\n", ": line 2 has the tag tag:yaml.org,2002:int: write the"),
    "truth of a word": (b"a: !!bool maybe", ": line 1 has the tag tag:yaml.org,2002:bool: write"),
    "float of a word": (b"a: !!float word", ": line 1 has the tag tag:yaml.org,2002:float: write"),
    "set": (b"a: !!set {x, y}", ": line 1 has the tag tag:yaml.org,2002:set: write the value with"),
    "date": (b"a: {b: 2020-01-01}", ": a.b is 2020-01-01, read as a date: write it in quotes"),
    "list of itself": (b"a: &a [*a]", ": line 1 has the alias *a: write the value out"),
    "alias bomb": (
        b"a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\nd: [*c, *c, *c]\n",
        ": line 2 has the alias *a: write the value out",
    ),
    "nesting": (b"[" * 9000, ": line 1 has more than 20 lists and sections inside one another"),
    "5,000 digits": (b"a: " + b"9" * 5000, ": line 1 has a value of 5,000 characters: at most 1,0"),
    "values": (b"[" + b"1," * 20_000 + b"]", " has more than 10,000 keys and values, the most"),
    "a megabyte": (b"a: " + b"x" * 10**6, " has more than 200,000 bytes, the most allowed"),
    "number as a key": (b"a: {1: 2}", ": a has the key 1: must be a text, in quotes"),
    "null as a key": (b"null: 2", ": the file has the key None: must be a text, in quotes"),
    "list as a key": (b"[a]: 2", ": the file has the key ('a',): must be a text, in quotes"),
    "half a character": (b'a: "\\ud800"', ": a is '\\ud800': must be one line of text"),
    "line break": (b'a: ["b\\nc"]', ": a.0 is 'b\\nc': must be one line of text"),
    "key with an escape sequence": (
        b'"\\e[31ma\\nb": 1',
        ": '\\x1b[31ma\\nb' is not a parameter: al",
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_refuses_what_is_no_plain_yaml(file, name):
    content, start = UNREADABLE[name]
    file.path.write_bytes(content)
    assert file.refusal().startswith(start)


def test_a_long_key_and_a_long_value_leave_room_for_the_reason(file):
    file.write({"fusion.alpha": "x" * 900})
    assert file.refusal().endswith(
        "...xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx': should be a valid number or should be 'auto'"
    )
    file.write({"views." + "k" * 900: 1})
    assert file.refusal().endswith("kkkk is not a parameter: allowed are augmentation, pad, flip")


def test_a_file_holds_what_dvc_reads_from_it(file):
    """The same loader: what one of both takes for a number or for a text, the other does too."""
    from dvc.utils.serialize import parse_yaml

    text = "a: [1_0, 0x1F, 0o17, 1e3, 1e-05, .5, 1:30, yes, on, null, ~, -.inf, 'é', 007]"
    file.path.write_text(text, encoding="utf-8")
    assert read_yaml(file.path) == parse_yaml(text, file.path)


def test_an_empty_file_lacks_the_first_section(file):
    file.path.write_text("")
    assert file.refusal() == ": dataset is missing"


@pytest.mark.parametrize("text", ["3", "[fusion, cache]"])
def test_refuses_yaml_that_holds_no_sections(file, text):
    file.path.write_text(text)
    assert "should be an object" in file.refusal()


def test_the_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere.yaml could not be read: No such file or dir"):
        params.load("runtime", path=tmp_path / "nowhere.yaml")


def test_numbers_as_dvc_writes_them(file):
    """`dvc exp run -S teacher.weight_decay=0.00001` writes 1e-05."""
    text = (PRESETS / "digits.yaml").read_text()
    file.path.write_text(text.replace("weight_decay: 0.0005", "weight_decay: 1e-05"))
    assert file.load("teacher").teacher.weight_decay == 1e-05


def test_a_key_given_twice_is_refused(file):
    file.path.write_text((PRESETS / "digits.yaml").read_text() + "\nviews: {pad: 2, flip: true}\n")
    assert "views" in file.refusal()


# --- what load gives ----------------------------------------------------------------------------


def test_load_gives_what_was_asked_for_and_nothing_else():
    chosen = params.load(
        "runtime", "fusion.alpha", "fusion.lam", "clip.model", path=PRESETS / "digits.yaml"
    )
    assert set(vars(chosen)) == {"runtime", "fusion", "clip"}
    assert set(vars(chosen.fusion)) == {"alpha", "lam"}
    assert chosen.runtime.device == GOOD["runtime"]["device"]
    assert not hasattr(chosen.clip, "prompts") and not hasattr(chosen, "teacher")


def test_load_checks_what_was_not_asked_for(file):
    file.write({"fusion.alpha": 2})
    with pytest.raises(InputError, match="fusion.alpha is 2"):
        file.load("runtime")


def test_what_is_loaded_cannot_change():
    runtime = params.load("runtime", path=PRESETS / "digits.yaml").runtime
    with pytest.raises(AttributeError):
        runtime.device = "cuda"


def test_to_dict_gives_back_what_the_file_says():
    chosen = params.load("fusion.alpha", "clip", "distill.seeds", path=PRESETS / "digits.yaml")
    assert params.to_dict(chosen) == {
        "fusion": {"alpha": GOOD["fusion"]["alpha"]},
        "clip": GOOD["clip"],
        "distill": {"seeds": GOOD["distill"]["seeds"]},
    }


@quick
@given(st.floats(0, 1))
def test_every_alpha_from_0_to_1_is_accepted(file, alpha):
    file.write({"fusion.alpha": alpha})
    assert file.load("fusion.alpha").fusion.alpha == alpha


@quick
@given(st.floats(max_value=0, exclude_max=True) | st.floats(min_value=1, exclude_min=True))
def test_every_other_alpha_is_refused(file, alpha):
    file.write({"fusion.alpha": alpha})
    assert file.refusal().startswith(f": fusion.alpha is {alpha}: should be")


@quick
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_any_value_for_a_list_gives_one_line_or_loads(file, value):
    file.write({"corruptions.severities": value})
    try:
        file.load("runtime")
    except InputError as error:
        assert len(str(error).splitlines()) == 1 and "corruptions.severities" in str(error)
    else:
        assert set(value) <= {1, 2, 3, 4, 5}
