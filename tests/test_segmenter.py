"""SAM 2.1 video as an optional source of masks."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scene import Scene

from semvc.backbones.segmenter import Segmenter
from semvc.errors import ModelError

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="needs transformers: pip install semvc[masks]",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SAM 2.1 video model of the real classes, tiny and with random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    side = 64
    config = transformers.Sam2VideoConfig(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 16,
                "image_size": [side, side],
                "embed_dim_per_stage": [16, 32, 64, 128],
                "num_attention_heads_per_stage": [1, 2, 4, 8],
                "blocks_per_stage": [1, 1, 2, 1],
                "window_positional_embedding_background_size": [2, 2],
                "window_size_per_stage": [4, 2, 4, 2],
                "global_attention_blocks": [3],
            },
            "backbone_channel_list": [128, 64, 32, 16],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 128,
        },
        prompt_encoder_config={"hidden_size": 128, "image_size": side, "mask_input_channels": 8},
        mask_decoder_config={"hidden_size": 128, "mlp_dim": 32, "iou_head_hidden_dim": 32},
        image_size=side,
        memory_attention_hidden_size=128,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_num_layers=1,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=128,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=128,
        memory_fuser_embed_dim=128,
        memory_fuser_intermediate_dim=32,
    )
    place = tmp_path_factory.mktemp("sam")
    transformers.Sam2VideoModel(config).save_pretrained(place)
    return place


@needs_transformers
def test_objects_keep_their_ids_and_the_frames_their_size(folder: Path) -> None:
    frames, balls = Scene(80, 48, 4).render()
    prompts = np.zeros((4, 48, 80), np.uint8)
    prompts[1][balls[1, 0] > 0] = 3
    prompts[2][balls[2, 1] > 0] = 5
    segmenter = Segmenter(folder)
    ids = segmenter.follow(frames, prompts)
    assert ids.shape == prompts.shape
    assert ids.dtype == np.uint8
    assert set(np.unique(ids)) <= {0, 3, 5}
    assert np.array_equal(ids, segmenter.follow(frames, prompts))


@needs_transformers
def test_the_shown_mask_comes_back_in_its_frame(folder: Path) -> None:
    frames, balls = Scene(64, 64, 3).render()
    prompts = (balls[:, 0] * np.array([0, 2, 0], np.uint8)[:, None, None]).astype(np.uint8)
    ids = Segmenter(folder).follow(frames, prompts)
    both = (ids[1] == 2) & (prompts[1] == 2)
    assert both.sum() > 0.9 * ((ids[1] == 2) | (prompts[1] == 2)).sum()


@needs_transformers
def test_nothing_is_followed_without_a_prompt(folder: Path) -> None:
    frames = Scene(64, 48, 2).render()[0]
    assert not Segmenter(folder).follow(frames, np.zeros((2, 48, 64), np.uint8)).any()


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json|transformers"):
        Segmenter(tmp_path)
