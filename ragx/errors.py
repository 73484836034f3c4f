"""Everything a user can be told. `ragx.cli` prints the message on one line and exits with code 2.

RagxError
  ConfigError          the configuration file or an override
  DataError            documents or questions
  ArtifactError        a file ragx wrote, or a model it was pointed to
    StaleIndexError    an artefact made from something else than what is configured now
"""

import errno

_MEMORY = ("DefaultCPUAllocator", "Cannot allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch says in a plain RuntimeError when there is no memory."""


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of its GPU; only for the second does torch have an exception, which is
    known by its name here, for nothing above the command line may import torch."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY)
