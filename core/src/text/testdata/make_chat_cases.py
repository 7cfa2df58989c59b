"""Writes chat_cases.json: chat templates rendered by transformers, which chat_template.rs must render byte for byte.

    pip install transformers jinja2 && python make_chat_cases.py [DIRECTORY with tokenizers]

Templates with a name of their own are those published with the models, or written here to use what such templates
use; those of the directory stay there and only the rendered text is stored.
"""

import json
import sys
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

USER = [{"role": "user", "content": "  Is <b>this</b> film good?\nAnswer \"Yes\" or 'No' – {text} {{ x }}.\n "}]
SHORT = [{"role": "user", "content": "Hi"}]
TURNS = SHORT + [{"role": "assistant", "content": " Hello. "}, {"role": "user", "content": "And now?\n"}]
SYSTEM = [{"role": "system", "content": "Be short."}] + SHORT
CONVERSATIONS = [USER, TURNS, SYSTEM]

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

TEMPLATES = {
    "llama-3": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "mistral-v1": "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    "gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "qwen-2": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "llama-2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "phi-3": "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    "reversed turns": """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and message.reasoning_content)) %}
        {{- '<think>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
    "continued lines": """{%- set system = "First.\\
Second.\\
\\
Third: \\"x\\"." %}\\
{{ bos_token }}{{ system }}
{%- set ns = namespace(kept=[]) %}
{%- for message in messages %}
    {%- if message["role"] not in ["tool"] and not message.get("tool_calls") %}
        {%- set ns.kept = ns.kept + [message["role"]] %}
    {%- endif %}
{%- endfor %}
{{ ns.kept }} {{ ns.kept | length }}
{{- messages[-1].content.removeprefix("H").removesuffix("i") }}{{ "a-b-c".rsplit("-", 1) }}{{ "a-b-c".rsplit("-")[0] }}
""",
    "python values": """{{ none }} {{ true }} {{ [1, 'a', none, {'k': "it's"}] }} {{ 1.5 }} {{ tools }} {{ messages | tojson }}
{{ messages | tojson(indent=2) }} {{ {'b': 1, 'a': [true, none, 'ü"\\n<']} | tojson }} {{ unknown }}
    {% if not tools is defined or tools is none %}
  no tools
    {% endif %}
{%- for message in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}
  {% generation %}
{{ message.role | upper }}: {{ message.content.strip().replace('i', 'I') ~ unk_token }}{% endgeneration %}

{% if loop.index > 2 %}{% break %}{% endif %}
{%- endfor %}
{% macro turn(role, text='-') %}<{{ role }}|{{ text | trim }}>{% endmacro %}
{{ turn('user', messages[-1]['content']) }}{{ turn(role='model') }}
{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ messages[0].get('name', 'none given') }} {{ dict(a=1).a }} {{ 'x' if messages[0].name is defined else 'y' }}
{{ '%s-%d' | format('a', 3) }} {{ "a,b".split(",") | last }} {{ 7 // 2 }} {{ 7 / 2 }} {{ 2 ** 3 }} {{ range(3) | list }}
""",
}


def cases(name, template, tokens, stored):
    for messages in CONVERSATIONS:
        case = {"name": name, "messages": messages, "tokens": tokens}
        if stored:
            case["template"] = template
        try:
            rendered, _ = render_jinja_template(
                [messages], chat_template=template, add_generation_prompt=True, **tokens
            )
            case["expected"] = rendered[0]
        except Exception as error:
            case["error"] = str(error)
        yield case


def main():
    out = []
    for name, template in TEMPLATES.items():
        out += cases(name, template, TOKENS, True)
    for directory in map(Path, sys.argv[1:2]):
        for path in sorted(directory.iterdir()):
            config = json.loads((path / "tokenizer_config.json").read_text())
            names = ["bos_token", "eos_token", "unk_token", "pad_token"]
            text = lambda token: token["content"] if isinstance(token, dict) else token
            tokens = {key: text(config[key]) for key in names if config.get(key)}
            out += cases(path.name, config["chat_template"], tokens, False)
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in out)
    Path(__file__).with_name("chat_cases.json").write_text(f"[\n{lines}\n]\n")


main()
