"""Networks to and from PyTorch: the same outputs, the same weights bit for bit, nothing left over."""

from __future__ import annotations

import copy
import pickle
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from fflearn import layers
from fflearn.engine import Engine
from fflearn.errors import ShapeError, SpecError
from fflearn.networks import Network, network
from fflearn.registry import rule
from fflearn.topology import Sequential

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from torch import nn

from fflearn.interop import from_torch, load_torch, to_torch
from fflearn.torch import layers as torch_layers

ROWS = 5
EXAMPLES = [
    (Network(Sequential((layer,))), shape)
    for kind in layers.names()
    for layer, shape in layers.load(kind).examples()
]
CHANNELS = {"128": "4", "256": "6", "512": "5", "1024": "16"}


def few_channels(spec: str) -> str:
    words = network(spec).spec().split(" ")
    return " ".join(CHANNELS.get(word, word) for word in words)


NETWORKS = [
    ("lenet", (28, 28, 1)),
    (few_channels("vgg8"), (16, 16, 3)),
    ("resnet20", (8, 8, 3)),
    ("gpt-nano 11 width=8 depth=2 heads=2", (6,)),
    ("gpt-nano 11 width=8 depth=2 heads=2 places=micro", (6,)),
    ("gcn 4 width=6", (7,)),
    ("lstm width=6 depth=2", (4, 2)),
    ("graph_conv 6 relu | dropout 0.5 | graph_conv 4", (7,)),
    ("sage 6 tanh | residual(sage 6 relu norm=unit) | block(sage 4)", (7,)),
    ("gru 6 last=false credit=eprop | rnn 5 relu | dense 3", (4, 2)),
    # what the order of a flattened image meets
    ("conv 4 | flatten | dropout 0.2 | act relu | dense 5 tanh | dense 3", (5, 4, 2)),
    ("conv 4 | flatten | batch_norm tanh | layer_norm | rms_norm | dense 3", (5, 4, 2)),
    ("conv 6 | flatten | group_norm groups=2 | dense 3", (5, 4, 2)),
    ("conv 6 | group_norm affine=false groups=2 | layer_norm affine=false | dense 3", (5, 4, 2)),
    ("dense 6 | batch_norm affine=false | rms_norm affine=false | dense 3", (5,)),
    ("conv 6 | group_norm groups=2 each_place=true | mix tanh | dense 3", (5, 4, 2)),
    ("conv 4 | flatten | residual(dense 80 tanh) | dense 3", (5, 4, 2)),
    ("flatten", (3, 4, 2)),
    ("conv 4 | dense 3 norm=rms", (5, 4, 2)),
    # and where the channels must be at the back, or at the front again
    ("conv 4 | layer_norm relu | conv 3 norm=unit | avg_pool", (5, 4, 2)),
    ("residual(conv 2; layer_norm) | residual(rms_norm) | dense 3 places=1", (5, 4, 2)),
    ("layer_norm | dense 4 relu places=2 | dense 3 places=1 | dense 2", (5, 4, 2)),
    ("embed 9 4 | batch_norm relu | conv 3 | group_norm groups=3", (5, 4)),
    ("dense 4 places=1 | batch_norm | dense 3", (5, 2)),
    ("dense 4 places=1 | group_norm groups=2 | position | rnn 3 last=false", (5, 2)),
    ("block(residual(conv 4 | batch_norm; conv 4 kernel=1) | act gelu) | avg_pool 2", (6, 6, 2)),
]


def spec_of(case) -> str:
    return f"{case[0].spec() if isinstance(case[0], Network) else case[0]} on {case[1]}"


CASES = pytest.mark.parametrize(
    ("net", "in_shape"), EXAMPLES + NETWORKS, ids=map(spec_of, EXAMPLES + NETWORKS)
)


