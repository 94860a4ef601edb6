"""Make the data set: training, validation and test images, and captioned ones for CLIP."""

from richkd import cifar, digits, params
from richkd.dataset import Info, save_info, save_split
from stages import run


def main() -> None:
    dataset = params.load("dataset").dataset
    prepare = digits.prepare if dataset.name == "digits" else cifar.prepare
    splits, classes = prepare(dataset)
    for name, split in splits.items():
        save_split(f"data/{name}.safetensors", split)
        print(f"data/{name}.safetensors: {len(split.labels)} images of {len(classes)} classes")
    pixels = splits["train"].images.reshape(-1, 3) / 255
    mean, std = pixels.mean(0).tolist(), pixels.std(0).tolist()
    save_info("data/info.json", Info(name=dataset.name, classes=classes, mean=mean, std=std))


if __name__ == "__main__":
    run(main)
