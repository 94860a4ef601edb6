"""Check params.yaml; write in fingerprints/ the code that each stage's results follow from."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from richkd import params
from richkd.base.files import write_json
from richkd.fingerprints import code_fingerprints
from stages import run

FOLDER = Path("fingerprints")


def main() -> None:
    variants = params.load("distill.variants").distill.variants
    written: dict[Path, dict[str, Any]] = {}
    for script in sorted(path.as_posix() for path in Path("stages").glob("[!_]*.py")):
        stage = Path(script).stem
        if stage == "distill":
            for name, variant in variants.items():
                written[FOLDER / stage / f"{name}.json"] = {
                    # All options: params.yaml may leave one out, and its default may be edited.
                    "terms": {key: asdict(term) for key, term in variant.terms.items()},
                    "code": code_fingerprints(script, variant.terms),
                }
        elif stage != "code":
            written[FOLDER / f"{stage}.json"] = {"code": code_fingerprints(script)}
    for path, content in written.items():
        write_json(path, content)
    for path in FOLDER.rglob("*"):
        if path.is_file() and path not in written:  # that of a variant which is gone
            path.unlink()
    print(f"fingerprints: {len(written)} files")


if __name__ == "__main__":
    run(main)