def engine_of(net, in_shape, classes, dtype="float32"):
    any_net = rule("zeroth_order")  # which takes layers without slopes, too
    return Engine(net, any_net, in_shape, classes, backend="reference", dtype=dtype)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Case:
    """A network with weights none of which is 0 or 1, and a batch for both sides."""

    def __init__(self, net, in_shape, dtype="float64"):
        net, rng = network(net), np.random.default_rng(7)
        classes = max(2, net.shapes(in_shape)[-1][-1])
        self.engine = engine_of(net, in_shape, classes, dtype)
        self.net, self.in_shape = net, in_shape
        self.state = self.engine.init(1)
        for slots in self.state.params:
            for name in slots:
                slots[name] = slots[name] + np.abs(rng.normal(size=slots[name].shape, scale=0.1))
        self.x, self.side = net.leaves[0].example_batch(rng, ROWS, in_shape)
        for leaf in net.leaves:
            self.side = {**leaf.example_batch(rng, ROWS, in_shape)[1], **self.side}
        x = self.x if net.leaves[0].kind == "embed" else self.x.astype(dtype)
        self.given = images(torch.tensor(x)).contiguous()
        if net.leaves[0].kind == "embed":
            self.given = self.given.long()
        self.graph = {n: torch.tensor(a.toarray()) for n, a in self.side.items()}

    def ours(self):
        return self.engine.predict(self.state, self.x, side=self.side)

    def exported(self):
        return to_torch(self.net, self.state, self.in_shape)

    def theirs(self, module):
        with torch.no_grad():
            return module(self.given, **self.graph).numpy()


def images(t):
    """Ours to torch's: samples with three axes are images."""
    return t.movedim(-1, 1) if t.ndim == 4 else t


@CASES
def test_outputs_agree(net, in_shape):
    c = Case(net, in_shape)
    module, _ = c.exported()
    ours, theirs = c.ours(), c.theirs(module)
    np.testing.assert_allclose(theirs, images(torch.tensor(ours)).numpy(), rtol=1e-12, atol=1e-12)


@CASES
def test_a_round_trip_is_bit_exact(net, in_shape):
    c = Case(net, in_shape, "float32")
    for a in c.state.arrays().values():
        a.flat[0] = -0.0  # equal to 0, but not bit for bit
    module, there = c.exported()
    fresh = c.engine.init(2)
    back = load_torch(c.net, fresh, in_shape, module, None if c.graph else c.given)
    mine = {path: a for path, a in c.state.arrays().items() if path.startswith("params")}
    for path, a in mine.items():
        assert a.tobytes() == fresh.arrays()[path].tobytes(), path
    assert sorted(row.ours for row in there.rows) == sorted(mine)
    assert sorted(back.rows) == sorted(there.rows)
    assert {row.theirs for row in there.rows} <= set(module.state_dict())
    assert all(mine[row.ours].shape == row.shape for row in there.rows)


@CASES
def test_modules_can_be_pickled_copied_and_trained(net, in_shape):
    c = Case(net, in_shape)
    module, _ = c.exported()
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        np.testing.assert_array_equal(c.theirs(other), c.theirs(module))
    assert not module.training
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    module.train()
    x = c.given if c.given.dtype is torch.long else c.given.requires_grad_()
    (module(x, **c.graph) ** 2).sum().backward()
    assert {n for n, p in module.named_parameters() if p.grad is not None} == trained


@CASES
def test_what_was_written_is_read_back(net, in_shape):
    c = Case(net, in_shape)
    module, there = c.exported()
    if not list(module.modules())[1:]:
        return  # act identity, or the flattening of a row: nothing to read
    again, params, report = from_torch(module, in_shape)
    second, _ = to_torch(again, params, in_shape)
    np.testing.assert_array_equal(c.theirs(second), c.theirs(module))
    assert again.shapes(in_shape)[-1] == c.net.shapes(in_shape)[-1]
    assert [row.theirs for row in report.rows] == [row.theirs for row in there.rows]
    assert "block(" not in c.net.spec() or "block(" in again.spec()


