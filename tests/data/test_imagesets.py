"""Images in files and in arrays as batches, against PIL, torchvision and a plain loop."""

import contextlib
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import trees
from PIL import Image, ImageOps
from torchcodec import decoders
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from richkd import engine, models, params
from richkd.base.errors import InputError
from richkd.data import folder, imagesets
from richkd.data.dataset import Manifest, Split, load_split, save_split
from richkd.data.imagesets import AHEAD, Centers, FileSet, Pixels, cut, cut_center, decode
from richkd.data.resident import ResidentSet, normalise, to_input
from richkd.data.views import Center, Preprocessing, RandomResizedCrop
from richkd.engine import predict, predict_logits

CPU = torch.device("cpu")
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
CENTER = Center(resize=40, size=32)
ARRAYS, FILES = Preprocessing(MEAN, STD), Preprocessing(MEAN, STD, CENTER)
CROPS = RandomResizedCrop(32, (0.3, 1.0), (3 / 4, 4 / 3), flip=True)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Eleven readable files, the first four odd."""
    root = trees.imagenet(tmp_path_factory.mktemp("tree"), 6, 1, trees.WNIDS[:2])
    found, unreadable = folder.scan(
        root, folder.in_folders(root / "train", trees.WNIDS[:2]), "train"
    )
    assert len(found.labels) == 11 and len(unreadable) == 1
    return found


def file_set(manifest, threads=2):
    return FileSet(manifest, FILES, CROPS, CPU, threads)


def image_of(manifest, number):
    return decode(Path(manifest.root, manifest.paths[number]))


def pil(path):
    """(H, W, 3) int, upright, on white."""
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return np.asarray(image.convert("RGB")).astype(int)


# --- decoding -----------------------------------------------------------------------------------


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


def rgba(image):
    return Image.merge("RGBA", [*image.split(), image.convert("L")])


KINDS = {
    "JPEG": (lambda x: x, "JPEG", {}),
    "progressive": (lambda x: x, "JPEG", {"progressive": True}),
    "grey": (lambda x: x.convert("L"), "JPEG", {}),
    "CMYK": (lambda x: x.convert("CMYK"), "JPEG", {}),
    "4:4:4": (lambda x: x, "JPEG", {"subsampling": 0}),
    "GIF": (lambda x: x.convert("P"), "GIF", {}),
    "GIF, transparent": (lambda x: x.convert("P"), "GIF", {"transparency": 3}),
    "BMP": (lambda x: x, "BMP", {}),
    "TIFF": (lambda x: x, "TIFF", {}),
    "TIFF in CMYK": (lambda x: x.convert("CMYK"), "TIFF", {}),
    "palette": (lambda x: x.convert("P", palette=Image.Palette.ADAPTIVE), "PNG", {}),
    "palette, transparent": (lambda x: x.convert("P"), "PNG", {"transparency": 3}),
    "RGBA": (rgba, "PNG", {}),
    "grey with alpha": (lambda x: x.convert("LA"), "PNG", {}),
    "black and white": (lambda x: x.convert("1"), "PNG", {}),
    "WebP": (lambda x: x, "WEBP", {"quality": 80}),
    "WebP with alpha": (rgba, "WEBP", {"lossless": True}),
    **{f"JPEG turned {i}": (lambda x: x, "JPEG", turned(i)) for i in range(1, 9)},
    **{f"PNG turned {i}": (lambda x: x, "PNG", turned(i)) for i in (3, 6)},
}


@pytest.mark.parametrize(("change", "kind", "options"), KINDS.values(), ids=KINDS)
def test_decoded_as_pil_does(tmp_path, change, kind, options):
    image = change(trees.photograph(5, np.random.default_rng(1)))
    image.save(tmp_path / "x.jpg", kind, **options)
    found = decode(tmp_path / "x.jpg")
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.permute(1, 2, 0), pil(tmp_path / "x.jpg"))


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities")
@pytest.mark.parametrize("kind", [name for name, (_, form, _) in KINDS.items() if form == "JPEG"])
def test_jpegs_have_the_bits_of_torchvisions_decoder(tmp_path, kind):
    """torchvision decoded JPEGs here before TorchCodec did."""
    change, _, options = KINDS[kind]
    for number in range(3):
        image = change(trees.photograph(number, np.random.default_rng(number)))
        image.save(tmp_path / "x.jpg", "JPEG", **options)
        content = torch.from_numpy(np.fromfile(tmp_path / "x.jpg", np.uint8))
        before = decode_jpeg(content, ImageReadMode.RGB, apply_exif_orientation=True)
        assert torch.equal(decode(tmp_path / "x.jpg"), before)


def test_without_torchcodec_one_line_says_what_to_install(tmp_path, monkeypatch):
    trees.photograph(5, np.random.default_rng(1)).save(tmp_path / "x.jpg")
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(InputError) as caught:
        decode(tmp_path / "x.jpg")
    assert str(caught.value).startswith("TorchCodec, which decodes JPEGs, cannot be loaded (")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("channels", "color"), [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_of_sixteen_bits_the_upper_eight_are_taken(tmp_path, channels, color):
    levels = np.random.default_rng(0).integers(0, 2**16, (9, 7, channels))
    if channels in (2, 4):
        levels[..., -1] = 2**16 - 1  # opaque
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", 7, 9, 16, color, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    content = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    found = decode(tmp_path / "x.png").permute(1, 2, 0)
    colors = levels[..., :3] if channels > 2 else levels[..., [0, 0, 0]]
    np.testing.assert_array_equal(found, colors >> 8)
    if channels > 1:  # grey of 16 bits PIL cuts off at 255
        np.testing.assert_array_equal(found, pil(tmp_path / "x.png"))


@pytest.mark.parametrize("content", [b"", b"\xff", b"no image" * 99, "JPEG", "PNG", None])
def test_a_broken_file_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "x.jpg"
    if isinstance(content, str):
        trees.photograph(5, np.random.default_rng(1)).save(path, content)
        path.write_bytes(path.read_bytes()[:2000])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        decode(path)
    done = "read" if not content else "decoded"
    assert str(caught.value).startswith(f"{path} cannot be {done}: ") and "\n" not in str(
        caught.value
    )


# --- cutting ------------------------------------------------------------------------------------


def test_the_centre_is_torchvisions(manifest):
    """Equal to torchvision's transforms of tensors; within one grey level of its presets."""
    exact = v2.Compose([v2.Resize(40), v2.CenterCrop(32)])
    preset = ImageClassification(crop_size=32, resize_size=40, mean=MEAN, std=STD)
    level = torch.tensor(STD)[:, None, None] * 255
    for number in range(11):
        image = image_of(manifest, number)
        found = cut_center(image, CENTER)
        assert found.shape == (3, 32, 32) and torch.equal(found, exact(image))
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        difference = (normalise(found.float(), FILES) - preset(picture)) * level
        assert difference.abs().max() < 1.01


