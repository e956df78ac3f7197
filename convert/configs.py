"""The sizes of a checkpoint, whatever its family. Knows no graph."""

from __future__ import annotations

from collections.abc import Mapping

from convert import decoder_config, encoder_config, exported_config
from convert.decoder_config import DecoderConfig
from convert.encoder_config import EncoderConfig
from convert.exported_config import ExportedConfig
from convert.recipe import Architecture

Config = EncoderConfig | DecoderConfig | ExportedConfig


def read(architecture: Architecture, config: Mapping[str, object]) -> Config:
    """Take the sizes from a config.json. Raises BakeError on what no builder can represent."""
    if architecture == Architecture.EXPORTED:
        return exported_config.read(config)
    if architecture in decoder_config.MODEL_TYPES:
        return decoder_config.read(architecture, config)
    return encoder_config.read(architecture, config)
