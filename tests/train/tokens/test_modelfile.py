"""Ollama's Modelfile says in Go's template language what the Jinja template says, for the families it knows, and refuses the others.

A small reader of the part of Go's language that is used here renders it, and so does Go itself where that is installed.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from rounds.data_prep.errors import UserError
from rounds.train.tokens import modelfile

SHIPPED = (Path(__file__).resolve().parents[3] / "recipes" / "chat_templates" / "llama3.jinja").read_text()
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_DEFAULT = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are \"Smol\", {friendly}.<|im_end|>\n' }}{% endif %}"
    + CHATML.removeprefix("{% for message in messages %}")
)
PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
    "{% else %}{{ eos_token }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set prefix = messages[0]['content'] + '\n\n' -%}"
    "{%- set rest = messages[1:] -%}{%- else -%}{%- set prefix = '' -%}{%- set rest = messages -%}{%- endif -%}"
    "{%- for message in rest -%}{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' "
    "+ (prefix if loop.first else '') + message['content'] | trim + '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + "
    "message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}{{- bos_token }}"
    "{%- for message in loop_messages %}"
    "{%- if message['role'] == 'user' %}{%- if loop.last and system_message is defined %}"
    "{{- '[INST] ' + system_message + '\n\n' + message['content'] + '[/INST]' }}{%- else %}{{- '[INST] ' + message['content'] + "
    "'[/INST]' }}{%- endif %}{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)
FAMILIES = {
    "shipped": (SHIPPED, "first"),
    "llama 3": (LLAMA3, "first"),
    "chatml": (CHATML, "first"),
    "chatml with a default": (WITH_DEFAULT, "first"),
    "phi 3": (PHI3, "first"),
    "gemma 2": (GEMMA, "none"),
    "gemma 3": (GEMMA3, "first"),
    "llama 2": (LLAMA2, "first"),
    "mistral": (MISTRAL, "last"),
}
TALK = [
    {"role": "user", "content": 'What is "aspirin" for?\n- pain\n- {{ .System }} `x`'},
    {"role": "assistant", "content": "For pain,\nfever; 100 % \\o/ — ünïcode."},
    {"role": "user", "content": "And {{heparin}}?"},
    {"role": "assistant", "content": "For clots."},
    {"role": "user", "content": "Thanks. Dose?"},
]
SYSTEM = {"role": "system", "content": "You are a nurse.\nBe <brief>, 'please'."}
OTHERS = {
    "thinks": CHATML.replace("message['content'] +", "message['content'].split('</think>')[-1] + ('~' if not loop.last else '') +"),
    "counts": CHATML.replace("message['role'] +", "message['role'] ~ loop.index +"),
    "asks twice": CHATML.replace("+ message['content']", "+ message['content'] + message['content']"),
}


def tokenizer(template: str, adds: bool = True) -> PreTrainedTokenizerFast:
    """Make a tokenizer that begins each text with its bos by itself, or does not."""
    plain = Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, "<unk>": 2}, merges=[], unk_token="<unk>"))
    if adds:
        plain.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.chat_template = template
    return made


def conversations(system: str) -> list[list[dict[str, str]]]:
    talks = [TALK[:length] for length in (1, 3, 5)]
    return talks if system == "none" else [*talks, *([SYSTEM, *talk] for talk in talks)]


def go_subset(template: str, messages: list[dict[str, str]]) -> str:
    """Render what is used of Go's template language, with the fields that Ollama gives."""
    tokens: list[str] = []
    for literal, dash, inside in re.findall(r'(.*?)(?:\{\{(-?)\s*((?:"(?:[^"\\]|\\.)*"|[^"}])*?)\s*\}\}|$)', template, re.DOTALL):
        tokens.append("'" + (literal.rstrip() if dash else literal))
        tokens.append(inside)
    said = "\n\n".join(each["content"] for each in messages if each["role"] == "system")

    def value(word: str, at: int) -> Any:
        known: dict[str, Any] = {".System": said, "$.System": said, "$last": at == len(messages) - 1}
        if at >= 0:
            known |= {".Role": messages[at]["role"], ".Content": messages[at]["content"]}
        return known[word]

    def holds(condition: str, at: int) -> bool:
        words = condition.split()
        if words[0] == "eq":
            return value(words[1], at) == json.loads(words[2])
        if words[0] == "not":
            return not value(words[1], at)
        return all(value(word, at) for word in (words[1:] if words[0] == "and" else words))

    def block(place: int, at: int, shown: bool) -> tuple[str, int]:
        """Render up to the `else` or `end` that closes this block; returns its text and where that stands."""
        text = ""
        while place < len(tokens):
            token = tokens[place]
            if token.startswith("'"):
                text += token[1:] if shown else ""
            elif token.startswith("range "):
                begin = place + 1
                for each in range(len(messages)) if shown else []:
                    text += block(begin, each, True)[0]
                _, place = block(begin, 0, False)
            elif token.startswith("if "):
                condition, taken = token.removeprefix("if "), False
                while True:
                    now = shown and not taken and (condition == "" or holds(condition, at))
                    inner, place = block(place + 1, at, now)
                    text, taken = text + inner, taken or now
                    if tokens[place] == "end":
                        break
                    condition = tokens[place].removeprefix("else").strip().removeprefix("if ")
            elif token == "end" or token.startswith("else"):
                return text, place
            elif token and not token.startswith("$last :="):
                text += (json.loads(token) if token.startswith('"') else value(token, at)) if shown else ""
            place += 1
        return text, place

    return block(0, -1, True)[0]


