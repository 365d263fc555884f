"""Command lines as typed values by tyro, whose errors become one line like all others."""

import dataclasses
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from itertools import dropwhile, takewhile
from types import UnionType
from typing import Any, NoReturn, TypeVar, overload

import tyro
from pydantic import TypeAdapter, ValidationError

# tyro's hooks for errors and help are not parts of its public interface: pyproject.toml bounds tyro's version, and
# tests/test_wrong_uses.py and tests/test_cli.py fail where an error or help is printed otherwise.
from tyro import _arguments as tyro_arguments
from tyro import _errors as tyro_errors
from tyro._backends import _tyro_help_formatting as tyro_help

from adios_ray.errors import UsageError
from adios_ray.validation import explain, suggestion

Value = TypeVar("Value")

_FLAG = re.compile(r"^[^\w-]*(--[a-z][\w.-]*)", re.MULTILINE)
"""A flag at the beginning of a line of ``--help``, inside its box."""
_COMMAND = re.compile(r"^[^\w-]*• ([a-z][\w-]*)", re.MULTILINE)
"""A sub-command in ``--help``."""
_EXPECTED = {
    "INT": "a whole number",
    "FLOAT": "a number",
    "PATH": "a path",
    "STR": "a text",
    "[INT [INT ...]]": "whole numbers",
    "[FLOAT [FLOAT ...]]": "numbers",
    "[STR STR [STR STR ...]]": "pairs of a name and a value",
}
"""Descriptions of tyro's names of types."""
_CHOICES = re.compile(r"\{[^{}]+\}(?=\]?$)")
"""All commands, at the end of the usage."""
_STYLE = re.compile(r"\x1b\[[\d;]*m")
"""Change of color or weight in a terminal."""
_ITEM = re.compile(r"\.\d+$")
"""Position of an item, at the end of a path."""
_SENTENCE_END = re.compile(r"(?<=[^.])[.;:] ")
"""The end of the first sentence of a help text."""


@overload
def parse_arguments(
    kind: Callable[..., Value],
    arguments: Sequence[str] | None = None,
    *,
    program: str | None = None,
    description: str | None = None,
    default: Any = tyro.MISSING_NONPROP,
    examples: Sequence[str] = (),
) -> Value: ...
@overload
def parse_arguments(
    kind: UnionType,
    arguments: Sequence[str] | None = None,
    *,
    program: str | None = None,
    description: str | None = None,
    default: Any = tyro.MISSING_NONPROP,
    examples: Sequence[str] = (),
) -> Any: ...
def parse_arguments(
    kind: Any,
    arguments: Sequence[str] | None = None,
    *,
    program: str | None = None,
    description: str | None = None,
    default: Any = tyro.MISSING_NONPROP,
    examples: Sequence[str] = (),
) -> Any:
    """Parse a command line.

    Args:
        kind: A dataclass, a model, a union of sub-commands, or a function, which is called.
        arguments: The command line without the program's name; the process's if None.
        program: The program's name in ``--help``; the process's own if None.
        description: First paragraphs of ``--help``, of which what is indented counts as examples, since tyro would fill
            its lines; the docstring of ``kind`` if None.
        default: Values that flags replace.
        examples: Command lines that ``--help`` shows at its end.

    Returns:
        The parsed value; for a function, what it returns.

    Raises:
        UsageError: If the command line cannot be used; names the flag, its value, and what is allowed.
        SystemExit: After ``--help``.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    _check_flags(given)
    blocks = (description or "").split("\n\n")
    indented = [block for block in blocks if block.startswith("    ")]
    examples = [*examples, *(line for block in indented for line in textwrap.dedent(block).splitlines())]
    description = description and "\n\n".join(block for block in blocks if block not in indented)

    def parse(line: Sequence[str]) -> Any:
        return tyro.cli(kind, args=line, prog=program, description=description, default=default)

    def refuse(event: tyro_errors.ParseErrorEvent) -> None:
        _refuse(event, given, lambda words: _help(parse, words))

    with tyro_errors.on_parse_error(refuse), _readable_help():
        try:
            parsed = parse(given)
        except SystemExit:
            if {"-h", "--help"} & set(given) and examples:
                print("\n".join(["examples:", *(f"  {example}" for example in examples)]))
            raise
    if dataclasses.is_dataclass(parsed):
        _check_ranges(parsed)
    return parsed


def completion_script(kind: Any, shell: str, program: str) -> str:
    """Write a script that completes a program's sub-commands and options in bash, zsh or fish."""
    script = _output(lambda line: parse_arguments(kind, line, program=program), ["--tyro-print-completion", shell])
    # Candidates are printed a line each, with their descriptions: one of several lines would be several candidates.
    script = re.sub(
        r"^COMPLETION_SPEC = .*$", lambda spec: re.sub(r"\\+n\s*", " ", spec[0]), script, flags=re.MULTILINE
    )
    # bash completes paths wherever there is no candidate; tyro's script offers an empty one.
    script = re.sub(
        r'^( *)(matches\+=\("\$completion"\))$', r"\1[[ -z $completion ]] || \2", script, flags=re.MULTILINE
    )
    return script.replace("complete -F ", "complete -o default -F ")


