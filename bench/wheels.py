"""The packages that the GPU tests and benchmarks need and that this machine lacks, one a line.

Where there is no network they can come as wheels: `pip download --no-deps` fetches them on another
machine. torch, torchvision and what these need must be there. Run it: `bash bench/gpu.sh --wheels`.
"""

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# With the packages that these need themselves. DVC is not among them: stages run without it.
NEEDED = """
    annotated-types anyio certifi charset-normalizer click cloudpickle contourpy cycler
    fonttools ftfy h11 hf-xet httpcore2 httpx2 huggingface_hub hypothesis idna iniconfig joblib
    kiwisolver matplotlib narwhals open_clip_torch packaging pandas platformdirs pluggy psutil
    pydantic pydantic_core Pygments pyparsing pytest python-dateutil PyYAML regex requests
    ruamel.yaml safetensors scikit-learn scipy six sortedcontainers threadpoolctl timm tqdm
    torchcodec truststore typing-inspection urllib3 wcwidth
""".split()
PINS = Path(__file__).parents[1] / "requirements.txt"


def missing() -> list[str]:
    """`name==version` of each package that is not installed, with the project's own version."""
    pins = dict(re.findall(r"^([\w.-]+)==(.+)$", PINS.read_text(), re.MULTILINE))
    return [f"{name}=={pins[name]}" for name in NEEDED if not installed(name)]


def installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    print(*missing(), sep="\n")
