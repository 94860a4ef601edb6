"""`python -m richkd preset NAME` replaces params.yaml by a ready-made file."""

import argparse
from pathlib import Path

from richkd import params
from richkd.base.errors import InputError, stop
from richkd.base.files import replacing

PRESETS = Path("presets")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m richkd", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    preset = commands.add_parser("preset", help="replace params.yaml by presets/NAME.yaml")
    preset.add_argument("name", choices=sorted(path.stem for path in PRESETS.glob("*.yaml")))
    arguments = parser.parse_args()
    source = PRESETS / f"{arguments.name}.yaml"
    try:
        params.load(path=source)
        with replacing("params.yaml") as part:
            part.write_text(source.read_text())
    except (InputError, OSError) as error:
        stop(error)
    print(f"params.yaml is now {source}")


if __name__ == "__main__":
    main()
