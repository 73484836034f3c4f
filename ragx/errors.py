"""Everything a user can be told. `ragx.cli` prints the message on one line and exits with code 2.

RagxError
  ConfigError          the configuration file or an override
  DataError            documents or questions
  ArtifactError        a file ragx wrote, or a model it was pointed to
    StaleIndexError    an artefact made from something else than what is configured now
"""


class RagxError(Exception):
    """Base of all errors with a remedy; the message names the file, the place and what to do."""


class ConfigError(RagxError):
    """The configuration cannot be used. `problems` holds one line for each fault found."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class DataError(RagxError):
    """A document or question file cannot be used."""


class ArtifactError(RagxError):
    """An index, a trained model or a pretrained model is missing, damaged or of another format."""


class StaleIndexError(ArtifactError):
    """An index was built from another corpus, chunking or passage encoder than the configured ones."""
