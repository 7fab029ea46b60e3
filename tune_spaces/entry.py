"""Where clicks enter the ViT, and how many fusion modules follow: what a click costs against what it buys.

For `--objectives noc90 gflops_per_click`. Entry 12, after all blocks, has a space of its own: `late`.
"""

SPACE = {
    "model.click_entry": {"ordered": (0, 3, 6, 8, 9)},
    "model.fusion_stages": {"ordered": (1, 2, 3)},
}
