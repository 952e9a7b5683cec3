"""What all scripts share: the argument parser, readers of values, exit codes, streams and signals."""

import argparse
import contextlib
import difflib
import errno
import os
import re
import signal
import sys
import threading

from runtime.errors import DataError, UserError

STOPPED = 130  # the shell's exit code for Ctrl-C
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
USUAL = (signal.SIG_DFL, signal.default_int_handler)  # handlers that no parent or user has set
path = os.path.expanduser  # a reader of paths: a shell expands no ~ in --out=~/pictures
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # errors of printing into a file


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations; its errors are one sentence with a hint, and exit code 2."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message):
        if message.startswith("unrecognized arguments: "):
            flag, known = message.split()[2].partition("=")[0], set(re.findall(r"--\w+", self.format_help()))
            message += "".join(f"; did you mean {near}?" for near in difflib.get_close_matches(flag, known, 1))
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


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
        print("stopped; files that were written are complete and stay", file=sys.stderr)
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
