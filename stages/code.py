"""Check params.yaml; write in fingerprints/ the code that each stage's results follow from."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from richkd import params
from richkd.base.errors import InputError
from richkd.base.files import write_json
from richkd.fingerprints import code_fingerprints
from stages import run

FOLDER = Path("fingerprints")


def main() -> None:
    settings = params.load("distill.variants", "runtime", "clip")
    check_device(settings.runtime)
    params.check_networks()
    if not isinstance(settings.clip, params.TrainedClip):
        from richkd.clip.zero_shot import check_names  # imports torch, which takes seconds

        check_names(settings.clip.model, settings.clip.tag)
    variants = settings.distill.variants
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


def check_device(runtime: params.Runtime) -> None:
    """InputError for CUDA that is not there: else stages would work before one needs it."""
    if runtime.device == "cuda" or runtime.step == "graph":
        import torch  # takes seconds, and is not needed otherwise

        if not torch.cuda.is_available():
            what = "device is 'cuda'" if runtime.device == "cuda" else "step is 'graph'"
            raise InputError(f"runtime.{what}: no CUDA device here, use auto")


if __name__ == "__main__":
    run(main)
