"""
Residual networks that can be undone
====================================

x + g(x) has an inverse where g contracts. Three pictures of the i-ResNet paper: what a contraction changes in one
dimension, images brought back from the representation that a classifier works with, and estimates of a log-determinant.
"""

# %%
# In one dimension
# ----------------
# Two networks of the same shape, ten residual blocks each, one constrained and one not. Both learn from the same
# 60 noisy points: x³ after the fifth block, x itself after the last.
import matplotlib.pyplot as plt
import torch
from matplotlib.collections import LineCollection
from torch import nn

from invertible import Chain
from invertible.layers import Residual, certify, constrain

N_BLOCKS, N_STEPS_1D = 10, 400


def branch() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))


def train_1d(chain: Chain) -> Chain:
    x = 4 * torch.rand(60, 1, generator=torch.Generator().manual_seed(0)) - 2
    noise = torch.randn(2, 60, 1, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(chain.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, N_STEPS_1D)
    for _ in range(N_STEPS_1D):
        half = chain[: N_BLOCKS // 2](x)
        end = chain[N_BLOCKS // 2 :](half)
        loss = (half - x**3 - noise[0]).square().mean() + (end - x - noise[1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return chain.double().eval()


torch.manual_seed(0)
networks = {
    "ResNet": train_1d(Chain(*(Residual(branch(), lipschitz="unknown") for _ in range(N_BLOCKS)))),
    "i-ResNet": train_1d(Chain(*(Residual(constrain(branch(), 0.98)) for _ in range(N_BLOCKS)))),
}


# %%
# The map up to some depth folds where its derivative changes its sign. It is found by autograd at 20,001 points.
# Between two folds the order of the points is turned round: their paths have crossed, and several inputs share one
# value.
def paths_and_folds(chain: Chain, x: torch.Tensor) -> tuple[torch.Tensor, list[tuple[int, float]]]:
    states, slope, folds = [x], torch.ones_like(x), []
    for depth, block in enumerate(chain, start=1):
        state = states[-1].detach().requires_grad_()
        y = block(state)
        slope = slope * torch.autograd.grad(y.sum(), state)[0]
        turns = (slope[1:] * slope[:-1] <= 0).squeeze(1).nonzero().squeeze(1).tolist()
        folds += [(depth, y[i].item()) for i in turns]
        states.append(y.detach())
    return torch.stack(states).squeeze(2), folds


x = torch.linspace(-2, 2, 20001, dtype=torch.float64)[:, None]
figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True, layout="constrained")
for ax, (name, chain) in zip(axes, networks.items(), strict=True):
    paths, folds = paths_and_folds(chain, x)
    lines = [torch.stack([torch.arange(N_BLOCKS + 1.0), path], 1).numpy() for path in paths[:, ::400].T]
    bundle = LineCollection(lines, array=x[::400, 0], cmap="coolwarm", linewidth=1)
    ax.add_collection(bundle)
    ax.plot([d for d, _ in folds], [y for _, y in folds], "o", mfc="none", mec="black", ms=6, label="fold")
    ax.axvline(N_BLOCKS // 2, color="grey", lw=0.8, ls=":")
    ax.set(title=f"{name}: {len(folds) or 'no'} folds", xlabel="blocks", xlim=(0, N_BLOCKS), ylim=(-10, 10))
axes[0].set_ylabel("x after so many blocks")
axes[0].legend(loc="lower left")
figure.colorbar(bundle, ax=axes, label="x at the beginning", aspect=30)

# %%
# That the second network has no folds is no luck. Each of its blocks has a bound below 1 of the slope of g, so that x
# + g(x) rises everywhere. The last column bounds by how much the inverse can magnify an error; the product over all
# blocks is what would happen if the worst of every block met in one point. For the first network it has bounds too, but
# they are far above 1, and promise nothing.
print(certify(networks["i-ResNet"]))
print(*certify(networks["ResNet"]).findings[:1])

# %%
# Images from their representation
# --------------------------------
# Small classifiers of the 8x8 digits, c = 0.5, 0.7 and 0.9, and one of the same shape without a constraint.
from sklearn.datasets import load_digits

from invertible.errors import ConvergenceError, NotInImageError
from invertible.layers import InjectivePad
from invertible.models import Classifier, iresnet_digits

N_EPOCHS = 5
digits = load_digits()
images = torch.from_numpy(digits.images).float()[:, None] / 16
labels = torch.from_numpy(digits.target)
train, test = slice(0, 1347), slice(1347, None)


def train_classifier(coefficient: float | None) -> Classifier:
    torch.manual_seed(0)
    net, n_steps = iresnet_digits(coefficient=coefficient), N_EPOCHS * 21
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, n_steps)
    for batch in (rows for _ in range(N_EPOCHS) for rows in torch.randperm(1347).tensor_split(21)):
        loss = nn.functional.cross_entropy(net(images[train][batch]), labels[train][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


nets = {c: train_classifier(c) for c in (0.5, 0.7, 0.9, None)}


# %%
# Each constrained network gives its input back, and says how far off it may be. Without a constraint nothing is
# promised. The papers' code takes 100 steps of x <- y - g(x) and does not look at the result, which may be anything.
# The solver of this library looks: it comes back with a solution, or raises. A solution may still be another one than
# what went in; here the channels of zeros that the network appends to an image tell.
def plain_inverse(net: Classifier, z: torch.Tensor, n: int) -> torch.Tensor:
    for member in reversed(list(net.body)):
        if isinstance(member, Residual):
            x = z
            for _ in range(n):
                x = z - member.network(x)
            z = x
        else:
            z = z[:, : member.n_channels] if isinstance(member, InjectivePad) else member.inverse(z)
    return z


first_of_each = [1347 + (labels[test] == digit).nonzero()[0].item() for digit in range(10)]
shown = images[first_of_each]
pictures = {"the images": shown}
with torch.no_grad():
    for c, net in nets.items():
        z, right = net.representation(shown), (net(images[test]).argmax(1) == labels[test]).float().mean()
        name = f"c = {c}, {right:.1%} right" if c else f"no constraint, {right:.1%} right"
        try:
            pictures[name] = net.reconstruct(z)
            print(f"{name}: largest error {(pictures[name] - shown).abs().max():.1e}")
        except (ConvergenceError, NotInImageError) as error:
            print(f"{name}: {type(error).__name__}: {error}")
    pictures["no constraint,\n100 plain iterations"] = plain_inverse(nets[None], z, 100)

figure, axes = plt.subplots(len(pictures), 10, figsize=(8.4, 0.72 * len(pictures)), layout="constrained")
gray = plt.get_cmap("gray_r").with_extremes(bad="tab:red")
for row, (name, batch) in zip(axes, pictures.items(), strict=True):
    for ax, image in zip(row, batch, strict=True):
        ax.imshow(image[0].where(image[0].isfinite(), torch.nan), cmap=gray, vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")

# %%
# Red is NaN or infinity. The solver's acceleration may well find the images where the plain iteration runs away, but
# without a bound nothing promised that. The constraint costs accuracy; how much it is after more than these five epochs
# is in the :doc:`/results`.
#
# How many plain iterations are enough depends on c, or rather on how far training has driven the network towards it.
# The default solver (Anderson acceleration) stops by itself, as soon as the error is *guaranteed* to be as small as
# float32 allows.
steps = (1, 2, 3, 5, 7, 10, 14, 20, 30, 45, 70, 100)
figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
with torch.no_grad():
    for c, net in nets.items():
        z = net.representation(shown)
        errors = [
            (plain_inverse(net, z, n) - shown).square().mean().sqrt().nan_to_num(1e4).clamp(max=1e4).item()
            for n in steps
        ]
        (line,) = ax.loglog(steps, errors, "o-", ms=3, label=f"c = {c}" if c else "no constraint (drawn up to 10⁴)")
        if c:
            x = net.reconstruct(z)
            used = [b.report.evaluations.double().mean().item() for b in net.body if isinstance(b, Residual)]
            error = (x - shown).square().mean().sqrt().item()
            ax.plot(sum(used) / len(used), error, "*", ms=13, color=line.get_color(), mec="black")
ax.plot([], [], "*", ms=13, mfc="none", mec="black", label="the default solver (mean over blocks)")
ax.set(xlabel="plain iterations in each block", ylabel="error (root mean square)", ylim=(1e-8, 1e5))
ax.legend(fontsize=8, loc=(0.5, 0.42))
print(nets[0.9].body[-1].report)

# %%
# What the whole network can do to an error of the representation at most, and what it does:
certificate = nets[0.9].certificate()
with torch.no_grad():
    z = nets[0.9].representation(shown)
    change = 1e-3 * torch.randn_like(z)
    nudged = nets[0.9].double().body[2:].inverse((z + change).double())
    there = nets[0.9].body[2:].inverse(z.double())
growth = (nudged - there).flatten(1).norm(dim=1) / change.flatten(1).norm(dim=1)
print(f"certified: at most {certificate.inverse:.3g} times; for random errors: {growth.max():.2f} times")
nets[0.9].float()

# %%
# The log-determinant
# -------------------
# log|det(I + dg/dx)| of the last block, 512 dimensions, for eight test images: the power series of i-ResNet with one
# Gaussian probe, the Russian roulette of Residual Flow, and Krylov quadrature, the default for evaluations.
from invertible.logdet import ExactLogDet, Krylov, PowerSeries, RussianRoulette

N_DRAWS, budgets = 40, (4, 8, 12, 20, 32)
with torch.no_grad():
    block = nets[0.9].body[-1]
    x = nets[0.9].body[:-1](images[test][:8])
    exact = ExactLogDet()(block.network, x)[1].value
estimators = {
    "power series": lambda n: PowerSeries(n),
    "Russian roulette": lambda n: RussianRoulette(n_probes=n // 4),
    "Krylov": lambda n: Krylov.within(n),
}
torch.manual_seed(0)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for shift, (name, make) in enumerate(estimators.items()):
    with torch.no_grad():
        found = {n: torch.stack([make(n)(block.network, x)[1].value for _ in range(N_DRAWS)]) for n in budgets}
    first = torch.stack([found[n][:, 0] for n in budgets])
    axes[0].errorbar(
        [n + 0.5 * shift for n in budgets], first.mean(1), first.std(1), fmt="o", ms=4, capsize=2, label=name
    )
    rms = [(found[n] - exact).square().mean().sqrt().item() for n in budgets]
    axes[1].plot(budgets, rms, "o-", label=name)
    print(f"{name:17s} rms error " + "  ".join(f"{n} products: {r:.2f}" for n, r in zip(budgets, rms, strict=True)))
axes[0].axhline(exact[0].item(), color="black", lw=0.8, label="exact")
axes[0].set(xlabel="products with the Jacobian", ylabel="log-determinant (nats), one image")
axes[1].set(xlabel="products with the Jacobian", ylabel="rms error (nats), eight images", ylim=(0, None))
handles, names = axes[0].get_legend_handles_labels()
figure.legend(handles, names, loc="outside upper center", ncols=4)

# %%
# :doc:`/residual` has the rest: bounds for layers of your own, solver options, how to choose an estimator, training.
