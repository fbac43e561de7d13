"""A fitted network as an HTML table, for notebooks."""

from __future__ import annotations

from html import escape
from typing import Any

from fflearn import registry

STYLE = "border-collapse: collapse; margin-top: 0.5em; font-size: 0.9em"
CELL = "border: 1px solid #ccc; padding: 0.1em 0.6em; text-align: "
HEAD = ("", "layer", "output", "parameters", "of the rule")


def layer_table(engine: Any, state: Any) -> str:
    """Layers of the network as trained: what they are, what leaves them, what they hold."""
    sent = ", ".join(str(c) for c in sorted(engine.rule.channels, key=str)) or "nothing"
    caption = f"Trained by {registry.name_of(engine.rule)}; its layers are sent: {sent}."
    rows = [HEAD]
    for spec, layer in zip(engine.specs, engine.net.leaves, strict=True):
        learned, owned = state.params[spec.index], state.aux[spec.index]
        sizes = (f"{sum(a.size for a in held.values()):,}" for held in (learned, owned))
        shape = " × ".join(map(str, spec.out_shape))
        rows.append((str(spec.index), layer.spec(), shape, *sizes))
    body = "".join(_row(row, "th" if row is HEAD else "td") for row in rows)
    return f'<table style="{STYLE}"><caption>{escape(caption)}</caption>{body}</table>'


def _row(cells: tuple[str, ...], tag: str) -> str:
    def cell(i: int, text: str) -> str:
        return f'<{tag} style="{CELL}{"left" if i == 1 else "right"}">{escape(text)}</{tag}>'

    return f"<tr>{''.join(cell(i, text) for i, text in enumerate(cells))}</tr>"