@pytest.mark.parametrize(
    ("net", "in_shape"),
    [
        ("lenet", (28, 28, 1)),
        ("conv 4 | batch_norm relu | residual(conv 4 | batch_norm) | dense 3", (5, 4, 2)),
        ("gru 5 last=false | lstm 4 | dense 3", (4, 2)),
        ("gpt-nano 11 width=8 depth=1 heads=2", (6,)),
    ],
)
def test_what_was_trained_in_torch_comes_back(net, in_shape):
    c = Case(net, in_shape)
    module, _ = c.exported()
    before = c.ours()
    optimizer = torch.optim.Adam(module.train().parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (module(c.given) ** 2).mean().backward()
        optimizer.step()
    load_torch(c.net, c.state, in_shape, module, c.given)
    assert np.abs(c.ours() - before).max() > 1e-3
    np.testing.assert_allclose(c.ours(), c.theirs(module.eval()), rtol=1e-12, atol=1e-12)


# ---- modules of a user's own ------------------------------------------------------------------------


def trained(module, *shape, ids=0):
    """The module in evaluation mode, after two steps that leave no weight and no statistic alone."""
    torch.manual_seed(0)
    module = module.double()
    x = torch.randint(ids, shape) if ids else torch.randn(shape, dtype=torch.float64)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        loss = (module(x) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval(), x


def checked(module, x, in_shape, spec):
    """from_torch gives the network of the spec, whose prediction is the module's output."""
    net, params, report = from_torch(module, in_shape)
    assert net.spec() == spec
    with torch.no_grad():
        theirs = module(x)
    engine = engine_of(net, in_shape, theirs.shape[-1], "float64")
    state = engine.init(0)
    load_torch(engine.net, state, in_shape, module, x)
    ours = engine.predict(state, (x.movedim(1, -1) if x.ndim == 4 else x).numpy())
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-12, atol=1e-12)
    for i, p in enumerate(params):
        assert set(p) == set(state.params[i])
        for name, a in p.items():
            assert a.tobytes() == state.params[i][name].tobytes()
    return report


def cnn():
    features = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same", bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=(2, 2), padding=1, groups=2),
        nn.GroupNorm(3, 6, eps=1e-3),
        nn.GELU(),
        nn.Dropout(0.0),
    )
    head = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 8), nn.Tanh())
    return nn.Sequential(features, head, nn.Identity(), nn.Linear(8, 5, bias=False))


def test_a_users_convolutional_network():
    module, x = trained(cnn(), 7, 3, 12, 8)
    report = checked(
        module,
        x,
        (12, 8, 3),
        "conv 4 bias=false | batch_norm relu | max_pool | conv 6 stride=2 groups=2 | "
        "group_norm gelu eps=0.001 groups=3 | dropout 0.0 | flatten | batch_norm | dense 8 tanh | "
        "dense 5 bias=false",
    )
    assert ("params/3/W", "0.4.weight", (3, 3, 2, 6)) in report.rows
    assert ("params/7/mean", "1.1.running_mean", (36,)) in report.rows
    assert report.notes == (
        "0.1: num_batches_tracked, a count, is left out",
        "1.1: num_batches_tracked, a count, is left out",
    )


def test_an_activation_used_twice_is_two_layers():
    tanh = nn.Tanh()
    module = nn.Sequential(nn.Linear(4, 5), tanh, nn.Linear(5, 3), tanh)
    checked(*trained(module, 6, 4), (4,), "dense 5 tanh | dense 3 tanh")


def test_the_statistics_travel():
    module, _ = trained(cnn(), 7, 3, 12, 8)
    _, params, _ = from_torch(module, (12, 8, 3))
    np.testing.assert_array_equal(params[1]["mean"], module[0][1].running_mean.numpy())
    np.testing.assert_array_equal(params[1]["var"], module[0][1].running_var.numpy())
    assert not np.allclose(params[1]["mean"], 0) and not np.allclose(params[1]["var"], 1)


