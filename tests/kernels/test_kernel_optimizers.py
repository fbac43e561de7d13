"""The optimizers of the kernels against torch.optim, five steps each."""

import numpy as np
import pytest

from fflearn.kernels.reference import Kernels, Product

REFERENCE = Kernels()
DTYPES = (np.float32, np.float64)


def steps_of_torch(optimizer, w, grads):
    p = optimizer.param_groups[0]["params"][0]
    for g in grads:
        p.grad = g.clone()
        optimizer.step()
    return p.detach().numpy()


OPTIMIZERS = {
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "weight_decay": 0.1}, {"weight_decay": 0.1}],
    "Adam": [{}, {"weight_decay": 0.1}, {"betas": (0.5, 0.9), "eps": 1e-3}],
    "AdamW": [{}, {"weight_decay": 0.1}],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize(
    ("name", "options"), [(name, o) for name, all_ in OPTIMIZERS.items() for o in all_]
)
def test_optimizers_match_torch(k, name, options, folded, dtype):
    torch = pytest.importorskip("torch")
    rng, lr = np.random.default_rng(5), 0.05
    w = rng.normal(size=(6, 4)).astype(dtype)
    products = [
        Product(rng.normal(size=(9, 6)).astype(dtype), rng.normal(size=(9, 4)).astype(dtype), 9)
        for _ in range(5)
    ]
    p = torch.nn.Parameter(torch.from_numpy(w.copy()))
    optimizer = getattr(torch.optim, name)([p], lr=lr, **options)
    want = steps_of_torch(optimizer, w, [torch.from_numpy(REFERENCE.formed(g)) for g in products])
    m, v, defaults = np.zeros_like(w), np.zeros_like(w), optimizer.defaults
    for t, g in enumerate(products, 1):
        g = g if folded else k.formed(g)
        if name == "SGD":
            held = m if defaults["momentum"] else None
            k.sgd(w, g, held, lr, defaults["momentum"], defaults["weight_decay"])
        else:
            settings = *defaults["betas"], defaults["eps"], defaults["weight_decay"]
            k.adam(w, g, m, v, lr, *settings, name == "AdamW", t)
    # Five steps, a dozen roundings each; Adam's first steps divide by a nearly equal number.
    np.testing.assert_allclose(w, want, rtol=0, atol=64 * np.finfo(dtype).eps)
