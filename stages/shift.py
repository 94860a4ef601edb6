"""Read and check the further test sets; a set whose path does not exist is skipped."""

import shutil
from typing import Any

import numpy as np

from richkd import params
from richkd.base.checkout import places
from richkd.base.files import write_json
from richkd.data.dataset import SHIFTED, load_info, load_split, save_split
from richkd.data.shifted import read_shifted
from stages import run


def main() -> None:
    settings = params.load("shifted")
    info, test = load_info("data/info.json"), load_split("data/test.safetensors")
    shutil.rmtree(SHIFTED, ignore_errors=True)
    found: dict[str, dict[str, Any]] = {}
    for name, path in settings.shifted.items():
        images = read_shifted(path, info, test)
        if images is None:
            paths = [path] if isinstance(path, str) else path
            found[name] = {"skipped": f"nothing is at {', '.join(paths)}"}
            print(f"{name} is skipped: nothing is at {', '.join(map(places, paths))}")
            continue
        save_split(SHIFTED / f"{name}.safetensors", images)
        classes = np.unique(images.labels).tolist()
        found[name] = {"images": len(images.labels), "classes": classes}
        print(f"{name}: {len(images.labels)} images of {len(classes)} classes")
    write_json(SHIFTED / "sets.json", found)
    skipped = sum("skipped" in record for record in found.values())
    print(f"{SHIFTED}: {len(found) - skipped} test sets, {skipped} are skipped")


if __name__ == "__main__":
    run(main)
