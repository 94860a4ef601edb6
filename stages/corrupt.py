"""Corrupt the test images: a file a corruption, its severities in blocks, as CIFAR-C has them."""

import shutil

import numpy as np
from tqdm import tqdm

from richkd import params
from richkd.corruptions import corrupt
from richkd.dataset import load_split
from richkd.files import write_array
from stages import run


def main() -> None:
    p = params.load("corruptions").corruptions
    images = load_split("data/test.safetensors").images
    shutil.rmtree("data/corrupted", ignore_errors=True)
    for name in tqdm(p.names, "corrupt", unit="corruption"):
        blocks = [corrupt(images, name, severity, p.seed) for severity in p.severities]
        write_array(f"data/corrupted/{name}.npy", np.concatenate(blocks))
    print(f"data/corrupted: {len(p.names)} × {len(p.severities)} × {len(images)} images")


if __name__ == "__main__":
    run(main)
