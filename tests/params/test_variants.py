"""Variants: what they may say, each mistake in one line, and what `load` gives of them."""

import inspect
import re
import subprocess
import sys
import types
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from richkd import params
from richkd.base.errors import InputError
from richkd.losses.terms import TERMS, loss_function
from richkd.params import students

quick = settings(max_examples=40, deadline=None, derandomize=True)

KD = {"weight": 3.0, "temperature": 3.0}
CRD = {
    "weight": 0.1, "dim": 64, "num_negatives": 128, "negatives": "auto", "temperature": 0.07,
    "momentum": 0.5,
}  # fmt: skip
EVERY = {
    "kd": KD | {"standardize": True},
    "dkd": {"weight": 1.0, "alpha": 1.0, "beta": 8.0, "temperature": 4.0, "warm_up": 20},
    "mlkd": {"weight": 1.0, "temperatures": [2.0, 4.0]},
    "dist": {"weight": 1.0, "beta": 2.0, "gamma": 2.0, "temperature": 4.0},
    "rkd": {"weight": 1.0, "distance_weight": 25.0, "angle_weight": 50.0},
    "sp": {"weight": 3000.0},
    "pkt": {"weight": 30000.0},
    "crd": CRD,
    "at": {"weight": 1000.0, "p": 2.0},
    "nst": {"weight": 50.0},
}
NAMES = "a name is a letter, then letters, digits or _; teacher, clip, fused and ce are taken"
TERM_NAMES = "teacher, ce, control, kd, dkd, mlkd, dist, rkd, sp, pkt, crd, at, nst"


# --- what a variant may say -----------------------------------------------------------------------


def test_every_term_under_one_teacher(file):
    said = {"teacher": "teacher", "ce": {"weight": 0.5}, **EVERY}
    file.write({"distill.variants": {"all": said}, "cache.teacher": "online"})
    variant = file.load("distill.variants.all").distill.variants.all
    assert list(variant.terms) == ["ce", *EVERY]
    assert params.to_dict(variant) == said
    assert variant.teacher == "teacher"
    assert variant.terms["dkd"].options == {"alpha": 1.0, "beta": 8.0, "temperature": 4.0}
    assert (variant.terms["dkd"].weight, variant.terms["dkd"].warm_up) == (1.0, 20)
    assert variant.terms["mlkd"].options == {"temperatures": (2.0, 4.0)}
    assert variant.terms["sp"].options == {}


@pytest.mark.parametrize("teacher", ["teacher", "clip", "fused"])
@pytest.mark.parametrize("term", [name for name in EVERY if TERMS[name] != "maps"])
def test_every_teacher_for_every_term_that_a_table_serves(file, teacher, term):
    file.write({"distill.variants": {"one": {"teacher": teacher, term: EVERY[term]}}})
    variant = file.load("distill.variants").distill.variants["one"]
    assert (variant.teacher, list(variant.terms)) == (teacher, ["ce", term])
    assert variant.ce == params.Ce(weight=1.0)


def test_there_may_be_no_variant(file):
    file.write({"distill.variants": {}})
    assert file.load("distill.variants").distill.variants == {}


def test_null_takes_a_term_out(file):
    file.write({"distill.variants.LF.crd": None})
    assert list(file.load("distill.variants.LF").distill.variants.LF.terms) == ["ce", "kd"]


# --- sections of losses, and the losses themselves ------------------------------------------------


def test_every_loss_has_a_section_with_its_arguments():
    kinds = {kind.__name__.lower(): kind for kind in params.Term.__subclasses__()}
    assert list(kinds) == ["ce", *TERMS]
    assert [field.name for field in fields(params.Variant)] == ["teacher", "ce", "control", *TERMS]
    for name, compared in TERMS.items():
        options = {field.name for field in fields(kinds[name])} - {"weight", "warm_up"}
        assert kinds[name].needs_maps == (compared == "maps")
        assert kinds[name].compares_logits == compared.startswith("logits")
        if name != "crd":  # whose memory has the training images as an argument, too
            tensors = {"student", "teacher", "target", "student_map", "teacher_map"}
            assert options == set(inspect.signature(loss_function(name)).parameters) - tensors


