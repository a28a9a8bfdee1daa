"""Extractors with tiny random networks of the real classes, saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from semvc.backbones.softedges import EdgeNetwork

SPECIAL = (
    *("<pad>", "<eos>", "<unk>", "<image>", "<fake_token_around_image>", "<global-img>"),
    *("<end_of_utterance>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
VOCABULARY = len(SPECIAL) + 96
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer with one token a letter, and the special ones of all models."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [*SPECIAL, *(chr(c) for c in range(32, 127)), "\n"]
    made = Tokenizer(models.WordLevel({t: i for i, t in enumerate(letters)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[3:]),
    ).save_pretrained(folder)


def write_captioner(folder: Path, kind: str) -> Path:
    """Write a captioner of kind blip, smolvlm or qwen3_vl, and return its folder."""
    import transformers

    torch.manual_seed(1)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 16,
    }
    if kind == "blip":
        text = {**_TEXT, "projection_dim": 32, "encoder_hidden_size": 32, "sep_token_id": 1}
        config = transformers.BlipConfig(
            text_config=text, vision_config={**vision, "image_size": 64}, projection_dim=32
        )
        model = transformers.BlipForConditionalGeneration(config)
    elif kind == "smolvlm":
        config = transformers.SmolVLMConfig(
            text_config={**_TEXT, "model_type": "llama"},
            vision_config={**vision, "image_size": 64},
            scale_factor=2,
            image_token_id=SPECIAL.index("<image>"),
            pad_token_id=0,
        )
        model = transformers.SmolVLMForConditionalGeneration(config)
    else:
        rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
        config = transformers.Qwen3VLConfig(
            text_config={**_TEXT, "head_dim": 8, "rope_parameters": rope},
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 32,
                "depth": 2,
                "num_heads": 2,
                "patch_size": 16,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "out_hidden_size": 32,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0],
            },
            image_token_id=SPECIAL.index("<|image_pad|>"),
            video_token_id=SPECIAL.index("<|video_pad|>"),
            vision_start_token_id=SPECIAL.index("<|vision_start|>"),
            vision_end_token_id=SPECIAL.index("<|vision_end|>"),
        )
        model = transformers.Qwen3VLForConditionalGeneration(config)
    model.eval().save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_posers(folder: Path) -> Path:
    """Write RT-DETR in folder/detector and ViTPose in folder/pose, and return the folder."""
    import transformers

    torch.manual_seed(2)
    resnet = transformers.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    detector = transformers.RTDetrConfig(
        backbone_config=resnet,
        encoder_hidden_dim=16,
        encoder_in_channels=[16, 16, 16],
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        num_queries=12,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        num_denoising=0,
        num_labels=3,
        id2label={0: "dog", 1: "person", 2: "kite"},
        hidden_expansion=0.5,
    )
    transformers.RTDetrForObjectDetection(detector).eval().save_pretrained(folder / "detector")
    vit = transformers.VitPoseBackboneConfig(
        image_size=[64, 48],
        patch_size=[16, 16],
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_experts=1,
        out_indices=[1],
    )
    pose = transformers.VitPoseConfig(
        backbone_config=vit, num_labels=17, use_simple_decoder=True, scale_factor=4
    )
    transformers.VitPoseForPoseEstimation(pose).eval().save_pretrained(folder / "pose")
    return folder


def write_edges(path: Path) -> Path:
    """Write a network for soft edges that answers to contrast, and return its file."""
    torch.manual_seed(3)
    network = EdgeNetwork(16)
    state = {n: torch.randn_like(p) * 0.2 for n, p in network.state_dict().items()}
    state = {n: torch.zeros_like(p) if n.endswith("bias") else p for n, p in state.items()}
    state["norm"] = torch.full((1, 3, 1, 1), 120.0)
    save_file(state, path)
    return path