def test_a_centre_as_large_as_the_image_is_the_image():
    image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    assert torch.equal(cut_center(image, Center(32, 32)), image)


def test_clips_centre_is_bicubic(manifest):
    image = image_of(manifest, 0)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    short = min(picture.size)
    size = [40 * side // short for side in picture.size]
    left, top = (round((side - 40) / 2) for side in size)
    expected = picture.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + 40, top + 40))
    found = cut_center(image, Center(40, 40, "bicubic")).permute(1, 2, 0).int()
    assert np.abs(found.numpy() - np.asarray(expected).astype(int)).max() <= 1
    assert not torch.equal(found, cut_center(image, Center(40, 40)).permute(1, 2, 0).int())


def test_crops_are_their_box_resized(manifest):
    mirrors = set()
    for number in range(11):
        image = image_of(manifest, number)
        top, left, h, w, mirrored = CROPS.box(3, number, image.shape[2], image.shape[1])
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).crop(
            (left, top, left + w, top + h)
        )
        expected = picture.resize((32, 32), Image.Resampling.BILINEAR)
        if mirrored:
            expected = ImageOps.mirror(expected)
        found = cut(image, CROPS, 3, number).permute(1, 2, 0).int()
        assert np.abs(found.numpy() - np.asarray(expected).astype(int)).max() <= 1
        mirrors.add(mirrored)
    assert mirrors == {True, False}


# --- batches of files ---------------------------------------------------------------------------


def pairs(view_id, batch_size=2, count=11, seed=0):
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    view_ids = torch.full_like(order, view_id)
    return list(zip(order.split(batch_size), view_ids.split(batch_size)))


def epoch(data, batches):
    data.begin_epoch(batches)
    found = []
    for batch in batches:
        data.next_batch()
        found.append(data.batch(*batch).clone())
    return found


