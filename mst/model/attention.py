"""Multi-head attention on fused kernels, and the transformer block of ViT.

Parameters are named as in timm's ViT, whose weights load here; timm itself takes seconds to import.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mst.model.patch_embed import Grid

try:
    from flash_attn import flash_attn_func  # the optional extra `flash`
except ImportError:
    flash_attn_func = None

NORM_EPS = 1e-6

_SHORT = 1024  # tokens up to which a CPU's memory and time are well spent on a whole matrix of scores


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """(B, L, C) to (B, heads, L, C / heads)."""
    return tokens.view(*tokens.shape[:2], num_heads, -1).transpose(1, 2)


def join_heads(tokens: Tensor) -> Tensor:
    """(B, heads, L, C / heads) to (B, L, C)."""
    return tokens.transpose(1, 2).flatten(2)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention: flash-attn where it is installed and can, else torch's own kernels.

    In bf16 on a CPU the backward of torch's kernel takes longer than that of two products of matrices,
    which have the CPU's own instructions: a whole step 1.2 to 1.4 times as long. Forward it is the faster.

    Args:
        query: (B, heads, L, D).
        key: (B, heads, K, D).
        value: (B, heads, K, D).
        mask: (B, 1, 1, K) bool, which keys may be attended to; None for all of them.

    Returns:
        (B, heads, L, D).
    """
    if flash_attn_func and mask is None and query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        swapped = (each.transpose(1, 2) for each in (query, key, value))  # flash-attn: (B, L, heads, D)
        attended: Tensor = flash_attn_func(*swapped)
        return attended.transpose(1, 2)
    is_short_bf16 = query.dtype == torch.bfloat16 and key.shape[2] <= _SHORT
    if query.requires_grad and query.device.type == "cpu" and is_short_bf16:
        return _attention_by_products(query, key, value, mask)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _attention_by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    attended: Tensor = scores.softmax(-1) @ value
    return attended


