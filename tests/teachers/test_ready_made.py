"""Teachers that are not trained here: from each source, whole or broken."""

import io
import tarfile
from argparse import Namespace

import pytest
import torch
from safetensors.torch import save_file
from serving import Answer
from torchvision.models import ResNet18_Weights

from richkd import models
from richkd.base.errors import InputError
from richkd.base.files import sha256
from richkd.data.views import Center, Preprocessing
from richkd.params import CheckpointTeacher, MdistillerTeacher, TorchvisionTeacher
from richkd.teachers import ready_made as teachers

MEMBER = "cifar_teachers/{}_vanilla/ckpt_epoch_240.pth"


@pytest.fixture
def model():
    torch.manual_seed(0)
    return models.create("resnet8", 4)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Downloads go below the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def same(found, expected):
    assert {k: v.tolist() for k, v in found.model.state_dict().items()} == {
        k: v.tolist() for k, v in expected.state_dict().items()
    }


# --- a file -------------------------------------------------------------------------------------


def checkpoint(path, arch="resnet8", **more):
    more = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "sha256": None} | more
    more["sha256"] = more["sha256"] or sha256(path)
    p = CheckpointTeacher(source="checkpoint", arch=arch, path=str(path), min_accuracy=0.0, **more)
    return teachers.obtain(p, 4)


