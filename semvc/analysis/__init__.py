"""Encoder-side analysis of a clip: camera trajectory, foreground masks and coarse depth.

Nothing here is normative: a stream says what was found, not how. numpy and OpenCV; methods that
need torch live in `semvc.nets` and `semvc.backbones` and are imported on use.
"""
