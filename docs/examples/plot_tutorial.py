"""
Ten minutes with invertible
===========================

From one coupling layer to a trained network that gives its input back. Everything here runs on a laptop's CPU.
"""

# %%
# A map and its inverse
# ---------------------
# A coupling layer splits its input in two, leaves one half as it is, and adds to the other what a network makes of the
# first. The network may be anything: to undo the layer one subtracts the same thing again.
import matplotlib.pyplot as plt
import torch
from torch import nn

from invertible import Chain
from invertible.layers import AdditiveCoupling, AffineCoupling, Permute, Squeeze

torch.manual_seed(0)
network = nn.Sequential(nn.Linear(3, 64), nn.GELU(), nn.Linear(64, 3))
coupling = AdditiveCoupling(network)

x = torch.randn(5, 6)
y = coupling(x)
print("largest error of the inverse:", (coupling.inverse(y) - x).abs().max().item())

# %%
# Layers compose to a ``Chain``, which is a bijection again. ``forward_with_logdet`` also gives the change of volume, in
# nats; ``forward`` never pays for it.


def small_network(n_in: int, n_out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(n_in, 64), nn.GELU(), nn.Linear(64, n_out))


chain = Chain(
    AffineCoupling(small_network(3, 6)),
    Permute.random(6, seed=1),
    AffineCoupling(small_network(3, 6), target="first"),
)
y, logdet = chain.forward_with_logdet(x)
back, back_logdet = chain.inverse_with_logdet(y)
print("round trip:", (back - x).abs().max().item())
print("log-determinants cancel:", (logdet + back_logdet).abs().max().item())

# %%
# The log-determinant is what autograd's Jacobian says it is:
jacobian = torch.autograd.functional.jacobian(chain, x[:1])[0, :, 0, :]
print(f"by the chain {logdet[0].item():.5f}, by the dense Jacobian {torch.linalg.slogdet(jacobian)[1].item():.5f}")

# %%
# A network that keeps everything
# -------------------------------
# Images are down-sampled by ``Squeeze``, which moves pixels into channels instead of dropping them.
image = torch.arange(16.0).reshape(1, 1, 4, 4)
print(Squeeze(2)(image)[0, 0], Squeeze(2)(image).shape)

# %%
# An i-RevNet is built from just that: squeezes and additive couplings up to the last representation, then a head that
# pools and projects. The head is the only place where information is lost.
from invertible.models import irevnet

classifier = irevnet(
    in_shape=(1, 8, 8), n_classes=10, n_blocks=(4, 4), strides=(2, 2), channels=None, hidden=(32, 64), init_squeeze=2
)
print(f"{sum(p.numel() for p in classifier.parameters()):,} parameters,", len(classifier.body), "members")

# %%
# Train it
# --------
# A recipe is a plain dataclass; ``invertible train irevnet/digits`` on the command line does the same as this.
import tempfile
from pathlib import Path

from invertible.train import load_run, read_recipe, train

folder = Path(tempfile.mkdtemp()) / "digits"
recipe = read_recipe("irevnet/digits", ["--training.epochs", "20"])
figures = train(recipe, folder, quiet=True)
print(f"test accuracy {figures['test_accuracy']:.3f} after {figures['train_seconds']:.0f} s")
print(f"largest reconstruction error {figures['reconstruction_max_abs_error']:.1e} of the pixel range")

# %%
# Get the input back
# ------------------
# The representation is what the classifier decides on. From it alone every test image is reconstructed.
run = load_run(folder)
images = run.test_images()
x = run.prepare(images.batch([0, 1, 2, 3]))
with torch.no_grad():
    representation = run.classifier.representation(x)
    reconstruction = run.classifier.reconstruct(representation)

figure, axes = plt.subplots(3, 4, figsize=(6, 4.6), layout="constrained")
for i in range(4):
    axes[0, i].imshow(x[i, 0], cmap="gray")
    axes[1, i].imshow(representation[i].reshape(8, 8), cmap="viridis")
    axes[2, i].imshow(reconstruction[i, 0], cmap="gray")
for row, name in zip(axes, ("original", "representation", "reconstruction"), strict=True):
    row[0].set_ylabel(name)
    for ax in row:
        ax.set(xticks=[], yticks=[])

# %%
# Between two images
# ------------------
# Points between two representations decode too; the paper's section 4.2 looks at such paths.
with torch.no_grad():
    t = torch.linspace(0, 1, 7).view(-1, 1, 1, 1)
    path = run.classifier.reconstruct((1 - t) * representation[:1] + t * representation[1:2])
figure, axes = plt.subplots(1, 7, figsize=(8, 1.5), layout="constrained")
for ax, picture, share in zip(axes, path, t.flatten(), strict=True):
    ax.imshow(picture[0], cmap="gray")
    ax.set(xticks=[], yticks=[], title=f"t = {share:.2f}")

# %%
# Where to go next: ``invertible recipes`` lists what can be trained, :doc:`/command_line` explains the commands,
# :doc:`/data` the data sets, :doc:`/architecture` where everything is and where your own layer would go.