def test_every_kind_of_file_is_read(model, tmp_path):
    state = model.state_dict()
    torch.save(state, tmp_path / "plain.pth")
    torch.save(
        {"epoch": 240, "model": state, "accuracy": torch.tensor(79.4)}, tmp_path / "under.pth"
    )
    torch.save({"model": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "x.safetensors")
    for path in tmp_path.glob("*.*"):
        found = checkpoint(path)
        same(found, model)
        assert found.arch == "resnet8" and found.data == {str(path): sha256(path)}
        assert found.preprocessing == Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def test_a_network_of_timm_is_prepared_as_timm_says_unless_the_params_do(tmp_path):
    name = "timm/test_vit.r160_in1k"
    model = models.create(name, 4, 32)
    torch.save({"model": model.state_dict()}, tmp_path / "x.pth")
    found = checkpoint(tmp_path / "x.pth", name, img_size=32, mean=None, std=None)
    same(found, model)
    assert (found.arch, found.img_size) == (name, 32)
    half = (0.5, 0.5, 0.5)
    assert found.preprocessing == Preprocessing(half, half, Center(33, 32, "bicubic"))
    found = checkpoint(tmp_path / "x.pth", name, img_size=32)
    assert found.preprocessing == Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    with pytest.raises(InputError, match="pos_embed is .1, 5, 64. there, .1, 101, 64. here"):
        checkpoint(tmp_path / "x.pth", name)


def test_a_mismatch_names_the_first_wrong_parameter_and_both_shapes(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "x.pth")
    with pytest.raises(InputError) as caught:
        checkpoint(tmp_path / "x.pth", arch="resnet8x4")
    assert str(caught.value) == (
        f"{tmp_path}/x.pth is of another model: conv1.weight is (16, 3, 3, 3) there, "
        "(32, 3, 3, 3) here"
    )


def test_files_that_hold_no_weights_are_one_line(model, tmp_path, evil):
    state = model.state_dict()
    torch.save({"model": state, "opt": Namespace(lr=0.05)}, tmp_path / "more.pth")
    torch.save({"model": state, "evil": evil}, tmp_path / "evil.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"network": state}, tmp_path / "network.pth")
    (tmp_path / "text.pth").write_text("not found")
    for new in (True, False):
        file = io.BytesIO()
        torch.save(state, file, _use_new_zipfile_serialization=new)
        whole = file.getvalue()
        for end in [*range(0, 300, 7), *range(300, len(whole) - 1, len(whole) // 40)]:
            (tmp_path / f"cut{new}{end}.pth").write_bytes(whole[:end])
    for path in tmp_path.glob("*.pth"):
        with pytest.raises(InputError, match=str(path)) as caught:
            checkpoint(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(
        InputError, match="teacher.path: .*absent.pth could not be read: No such file"
    ):
        checkpoint(tmp_path / "absent.pth", sha256="0" * 64)


def test_a_temporary_copy_finds_the_file_of_the_checkout(model, tmp_path, monkeypatch):
    torch.save(model.state_dict(), tmp_path / "x.pth")
    copy = tmp_path / ".dvc/tmp/exps/tmp1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    known = sha256(tmp_path / "x.pth")
    found = checkpoint("x.pth", sha256=known)
    same(found, model)
    assert found.data == {"x.pth": known}  # the record of the checkout
    with pytest.raises(InputError) as caught:
        checkpoint("gone.pth", sha256=known)
    both = f"{copy}/gone.pth or {tmp_path}/gone.pth"
    assert str(caught.value) == f"teacher.path: {both} could not be read: No such file or directory"


def test_another_checksum_than_asked_for_is_refused(model, tmp_path):
    path = tmp_path / "x.pth"
    torch.save(model.state_dict(), path)
    same(checkpoint(path, sha256=sha256(path)), model)
    with pytest.raises(
        InputError, match=f"teacher.path: {path} has sha256:.*, must have sha256:0000"
    ):
        checkpoint(path, sha256="0" * 64)


def test_the_public_resnet56_loads(shared):
    path = shared / "checkpoints/cifar100_resnet56.pth"
    p = CheckpointTeacher(
        source="checkpoint",
        arch="resnet56",
        path=str(path),
        sha256=sha256(path),
        mean=(0.507075, 0.486549, 0.440918),
        std=(0.267334, 0.256438, 0.276150),
        min_accuracy=0.72,
    )
    assert teachers.obtain(p, 100).model.fc.weight.abs().sum() > 0
    with pytest.raises(InputError, match=r"fc.weight is \(100, 64\) there, \(10, 64\) here"):
        teachers.obtain(p, 10)


# --- mdistiller's archive -----------------------------------------------------------------------


def archive(**contents):
    """A tar of teachers: by reference name, what torch.save is given."""
    tar_bytes = io.BytesIO()
    with tarfile.open(fileobj=tar_bytes, mode="w") as tar:
        for name, content in contents.items():
            file = io.BytesIO()
            torch.save(content, file)
            member = tarfile.TarInfo(MEMBER.format(name))
            member.size = file.tell()
            file.seek(0)
            tar.addfile(member, file)
    return tar_bytes.getvalue()


def mdistiller(*urls, arch="resnet8", sha256=None):
    p = MdistillerTeacher(
        source="mdistiller", arch=arch, urls=urls, sha256=sha256, min_accuracy=0.0
    )
    return teachers.obtain(p, 4)


def test_the_named_teacher_is_taken_from_the_archive(model, server):
    body = archive(resnet8={"model": model.state_dict(), "epoch": 240}, wrn_40_2={})
    url = server.url("/cifar_teachers.tar", Answer(body=body))
    found = mdistiller(server.url("/gone", Answer(status=404)), url)
    same(found, model)
    assert found.preprocessing == teachers.MDISTILLER
    assert set(found.data) == {"cifar_teachers.tar"}
    requests = len(server.requests)
    same(mdistiller(url), model)  # kept
    assert len(server.requests) == requests


def test_the_archive_calls_some_by_other_names(server):
    model = models.create("mobilenetv2", 4)
    body = archive(MobileNetV2={"model": model.state_dict()})
    same(mdistiller(server.url("/x.tar", Answer(body=body)), arch="mobilenetv2"), model)


def test_archives_without_the_teacher_are_one_line(model, server, tmp_path, evil):
    state = model.state_dict()
    cases = {
        "no .*resnet8_vanilla/ckpt_epoch_240.pth: there is no such teacher": archive(vgg13={}),
        "of another model: conv1.weight": archive(
            resnet8={"model": {**state, "conv1.weight": state["fc.bias"]}}
        ),
        "holds an object of posix.system": archive(resnet8={"model": state, "x": evil}),
        "damaged, or not a tar": b"not found",
    }
    kept = tmp_path / "cache/richkd/cifar_teachers.tar"
    for number, (reason, body) in enumerate(cases.items()):
        url = server.url(f"/{number}", Answer(body=body))
        kept.unlink(missing_ok=True)
        with pytest.raises(InputError, match=reason) as caught:
            mdistiller(url)
        assert "\n" not in str(caught.value)
        # An archive without this teacher is a whole one, of which another teacher may be wanted.
        assert kept.exists() == (not reason.startswith("damaged"))
    assert not kept.exists()  # of what is no archive, nothing is kept


def test_an_archive_with_another_checksum_is_refused(model, server, tmp_path):
    body = archive(resnet8={"model": model.state_dict()})
    url = server.url("/x.tar", Answer(body=body))
    with pytest.raises(
        InputError, match="unpack it where there is a network and set teacher.source"
    ):
        mdistiller(url, sha256="0" * 64)
    assert [path.name for path in (tmp_path / "cache/richkd").glob("*.tar*")] in (
        [],
        ["cifar_teachers.tar.lock"],
    )


# --- torchvision --------------------------------------------------------------------------------


def torchvision(arch="resnet18", weights="IMAGENET1K_V1", classes=1000):
    p = TorchvisionTeacher(source="torchvision", arch=arch, weights=weights, min_accuracy=0.0)
    return teachers.obtain(p, classes)


def test_torchvision_s_weights_are_taken_where_torch_keeps_them(tmp_path):
    torch.manual_seed(1)
    model = models.create("torchvision/resnet18", 1000)
    folder = tmp_path / "torch/hub/checkpoints"
    folder.mkdir(parents=True)
    url = ResNet18_Weights.IMAGENET1K_V1.url
    torch.save(model.state_dict(), folder / url.rpartition("/")[2])
    found = torchvision()
    assert found.arch == "torchvision/resnet18" and found.data == {
        url: "ResNet18_Weights.IMAGENET1K_V1"
    }
    center = Center(256, 224, "bilinear")
    assert found.preprocessing == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], center)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(found.model.eval()(images).logits, model.eval()(images).logits)


def test_torchvision_s_refusals_are_one_line(tmp_path, monkeypatch, server):
    with pytest.raises(InputError, match="model 'torchvision/resnet19' is unknown"):
        torchvision("resnet19")
    with pytest.raises(InputError, match="teacher.weights is 'V3': resnet18 has IMAGENET1K_V1"):
        torchvision(weights="V3")
    with pytest.raises(InputError, match="knows 1000 classes, the data set has 100"):
        torchvision(classes=100)
    with pytest.raises(InputError, match="V1': model 'torchvision/vit_b_16' does not take images"):
        torchvision("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")  # of 384 pixels
    with pytest.raises(InputError, match="FEATURES': vgg16 with them knows no classes"):
        torchvision("vgg16", "IMAGENET1K_FEATURES")
    url = server.url("/resnet18-f37072fd.pth", Answer(status=404))
    monkeypatch.setattr(type(ResNet18_Weights.IMAGENET1K_V1), "url", url, raising=False)
    with pytest.raises(InputError, match=f"{url} could not be had .*404.*put it into {tmp_path}"):
        torchvision()
