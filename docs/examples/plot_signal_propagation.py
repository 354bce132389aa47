"""
Signals in 600 layers
=====================

The signal propagation plots of Brock, De and Smith (2021): what mean and variance do from block to block in residual
networks of 600 layers, with BatchNorm in two places, without any normalisation, and in a normalizer-free network. Noise
goes in; nothing is trained. Beside what is measured: what theory says.
"""

# %%
# What was made small
# -------------------
# The depth is the paper's: four stages of 50 bottlenecks. The width is half of the paper's, and the eight images are
# 32x32 instead of 224x224, behind a 3x3 convolution instead of a 7x7 one with max-pooling. Convolutions wrap around at
# the border: zeros there have no variance, and theory knows no borders.
import matplotlib.pyplot as plt
import torch

from invertible.instruments import signal_propagation
from invertible.models import signal_networks
from invertible.models.signal_networks import Size

DEPTHS = (50, 50, 50, 50)
WIDTHS = (32, 64, 128, 256)
SHAPE = (8, 3, 32, 32)


def measure(name):
    torch.manual_seed(0)
    network = getattr(signal_networks, name)(Size(DEPTHS, WIDTHS, SHAPE[1:]))
    result = signal_propagation(network, SHAPE, mode="train", quiet=True)
    print(f"\n{name}")
    for finding in result.findings:
        print(f"  {finding.severity}: {finding.sentence}")
    return result


def draw(*names):
    """The three quantities of each network; what theory expects is dashed."""
    figure, rows = plt.subplots(3, len(names), figsize=(3.2 * len(names), 6.6), squeeze=False, sharex=True)
    for column, name in zip(rows.T, names, strict=True):
        blocks, theory = results[name].blocks[1:], signal_networks.theory(name, DEPTHS)
        for ax, quantity in zip(column, ("squared_mean", "variance", "residual_variance"), strict=True):
            ax.plot([getattr(block, quantity) for block in blocks], label="measured")
            ax.plot([getattr(expected, quantity) for expected in theory], "k--", lw=1, label="theory")
            ax.grid(alpha=0.25)
            if name == "relu_conv":
                ax.set_yscale("log")
            else:
                ax.set_ylim(bottom=0)
        column[0].set_title(name)
        column[-1].set_xlabel("block")
    for ax, label in zip(rows[:, 0], ("squared mean", "variance", "residual variance"), strict=True):
        ax.set_ylabel(label)
    rows[0, 0].legend(frameon=False)
    figure.tight_layout()


# %%
# BatchNorm
# ---------
# In the usual order, BatchNorm, ReLU, convolution, each branch ends with a variance of 1 - 1 / pi = 0.68 and a squared
# mean of 1 / pi = 0.32, the mean shift. Both add up from block to block and fall back where a stage begins, since there
# the shortcut is normalised too. With ReLU before BatchNorm branches have variance one and no mean. Without ReLU there
# is no mean shift either: it is ReLU that makes it.
names = ["bn_relu_conv", "relu_bn_conv", "bn_conv"]
results = {name: measure(name) for name in names}
draw(*names)

# %%
# No normalisation
# ----------------
# Each block doubles the second moment, 2 to the 200th in the end, and that is soon almost all mean: all images
# look the same to the last layers. Networks of this width scatter around the doubling.
results["relu_conv"] = measure("relu_conv")

# %%
# Normalizer-free networks
# ------------------------
# Scaled Weight Standardization takes the mean off, and each block divides by the standard deviation that its input
# must have: the variance grows by alpha squared = 0.04 from block to block. With plain weights of He's variance there
# is a mean shift, branches end with less and less variance, and the recursion is missed. Without ReLU all is well
# again, with plain weights too.
names = ["nf_scaled_ws", "nf_he", "nf_he_linear"]
results |= {name: measure(name) for name in names}
draw("relu_conv", *names)

# %%
# The theory without a norm is that of infinitely wide networks: the correlation of any two inputs behind ReLU and a
# random convolution (the arc-cosine kernel of Cho and Saul 2009), followed block by block.
#
# In figures
# ----------
# Squared mean, variance and residual variance of the last block in the first and the last stage, theory's in brackets;
# and the residual variance, averaged over all blocks.
ends = [DEPTHS[0], sum(DEPTHS)]
for name, result in results.items():
    theory = signal_networks.theory(name, DEPTHS)
    for i in ends:
        block, expected = result.blocks[i], theory[i - 1]
        pairs = [(getattr(block, q), getattr(expected, q)) for q in ("squared_mean", "variance", "residual_variance")]
        print(f"{name:13} block {i:3}: ", "   ".join(f"{a:.3g} ({b:.3g})" for a, b in pairs))
    mean = sum(block.residual_variance for block in result.blocks[1:]) / sum(DEPTHS)
    print(f"{name:13} residual variance on average: {mean:.3g}")
plt.show()
