"""
A vision transformer in constant memory
=======================================

Training keeps every activation until the backward pass, so memory grows with depth. Here an ordinary transformer,
written without any thought of reversibility, is made reversible by one line. Its activations are then computed again
from the output when the backward pass needs them, and the memory they take no longer depends on depth.
"""

# %%
# An ordinary transformer
# -----------------------
# Images are cut into patches, patches become tokens, and a row of blocks works on these. A block adds to its input what
# attention makes of it, then what an MLP makes of that: two residual branches, here the methods ``attend`` and
# ``think``.
import time

import matplotlib.pyplot as plt
import torch
from shared import peak_memory
from torch import Tensor, nn

from invertible import make_reversible
from invertible.data import load
from invertible.errors import DataError

torch.set_num_threads(1)  # tensors are small here, and on a busy machine two threads wait for each other
N_STEPS = 400
DEPTHS = (2, 4, 8, 16, 32)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads=4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def attend(self, x: Tensor) -> Tensor:
        x = self.norm1(x)
        return self.attention(x, x, x, need_weights=False)[0]

    def think(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm2(x))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        return x + self.think(x)


class VisionTransformer(nn.Module):
    def __init__(self, side: int, patch: int, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn((side // patch) ** 2, width))
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)])
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT + self.positions
        return self.head(self.blocks(tokens).mean(dim=1))


# %%
# The data are Fashion-MNIST where they are on disk or can be downloaded, else the small digits inside scikit-learn.
try:
    train_set, test_set = load("fashion-mnist"), load("fashion-mnist", "test")
except DataError:
    train_set, test_set = load("digits"), load("digits", "test")
side = train_set.shape[-1]
patch = side // 4
print(f"{train_set.name}: {len(train_set):,} images of {side}x{side} pixels, in 4x4 patches of {patch}x{patch}")


def prepare(data, indices: Tensor) -> tuple[Tensor, Tensor]:
    return data.batch(indices) / data.max_value * 2 - 1, data.labels[indices]


# %%
# One line
# --------
# ``make_reversible`` takes the blocks and a function that tells a block's two branches. They now act on two streams,
# y1 = x1 + attend(x2) and y2 = x2 + think(y1), which start equal and are averaged in the end. From y1 and y2 the inputs
# follow by two subtractions.
torch.manual_seed(0)
plain = VisionTransformer(side, patch)
torch.manual_seed(0)
reversible = VisionTransformer(side, patch)
reversible.blocks = make_reversible(reversible.blocks, lambda block: (block.attend, block.think))

# %%
# Names of weights, and the blocks themselves, are what they were. What is computed is not: the same weights in two
# streams are another network, which has to be trained (or fine-tuned) as such.
print("same state dict:", plain.state_dict().keys() == reversible.state_dict().keys())
print("indexing gives the user's own modules:", type(reversible.blocks[0]).__name__)

# %%
# Gradients with activations reconstructed are those with activations stored, up to rounding. ``memory`` may be changed
# at any time.
x, labels = prepare(train_set, torch.arange(64))


def gradients(memory: str) -> Tensor:
    reversible.blocks.memory = memory
    loss = nn.functional.cross_entropy(reversible(x), labels)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(reversible.parameters()))])


stored, reconstructed = gradients("store"), gradients("reconstruct")
print(f"relative difference of the gradients: {((stored - reconstructed).norm() / stored.norm()).item():.1e}")

# %%
# Train both
# ----------
# Same data, same order, same number of steps.


def train(model: nn.Module, n_steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=n_steps)
    for _ in range(n_steps):
        images, targets = prepare(train_set, torch.randint(len(train_set), (64,), generator=generator))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    indices = torch.arange(min(2000, len(test_set))).split(500)
    batches = (prepare(test_set, part) for part in indices)
    correct = sum(int((model(images).argmax(1) == targets).sum()) for images, targets in batches)
    return correct / sum(map(len, indices))


for name, model in (("plain", plain), ("reversible", reversible)):
    start = time.perf_counter()
    train(model, N_STEPS)
    seconds = time.perf_counter() - start
    print(f"{name}: {accuracy(model):.1%} of the test images right after {N_STEPS} steps, {seconds:.0f} s")

# %%
# One run of one seed: a difference of a percent or two means nothing. The reversible network pays with arithmetic, a
# third more, as its backward pass evaluates every branch once more; in a network this small that may hardly show.
#
# Memory against depth
# --------------------
# What counts is the worst moment of one training step, forward and backward: all tensors alive at that moment that were
# made in the step, activations and gradients of the weights alike. The weights themselves and the data are not counted,
# nor what PyTorch's kernels allocate and free inside one operation. With reconstruction the activations take the same
# at any depth; what still grows are the gradients of the weights (dotted), of which every network has one per weight.


def step_memory(depth: int, memory: str | None) -> float:
    model = VisionTransformer(side, patch, depth=depth)
    if memory is not None:
        model.blocks = make_reversible(model.blocks, lambda block: (block.attend, block.think), memory=memory)
    return peak_memory(lambda: nn.functional.cross_entropy(model(x), labels).backward()) / 2**20


n_weights = [sum(p.numel() for p in VisionTransformer(side, patch, depth=depth).parameters()) for depth in DEPTHS]
figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name, memory in (
    ("plain nn.Sequential", None),
    ('memory="store"', "store"),
    ('memory="reconstruct"', "reconstruct"),
):
    peaks = [step_memory(depth, memory) for depth in DEPTHS]
    ax.plot(DEPTHS, peaks, "o--" if memory else "-", label=name)
    print(
        f"{name}: " + ", ".join(f"{peak:.1f} MiB at {depth} blocks" for depth, peak in zip(DEPTHS, peaks, strict=True))
    )
ax.plot(DEPTHS, [4 * n / 2**20 for n in n_weights], "k:", label="gradients of the weights alone")
ax.set(xlabel="blocks", ylabel="peak of one step, MiB", xticks=DEPTHS)
_ = ax.legend(loc="upper left")