def plain(manifest, batches):
    found = []
    for ids, view_ids in batches:
        images = [(image_of(manifest, i), i, v) for i, v in zip(ids.tolist(), view_ids.tolist())]
        cuts = [cut_center(x, CENTER) if v == -1 else cut(x, CROPS, v, i) for x, i, v in images]
        found.append(normalise(torch.stack(cuts).float(), FILES))
    return found


def same(found, expected):
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def test_batches_are_those_of_a_plain_loop(manifest):
    assert len(pairs(5)) > AHEAD  # and the last is shorter
    for view_id in (5, CROPS.center):
        found = epoch(file_set(manifest), pairs(view_id))
        assert same(found, plain(manifest, pairs(view_id)))
        assert {x.dtype for x in found} == {torch.float32}


def test_a_batch_may_mix_views(manifest):
    batches = [(torch.tensor([3, 3, 7, 0]), torch.tensor([-1, 6, 9, 6]))]
    assert same(epoch(file_set(manifest), batches), plain(manifest, batches))


def test_batches_do_not_depend_on_the_threads(manifest):
    assert same(epoch(file_set(manifest, 1), pairs(5)), epoch(file_set(manifest, 3), pairs(5)))


def test_two_processes_share_the_batches(manifest):
    whole = epoch(file_set(manifest), pairs(5, 4))
    halves = [
        epoch(file_set(manifest), [tuple(x[half] for x in batch) for batch in pairs(5, 4)])
        for half in (slice(None, 2), slice(2, None))
    ]
    assert same([torch.cat(both) for both in zip(*halves)], whole)


def test_each_epoch_has_crops_of_its_own(manifest):
    data = file_set(manifest)
    first, second = epoch(data, pairs(5)), epoch(data, pairs(6))
    assert all((a != b).flatten(1).any(1).all() for a, b in zip(first, second))
    assert same(epoch(data, pairs(5)), first)  # a run that goes on finds what it would have had


def test_an_epoch_may_be_broken_off(manifest):
    data = file_set(manifest)
    data.begin_epoch(pairs(5))
    data.next_batch()
    assert same(epoch(data, pairs(6, 3)), plain(manifest, pairs(6, 3)))


def test_batches_lie_in_the_same_memory_channels_last(manifest):
    data, places = file_set(manifest), set()
    for view_id in (5, 6):
        data.begin_epoch(pairs(view_id, 4))
        for batch in pairs(view_id, 4):
            data.next_batch()
            found = data.batch(*batch)
            assert found.is_contiguous(memory_format=torch.channels_last)
            places.add(found.data_ptr())
    assert len(places) == 1


def test_runs_side_by_side_have_their_own_batches(manifest):
    data = file_set(manifest)
    runs = [(data.reader(), pairs(5)), (data.reader(), pairs(6, seed=1))]
    found = [[], []]
    for reader, batches in runs:
        reader.begin_epoch(batches)
    for step in range(len(pairs(5))):
        for out, (reader, batches) in zip(found, runs):
            reader.next_batch()
            out.append(reader.batch(*batches[step]).clone())
    assert all(same(out, plain(manifest, batches)) for out, (_, batches) in zip(found, runs))
    assert len(data) == 11 and torch.equal(data.labels, torch.from_numpy(manifest.labels))


class FakeStream:
    """Stands for a CUDA stream: it notes what is asked of it."""

    def __init__(self, device=None):
        self.asked = []

    def synchronize(self):
        self.asked.append("synchronize")

    def record_event(self):
        self.asked.append(event := object())
        return event

    def wait_event(self, event):
        self.asked.append(event)


@pytest.fixture
def on_a_gpu(manifest, monkeypatch):
    """A file set that takes the CPU for a GPU; `current` is the stream on which it is used."""
    current = FakeStream()
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    empty = torch.empty

    def unpinned(*shape, pin_memory=False, **options):
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", unpinned)
    data = file_set(manifest)
    data.stream = FakeStream()
    data.current = current
    return data


@pytest.mark.parametrize("decoded_by_gpu", [False, True])
def test_the_consumer_waits_for_every_batch_whatever_decodes_it(on_a_gpu, manifest, decoded_by_gpu):
    batches = pairs(5)
    on_a_gpu.manifest = manifest._replace(plain=manifest.plain & decoded_by_gpu)
    assert same(epoch(on_a_gpu, batches), plain(manifest, batches))
    events = [x for x in on_a_gpu.stream.asked if x != "synchronize"]
    assert len(events) == len(batches) and on_a_gpu.current.asked == events


