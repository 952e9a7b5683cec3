"""One command for all of it: python vampvae.py train|eval|plot|features|data ..."""

import sys

import data
import evaluate
import plot
import train
from evaluation import features
from runtime.command import Parser, command, path
from runtime.errors import UserError

SCRIPTS = {"train": train, "eval": evaluate, "plot": plot, "features": features}


def add_data_arguments(parser):
    """Adds the flags of `vampvae.py data`."""
    text = f"data sets to fetch and verify: {', '.join(data.DATA_SETS)}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=text)
    text = "folder that is searched first and downloaded to [a per-user cache]"
    parser.add_argument("--data_dir", type=path, metavar="DIR", help=text)
    parser.add_argument("--list", action="store_true", help="list the data sets, and where their files were found")


def run_data(args):
    """Lists data sets, or fetches and verifies them without training; returns the exit code."""
    if args.list == bool(args.names):
        raise UserError("name the data sets to fetch, or list them with --list")
    for name in args.names:
        for file, verdict in data.fetch(name, args.data_dir).items():
            print(f"{name}: {file}, {file.stat().st_size:,} bytes: {verdict}")
        if not (source := data.source(name)).files:
            print(f"{name}: nothing to fetch, it is {source.origin}")
    if args.list:
        print("\n\n".join(describe(source, args.data_dir) for source in data.DATA_SETS.values()))
        print("\nfolder:PATH: your own images, a folder of them or one .npy or .npz file")
    return 0


def describe(source, data_dir):
    """A paragraph on a data set: title, image size, splits, origin, and where each file was found."""
    height, width, channels = source.image_shape
    splits = ", ".join(f"{count:,} {name}" for name, count in source.num_images.items())
    lines = [f"{source.name}: {source.title}", f"  {height}x{width}x{channels}; {splits}", f"  {source.origin}"]
    found = dict(data.found(source.name, data_dir))
    for file in source.files:
        size = f"{file.packed.bytes:,} bytes" if file.packed.bytes else "unknown size"
        lines.append(f"  {file.name} ({size}): {found[file.name] or 'not found'}")
    return "\n".join(lines)


def main(argv=None):
    """The command line of vampvae.py; returns the exit code."""
    parser = Parser(prog="vampvae.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, script in SCRIPTS.items():
        aliases = ["evaluate"] if name == "eval" else []
        one = commands.add_parser(name, aliases=aliases, description=script.__doc__)
        script.add_arguments(one)
        one.set_defaults(run=script.run)
    about = "Fetch and verify data sets, or list them: python vampvae.py data --list"
    one = commands.add_parser("data", description=about)
    add_data_arguments(one)
    one.set_defaults(run=run_data)
    args = parser.parse_args(argv)
    return command(args.run, args)


if __name__ == "__main__":
    sys.exit(main())
