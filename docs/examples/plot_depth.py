"""
What a network keeps with depth
===============================

An i-RevNet keeps its whole input up to the last layer and classifies all the same. Where do the classes come apart, in
how many dimensions, and what lies between two images? The analyses of the i-RevNet paper (figures 4 to 7), on an
i-RevNet and a ResNet of equal size, trained on the 8x8 digits.
"""

# %%
# Two networks
# ------------
# Both have about 337,000 parameters and are trained alike, on three quarters of the digits.
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from invertible.instruments import depth_profile, interpolation, jacobian_spectrum
from invertible.models import irevnet_digits, resnet

N_EPOCHS = 8
digits = load_digits()
images, labels = torch.from_numpy(digits.images).float()[:, None] / 16, torch.from_numpy(digits.target)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
train, test = order[450:], order[:450]


def make_irevnet() -> nn.Module:
    return irevnet_digits()


def make_resnet() -> nn.Module:
    return resnet((1, 8, 8), 10, n_blocks=(2, 2), channels=(45, 91), strides=(1, 2))


def trained(make) -> nn.Module:
    torch.manual_seed(0)
    net, n_steps = make(), N_EPOCHS * 21
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, n_steps)
    for batch in (rows for _ in range(N_EPOCHS) for rows in train[torch.randperm(len(train))].tensor_split(21)):
        loss = nn.functional.cross_entropy(net(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


makers = {"i-RevNet": make_irevnet, "ResNet": make_resnet}
nets = {name: trained(make) for name, make in makers.items()}
with torch.no_grad():
    for name, net in nets.items():
        n = sum(parameter.numel() for parameter in net.parameters())
        accuracy = (net(images[test]).argmax(1) == labels[test]).double().mean()
        print(f"{name}: {n:,} parameters, {accuracy:.1%} of the test images right")

# %%
# Where classes come apart
# ------------------------
# On test images: each representation is averaged over space, and a linear SVM and the nearest neighbour classify it.
# The controls come with it: the same network untrained, shuffled labels, and a projection of every place to equally
# many random dimensions, since wider places are easier to separate.
data = [(images[rows], labels[rows]) for rows in test.split(150)]
profiles = {name: depth_profile(net, data, untrained=makers[name], quiet=True) for name, net in nets.items()}
profiles["i-RevNet"].plot()
for finding in profiles["i-RevNet"].findings:
    print(f"{finding.severity}: {finding.sentence}")

# %%
# Figures 6 and 7 for both networks. Depth counts the blocks; each network has its own.
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
ours, other = profiles.values()
ours.compare(other, labels=list(profiles), curve="SVM", ax=axes[0])
ours.compare(other, labels=list(profiles), curve="SVM on components", ax=axes[1])
axes[0].set_title("Figure 6: linear SVM against depth")
axes[1].set(title="Figure 7: linear SVM on principal components, last block", xlabel="components", xscale="log")

# %%
# What a small change becomes
# ---------------------------
# Figure 4: singular values of d representation / d image. Both are sorted and divided by the largest. The i-RevNet's
# product is 1 everywhere (it preserves volume), so none of them is zero, but they spread over decades.
spectra = {
    "i-RevNet": jacobian_spectrum(nets["i-RevNet"].double(), images[test[:3]], layers="body", n_examples=3),
    "ResNet": jacobian_spectrum(nets["ResNet"].double(), images[test[:3]], layers="stages", n_examples=3),
}
for name, found in spectra.items():
    print(name, *(f"\n  {finding.severity}: {finding.sentence}" for finding in found.findings))
spectra["i-RevNet"].compare(spectra["ResNet"], labels=list(spectra))
nets["i-RevNet"].float()

# %%
# Between two images
# ------------------
# Figure 5: straight lines between two representations, decoded, above lines between the pixels. Both ends are exact. In
# between a bijective network has representations of *something*; nothing made it an image of a digit.
found = interpolation(nets["i-RevNet"], images[test[:6]], n_pairs=3)
found.plot()
for finding in found.findings:
    print(f"{finding.severity}: {finding.sentence}")

# %%
# :doc:`/depth` says what to look for and what these figures cannot tell.
