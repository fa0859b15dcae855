"""Chat templates in the manner of known models, which keep, move, drop or refuse what those do."""

CHATML = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""Turns only: no tools, no tool calls, no reasoning; a content that is a list is written as Python writes it."""

PARTS = (
    "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'text' %}[{{ part.text }}]{% endif %}{% endfor %}"
    "{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""Writes the text of each content part in brackets, so that a test sees the template's own way."""

ONLY_PARTS = (
    "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""Takes no text that is not a part, as the templates of Llava and SmolVLM do."""

THINKING_STRIPPED = (
    "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n<think>\n{% endif %}"
)
"""Drops the reasoning of every answer, and opens a thought in the generation prompt, as DeepSeek-R1's does."""

THINKING = (
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|start|>{{ m.role }}\n{% set text = m.content %}"
    "{% set thought = m.reasoning_content or '' %}"
    "{% if m.role == 'assistant' and '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set text = text.split('</think>')[-1].lstrip() %}{% endif %}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ text }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""Keeps the reasoning after the last question and drops that of earlier answers, as Qwen3's does."""

SYSTEM_IN_LAST_TURN = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}"
    "{% else %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m.role == 'user' %}"
    "[INST] {% if loop.last and system is defined %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% else %} {{ m.content }}<eos>{% endif %}{% endfor %}"
)
"""Writes the system message into the last turn if that is the user's, as those of Mistral v3 and v7 do."""

SYSTEM_AT_END = (
    "{% for m in messages if m.role != 'system' %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if not add_generation_prompt %}{% for m in messages if m.role == 'system' %}"
    "<|start|>{{ m.content }}<|end|>{% endfor %}{% endif %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""Writes the system message behind the conversation's end."""

NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|start|>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>model\n{% endif %}"
)
"""Refuses a system message and trims every content, as Gemma's does."""

TOOLS = (
    "{% if tools %}<|start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}<|start|>user\n<tool_response>{{ m.content }}</tool_response>"
    "{% else %}<|start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}{% endif %}"
    "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""Writes tools, calls and their results as JSON between tags, as those of Hermes and Qwen2.5 do."""

NO_TOOL_ROLE = TOOLS.replace("<|start|>user\n<tool_response>{{ m.content }}</tool_response>", "<|start|>user\n")
"""Drops the results of tools."""

DATED = (
    "{% if date_string is not defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y, %H:%M:%S') %}"
    "{% else %}{% set date_string = 'none' %}{% endif %}{% endif %}"
    "<|start|>system\nToday Date: {{ date_string }}<|end|>\n" + CHATML
)
"""Writes the present moment, which a row may set by the variable date_string, as Llama 3.2's does."""

HISTORY_CHANGES = (
    "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% if loop.last %}last: {% endif %}{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""Renders a turn differently when another follows."""

TEXT_ARGUMENTS = (
    "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% for call in m.tool_calls or [] %}{{ call.function.name + ' ' + call.function.arguments }}"
    "{% endfor %}{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""Joins arguments to text, so that they must be text themselves, as those of DeepSeek V3 do."""

PRINTED_ARGUMENTS = TEXT_ARGUMENTS.replace(" + call", " ~ call").replace("name + ", "name ~ ")
"""Prints arguments as they are, which is Python's notation where they are an object."""
