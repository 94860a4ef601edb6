"""CLIP (Radford et al., ICML 2021) as a teacher: open_clip's models, zero-shot classification."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

import torch
from pydantic import ConfigDict, Field, FiniteFloat, with_config
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import TypedDict

from richkd.base import download, memory
from richkd.base.checkout import locate
from richkd.base.errors import InputError, one_line
from richkd.data.imagesets import cut_center
from richkd.data.resident import on_device
from richkd.data.views import Center
from richkd.model_records import (
    Fill,
    Interpolation,
    Mean,
    ModelRecord,
    RecordedCenter,
    ResizeMode,
    Sd,
    Side,
)
from richkd.models import ModelOutput
from richkd.params import CheckpointClip, ClipTowers, PretrainedClip
from richkd.weights import check_numbers, load_into, read_tensors

Tokenizer = Callable[[list[str]], Tensor]  # texts to token ids (texts, context length)


class Input(NamedTuple):
    """The images that an image tower expects.

    size is the side in pixels. mean and std, a number a channel, are for pixels in [0, 1]. How
    other images are resized is said by the last three, as in `richkd.data.views.Center`.
    """

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill: int = 0

    @property
    def center(self) -> Center:
        """How open_clip cuts an image for the model."""
        return Center(self.size, self.size, self.interpolation, self.resize_mode, self.fill)


class ClipModel(NamedTuple):
    """A CLIP model, and what its towers expect: images, and texts as tokens."""

    network: nn.Module
    expected: Input
    tokens_of: Tokenizer


def create_clip(
    model: ClipTowers | str, quick_gelu: bool = False, preprocessing: dict[str, Any] | None = None
) -> nn.Module:
    """A freshly initialised CLIP: one of open_clip's models by its name, or one with small towers.

    `preprocessing` replaces parts of what `input_of` returns for a model of open_clip. Raises
    InputError for a name that open_clip does not know.
    """
    import open_clip

    if isinstance(model, str):
        check_names(model)
        logging.disable(logging.WARNING)  # open_clip warns of random weights, which we want here
        try:
            return open_clip.create_model(
                model,
                load_weights=False,
                pretrained_text=False,
                force_quick_gelu=quick_gelu,
                force_preprocess_cfg=preprocessing,
            )
        finally:
            logging.disable(logging.NOTSET)
    vision = open_clip.CLIPVisionCfg(
        layers=list(model.vision_layers), width=model.vision_width, image_size=model.image_size
    )
    text = open_clip.CLIPTextCfg(
        context_length=model.context_length,
        width=model.text_width,
        heads=model.text_heads,
        layers=model.text_layers,
    )
    with torch.device("meta"):  # takes no memory
        planned = open_clip.CLIP(model.embed_dim, vision, text)
    numbers = sum(x.numel() for x in [*planned.parameters(), *planned.buffers()])
    memory.check("the towers of clip.model", 4 * numbers, memory.available(), "make them smaller")
    return open_clip.CLIP(model.embed_dim, vision, text)


def check_names(model: str, tag: str | None = None) -> None:
    """Raises InputError where open_clip does not know the model, or has no such tag of it."""
    import open_clip

    if model not in open_clip.list_models():
        raise InputError(f"clip.model is {model!r}: must be one of open_clip.list_models()")
    if tag:
        _published(model, tag)


def pretrained(model: str, tag: str) -> tuple[nn.Module, bool]:
    """open_clip's model with the weights of `tag`, and whether the weights need QuickGELU.

    open_clip downloads the weights into its own cache. Raises InputError for an unknown model or
    tag, and if the weights cannot be had.
    """
    import open_clip

    source = _published(model, tag)
    # Without this, open_clip loads weights trained with QuickGELU into a model without it, and only
    # warns.
    quick_gelu = source.get("quick_gelu", False)
    try:
        network = open_clip.create_model(model, pretrained=tag, force_quick_gelu=quick_gelu)
    except Exception as error:  # the error depends on the way to download
        place = source.get("hf_hub") or source.get("url")
        raise InputError(
            f"the weights of clip.model {model}, clip.tag {tag} could not be had from {place}: "
            "fetch the file where there is a network and name it with clip.source: checkpoint, "
            f"clip.tag and clip.path ({one_line(error)})"
        ) from None
    return network, quick_gelu


def from_checkpoint(model: str, tag: str | None, path: Path | str) -> tuple[nn.Module, bool]:
    """open_clip's model with the weights of a local file, and whether the weights need QuickGELU.

    `tag` is open_clip's name for the weights in the file. It says whether they need QuickGELU, and
    how images are prepared; without a tag the model's own defaults hold. Raises InputError for an
    unknown model or tag, and if the weights do not fit.
    """
    import open_clip

    source = _published(model, tag) if tag else {}
    quick_gelu = source.get("quick_gelu", False)
    network = create_clip(model, quick_gelu, source)  # open_clip takes its keys of preprocessing
    # Says what is wrong with the file itself. NumPy's files are for open_clip to read.
    if not str(path).endswith((".npz", ".npy")):
        check_numbers(path, read_tensors(path), network.state_dict())
    try:
        open_clip.load_checkpoint(network, str(path), strict=True, weights_only=True)
    except Exception as error:  # the file is of another model
        raise InputError(
            f"clip.path {path} holds no weights of {model}: {one_line(error)}"
        ) from None
    return network, quick_gelu


def use_ready_made(p: PretrainedClip | CheckpointClip) -> tuple[nn.Module, bool, dict[str, str]]:
    """The model of open_clip that the params name, with open_clip's weights or a local file's.

    Returns the network, whether its weights need QuickGELU, and the hash of the local file if the
    weights come from one. InputError where the weights cannot be had, are not the named ones or do
    not fit.
    """
    if isinstance(p, PretrainedClip):
        return *pretrained(p.model, p.tag), {}
    path = locate(p.path)
    download.verify(path, f"sha256:{p.sha256}", "clip.path")
    return *from_checkpoint(p.model, p.tag, path), {p.path: p.sha256}


def _published(model: str, tag: str) -> dict[str, Any]:
    """What open_clip knows about the weights of `tag`."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag not in tags:
        known = f"{model} has {', '.join(tags)}" if tags else f"{model} has none"
        raise InputError(f"clip.tag is {tag!r}: {known}; see open_clip.list_pretrained()")
    return open_clip.get_pretrained_cfg(model, tag)


