"""What all scripts share: the argument parser, readers of values, exit codes, streams and signals."""

import argparse
import contextlib
import difflib
import errno
import os
import re
import shutil
import signal
import sys
import textwrap
import threading

from runtime.errors import DataError, UserError

STOPPED = 130  # the shell's exit code for Ctrl-C
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
USUAL = (signal.SIG_DFL, signal.default_int_handler)  # handlers that no parent or user has set
path = os.path.expanduser  # a reader of paths: a shell expands no ~ in --out=~/pictures
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # errors of printing into a file
COMMON_NAMES = {"--learning_rate": "--lr", "--num_epochs": "--epochs"}  # of other tools, too unlike ours
WIDEST, TEXT = 120, 27  # columns of a help text, and where the words on a flag begin


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations; its errors are one sentence with a hint, and exit code 2.

    --help TOPIC lists the arguments of a `topic`, --help all every one, and --help those that are `common`, with those
    that have no topic. With `raises`, an error is a UserError.
    """

    def __init__(self, raises=False, **options):
        self.topics, self.commands, self.raises = {}, {}, raises  # topics: their actions, and whether they are common
        super().__init__(allow_abbrev=False, add_help=False, **options)
        super().add_argument("-h", "--help", action=_Help, nargs="?", const="", metavar="TOPIC")

    def add_argument(self, *names, topic="options", common=False, **options):
        action = super().add_argument(*names, **options)
        if action.help != argparse.SUPPRESS:
            self.topics.setdefault(topic, []).append((action, common or topic == "options"))
        return action

    def add_subparsers(self, **options):
        action = super().add_subparsers(**options)
        self.commands = action.choices
        return action

    def parse_known_args(self, args=None, namespace=None):
        namespace, others = super().parse_known_args(args, namespace)
        if others:  # here, where a subcommand's own parser knows its flags
            self.error(f"unrecognized arguments: {' '.join(others)}")
        return namespace, others

    def error(self, message):
        given = ""
        known = [name for every in self.topics.values() for action, _ in every for name in action.option_strings]
        if message.startswith("unrecognized arguments: "):
            given = message.split()[2].partition("=")[0]
        elif found := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            given, known = found[1], re.findall(r"[^', ]+", found[2])
        near = [name for name in [COMMON_NAMES.get(given)] if name in known]
        message += "".join(f"; did you mean {one}?" for one in near or difflib.get_close_matches(given, known, 1))
        if "folder:PATH" in known and os.path.exists(given):
            message += f"; for images of your own, write folder:{given}"
        if self.raises:
            raise UserError(message)
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def format_help(self, topic=""):
        """The help on a topic, on "all" of them or, without one, on what is common."""
        width = max(2 * TEXT, min(shutil.get_terminal_size().columns, WIDEST))
        places = [action.metavar for every in self.topics.values() for action, _ in every if not action.option_strings]
        usage = ["usage:", self.prog, *(f"[{name} ...]" for name in places), *["COMMAND"] * bool(self.commands)]
        lines = [" ".join([*usage, "[--FLAG VALUE ...]"]), "", *textwrap.wrap(self.description or "", width)]
        lines += [""] * bool(self.description)
        for name, every in self.topics.items():
            if chosen := [action for action, is_common in every if topic in ("all", name) or (not topic and is_common)]:
                lines += [f"{name}:", *(line for action in chosen for line in _described(action, width)), ""]
        for one in dict.fromkeys(self.commands.values()):
            aliases = ", ".join(name for name, parser in self.commands.items() if parser is one)
            lines += _columns(aliases, one.description.partition(":")[0], width)
        more = "\nCOMMAND --help lists the flags of a command." if self.commands else ""
        if not all(is_common for every in self.topics.values() for _, is_common in every):
            more = "Defaults are in []. --help all lists every flag, and --help TOPIC those on a topic: "
            more = textwrap.fill(more + ", ".join(self.topics), width)
        return "\n".join([*lines, more]).rstrip() + "\n"


class _Help(argparse.Action):
    """Prints the help on a topic or a command, of which the beginning of its name is enough, and exits."""

    def __call__(self, parser, args, asked, flag=None):
        known = ["all", *parser.topics, *parser.commands]
        near = [name for name in known if name.startswith(asked)] or difflib.get_close_matches(asked, known, 1, 0.8)
        topic = next(iter(near), None) if asked else ""
        if topic is None:
            parser.error(f"--help knows no topic {asked!r}; choose from {', '.join(known)}")
        of_command = parser.commands.get(topic)
        print(of_command.format_help() if of_command else parser.format_help(topic), end="")
        parser.exit()


def _described(action, width):
    """The lines of a help text on an argument; its choices stand there once, in its own words or before them."""
    choices, words = [str(one) for one in action.choices or ()], action.help
    value = action.metavar or (choices or [action.dest.upper()])[-1]
    others = [one for one in choices if one not in (value, action.default)]
    if others and not any(re.search(rf"(?<!\w){re.escape(one)}(?!\w)", words) for one in others):
        words = f"{', '.join(choices)}: {words}"
    value = "" if action.nargs == 0 else f"[{value}]" if action.nargs == "?" else value
    if not any(action.default is one for one in (None, False, argparse.SUPPRESS)):
        words += f" [{action.default}]"
    return _columns(" ".join(filter(None, [*action.option_strings, value])), words, width)


def _columns(name, words, width):
    """The lines of a help text on a name: the words beside it or, if it is long, below."""
    name, lines = f"  {name}".ljust(TEXT), textwrap.wrap(words, width - TEXT, break_on_hyphens=False)
    first, *rest = lines or [""]  # python -OO leaves descriptions out
    head = [name + first] if name[-1] == " " else [name, " " * TEXT + first]
    return head + [" " * TEXT + line for line in rest]


def whole(low, high=2**31 - 1):
    """A reader of integers from `low` to `high` for argparse."""
    return _reader(int, low, high, f" and at most {high}")


def number(low):
    """A reader of finite numbers from `low` for argparse."""
    return _reader(float, low, sys.float_info.max, ", and finite")


def _reader(kind, low, high, words):
    def read(text):
        if not low <= (value := kind(text)) <= high:
            raise argparse.ArgumentTypeError(f"{text} must be at least {low}{words}")
        return value

    read.__name__ = kind.__name__  # for argparse's "invalid int value"
    return read


def command(run, args):
    """Runs a script's `run(args)` and returns its exit code; a UserError is one sentence on stderr, and exit code 2."""
    _open_streams()
    try:
        with stoppable():
            code = run(args)
            sys.stdout.flush()  # here, where a closed pipe is handled
            return code
    except (UserError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has ended, as `head` does
        _write_no_more(sys.stdout)
        return 1
    except OSError as error:
        if error.filename is not None or error.errno not in NO_ROOM:
            raise
        _write_no_more(sys.stdout)
        try:
            print(f"error: writing failed: {error.strerror}", file=sys.stderr, flush=True)
        except OSError:  # stderr goes to the same full disk
            _write_no_more(sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; files that were written are complete; the same command begins again", file=sys.stderr)
        return STOPPED


def _open_streams():
    """Opens standard streams that are closed, as in a daemon, and makes stdout accept every character."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is the stream's
            setattr(sys, name, os.fdopen(number, mode))
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _write_no_more(stream):
    """Redirects a stream to nothing, so that Python does not try to write the rest again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def stoppable(handler=signal.default_int_handler):
    """Sets the handler of Ctrl-C, SIGTERM (a scheduler, or kill) and SIGHUP (a closed terminal) for the block.

    Signals that are ignored, as under nohup, stay ignored.
    """
    is_main = threading.current_thread() is threading.main_thread()  # Python sets handlers only there
    usual = {number: signal.getsignal(number) for number in STOPPING if is_main}
    usual = {number: before for number, before in usual.items() if before in USUAL}
    for number in usual:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in usual.items():
            signal.signal(number, before)


def end_with_parent():
    """Sends this process SIGTERM when its standard input, a pipe, closes: when the process that started it has died."""

    def watch():
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
