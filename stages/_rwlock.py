"""Remove DVC's file `.dvc/tmp/rwlock` where an interrupted DVC has left it empty or cut.

With it every DVC command fails: "JSON structure is corrupted". `make repro` runs this file by its
path, so it imports nothing of ours, which would take longer.
"""

import fcntl
import json
from pathlib import Path

TMP = Path(".dvc/tmp")


def main() -> None:
    file = TMP / "rwlock"
    try:
        json.loads(file.read_text())
    except FileNotFoundError:
        return
    except ValueError:
        if (reason := dvc_runs()) is None:
            file.unlink()
            print(f"{file} was not JSON, left by an interrupted DVC: removed")
        else:
            print(f"{file} is not JSON, and stays because {reason}")


def dvc_runs() -> str | None:
    """How we know that DVC runs here; None if it does not."""
    for name in ("lock", "rwlock.lock"):
        if (TMP / name).exists():
            with open(TMP / name) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    return f"{TMP / name} is locked"
    # While DVC runs a stage, it holds neither lock.
    import psutil

    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        if "dvc" in [Path(word).name for word in words[:3]]:
            # Other users' processes hide their folder.
            if process.info["cwd"] in (None, str(Path.cwd())):
                return f"process {process.pid} is DVC"
    return None


if __name__ == "__main__":
    main()