def input_of(clip: nn.Module) -> Input:
    """The images that a model of open_clip expects. InputError if they are not square."""
    import open_clip
    from open_clip.transform import PreprocessCfg

    config = PreprocessCfg(**open_clip.get_model_preprocess_cfg(clip))
    _, height, width = config.input_size
    if height != width:
        raise InputError(f"clip.model takes images of {height} x {width} pixels: must be square")
    return Input(
        height, config.mean, config.std, config.interpolation, config.resize_mode, config.fill_color
    )


def tokenizer(model: ClipTowers | str) -> Tokenizer:
    """The model's tokenizer; a text has as many tokens as the model reads.

    Raises InputError if the tokenizer cannot be had: some need `transformers` and a download. The
    tokenizer raises InputError for a text that is too long.
    """
    import open_clip

    hint = ""
    if isinstance(model, str):
        try:
            tokens_of = open_clip.get_tokenizer(model)
        except Exception as error:
            raise InputError(f"{model}'s tokenizer could not be had: {one_line(error)}") from None
    else:
        tokens_of = open_clip.SimpleTokenizer(context_length=model.context_length)
        hint = " or raise clip.model.context_length"

    def tokenize(texts: list[str]) -> Tensor:
        if isinstance(tokens_of, open_clip.SimpleTokenizer):  # it would cut off what is too long
            longest = max(texts, key=lambda text: len(tokens_of.encode(text)))
            needed = len(tokens_of.encode(longest)) + 2  # a start token and an end token
            if needed > tokens_of.context_length:
                raise InputError(
                    f"CLIP reads {tokens_of.context_length} tokens, {longest!r} has {needed}: "
                    f"shorten the prompt or caption{hint}"
                )
        return tokens_of(texts)

    return tokenize


