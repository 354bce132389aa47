"""
What a signal does in a deep network
====================================

Three residual networks of the same shape, none of them written for this library, on handwritten digits. Their mean and
variance from block to block, and over training.
"""

# %%
# Three networks
# --------------
# The blocks differ in one thing: a BatchNorm before each ReLU; nothing; or nothing, with weights a little too large.
import matplotlib.pyplot as plt
import torch
from torch import nn

import invertible.data
from invertible.instruments import SignalPropagationRecorder, signal_propagation

N_BLOCKS, WIDTH, N_STEPS = 16, 32, 60


class Block(nn.Module):
    def __init__(self, norm: bool, gain: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(WIDTH) if norm else nn.Identity() for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False) for _ in range(2))
        for conv in self.convs:
            nn.init.normal_(conv.weight, std=gain * (2 / (9 * WIDTH)) ** 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(torch.relu(norm(y)))
        return x + y


def network(norm: bool, gain: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    blocks = [Block(norm, gain) for _ in range(N_BLOCKS)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10)]
    return nn.Sequential(nn.Conv2d(1, WIDTH, 3, padding=1), *blocks, *head)


networks = {"BatchNorm": network(True), "nothing": network(False), "too large weights": network(False, gain=1.2)}

# %%
# Before training
# ---------------
# One call each, on real images. The blocks and the ends of their residual branches are found by themselves.
digits = invertible.data.load("digits")
results = {name: signal_propagation(net, digits, batches=2, mode="train") for name, net in networks.items()}
for name, result in results.items():
    print(f"\n{name}")
    for finding in result.findings:
        print(f"  {finding.severity}: {finding.sentence}")

first, *others = results.values()
axes = first.compare(*others, labels=list(results))
axes.set_title("Variance against depth")

# %%
# With BatchNorm each branch adds about the same variance, and the sum grows linearly. Without it each branch adds a
# share of what it is given, and the sum grows exponentially: a straight line on this scale.
#
# The three quantities of the first network. The branch's squared mean is the mean shift that ReLU makes.
first.plot()

# %%
# Over training
# -------------
# A recorder follows the optimizer and measures every ten steps. The training itself takes the same steps as without.
net = networks["BatchNorm"]
optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
recorder = SignalPropagationRecorder(net, (32, 1, 8, 8), every=10, mode="train")
images, labels = digits.images.float() / digits.max_value, digits.labels
with recorder.following(optimizer):
    for step in range(N_STEPS):
        chosen = torch.randint(len(images), (64,), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(net(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(f"loss {loss.item():.3f} after {N_STEPS} steps")
recorder.result.plot()
plt.show()
