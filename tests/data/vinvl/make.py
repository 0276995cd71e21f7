"""Makes tiny.pth and tiny.npz: a narrow VinVL detector with random weights, and what its own project gives with it.

    python -m tests.data.vinvl.make SCENE_GRAPH_BENCHMARK

The argument is a checkout of microsoft/scene_graph_benchmark. Nothing of it is compiled: it takes RoIAlign and NMS from
torchvision. It needs yacs and the like; what it imports and doesn't use here is stood in for.
"""

import sys
import types
from pathlib import Path

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).parent
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.CONV_BODY": "R-50-C4",
    "MODEL.RESNETS.BACKBONE_OUT_CHANNELS": 128,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.RESNETS.NUM_GROUPS": 4,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 2,
    "MODEL.ROI_BOX_HEAD.NUM_CLASSES": 21,
    "MODEL.ROI_ATTRIBUTE_HEAD.NUM_ATTRIBUTES": 12,
    "MODEL.ROI_ATTRIBUTE_HEAD.CLS_EMD_DIM": 16,
    "MODEL.ROI_ATTRIBUTE_HEAD.ATTR_EMD_DIM": 16,
    "MODEL.ROI_ATTRIBUTE_HEAD.MAX_NUM_ATTR_PER_OBJ": 4,
    "MODEL.RPN.PRE_NMS_TOP_N_TEST": 600,
    "MODEL.RPN.POST_NMS_TOP_N_TEST": 60,
    "MODEL.RPN.FORCE_BOXES": False,
    "MODEL.ROI_HEADS.NMS_FILTER": 1,
    "TEST.IGNORE_BOX_REGRESSION": True,
    "TEST.OUTPUT_FEATURE": True,
}
SPREAD = {  # standard deviations of weights by the ends of their names
    "running_mean": 0.1,
    "cls_logits.weight": 0.03,
    "cls_score.weight": 0.02,
    "rpn.head.bbox_pred.weight": 0.004,
    "predictor.bbox_pred.weight": 0.02,
    "cls_embedding.weight": 0.3,
    "attr_score.weight": 0.3,
    "fc_attr.weight": 0.01,
}


def stand_in(checkout: Path) -> None:
    sys.path.insert(0, str(checkout))
    np.float = float  # NumPy had it so when the project was written
    for name in ("maskrcnn_benchmark._C", "einops", "cv2"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["einops"].rearrange = sys.modules["einops"].repeat = None
    import maskrcnn_benchmark

    maskrcnn_benchmark._C = sys.modules["maskrcnn_benchmark._C"]


def network(checkout: Path) -> torch.nn.Module:
    from maskrcnn_benchmark.config import cfg
    from scene_graph_benchmark.AttrRCNN import AttrRCNN
    from scene_graph_benchmark.config import sg_cfg

    cfg.set_new_allowed(True)
    cfg.merge_from_other_cfg(sg_cfg)
    cfg.set_new_allowed(False)
    cfg.merge_from_file(str(checkout / "sgg_configs/vgattr/vinvl_x152c4.yaml"))
    cfg.merge_from_list([part for pair in SMALL.items() for part in pair])
    torch.manual_seed(5)
    model = AttrRCNN(cfg).eval()
    # Only networks of full width do without this convolution.
    model.roi_heads.box.feature_extractor.trans_conv = model.attribute.feature_extractor.trans_conv = None
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("bn3.weight"):
            value.fill_(0.2)
        for end, deviation in SPREAD.items():
            if name.endswith(end):
                value.normal_(std=deviation)
        if "cell_anchors" not in name:
            value.copy_(value.half().float())
    return model


def main(checkout: Path) -> None:
    stand_in(checkout)
    model = network(checkout)
    rng = np.random.default_rng(3)
    blocks = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    rgb = np.asarray(blocks.resize((240, 180), Image.Resampling.BICUBIC))
    mean = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    seen = {}

    def note(name: str):
        return lambda module, given, out: seen.setdefault(name, (given, out)) and None

    model.roi_heads.box.feature_extractor.register_forward_hook(note("features"))
    model.roi_heads.box.predictor.register_forward_hook(note("logits"))
    model.attribute.predictor.register_forward_hook(note("attributes"))
    with torch.no_grad():
        (kept,) = model([torch.tensor(rgb[:, :, ::-1].copy()).permute(2, 0, 1).float() - mean])
    (_, (proposals,)), features = seen["features"]
    np.savez_compressed(
        HERE / "tiny.npz",
        rgb=rgb,
        proposals=proposals.bbox.numpy(),
        features=features.mean((2, 3)).numpy(),
        logits=seen["logits"][1][0].numpy(),
        kept_boxes=kept.bbox.numpy(),
        kept_labels=kept.get_field("labels").numpy(),
        kept_scores=kept.get_field("scores").numpy(),
        kept_features=kept.get_field("box_features").numpy(),
        kept_attributes=torch.softmax(seen["attributes"][1][0], 1).numpy(),
    )
    state = {n: v if "cell_anchors" in n else v.half() for n, v in model.state_dict().items()}
    box, attribute = "roi_heads.box.feature_extractor.", "attribute.feature_extractor."
    state |= {name: state[name.replace(attribute, box)] for name in state if name.startswith(attribute)}
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, HERE / "tiny.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
