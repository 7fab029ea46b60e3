"""Selection of the tokens that guide the base tokens (MST section III-B, eq. 2-5): pure functions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mst.model.patch_embed import Scale


def reference_kernel(base: Scale, clicks: Tensor) -> Tensor:
    """Mean of the positively clicked base tokens (MST eq. 2).

    A token that is clicked twice counts twice. Clicks outside the image do not count. A sample without a
    positive click has no reference; the mean of all its base tokens stands in, which prefers no place.

    Args:
        base: the base tokens.
        clicks: (B, N, 3) as `mst.clicks.click_tensor` packs them.

    Returns:
        (B, C).
    """
    # Pixel r covers r - 0.5 .. r + 0.5, and so the first patch ends at patch_size - 0.5.
    rows, cols = ((clicks[..., :2] + 0.5) / base.patch_size).floor().long().unbind(-1)
    inside = (rows >= 0) & (rows < base.grid[0]) & (cols >= 0) & (cols < base.grid[1])
    index = torch.where(inside, rows * base.grid[1] + cols, 0)
    counts = ((clicks[..., 2] == 1) & inside).to(base.tokens.dtype)  # (B, N)
    number = counts.sum(1, keepdim=True)
    clicked_mean = (gather_tokens(base.tokens, index) * counts[..., None]).sum(1) / number.clamp(min=1)
    return torch.where(number > 0, clicked_mean, base.tokens.mean(1))


def similarity(kernel: Tensor, tokens: Tensor) -> Tensor:
    """s_j = sigmoid(cos(f_kernel, f_j)) (MST eq. 3).

    Args:
        kernel: (B, C).
        tokens: (B, L, C).

    Returns:
        (B, L), each in [sigmoid(-1), sigmoid(1)].
    """
    # Sums of products stay fp32 under autocast, unlike a matrix product: bf16 would choose other tokens.
    products = (tokens * F.normalize(kernel, dim=-1)[:, None]).sum(-1)
    lengths: Tensor = torch.linalg.vector_norm(tokens, dim=-1)
    return (products / lengths.clamp(min=1e-8)).sigmoid()


def top_k(scores: Tensor, k_ratio: float) -> tuple[Tensor, Tensor]:
    """The k_j = L_j * k_ratio highest scores, at least one, and their indices (MST eq. 4).

    Args:
        scores: (B, L).
        k_ratio: share of the tokens to keep.

    Returns:
        (B, K) scores in descending order and (B, K) int64 indices.
    """
    return scores.topk(max(1, int(scores.shape[1] * k_ratio)))


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, L, C) at index (B, K), as (B, K, C)."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))


def straight_through(scores: Tensor) -> Tensor:
    """A factor that is 1 forward, and hands its gradient to the scores.

    Multiplied with gathered tokens it is the one-hot product S_j^k f_j (MST eq. 5) without the matrix: the
    same values, and the same gradient with respect to s, which s / s.detach() would scale by 1 / s.
    """
    return 1 + (scores - scores.detach())  # the bracket is exactly zero


def chosen_scale(scores: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The scale whose selected tokens resemble the kernel most, per sample (MST section III-B).

    Args:
        scores: the selected scores of each of J scales, (B, K_j).

    Returns:
        (B,) int64, the chosen scale, and (B, J), the mean scores that decided.
    """
    means = torch.stack([each.mean(1) for each in scores], dim=1)
    return means.argmax(1), means
