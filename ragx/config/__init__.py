"""The YAML configuration shared by all commands."""

from ragx.config.schema import Config, Lora, dump_config, load_config

__all__ = ["Config", "Lora", "dump_config", "load_config"]
