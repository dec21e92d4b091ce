"""How a dialogue becomes a text: the names that `--prompt` knows, and the file that it may name."""

import difflib
from pathlib import Path

from tuninglab.errors import UserError
from tuninglab.untrusted import check_path, read_text, shown

TUNINGLAB = "tuninglab"
CHAT_TEMPLATE = "chat_template"  # the tokenizer's own
PROMPTS = (
    *(TUNINGLAB, "multimodal_gpt", "otter", "openflamingo-vqa", "openflamingo-caption"),
    CHAT_TEMPLATE,
)
# Of the templates of chat models, the longest have 20 KiB.
LARGEST_TEMPLATE = 64 * 1024


def is_template(prompt: str) -> bool:
    """Whether a prompt is the text of a Jinja template; names and paths hold no such marks."""
    return "{{" in prompt or "{%" in prompt


def kept_prompt(prompt: str) -> str:
    """What a run keeps of `--prompt`: a name, or the text of the Jinja file that it names.

    Raises:
        UserError: it is neither, or the file is no template.
    """
    if prompt in PROMPTS:
        return prompt
    text = prompt if is_template(prompt) else _template_in(prompt)
    if len(text.encode("utf-8", "surrogatepass")) > LARGEST_TEMPLATE:
        most = f"{LARGEST_TEMPLATE // 1024} KiB"
        raise UserError(f"--prompt is a template of more than {most}; give a shorter one")
    return text


def _template_in(path: str) -> str:
    known = f"one of {', '.join(PROMPTS)}, or the path of a Jinja file"
    check_path(path, "--prompt")
    if not path or not Path(path).exists():
        near = difflib.get_close_matches(path, PROMPTS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"--prompt is {shown(repr(path))}; expected {known}.{hint}")
    text = read_text(path, LARGEST_TEMPLATE, "--prompt")
    if not is_template(text):
        raise UserError(
            f"--prompt: {path} holds no {{{{ }}}} and no {{% %}}, so it is no Jinja template and "
            "would say the same of every dialogue. See the chat templates of transformers."
        )
    return text
