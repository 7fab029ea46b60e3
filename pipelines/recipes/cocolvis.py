"""Experiments on COCO+LVIS: the paper's, and its model in other sizes."""

from mst.config import Config
from mst.overrides import override


def mst_base_cocolvis() -> Config:
    """Train MST-base on COCO+LVIS with the paper's settings (section IV-A).

    python pipelines/prepare.py --root /data/coco --out /data/coco/cocolvis \\
        lvis:annotations/lvis_v1_train.json coco:annotations/instances_train2017.json \\
        panoptic:annotations/panoptic_train2017.json
    python pipelines/train.py --recipe mst_base_cocolvis --data.root /data/coco --num-workers 6 --use-gpu

    Six GPUs of 24 GB; the paper took 72 hours on six RTX 3090. It reports (table I, "ViT-B+MST+CL") NoC@90 of
    1.48 on GrabCut, 1.50 on Berkeley, 4.55 on DAVIS, and NoC@85/90 of 3.03/5.11 on SBD, 2.08/2.85 on
    COCO_MVal, 1.69/1.90 on Pascal VOC.

    `docs/model.md` tells setting by setting what the paper says, what it leaves open (batch, weight decay,
    precision, colours, initial weights), and what is chosen otherwise: it says "focal loss", and this is
    RITM's normalized one. `--loss.normalized false` is the plain one.
    """
    return override(
        Config(),
        {
            "data.train": ["index:cocolvis"],
            "data.val": ["coco:annotations/instances_val2017.json"],
            "data.loader_workers": 8,
            "train.init": "timm:vit_base_patch16_224.mae",
            "train.checkpoint_every": 500,  # some eight minutes
        },
    )


def mst_base_cocolvis_no_cl() -> Config:
    """Train MST-base without the contrastive loss, the paper's ablation.

    python pipelines/train.py --recipe mst_base_cocolvis_no_cl --data.root /data/coco \\
        --num-workers 6 --use-gpu

    Data, GPUs and hours of `mst_base_cocolvis`. The paper reports (table I, "ViT-B+MST") NoC@90 of 1.52 on
    GrabCut, 1.77 on Berkeley, 4.82 on DAVIS, and NoC@85/90 of 3.03/5.20 on SBD, 2.11/2.88 on COCO_MVal,
    2.05/2.37 on Pascal VOC.
    """
    return override(mst_base_cocolvis(), {"loss.contrastive": 0})


def mst_base_mlp_cocolvis() -> Config:
    """Train MST-base with an MLP after each attention of its fusion modules: the size that the paper counts.

    python pipelines/train.py --recipe mst_base_mlp_cocolvis --data.root /data/coco --num-workers 6 --use-gpu

    Table II gives MST-B 1.96 times the parameters and 2.14 times the operations of its baseline. Attentions
    and MLPs of each scale's own give 1.88 and 2.10 times those of `simpleclick_base_cocolvis`; the paper
    does not tell what its modules hold. Data and GPUs of `mst_base_cocolvis`; 127 hours, derived from its 72
    by FLOPs (164.7 of 93.2 GMAC). `benchmarks.studies.ablation` has an arm `mst_cl_mlp`.
    """
    return override(mst_base_cocolvis(), {"model.fusion_mlp_ratio": 4, "model.fusion_per_scale": True})


def simpleclick_base_cocolvis() -> Config:
    """Train the baseline, SimpleClick-ViT-B: no extra scales, windows of 14 x 14 tokens.

    python pipelines/train.py --recipe simpleclick_base_cocolvis --data.root /data/coco \\
        --num-workers 6 --use-gpu

    or take the weights that are public, which fit it:

    python pipelines/initialize.py --recipe simpleclick_base_cocolvis \\
        --train.init simpleclick.pth --out runs/public

    Data and GPUs of `mst_base_cocolvis`; 61 hours, derived from its 72 by FLOPs (78.6 of 93.2 GMAC). The
    paper reports (table I) NoC@90 of 1.48 on GrabCut, 1.97 on Berkeley, 5.06 on DAVIS, and NoC@85/90 of
    3.43/5.62 on SBD, 2.18/2.92 on COCO_MVal, 2.06/2.38 on Pascal VOC.
    """
    return override(mst_base_cocolvis(), {"model.patch_sizes": [], "model.window": 14})


def mst_small_cocolvis() -> Config:
    """Train MST-small, from the ViT-S of DINOv2: MAE has none.

    python pipelines/train.py --recipe mst_small_cocolvis --data.root /data/coco --num-workers 6 --use-gpu

    Data and GPUs of `mst_base_cocolvis`; 21 hours, derived from its 72 by FLOPs (27.4 of 93.2 GMAC). Not in
    the paper, which has no model of this size.
    """
    return override(
        mst_base_cocolvis(),
        {
            "model.size": "small",
            "model.layer_scale": True,
            "model.final_norm": True,
            "train.init": "timm:vit_small_patch14_dinov2.lvd142m",
        },
    )


def mst_large_cocolvis() -> Config:
    """Train MST-large: ViT-L with the patches of base, 16 being those of MAE's ViT-L as well.

    python pipelines/train.py --recipe mst_large_cocolvis --data.root /data/coco --num-workers 6 --use-gpu

    Data and GPUs of `mst_base_cocolvis` (four images take 11 GiB, by the memory of a CPU); 225 hours, derived
    from its 72 by FLOPs (291 of 93.2 GMAC). Not in the paper. Of SimpleClick-ViT-L it reports NoC@85/90 of
    1.81/2.57 on DAVIS-585 with its initial masks and 3.39/4.88 without (table III), 7.27/9.78 on LoveDA
    (table IV).
    """
    return override(
        mst_base_cocolvis(), {"model.size": "large", "train.init": "timm:vit_large_patch16_224.mae"}
    )


def mst_base_1024() -> Config:
    """Train MST-base at 1024 px, with patches of 32 in place of 28, which does not divide it.

    python pipelines/train.py --recipe mst_base_1024 --data.root /data/coco --num-workers 6 --use-gpu \\
        --train.init /runs/mst_base/… --train.epochs 20

    starts from a checkpoint of `mst_base_cocolvis`; without the second line, from the weights that that one
    starts from. 32 is the nearest to 28 of the sizes that divide 1024 and are not the base's 16.

    The same data. On six GPUs of 24 GB each passes its four images one after the other (`train.micro_batches`
    24, for up to 24 workers) and computes the blocks' activations again in backward (`train.recompute`). One
    image takes 4 GiB then and 6 GiB without, by the memory of a CPU: `--train.recompute false` is faster
    where that fits. 20 epochs take 64 hours, all 230 take 730, derived from the 72 of `mst_base_cocolvis` by
    FLOPs (775 of 93.2 GMAC, and a fifth more to recompute). Not in the paper.
    """
    return override(
        mst_base_cocolvis(),
        {
            "model.image_size": 1024,
            "model.patch_sizes": [8, 32],
            "train.micro_batches": 24,
            "train.recompute": True,
        },
    )
