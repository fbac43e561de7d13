"""Networks for text, by name."""

from __future__ import annotations

from fflearn.errors import SpecError

PLACES = ("macro", "micro")


def gpt_nano(
    vocab: int, width: int = 128, depth: int = 4, heads: int = 4, places: str = "macro"
) -> str:
    """A decoder-only transformer with pre-norm blocks, ids (T,) -> logits (T, vocab).

        x = x + attention(layer_norm(x)),   x = x + W2 gelu(W1 layer_norm(x)),   W1 4 times wider

    The sequence's length is that of the data; the head does not share the embedding's table.

    Parameters
    ----------
    vocab : int
        Number of ids.
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
            f"gpt_nano needs places to be one of {', '.join(PLACES)}; got {places!r}. "
            f'Type places="macro"'
        )
    if depth < 1 or width % heads:
        raise SpecError(
            f"gpt_nano needs a depth of 1 or more and a width that is a multiple of heads; got "
            f"depth {depth}, width {width} and {heads} heads. Leave them out."
        )
    mlp = f"dense {4 * width} gelu places=1 | dense {width} places=1"
    block = f"residual(layer_norm | attention {heads}) | residual(layer_norm | {mlp})"
    if places == "macro":
        block = f"block({block})"
    return " | ".join(
        [f"embed {vocab} {width}", "position", *[block] * depth]
        + ["layer_norm", f"dense {vocab} places=1"]
    )