def test_a_users_pooled_network():
    module = nn.Sequential(
        nn.Conv2d(2, 4, (3, 3), padding="valid"),
        nn.Sigmoid(),
        nn.AvgPool2d(2, stride=1),
        nn.AdaptiveAvgPool2d(3),
        nn.Hardtanh(0, 1),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    spec = (
        "conv 4 sigmoid padding=0 | avg_pool 2 stride=1 | avg_pool 2 | act hardsigmoid | avg_pool"
    )
    checked(*trained(module, 5, 2, 9, 9), (9, 9, 2), f"{spec} | dense 3")


def test_a_users_networks_on_sequences():
    from fflearn.torch.modules import Position, Recurrent, SelfAttention

    lstm = nn.Sequential(
        Recurrent(nn.LSTM(3, 5, num_layers=2, batch_first=True), last=False),
        nn.LayerNorm(5, eps=1e-6),
        Recurrent(nn.RNN(5, 4, nonlinearity="relu", batch_first=True, bias=False)),
        nn.Linear(4, 2),
    )
    report = checked(
        *trained(lstm, 6, 7, 3),
        (7, 3),
        "lstm 5 last=false | lstm 5 last=false | layer_norm eps=1e-06 | rnn 4 relu | dense 2",
    )
    assert ("params/1/Wh", "0.cell.weight_hh_l1", (5, 20)) in report.rows
    assert ("params/1/b", "0.cell.bias_ih_l1", (20,)) in report.rows
    gpt = nn.Sequential(
        nn.Embedding(9, 6),
        Position(nn.Embedding(5, 6)),
        SelfAttention(nn.MultiheadAttention(6, 3, batch_first=True)),
        nn.RMSNorm(6),
        nn.Linear(6, 9),
    )
    module, x = trained(gpt, 4, 5, ids=9)
    eps = f"eps={torch.finfo(torch.float64).eps}"
    spec = f"embed 9 6 | position | attention 3 | rms_norm {eps} | dense 9 places=1"
    report = checked(module, x, (5,), spec)
    assert "2.attention: the keys' bias" in report.notes[0]  # trained: rounding moved it from 0


class Net(nn.Module):
    """A residual network as users write it: a class with a forward of its own."""

    def __init__(self, swapped=False):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv3 = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 5 * 4, 3)
        self.swapped = swapped

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        first, second = (self.conv3, self.conv2) if self.swapped else (self.conv2, self.conv3)
        x = torch.relu(x + second(torch.tanh(first(x))))
        return self.fc(x.flatten(1))


NET = "conv 4 bias=false | batch_norm relu | residual(conv 4 tanh | conv 4) | act relu | dense 3"


def loaded(module, x, net=NET, in_shape=(5, 4, 2), dtype="float64"):
    engine = engine_of(net, in_shape, 3, dtype)
    state = engine.init(0)
    report = load_torch(engine.net, state, in_shape, module, x)
    return engine, state, report


def test_weights_of_a_class_of_the_users_own():
    module, x = trained(Net(), 6, 2, 5, 4)
    module.train()
    module.bn1.eval()
    engine, state, report = loaded(module, x)
    assert (module.training, module.bn1.training, module.conv1.training) == (True, False, True)
    ours = engine.predict(state, x.movedim(1, -1).numpy())
    np.testing.assert_allclose(ours, module.eval()(x).detach().numpy(), rtol=1e-12, atol=1e-12)
    assert [row.theirs for row in report.rows if row.ours.endswith("/W")] == [
        f"{name}.weight" for name in ("conv1", "conv2", "conv3", "fc")
    ]
    assert "the outputs for x differ by" in report.notes[-1]


class Wrapped(nn.Module):
    """Another module's output, changed."""

    def __init__(self, module, change):
        super().__init__()
        self.module, self.change = module, change

    def forward(self, x):
        return self.change(self.module(x))


def test_what_does_not_compute_the_same_is_told():
    module, x = trained(Net(swapped=True), 6, 2, 5, 4)
    with pytest.raises(SpecError, match="another order than it uses them"):
        loaded(module, x)
    module.swapped = False
    loaded(module, x)
    with pytest.raises(SpecError, match="differ by up to"):
        loaded(module, x, NET.replace("tanh", "sigmoid"))
    with pytest.raises(SpecError, match="differ by up to nan"):
        loaded(Wrapped(module, lambda y: y * float("nan")), x)
    with pytest.raises(SpecError, match=r"output is \(6, 3, 1\), the network's \(6, 3\)"):
        loaded(Wrapped(module, lambda y: y[..., None]), x)
    with pytest.raises(SpecError, match="output is tuple"):
        loaded(Wrapped(module, lambda y: (y, None)), x)
    loaded(Wrapped(module, lambda y: (y, None)), None)


def test_all_weights_are_loaded_or_none():
    engine = engine_of(NET, (5, 4, 2), 3)
    state = engine.init(0)
    before = state.copy().arrays()
    module, x = trained(Net(swapped=True), 6, 2, 5, 4)
    with pytest.raises(SpecError):
        load_torch(engine.net, state, (5, 4, 2), module, x)
    module.fc = nn.Linear(80, 4)
    with pytest.raises(ShapeError):
        load_torch(engine.net, state, (5, 4, 2), module, None)
    assert all(a.tobytes() == before[path].tobytes() for path, a in state.arrays().items())


