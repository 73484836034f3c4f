"""Opening a generator of either kind, and wrapping it for training."""

from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from ragx.errors import ArtifactError, ConfigError
from ragx.models import loading, require_tokenizer, require_weights
from ragx.rag.causal import CausalGenerator
from ragx.rag.generator import Generator
from ragx.rag.packing import PLAIN_UP_TO
from ragx.rag.prompts import Prompt, RagFormat
from ragx.rag.seq2seq import Seq2SeqGenerator


def load_generator(
    folder: Path,
    prompt: Prompt,
    max_answer_tokens: int,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    allow_pickle: bool = False,
    adapter: Path | None = None,
) -> Generator:
    """Load a causal or encoder-decoder generator, with a LoRA adapter when one is given.

    Raises:
        ArtifactError: the folder holds none, its architecture is unsupported, or its context is too short; or its
            tokenizer has tokens which the model lacks.
        ConfigError: transformers' RAG input for a generator without an encoder.
    """
    require_weights(folder, allow_pickle)
    require_tokenizer(folder)
    source = {"trust_remote_code": False, "local_files_only": True}
    with loading(folder, "cannot be loaded as a generator"):
        config = AutoConfig.from_pretrained(folder, **source)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = auto.from_pretrained(folder, dtype=dtype, use_safetensors=None if allow_pickle else True, **source)
        tokenizer = AutoTokenizer.from_pretrained(folder, **source)
        model = model if adapter is None else peft.PeftModel.from_pretrained(model, adapter)
    if isinstance(prompt, RagFormat) and not config.is_encoder_decoder:
        raise ConfigError(
            f"rag.input_format: {folder} has no encoder, as the generators of transformers' RAG have; say prompt"
        )
    vocabulary = model.get_input_embeddings().num_embeddings
    if (tokens := max(tokenizer.get_vocab().values()) + 1) > vocabulary:
        raise ArtifactError(
            f"{folder}: its tokenizer has {tokens} tokens, its model knows {vocabulary}: they are not of one model"
        )
    limit = getattr(config, "max_position_embeddings", None)
    wanted = prompt.max_input_tokens + (0 if config.is_encoder_decoder else max_answer_tokens)
    if limit is not None and wanted > limit:
        raise ArtifactError(
            f"{folder}: its context holds {limit} tokens, {wanted} are configured; lower generator.max_input_tokens"
        )
    kind = Seq2SeqGenerator if config.is_encoder_decoder else CausalGenerator
    generator = kind(model.to(device).eval(), tokenizer, prompt, max_answer_tokens)
    _check_head(generator, str(folder))
    return generator


def add_lora(generator: Generator, *, rank: int, alpha: int) -> None:
    """Freeze the generator and wrap it with trainable low-rank adapters in all its linear layers (Hu et al. 2021).

    Without dropout: the posterior and the gradient come from two passes that must see the same model.
    """
    task = "SEQ_2_SEQ_LM" if generator.base.config.is_encoder_decoder else "CAUSAL_LM"
    lora = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type=task)
    adapted = peft.get_peft_model(generator.base, lora).eval()
    for config in adapted.peft_config.values():
        config.target_modules = sorted(config.target_modules)  # a set, saved in another order every time
    generator.model = adapted


def choose_attention(generator: Generator, dtype: torch.dtype, longest: int) -> None:
    """Attend by plain products instead of torch's fused attention where training on rows of at most `longest` tokens is
    faster so: in bfloat16 on a processor.
    """
    if generator.device.type == "cpu" and dtype == torch.bfloat16 and longest <= PLAIN_UP_TO:
        generator.base.set_attn_implementation("eager")


def merged(generator: Generator) -> Any:
    """The transformers model with the adapter, where there is one, added to its weights; the generator ends with it."""
    wrapped: Any = generator.model
    return wrapped if wrapped is generator.base else wrapped.merge_and_unload()


def _check_head(generator: Generator, name: str) -> None:
    """Compare our projection with the model's own logits on a few tokens."""
    ids = torch.tensor([[generator.pad_id, *sorted(generator.stop_ids)[:1]]], device=generator.device)
    with torch.no_grad():
        extra = {"decoder_input_ids": ids} if generator.base.config.is_encoder_decoder else {}
        output = generator.base(input_ids=ids, output_hidden_states=True, **extra)
        states = output.decoder_hidden_states if extra else output.hidden_states
        generator.calibrate(states[-1], output.logits, name)