def test_a_new_loss_needs_one_section_alone(monkeypatch):
    source = inspect.getsource(students)
    new = "@section\nclass New(Term):\n    sharpness: Weight\n\n\n"
    before = "def _variant_name("
    assert source.count(before) == 1
    module = types.ModuleType("students_with_a_new_loss")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(source.replace(before, new + before), module.__dict__)
    new_term = module.New(weight=1.0, sharpness=2.0)
    variant = module.Variant(teacher="clip", new=new_term)
    assert variant.terms == {"ce": module.Ce(), "new": new_term}
    assert new_term.options == {"sharpness": 2.0}


# --- what a variant may not say -------------------------------------------------------------------

LF, L = "distill.variants.LF", "distill.variants.L"
REFUSED = {
    "unknown term": (
        {f"{LF}.kdd": KD},
        f": {LF}.kdd is not a parameter: did you mean kd? allowed are {TERM_NAMES}",
    ),
    "term unlike any other": (
        {f"{LF}.hint_loss": KD},
        f": {LF}.hint_loss is not a parameter: allowed are {TERM_NAMES}",
    ),
    "unknown option": (
        {f"{L}.kd.temprature": 3.0},
        f": {L}.kd.temprature is not a parameter: did you mean temperature? allowed are weight, "
        "warm_up, temperature, standardize",
    ),
    "misspelt option": (
        {f"{L}.kd": {"weight": 1.0, "temprature": 3.0}},
        f": {L}.kd.temprature is not a parameter: did you mean temperature? allowed are weight, "
        "warm_up, temperature, standardize",
    ),
    "option of ce": (
        {f"{L}.ce": {"smoothing": 0.1}},
        f": {L}.ce.smoothing is not a parameter: allowed are weight, warm_up",
    ),
    "missing option": ({f"{L}.kd": {"weight": 3.0}}, f": {L}.kd.temperature is missing"),
    "missing weight": ({f"{L}.kd": {"temperature": 3.0}}, f": {L}.kd.weight is missing"),
    "missing teacher": ({L: {"kd": KD}}, f": {L}.teacher is missing"),
    "unknown teacher": (
        {f"{L}.teacher": "CLIP"},
        f": {L}.teacher is 'CLIP': should be 'teacher', 'clip' or 'fused'",
    ),
    "no section": ({f"{L}.kd": 3.0}, f": {L}.kd is 3.0: should be an object"),
    "null for ce": ({f"{L}.ce": None}, f": {L}.ce is None: should be an object"),
    "null for a variant": ({L: None}, f": {L} is None: should be an object"),
    "list of variants": (
        {"distill.variants": ["L", "F"]},
        ": distill.variants is ['L', 'F']: should be an object",
    ),
    "null for variants": (
        {"distill.variants": None},
        ": distill.variants is None: should be an object",
    ),
    "negative weight": (
        {f"{L}.kd.weight": -1.0},
        f": {L}.kd.weight is -1.0: should be greater than or equal to 0",
    ),
    "negative weight of ce": (
        {f"{L}.ce": {"weight": -1.0}},
        f": {L}.ce.weight is -1.0: should be greater than or equal to 0",
    ),
    "negative warm-up": (
        {f"{L}.kd.warm_up": -1},
        f": {L}.kd.warm_up is -1: should be greater than or equal to 0",
    ),
    "part of an epoch": (
        {f"{L}.kd.warm_up": 0.5},
        f": {L}.kd.warm_up is 0.5: should be a valid integer",
    ),
    "temperature of 0": (
        {f"{L}.kd.temperature": 0.0},
        f": {L}.kd.temperature is 0.0: should be greater than or equal to 0.001",
    ),
    "number for a bool": (
        {f"{L}.kd.standardize": 1},
        f": {L}.kd.standardize is 1: should be a valid boolean",
    ),
    "no temperatures": (
        {f"{L}.mlkd": {"weight": 1.0, "temperatures": []}},
        f": {L}.mlkd.temperatures is []: should have at least 1 item",
    ),
    "same temperature twice": (
        {f"{L}.mlkd": {"weight": 1.0, "temperatures": [2, 2.0]}},
        f": {L}.mlkd.temperatures is [2, 2.0]: must not name anything twice",
    ),
    "one temperature of 0": (
        {f"{L}.mlkd": {"weight": 1.0, "temperatures": [2.0, 0.0]}},
        f": {L}.mlkd.temperatures.1 is 0.0: should be greater than or equal to 0.001",
    ),
    "power of 0": (
        {f"{L}.at": {"weight": 1.0, "p": 0.0}},
        f": {L}.at.p is 0.0: should be greater than 0",
    ),
    "ce alone": (
        {L: {"teacher": "fused", "ce": {"weight": 1.0}}},
        f": {L} names no term but ce: the student alone is trained anyway, as ce",
    ),
    "nothing but a teacher": (
        {L: {"teacher": "fused"}},
        f": {L} names no term but ce: the student alone is trained anyway, as ce",
    ),
    "maps from a table": (
        {L: {"teacher": "teacher", "at": EVERY["at"]}},
        f": {L}.at compares feature maps, which no table holds: set teacher: teacher (now "
        "teacher) and cache.teacher: online (now all)",
    ),
    "maps of another number": (
        {
            L: {"teacher": "teacher", "at": EVERY["at"]},
            "cache.teacher": "online",
            "student.arch": "vgg8",
        },
        f": {L}.at: feature maps are compared stage by stage: vgg8 has 4 stages, resnet8x2 3",
    ),
    "maps of unknown stages": (
        {
            L: {"teacher": "teacher", "nst": EVERY["nst"]},
            "cache.teacher": "online",
            "student.arch": "torchvision/mobilenet_v2",
        },
        f": {L}.nst: the stages of torchvision/mobilenet_v2 are not known, so it has no feature ma",
    ),
    "maps of the fused teacher": (
        {L: {"teacher": "fused", "kd": KD, "nst": EVERY["nst"]}, "cache.teacher": "online"},
        f": {L}.nst compares feature maps, which no table holds: set teacher: teacher (now "
        "fused) and cache.teacher: online (now online)",
    ),
    "control of a teacher": (
        {f"{L}.teacher": "clip", f"{L}.control": "cosines"},
        f": {L}.control is 'cosines': changes CLIP's logits in the fused teacher, so it needs "
        "teacher: fused (now clip)",
    ),
    "cosines that are aligned": (
        {f"{L}.control": "cosines", "fusion.align": "standardize"},
        f": {L}.control is 'cosines': leaves out the scale of CLIP's logits, so it needs "
        "fusion.align: none (now standardize)",
    ),
    "control without logits": (
        {"distill.variants.F.control": "shuffled"},
        ": distill.variants.F.control is 'shuffled': changes CLIP's logits, so it needs a term "
        "that compares logits, such as kd (now ce, crd)",
    ),
    "unknown control": (
        {f"{L}.control": "random"},
        f": {L}.control is 'random': should be 'cosines' or 'shuffled'",
    ),
    "name with a dot": (
        {"distill.variants": {"L.F": {"teacher": "fused", "kd": KD}}},
        f": distill.variants has the name 'L.F': {NAMES}",
    ),
    "name that pydantic uses": (
        {"distill.variants": {"[key]": {"teacher": "fused", "kd": KD}}},
        f": distill.variants has the name '[key]': {NAMES}",
    ),
    "mistake under a wrong name": (
        {"distill.variants": {"L-F": {"teacher": "fused", "kdd": KD}}},
        ": distill.variants.L-F.kdd is not a parameter: did you mean kd?",
    ),
    "two names but for the case": (
        {"distill.variants.lf": {"teacher": "fused", "kd": KD}},
        ": distill.variants has the names 'LF' and 'lf': names must differ in more than the case "
        "of letters",
    ),
    "parameter of an older version": (
        {"distill.temperature": 3.0},
        ": distill.temperature is not a parameter: allowed are seeds, variants",
    ),
    "models to evaluate": (
        {"evaluate.models": ["ce"]},
        ": evaluate.models is not a parameter: allowed are batch_size",
    ),
    "section of an older version": ({"baseline": {}}, ": baseline is not a parameter: "),
    "crd on its own": ({"crd": CRD}, ": crd is not a parameter: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(file, name):
    changes, start = REFUSED[name]
    file.write(changes)
    assert file.refusal().startswith(start)


TAKEN = ["teacher", "clip", "fused", "ce"]
VALID = st.from_regex("[A-Za-z][A-Za-z0-9_]*", fullmatch=True).filter(
    lambda name: name.lower() not in TAKEN
)


@quick
@given(VALID)
def test_every_name_of_letters_digits_and_underscores_is_accepted(file, name):
    file.write({"distill.variants": {name: {"teacher": "fused", "kd": KD}}})
    assert list(file.load("distill.variants").distill.variants) == [name]
    assert file.load(f"distill.variants.{name}")


@quick
@given(st.text().filter(lambda name: not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name)))
def test_every_other_name_is_refused_in_one_line(file, name):
    file.write({"distill.variants": {name: {"teacher": "fused", "kd": KD}}})
    assert file.refusal() == f": distill.variants has the name {name!r}: {NAMES}"


@pytest.mark.parametrize("name", [*TAKEN, "CE", "Teacher", "é", "L\n", "1", "_L"])
def test_these_names_are_refused(file, name):
    file.write({"distill.variants": {name: {"teacher": "fused", "kd": KD}}})
    assert file.refusal() == f": distill.variants has the name {name!r}: {NAMES}"


# --- aliases --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "distill:\n  variants:\n    L: &L {teacher: fused}\n    M: *L\n",
        "distill:\n  variants:\n    L: &L {teacher: fused}\n    M: {<<: *L, teacher: clip}\n",
        "a: &L [1,\n\n  *L]\n\n",
    ],
    ids=["value", "merge", "inside itself"],
)
def test_an_alias_is_refused_with_its_line(file, text):
    file.path.write_text(text)
    line = 1 + text[: text.index("*L")].count("\n")
    assert file.refusal() == (
        f": line {line} has the alias *L: write the value out, since -S for one of its places "
        "would silently change the others"
    )


