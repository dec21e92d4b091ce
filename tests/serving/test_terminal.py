import io

import pytest
from PIL import Image

from tuninglab import cli
from tuninglab.data.prompt import encode_prompt
from tuninglab.data.sample import normal_messages
from tuninglab.errors import UserError
from tuninglab.serving.conversation import Conversation
from tuninglab.serving.open_model import open_model
from tuninglab.serving.reading import Reader


@pytest.fixture(scope="module")
def opened(model_directory):
    return open_model(str(model_directory))


@pytest.fixture
def pictures(tmp_path):
    """Two pictures, one with a blank and Chinese in its name."""
    paths = [tmp_path / "red.png", tmp_path / "蓝 色.png"]
    for path, colour in zip(paths, ("red", "blue"), strict=True):
        Image.new("RGB", (20, 30), colour).save(path)
    return paths


@pytest.fixture
def talk(model_directory, monkeypatch, capsys):
    """A function (typed lines, flags) -> exit code, answers, notes."""

    def run(text, *flags, model=model_directory):
        stdin = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")
        monkeypatch.setattr("sys.stdin", stdin)
        code = cli.main(["chat", str(model), "--max_new_tokens", "4", *flags])
        output = capsys.readouterr()
        return code, output.out.splitlines(), output.err

    return run


def test_questions_from_a_pipe_are_answered_line_by_line(talk):
    code, answers, notes = talk("What is it?\n\n你好\n")
    assert code == 0
    assert len(answers) == 2
    assert "/image PATH" in notes


def test_quit_ends_it_and_help_repeats(talk):
    code, answers, notes = talk("/help\n/quit\nnever asked\n")
    assert (code, answers) == (0, [])
    assert notes.count("/image PATH") == 2


def test_pictures_by_flag_and_command(talk, pictures):
    text = f"And this?\n/image {pictures[1]}\nBoth?\n/image '{pictures[1]}'\n"
    code, answers, notes = talk(text, "--image", str(pictures[0]))
    assert (code, len(answers)) == (0, 2)
    assert notes.count("蓝 色.png. Ask about it.") == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/image", "needs the path"),
        ("/image nowhere.png", "nowhere.png"),
        ("/imag x.png", "Did you mean /image"),
        ("x" * 300, "/reset"),
    ],
)
def test_a_mistake_is_told_and_the_chat_goes_on(talk, line, said):
    code, answers, notes = talk(f"{line}\nstill there?\n")
    assert (code, len(answers)) == (0, 1)
    assert said in notes
    assert "Traceback" not in notes


def test_a_wrong_start_is_exit_2(talk, tmp_path):
    assert talk("", "--image", "nowhere.png")[0] == 2
    assert talk("", model=tmp_path / "none")[0] == 2
    assert talk("", "--max_new_tokens", "0")[0] == 2


def test_a_tuned_run_can_be_talked_to(talk, run_folder):
    assert talk("Hello?\n", model=run_folder)[0] == 0


def test_a_turn_sees_the_turns_and_pictures_before_it(opened, pictures):
    both = Conversation(*opened, max_new_tokens=8)
    both.show(str(pictures[0]))
    both.ask("One?")
    second = both.ask("Two?")
    assert len(both.messages) == 4
    # The same dialogue with another picture, and the question alone, are answered otherwise.
    other = Conversation(*opened, max_new_tokens=8)
    other.show(str(pictures[1]))
    other.ask("One?")
    other.messages[1] = both.messages[1]
    fresh = Conversation(*opened, max_new_tokens=8)
    assert len({second, other.ask("Two?"), fresh.ask("Two?")}) == 3


def test_reset_forgets_everything(opened, pictures):
    conversation = Conversation(*opened, max_new_tokens=4)
    first = conversation.ask("One?")
    conversation.show(str(pictures[0]))
    conversation.ask("Two?")
    conversation.show(str(pictures[0]))
    conversation.reset()
    assert conversation.ask("One?") == first


def test_a_question_too_long_leaves_no_turn_behind(opened):
    conversation = Conversation(*opened, max_new_tokens=4)
    with pytest.raises(UserError, match="200"):
        conversation.ask("x" * 300)
    assert conversation.messages == []
    # 180 tokens of 200 leave room for a shorter answer only.
    long = Conversation(*opened, max_new_tokens=100)
    long.ask("x" * 140)


