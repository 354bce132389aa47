"""
Loss surfaces
=============

How does the loss bend at the weights that training found, and what lies around them? The Hessian's spectrum and slices
of the loss, of a convolutional network on the 8x8 digits: all on the network as it is, which comes out as it went in.
"""

# %%
# A network, and the path it takes
# --------------------------------
# `WeightPath` keeps copies of the weights; one line in any training loop.
import copy

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from invertible.instruments import WeightPath, curvature, loss_slice

N_EPOCHS = 12
pixels, classes = load_digits(return_X_y=True)
images, labels = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(classes)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
train, few = order[450:], order[450:750]


def make(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def trained(net: nn.Module, path: WeightPath | None = None) -> nn.Module:
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    for _ in range(N_EPOCHS):
        for rows in train[torch.randperm(len(train))].tensor_split(21):
            if path is not None:
                path.record()
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    return net.eval()


net = make(0)
untrained = copy.deepcopy(net)
path = WeightPath(net, every=6)
trained(net, path)
other = trained(make(1))
data = [(images[rows], labels[rows]) for rows in few.split(100)]

# %%
# The Hessian's spectrum
# ----------------------
# Most of it lies at zero; about as many eigenvalues stand apart as there are classes. Each comes with a residual (how
# far off it may be) and with the error that other data would make; the band is what random probes differ by.
spectra = {"untrained": curvature(untrained, data, quiet=True), "trained": curvature(net, data, quiet=True)}
figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
for (name, found), ax in zip(spectra.items(), axes, strict=True):
    found.plot(ax)
    print(name, *(f"\n  {finding.severity}: {finding.sentence}" for finding in found.findings))

# %%
# Along random directions, and along eigenvectors
# -----------------------------------------------
# Random directions are scaled filter by filter to the weights. They show little of the few directions that matter: of
# 2,000 dimensions a random one holds almost nothing of the sharpest. So look along these too.
figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
along_random = loss_slice(net, data, quiet=True)
along_random.plot(axes[0])
loss_slice(net, data, along="eigenvectors", n_slices=4, quiet=True).plot(axes[1])
for finding in along_random.findings:
    print(f"{finding.severity}: {finding.sentence}")

# %%
# Planes: a random one, and the one in which training moved
# ---------------------------------------------------------
figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
plane = loss_slice(net, data, n_dims=2, n_slices=1, n_points=21, quiet=True)
plane.plot(axes[0])
on_path = loss_slice(net, data, path=path, n_points=21, quiet=True)
on_path.plot(axes[1])
for finding in on_path.findings:
    print(f"{finding.severity}: {finding.sentence}")

# %%
# As a surface:
plane.plot_surface()

# %%
# Between two networks
# --------------------
# The same network from another seed. Units are numbered by chance, so a barrier says nothing about what they compute.
between = loss_slice(net, data, to=other, quiet=True)
between.plot()
print(between.findings[0].sentence)

# %%
# :doc:`/loss_surfaces` says what to look for and what these figures cannot tell.
