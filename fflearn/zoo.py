"""Networks known by name, as spec strings: ``network("resnet20")``, ``network("vgg8 100")``.

Each is a function of the number of classes.  Convolutions that a batch normalisation follows have
no bias: it would be subtracted again.  Every convolution, normalisation and activation is a layer
of its own, so a unit of locality; no network has dropout.
"""

from __future__ import annotations

from collections.abc import Callable


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
    return " | ".join(f"conv {w} bias=false | batch_norm relu" if w else "max_pool" for w in widths)


NETWORKS: dict[str, Callable[[int], str]] = {
    "lenet": lenet,
    "resnet20": resnet20,
    "vgg16": vgg16,
    "vgg8": vgg8,
}