def test_each_run_has_a_stream_of_its_own(on_a_gpu):
    streams = {id(x.stream) for x in (on_a_gpu, on_a_gpu.reader(), on_a_gpu.reader())}
    assert len(streams) == 3


def test_what_the_gpu_cannot_decode_is_decoded_by_threads_and_counted_once(
    on_a_gpu, manifest, monkeypatch, capsys
):
    decoder = decoders.decode_jpeg

    def cpu_alone(content, *options, **more):
        if isinstance(content, list):
            raise RuntimeError("no nvJPEG")
        return decoder(content, *options, **more)

    monkeypatch.setattr(decoders, "decode_jpeg", cpu_alone)
    for view_id in (5, 6):
        assert same(epoch(on_a_gpu, pairs(view_id)), plain(manifest, pairs(view_id)))
    said = capsys.readouterr()
    assert (said.out + said.err).count("8 JPEGs were decoded by the CPU: the GPU could not") == 1


def test_a_gpu_without_memory_is_no_broken_file(on_a_gpu, manifest, monkeypatch):
    def decoder(content, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(decoders, "decode_jpeg", decoder)
    with pytest.raises(torch.OutOfMemoryError):
        epoch(on_a_gpu, pairs(5))


@pytest.mark.cuda
def test_on_a_gpu_batches_are_those_of_a_cpu_but_for_its_decoder(manifest):
    cuda = FileSet(manifest, FILES, CROPS, torch.device("cuda"), threads=2)
    runs = [(cuda.reader(), pairs(5)), (cuda.reader(), pairs(6, seed=1))]
    for _ in range(20):
        for reader, batches in runs:
            on_device = [tuple(x.cuda() for x in batch) for batch in batches]
            for found, expected in zip(epoch(reader, on_device), plain(manifest, batches)):
                assert found.is_cuda
                assert (found.cpu() - expected).abs().mean() < 0.1  # of a standard deviation


def test_a_broken_file_surfaces_where_its_batch_begins(manifest, tmp_path):
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    paths = [
        *manifest.paths[:5],
        os.path.relpath(tmp_path / "cut.jpg", manifest.root),
        *manifest.paths[6:],
    ]
    data = file_set(manifest._replace(paths=paths))
    batches = [(torch.tensor([i]), torch.tensor([2])) for i in (4, 5, 6)]
    data.begin_epoch(batches)
    data.next_batch()
    with pytest.raises(InputError, match="cut.jpg cannot be decoded: "):
        data.next_batch()


def test_the_centres_resize_may_be_large(manifest):
    """Images smaller than the crop are made larger, as torchvision does."""
    large = FileSet(
        manifest,
        FILES._replace(center=Center(210, 200)),
        RandomResizedCrop(200, (1, 1), (1, 1), False),
        CPU,
    )
    (found,) = epoch(large, [(torch.tensor([0]), torch.tensor([-1]))])
    assert found.shape == (1, 3, 200, 200)


# --- inference ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arrays():
    images = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3)).astype(np.uint8)
    return Split(images, np.arange(11) % 4)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return models.create("resnet8", 4)


@pytest.fixture(params=["arrays", "arrays on the disk", "files"])
def inputs(request, arrays, manifest, tmp_path):
    """(what for_inference gives, the same as a tensor)"""
    if request.param == "files":
        numbers = torch.arange(11)
        batches = [(numbers, torch.full_like(numbers, -1))]
        (expected,) = plain(manifest, batches)
        return imagesets.for_inference(manifest, FILES, CPU), expected
    tensor = to_input(arrays.images, ARRAYS, CPU)
    if request.param == "arrays":
        return imagesets.for_inference(arrays, ARRAYS, CPU), tensor
    np.save(tmp_path / "x.npy", arrays.images)
    return Pixels(np.load(tmp_path / "x.npy", mmap_mode="r"), ARRAYS, CPU), tensor


