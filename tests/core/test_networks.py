"""Networks: the spec language, shapes and parameter counts, and what is said of mistakes."""

from __future__ import annotations

import pytest

from fflearn import layers
from fflearn.errors import ShapeError, SpecError
from fflearn.layers.block import Block
from fflearn.layers.dense import Dense
from fflearn.networks import Network, network
from fflearn.topology import Node, Residual, Sequential

SPECS = [
    "dense 10",
    "dense 512 relu norm=rms | dense 10",
    "dense 32 relu | residual(dense 32 relu) | dense 10",
    "residual(dense 8 tanh | dense 4; dense 4 bias=false) | dense 3",
    "residual(residual(dense 7 relu) | dense 7 gelu) | dense 2",
    "block(dense 5 tanh | residual(dense 5 relu)) | dense 3 draw=zeros",
    "residual(block(dense 5) | dense 4; residual(dense 5) | dense 4)",
    "block(dense 5 tanh; residual(dense 5) | dense 3) | dense 3",
]


@pytest.mark.parametrize("spec", SPECS)
def test_a_spec_reads_back(spec):
    net = network(spec)
    assert net.spec() == spec and network(net.spec()) == net
    assert hash(network(spec)) == hash(net)
    assert network(net) is net and network(net.body) == net
    assert network(list(net.body.items)) == net


def test_spaces_do_not_matter():
    assert network("dense 5|residual( dense 5 ;dense 5 )|dense 3") == network(
        "  dense 5 | residual(dense 5; dense 5) | dense 3 "
    )


def test_what_a_spec_means():
    net = network("dense 8 relu norm=unit bias=false | residual(dense 8; dense 8 draw=lecun)")
    skip = Sequential((Dense(8, draw="lecun"),))
    assert net.body == Sequential(
        (Dense(8, "relu", "unit", False), Residual(Sequential((Dense(8),)), skip))
    )
    assert network("block(dense 3)").leaves == (Block(Sequential((Dense(3),))),)


def test_a_network_is_flattened_in_topological_order():
    net = network("dense 4 | residual(dense 4 relu | dense 4; dense 4 tanh) | residual(dense 4)")
    assert [layer.activation for layer in net.leaves] == [
        *("identity", "relu", "identity", "tanh", "identity"),
    ]
    assert net.nodes == (
        Node(0, (-1,)),
        Node(1, (0,)),
        Node(2, (1,)),
        Node(3, (0,)),
        Node(None, (2, 3)),
        Node(4, (4,)),
        Node(None, (5, 4)),
    )


def test_shapes_and_counts_by_hand():
    net = network("dense 5 | residual(dense 7 | dense 3; dense 3 bias=false) | dense 2")
    assert net.shapes((2, 2)) == [(5,), (7,), (3,), (3,), (3,), (2,)]
    assert net.input_shapes((2, 2)) == [(2, 2), (5,), (7,), (5,), (3,)]
    # 4*5+5, 5*7+7, 7*3+3, 5*3, 3*2+2
    assert net.n_params((2, 2)) == 25 + 42 + 24 + 15 + 8
    assert network("block(dense 5 | residual(dense 5))").n_params((4,)) == 25 + 30


def test_map_changes_every_layer_and_keeps_the_structure():
    net = network("dense 4 relu | residual(dense 4; dense 4 tanh) | dense 2")
    doubled = net.map(lambda layer: Dense(2 * layer.units, layer.activation))
    assert doubled.spec() == "dense 8 relu | residual(dense 8; dense 8 tanh) | dense 4"
    assert net.spec() == "dense 4 relu | residual(dense 4; dense 4 tanh) | dense 2"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("", "no layer at position 0"),
        ("dense 5 |", "no layer at position 1"),
        ("dense 5 | | dense 3", "no layer at position 1"),
        ("dense 5 | desne 3", "layer 1 is of the unknown kind 'desne'. Did you mean 'dense'?"),
        ("dense 5 | zzz 3", "layer 1 is of the unknown kind 'zzz'. Known: "),
        ("residul(dense 5)", "Did you mean 'residual'?"),
        ("dense", r"layer 0 \('dense'\): dense needs units. Type for instance: dense 5 relu"),
        ("embed", r"layer 0 \('embed'\): embed needs vocab. Type for instance: embed 5 3"),
        ("dense 5 | lstm", r"layer 1 \('lstm'\): lstm needs units. Type for instance: lstm 4"),
        (
            "dense 5 | dense big",
            r"layer 1 \('dense big'\): dense needs units of type int; got 'big'",
        ),
        ("dense 0", "positive number of units; got 0"),
        ("dense 5 swish", "activation to be one of relu"),
        ("dense 5 relu tanh", "'tanh' is one too many. Write options as name=value"),
        ("dense 5 norm=batch", "norm to be one of none, rms, unit"),
        ("dense 5 nrom=rms", "dense has no option 'nrom'; it has"),
        ("dense 5 bias=maybe", "bias of type bool; got 'maybe'"),
        ("residual dense 5", r"needs '\(' where it has 'dense'"),
        ("residual(dense 5", r"needs '\)' where it has 'the end'"),
        ("residual(dense 5; dense 5; dense 5)", r"needs '\)' where it has ';'"),
        ("block(dense 5; dense 5; dense 5)", r"needs '\)' where it has ';'"),
        (
            "block(block(dense 5; dense 3))",
            r"nothing would run the head of 'block\(dense 5; dense 3",
        ),
        ("residual()", "no layer at position 0"),
        ("dense 5)", r"has '\)' where '\|' or the end should be"),
        ("dense 5 | residual(dense 5 | dense x)", r"layer 2 \('dense x'\)"),
    ],
)
def test_a_mistake_in_a_spec_is_told_with_its_place(spec, told):
    with pytest.raises(SpecError, match=told):
        network(spec)


def test_shapes_that_do_not_fit_are_told_with_the_layers():
    net = network("dense 5 | residual(dense 7 relu) | dense 2")
    told = (
        r"adds layer 1 \('dense 7 relu'\) and layer 0 \('dense 5'\), whose shapes \(7,\) and \(5,\)"
    )
    with pytest.raises(ShapeError, match=told + r" differ.*residual\(body; dense 7\)"):
        net.shapes((4,))
    with pytest.raises(ShapeError, match=r"and the input, whose shapes \(4,\) and \(5,\)"):
        network("residual(dense 4)").shapes((5,))
    with pytest.raises(ShapeError, match="adds a sum and"):
        network("residual(residual(dense 4); dense 5)").shapes((4,))
    for bad in ((), (0,), (-1, 3), (2.5,)):
        with pytest.raises(ShapeError, match="samples of positive sizes"):
            net.shapes(bad)


def test_what_is_no_network_is_told():
    with pytest.raises(SpecError, match="a spec string or layers; got int"):
        network(10)
    with pytest.raises(SpecError, match="at least one layer"):
        network([])
    with pytest.raises(SpecError, match="at least one layer"):
        Network(Sequential(()))


def test_kinds_are_the_files_of_the_folder():
    assert {"dense", "block"} <= set(layers.names())
    assert all(layers.load(kind).kind == kind for kind in layers.names())


def test_map_visits_the_leaves_in_their_order():
    net = network("dense 7 | residual(dense 5 | dense 7; dense 7 relu) | dense 3")
    seen = []
    net.map(lambda layer: seen.append(layer) or layer)
    assert tuple(seen) == net.leaves