def test_an_anchor_that_nothing_refers_to_is_harmless(file):
    file.write()
    file.path.write_text(file.path.read_text().replace("fusion:\n", "fusion: &f\n"))
    assert file.load("fusion.alpha")


# --- what load and to_dict give -------------------------------------------------------------------


def test_load_gives_one_variant_and_no_other(file):
    file.write()
    chosen = file.load("distill.seeds", "distill.variants.LF", "distill.variants.kd")
    assert set(vars(chosen.distill)) == {"seeds", "variants"}
    assert set(vars(chosen.distill.variants)) == {"LF", "kd"}
    assert params.to_dict(chosen.distill.variants) == {
        "LF": {"teacher": "fused", "kd": KD, "crd": CRD},
        "kd": {"teacher": "teacher", "kd": KD},
    }
    one = file.load("distill.variants.LF.crd.dim").distill.variants.LF
    assert params.to_dict(one) == {"crd": {"dim": 64}}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("distill.variants.X", "distill.variants has no 'X': there are kd, L, F, LF"),
        ("distill.variants.L.crd.dim", "distill.variants.L.crd has no 'dim': there are none"),
        ("distill.X.kd", "distill has no 'X': there are seeds, variants"),
        ("fusion.alpha.X", "fusion.alpha has no 'X': there are none"),
    ],
)
def test_load_names_what_there_is_where_a_key_is_not(file, key, message):
    file.write()
    with pytest.raises(InputError) as caught:
        file.load(key)
    assert str(caught.value) == message


