"""What each token has to do with the clicks, told to the head directly."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mst.model.patch_embed import Grid

_CHANNELS = 5  # likeness and nearness to positive and to negative clicks, previous mask
_HIDDEN = 64
_REACH = 2.0  # tokens at which nearness has fallen to a half


class ClickContext(nn.Module):
    """Tells the head how the backbone's last tokens relate to what was clicked.

    A plain ViT hears of clicks through its first layer alone, and learns over millions of samples to carry
    them to the last. Here the head is told: for each token its greatest cosine similarity to a clicked token
    of each sign (as MST eq. 3, but for each click and without the sigmoid), how near the nearest click of
    each sign is, and the previous mask. An addition to the paper, off by default (`model.click_context`).

    Args:
        width: channels of the head.
        patch_size: of the tokens, in pixels.
    """

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.fc1 = nn.Linear(_CHANNELS, _HIDDEN)
        self.fc2 = nn.Linear(_HIDDEN, width)

    def forward(self, tokens: Tensor, grid: Grid, clicks: Tensor, prev_mask: Tensor) -> Tensor:
        """Tokens (B, L, C), clicks (B, N, 3) and mask (B, 1, H, W) to a map (B, width, rows, cols)."""
        relations = self.relations(tokens, grid, clicks, prev_mask)
        told: Tensor = self.fc2(F.gelu(self.fc1(relations)))
        return told.view(tokens.shape[0], *grid, -1).permute(0, 3, 1, 2)

    def relations(self, tokens: Tensor, grid: Grid, clicks: Tensor, prev_mask: Tensor) -> Tensor:
        """The five relations of each token, (B, L, 5); all but the last are 0 for a sign without clicks."""
        rows, cols = ((clicks[..., :2] + 0.5) / self.patch_size).unbind(-1)  # (B, N), in tokens
        inside = (rows >= 0) & (rows < grid[0]) & (cols >= 0) & (cols < grid[1])
        index = torch.where(inside, rows.floor() * grid[1] + cols.floor(), 0).long()
        # What all tokens share says nothing of any, and in DINOv2 it is most of them.
        directions = F.normalize((tokens - tokens.mean(1, keepdim=True)).float(), dim=-1)
        clicked = directions.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))
        likeness = (directions @ clicked.mT).float()  # (B, L, N)
        centres = torch.stack(
            torch.meshgrid(*(torch.arange(side, device=tokens.device) + 0.5 for side in grid), indexing="ij"),
            -1,
        ).view(-1, 2)
        squared = (centres[:, :1] - rows[:, None]) ** 2 + (centres[:, 1:] - cols[:, None]) ** 2
        nearness = _REACH / (_REACH + squared.sqrt())
        channels = []
        for relation in (likeness, nearness):
            for label in (1, 0):
                counts = (clicks[..., 2] == label) & inside
                best = relation.masked_fill(~counts[:, None], -torch.inf).amax(-1)
                channels.append(torch.where(counts.any(1, keepdim=True), best, 0))
        channels.append(F.adaptive_avg_pool2d(prev_mask.float(), grid).flatten(1))
        return torch.stack(channels, -1)
