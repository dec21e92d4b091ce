"""The prompts that have a name, as Jinja: the texts that their spans spell."""

# The same format as transformers renders it, for whoever asks a model in Python. Its text tokenized
# whole may give other ids than piece by piece: see FlamingoProcessor.apply_chat_template.
CHAT_TEMPLATE = """\
{%- if bos_token is defined and bos_token %}{{ bos_token }}{% endif %}
{%- for message in messages %}
  {%- set said = namespace(text=message["content"]) %}
  {%- if said.text is not string %}
    {%- set said.text = "" %}
    {%- for part in message["content"] %}
      {%- set mark = "<image>" if part["type"] == "image" else part["text"] %}
      {%- set said.text = said.text + mark %}
    {%- endfor %}
  {%- endif %}
  {%- set answer = message["role"] in ("assistant", "gpt") %}
  {%- if said.text %}
    {%- if answer %}{{ "### Response:\\n" }}
    {%- elif message["role"] != "system" %}{{ "### Instruction:\\n" }}
    {%- endif %}
    {{- said.text }}
    {%- if answer %}{{ "<|endofchunk|>" }}{% endif %}
    {%- if not (answer and loop.last) %}{{ "\\n\\n" }}{% endif %}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "### Response:\\n" }}{% endif %}
"""
# What all others share; the lines before it say in what they differ.
TURNS_TEMPLATE = """\
{%- set turns = namespace(begun=false) %}
{%- if bos_token is defined and bos_token %}{{ bos_token }}{% endif %}
{{- start }}
{%- for message in messages %}
  {%- set said = namespace(text=message["content"], pictures="") %}
  {%- if said.text is not string %}
    {%- set said.text = "" %}
    {%- for part in message["content"] %}
      {%- set mark = "<image>" if part["type"] == "image" else part["text"] %}
      {%- set said.text = said.text + mark %}
    {%- endfor %}
  {%- endif %}
  {%- if message["role"] == "system" %}
    {%- if said.text and not has_system %}
      {{- raise_exception("this prompt has no place for a system message") }}
    {%- endif %}
    {%- if said.text %}{{ said.text + "\\n" }}{% endif %}
  {%- elif message["role"] in ("assistant", "gpt") %}
    {%- if said.text %}{{ response + mark + blank + said.text + end }}{% endif %}
    {%- set turns.begun = true %}
  {%- else %}
    {%- for _ in said.text.split("<image>") %}
      {%- if said.text.lstrip().startswith("<image>") %}
        {%- set said.pictures = said.pictures + "<image>" %}
        {%- set said.text = said.text.lstrip()[7:] %}
      {%- endif %}
    {%- endfor %}
    {%- if said.pictures %}
      {%- set said.pictures = pictures + said.pictures %}
      {%- set said.text = said.text.lstrip() %}
    {%- endif %}
    {%- if said.text.strip() and not has_question %}
      {{- raise_exception("this prompt has no place for a question") }}
    {%- endif %}
    {{- between if turns.begun else "" }}{{ said.pictures }}
    {{- question + said.text if has_question else "" }}
    {%- set turns.begun = true %}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ response + mark }}{% endif %}
"""
