"""A model card, as the Hugging Face Hub shows it beside a model: Markdown with a YAML head."""

from importlib.metadata import version

from richkd.use.answers import Description

CARD = """\
---
license: {license}
library_name: richkd
pipeline_tag: image-classification
tags:
- image-classification
- knowledge-distillation
---

# {name}

A {arch}, {origin}.
It knows the {count} classes of the data set `{data_set}`: {classes}.

| measured on {images:,} test images | |
|---|---|
| top-1 | {top1:.1%} |
| expected calibration error, 15 bins | {ece:.1%} |
| negative log-likelihood | {nll:.3f} nats |

The probabilities are softmax(logits / {temperature:.4g}). {fitted}

## Use

With RichKD installed:

    import richkd

    student = richkd.load("{file}")
    print(student.predict(["image.jpg"]))

Images are taken in RGB, {cut}.
Of pixels from 0 to 1, a number a channel: the mean {mean} is subtracted, then they are
divided by {std}.

## Where it comes from

Trained by RichKD {version}, seed {seed}; exported at commit `{commit}`.
The metadata of `{file}` has all params, whose SHA-256 is
`{params_sha256}`, and the hashes of the data.
The licence is RichKD's; the data set and the teachers may have terms of their own.
"""
SHOWN = 20  # class names; a card only counts the others


def render(about: Description, file: str) -> str:
    """The card of the model in the safetensors file of this name."""
    shown = ", ".join(about.classes[:SHOWN])
    more = len(about.classes) - SHOWN
    how, source = about.preprocessing, about.provenance
    center = how["center"]
    teacher = source["teacher"]
    fitted = "The temperature was fitted to the validation images."
    return CARD.format(
        license=about.license.lower(),
        name=about.name,
        arch=about.arch,
        origin=f"student of the teacher `{teacher}`" if teacher else "trained without a teacher",
        count=len(about.classes),
        data_set=source["data_set"],
        classes=f"{shown} and {more} more" if more > 0 else shown,
        **about.metrics,
        temperature=about.temperature or 1.0,
        fitted=fitted if about.temperature else "No temperature was fitted.",
        file=file,
        cut=(
            f"cut to {center['size']} x {center['size']} after a resize to {center['resize']}"
            if center
            else f"{how['image_size']} x {how['image_size']} pixels"
        ),
        mean=[round(x, 4) for x in how["mean"]],
        std=[round(x, 4) for x in how["std"]],
        version=version("richkd"),
        seed=source["seed"],
        commit=source["commit"],
        params_sha256=source["params_sha256"],
    )
