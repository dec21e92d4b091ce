"""The processor: texts with `<image>` marks and pictures in, model inputs out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jinja2 import TemplateError
from PIL.Image import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, ProcessorMixin

from tuninglab.data.batches import padded_texts
from tuninglab.data.images import load_image
from tuninglab.data.prompt import Prompt, encode_dialogue, encode_prompt, make_prompt
from tuninglab.data.prompt_jinja import CHAT_TEMPLATE
from tuninglab.data.sample import Message, count_images, normal_messages
from tuninglab.data.special_tokens import EOC_TOKEN, IMAGE_TOKEN
from tuninglab.errors import UserError
from tuninglab.models.hub import located
from tuninglab.models.towers import picture_size

PICTURE_KEYS = ("image", "path", "bytes")


class FlamingoProcessor(ProcessorMixin):
    """The image processor of a tower and a tokenizer that has `<image>` and `<|endofchunk|>`.

    Args:
        image_processor: of the vision tower, e.g. a `CLIPImageProcessorPil`.
        tokenizer: the language model's tokenizer with the two tokens added.
        chat_template: of another prompt than `tuninglab`; `use_prompt` chooses one by its name.

    Raises:
        ValueError: the tokenizer lacks one of the two tokens.
    """

    image_token = IMAGE_TOKEN
    eoc_token = EOC_TOKEN

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None):
        vocabulary = tokenizer.get_vocab()
        for token in (IMAGE_TOKEN, EOC_TOKEN):
            if token not in vocabulary:
                raise ValueError(
                    f"the tokenizer has no {token} token; add it, or build the processor with "
                    "tuninglab.models.flamingo_from_parts"
                )
        self.image_token_id = vocabulary[IMAGE_TOKEN]
        self.eoc_token_id = vocabulary[EOC_TOKEN]
        # Of the processor, also where the tokenizer of a chat model brings one that nobody trained.
        template = CHAT_TEMPLATE if chat_template is None else chat_template
        super().__init__(image_processor, tokenizer, chat_template=template)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As in transformers; also of `embedded`, the model that ships with tuninglab."""
        return super().from_pretrained(located(pretrained_model_name_or_path), **kwargs)

    @property
    def image_size(self) -> int:
        """Pixels of a side of the pictures that it makes."""
        return picture_size(self.image_processor)

    @property
    def prompt(self) -> Prompt:
        """How dialogues become texts: what its chat template says.

        Raises:
            UserError: nobody can be trained or asked so: it loses or changes what is said.
        """
        try:
            template = self._resolve_chat_template(None)
        except ValueError as error:
            raise UserError(f"The model's chat templates: {error}") from error
        return make_prompt(template, self.tokenizer)

    def use_prompt(self, choice: str) -> None:
        """Ask, and train, in another way from now on.

        Args:
            choice: a name that `--prompt` knows, or the text of a Jinja template.

        Raises:
            UserError: it is neither, or a template that loses or changes what is said.
        """
        self.chat_template = make_prompt(choice, self.tokenizer).chat_template

    @property
    def model_input_names(self) -> list[str]:
        """The model arguments that a call returns."""
        return ["input_ids", "attention_mask", "pixel_values"]

    def __call__(
        self,
        text: str | list[str] | None = None,
        images: Any = None,
        padding: bool | str = True,
        return_tensors: str = "pt",
        padding_side: str = "left",
        **text_options: Any,
    ) -> BatchFeature:
        """Tokenize texts and prepare their images.

        Args:
            text: a text or a list of B texts.
            images: a list of images a text (rows may have none or differ); or, flat, one image or
                a list of images in the order of the marks in all texts.
            padding: handed to the tokenizer.
            return_tensors: "pt", the only one.
            padding_side: "left", so that `generate` continues each text at its end, whatever the
                tokenizer's own side (many have "right"); "right" is for training.
            **text_options: handed to the tokenizer.

        Returns:
            input_ids and attention_mask (B, T), and, if there are images, pixel_values
            (B, M, 1, 3, H, W) with M the largest count of a row; shorter rows end in zeros.

        Raises:
            ValueError: a text has more marks than images, or there are more or fewer rows of
                images than texts.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors is {return_tensors!r}; only 'pt' is supported")
        texts = [text] if isinstance(text, str) else text
        # A rendered chat has its first token already, as transformers' own processors see it.
        bos = self.tokenizer.bos_token
        if texts and bos and texts[0].startswith(bos):
            text_options.setdefault("add_special_tokens", False)
        # Not ProcessorMixin's own call: it wants as many images as marks, and flattens the rows.
        data: dict[str, Any] = {}
        if texts is not None:
            text_options |= {"padding": padding, "padding_side": padding_side}
            data.update(self.tokenizer(texts, return_tensors="pt", **text_options))
        if images is not None:
            pixel_values = self.pixel_values(_by_row(images, texts))
            data.update({} if pixel_values is None else {"pixel_values": pixel_values})
        return BatchFeature(data)

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        **options: Any,
    ) -> Any:
        """Dialogues as the text or the ids that training reads.

        Ids come piece by piece, as in training: a rendered text that is tokenized whole may merge
        what was apart there. With a template of your own, or options besides `padding_side`,
        `return_tensors` and `images`, transformers does it in its way, whole.

        Args:
            conversation: messages, or a list of B such dialogues. An image part may hold its
                picture as `image`, `path` or `bytes`; nothing is fetched from a `url`.
            chat_template: another one than the processor's.
            add_generation_prompt: end where the answer to the last question begins.
            tokenize: ids instead of text.
            return_dict: with `tokenize`: all inputs of the model instead of input_ids.
            **options: `images`: pictures of all parts, a list for each dialogue if there are B.

        Returns:
            A text or a list of B; or input_ids (B, T), or with `return_dict` what calling the
            processor gives.

        Raises:
            ValueError: the messages are malformed, or marks and pictures differ in number.
            UserError: the template is no Jinja, or refuses the messages.
        """
        ours = self._resolve_chat_template(chat_template) == self._resolve_chat_template(None)
        ours = ours and options.keys() <= {"padding_side", "return_tensors", "images", "padding"}
        if not (tokenize and ours):
            options |= {"add_generation_prompt": add_generation_prompt, "tokenize": tokenize}
            options["return_dict"] = return_dict
            with _template_told():
                return super().apply_chat_template(conversation, chat_template, **options)
        several = not isinstance(conversation[0], Mapping)
        dialogues = [normal_messages(d) for d in (conversation if several else [conversation])]
        encode, prompt = encode_prompt if add_generation_prompt else _encoded, self.prompt
        rows = [{"input_ids": encode(d, self.tokenizer, prompt)} for d in dialogues]
        side = options.get("padding_side", "left")
        inputs = padded_texts(rows, self.tokenizer.pad_token_id, side)
        if not return_dict:
            return inputs["input_ids"]
        given = options.get("images")
        if given is None:
            given = [_pictures(d) for d in (conversation if several else [conversation])]
        elif not several:
            given = [given if isinstance(given, list | tuple) else [given]]
        for number, (dialogue, row) in enumerate(zip(dialogues, given, strict=True)):
            _check_pictures(count_images(dialogue), len(row), number)
        pixels = self.pixel_values(given)
        return BatchFeature(inputs | ({} if pixels is None else {"pixel_values": pixels}))

    def pixel_values(self, rows: Sequence[Sequence[Any]]) -> Tensor | None:
        """Images of B rows -> (B, M, 1, 3, H, W), short rows padded with zeros; None if none."""
        flat = [image for row in rows for image in row]
        if not flat:
            return None
        pixels = self.image_processor(flat, return_tensors="pt")["pixel_values"]
        by_row = pixels.unsqueeze(1).split([len(row) for row in rows])
        # Padding needs no mask: the model never looks at images beyond the marks of a row.
        return pad_sequence(by_row, batch_first=True)  # pyright: ignore


@contextmanager
def _template_told() -> Iterator[None]:
    try:
        yield
    except TemplateError as error:
        raise UserError(
            f"The model's chat_template.jinja: {error}. Correct or replace that file"
        ) from error


def _by_row(images: Any, texts: list[str] | None) -> list[list[Any]]:
    if isinstance(images, (Image, torch.Tensor)):
        images = [images]
    if texts is None:
        return [list(row) if isinstance(row, list | tuple) else [row] for row in images]
    # In the text, because truncation may already have cut marks off the ids.
    marks = [text.count(IMAGE_TOKEN) for text in texts]
    if not all(isinstance(row, list | tuple) for row in images):
        if len(texts) > 1 and len(images) != sum(marks):
            raise ValueError(
                f"{len(images)} images in a flat list, but {sum(marks)} {IMAGE_TOKEN} marks in "
                f"{len(texts)} texts; give one list of images for each text"
            )
        flat = iter(images)
        # One text takes them all: images beyond its marks are allowed there.
        counts = [len(images)] if len(texts) == 1 else marks
        images = [[next(flat) for _ in range(count)] for count in counts]
    if len(images) != len(texts):
        raise ValueError(f"{len(texts)} texts but {len(images)} lists of images; give one a text")
    for number, (row, count) in enumerate(zip(images, marks, strict=True)):
        if count > len(row):
            raise ValueError(
                f"text {number} has {count} {IMAGE_TOKEN} marks but {len(row)} images; "
                "give an image for each mark, in their order"
            )
    return [list(row) for row in images]


def _encoded(messages: Sequence[Message], tokenizer: Any, prompt: Prompt) -> list[int]:
    return encode_dialogue(messages, tokenizer, prompt).input_ids


def _pictures(messages: Sequence[Mapping[str, Any]]) -> list[Image]:
    """The pictures that image parts hold themselves, in their order."""
    contents = [m["content"] for m in messages if not isinstance(m["content"], str)]
    parts = [part for content in contents for part in content if part["type"] == "image"]
    # A table of parts has every key in each, null where it does not apply.
    sources = [part[key] for part in parts for key in PICTURE_KEYS if part.get(key) is not None]
    return [load_image(source) for source in sources]


def _check_pictures(marks: int, pictures: int, number: int) -> None:
    if marks != pictures:
        raise ValueError(
            f"dialogue {number} has {marks} {IMAGE_TOKEN} marks but {pictures} pictures; give each "
            'image part its own ({"type": "image", "image": ...} or "path") or all as images=[...]'
        )