def test_to_torch_draws_nothing_and_leaves_the_weights_alone():
    c = Case("lenet", (28, 28, 1))
    before, drawn = c.state.copy().arrays(), torch.random.get_rng_state()
    module, _ = c.exported()
    with torch.no_grad():
        for p in module.parameters():
            p += 1
    assert torch.equal(drawn, torch.random.get_rng_state())
    assert all(a.tobytes() == before[path].tobytes() for path, a in c.state.arrays().items())


def test_a_graph_may_be_sparse():
    c = Case("gcn 4 width=6", (7,))
    module, _ = c.exported()
    with torch.no_grad():
        theirs = module(c.given, adjacency=c.graph["adjacency"].to_sparse())
    np.testing.assert_allclose(theirs.numpy(), c.ours(), rtol=1e-12)


def test_plain_networks_need_nothing_but_torch():
    for spec, shape in [("lenet", (28, 28, 1)), ("embed 9 4 | dense 3 tanh places=1", (5,))]:
        module, _ = Case(spec, shape).exported()
        assert {type(m).__module__.split(".")[0] for m in module.modules()} == {"torch"}


# ---- what is told -----------------------------------------------------------------------------------


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def recurrent(cell):
    from fflearn.torch.modules import Recurrent

    return Recurrent(cell)


UNREADABLE = [
    (nn.LeakyReLU(), (4,), "fflearn has no layer for '0', a LeakyReLU. Known: AdaptiveAvgPool2d"),
    (nn.Sequential(nn.Tanh(), nn.ELU()), (4,), "'0.1', a ELU"),
    (nn.Softmax(-1), (4,), "the loss takes logits"),
    (nn.LSTM(2, 3, batch_first=True), (5, 2), "modules.Recurrent"),
    (nn.MultiheadAttention(4, 2), (5, 4), "modules.SelfAttention"),
    (Doubled(4, 3), (4,), "'0', a Doubled"),
    (nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), (4,), "ParametrizedLinear"),
    (nn.Linear(4, 3), (5, 3), r"'weight' has the shape \(3, 4\) in place of \(3, 3\)"),
    (nn.Linear(4, 3), (5, 3, 4), "'0', a Linear: .*needs nn.Flatten before it"),
    (nn.Conv2d(2, 3, 3), (4,), "images with the channels first"),
    (nn.Conv2d(2, 3, 3), (5, 4, 3), r"'weight' has the shape \(3, 2, 3, 3\)"),
    (nn.Conv2d(2, 3, (3, 5)), (9, 9, 2), "a kernel_size that is the same along both axes"),
    (nn.Conv2d(2, 3, 3, stride=(1, 2)), (9, 9, 2), "a stride that is the same"),
    (nn.Conv2d(2, 3, 3, padding=(0, 1)), (9, 9, 2), "a padding that is the same"),
    (nn.Conv2d(2, 3, 3, dilation=2), (9, 9, 2), "dilation=1"),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (9, 9, 2), "padding_mode='zeros'"),
    (nn.Conv2d(2, 3, 4, padding="same"), (9, 9, 2), "an odd kernel_size"),
    (nn.MaxPool2d(2, padding=1), (9, 9, 2), "padding=0 and ceil_mode=False"),
    (nn.MaxPool2d(2, ceil_mode=True), (9, 9, 2), "padding=0 and ceil_mode=False"),
    (nn.MaxPool2d(2, dilation=2), (9, 9, 2), "dilation=1 and return_indices=False"),
    (nn.AvgPool2d(2, divisor_override=3), (9, 9, 2), "divisor_override=None"),
    (nn.AdaptiveAvgPool2d(2), (9, 9, 2), "square images that divide"),
    (nn.AdaptiveAvgPool2d(2), (4, 8, 2), "square images that divide"),
    (nn.AdaptiveAvgPool2d(1), (9, 9, 2), "a Flatten must come after '0'"),
    (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.ReLU()), (4, 4, 2), "stands where a Flatten must"),
    (nn.BatchNorm2d(2, track_running_stats=False), (4, 4, 2), "track_running_stats=True"),
    (nn.BatchNorm1d(5), (5, 2), "channels first"),
    (nn.BatchNorm1d(2), (4, 4, 2), "takes the weights of a BatchNorm2d; what .* a BatchNorm1d"),
    (nn.LayerNorm((5, 2)), (5, 2), "a normalized_shape of one axis"),
    (nn.LayerNorm(2, bias=False), (2,), "a learned scale and shift, or neither"),
    (nn.LayerNorm(4), (4, 4, 2), "features on the last axis; here the channels come first"),
    (nn.Sequential(nn.Flatten(), nn.GroupNorm(2, 32)), (4, 4, 2), "one axis of features"),
    (nn.Embedding(5, 3, max_norm=1), (4,), "max_norm=None"),
    (nn.Flatten(0), (4,), "the batch left alone"),
    (nn.Sequential(nn.Linear(4, 8), nn.Unflatten(1, (2, 2, 2))), (4,), "that it undoes"),
    (nn.GELU("tanh"), (4,), "approximate='none'"),
    (nn.Hardtanh(), (4,), "min_val=0 and max_val=1"),
    (nn.Dropout(1.0), (4,), r"'0', a Dropout: dropout needs a rate in \[0, 1\)"),
    (recurrent(nn.GRU(2, 3, batch_first=True)), (4, 2), r"stands inside r \(...\)"),
    (recurrent(nn.LSTM(2, 3)), (4, 2), "batch_first=True, bidirectional=False"),
    (recurrent(nn.LSTM(2, 3, batch_first=True, bidirectional=True)), (4, 2), "bidirectional=False"),
    (recurrent(nn.LSTM(2, 3, batch_first=True, proj_size=2)), (4, 2), "proj_size=0"),
    (recurrent(nn.Linear(2, 3)), (4, 2), "an nn.RNN, nn.GRU or nn.LSTM"),
    (nn.Identity(), (4,), "at least one layer"),
]


