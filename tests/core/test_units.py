"""Units of locality: where networks are cut, and copies that read other shapes, all by hand."""

from __future__ import annotations

import pytest

from fflearn.errors import ShapeError, SpecError
from fflearn.networks import network
from fflearn.topology import Sequential
from fflearn.units import copies, cut, in_units

CUT = {
    "dense 5 relu | dense 4 relu | dense 3": [
        "block(dense 5 relu)",
        "block(dense 4 relu | dense 3)",
    ],
    "flatten | layer_norm | dense 5 | act relu | dropout | dense 3": [
        "block(flatten | layer_norm | dense 5 | act relu | dropout | dense 3)"
    ],
    "conv 4 bias=false | batch_norm relu | max_pool | conv 5 relu | avg_pool | dense 3": [
        "block(conv 4 bias=false | batch_norm relu | max_pool)",
        "block(conv 5 relu | avg_pool | dense 3)",
    ],
    "dense 4 | residual(dense 4 | dense 4) | act relu | residual(dense 4; dense 4) | dense 3": [
        "block(dense 4)",
        "block(residual(dense 4 | dense 4) | act relu)",
        "block(residual(dense 4; dense 4) | dense 3)",
    ],
    "embed 9 4 | position | block(attention 2) | block(attention 1) | layer_norm | dense 9 places=1": [
        "block(embed 9 4 | position)",
        "block(attention 2)",
        "block(attention 1 | layer_norm | dense 9 places=1)",
    ],
    "residual(act tanh) | gru 4 last=false | gru 4 | dense 3": [
        "block(residual(act tanh) | gru 4 last=false)",
        "block(gru 4 | dense 3)",
    ],
    "dense 3": ["block(dense 3)"],
    "block(dense 4 | dense 5) | dense 3": ["block(dense 4 | dense 5 | dense 3)"],
    "dense 4 | block(dense 5 | dense 3)": ["block(dense 4)", "block(dense 5 | dense 3)"],
    "block(dense 5; dense 3) | block(dense 3)": ["block(dense 5; dense 3)", "block(dense 3)"],
}


@pytest.mark.parametrize(("spec", "units"), CUT.items(), ids=CUT)
def test_where_a_network_is_cut(spec, units):
    net = in_units(network(spec))
    assert [unit.spec() for unit in net.body.items] == units
    assert in_units(net) == net


def test_nested_chains_are_one_chain():
    a, b, c, d = network("dense 4 | act relu | dense 5 | dense 3").body.items
    nested = network([Sequential((a, Sequential((b, c)))), d])
    assert in_units(nested).spec() == "block(dense 4 | act relu) | block(dense 5 | dense 3)"


def test_a_head_that_does_not_read_the_end_of_its_unit_is_told():
    with pytest.raises(SpecError, match=r"the head of 'block\(dense 5; dense 3\)' reads what"):
        in_units(network("block(dense 5; dense 3) | act relu | dense 4 | dense 3"))


def copied(spec, want, have):
    """The copy of one run that reads ``want``, on ``have``."""
    return network([copies([(network(spec).body.items, want)], have)])


