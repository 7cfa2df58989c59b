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
    "neighbouring turns": """{#- The neighbours of a turn -#}
{% for message in messages %}
    {%- if loop.previtem is defined and loop.previtem.role == message.role %}!{% endif -%}
    {{- loop.index }}/{{ loop.length }}/{{ loop.revindex0 }} {{ loop.cycle('odd', 'even') }} {{ loop.changed(message.role) }}
    {%- if loop.nextitem is defined %} then {{ loop.nextitem['role'] | upper }}{% else %} end{% endif %}

  {% if not loop.first -%} later {%- endif %}|
{% else %}none{% endfor %}
{%- if messages | length > 1 and messages[-2].role != 'user' -%} [{{ messages[-2]['content'].strip() }}] {% endif %}
""",
    "date and tools": """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = true %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%Y") | length | string %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start|>system\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}{{- system_message }}{{- "<|eot|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '\\n\\n'+ message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("no tools here") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant\\n\\n' }}{%- endif %}
""",
    "content parts": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
""",
    "indented json": """{%- set tool = {"name": "f", "parameters": {"b": [1, 2.5, []], "a": {}, "text": "é<&>'\\u2028"}, "none": none, "yes": true} %}
{{ tool | tojson }}
{{ tool | tojson(indent=4) }}
{{ tool | tojson(indent=2) | replace('"', "'") }}
{%- for key, value in tool.items() if value is not none %}
- {{ key }}: {{ value | tojson if value is mapping or value is boolean else value }}
{%- endfor %}
{%- for key, value in tool.parameters | dictsort %} {{ key }}{{ [value] }}{% endfor %} {{ tool.keys() | list | join("/") }} {{ tool | length }} {{ 'name' in tool }}
{{ messages | tojson(indent=1) }}
""",
    "marks of generation": """{%- for message in messages %}
{% if message.role == 'assistant' %}
  {% generation %}
{{ message.content }}<|end|>
  {% endgeneration %}
{% else %}
[{{ message.role }}]{{ message.content -}}
{%  endif  %}
{%- endfor %}
{% if add_generation_prompt %}[assistant]{%- generation -%} {%- endgeneration -%} {% endif %}.
""",
    "blocks and loops": """{% set text %}  {{ messages[0].role }}
  two{% endset %}
[{{ text }}]
{% filter upper %}in upper {{ messages[0].role }}{% endfilter %}

{% raw %}{{ not this }} {% if %}{% endraw %}

{% macro wrap(tag, sep=' ') %}<{{ tag }}>{{ caller() }}{{ sep }}</{{ tag }}>{% endmacro %}
{% call wrap('b') %}called{% endcall %}

    {% for i in range(10, 0, -3) %}{% if i == 4 %}{% continue %}{% endif %}{% if i < 2 %}{% break %}{% endif %}{{ i }},{% endfor %}

    {%+ if true %}kept space{% endif +%}
  x
{% for a, b in [(1, 'x'), (2, 'y')] %}{{ a }}{{ b }}{{ ';' if not loop.last }}{% endfor %}

{% for role in messages | map(attribute='role') | unique %}{{ role }} {% endfor %}
{% with a = 1, b = 'c' %}{{ a ~ b ~ 1.0 ~ none ~ true }}{% endwith %}
""",
}

# One expression each, of the last turn `t`.
EXPRESSIONS = r"""
t.split()
t.split('\n', 1)
t.strip().lower().title()
t | capitalize
t.find('o')
t.count('o')
t | replace('o', '0')
t[:2]
t[-3:]
t[::-1]
t | first
t | last
t | length
'a-b-c'.rsplit('-', 1)
'a-b-c'.partition('-')[2]
'a-b-c'.rpartition('-')[0] + '|' + 'abc'.rpartition('-')[2]
['\xa0', 'a\u2028b', '\u0001']
' x '.lstrip()
'xxay'.strip('xy')
'7'.isdigit()
'ab'.upper()
['b', 'a'] | sort
[3, 1] | max
[1, 2] | sum
'%.2f' | format(1.005)
3.0
10 / 4
-7 // 2
-7 % 3
'12' | int + 1
2.567 | round(1)
'x' * 3
[1] + [2]
1 in [1]
'a' not in 'b'
missing | default('d')
'' | default('e', true)
1 == 1.0
'a' < 'b'
none is none
3 is odd
[] is sequence
{} is mapping
'x' is string
2 is number
"tab\tnew\\"
t | e
['x', none] | reject('none') | list
messages | rejectattr('role', 'in', ['user']) | map(attribute='role') | list
{'k': 1}.get('z')
{'k': 1}.get('k', 2)
messages | selectattr('name', 'defined') | list
""".strip().splitlines()


def cases(name, template, tokens, stored, conversations=CONVERSATIONS):
    for messages in conversations:
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
    for expression in EXPRESSIONS:
        out += cases(expression, "{% set t = messages[-1].content %}{{ " + expression + " }}", TOKENS, True, [TURNS])
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
