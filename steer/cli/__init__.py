"""The `steer` command."""

from __future__ import annotations

import sys
from typing import Annotated

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, subcommand

from steer.cli.bench import Bench
from steer.cli.chat import Chat
from steer.cli.demo import Demo
from steer.cli.edit import Edit
from steer.cli.generate import Generate
from steer.cli.maps import Maps
from steer.cli.style import Style
from steer.cli.train import Train
from steer.cli.vectors import Vectors
from steer.cli.world import World

Command = (
    Annotated[Demo, subcommand("demo", prefix_name=False)]
    | Annotated[Generate, subcommand("generate", prefix_name=False)]
    | Annotated[Style, subcommand("style", prefix_name=False)]
    | Annotated[Edit, subcommand("edit", prefix_name=False)]
    | Annotated[Maps, subcommand("maps", prefix_name=False)]
    | Annotated[Vectors, subcommand("vectors", prefix_name=False)]
    | Annotated[Chat, subcommand("chat", prefix_name=False)]
    | Annotated[Train, subcommand("train", prefix_name=False)]
    | Annotated[World, subcommand("world", prefix_name=False)]
    | Annotated[Bench, subcommand("bench", prefix_name=False)]
)

ABOUT = """Steer diffusion and language models to what you want, at inference time.

examples:
  steer demo
  steer generate "a red apple, noto style" --reward compressibility -n 8
  steer style noto:fox "fluent:teddy bear"
  steer edit "noto:red apple" "a green apple, noto style"
  steer maps "a red apple, noto style"
  steer vectors fit pairs.jsonl --sites 12
  steer chat --vector steer-out/vector.safetensors --strength 0.1
  steer train draft_k --reward colour:red --steps 50
  steer world check
  steer bench search --models toy-modes
"""


def main(args: list[str] | None = None) -> None:
    """Entry point: what a user did wrong is one line on stderr and exit code 2."""
    args = sys.argv[1:] if args is None else args
    if args == ["--version"]:
        from steer import __version__

        print(f"steer {__version__}")
        return
    command = tyro.cli(
        Command, prog="steer", description=ABOUT, args=args, config=(OmitArgPrefixes, OmitSubcommandPrefixes)
    )
    try:
        command.run()
    except (ValueError, FileNotFoundError) as error:
        print(f"steer: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("steer: stopped; what is finished has been written.", file=sys.stderr)
        sys.exit(130)
