"""The fused teacher's logits on all images: the saved ones of the teacher and CLIP, fused."""

import numpy as np

from richkd import params
from richkd.dataset import load_split
from richkd.evaluation import score
from richkd.files import write_array
from richkd.fusion import fuse_logits
from stages import run


def main() -> None:
    p = params.load("fusion.alpha", "corruptions.names", "corruptions.severities")
    for split in ("validation", "test", "corrupted"):
        teacher, clip = (
            np.load(f"predictions/{name}/{split}.npy") for name in ("teacher", "clip")
        )
        # Mixed in 32 bits, saved as the parts are.
        fused = fuse_logits(teacher.astype(np.float32), clip.astype(np.float32), p.fusion.alpha)
        write_array(f"predictions/fused/{split}.npy", fused.astype(teacher.dtype))
    labels = load_split("data/test.safetensors").labels
    score("fused", labels, p.corruptions.names, p.corruptions.severities)
    print("predictions/fused, metrics/evaluate/fused.json, metrics/evaluate/fused.csv")


if __name__ == "__main__":
    run(main)