def preprocess(pixels: Tensor, expected: Input) -> Tensor:
    """Images, pixels in [0, 1], (N, 3, H, W), to CLIP's input (N, 3, size, size).

    open_clip does the same to each image with PIL; here a whole batch is done on its device.
    """
    resized = cut_center(pixels, expected.center).clamp(0, 1)
    mean, std = (
        on_device(tuple(x), pixels.device).view(3, 1, 1) for x in (expected.mean, expected.std)
    )
    return (resized - mean) / std


class ZeroShot(nn.Module):
    """CLIP as a classifier: its logits are `scale` times the cosine of image and class embeddings.

    Called with pixels in [0, 1], (N, 3, H, W), it returns ModelOutput(logits (N, C), unit image
    features (N, D)), float32. `classifier` has the unit class embeddings (C, D). On a GPU the image
    tower runs in half precision.

    SigLIP adds a bias to every logit, for its sigmoid. It is left out: it is the same for all
    classes, and probabilities here are softmax's over the classes, which it does not change.
    """

    clip: Any  # a model of open_clip
    classifier: Tensor

    def __init__(self, clip: nn.Module, classifier: Tensor, scale: float, expected: Input):
        super().__init__()
        self.clip, self.scale, self.expected = clip, scale, expected
        self.register_buffer("classifier", classifier)

    def forward(self, pixels: Tensor) -> ModelOutput:
        images = preprocess(pixels, self.expected)
        half = torch.autocast("cuda", torch.float16) if pixels.is_cuda else nullcontext()
        with half:
            features = self.clip.encode_image(images)
        with torch.autocast(pixels.device.type, enabled=False):  # 16 bits would round the logits
            features = F.normalize(features.float(), dim=1)
            return ModelOutput(self.scale * features @ self.classifier.T, features)


def templates(prompts: Literal["imagenet80"] | Sequence[str]) -> list[str]:
    """The templates as strings with {} for the class name; `imagenet80` are open_clip's 80."""
    import open_clip

    if prompts == "imagenet80":
        return [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    return list(prompts)


def fill(template: str, superclasses: Mapping[str, str]) -> Callable[[str], str]:
    """A function from a class's name to its text: {} is the name, {kind} the superclass's name."""
    return lambda name: template.format(name, kind=superclasses.get(name))


def class_embeddings(
    clip: nn.Module,
    tokens_of: Tokenizer,
    classes: Sequence[str],
    prompts: Sequence[str],
    superclasses: Mapping[str, str],
) -> Tensor:
    """Unit text embeddings (C, D): the mean over the prompts of the unit embeddings, normalised.

    `superclasses` maps a class's name to its superclass's, for prompts with {kind}.
    """
    import open_clip

    device = next(clip.parameters()).device
    return open_clip.build_zero_shot_classifier(
        clip.eval(), tokens_of, classes, [fill(x, superclasses) for x in prompts], device=device
    ).T


@with_config(ConfigDict(extra="allow"))
class RecordedInput(TypedDict):
    """`Input` in a record."""

    size: Side
    mean: Mean
    std: Sd
    interpolation: Interpolation
    resize_mode: ResizeMode
    fill: Fill


class ClipRecord(ModelRecord):
    """The record of a zero-shot classifier, as the stage `clip` writes it."""

    kind: Literal["clip"]
    model: str | ClipTowers
    quick_gelu: bool
    embed_dim: Annotated[int, Field(ge=1, le=100_000)]
    input: RecordedInput
    center: RecordedCenter | None
    classes: Annotated[list[str], Field(min_length=1)]
    superclasses: NotRequired[dict[str, str]]  # if the data set has superclasses
    prompts: Annotated[list[str], Field(min_length=1)]
    scale: FiniteFloat


def load_zero_shot(path: Path | str, record: ClipRecord) -> ZeroShot:
    """The model that the stage `clip` saved as `path`.json, `record`, and `path`.safetensors.

    Raises InputError if the weights do not fit the record.
    """
    network = create_clip(record["model"], record["quick_gelu"])
    classifier = torch.zeros(len(record["classes"]), record["embed_dim"])
    zero_shot = ZeroShot(network, classifier, record["scale"], Input(**record["input"]))
    load_into(zero_shot, f"{path}.safetensors")
    return zero_shot
