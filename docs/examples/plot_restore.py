"""
An untrained network restores a photograph
==========================================

A convolutional network with random weights already prefers pictures to noise. That is enough to take the noise off a
photograph, with no data but the photograph itself
(`Ulyanov, Vedaldi & Lempitsky 2018 <https://arxiv.org/abs/1711.10925>`_).
"""

import matplotlib.pyplot as plt
import torch
from skimage import data
from torch import nn

from invertible import instruments
from invertible.restore import Settings, restore
from invertible.restore.figures import strip

torch.manual_seed(0)
photograph = torch.from_numpy(data.chelsea()[80:176, 160:256]).permute(2, 0, 1) / 255

# %%
# Noise impedance
# ---------------
# How fast does a network learn the photograph, the photograph with noise, its shuffled pixels, and noise? The copies
# all start from the same weights. What has a prior for pictures learns them first; pixels without a network learn
# everything equally fast.


def hourglass(width: int = 24) -> nn.Sequential:
    """Down to a quarter of the size and up again."""

    def unit(i: int, o: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, stride, 1), nn.BatchNorm2d(o), nn.LeakyReLU(0.2)]

    up = nn.Upsample(scale_factor=2, mode="bilinear")
    down = [*unit(16, width, 2), *unit(width, width, 2)]
    return nn.Sequential(
        *down, *unit(width, width), up, *unit(width, width), up, *unit(width, width), nn.Conv2d(width, 3, 1)
    )


impedance = instruments.noise_impedance(hourglass(), photograph, steps=150, output=torch.sigmoid)
impedance.plot()
for finding in impedance.findings:
    print(finding.sentence)

# %%
# Restoring
# ---------
# ``restore`` fits its network from coarse to fine and stops where the error that is left is as large as the noise. The
# truth is given for the figures only.

sigma = 25 / 255
noisy = (photograph + sigma * torch.randn(photograph.shape)).clamp(0, 1)
restored = restore(noisy, sigma=sigma, truth=photograph, settings=Settings(steps=500, coarse_steps=150))
print(restored.stop_reason)
strip({"noisy": noisy, "restored": restored.image}, photograph)
plt.show()

# %%
# The way there: the loss falls on and on, the picture is best where the stop is.

restored.trajectory.plot()
plt.show()