def test_load_names_the_sections_where_one_is_not(file):
    file.write()
    with pytest.raises(InputError) as caught:
        file.load("crd.dim")
    assert str(caught.value).startswith(f"{file.path} has no 'crd': there are dataset, views, ")


def test_to_dict_leaves_out_what_is_as_if_left_out(file):
    said = {"teacher": "fused", "kd": KD}
    longer = {"ce": {"weight": 1.0}, "kd": KD | {"standardize": False, "warm_up": 0}, "sp": None}
    file.write({"distill.variants": {"short": said, "long": said | longer}})
    variants = params.to_dict(file.load("distill.variants"))["distill"]["variants"]
    assert variants == {"short": said, "long": said}


def test_to_dict_keeps_a_null_that_the_file_must_say(file):
    file.write()
    assert params.to_dict(file.load("cache"))["cache"]["top_k"] is None


# --- imports --------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["digits", "imagenet-r34-r18"])  # the second of torchvision
def test_params_need_no_library_that_takes_long_to_import(file, preset):
    file.write(preset=preset)
    slow = ["torch", "torchvision", "timm", "numpy", "scipy", "pandas", "sklearn", "matplotlib"]
    code = (
        "import sys; from richkd import params; params.load(path=sys.argv[1]); "
        f"sys.exit(str([name for name in {slow} if name in sys.modules] or ''))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file.path)], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr.strip()) == ("", "")
