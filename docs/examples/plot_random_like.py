"""
How random are trained weights?
===============================

A network's weights start as random matrices. What training makes of them can be seen in their singular values, and in
how much of a layer's input its transposed weights give back. Both are measured here on a network that learns the 8x8
digits, against the same entries in random order and against Gaussian weights.
"""

# %%
# A network before, during and after training
# -------------------------------------------
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from invertible.instruments import transposed_reconstruction, weight_spectrum

digits = load_digits()
images, labels = torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target)
torch.manual_seed(0)
net = nn.Sequential(
    nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
)
optimizer = torch.optim.Adam(net.parameters(), 1e-3)
spectra, reconstructions = {}, {}
for epoch in range(31):
    if epoch in (0, 3, 30):
        spectra[f"epoch {epoch}"] = weight_spectrum(net, quiet=True)
        reconstructions[f"epoch {epoch}"] = transposed_reconstruction(net, images[1347:], quiet=True)
    for rows in torch.randperm(1347).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
        optimizer.step()
right = (net(images[1347:]).argmax(1) == labels[1347:]).float().mean()
print(f"{right:.1%} of the test digits right")

# %%
# The singular values
# -------------------
# Before training nothing tells the weights from random matrices, but for the entries: PyTorch draws them from a uniform
# distribution, which the spectrum does not notice. (The law is the same for entries of any distribution.)
for name, found in spectra.items():
    print(name, *(f"  {finding.sentence}" for finding in found.findings), sep="\n")

# %%
# After it a few singular values have left the bulk: learned directions. In the wide layers the bulk itself is still
# that of a random matrix.
spectra["epoch 30"].plot()

# %%
# Through training, all on one axes: the largest singular value over the edge of the bulk.
first, *others = spectra.values()
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
first.compare(*others, labels=list(spectra), curve="largest", ax=axes[0])
first.compare(*others, labels=list(spectra), curve="outlier energy", ax=axes[1])

# %%
# An exponent of the tail is worth nothing without its interval and its null: the same entries in random order.
for name, found in spectra.items():
    spectrum = found.layers[1].main
    law, null = spectrum.power_law, spectrum.permuted
    print(f"{name}: {law.alpha:.1f} ({law.low:.1f} to {law.high:.1f}, {law.n_tail} values);"
          f" in random order {null.alpha_low:.1f} to {null.alpha_high:.1f}")  # fmt: skip

# %%
# Inputs from outputs
# -------------------
# relu(W^T y): the input of each layer from its output. Dots are the layers, bars Gaussian weights in their place,
# dashes what theory expects of those. Pale: half of the outputs dropped.
figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
for ax, name in zip(axes, ("epoch 0", "epoch 30"), strict=True):
    reconstructions[name].plot(ax).set_title(name)
    print(name, *(f"  {finding.sentence}" for finding in reconstructions[name].findings), sep="\n")

# %%
# :doc:`/random_like` says what to look for, and what these figures cannot tell.