def _check_flags(given: Sequence[str]) -> None:
    """Refuse a flag without its value's text, as an unset variable of a shell leaves it, and one that is given twice.

    Raises:
        UsageError: If there is one; names the flag.
    """
    flags: set[str] = set()
    for before, word in zip(["", *given], given, strict=False):
        flag, equals, value = word.partition("=") if word.startswith("--") else (before, "=", word)
        if equals and not value:
            named = flag if flag.startswith("-") else "an argument"
            raise UsageError(f"{named} is empty: give a value, or leave it out")
        if word.startswith("--"):
            name = re.sub(r"(^--|\.)no-", r"\1", flag.replace("_", "-"))
            if name in flags:
                raise UsageError(f"{name} is given twice: give it once, with all its values")
            flags.add(name)


def _check_ranges(options: Any) -> None:
    """Check the values of a dataclass of options by its annotations; of a model, pydantic has done so.

    Raises:
        UsageError: If a value is out of range; names its flag.
    """
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    try:
        TypeAdapter(type(options)).validate_python(values)
    except ValidationError as error:
        raise UsageError(explain(error, spell=lambda path, value: f"{as_flag(path)} {value}")) from None
    for value in values.values():
        if dataclasses.is_dataclass(value):  # a sub-command, which pydantic takes as it is
            _check_ranges(value)


@contextmanager
def _readable_help() -> Iterator[None]:
    """Let tyro's ``--help`` fill its lines, none wider than the terminal, and leave out what only means "not given"."""
    original, format_help = tyro_arguments._rule_apply_argconf, tyro_help.format_help

    def apply(arg: Any, lowered: Any) -> None:
        field, source = arg.field, arg.field.helptext

        def default(value: str) -> str:
            return "" if value in ("", "None") else f"(default: {value})"

        field.helptext = lambda: "\n\n".join(_paragraphs(source))
        field.argconf = dataclasses.replace(field.argconf, help_behavior_hint=default)
        if lowered.metavar:
            words = re.sub(r"\{None\}\||(?<=\{)None,", "", lowered.metavar).replace("STR|PATH", "PATH")
            if "URI" in _text(source):  # of a place, which configurations keep as a text
                words = words.replace("STR", "PATH")
            lowered.metavar = words.replace("{[", "[").replace("]}", "]")
        original(arg, lowered)

    def wrapped(**parts: Any) -> list[str]:
        usage, *lines = format_help(**parts)
        if parts["subparser_frontier"]:
            usage = _CHOICES.sub("COMMAND", usage)
        width, description = shutil.get_terminal_size().columns, parts["parser_spec"].description
        fill = partial(textwrap.fill, width=width, break_on_hyphens=False)
        filled = "\n\n".join(map(fill, description.split("\n\n")))
        return [fill(_STYLE.sub("", usage)), *(filled if line == description else line for line in lines)]

    tyro_arguments._rule_apply_argconf = apply
    tyro_help.format_help = wrapped  # type: ignore[assignment]  # tyro calls it by keywords
    try:
        yield
    finally:
        tyro_arguments._rule_apply_argconf, tyro_help.format_help = original, format_help


def last_value(arguments: Sequence[str], flag: str) -> str | None:
    """Find the last value that a command line gives a flag, as --flag VALUE or --flag=VALUE; None without one."""
    found = None
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == flag:
            found = value if equals else next(iter(arguments[position + 1 : position + 2]), None)
    return found


def _help(parse: Callable[[Sequence[str]], object], given: Sequence[str]) -> tuple[list[str], str]:
    """Find the sub-command that a command line names, and its ``--help``."""
    command: list[str] = []
    text = _printed(parse, command)
    for word in given:
        if word in _COMMAND.findall(text):
            command.append(word)
            text = _printed(parse, command)
    return command, text


def _printed(parse: Callable[[Sequence[str]], object], command: Sequence[str]) -> str:
    return _output(parse, [*command, "--help"])


def _output(parse: Callable[[Sequence[str]], object], line: Sequence[str]) -> str:
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        parse(line)
    return text.getvalue()


