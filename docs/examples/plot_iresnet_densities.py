"""
Densities: an i-ResNet and a Glow
=================================

One picture of the i-ResNet paper: three densities in the plane, learned by a Glow and by an i-ResNet. A coupling moves
one of the two coordinates at a time, along axes that have to be chosen; a residual block moves both, as it likes, as
long as it contracts.
"""

# %%
# Two networks of the same size
# -----------------------------
# The Glow has twelve steps of ActNorm, invertible 1x1 convolution and affine coupling; the paper had a hundred. The
# i-ResNet has twelve blocks of ActNorm and x + g(x), g two layers with Lip(g) < 0.98². Both see as many points in
# as many steps of the same optimiser, few enough for this page to be built in a minute or two: the paper trained for
# far longer.
import time

import matplotlib.pyplot as plt
import torch

from invertible import Chain, Flow
from invertible.data.toys import toy
from invertible.layers import ActNorm, AffineCoupling, Invertible1x1, Residual
from invertible.layers.conditioner import MLP
from invertible.models import iresnet_table

N_STEPS = 700
NAMES = ("pinwheel", "moons", "8gaussians")


def glow() -> Flow:
    steps = [(ActNorm(2), Invertible1x1(2), AffineCoupling(MLP(1, 2, (16, 16)))) for _ in range(12)]
    return Flow(Chain(*(member for step in steps for member in step)), base=2)


def iresnet() -> Flow:
    return iresnet_table(2, n_blocks=12, hidden=(64,), coefficient=0.98)


def train(flow: Flow, x: torch.Tensor, lr: float) -> Flow:
    optimizer = torch.optim.Adam(flow.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, N_STEPS, pct_start=0.1)
    draws = torch.Generator().manual_seed(0)
    for _ in range(N_STEPS):
        loss = flow(x[torch.randint(len(x), (256,), generator=draws)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return flow.eval()


for make in (glow, iresnet):
    print(f"{make.__name__:8s} {sum(p.numel() for p in make().parameters()):,} parameters")

flows, nats = {}, {}
for name in NAMES:
    x, test = toy(name, 20000, seed=0).float(), toy(name, 5000, seed=1)
    for make, lr in ((glow, 0.01), (iresnet, 0.02)):
        torch.manual_seed(0)
        start = time.perf_counter()
        flow = train(make(), x, lr)
        with torch.no_grad():
            nats[name, make.__name__] = -flow.log_prob(test).mean().item()
        flows[name, make.__name__] = flow
        print(
            f"{name:13s} {make.__name__:8s} {nats[name, make.__name__]:.3f} nats, {time.perf_counter() - start:.0f} s"
        )

# %%
# Densities side by side. After so few steps neither is done: what the Glow draws between the parts are threads, the
# i-ResNet leaves a haze. The log-determinants are exact here: in two dimensions a determinant costs two products.
grid = torch.linspace(-4.4, 4.4, 200)
plane = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), dim=-1)
figure, axes = plt.subplots(3, 3, figsize=(8, 8.4), layout="constrained")
for name, column in zip(NAMES, axes.T, strict=True):
    x = toy(name, 200_000, seed=2)
    column[0].hist2d(*x.T.numpy(), bins=200, range=[[-4.4, 4.4]] * 2, cmap="viridis")
    column[0].set_title(name)
    for ax, make in zip(column[1:], (glow, iresnet), strict=True):
        with torch.no_grad():
            density = flows[name, make.__name__].log_prob(plane).exp()
        ax.pcolormesh(grid, grid, density, cmap="viridis", rasterized=True)
        ax.set_title(f"{nats[name, make.__name__]:.3f} nats")
    for ax in column:
        ax.set(xticks=[], yticks=[], aspect="equal", xlim=(-4.4, 4.4), ylim=(-4.4, 4.4))
for ax, label in zip(axes[:, 0], ("data", "Glow", "i-ResNet"), strict=True):
    ax.set_ylabel(label)

# %%
# Samples
# -------
# Sampling runs the blocks backwards, which takes an iteration in each. How it went is in the block's report:
# evaluations, and an error that is guaranteed, as the certificate says how strongly g contracts. No log-determinant
# is estimated for it.
flow = flows["pinwheel", "iresnet"]
torch.manual_seed(0)
samples = flow.sample(4000)
for block in flow.modules():
    if isinstance(block, Residual):
        print(block.report)

# %%
figure, axes = plt.subplots(1, 3, figsize=(8, 2.9), layout="constrained")
for ax, name in zip(axes, NAMES, strict=True):
    torch.manual_seed(0)
    ax.scatter(*flows[name, "iresnet"].sample(4000).T, s=1, alpha=0.4, linewidths=0)
    ax.set(xticks=[], yticks=[], aspect="equal", xlim=(-4.4, 4.4), ylim=(-4.4, 4.4), title=f"{name}, samples")

# %%
# What is certified: each block's branch, and what errors of the latents can become.
print(flow.certificate())
print()
print(flow.certificate().layers().split("\n\n")[0])

# %%
# :doc:`/residual` says how to build such networks, and how to choose bounds, solvers and estimators.
