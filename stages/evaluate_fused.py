"""The fused teacher's logits on all images, mixed from those saved of the teacher and CLIP."""

import numpy as np

from richkd import params
from richkd.base.files import write_array, write_json
from richkd.data.dataset import load_info, load_split
from richkd.evaluate.scores import (
    corrupted_sets,
    limit,
    read_logits,
    read_seeds,
    score,
    shifted_found,
)
from richkd.teachers.fusion import load_recipe
from stages import run


def main() -> None:
    corruptions = params.load("corruptions.names", "corruptions.severities").corruptions
    recipe = load_recipe()
    for part in ("validation", "test", "corrupted", *(f"shifted/{key}" for key in shifted_found())):
        shape = (1, None, None, None, None) if part == "corrupted" else (1, None, None)
        teacher = read_logits("teacher", part, shape, mode="r")
        clip = read_logits("clip", part, teacher.shape, mode="r")
        fused = np.empty_like(teacher)
        # Teachers have one seed. Each turn mixes the logits of one image, or those of all images
        # under one corruption, so that not all corrupted images are in memory in 32 bits.
        for out, teacher_logits, clip_logits in zip(fused[0], teacher[0], clip[0], strict=True):
            # Mixed in 32 bits, saved in the dtype of the parts.
            mixed = recipe.mix(teacher_logits.astype(np.float32), clip_logits.astype(np.float32))
            if part == "corrupted":  # 16 bits are finest near 0
                mixed -= mixed.max(-1, keepdims=True)
                limit(mixed, float(np.finfo(np.float16).max))
            out[...] = mixed
        write_array(f"predictions/fused/{part}.npy", fused)
    write_json("predictions/fused/seeds.json", read_seeds("teacher"))
    labels, names = load_split("data/test.safetensors").labels, corrupted_sets(corruptions.names)
    imagenet = load_info("data/info.json").whole_imagenet
    score("fused", labels, names, corruptions.severities, imagenet)
    print("predictions/fused, metrics/evaluate/fused.json, metrics/evaluate/fused.csv")


if __name__ == "__main__":
    run(main)
