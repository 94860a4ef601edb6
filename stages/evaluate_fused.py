"""The fused teacher's logits on all images: the saved ones of the teacher and CLIP, fused."""

import numpy as np

from richkd import params
from richkd.base.files import write_array
from richkd.data.dataset import load_info, load_split
from richkd.evaluate.scores import corrupted_sets, score, shifted_found
from richkd.teachers.fusion import fuse_logits
from stages import run


def main() -> None:
    p = params.load("fusion.alpha", "corruptions.names", "corruptions.severities")
    for part in ("validation", "test", "corrupted", *(f"shifted/{key}" for key in shifted_found())):
        teacher, clip = (
            np.load(f"predictions/{name}/{part}.npy", mmap_mode="r") for name in ("teacher", "clip")
        )
        fused = np.empty_like(teacher)
        for out, *logits in zip(
            fused[0], teacher[0], clip[0]
        ):  # one seed; a corruption, or an image
            # Mixed in 32 bits, saved as the parts are.
            out[...] = fuse_logits(*(x.astype(np.float32) for x in logits), p.fusion.alpha)
        write_array(f"predictions/fused/{part}.npy", fused)
    labels, names = load_split("data/test.safetensors").labels, corrupted_sets(p.corruptions.names)
    imagenet = load_info("data/info.json").whole_imagenet
    score("fused", labels, names, p.corruptions.severities, imagenet)
    print("predictions/fused, metrics/evaluate/fused.json, metrics/evaluate/fused.csv")


if __name__ == "__main__":
    run(main)
