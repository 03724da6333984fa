"""Chat: prompts are, to the byte, what jinja2 makes of the same template, set up as transformers sets it up."""

from __future__ import annotations

import json
import os
import pty
import random
import select
import signal
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_rs
import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from llama_rs import Checkpoint, Model, UnsupportedModelError, _core
from tiny_model import write_tiny_model

NOW = 1_700_000_000
QUESTION = "What is gravity?"
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather at \"a place\" <now> & 'then', schön",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "enum": ["sea", "land"]}, "days": {"type": "integer"}},
                "required": ["place"],
                "limits": [1, 2.5, 1e20, 1e-7, True, None, -0.0],
            },
        },
    }
]


class Refused(Exception):
    """What raise_exception raises."""


def oracle(source: str, variables: Mapping[str, Any]) -> str:
    """What jinja2 makes of it."""

    def raise_exception(why: str) -> None:
        raise Refused(why)

    def tojson(x: Any, **options: Any) -> str:
        return json.dumps(x, **{"ensure_ascii": False, **options})

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda text: time.strftime(text, time.localtime(NOW))
    return str(environment.from_string(source).render(**variables))


# In the manner of the families of models, and with the constructs that their templates use; more of them are in files.
FILES = sorted((Path(__file__).parent / "data/templates").glob("*.jinja"))
TEMPLATES = {path.stem: path.read_text() for path in FILES} | {
    "chatml": """\
{% for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
""",
    "system_by_default": """\
{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}
{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\\n' ~ (m.content | trim) ~ '<|im_end|>\\n' }}{% endfor %}
{{ '<|im_start|>assistant\\n' if add_generation_prompt else eos_token }}""",
    "instructions_with_strict_turns": """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate: user, assistant, user, ...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.last and system_message is defined %}
            {{- '[INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'].strip() + eos_token }}
    {%- else %}
        {{- raise_exception('only system, user and assistant are supported, not ' + message['role']) }}
    {%- endif %}
{%- endfor %}
""",
    "headers_with_date_and_tools": """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is defined and tools is not none %}
    {{- "Environment: ipython\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n'+ message.content | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "thinking": """\
{%- macro content_of(message) %}
    {%- if message.content is string %}
        {{- message.content }}
    {%- elif message.content is none %}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'text' %}{{- part.text }}{% else %}{{- raise_exception('no ' ~ part.type) }}{%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n<|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and not(content_of(message).startswith('<tool_response>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = content_of(message) %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if loop.index0 > ns.last or (loop.last and reasoning) %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' ~ content ~ '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
""",
    "roles_by_other_names": """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] ~ '\\n\\n' %}\
{% else %}{% set first = '' %}{% endif %}
{%- for message in messages if message.role != 'system' -%}
    {%- if message['role'] == 'assistant' -%}
        {%- set role = 'model' -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | default('') | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
""",
    "all_sorts": """\
{% set roles = {'user': 'U', 'assistant': 'A'} %}
{%- for message in messages %}
    {%- if message.role not in roles %}{% continue %}{% endif %}
    {%- if loop.index > 6 %}{% break %}{% endif %}
    {{ roles.get(message.role, '?') }}|{{ roles[message.role].lower() }}: {{ message.content }} {{ loop.cycle(1, 2) }}
    {{ message.items() | list | length }} {{ message.keys() | list }} {{ message | tojson(sort_keys=True) }}
    {%- if loop.previtem is defined %} after {{ loop.previtem.role }}{% endif %}
{% endfor %}
{{ roles }} {{ [1, 2.0, none, true, 'x', "it's"] }} {{ 7 // 2 }} {{ 7 / 2 }} {{ 2 ** 3 }} {{ 1e16 }} {{ -7 % 3 }}
{% for key, value in roles.items() %}{{ key }}={{ value }}{{ ", " if not loop.last }}{% endfor %}

{{ messages | map(attribute='role') | join(',') }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='role') | unique | list }}
{{ 'a-b-c'.split('-', 1) }} {{ 'x'.join(['1', '2']) }} {{ 'Abc'.upper() }} {{ ' a '.strip() ~ '|' }}
{{ 'abc'[1:] }} {{ 'abc'[-1] }} {{ 'abc'[::-1] }} {{ 'title case'.title() }} {{ 'aXbX'.replace('X', '-') }}
{{ 'abc'.endswith('c') }} {{ 'abc'.find('c') }} {{ 'aa'.count('a') }} {{ 'ab' * 2 }} {{ 'b' in 'abc' }}
 {{ ['x'|int, '3.7'|int, ' 12 '|int, 'x'|int(5), none|int, true|int, 2.9|int, 'x'|float, '1e3'|float, ''|float(2)] }}
{{ 'ß' | upper }} {{ "quo'te" | tojson }} {{ [1, [2, {}], []] | tojson(indent=2) }}
{{ {'k': 'é'} | tojson(ensure_ascii=True) }} {{ {'k': [1]} | tojson(separators=(',', ':')) }}
{% if tools is defined and tools %}
{% set limits = tools[0].function.parameters.limits %}{{ limits | tojson }} {{ limits }}
{% endif %}
{{- '' if tools else 'no tools' }}
{% raw %}{{ untouched }}{% endraw %}{# said to nobody #}
{% filter upper %}loud{% endfilter %} {% with x = 3 %}{{ x }}{% endwith %} {{ range(3) | list }}
""",
}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "Hello"}],
    "system": [{"role": "system", "content": " You  are a keeper.\n"}, {"role": "user", "content": "Who are you?"}],
    "turns": [
        {"role": "user", "content": " first\n"},
        {"role": "assistant", "content": "\n an answer "},
        {"role": "user", "content": "second {{ x }} {% raw %} 'quoted' \"twice\" \\ and\ttab"},
        {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nbecause"},
        {"role": "user", "content": "日本語 émoji \U0001f980 \u2028 <b>&amp;</b>"},
    ],
    "empty": [{"role": "user", "content": ""}],
    "tools": [
        {"role": "user", "content": "What is the weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "abcdefghi",
                    "type": "function",
                    "function": {"name": "weather", "arguments": {"place": "sea", "n": 1}},
                }
            ],
        },
        {"role": "tool", "name": "weather", "content": '{"wind": "strong"}'},
        {"role": "tool", "name": "weather", "content": "calm"},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]}],
    "image": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this?"}]}],
    "two of a kind": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    "another role": [{"role": "critic", "content": "hm"}],
    "system at the end": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
    "odd": [
        {"role": "system", "content": ""},
        {"role": "user", "content": "{{ bos_token }}{% if %}{# <|im_end|> #}\r\n\x00\x1b\x7f\u200d\ufeff\u0301 {{"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": " \n\t "},
        {"role": "assistant", "content": "</think><think></think>{}[]"},
        {"role": "user", "content": "long, \u00fcber lang \U0001f469\u200d\U0001f680 " * 500},
    ],
    "nothing said": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}],
    "calls as OpenAI has them": [
        {"role": "system", "content": "Look things up."},
        {"role": "user", "content": "The weather at sea and on land?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": f"call{i}abcd", "type": "function", "function": {"name": "weather", "arguments": arguments}}
                for i, arguments in enumerate(['{"place": "sea", "quote\\"d": [1, 2.5, null, "é"]}', "{}"])
            ],
        },
        {"role": "tool", "tool_call_id": "call0abcd", "content": "calm"},
        {"role": "tool", "tool_call_id": "call1abcd", "content": ""},
        {"role": "assistant", "content": "Calm.", "reasoning_content": "It says so."},
        {"role": "user", "content": "Thanks"},
    ],
}


def prompt_of(tokenizer: _core.Tokenizer, source: str, variables: Mapping[str, Any]) -> str:
    written = {name: variables[name] for name in ("messages", "tools") if name in variables}
    trusted = {name: value for name, value in variables.items() if name not in written}
    return _core.Chat(tokenizer, source, "model.gguf").render(trusted, written, NOW)


def outcome(render: Callable[[], str]) -> tuple[str, str]:
    """A prompt, or why there is none; what is wrong use each says in words of its own."""
    try:
        return "prompt", render()
    except Refused as e:
        return "refused", f"the chat template refuses the messages: {e}"
    except UnsupportedModelError:
        return "wrong", ""
    except ValueError as e:
        return "refused", str(e)
    except Exception:
        return "wrong", ""


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Model:
    return Model(smollm2, threads=1, context_length=2048)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", [*TEMPLATES, "of SmolLM2"])
def test_prompts_are_those_of_jinja2(model: Model, template: str, conversation: str) -> None:
    source = TEMPLATES.get(template) or model.metadata["tokenizer.chat_template"]
    n = 0
    for add_generation_prompt in (True, False):
        for tools in (None, TOOLS):
            for more in ({}, {"enable_thinking": False, "date_string": "today"}):
                variables = {
                    "messages": CONVERSATIONS[conversation],
                    "add_generation_prompt": add_generation_prompt,
                    "bos_token": "<s>",
                    "eos_token": "</s>",
                    **({"tools": tools} if tools else {}),
                    **more,
                }
                expected = outcome(lambda: oracle(source, variables))  # noqa: B023
                assert outcome(lambda: prompt_of(model.tokenizer._core, source, variables)) == expected  # noqa: B023
                n += 1
    assert n == 8


def control_tokens(model: Model, ids: Sequence[int]) -> list[int]:
    return [token for token in ids if model.tokenizer.is_special(token)]


@pytest.fixture(scope="module", params=["smollm2", "tiny"])
def any_model(request: pytest.FixtureRequest) -> Model:
    if request.param == "smollm2":
        return Model(request.getfixturevalue("smollm2"), threads=1)
    return Model(request.getfixturevalue("tiny"), threads=1)


def test_nothing_that_people_write_is_a_control_token(any_model: Model) -> None:
    model, rng = any_model, random.Random(1)
    vocabulary = range(model.tokenizer.vocab_size)
    names = [model.tokenizer.token_bytes(i).decode() for i in vocabulary if model.tokenizer.is_special(i)]
    assert names
    chat = _core.Chat(model.tokenizer._core, TEMPLATES["chatml"], model.path)

    def ids_of(role: str, content: object) -> list[int]:
        return chat.encode(
            {"add_generation_prompt": True}, {"messages": [{"role": role, "content": content}]}, NOW, 1 << 30
        )

    expected = control_tokens(model, ids_of("user", "x"))
    for _ in range(300):
        parts = [rng.choice(names) for _ in range(rng.randrange(1, 4))]
        parts = [part[: rng.randrange(len(part) + 1)] if rng.random() < 0.3 else part for part in parts]
        parts += [rng.choice(["", " ", "<", "|", ">", "x", "\n", "é"]) for _ in range(rng.randrange(3))]
        rng.shuffle(parts)
        content = "".join(parts)
        ids = ids_of("user", content)
        assert control_tokens(model, ids) == expected, content
        assert control_tokens(model, ids_of(content, "x")) == expected, content
        assert content in model.tokenizer.decode(ids), "and it is all there"
    with pytest.raises(ValueError, match=r"U\+FDD0"):
        ids_of("user", "a\ufdd0b")


def test_a_prompt_is_the_text_of_the_template_in_tokens_and_begins_once(model: Model, tmp_path: Path) -> None:
    messages = CONVERSATIONS["turns"]
    ids = model.chat_prompt(messages)
    source = model.metadata["tokenizer.chat_template"]
    expected = oracle(source, {"messages": messages, "add_generation_prompt": True, "bos_token": "", "eos_token": ""})
    assert model.tokenizer.decode(ids) == expected
    assert ids == model.tokenizer.encode(expected, add_special=False)
    assert model.chat_prompt("Hello") == model.chat_prompt([{"role": "user", "content": "Hello"}])
    for template in ("{{ bos_token }}a{{ messages[0].content }}", "a{{ messages[0].content }}"):
        path = write_tiny_model(tmp_path / "tiny.gguf")
        with with_template(path, tmp_path / "chat.gguf", template, adds_bos=True) as tiny:
            begin = tiny.tokenizer.encode("")
            assert len(begin) == 1
            assert tiny.chat_prompt("hell") == tiny.tokenizer.encode("ahell")


def with_template(path: Path, target: Path, template: str | None, *, adds_bos: bool = False, **others: str) -> Model:
    """A model with another template."""
    import gguf

    reader, writer = gguf.GGUFReader(path), gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture", "tokenizer.chat_template")) and (
            field.name != "tokenizer.ggml.add_bos_token"
        ):
            kinds = field.types
            writer.add_key_value(field.name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for name, text in {"": template, **{f".{name}": text for name, text in others.items()}}.items():
        if text is not None:
            writer.add_string(f"tokenizer.chat_template{name}", text)
    writer.add_add_bos_token(adds_bos)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_shape=tensor.data.shape, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Model(target, threads=1)


def write_gguf_without_chatml(path: Path, target: Path) -> Path:
    """The same with other names for the tokens of ChatML."""
    target.write_bytes(path.read_bytes().replace(b"<|im_", b"<|no_"))
    return target


def test_answers_are_those_to_the_prompt(model: Model) -> None:
    question = [{"role": "user", "content": QUESTION}]
    options = llama_rs.SamplingParams(temperature=0, max_tokens=24, seed=1)
    done = model.chat(question, sampling=options)
    assert "ravity is" in done.text
    same = model.generate(model.chat_prompt(question), sampling=options)
    assert (done.text, done.token_ids, done.finish_reason) == (same.text, same.token_ids, same.finish_reason)
    assert done.content == done.text
    assert (done.reasoning, done.tool_calls, done.seed) == ("", [], 1)
    assert done.message == {"role": "assistant", "content": done.content}
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (same.prompt_tokens, 24)
    assert "".join(delta.content for delta in model.stream_chat(QUESTION, sampling=options)) == done.content
    with model.session() as session:
        assert session.chat(question, sampling=options).text == done.text
        more = [*question, done.message, {"role": "user", "content": "Who found that?"}]
        again = session.chat(more, sampling=options)
        assert again.timings.cached_tokens > done.usage.prompt_tokens
        with session.stream_chat(more, sampling=options) as stream:
            assert "".join(delta.content for delta in stream) == again.content == stream.content
            assert (stream.finish_reason, stream.token_ids) == (again.finish_reason, again.token_ids)
    assert again.text == model.chat(more, sampling=options).text


def test_which_template_it_is(tiny: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hell"}]
    with with_template(tiny, tmp_path / "a.gguf", "plain {{ x }}", tool_use="tools {{ tools | length }}") as model:
        decode, bos = model.tokenizer.decode, model.tokenizer.decode(model.tokenizer.encode(""))
        assert decode(model.chat_prompt(messages, template_options={"x": 7})) == f"{bos}plain 7"
        assert decode(model.chat_prompt(messages, tools=TOOLS)) == f"{bos}tools 1"
    model = with_template(tiny, tmp_path / "b.gguf", "{% if %}")
    with pytest.raises(UnsupportedModelError, match=r"b\.gguf: .*the chat template cannot be used: .*line 1"):
        model.chat(messages)
    # Without one it is ChatML, as the tiny model has its tokens.
    model = with_template(tiny, tmp_path / "c.gguf", None)
    assert decode(model.chat_prompt(messages)) == f"{bos}<|im_start|>user\nhell<|im_end|>\n<|im_start|>assistant\n"
    path = write_gguf_without_chatml(tiny, tmp_path / "d.gguf")
    with pytest.raises(UnsupportedModelError, match="has no chat template"):
        Model(path).chat(messages)


def test_messages_that_cannot_be(model: Model) -> None:
    bad: list[tuple[Any, type[Exception], str]] = [
        (None, TypeError, "messages are of type NoneType"),
        (7, TypeError, "messages are of type int"),
        (b"hello", TypeError, "messages are of type bytes"),
        ([], ValueError, "there are no messages"),
        (["hello"], TypeError, "message 0 is of type str"),
        ([{"content": "x"}], ValueError, "message 0 has no role"),
        ([{"role": "user", "content": "x", "more": object()}], TypeError, "a value of type object"),
        ([{"role": "user", "content": "\udce9"}], UnicodeEncodeError, "surrogates"),
    ]
    deep: list[Any] = []
    for _ in range(1000):
        deep = [deep]
    bad.append(([{"role": "user", "content": deep}], ValueError, "too deep"))
    for messages, kind, says in bad:
        with pytest.raises(kind, match=says):
            model.chat(messages)
    with pytest.raises(llama_rs.ContextOverflowError):
        model.chat("word " * 5000)


def test_hints_of_types_resolve() -> None:
    for method in (
        Model.chat,
        Model.stream_chat,
        Model.chat_prompt,
        llama_rs.Session.chat,
        llama_rs.Session.stream_chat,
    ):
        assert "messages" in typing.get_type_hints(method)


# On the command line


def run(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llama_rs", "chat", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=120)


def test_a_question_and_its_answer(smollm2: Path) -> None:
    common = ("-m", smollm2, "-n", "24", "--temp", "0")
    done = run(*common, QUESTION)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ravity is" in done.stdout
    assert run(*common, stdin=f"{QUESTION}\n").stdout == done.stdout
    told = run(*common, "--system", "You are a sailor.", QUESTION)
    expected = Model(smollm2).chat(
        [
            {"role": "system", "content": "You are a sailor."},
            {"role": "user", "content": QUESTION},
        ],
        temperature=0,
        max_tokens=24,
    )
    assert told.stdout.rstrip("\n") == expected.text.rstrip("\n")


def test_a_model_without_a_template_is_4(tiny: Path, tmp_path: Path) -> None:
    assert "tokenizer.chat_template" not in Checkpoint(tiny).metadata
    done = run("-m", write_gguf_without_chatml(tiny, tmp_path / "model.gguf"), "hello")
    assert (done.returncode, done.stdout) == (4, "")
    assert "has no chat template" in done.stderr


class Terminal:
    """A conversation at a terminal."""

    def __init__(self, model: Path, *options: str, state: Path | None = None) -> None:
        self.pid, self.terminal = pty.fork()
        if not self.pid:
            os.environ["TERM"] = "dumb"
            os.environ["XDG_STATE_HOME"] = str(state or "/nonexistent")
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it
            command = [sys.executable, "-m", "llama_rs", "chat", "-m", str(model), "--temp", "0", *options]
            os.execv(command[0], command)
        self.shown = ""
        self.seen = 0  # of it

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def wait_for(self, text: str, again: str = "") -> None:
        """Reads until the terminal shows this, after what it showed before. When nothing comes, types `again`."""
        quiet = 0
        while (at := self.shown.find(text, self.seen)) < 0:
            if select.select([self.terminal], [], [], 10)[0]:
                self.shown += os.read(self.terminal, 4096).decode(errors="replace")
                continue
            quiet += 1
            assert quiet < 30, f"no {text!r} after {self.shown!r}"
            self.type(again)
        self.seen = at + len(text)

    def end(self, again: str = "") -> int:
        """Reads what is left; gives the exit code. When nothing comes, types `again`."""
        try:
            while True:
                if not select.select([self.terminal], [], [], 10)[0]:
                    self.type(again)
                elif data := os.read(self.terminal, 4096):
                    self.shown += data.decode(errors="replace")
                else:
                    break
        except OSError:  # it has ended
            pass
        _, status = os.waitpid(self.pid, 0)
        os.close(self.terminal)
        return os.waitstatus_to_exitcode(status)


def test_a_conversation_at_a_terminal(smollm2: Path) -> None:
    lines = [
        "What is \\",
        "gravity?",
        "Who found that?",
        "/nonsense",
        "/help",
        "/system You are a keeper.",
        "/clear",
        "",
        "/exit",
    ]
    terminal = Terminal(smollm2, "-n", "24")
    for line in lines:
        terminal.type(f"{line}\n")
    assert terminal.end() == 0
    assert "ravity is" in terminal.shown
    assert "there is no /nonsense" in terminal.shown
    assert "Ctrl-C stops an answer" in terminal.shown
    assert "Traceback" not in terminal.shown


def test_ctrl_c_stops_an_answer_and_not_the_conversation(smollm2: Path) -> None:
    story = "Tell me a very long story about the sea."
    begins = "".join(Model(smollm2).chat(story, temperature=0, max_tokens=8).text.split("\n")[:1])
    assert begins
    terminal = Terminal(smollm2, "-c", "4096")
    for _ in range(3):
        terminal.wait_for("> ")
        terminal.type("/clear\n")  # so that the answer is the same, and long
        terminal.wait_for("> ")
        terminal.type(f"{story}\n")
        terminal.wait_for(begins)
        terminal.type("\x03")
        terminal.wait_for("[stopped]")
    terminal.wait_for("> ")
    terminal.type("\x03")
    terminal.wait_for("Ctrl-C again ends the conversation", again="\x03")
    terminal.wait_for("> ")
    terminal.type("\x03")
    assert terminal.end(again="\x03") == 130
    assert "Traceback" not in terminal.shown


def test_a_conversation_is_saved_and_brought_back(smollm2: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    terminal = Terminal(smollm2, "-n", "8", state=tmp_path)
    terminal.wait_for("> ")
    terminal.type("/regenerate\n")
    terminal.wait_for("there is no answer yet")
    terminal.type('"""What is\n\ngravity?"""\n')
    terminal.wait_for("ravity")
    terminal.type("/tokens\n")
    terminal.wait_for("2 messages; ")
    terminal.type(f"/save {saved}\n/speed\n/regenerate\n")
    terminal.wait_for("tokens/s]")
    terminal.type(f"/clear\n/load {saved}\n")
    terminal.wait_for("2 messages")
    terminal.type(f"/load {tmp_path / 'none'}\n")
    terminal.wait_for("No such file")
    saved_bad = tmp_path / "bad.json"
    saved_bad.write_text('{"messages": 7}')
    terminal.type(f"/load {saved_bad}\n/save\n")
    terminal.wait_for("no conversation: messages are of type int")
    terminal.wait_for("/save needs the name of a file")
    terminal.type("/exit\n")
    assert terminal.end() == 0
    messages = json.loads(saved.read_text())["messages"]
    assert messages[0] == {"role": "user", "content": "What is\n\ngravity?"}
    assert messages[1]["role"] == "assistant"
    history = tmp_path / "llama_rs" / "history"
    assert "/tokens" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_ctrl_c_forgets_what_is_typed_and_ends_at_the_second_empty_line(smollm2: Path) -> None:
    terminal = Terminal(smollm2, "-n", "4")
    terminal.wait_for("> ")
    terminal.type('"""not to be said\n')
    terminal.wait_for(". ")
    terminal.type("\x03")
    terminal.wait_for("> ", again="\x03")  # one that comes before readline waits for a key may be seen at the next
    terminal.type("/tokens\n")
    terminal.wait_for("0 messages")
    terminal.wait_for("> ")
    terminal.type("\x03")
    terminal.wait_for("Ctrl-C again ends the conversation", again="\x03")
    terminal.wait_for("> ")
    terminal.type("\x03")
    assert terminal.end(again="\x03") == 130


def test_a_long_conversation_at_a_terminal_says_once_what_is_left_out(smollm2: Path) -> None:
    terminal = Terminal(smollm2, "-n", "24", "-c", "160", "--system", "You are brief.")
    for i in range(8):
        terminal.wait_for("> ")
        terminal.type(f"Question {i}: how are you today?\n")
    terminal.wait_for("> ")
    terminal.type("/exit\n")
    assert terminal.end() == 0
    assert terminal.shown.count("its oldest messages are left out") == 1
    assert "/clear begins anew" not in terminal.shown


def test_one_message_of_generate(smollm2: Path) -> None:
    def generated(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "llama_rs",
            "generate",
            "-m",
            str(smollm2),
            "-n",
            "16",
            "--temp",
            "0",
            *arguments,
        ]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120
        )

    told = generated("--system", "You are a sailor.", "Who are you?")
    assert (told.returncode, told.stderr) == (0, "")
    same = run("-m", smollm2, "-n", "16", "--temp", "0", "--system", "You are a sailor.", "Who are you?")
    assert told.stdout == same.stdout
    plain = generated("--chat", "Who are you?")
    assert plain.stdout == run("-m", smollm2, "-n", "16", "--temp", "0", "Who are you?").stdout
    assert plain.stdout != generated("Who are you?").stdout
    done = run("-m", smollm2, "--jsonl", "hello")
    assert (done.returncode, done.stdout) == (2, "")
