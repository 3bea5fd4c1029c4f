"""The imports that every model stage needs, made once and before any stage is forked; nothing here starts a thread."""

import datasets  # noqa: F401
import lm_eval.evaluator
import lm_eval.models.huggingface  # noqa: F401
import matplotlib.backends.backend_svg  # noqa: F401
import peft  # noqa: F401
import torch  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from trl import DPOTrainer, SFTTrainer  # noqa: F401

# Builds, and keeps, the patterns of all kinds of models: about a second, which each stage that opens a model would take anew.
get_checkpoint_conversion_mapping("llama")