@pytest.mark.parametrize(("module", "in_shape", "told"), UNREADABLE)
def test_modules_without_a_counterpart_are_told(module, in_shape, told):
    with pytest.raises((SpecError, ShapeError), match=told):
        from_torch(nn.Sequential(module), in_shape)


def test_a_gru_without_a_bias_is_one():
    gru = nn.GRU(3, 4, batch_first=True, bias=False)
    report = checked(*trained(recurrent(gru), 5, 6, 3), (6, 3), "gru 4")
    assert report.notes == ("cell: there is no bias; here it is 0 at first, and learns",)
    gru = nn.GRU(3, 4, batch_first=True)
    with torch.no_grad():
        gru.bias_hh_l0[8:] = 0  # the new value's; the gates' are added to ours
    torch.manual_seed(0)
    checked(recurrent(gru).double().eval(), torch.randn(5, 6, 3).double(), (6, 3), "gru 4")


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(3))


UNLOADABLE = [
    ("dense 3", Scaled(), "the module holds 'scale', for which fflearn has no layer"),
    (
        "dense 3 | dense 2",
        nn.Linear(4, 3),
        "params/1 'dense 2' takes .* in the module is nothing more",
    ),
    ("dense 3", nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), "no layer left for .* '1', a Lin"),
    ("dense 3", nn.LayerNorm(4), "takes the weights of a Linear; what .* '', a LayerNorm"),
    ("dense 3", nn.Linear(4, 3, bias=False), r"lacks \['bias'\], and has nothing besides"),
    ("dense 3 bias=false", nn.Linear(4, 3), r"lacks nothing, and has \['bias'\] besides"),
    ("dense 4", nn.Linear(4, 3), r"'weight' has the shape \(3, 4\) in place of \(4, 4\)"),
]


@pytest.mark.parametrize(("spec", "module", "told"), UNLOADABLE)
def test_weights_that_do_not_fit_are_told(spec, module, told):
    state = engine_of(spec, (4,), network(spec).leaves[-1].units).init(0)
    with pytest.raises((SpecError, ShapeError), match=told):
        load_torch(spec, state, (4,), module, None)


