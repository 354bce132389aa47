"""
Densities in ten minutes
========================

Points in the plane, then images: fit a flow, look at its density, sample from it, and find what does not belong.
"""

# %%
# A density in one call
# ---------------------
# ``Flow.fit`` takes a table and gives back a trained flow: ``log_prob`` in nats, ``sample``, ``encode`` and ``decode``.
import matplotlib.pyplot as plt
import torch

from invertible import Flow
from invertible.data.toys import toy

names = ("moons", "8gaussians", "pinwheel", "checkerboard")
data = {name: toy(name, 4000, seed=0) for name in names}
flows = {name: Flow.fit(x, max_seconds=8) for name, x in data.items()}
for name, flow in flows.items():
    print(f"{name:13s} {flow.fitted.validation_nats:6.2f} nats held out, {flow.fitted.n_steps} steps")

# %%
# Densities above, samples below. Where the density is high there are samples, and nowhere else.
grid = torch.linspace(-4.2, 4.2, 160)
plane = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), dim=-1)
figure, axes = plt.subplots(2, 4, figsize=(9, 4.7), layout="constrained")
for (name, flow), (above, below) in zip(flows.items(), axes.T, strict=True):
    with torch.no_grad():
        density = flow.log_prob(plane).exp()
    above.pcolormesh(grid, grid, density, cmap="viridis", rasterized=True)
    below.scatter(*flow.sample(3000).T, s=1, alpha=0.5)
    above.set_title(name)
    for ax in (above, below):
        ax.set(xticks=[], yticks=[], aspect="equal", xlim=(-4.2, 4.2), ylim=(-4.2, 4.2))

# %%
# A density is a density: it adds up to one.
area = (grid[1] - grid[0]) ** 2
for name, flow in flows.items():
    with torch.no_grad():
        print(f"{name:13s} integral {(flow.log_prob(plane).exp().sum() * area).item():.3f}")

# %%
# Conditional on something
# ------------------------
# With ``context=`` the flow learns a density for each label, or for each vector. Here the label is a quadrant of the
# checkerboard.
x = data["checkerboard"]
quadrant = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
conditional = Flow.fit(x, context=quadrant, max_seconds=8)
samples = conditional.sample(1500, context=torch.arange(4))
figure, ax = plt.subplots(figsize=(3.2, 3), layout="constrained")
for label in range(4):
    ax.scatter(*samples[:, label].T, s=1, label=f"label {label}")
ax.set(xticks=[], yticks=[], aspect="equal", xlim=(-5, 5), ylim=(-5, 5))

# %%
# Images
# ------
# A Glow for the 8x8 digits: whole-number pixels in, whole-number pixels out. ``memory="reconstruct"`` would train it in
# memory that does not grow with depth.
from sklearn.datasets import load_digits

from invertible.models import glow_digits

torch.manual_seed(0)
pixels = torch.from_numpy(load_digits().images).to(torch.uint8)[:, None]
train, test = pixels[:1500], pixels[1500:]
digits = glow_digits()
digits.fit(train, max_seconds=45, batch_size=64, lr=1e-3)
with torch.no_grad():
    bits = digits.bits_per_dim(test)
print(f"{bits.mean():.2f} +- {bits.std() / len(bits) ** 0.5:.2f} bits per dimension on {len(test)} test digits")

# %%
# Samples at three temperatures: nearer to the mode, cleaner and less varied.
figure, axes = plt.subplots(3, 12, figsize=(9, 2.5), layout="constrained")
for row, temperature in zip(axes, (0.5, 0.8, 1.0), strict=True):
    torch.manual_seed(1)
    for ax, image in zip(row, digits.sample(12, temperature=temperature), strict=True):
        ax.imshow(image[0], cmap="gray_r", vmin=0, vmax=16)
        ax.set(xticks=[], yticks=[])
    row[0].set_ylabel(f"T = {temperature}")

# %%
# Halfway between two digits, in the space of latents:
with torch.no_grad():
    z = digits.encode(test[:2])
    t = torch.linspace(0, 1, 9).view(-1, 1, 1, 1)
    path = digits.decode((1 - t) * z[:1] + t * z[1:])
figure, axes = plt.subplots(1, 9, figsize=(8, 1.2), layout="constrained")
for ax, image in zip(axes, path, strict=True):
    ax.imshow(image[0], cmap="gray_r", vmin=0, vmax=16)
    ax.set(xticks=[], yticks=[])

# %%
# What does not belong
# --------------------
# Bits per dimension rank images by how unlikely they are: here test digits, and the same ones upside down.
with torch.no_grad():
    flipped = digits.bits_per_dim(test.flip(2))
figure, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
bins = torch.linspace(min(bits.min(), flipped.min()).item(), max(bits.max(), flipped.max()).item(), 40).tolist()
ax.hist(bits, bins, alpha=0.6, label="test digits")
ax.hist(flipped, bins, alpha=0.6, label="upside down")
ax.set(xlabel="bits per dimension", ylabel="images")
ax.legend()

# %%
# :doc:`/flows` has the rest: architectures of your own, bases, contexts, continuous flows, hard inputs; ``invertible
# sample`` and ``invertible score`` do the same for a run on the command line.
