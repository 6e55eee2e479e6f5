"""Output, errors, and what the commands have in common: shared arguments and lists as text."""

import csv
import re
from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:  # it loads torch
    from zoo.data.dataset import Dataset

# What a terminal acts upon: control characters but tab and line feed, and those that turn the direction of writing.
CONTROLS = {*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)} - {ord("\t"), ord("\n")}
ESCAPED = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in CONTROLS}


def visible(text: str) -> str:
    r"""Text with its control characters written out, so that names of columns or files cannot act on a terminal.

    >>> visible("\x1b[31mred")
    '\\x1b[31mred'
    """
    return text.translate(ESCAPED)


class Terminal(Console):
    """A console that shows names as they are: brackets are no markup, colons no emoji, control characters visible."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Text of a message or of the cell of a table."""
        return super().render_str(visible(text), **options)


out = Terminal()
err = Terminal(stderr=True)
MODEL = Annotated[
    str,
    typer.Argument(help="Name of a model, see zoo list; or one of your own, FILE.py:NAME or PACKAGE.MODULE:NAME."),
]
SET = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Any argument of the model's constructor, NAME=VALUE, in JSON or as text. Can be repeated."
    ),
]
GUIDE_SET = Annotated[list[str] | None, typer.Option("--guide-set", help="The same for the guide's constructor.")]
OWN_MODEL = Annotated[
    str | None,
    typer.Option("--model", help="For a run with a model of your own: its class, written as for zoo fit."),
]
OWN_GUIDE = Annotated[
    str | None,
    typer.Option("--guide", help="For a run with a guide of your own: its class, written as for zoo fit."),
]
SOURCE = Annotated[str, typer.Argument(metavar="DATA", help="Name of a data set, or path of a file.")]
THREADS = Annotated[
    int | None,
    typer.Option(help="Threads of the processor; by default as many as pay, and at most OMP_NUM_THREADS or the cores."),
]
FAILURES = (
    ValueError,
    TypeError,
    FloatingPointError,
    OSError,
    ImportError,
)  # what a command reports without a traceback
COLUMNS = Annotated[
    list[str] | None,
    typer.Option(help="Columns of the data, e.g. a,b,c; a name with a comma in quotes: '\"a,b\",c'. Can be repeated."),
]
EXCLUDE = Annotated[list[str] | None, typer.Option(help="Columns of the data to leave out, written as for --columns.")]
OPTIONS: ContextVar[Sequence[str]] = ContextVar("the options of the command that runs", default=())
VERBS = "must|needs|repeats|has"  # that follow the name of an argument where a message begins with it


def fail(error: Exception | KeyboardInterrupt) -> NoReturn:
    """Print an error on one line, in the words of the command line, and exit with status 2; 130 after Ctrl-C."""
    if isinstance(error, KeyboardInterrupt):
        err.print(visible(str(error)) or "interrupted", highlight=False, soft_wrap=True)
        raise typer.Exit(130)
    message = visible(spoken(str(error), OPTIONS.get()))
    err.print(Text.assemble(("error:", "bold red"), " ", message), highlight=False, soft_wrap=True)
    raise typer.Exit(2)


def spoken(message: str, options: Sequence[str]) -> str:
    """A message of the library in the words of the command line: options in place of arguments.

    ``latent_dim`` becomes ``--latent-dim``, and ``dtype=torch.float64`` becomes ``--dtype float64``, where the command
    has such an option. An argument of a single plain word is translated only where it is followed by ``=`` or begins
    the message and is followed by a verb, since elsewhere it may be just a word. Quoted names are left as they are.

    Args:
        message: of an error.
        options: of the command, such as ``--latent-dim``; short ones are ignored.

    >>> spoken("latent_dim must be at most 3: pass dtype=torch.float64", ["--latent-dim", "-k", "--dtype"])
    '--latent-dim must be at most 3: pass --dtype float64'
    >>> spoken("GMM(covariance='full') is singular: use covariance='diag'", ["--covariance"])
    "GMM(covariance='full') is singular: use --covariance 'diag'"
    >>> spoken("leave it out by exclude=['group']", ["--exclude"])
    "leave it out by --exclude 'group'"
    >>> spoken("run the method again by again=True", ["--again"])
    'run the method again by --again'
    """
    if "--model" in options and "--guide" in options:
        message = _by_name(message)
    known = {option.removeprefix("--").replace("-", "_"): option for option in options if option.startswith("--")}
    if not known:
        return message
    names = "|".join(sorted(known, key=len, reverse=True))
    plain = rf"(?<![\w.'\"(-])({names})"  # a word of its own, not quoted nor an argument within a call
    message = re.sub(plain + r"=True\b", lambda found: known[found[1]], message)
    message = re.sub(plain + r"=(?:torch\.)?(?=[\w'\"(\[.-])", lambda found: f"{known[found[1]]} ", message)
    message = re.sub(r"(--[a-z-]+) \[('[^',]*')\]", r"\1 \2", message)  # a list of one name
    message = re.sub(rf"(^|: )({names})(?= (?:{VERBS})\b)", lambda found: found[1] + known[found[2]], message)
    wide = [name for name in known if "_" in name]
    if wide:
        plain = rf"(?<![\w.'\"-])({'|'.join(wide)})(?![\w'\"])"
        message = re.sub(plain, lambda found: known[found[1]], message)
    return message


def _by_name(message: str) -> str:
    """A message on passing a model or guide to ``zoo.load``, in the words of a command, which takes their names.

    >>> _by_name("build it yourself and pass it, load(path, guide=...)")
    'name a function that builds it, --guide FILE.py:NAME'
    >>> _by_name("holds the model A, got the class B: pass load(path, model=...) the class A")
    'holds the model A, got the class B: pass --model FILE.py:NAME, the class A'
    """
    built = r"build (it|the guide|the model) yourself and pass it, load\(path, (model|guide)=\.\.\.\)"
    message = re.sub(built, r"name a function that builds \1, --\2 FILE.py:NAME", message)
    message = re.sub(r"load\(path, (model|guide)=\.\.\.\)(?= (the|one|a) )", r"--\1 FILE.py:NAME,", message)
    return re.sub(r"load\(path, (model|guide)=\.\.\.\)", r"--\1 FILE.py:NAME", message)


def tell(table: "Dataset") -> None:
    """Print on one line how the file of a table was read, where that was found from its content."""
    if table.notes:
        out.print(f"{table.source}: {'; '.join(table.notes)}", highlight=False, soft_wrap=True)


def words(given: str | Sequence[str] | None) -> list[str] | None:
    """The words of comma-separated lists such as ``a,b,c``, one after the other; None if nothing is given.

    A word that holds a comma stands in double quotes, as in a CSV file.

    >>> words(['"a,b", c', "d"])
    ['a,b', 'c', 'd']
    """
    if given is None or given == []:
        return None
    texts = [given] if isinstance(given, str) else given
    lines = csv.reader(texts, skipinitialspace=True)
    return [word.strip() for line in lines for word in line if word.strip()]