def test_weights_of_another_network_are_told():
    c = Case("dense 4 relu | dense 3", (5,))
    for spec, shape in [("dense 4 relu | dense 3", (6,)), ("dense 4 | dense 4 | dense 3", (5,))]:
        with pytest.raises(ShapeError, match="that belong together"):
            to_torch(spec, c.state, shape)
    with pytest.raises(ShapeError, match=r"\(4,\) at params/0/b, and the weights nothing"):
        to_torch(c.net, [{"W": c.state.params[0]["W"]}, c.state.params[1]], (5,))
    module, _ = c.exported()
    with pytest.raises(ShapeError, match="nothing at params/1/q"):
        params = [dict(s) for s in c.state.params]
        load_torch(c.net, [params[0], params[1] | {"q": np.ones(1)}], (5,), module, None)


def test_a_layer_that_torch_does_not_know_is_told(monkeypatch):
    c = Case("graph_conv 3", (5,))
    monkeypatch.delitem(torch_layers.LAYERS, "graph_conv")
    with pytest.raises(SpecError, match="no function for the layer 'graph_conv 3'"):
        c.exported()


# ---- what is noted ----------------------------------------------------------------------------------


def test_what_differs_in_training_is_noted():
    embedding = nn.Embedding(5, 4, padding_idx=2)
    _, _, report = from_torch(nn.Sequential(embedding), (3,))
    assert report.notes == ("0: id 2 is trained like the others",)
    _, _, report = from_torch(nn.Sequential(nn.BatchNorm1d(4, momentum=0.01)), (4,))
    assert report.notes[0] == "0: momentum 0.01 there, 0.1 here, while training"
    _, report = Case("lstm 4 credit=step", (3, 2)).exported()
    assert report.notes == ("params/0/: autograd follows all of time, not credit=step",)


def test_tied_tensors_and_rounding_are_noted():
    tied = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)).double()
    tied[1].weight = tied[0].weight
    net, params, report = from_torch(tied, (3,))
    assert report.notes == ("1.weight: one tensor with 0.weight there, two arrays here",)
    np.testing.assert_array_equal(params[1]["W"], params[0]["E"].T)
    state = engine_of(net, (3,), 5).init(0)
    report = load_torch(net, state, (3,), tied, None)
    assert "params/1/W: rounded from float64 to float32" in report.notes
    assert state.params[1]["W"].dtype == np.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_floats_become_float32(dtype):
    module = nn.Sequential(nn.Linear(4, 3)).to(getattr(torch, dtype))
    _, params, _ = from_torch(module, (4,))
    np.testing.assert_array_equal(params[0]["W"], module[0].weight.detach().float().numpy().T)
    assert params[0]["W"].dtype == np.float32


def test_heads_are_left_alone():
    spec = "block(dense 4 relu; dense 3) | dense 3"
    c = Case(spec, (5,))
    module, report = c.exported()
    assert [note.split(":")[0] for note in report.notes] == [
        "params/0/head.0.W",
        "params/0/head.0.b",
    ]
    before = c.state.params[0]["head.0.W"].copy()
    np.testing.assert_allclose(c.theirs(module), c.ours(), rtol=1e-12)
    report = load_torch(c.net, c.state, (5,), module, c.given)
    np.testing.assert_array_equal(c.state.params[0]["head.0.W"], before)
    assert report.notes[-1].startswith("params/0/head.0.b: of a head")


def test_a_report_prints_a_line_for_each_array():
    _, report = Case("dense 4 | batch_norm", (3, 2)).exported()
    lines = str(report).splitlines()
    assert len(lines) == len(report.rows) == 6
    assert lines[0].split() == ["params/0/W", "<->", "1.weight", "(6,", "4)"]


@pytest.mark.slow
def test_the_page_works_as_it_is_written(capsys, tmp_path):
    text = (Path(__file__).resolve().parents[2] / "docs" / "interop.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "page.py").write_text("\n".join(code), encoding="utf-8")
    runpy.run_path(str(tmp_path / "page.py"))
    printed = capsys.readouterr().out.splitlines()
    (shown,) = re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    # Newer versions of torch say of a norm that it has a bias.
    assert [line for line in shown.splitlines() if "Norm" not in line and line not in printed] == [
        "..."
    ]
