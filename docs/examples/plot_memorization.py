"""
What a network learns by heart
==============================

Networks that generalise fit random labels just as well (Zhang et al. 2017). The battery on the 8x8 digits, what becomes
of wrong labels, kernels that fit everything in closed form, and the digits that a network knows only because it saw
them.
"""

# %%
# The battery
# -----------
# True labels, labels drawn anew with some probability, random labels; then true labels of spoilt pixels. Everything
# else is the same: the first weights, the order of examples, the learning rate. Test labels are always true.
import torch
from sklearn.datasets import load_digits

from invertible.instruments import (
    ForgettingRecorder,
    SGDFit,
    example_memorization,
    interpolate,
    memorization,
    memorizing_network,
)
from invertible.models import mlp

N_TRAIN = 600
N_EPOCHS = 80
N_NETWORKS = 60
digits = load_digits()
images, labels = torch.from_numpy(digits.images).float()[:, None] / 16, torch.from_numpy(digits.target)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
rows, rest = order[:N_TRAIN], order[-450:]
train, test = (images[rows], labels[rows]), (images[rest], labels[rest])


def make_model():
    return mlp(in_shape=(1, 8, 8), hidden=(256,))


battery = memorization(make_model, SGDFit(N_EPOCHS, batch_size=64, decay=0.99), (train, test), quiet=True)
battery.plot()
for row in battery.table:
    print(f"{row['condition']:16} epochs {row['epochs']:3.0f}  train {row['train']:6.1%}  test {row['test']:6.1%}")

# %%
# In words
# --------
# Each finding names the figures that support it; a network that was not given the time to fit says so.
for finding in battery.findings:
    print(f"{finding.severity}: {finding.sentence}")

# %%
# Linear methods that fit everything
# ----------------------------------
# A Gaussian kernel and random convolutions in closed form: at ridge 0 no training error is left, and the test error is
# none the worse.
for kind in ("rbf", "random-conv"):
    found = interpolate((train, test), kind, ridges=(0.0, 1e-3, 1e-1), n_filters=60, quiet=True)
    print(kind, *(f"\n  {finding.severity}: {finding.sentence}" for finding in found.findings))
found.plot()

# %%
# The theorem
# -----------
# 2n + d weights are enough for any labels, constructed and checked. It says nothing about other images.
x, y = images[rows[:200]], torch.randint(10, (200,), generator=torch.Generator().manual_seed(0))
network = memorizing_network(x, y)
print(f"{network.n_weights} weights, {(network(x).round() == y).double().mean():.0%} of 200 random labels")

# %%
# By heart
# --------
# Networks on random parts of the set: on which digits does it matter whether they were in the part? Trained together,
# as one batched computation. The most memorised ones are oddly written, or oddly labelled.
fit = SGDFit(epochs=10, batch_size=64)
few = (train[0][:300], train[1][:300])
scores = example_memorization(
    lambda: mlp(in_shape=(1, 8, 8), hidden=(64,)), fit, few, n_models=N_NETWORKS, together=N_NETWORKS, quiet=True
)
scores.plot()
print(scores.findings[-1].sentence)

# %%
# Forgetting
# ----------
# Cheaper, in any training loop: how often is an example right, and wrong the next time?
torch.manual_seed(0)
model, recorder = make_model(), ForgettingRecorder(N_TRAIN)
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
for _ in range(15):
    for batch in torch.randperm(N_TRAIN).split(64):
        logits = model(train[0][batch])
        recorder.record(batch, logits.argmax(1) == train[1][batch])
        loss = torch.nn.functional.cross_entropy(logits, train[1][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
forgetting = recorder.result(*train)
forgetting.plot()
print(forgetting.findings[-1].sentence)

# %%
# :doc:`/memorization` says what to look for and what these figures cannot tell.
