"""Where clicks enter the ViT, and how many fusion modules follow: what a click costs against what it buys.

For `--objectives noc90 gflops`. Later entries have room for fewer fusion modules: they need settings of
their own (`docs/model.md`).
"""

SPACE = {
    "model.click_entry": {"ordered": (0, 3, 6, 8, 9)},
    "model.fusion_stages": {"ordered": (1, 2, 3)},
}
