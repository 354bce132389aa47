"""
Saddles and minima of a small network
=====================================

Where is the gradient of a network's loss zero, and how many directions lead down from there? A network of 90 parameters
on digits of 3x3 pixels, after Dauphin et al. 2014, figure 1; then saddle-free Newton as an optimiser, and four neurons
that multiply.
"""

# %%
# A network that is small enough
# ------------------------------
# Everything here is dense: the Hessian has 90 x 90 entries.
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from invertible.instruments import cheap_learning, critical_points
from invertible.train import SaddleFreeNewton

torch.set_num_threads(1)  # networks this small only wait for other threads
digits = load_digits()
images = torch.from_numpy(digits.images[:300]).float()[:, None]
x = nn.functional.adaptive_avg_pool2d(images, 3).flatten(1)
x, y = (x - x.mean()) / x.std(), torch.from_numpy(digits.target[:300])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 10))


# %%
# Searching
# ---------
# From iterates of gradient descent, with and without noise. Weight decay keeps critical points at finite places.
found = critical_points(network(), (x, y), weight_decay=0.01, n_iterates=4, n_iterations=80, quiet=True)
found.plot()
for finding in found.findings:
    print(f"{finding.severity}: {finding.sentence}")

# %%
# Ends that did not pass the tests are no critical points, and say why.
for point in found.points:
    if not point.is_critical:
        print(f"from step {point.start}, {point.method}: |g| = {point.gradient_norm:.1e}, {point.why}")
        break

# %%
# The same idea as an optimiser
# -----------------------------
# Next to the saddle at zero gradients are small. Saddle-free Newton follows directions of negative curvature as well.


def trained(is_ours: bool, n_steps: int = 30) -> list[float]:
    net = network()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.01)
    optimizer = SaddleFreeNewton(net.parameters(), rank=10) if is_ours else torch.optim.SGD(net.parameters(), 0.3)
    losses = []
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        losses.append(loss.item())
        if is_ours:
            optimizer.step(lambda: nn.functional.cross_entropy(net(x), y))
        else:
            loss.backward()
            optimizer.step()
    return losses


figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
axes.plot(trained(is_ours=True), color="C1", label="saddle-free Newton")
axes.plot(trained(is_ours=False), color="C0", label="gradient descent")
axes.set(xlabel="step", ylabel="loss", title="Steps are not equally dear: ours takes ten products with the Hessian")
axes.legend(frameon=False)

# %%
# Four neurons that multiply
# --------------------------
# With written weights: the error falls with the square of their scale until rounding takes over, and a tree of gates
# needs 4 (n - 1) neurons where one layer needs 2^n.
products = cheap_learning((2, 4, 8))
products.plot()
for finding in products.findings:
    print(f"{finding.severity}: {finding.sentence}")

# %%
# :doc:`/critical_points` says what to look for and what these figures cannot tell.
