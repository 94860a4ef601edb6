"""Corrupt the test images, or read the published corrupted sets.

Writes a file for each corruption, with its severities one after another, as CIFAR-C has them: an
array, or the manifest of image files that stay where they are. `frost.txt` says what frost was made
of here. If `corruptions.path` does not exist, only `skipped.txt` is written.
"""

import shutil
from collections.abc import Iterator

from tqdm import tqdm

from richkd import params
from richkd.base.checkout import locate, places
from richkd.base.files import replacing, write_array
from richkd.data.corrupted import Array, generated_sets, published_sets
from richkd.data.dataset import CORRUPTED, Manifest, load_info, load_split, save_split
from stages import run


def main() -> None:
    settings = params.load("corruptions", "views")
    test = load_split("data/test.safetensors")
    shutil.rmtree(CORRUPTED, ignore_errors=True)
    if settings.corruptions.source == "path" and not locate(settings.corruptions.path).exists():
        path = settings.corruptions.path
        with replacing(CORRUPTED / "skipped.txt") as part:
            part.write_text(f"nothing is at {path}\n")
        print(f"corrupted images are skipped: nothing is at {places(path)}")
        return
    sets: Iterator[tuple[str, Array | Manifest]]
    if settings.corruptions.source == "generate":
        sets = generated_sets(settings.corruptions, settings.views, test)
    else:
        sets = published_sets(settings.corruptions, test, load_info("data/info.json"))
    for name, images in tqdm(sets, "corrupt", len(settings.corruptions.names), unit="corruption"):
        if isinstance(images, Manifest):
            save_split(CORRUPTED / f"{name}.safetensors", images)
        else:
            write_array(CORRUPTED / f"{name}.npy", images)
    names, severities = settings.corruptions.names, settings.corruptions.severities
    if settings.corruptions.source == "generate" and "frost" in names:
        photographs = settings.corruptions.photographs_needed
        material = "the benchmark's photographs" if photographs else "generated textures"
        with replacing(CORRUPTED / "frost.txt") as part:
            part.write_text(material + "\n")
        print(f"frost: {material}")
    print(f"{CORRUPTED}: {len(names)} × {len(severities)} × {len(test.labels)} images")


if __name__ == "__main__":
    run(main)
