"""Networks known by name, as spec strings: ``network("resnet20")``, ``network("gcn width=32")``.

Each is a function of the number of outputs, which the data give: classes, ids of a vocabulary,
or numbers to predict.  Its other parameters are the options that a spec string may set.  No network
has dropout.  Unless it says otherwise, every layer is a unit of locality of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import getdoc, signature
from typing import Any

from fflearn.errors import SpecError

PLACES = ("macro", "micro")


def mlp(n_classes: int = 10, width: int = 256, depth: int = 2) -> str:
    """Dense layers with relu, and a linear output: for tables and small images.

    Examples
    --------
    >>> mlp(3, width=8, depth=1)
    'dense 8 relu | dense 3'
    """
    _positive("mlp", width=width, depth=depth)
    return " | ".join([f"dense {width} relu"] * depth + [f"dense {n_classes}"])


def lenet(n_classes: int = 10) -> str:
    """LeNet-5 for images of 28 x 28, with relu and max pooling: 61,706 parameters for 10 classes.

    LeCun, Bottou, Bengio, Haffner (1998), Proc. IEEE 86(11), fig. 2, as usually built today: each
    map of the second convolution reads all maps below, and the output layer is linear.
    """
    maps = "conv 6 relu kernel=5 | max_pool | conv 16 relu kernel=5 padding=0 | max_pool"
    return f"{maps} | dense 120 relu | dense 84 relu | dense {n_classes}"


def vgg8(n_classes: int = 10) -> str:
    """VGG8B, the network of local-error papers: 8.9 M parameters for CIFAR-10.

    Six convolutions of 128 to 512 maps and a hidden layer of 1024 units, batch normalised.
    Nokland, Eidnes (2019), "Training neural networks with local error signals",
    arXiv:1901.06656, table 1.
    """
    maps = _vgg([128, 256, 0, 256, 512, 0, 512, 0, 512, 0])
    return f"{maps} | dense 1024 bias=false | batch_norm relu | dense {n_classes}"


def vgg16(n_classes: int = 10) -> str:
    """VGG-16 for CIFAR: 13 convolutions, batch normalised, and one dense layer; 14.7 M parameters.

    Simonyan, Zisserman (2015), arXiv:1409.1556, table 1, column D; for 32 x 32 pixels the three
    dense layers are usually one.
    """
    widths = [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0]
    return f"{_vgg(widths)} | dense {n_classes}"


def resnet20(n_classes: int = 10) -> str:
    """ResNet-20 for CIFAR: three stages of three residual blocks of 16, 32, 64 maps; 0.27 M.

    The first block of stages 2 and 3 has stride 2 and a projection for a shortcut, a convolution
    of 1 x 1 with stride 2 and batch normalisation (the paper's option B; its own figure, 0.27 M,
    is for shortcuts without parameters).  He, Zhang, Ren, Sun (2016), arXiv:1512.03385, sec. 4.2.
    """
    parts = ["conv 16 bias=false | batch_norm relu"]
    for units, first in ((16, 1), (32, 2), (64, 2)):
        for stride in (first, 1, 1):
            step = "" if stride == 1 else f" stride={stride}"
            body = f"conv {units}{step} bias=false | batch_norm relu"
            body += f" | conv {units} bias=false | batch_norm"
            skip = f"; conv {units} kernel=1{step} bias=false | batch_norm" if step else ""
            parts.append(f"residual({body}{skip}) | act relu")
    return " | ".join([*parts, f"avg_pool | dense {n_classes}"])


def _vgg(widths: list[int]) -> str:
    """Convolutions of so many maps; 0 is a pooling."""
    # A convolution that a batch normalisation follows needs no bias: it would be subtracted again.
    return " | ".join(f"conv {w} bias=false | batch_norm relu" if w else "max_pool" for w in widths)


def gpt_nano(
    n_classes: int = 65, width: int = 128, depth: int = 4, heads: int = 4, places: str = "macro"
) -> str:
    """A decoder-only transformer with pre-norm blocks, ids (T,) -> logits (T, n_classes).

        x = x + attention(layer_norm(x)),   x = x + W2 gelu(W1 layer_norm(x)),   W1 4 times wider

    The sequence's length is that of the data; the head does not share the embedding's table.

    Parameters
    ----------
    n_classes : int
        Number of ids: the vocabulary.
    width, depth, heads : int
        Units of each place, blocks, and heads per block.
    places : str
        Where a rule reaches: "macro", each block is one unit of locality, exact inside; "micro",
        each layer is one.

    Returns
    -------
    str
        The spec for `fflearn.network`.

    References
    ----------
    Radford et al. (2019), "Language models are unsupervised multitask learners", section 2.3.
    Macro and micro: Launay et al. (2020), "Direct feedback alignment scales to modern deep
    learning tasks and architectures", arXiv:2006.12878, section 3.4.

    Examples
    --------
    >>> gpt_nano(65, width=8, depth=1, heads=2, places="micro").split(" | ")[:4]
    ['embed 65 8', 'position', 'residual(layer_norm', 'attention 2)']
    """
    if places not in PLACES:
        raise SpecError(
            f"gpt-nano needs places to be one of {', '.join(PLACES)}; got {places!r}. "
            f"Type places=macro"
        )
    _positive("gpt-nano", width=width, depth=depth, heads=heads)
    if width % heads:
        raise SpecError(
            f"gpt-nano needs a width that is a multiple of heads; got width {width} and {heads} "
            f"heads. Type for instance: width={heads * max(1, width // heads)}"
        )
    mlp = f"dense {4 * width} gelu places=1 | dense {width} places=1"
    block = f"residual(layer_norm | attention {heads}) | residual(layer_norm | {mlp})"
    if places == "macro":
        block = f"block({block})"
    return " | ".join(
        [f"embed {n_classes} {width}", "position", *[block] * depth]
        + ["layer_norm", f"dense {n_classes} places=1"]
    )


def local_mixer(
    n_classes: int = 10, width: int = 512, groups: int = 16, depth: int = 4, patch: int = 4
) -> str:
    """LocalMixer for images, made for forward gradients of local losses: 0.9 M for CIFAR-10.

        first block:    relu(n(embed x)),   relu(n_G(grouped n_G(x)))
        every other:    relu(x + f(x)),   f: relu(n(mix n(x))),  relu(n(full n(x))),  n_G(grouped n_G(x))

    Linear maps of patches (embed), over patches (mix), and of the channels of a patch, all of
    them or group by group; n is a layer norm, n_G one of each group.  Each block is a unit of
    locality; each linear map with its norms is a block in it, which has noise of its own.

    Parameters
    ----------
    n_classes : int
    width, groups : int
        Channels, and the groups that they come in: as many as the ``groups`` of the rule.
    depth : int
        Blocks.
    patch : int
        Pixels along each side of a patch.

    Returns
    -------
    str
        The spec for `fflearn.network`.

    References
    ----------
    Ren, Kornblith, Liao, Hinton (2023), "Scaling forward gradient with local losses",
    arXiv:2210.03310, sec. 5: of its names, M/8/16 has the defaults; S/1/1 for MNIST is ``width=256
    groups=1 depth=1 patch=28``.  Differs: no norm before the embedding, and weights start at
    N(0, 1/n), where the authors' code has a deviation of twice that, at most 0.1.

    Examples
    --------
    >>> local_mixer(3, width=4, groups=2, depth=1, patch=2).split(" | ")[:2]
    ['block(block(conv 4 kernel=2 stride=2 padding=0', 'layer_norm relu affine=false)']
    """
    _positive("local_mixer", width=width, groups=groups, depth=depth, patch=patch)
    if width % groups:
        raise SpecError(
            f"local_mixer needs a width that is a multiple of groups; got width {width} and "
            f"{groups} groups. Type for instance: width={groups * max(1, width // groups)}"
        )
    plain, own = "affine=false", f"affine=false groups={groups} each_place=true"
    grouped = f"group_norm {own} | conv {width} kernel=1 groups={groups} | group_norm"
    embed = f"conv {width} kernel={patch} stride={patch} padding=0 | layer_norm relu {plain}"
    # A place's bias is the same for all channels: the norm would take it out again.
    mix = f"layer_norm {plain} | mix bias=false | layer_norm relu {plain}"
    full = f"layer_norm {plain} | conv {width} kernel=1 | layer_norm relu {plain}"
    body = f"block({mix}) | block({full}) | block({grouped} {own})"
    blocks = [f"block(block({embed}) | block({grouped} relu {own}))"]
    blocks += [f"block(residual({body}) | act relu)"] * (depth - 1)
    return " | ".join([*blocks, f"avg_pool | dense {n_classes} draw=zeros"])


def graph(kind: str, n_classes: int = 7, width: int = 16, depth: int = 2) -> str:
    """Graph layers with relu, the last one linear: classes of the nodes of a graph.

    Kipf, Welling (2017), arXiv:1609.02907, sec. 3.1 (gcn, two layers, 16 units), and Hamilton,
    Ying, Leskovec (2017), arXiv:1706.02216, algorithm 1 with the mean (sage).
    """
    _positive(kind, width=width, depth=depth)
    return " | ".join([f"{kind} {width} relu"] * (depth - 1) + [f"{kind} {n_classes}"])


def recurrent(
    kind: str, n_classes: int = 10, width: int = 64, depth: int = 1, last: bool = True
) -> str:
    """Recurrent layers and a linear output, from the last state or (last=false) at every step."""
    _positive(kind, width=width, depth=depth)
    layers = [f"{kind} {width} last=false"] * depth
    if last:
        layers[-1] = f"{kind} {width}"
    return " | ".join([*layers, f"dense {n_classes}" + ("" if last else " places=1")])


def _positive(name: str, **sizes: int) -> None:
    for option, size in sizes.items():
        if size < 1:
            raise SpecError(f"{name} needs {option} of 1 or more; got {size}. Leave it out.")


NETWORKS: dict[str, Callable[..., str]] = {
    "gcn": partial(graph, "graph_conv"),
    "gpt-nano": gpt_nano,
    "gru": partial(recurrent, "gru"),
    "lenet": lenet,
    "local_mixer": local_mixer,
    "lstm": partial(recurrent, "lstm"),
    "mlp": mlp,
    "resnet20": resnet20,
    "rnn": partial(recurrent, "rnn"),
    "sage": partial(graph, "sage"),
    "vgg16": vgg16,
    "vgg8": vgg8,
}


def options(name: str) -> Mapping[str, Any]:
    """The options of a network by name, as `inspect` shows them; "n_classes" comes first."""
    return signature(NETWORKS[name]).parameters


def summary(name: str) -> str:
    """What a network is, in a line."""
    make = NETWORKS[name]
    return (getdoc(getattr(make, "func", make)) or "").split("\n")[0]