def _refuse(
    event: tyro_errors.ParseErrorEvent, given: Sequence[str], help_of: Callable[[Sequence[str]], tuple[list[str], str]]
) -> NoReturn:
    """Raise the UsageError of an error of tyro."""
    # Before missing arguments, which are often those that a misspelled flag should have given.
    if tokens := getattr(event, "tokens", None) or getattr(event, "unrecognized_tokens", None):
        raise UsageError(_unknown(tokens[0].partition("=")[0], given, event.prog, *help_of(given)))
    if isinstance(event, tyro_errors.MissingSubcommand):
        commands = list(event.subcommand_spec.parser_from_name)
        found = f"{event.found_token!r} is no command" if event.found_token else "a command is missing"
        raise UsageError(f"{found}: choose one of {', '.join(commands)}")
    if isinstance(event, tyro_errors.MissingArgs):
        missing = "; ".join(f"{_name(each.arg)} ({_summary(each.arg)})" for each in event.missing_arguments)
        program = f"{event.prog} {event.missing_arguments[0].source_parser.prog_suffix}".strip()
        raise UsageError(f"{program} needs {missing}; see {program} --help")
    if isinstance(event, tyro_errors.InvalidChoice):
        choices = list(event.choices)
        if "None" in choices:  # leaving the flag out; tyro gives the choices beside it in no order
            choices = sorted(set(choices) - {"None"})
        near = suggestion(event.value.lower(), choices)
        raise UsageError(f"{_name(event.argument)} {_shown(event.value)} is not one of {', '.join(choices)}{near}")
    if isinstance(event, tyro_errors.BadValue):
        if event.offending_value is not None:
            raise UsageError(f"{_name(event.argument)} takes no value, not {event.offending_value}")
        raise UsageError(f"{_name(event.argument)} needs a value: {_expected(event.argument)}")
    if isinstance(event, tyro_errors.InstantiationFailure):
        raise UsageError(_invalid(event, given))
    raise UsageError(f"the command line cannot be read ({type(event).__name__}); see {event.prog} --help")


def _unknown(token: str, given: Sequence[str], program: str, command: Sequence[str], help_text: str) -> str:
    """Describe a word of the command line that is no flag, no value of one, and no command."""
    see = f"see {' '.join([program, *command])} --help"
    if token.startswith("-"):
        return f"{token} is not known{suggestion(token, _FLAG.findall(help_text)) or f'; {see}'}"
    position = given.index(token) if token in given else 0
    if position == len(command) and (commands := _COMMAND.findall(help_text)):
        near = suggestion(token, commands)
        return f"{token!r} is no command{near}; choose one of {', '.join(commands)}"
    before = given[position - 1] if position else ""
    if before.startswith("-"):
        return f"{before} takes no value, not {token!r}; {see}"
    before = before and f" after {before}"
    flags = set(_FLAG.findall(help_text)) - {"--help"}
    cure = f"write {flags.pop()} {token}" if len(flags) == 1 else see
    return f"{token!r}{before} is not expected: it belongs to no flag; {cure}"


def _invalid(event: tyro_errors.InstantiationFailure, given: Sequence[str]) -> str:
    """Describe a value of the wrong type, or what a model says of its values."""
    if event.argument is not None:
        name = _name(event.argument)
        listed = "..." in str(event.argument.lowered.metavar)
        value = (" ".join(_listed(given, name)) if listed else "") or last_value(given, name)
        return f"{name} {_shown(value)} must be {_expected(event.argument)}"
    # At the root the model's own error; in a section tyro's, raised while it handled the model's.
    raised = sys.exception()
    cause, prefix = (raised, "") if isinstance(raised, ValidationError) else _in_section(raised)
    if not isinstance(cause, ValidationError):
        return event.message
    return explain(cause, spell=lambda path, value: f"{as_flag(prefix + path)} {value}")


def _listed(given: Sequence[str], flag: str) -> Iterator[str]:
    """Iterate over the values that follow a flag."""
    after = dropwhile(lambda word: word != flag, given)
    next(after, None)
    return takewhile(lambda word: not word.startswith("--"), after)


def _in_section(raised: BaseException | None) -> tuple[BaseException | None, str]:
    """Return what a section's model raised, and the beginning of the section's paths."""
    return getattr(raised, "__context__", None), f"{getattr(raised, 'arg', '')}."


def as_flag(path: str) -> str:
    """Spell a configuration path, or that of an item in a list, as the flag that sets it."""
    return f"--{_ITEM.sub('', path).replace('_', '-')}"


def _shown(value: str | None) -> str:
    return value or "''"


def _name(argument: Any) -> str:
    if not argument.is_positional():
        return str(argument.lowered.name_or_flags[-1])
    # By its type where --help names it so: a tuple of paths is [PATH [PATH ...]].
    return "PATH" if "PATH" in str(argument.lowered.metavar) else str(argument.field.intern_name.upper())


def _summary(argument: Any) -> str:
    """Return the first sentence of an argument's help."""
    text = _text(argument.field.helptext) or _expected(argument)
    return _SENTENCE_END.split(text, maxsplit=1)[0].rstrip(".")


def _text(source: Any) -> str:
    """Return an argument's help in one line."""
    return " ".join(_paragraphs(source))


def _paragraphs(source: Any) -> list[str]:
    """Return the paragraphs of an argument's help, from what tyro calls where it is needed, each in one line."""
    text = (source() if callable(source) else source) or ""
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


def _expected(argument: Any) -> str:
    """Describe the values that an argument takes."""
    parts = [part for part in re.split(r"[{}|,]", str(argument.lowered.metavar)) if part not in ("", "None")]
    return " or ".join(_EXPECTED.get(part, part) for part in parts)