class Screen(io.StringIO):
    """A terminal that remembers what was written, piece by piece."""

    def __init__(self, interrupted_at: int | None = None):
        super().__init__()
        self.pieces: list[str] = []
        self.interrupted_at = interrupted_at

    def isatty(self):
        return True

    def write(self, text):
        self.pieces.append(text)
        if len(self.pieces) == self.interrupted_at:
            raise KeyboardInterrupt
        return len(text)


@pytest.fixture
def at_the_keyboard(model_directory, monkeypatch, capsys):
    """A function (typed lines, screen, input from a terminal) -> exit code, notes."""

    def run(lines, screen, keyboard=True):
        typed = iter(lines)

        def type_line(prompt):
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        stdin = Screen() if keyboard else io.StringIO("\n".join(lines))
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr("sys.stdout", screen)
        monkeypatch.setattr("builtins.input", type_line)
        code = cli.main(["chat", str(model_directory), "--max_new_tokens", "12"])
        return code, capsys.readouterr().err

    return run


def test_an_answer_appears_word_by_word_on_a_terminal(at_the_keyboard, opened):
    screen = Screen()
    assert at_the_keyboard(["What is it?"], screen)[0] == 0
    answer = Conversation(*opened, max_new_tokens=12).ask("What is it?")
    assert "".join(screen.pieces) == answer + "\n"
    assert len([piece for piece in screen.pieces if piece]) > 4


def test_ctrl_c_at_the_keyboard_stops_only_the_answer(at_the_keyboard, opened):
    screen = Screen(interrupted_at=3)
    code, notes = at_the_keyboard(["What is it?", "And now?"], screen)
    assert code == 0 and "Stopped." in notes
    answer = Conversation(*opened, max_new_tokens=12).ask("And now?")
    assert "".join(screen.pieces[3:]) == answer + "\n"


def test_ctrl_c_elsewhere_ends_the_chat(at_the_keyboard):
    assert at_the_keyboard(["What is it?"], Screen(interrupted_at=3), keyboard=False)[0] == 130


def test_pieces_are_the_answer_and_ctrl_c_leaves_the_dialogue_as_it_was(opened, pictures):
    pieces = []
    conversation = Conversation(*opened, max_new_tokens=12)
    assert conversation.ask("One?", on_text=pieces.append) == "".join(pieces)
    conversation.show(str(pictures[0]))
    before = list(conversation.messages)

    def interrupt(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversation.ask("Two?", on_text=interrupt)
    assert conversation.messages == before
    assert len(conversation.waiting) == 1 and not conversation.pictures
    undisturbed = Conversation(*opened, max_new_tokens=12)
    undisturbed.ask("One?")
    undisturbed.show(str(pictures[0]))
    assert conversation.ask("Two?") == undisturbed.ask("Two?")


def test_one_question_is_answered_on_standard_output_and_that_is_all(talk, opened, pictures):
    code, answers, notes = talk("never read\n", "--ask", "What is it?", "--image", str(pictures[0]))
    conversation = Conversation(*opened, max_new_tokens=4)
    conversation.show(str(pictures[0]))
    assert (code, answers) == (0, [conversation.ask("What is it?")])
    assert "/image PATH" not in notes
    assert talk("", "--ask", "x" * 300)[:2] == (2, [])
    assert talk("", "--ask", " ")[0] == 2


def test_a_system_message_stands_first_and_outlives_reset(talk, opened, monkeypatch):
    _, processor = opened
    read, original = [], Reader.read

    def spy(self, asked):
        read.append(list(asked.ids))
        return original(self, asked)

    monkeypatch.setattr(Reader, "read", spy)
    assert talk("One?\nTwo?\n/reset\nOne?\n", "--system", "Be brief.")[0] == 0
    said = {"role": "system", "content": "Be brief."}
    first = [said, {"role": "user", "content": "One?"}]
    assert read[0] == encode_prompt(normal_messages(first), processor.tokenizer)
    assert read[1][: len(read[0])] == read[0] and len(read[1]) > len(read[0])
    assert read[2] == read[0]
