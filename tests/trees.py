"""Small image folders in the layout of ImageNet, with the odd files that real folders have."""

from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = (
    "n01440764 n01443537 n01491361 n01514668 n01530575 n01532829 n01558993 n01614925 n01644373 "
    "n01770393 n01855672 n02085620 n02110341 n02123045 n02130308 n02206856 n02391049 n02504458 "
    "n02690373 n03891251"
).split()
COLORS = np.random.default_rng(3).integers(0, 256, (40, 3))


def photograph(
    label: int, rng: np.random.Generator, small: int = 60, large: int = 140
) -> Image.Image:
    """A picture of a class, of random size: stripes of the class's colour and slope on noise."""
    width, height = (int(x) for x in rng.integers(small, large, 2))
    y, x = np.mgrid[:height, :width]
    angle = np.pi * (label % 4) / 4 + rng.normal(0, 0.1)
    stripes = np.sin((x * np.cos(angle) + y * np.sin(angle)) / 3 + rng.uniform(0, 6))[..., None]
    ground = rng.integers(60, 200, 3) + rng.normal(0, 20, (height, width, 3))
    pixels = np.where(stripes > -0.3, COLORS[label // 2 * 2] * 0.7 + ground * 0.3, ground)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def imagenet(
    root: Path,
    train: int = 16,
    val: int = 6,
    wnids: list[str] = WNIDS,
    seed: int = 0,
    oddities: bool = True,
) -> Path:
    """`train/<wnid>/` and `val/<wnid>/` with `train` and `val` images a class.

    With `oddities` the first training images of the first class are odd: one in grey, one in CMYK,
    one with a palette, one that EXIF turns, and one that is cut off.
    """
    rng = np.random.default_rng(seed)
    for part, count in (("train", train), ("val", val)):
        for label, wnid in enumerate(wnids):
            (root / part / wnid).mkdir(parents=True)
            for i in range(count):
                image = photograph(label, rng)
                image.save(root / part / wnid / f"{wnid}_{i}.JPEG", quality=90)
    if oddities:
        odd(root / "train" / wnids[0], wnids[0], rng)
    return root


def odd(folder: Path, wnid: str, rng: np.random.Generator) -> None:
    """Replace the first five images of a class by odd ones."""
    image = photograph(0, rng)
    image.convert("L").save(folder / f"{wnid}_0.JPEG")
    image.convert("CMYK").save(folder / f"{wnid}_1.JPEG")
    image.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / f"{wnid}_2.JPEG", "PNG")
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(folder / f"{wnid}_3.JPEG", exif=turned)
    content = (folder / f"{wnid}_4.JPEG").read_bytes()
    (folder / f"{wnid}_4.JPEG").write_bytes(content[: len(content) // 2])


def corrupted(root: Path, source: Path, names: list[str], severities: list[int], side: int) -> None:
    """ImageNet-C's folders: the validation images at `source`, darker for a higher severity.

    The images are resized to `side` x `side` pixels.
    """
    for path in (source / "val").glob("*/*"):
        image = Image.open(path).convert("RGB").resize((side, side))
        for name in names:
            for severity in severities:
                folder = root / name / str(severity) / path.parent.name
                folder.mkdir(parents=True, exist_ok=True)
                dark = image.point([level * (6 - severity) // 6 for level in range(256)] * 3)
                dark.save(folder / path.name)


def shifted(root: Path, folders: dict[str, int], count: int = 3) -> None:
    """Folders by name, each with `count` images of the class that the name has in `folders`."""
    rng = np.random.default_rng(5)
    for folder, label in folders.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            photograph(label, rng).save(root / folder / f"{i}.png")


def flatten_validation(root: Path) -> None:
    """Put the validation images into one folder, in random order, and write ImageNet's devkit."""
    from scipy.io import savemat

    files = sorted((root / "val").glob("*/*"))
    wnids = sorted({path.parent.name for path in files})
    identifier = {wnid: i + 1 for i, wnid in enumerate(reversed(wnids))}  # not the sorted order
    order = np.random.default_rng(0).permutation(len(files))
    truth = []
    for number, i in enumerate(order, start=1):
        truth.append(identifier[files[i].parent.name])
        files[i].rename(root / "val" / f"ILSVRC2012_val_{number:08}.JPEG")
    for wnid in wnids:
        (root / "val" / wnid).rmdir()
    kit = root / "ILSVRC2012_devkit_t12/data"
    kit.mkdir(parents=True)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{x}\n" for x in truth))
    kind = [("ILSVRC2012_ID", "i4"), ("WNID", "U9"), ("num_children", "i4")]
    rows = [(i, wnid, 0) for wnid, i in identifier.items()] + [(len(wnids) + 1, "n00001740", 2)]
    savemat(kit / "meta.mat", {"synsets": np.array(rows, dtype=kind)})
