"""
The information plane, and what it cannot tell
==============================================

Shwartz-Ziv and Tishby watched what each layer of a network tells about input and label while it learns, and saw the
information about the input fall. Saxe et al. changed tanh to ReLU, and it did not. Both on the paper's task, a few
networks at once, and at the end a network whose information cannot fall.
"""

# %%
# One unit, in closed form
# ------------------------
# X ~ N(0, 1) goes through tanh(w X) or relu(w X), and the result into 30 bins. As the weight grows, tanh saturates and
# its discretised entropy falls; a ReLU's rises for ever. Nothing is learnt here, and nothing forgotten: the map is the
# same.
import itertools

import matplotlib.pyplot as plt
import torch
from torch import nn

from invertible.data.spherical_bits import spherical_bits
from invertible.instruments import InformationPlaneRecorder, binned_gaussian_information, information_plane
from invertible.train.experiments.information_plane import BitsOptions, Condition, information_plane_of_bits

weights = [0.1 * 1000 ** (i / 40) for i in range(41)]
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name in ("tanh", "relu"):
    axes.plot(weights, [binned_gaussian_information(name, w) for w in weights], label=name)
axes.set(xscale="log", xlabel="weight", ylabel="I(X; T), bits", title="One unit, 30 bins, exact")
axes.legend()

# %%
# The paper's task, both ways
# ---------------------------
# 12-10-7-5-4-3-2 on all 4096 patterns of twelve bits; six networks of each kind as one computation. Each marker is a
# layer at an epoch. Dashed: the most that 4096 inputs can give.
N_EPOCHS = 300
options = BitsOptions(
    [Condition("tanh", "tanh", lr=0.1), Condition("ReLU", "relu", lr=0.1)],
    n_networks=6, epochs=N_EPOCHS, n_kernel=256, has_gradients=False,
)  # fmt: skip
found = information_plane_of_bits(options, quiet=True)
found.plot()
for part in found.parts:
    fit = part.fits[-1]
    print(f"{part.condition}: {fit.train_accuracy:.1%} of the training part right, {fit.test_accuracy:.1%} of the rest")

# %%
# What may be said is in the findings: they speak of a fall only where bins and kernels agree over the whole sweep and
# labels count for more than shuffled ones.
for finding in found.findings:
    if "layer 5" in finding.sentence or "softmax" in finding.sentence:
        print(f"{finding.severity}: {finding.sentence}")

# %%
# The same layer under all measurements of the sweep (thick: the main one of each kind). Which one shall it be?
found.pictures["sweep"]()

# %%
# Any network, any loop
# ---------------------
# The recorder is called with the number of epochs done, and hears gradients before each step. Above 1 a layer's
# gradient drifts (the mean over batches is larger than its deviation), below it diffuses.
torch.manual_seed(0)
task = spherical_bits()
pairs = [(nn.Linear(n, m), nn.Tanh()) for n, m in itertools.pairwise((12, 8, 4))]
network = nn.Sequential(*itertools.chain(*pairs), nn.Linear(4, 2))
optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
recorder = InformationPlaneRecorder(network, (task.x, task.y), n_examples=4096, n_kernel=256, n_shuffles=2)
train, _ = task.split(0.8)
recorder(0)
with recorder.following(optimizer):
    for epoch in range(40):
        for rows in train[torch.randperm(len(train))].split(256):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(task.x[rows]), task.y[rows]).backward()
            optimizer.step()
        recorder(epoch + 1)
recorder.result.plot()
recorder.result.plot_gradients()

# %%
# A network that cannot lose anything
# -----------------------------------
# Each block of an i-RevNet can be undone, exactly: I(X; T) = H(X), before training and after. Under wide kernels its
# figures are far below H(X) all the same: they show how far apart the images are, not what is left of them.
from sklearn.datasets import load_digits

from invertible.models import irevnet_digits

digits = load_digits()
images, labels = torch.from_numpy(digits.images[:500]).float()[:, None] / 16, torch.from_numpy(digits.target[:500])
plane = information_plane(irevnet_digits(exact=True), (images, labels), sigma2=(1.0, 0.1), n_bins=(2, 4))
for place in plane.places:
    kernels = place.inputs[plane.about.number_of("KDE upper")]
    print(f"{place.place:8} {kernels:6.2f} bits under KDE upper, variance 1; to the bit {place.unmeasured:6.3f}")
for finding in plane.findings:
    print(f"{finding.severity}: {finding.sentence}")

# %%
# :doc:`/information_plane` says what to look for and what these figures cannot tell.
