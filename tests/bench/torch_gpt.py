"""The runtime's built-in GPT written in PyTorch, as its users would write it. Shared by peer_speed and peer_wan.

The same computation as runtime/model/trainer.cc: GPT-2 (Radford et al. 2019) with learned positions, pre-norm, GELU in its tanh
form, the head tied to the embedding, no dropout; AdamW on two groups, of which only tensors of two dimensions or more decay.
"""
import math

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, width, heads, context):
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(width)
        self.c_attn = nn.Linear(width, 3 * width)
        self.attn_proj = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.c_fc = nn.Linear(width, 4 * width)
        self.mlp_proj = nn.Linear(4 * width, width)
        # No buffer: DistributedDataParallel would broadcast it at every step.
        self.future = torch.ones(context, context, dtype=torch.bool).triu(1)

    def forward(self, x):
        samples, context, width = x.shape
        query, key, value = (part.view(samples, context, self.heads, width // self.heads).transpose(1, 2)
                             for part in self.c_attn(self.ln_1(x)).split(width, dim=2))
        scores = query @ key.transpose(-2, -1) * (1.0 / math.sqrt(width // self.heads))
        weights = functional.softmax(scores.masked_fill(self.future, -math.inf), dim=-1)
        x = x + self.attn_proj((weights @ value).transpose(1, 2).reshape(samples, context, width))
        return x + self.mlp_proj(functional.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self, layers=6, heads=4, width=128, context=128, vocabulary=256):
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, context) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if name.endswith("_proj.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers))
            elif parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens, targets):
        """Mean loss, nats per token, of int64 tokens and targets [samples, context]."""
        x = self.wte(tokens) + self.wpe.weight[:tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.ln_f(x), self.wte.weight)
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def parameter_count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def adamw(model, learning_rate, weight_decay=0.1, foreach=False):
    """The trainer's defaults: betas 0.9 and 0.95, epsilon 1e-8. `foreach` joins the small tensors' operations."""
    decays = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW([{"params": decays, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}],
                             lr=learning_rate, betas=(0.9, 0.95), eps=1e-8, foreach=foreach)
