"""ImageNet-C, the published corrupted validation images (Hendrycks and Dietterich, ICLR 2019).

`<corruption>/<severity>/<wnid>/<name>.JPEG`, 224 × 224. The corruptions' folders lie side by side,
or in the folders of the published archives (`noise/gaussian_noise/…`).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from richkd.base.checkout import locate
from richkd.base.errors import InputError
from richkd.data.dataset import Manifest
from richkd.data.folder import report_unreadable, scan


def read_imagenet_c(
    path: Path | str,
    names: Sequence[str],
    severities: Sequence[int],
    test: Manifest,
    folders: Sequence[str],
) -> Iterator[tuple[str, Manifest]]:
    """Each corruption's name and files, by severity and in the order of the test images.

    The labels are those of `test`, whose images are found by class and file name; `folders` are the
    classes' folders. Raises InputError for a missing corruption before anything is yielded, and
    later for a file that is missing or cannot be read.
    """
    root = locate(path)
    places = {name: [*root.glob(name), *root.glob(f"*/{name}")] for name in names}
    if missing := [name for name in names if not places[name]]:
        raise InputError(f"{path} has no folder {', '.join(missing)}")
    stems = [f"{folders[label]}/{Path(x).stem}" for x, label in zip(test.paths, test.labels)]
    others = 0
    for name in names:
        files = []
        for severity in severities:
            folder = places[name][0] / str(severity)
            found = {f"{x.parent.name}/{x.stem}": x for x in folder.glob("*/*")}
            if missing := [stem for stem in stems if stem not in found]:
                raise InputError(
                    f"{folder} lacks {len(missing)} of the test images, first {missing[0]}"
                )
            others += len(found) - len(stems)
            files += [(str(found[stem].relative_to(root)), 0) for stem in stems]
        manifest, unreadable = scan(root, files, name)
        if unreadable:
            report_unreadable(unreadable, 0, "ImageNet-C", root)
        labels = np.tile(test.labels, len(severities))
        # As it is written in the params: a temporary copy makes the same records.
        yield name, manifest._replace(root=str(Path(path)), labels=labels)
    if others:
        print(f"{root}: {others} images that are not among the test images are left out")
