"""Templates of the kinds that public model families have, small and of our own, and a tokenizer with their control tokens."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = ["Two lines.\n\nAnd one more.\n\n\n", "user\n\nassistant\n\nDoes it help? It does.\n\n"] * 4
CONTROL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|start|>", "<|end|>", "<|return|>", "<|channel|>", "<|message|>",
           "<|user|>", "<|assistant|>", "<|system|>", "<start_of_turn>", "<end_of_turn>"]  # fmt: skip

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA2 = """{%- set said = namespace(system='') -%}
{%- for m in messages -%}
{%- if m.role == 'system' -%}{%- set said.system = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' -%}
{%- elif m.role == 'user' -%}{{- '<s>[INST] ' + said.system + m.content.strip() + ' [/INST]' -}}{%- set said.system = '' -%}
{%- else -%}{{- ' ' + m.content.strip() + ' </s>' -}}{%- endif -%}
{%- endfor -%}"""
MISTRAL = """{{- '<s>' -}}
{%- for m in messages -%}
{%- if m.role == 'system' -%}{{- raise_exception('Only user and assistant roles are supported!') -}}
{%- elif m.role == 'user' -%}{{- '[INST] ' + m.content + '[/INST]' -}}
{%- else -%}{{- ' ' + m.content + '</s>' -}}{%- endif -%}
{%- endfor -%}"""
MISTRAL_V3 = """{{- '<s>' -}}
{%- set system = messages[0].content if messages[0].role == 'system' else '' -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{- '[INST] ' -}}{%- if loop.last or loop.index0 == messages | length - 2 -%}
{{- system + '\n\n' if system else '' -}}{%- endif -%}{{- m.content + '[/INST]' -}}
{%- elif m.role == 'assistant' -%}{{- ' ' + m.content | trim + '</s>' -}}{%- endif -%}
{%- endfor -%}"""
QWEN3 = """{%- set last = namespace(asked=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set last.asked = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{%- set content = m.content -%}{%- set thought = m.reasoning_content or '' -%}
{%- if '</think>' in content -%}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\n') -%}
{%- endif -%}
{{- '<|im_start|>assistant\n' -}}
{%- if loop.index0 > last.asked -%}{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' -}}{%- endif -%}
{{- content + '<|im_end|>\n' -}}
{%- else -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"""
GPT_OSS = """{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{%- if loop.last and m.thinking -%}{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' -}}{%- endif -%}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last else '<|end|>') -}}
{%- else -%}{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}"""
PHI3 = """{%- for m in messages -%}{{- '<|' + m.role + '|>\n' + m.content + '<|end|>\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}{%- else -%}{{- '<|endoftext|>' -}}{%- endif -%}"""
GEMMA = """{{- '<s>' -}}
{%- if messages[0].role == 'system' -%}{%- set first = messages[0].content + '\n\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set first = '' -%}{%- set turns = messages -%}{%- endif -%}
{%- for m in turns -%}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (first if loop.first else '') + m.content | trim -}}
{{- '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}"""
DEEPSEEK_R1 = """{{- '<s>' -}}{%- for m in messages -%}{%- if m.role == 'system' -%}{{- m.content -}}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{- '<|user|>' + m.content -}}
{%- elif m.role == 'assistant' -%}{{- '<|assistant|>' + m.content.split('</think>')[-1] + '</s>' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"""


def byte_level(texts: list[str], control: list[str], **names: str) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=control, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def tokenizer(template: str, *, rstrip: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer with a template; the control tokens in `rstrip` swallow the white space behind them, as Phi-3.5's do."""
    tokens = [AddedToken(token, special=True, rstrip=token in rstrip, normalized=False) for token in CONTROL]
    made = byte_level(TEXTS, [], pad_token="<|endoftext|>", eos_token="</s>")
    made.add_special_tokens({"additional_special_tokens": tokens})  # type: ignore[arg-type]
    made.chat_template = template
    return made
