"""Commands for the pipeline's params, and for the models that it made."""

import argparse
import sys
from pathlib import Path

from richkd.base.errors import InputError, stop

PRESETS = Path("presets")


def main() -> None:
    """Run a command, which imports only what it needs. Bad input: one line and exit code 1."""
    arguments = parser().parse_args()
    run = {"preset": use_preset, "export": run_export, "predict": run_predict}[arguments.command]
    try:
        run(arguments)
    except (InputError, OSError) as error:
        stop(error)


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="python -m richkd", description=__doc__)
    commands = whole.add_subparsers(dest="command", required=True)

    preset = commands.add_parser("preset", help="replace params.yaml by presets/NAME.yaml")
    preset.add_argument("name", choices=sorted(path.stem for path in PRESETS.glob("*.yaml")))

    export = commands.add_parser("export", help="write a model as ONNX, safetensors or pt2")
    export.add_argument("model", type=Path, help="a folder such as models/LF")
    export.add_argument("--to", choices=("onnx", "safetensors", "pt2"), default="onnx")
    export.add_argument("--seed", type=int, help="the first one of the folder by default")
    export.add_argument(
        "--output",
        type=Path,
        help="export/<model>-seed<n>.onnx by default; for safetensors a folder",
    )
    export.add_argument(
        "--input",
        choices=("uint8", "float32"),
        default="uint8",
        help="what the pixels are: uint8 from 0 to 255 or float32 from 0 to 1; (N, 3, H, W)",
    )
    export.add_argument(
        "--int8", action="store_true", help="also an ONNX file of 8 bits, and what that costs"
    )

    predict = commands.add_parser("predict", help="say what images show")
    predict.add_argument("model", help="a folder such as models/LF, or an exported file")
    predict.add_argument("images", nargs="+", help="files, or folders of images")
    predict.add_argument("--seed", type=int, help="the first one of the folder by default")
    predict.add_argument("--json", action="store_true", help="JSON in place of a table")
    return whole


def use_preset(arguments: argparse.Namespace) -> None:
    from richkd import params
    from richkd.base.files import replacing

    source = PRESETS / f"{arguments.name}.yaml"
    params.load(path=source)
    with replacing("params.yaml") as part:
        part.write_text(source.read_text())
    print(f"params.yaml is now {source}")


def run_export(arguments: argparse.Namespace) -> None:
    if arguments.int8 and arguments.to != "onnx":
        raise InputError(f"--int8 with --to {arguments.to}: only onnx is quantised")
    from richkd.use.export import Request, export

    path = export(
        Request(arguments.model, arguments.seed, arguments.to, arguments.output, arguments.input)
    )
    if arguments.int8:
        from richkd.use.quantize import quantize
        from richkd.use.student import project

        quantize(path, project(arguments.model / "seed") / "data")


def run_predict(arguments: argparse.Namespace) -> None:
    from richkd.use.predict import predict

    if not predict(arguments.model, arguments.images, seed=arguments.seed, as_json=arguments.json):
        sys.exit(1)


if __name__ == "__main__":
    main()