@pytest.mark.filterwarnings("error::UserWarning")  # such as torch's of arrays that are mapped
def test_image_sets_behave_like_a_tensor(inputs):
    found, tensor = inputs
    assert len(found) == 11 and found.shape == tensor.shape and found.device == CPU
    assert found.new_zeros(1, 2, 3).shape == (1, 2, 3)
    for batch_size in (1, 4, 11, 100):
        batches = [batch.clone() for batch in found.split(batch_size)]
        assert [len(batch) for batch in batches] == [
            len(batch) for batch in tensor.split(batch_size)
        ]
        torch.testing.assert_close(torch.cat(batches), tensor, rtol=0, atol=0)
    for part in (torch.tensor([7, 0, 7]), slice(2, 5)):
        assert torch.equal(torch.cat([x.clone() for x in found[part].split(2)]), tensor[part])
        assert found[part].shape == tensor[part].shape


def test_predictions_are_those_of_the_tensor(inputs, network):
    found, tensor = inputs
    for ids in (torch.arange(11), torch.tensor([4]), torch.arange(0)):
        expected = predict(network, tensor[ids], 4)
        for a, b in zip(predict(network, found[ids], 4), expected):
            assert a.shape == b.shape and len(a) == len(ids)
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(predict_logits(network, found[ids], 4), expected[0])


@pytest.mark.parametrize("count", [11, 4, 1, 0])
def test_two_processes_share_the_predictions(inputs, network, monkeypatch, count):
    """Each fills its own rows, and the sum over both is the whole."""
    found, tensor = (x[torch.arange(count)] for x in inputs)
    monkeypatch.setattr(engine.distributed, "processes", lambda: 2)
    monkeypatch.setattr(engine.distributed, "total", lambda rows: rows)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(engine.distributed, "rank", lambda rank=rank: rank)
        parts.append(predict_logits(network, found, 3))
    assert all((part == 0).all(1).any() for part in parts) or count < 2
    torch.testing.assert_close(sum(parts), predict(network, tensor, 3)[0])


def test_training_takes_what_the_images_are(arrays, manifest):
    padded = params.PaddedCrops(augmentation="padded_crop", pad=1, flip=False)
    crops = params.ResizedCrops(
        augmentation="resized_crop",
        size=32,
        resize=40,
        scale=(0.3, 1.0),
        ratio=(3 / 4, 4 / 3),
        flip=True,
    )
    resident = imagesets.for_training(arrays, ARRAYS, padded, CPU)
    assert isinstance(resident, ResidentSet) and len(resident.views) == 9
    files = imagesets.for_training(manifest, FILES, crops, CPU)
    assert isinstance(files, FileSet) and files.views.described == CROPS.described
    assert same(epoch(files, pairs(5)), plain(manifest, pairs(5)))
    assert isinstance(imagesets.for_inference(manifest, FILES, CPU), Centers)


def test_some_of_this_machines_cpus():
    assert 1 <= imagesets.cpus() <= os.cpu_count()


# --- manifests on the disk ----------------------------------------------------------------------

NAMES = ["a b.jpg", "line\nbreak.png", "ü/☃.webp", os.fsdecode(b"\xff\xfe.jpg"), "", "'\"\\,\t.jpg"]


def equal(a, b):
    return (a.root, a.paths) == (b.root, b.paths) and all(
        x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a[2:], b[2:])
    )


@pytest.mark.parametrize("count", [len(NAMES), 1, 0])
def test_manifests_come_back_as_they_were(tmp_path, count):
    rng = np.random.default_rng(0)
    saved = Manifest(
        f"../{NAMES[3]}/ü ",
        NAMES[:count],
        rng.integers(0, 9, count),
        rng.integers(0, 999, (count, 2)).astype(np.int32),
        rng.integers(0, 2**40, count),
        rng.integers(0, 2, count).astype(bool),
    )
    save_split(tmp_path / "x.safetensors", saved)
    found = load_split(tmp_path / "x.safetensors")
    assert isinstance(found, Manifest) and equal(found, saved)
    picked = found.take(np.arange(count)[::2])
    assert picked.paths == NAMES[:count:2] and picked.sizes.tolist() == saved.sizes[::2].tolist()
    assert picked.labels.tolist() == saved.labels[::2].tolist() and picked.root == saved.root


def test_a_manifest_that_is_cut_off_is_refused(manifest, tmp_path):
    save_split(tmp_path / "x.safetensors", manifest)
    os.truncate(tmp_path / "x.safetensors", 200)
    with pytest.raises(InputError, match="x.safetensors is damaged"):
        load_split(tmp_path / "x.safetensors")