def go_itself(folder: Path) -> Callable[[str, list[list[dict[str, str]]]], list[str]]:
    """Render in Go, given what Ollama gives a template."""
    (folder / "render.go").write_text("""package main
import ("encoding/json"; "os"; "strings"; "text/template")
type Message struct { Role, Content string }
func main() {
	var in struct { Template string; Talks [][]Message }
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil { panic(err) }
	made := template.Must(template.New("").Parse(in.Template))
	var out []string
	for _, talk := range in.Talks {
		var system []string
		for _, each := range talk { if each.Role == "system" { system = append(system, each.Content) } }
		var text strings.Builder
		given := map[string]any{"Messages": talk, "System": strings.Join(system, "\\n\\n"), "Response": ""}
		if err := made.Execute(&text, given); err != nil { panic(err) }
		out = append(out, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(out)
}
""")
    subprocess.run(["go", "build", "-o", "render", "render.go"], cwd=folder, check=True)

    def render(template: str, talks: list[list[dict[str, str]]]) -> list[str]:
        told = json.dumps({"Template": template, "Talks": talks})
        return json.loads(subprocess.run([folder / "render"], input=told, capture_output=True, text=True, check=True).stdout)

    return render


def go_template(text: str) -> str:
    return text.partition('TEMPLATE """')[2].partition('"""')[0]


def wanted(made: PreTrainedTokenizerFast, talk: list[dict[str, str]]) -> str:
    """What the model is asked with, less the beginning of the text, which is the runtime's."""
    return str(made.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)).removeprefix("<s>")


@pytest.mark.parametrize("name", FAMILIES)
def test_it_writes_conversations_as_the_chat_template_does(name: str):
    template, system = FAMILIES[name]
    made = tokenizer(template)
    assert modelfile.shape(made).system == system
    written = go_template(modelfile.write(made, ["</s>"], {}))
    for talk in conversations(system):
        assert go_subset(written, talk) == wanted(made, talk)


def test_a_beginning_that_only_the_template_writes_is_kept():
    """As of SmolLM2, whose bos is `<|im_start|>`: taken from the first turn, the model answers otherwise."""
    made = tokenizer(CHATML.replace("<|im_start|>", "<s>"), adds=False)
    written = go_template(modelfile.write(made, [], {}))
    for talk in conversations("first"):
        assert go_subset(written, talk) == made.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)


@pytest.mark.skipif(not shutil.which("go"), reason="no Go here; the reader above checks the same texts")
def test_go_itself_writes_the_same(tmp_path: Path):
    render = go_itself(tmp_path)
    for template, system in FAMILIES.values():
        made = tokenizer(template)
        talks = conversations(system)
        assert render(go_template(modelfile.write(made, [], {})), talks) == [wanted(made, talk) for talk in talks]


@pytest.mark.parametrize("name", OTHERS)
def test_a_template_that_writes_anything_else_is_refused(name: str):
    with pytest.raises(UserError, match=r"cannot be written for Ollama.*export\.modelfile"):
        modelfile.shape(tokenizer(OTHERS[name]))


def test_what_stands_in_the_file():
    lines = modelfile.write(tokenizer(SHIPPED), ["<|eot_id|>", 'a"b'], {"temperature": 0.6, "top_k": 50}).splitlines()
    assert lines[1] == "FROM ./model.gguf" and "ollama create" in lines[0]
    assert lines[-4:] == ['PARAMETER stop "<|eot_id|>"', r'PARAMETER stop "a\"b"', "PARAMETER temperature 0.6", "PARAMETER top_k 50"]
    assert "takes no system message" in modelfile.write(tokenizer(GEMMA), [], {})