IDENTITY = "residual(conv 8 bias=false | batch_norm relu | conv 8 bias=false | batch_norm)"
PROJECTED = (
    "residual(conv 8{0} bias=false | batch_norm relu | conv 8 bias=false | batch_norm; "
    "conv 8 kernel=1{0} bias=false | batch_norm)"
)
COPIES = [
    # the shape of its own: word for word
    (f"{IDENTITY} | act relu", (4, 4, 8), (4, 4, 8), f"block({IDENTITY} | act relu)"),
    ("conv 8 relu", (4, 4, 3), (4, 4, 3), "conv 8 relu"),
    # other channels
    ("conv 8 relu", (4, 4, 3), (4, 4, 5), "conv 8 relu"),
    (IDENTITY, (4, 4, 8), (4, 4, 5), PROJECTED.format("")),
    ("residual(conv 8 tanh groups=2)", (4, 4, 8), (4, 4, 6),
     "residual(conv 8 tanh groups=2; conv 8 kernel=1)"),
    ("residual(conv 8 kernel=5 padding=2)", (4, 4, 8), (4, 4, 6),
     "residual(conv 8 kernel=5 padding=2; conv 8 kernel=1)"),
    # images that are too large, for the same channels or others
    ("residual(conv 8; conv 8 kernel=1)", (4, 4, 5), (8, 8, 5),
     "residual(conv 8 stride=2; conv 8 kernel=1 stride=2)"),
    ("conv 8 relu", (4, 4, 3), (8, 8, 3), "conv 8 relu stride=2"),
    (IDENTITY, (4, 4, 8), (8, 8, 8), PROJECTED.format(" stride=2")),
    (IDENTITY, (4, 4, 8), (8, 8, 5), PROJECTED.format(" stride=2")),
    (IDENTITY, (4, 4, 8), (16, 16, 5), PROJECTED.format(" stride=2")),
    (PROJECTED.format(" stride=2"), (4, 4, 5), (8, 8, 5), PROJECTED.format(" stride=2")),
    (PROJECTED.format(" stride=3"), (9, 9, 5), (18, 18, 5), PROJECTED.format(" stride=3")),
    ("layer_norm | conv 8 | conv 8", (4, 4, 3), (8, 9, 3), "block(layer_norm | conv 8 stride=2 | conv 8)"),
    ("conv 8", (4, 4, 3), (8, 7, 3), "conv 8"),  # one side is not twice as long
    ("dense 8", (4, 4, 3), (8, 9, 3), "avg_pool 2 | dense 8"),
    ("dense 8 | dense 5", (4, 2, 3), (13, 7, 3), "avg_pool 3 | block(dense 8 | dense 5)"),
    # vectors are read from places
    ("dense 8", (5,), (4, 4, 3), "avg_pool | dense 8"),
    ("dense 8", (5,), (4, 3), "avg_pool | dense 8"),
    ("dense 8", (5,), (7,), "dense 8"),
    # residuals without convolutions
    ("residual(layer_norm | dense 5 relu places=1 | dense 8 tanh places=1)", (4, 8), (4, 6),
     "residual(layer_norm | dense 5 relu places=1 | dense 8 tanh places=1; dense 8 places=1)"),
    ("residual(dense 8 relu | batch_norm relu | dropout)", (8,), (6,),
     "residual(dense 8 relu | batch_norm relu | dropout; dense 8 | batch_norm)"),
    ("residual(attention 2)", (4, 8), (4, 6), "residual(attention 2)"),
    ("residual(dense 8; dense 8)", (5,), (6,), "residual(dense 8; dense 8)"),
    ("dense 5 | residual(dense 5)", (4,), (9,), "block(dense 5 | residual(dense 5))"),
    # what is inside of blocks is copied as the rest; heads are not
    (f"block({IDENTITY})", (4, 4, 8), (8, 8, 5), f"block({PROJECTED.format(' stride=2')})"),
    ("block(dense 5; dense 3)", (4,), (9,), "block(dense 5)"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "want", "have", "expected"), COPIES)
def test_a_copy_on_another_shape(spec, want, have, expected):
    copy = copied(spec, want, have)
    assert copy.spec() == expected
    copy.shapes(have)  # its layers fit together


def test_copies_read_one_another():
    parts = [("conv 8", (8, 8, 3)), ("conv 6 stride=2 | max_pool", (4, 4, 8)), ("dense 5", (7,))]
    chain = copies([(network(s).body.items, want) for s, want in parts], (16, 16, 3))
    # 16 -> 8 by the stride added; 8 are too large for 4, and the stride is 2 already; 4 -> 2
    assert network([chain]).spec() == (
        "conv 8 stride=2 | block(conv 6 stride=2 | max_pool) | avg_pool | dense 5"
    )
    assert network([chain]).shapes((16, 16, 3)) == [(8, 8, 8), (2, 2, 6), (6,), (5,)]


@pytest.mark.parametrize(
    ("spec", "want", "have", "told"),
    [
        ("attention 4", (5, 8), (5, 6), "'attention 4' needs a sequence"),
        ("conv 4", (8, 8, 3), (6,), "'conv 4' needs images"),
        ("residual(dense 8; max_pool)", (8,), (6,), "max_pool"),
    ],
)
def test_copies_that_cannot_read_what_is_there_are_told(spec, want, have, told):
    with pytest.raises(ShapeError, match=told):
        copied(spec, want, have)


def test_a_run_ends_where_the_next_weights_begin():
    runs = cut(network("layer_norm | dense 4 | act relu | residual(dense 4) | dropout").body)
    assert [network(list(run)).spec() for run in runs] == [
        "layer_norm | dense 4 | act relu",
        "residual(dense 4) | dropout",
    ]
