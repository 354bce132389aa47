"""
A language model that forgets nothing
=====================================

A small transformer learns to continue *Alice's Adventures in Wonderland*, byte by byte, in memory that does not grow
with its depth. Its inverse then reads the text back from the last layer, to the last bit.
"""

# %%
# The text
# --------
# The book is in the repository. The last tenth is kept for testing.
import math

import matplotlib.pyplot as plt
import torch
from shared import alice, peak_memory
from torch import Tensor, nn

from invertible import make_reversible

torch.set_num_threads(1)  # tensors are small here, and on a busy machine two threads wait for each other
N_STEPS = 600
DEPTHS = (2, 4, 8, 16)
WIDTH, CONTEXT, BATCH = 192, 64, 12

text = torch.tensor(list(alice().encode()))
train_text, test_text = text[: int(0.9 * len(text))], text[int(0.9 * len(text)) :]
print(f"{len(train_text):,} bytes to learn from, {len(test_text):,} to test on")

# %%
# The network
# -----------
# A transformer alternates attention and MLP, each added to what came before. Written down are only these branches,
# without the additions: ``make_reversible`` adds. The branches of a plain list take turns on two streams,
# y1 = x1 + attention(x2) and y2 = x2 + mlp(y1). With ``streams="split"`` these are the two halves of the features, so
# that branches are half as wide as the network, and the whole has an inverse.


class Attention(nn.Module):
    def __init__(self, width: int, n_heads: int = 4) -> None:
        super().__init__()
        self.norm, self.n_heads = nn.LayerNorm(width), n_heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        heads = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(heads.transpose(1, 2).flatten(2))


class MLP(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


# %%
# Arguments besides the input are handed, by name, to the branches whose ``forward`` names them: here the mask, which
# lets no byte see a later one, goes to attention and not to the MLP. With ``exact=True`` all sums are made on a lattice
# of multiples of 2^-18, where they can be undone to the last bit.


class LanguageModel(nn.Module):
    def __init__(self, depth: int = 3, memory: str = "reconstruct") -> None:
        super().__init__()
        self.bytes, self.positions = nn.Embedding(128, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        nn.init.normal_(self.positions.weight, std=0.02)
        branches = [kind(WIDTH // 2) for _ in range(depth) for kind in (Attention, MLP)]
        self.body = make_reversible(branches, streams="split", memory=memory, exact=True)
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 128))

    def embed(self, tokens: Tensor) -> Tensor:
        return self.bytes(tokens) + self.positions.weight[: tokens.shape[1]]

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embed(tokens), mask=causal(tokens)))


def causal(tokens: Tensor) -> Tensor:
    n = tokens.shape[1]
    return torch.ones(n, n, dtype=torch.bool).tril()


torch.manual_seed(0)
model = LanguageModel()
print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
same_names = model.body.state_dict().keys() == nn.Sequential(*model.body).state_dict().keys()
print("names of weights are those of the plain nn.Sequential:", same_names)

# %%
# Train it
# --------
# The loss is in bits per byte: 7 is what knowing nothing but ASCII costs.


def bits_per_byte(model: nn.Module, text: Tensor, starts: Tensor) -> Tensor:
    windows = text[starts[:, None] + torch.arange(CONTEXT + 1)]
    logits = model(windows[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()) / math.log(2)


@torch.no_grad()
def test_loss() -> float:
    return bits_per_byte(model, test_text, torch.arange(0, len(test_text) - CONTEXT - 1, CONTEXT)).item()


print(f"before training: {test_loss():.2f} bits per byte of the last chapters")
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=N_STEPS)
for _ in range(N_STEPS):
    loss = bits_per_byte(model, train_text, torch.randint(len(train_text) - CONTEXT - 1, (BATCH,)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
print(f"after {N_STEPS} steps: {test_loss():.2f}")

# %%
# Let it write
# ------------
# Half a minute of training makes syllables and some words, not sense.


@torch.no_grad()
def write(beginning: str, n_bytes: int = 240) -> str:
    tokens = torch.tensor([list(beginning.encode())])
    for _ in range(n_bytes):
        logits = model(tokens[:, -CONTEXT:])[:, -1] / 0.7
        tokens = torch.cat([tokens, torch.multinomial(logits.softmax(-1), 1)], dim=1)
    return bytes(tokens[0].tolist()).decode()


print(write("Alice looked at the "))

# %%
# Read the input back
# -------------------
# The last layer is where the next byte is predicted. It still holds every byte that went in: the inverse recovers the
# first layer's input from it, with an error of exactly zero, and the nearest embeddings spell the text.
tokens = test_text[None, :CONTEXT]
with torch.no_grad():
    x = model.embed(tokens)
    last = model.body(x, mask=causal(tokens))
    back = model.body.inverse(last, mask=causal(tokens))
    lattice = model.body.chain(x).lattice
    nearest = torch.cdist(back - model.positions.weight, model.bytes.weight[None]).argmin(-1)
print("equal to the last bit:", torch.equal(back, lattice.quantise(x)))
print(repr(bytes(nearest[0].tolist()).decode()))

# %%
# Memory against depth
# --------------------
# The worst moment of one training step: all tensors alive at that moment that were made in the step, activations and
# gradients of the weights alike, without the weights and what operations use inside. With reconstruction only the
# gradients of the weights (dotted) grow.
figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
starts = torch.arange(BATCH)
for memory in ("store", "checkpoint", "reconstruct"):
    models = [LanguageModel(depth, memory) for depth in DEPTHS]
    peaks = [peak_memory(lambda m=m: bits_per_byte(m, train_text, starts).backward()) / 2**20 for m in models]
    ax.plot(DEPTHS, peaks, "o-", label=f'memory="{memory}"')
    print(f"{memory}: " + ", ".join(f"{peak:.0f} MiB at {depth}" for depth, peak in zip(DEPTHS, peaks, strict=True)))
n_weights = [sum(p.numel() for p in m.parameters()) for m in models]
ax.plot(DEPTHS, [4 * n / 2**20 for n in n_weights], "k:", label="gradients of the weights alone")
ax.set(xlabel="pairs of attention and MLP", ylabel="peak of one step, MiB", xticks=DEPTHS)
_ = ax.legend(loc="upper left")