def to_windows(tokens: Tensor, grid: Grid, window: int) -> Tensor:
    """Cut a grid of tokens (B, L, C) into square windows, (B * windows, window * window, C).

    Raises:
        ValueError: a side of the grid is no multiple of the window.
    """
    rows, cols = grid
    if rows % window or cols % window:
        raise ValueError(f"{rows} x {cols} tokens do not divide into windows of {window} x {window}")
    cut = tokens.view(-1, rows // window, window, cols // window, window, tokens.shape[-1])
    return cut.transpose(2, 3).reshape(-1, window * window, tokens.shape[-1])


def from_windows(tokens: Tensor, grid: Grid, window: int) -> Tensor:
    """Undo `to_windows`."""
    rows, cols = grid
    cut = tokens.view(-1, rows // window, cols // window, window, window, tokens.shape[-1])
    return cut.transpose(2, 3).reshape(-1, rows * cols, tokens.shape[-1])


class SelfAttention(nn.Module):
    """Attention of tokens to each other (MST eq. 1)."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, C) to (B, L, C)."""
        query, key, value = (split_heads(each, self.num_heads) for each in self.qkv(tokens).chunk(3, -1))
        attended: Tensor = self.proj(join_heads(attention(query, key, value)))
        return attended


class MLP(nn.Module):
    """Two layers, wider in between: `ratio` times as wide as the tokens."""

    def __init__(self, embed_dim: int, ratio: int = 4) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, ratio * embed_dim)
        self.fc2 = nn.Linear(ratio * embed_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, C) to (B, L, C)."""
        mixed: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return mixed


class CrossAttention(nn.Module):
    """Attention of tokens to other tokens, both normalised first; the residual update of the former.

    The output projection starts at zero: a pre-trained backbone first works as if the module were not there.

    Where the context is short (heads * K < C) its keys and values are projected through the query's and the
    output's weights, instead of the many tokens: the same products in another order, for less work.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_query = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.norm_context = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key_value = nn.Linear(embed_dim, 2 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, tokens: Tensor, context: Tensor, attend: Tensor | None = None) -> Tensor:
        """Return the update of `tokens`.

        Args:
            tokens: (B, L, C), the queries.
            context: (B, K, C), keys and values.
            attend: (B, K) bool, which of the context may be attended to; None for all of it.
        """
        tokens = self.norm_query(tokens)
        key_value = self.key_value(self.norm_context(context))
        key, value = (split_heads(each, self.num_heads) for each in key_value.chunk(2, -1))
        if attend is None and self.num_heads * context.shape[1] < tokens.shape[2]:
            return self._attend_to_few(tokens, key, value)
        query = split_heads(self.query(tokens), self.num_heads)
        mask = None if attend is None else attend[:, None, None, :]
        update: Tensor = self.proj(join_heads(attention(query, key, value, mask)))
        return update

    def _attend_to_few(self, tokens: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The update of tokens (B, L, C) by keys and values (B, heads, K, D)."""
        heads, depth = self.num_heads, key.shape[-1]
        query_weight = self.query.weight.view(heads, depth, -1)  # (heads, D, C)
        proj_weight = self.proj.weight.view(-1, heads, depth).permute(1, 2, 0)  # (heads, D, C)
        keys = (key @ query_weight).flatten(1, 2)  # (B, heads * K, C)
        # A head's weights add up to 1, and so the output's bias can be handed to the few values.
        values = (value @ proj_weight).flatten(1, 2) + self.proj.bias / heads
        offsets = (key @ self.query.bias.view(heads, depth, 1)).flatten(1)[:, None]  # (B, 1, heads * K)
        scores = (torch.matmul(tokens, keys.mT) + offsets) * depth**-0.5
        weights = scores.unflatten(-1, (heads, -1)).softmax(-1).flatten(-2).to(values.dtype)
        update: Tensor = weights @ values
        return update


class LayerScale(nn.Module):
    """A learned factor for each channel, small at first (CaiT; DINOv2)."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((embed_dim,), 1e-5))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, C) to (B, L, C)."""
        return tokens * self.gamma


class CrossBlock(CrossAttention):
    """Cross attention and then an MLP; the residual update of both, which starts at zero.

    Args:
        embed_dim: C.
        num_heads: of the attention.
        mlp_ratio: width of the MLP, in multiples of C.
    """

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__(embed_dim, num_heads)
        self.norm_mlp = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.mlp = MLP(embed_dim, mlp_ratio)
        nn.init.zeros_(self.mlp.fc2.weight)
        nn.init.zeros_(self.mlp.fc2.bias)

    def forward(self, tokens: Tensor, context: Tensor, attend: Tensor | None = None) -> Tensor:
        """Return the update of `tokens`; arguments as of `CrossAttention`."""
        update = super().forward(tokens, context, attend)
        mixed: Tensor = self.mlp(self.norm_mlp(tokens + update))
        return update + mixed


class Block(nn.Module):
    """Pre-norm transformer block.

    Args:
        embed_dim: C.
        num_heads: of the attention.
        layer_scale: whether the residuals are scaled per channel, as in DINOv2.
        window: side in tokens of the windows within which it attends; 0 to attend to all tokens.
    """

    def __init__(self, embed_dim: int, num_heads: int, layer_scale: bool, window: int = 0) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.attn = SelfAttention(embed_dim, num_heads)
        self.ls1 = LayerScale(embed_dim) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.mlp = MLP(embed_dim)
        self.ls2 = LayerScale(embed_dim) if layer_scale else nn.Identity()

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """(B, L, C), the tokens of a grid, to (B, L, C)."""
        tokens = tokens + self.ls1(self._attend(self.norm1(tokens), grid))
        updated: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return updated

    def _attend(self, tokens: Tensor, grid: Grid) -> Tensor:
        if not self.window:
            attended: Tensor = self.attn(tokens)
            return attended
        return from_windows(self.attn(to_windows(tokens, grid, self.window)), grid, self.window)
