"""Corrupt the test images, or take the published corrupted sets; a file a corruption.

A file holds its severities in blocks, as CIFAR-C has them.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from richkd import cifar_c, download, params
from richkd.corruptions import corrupt
from richkd.dataset import Split, load_info, load_split
from richkd.files import write_array
from stages import run


def main() -> None:
    p = params.load("corruptions").corruptions
    test = load_split("data/test.safetensors")
    sets = generated(p, test) if p.source == "generate" else published(p, test)
    shutil.rmtree("data/corrupted", ignore_errors=True)
    for name, images in tqdm(sets, "corrupt", len(p.names), unit="corruption"):
        write_array(f"data/corrupted/{name}.npy", images)
    print(f"data/corrupted: {len(p.names)} × {len(p.severities)} × {len(test.labels)} images")


def generated(p: params.GeneratedCorruptions, test: Split) -> Iterator[tuple[str, np.ndarray]]:
    for name in p.names:
        blocks = [corrupt(test.images, name, severity, p.seed) for severity in p.severities]
        yield name, np.concatenate(blocks)


def published(
    p: params.DownloadedCorruptions | params.LocalCorruptions, test: Split
) -> Iterator[tuple[str, np.ndarray]]:
    official = cifar_c.OFFICIAL[load_info("data/info.json").name]
    if p.source == "download":
        instead = "set corruptions.source: path, and corruptions.path to a local copy"
        source = download.fetch(p.urls, official.file, official.md5, instead)
    else:
        source = Path(p.path)
        if source.is_file():
            download.verify(source, official.md5, "corruptions.path")
    return cifar_c.read(source, p.names, p.severities, test.labels)


if __name__ == "__main__":
    run(main)
